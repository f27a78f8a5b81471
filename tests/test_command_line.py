"""Every script prints help where it is asked for, refuses what it does not know, and does nothing else."""

import pytest

from conftest import ROOT, run_stage

SCRIPTS = sorted(path.stem for path in (ROOT / "stages").glob("*.py"))


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
