# Two commands: `make repro` runs the whole pipeline, `make test` the tests. Both install what they need into .venv.
# `make doctor` says before a long run what is there and what is missing; `make app` opens a page to explain one's own X-rays.
CHECK := import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))
PYTHON ?= $(shell for python in python3.12 python3.11 python3; do \
  $$python -c '$(CHECK)' 2>/dev/null && echo $$python && break; done)
VENV := .venv/bin

.PHONY: repro test doctor app base

repro: .venv/installed
	PATH="$(CURDIR)/$(VENV):$$PATH" dvc repro

test: .venv/installed
	$(VENV)/python -m pytest

doctor: .venv/installed
	$(VENV)/python stages/doctor.py

app: .venv/installed    # after `make repro`: it reads models/adapter
	$(VENV)/python stages/app.py

base: .venv/installed   # make the tiny base again (about an hour on two cores); not needed for anything else
	cd models/tiny-paligemma && PATH="$(CURDIR)/$(VENV):$$PATH" dvc repro

.venv/installed: requirements.txt
	@test -n "$(PYTHON)" && $(PYTHON) -c '$(CHECK)' \
	  || { echo "error: no Python 3.11 or 3.12 with venv found: run make PYTHON=/path/to/python3.12"; exit 1; }
	@echo "installing requirements.txt into .venv (about 6 GB with CUDA's libraries; minutes)"
	$(PYTHON) -m venv .venv
	$(VENV)/python -m pip install --disable-pip-version-check -q -r requirements.txt
	@touch $@
