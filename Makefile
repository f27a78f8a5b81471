# Two commands: `make repro` runs the whole pipeline, `make test` the tests. Both install what they need into .venv.
# `make test-slow` runs those that are left out of `make test`: kills, several processes, each base, the notebook.
# `make doctor` says before a long run what is there and what is missing; `make app` opens a page to explain one's own X-rays.
# PYTHON=/path/to/python3.13 names another Python, TORCH=cpu another build of torch (docs/install.md).
SUPPORTED := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))
PYTHONS := python3.14 python3.13 python3.12 python3.11 python3 python
PYTHON ?= $(or $(shell for python in $(PYTHONS); do \
  $$python -c '$(SUPPORTED)' 2>/dev/null && echo $$python && break; done),python3)
# With either given, the environment is compared with it even where it is newer than the lock.
FORCED := $(if $(TORCH)$(filter-out file,$(origin PYTHON)),FORCE)
VENV := .venv/bin

# Images of containers often set it. Without bytecode each import of torch and transformers compiles 4,000 files.
unexport PYTHONDONTWRITEBYTECODE

define need_python
@$(PYTHON) -c '$(SUPPORTED)' 2>/dev/null || { found=$$($(PYTHON) --version 2>&1 | grep -m1 ^Python); \
  echo "error: Python 3.11, 3.12, 3.13 or 3.14 is needed, $(PYTHON) is $${found:-not there}: install one" \
    "(apt install python3; uv python install 3.13), or name it: make PYTHON=/path/to/python3.13"; exit 1; } >&2
endef

.PHONY: repro test test-slow doctor app gpu-report base lock FORCE

repro: .venv/installed
	PATH="$(CURDIR)/$(VENV):$$PATH" dvc repro

PYTEST := $(VENV)/python -m pytest --numprocesses logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder

test: .venv/installed
	$(PYTEST) -m "not slow"

test-slow: .venv/installed
	$(PYTEST) -m slow

doctor: .venv/installed
	$(VENV)/python stages/doctor.py

gpu-report: .venv/installed    # what one GPU does with the 3B model's shape, in under ten minutes; docs/benchmarks.md
	$(VENV)/python tests/gpu_report.py

app: .venv/installed    # after `make repro`: it reads models/adapter
	$(VENV)/python stages/app.py

base: .venv/installed   # make the tiny base again (about two hours on two cores); not needed for anything else
	cd models/tiny-paligemma && PATH="$(CURDIR)/$(VENV):$$PATH" dvc repro

lock:                   # requirements.lock again, from requirements.txt
	$(need_python)
	@$(PYTHON) install.py lock

.venv/installed: requirements.lock $(FORCED)
	$(need_python)
	@$(PYTHON) install.py $(if $(TORCH),--torch $(TORCH))
