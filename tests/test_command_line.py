"""Every script prints help where it is asked for, refuses what it does not know, and does nothing else."""

import os
import re
import subprocess
import sys

import pytest

from conftest import ROOT, run_stage

SCRIPTS = sorted(path.stem for path in (ROOT / "stages").glob("*.py"))
HELP_THEN_TORCH = """
import contextlib, runpy, sys
with contextlib.suppress(SystemExit):
    runpy.run_path(sys.argv[1], run_name="__main__")
import torch
"""


@pytest.mark.parametrize("arguments, status", [(["--help"], 0), (["--nonsense"], 2)])
@pytest.mark.parametrize("script", SCRIPTS)
def test_help_and_unknown_arguments(script, arguments, status, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        run_stage(script, *arguments)
    assert ended.value.code == status
    printed = capsys.readouterr()
    assert f"usage: {script}.py" in (printed.out if status == 0 else printed.err)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("wanted, spins", [({}, "0"), ({"GOMP_SPINCOUNT": "99"}, "99")])
@pytest.mark.parametrize("script", ["train_qlora", "evaluate", "explain", "app"])
def test_threads_that_wait_sleep_unless_a_person_wants_them_to_spin(script, wanted, spins):
    """They spin by default, and beside another busy program a step of seconds takes minutes."""
    unset = {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"}
    environment = {name: value for name, value in os.environ.items() if name not in unset}
    environment |= {"OMP_DISPLAY_ENV": "verbose", "PYTHONPATH": str(ROOT / "stages")}
    done = subprocess.run(
        [sys.executable, "-c", HELP_THEN_TORCH, ROOT / "stages" / f"{script}.py", "--help"],
        env=environment | wanted,
        capture_output=True,
        text=True,
    )
    # As OpenMP itself says when torch loads it.
    assert set(re.findall(r"GOMP_SPINCOUNT = '(\d+)'", done.stderr)) == {spins}
