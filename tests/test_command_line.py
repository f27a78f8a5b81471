"""Every script prints help where it is asked for, refuses what it does not know, and does nothing else."""

import os
import re
import subprocess
import sys
from collections.abc import Mapping

import pytest

from conftest import ROOT, run_stage

SCRIPTS = sorted(path.stem for path in (ROOT / "stages").glob("*.py"))
HELP = """
import contextlib, pathlib, runpy, sys
sys.path[0] = str(pathlib.Path(sys.argv[1]).parent)  # as for a script
with contextlib.suppress(SystemExit):
    runpy.run_path(sys.argv[1], run_name="__main__")
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


@pytest.mark.parametrize(
    "script, wanted, spins",
    [
        ("train_qlora", {}, "0"),
        pytest.param("evaluate", {}, "0", marks=pytest.mark.slow),
        pytest.param("explain", {}, "0", marks=pytest.mark.slow),
        pytest.param("app", {}, "0", marks=pytest.mark.slow),
        ("explain", {"GOMP_SPINCOUNT": "99"}, "99"),
    ],
)
def test_threads_that_wait_sleep_unless_a_person_wants_them_to_spin(script, wanted, spins):
    """They spin by default, and beside another busy program a step of seconds takes minutes."""
    unset = {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"}
    environment = {name: value for name, value in os.environ.items() if name not in unset}
    done = help_then(script, "import torch", {**environment, "OMP_DISPLAY_ENV": "verbose", **wanted})
    # As OpenMP itself says when torch loads it.
    assert set(re.findall(r"GOMP_SPINCOUNT = '(\d+)'", done.stderr)) == {spins}


@pytest.mark.parametrize("script, unneeded", [("compare", "torch"), ("train_qlora", "transformers")])
def test_a_script_starts_without_what_it_does_not_use(script, unneeded):
    """Seconds of each call; of the process that starts those that train, half a GB too."""
    done = help_then(script, "print(*sys.modules)", os.environ)
    assert done.returncode == 0, done.stderr
    modules = done.stdout.splitlines()[-1].split()
    assert "explainmyxray.settings" in modules and unneeded not in modules


def help_then(script: str, statement: str, environment: Mapping[str, str]) -> subprocess.CompletedProcess:
    """`--help` of a script, and a statement after it, in a process of their own."""
    program = [sys.executable, "-c", HELP + statement, ROOT / "stages" / f"{script}.py", "--help"]
    return subprocess.run(program, env=environment, capture_output=True, text=True)
