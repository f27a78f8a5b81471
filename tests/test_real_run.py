"""The notebook and the sharing page as a user follows them, on a shortened embedded default."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from conftest import ROOT, SMALL

NOTEBOOK = ROOT / "notebooks/real_run.ipynb"

pytestmark = pytest.mark.slow


def overrides(changes: dict, prefix: str = "") -> list[str]:
    """Nested parameters as `dvc exp run -S` takes them."""
    found = []
    for name, value in changes.items():
        if isinstance(value, dict):
            found += overrides(value, f"{prefix}{name}.")
        else:
            found.append(f"{prefix}{name}={value}")
    return found


def run(*command, folder: Path) -> str:
    """Output of a command that must succeed."""
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def commit_all(folder: Path, message: str) -> None:
    identity = ("-c", "user.name=Test", "-c", "user.email=test@example.org")
    run("git", "add", "--all", folder=folder)
    run("git", *identity, "commit", "--quiet", "--message", message, folder=folder)


@pytest.fixture(scope="module")
def repository(tmp_path_factory) -> Path:
    """A git repository of the working tree, installed: its .venv is the one that runs the tests."""
    environment = Path(sys.prefix)
    if not (environment / "installed").is_file():
        pytest.skip(f"{environment} was not made by make: the notebook would install 6 GB")
    folder = tmp_path_factory.mktemp("real-run") / "ExplainMyXray"
    folder.mkdir()
    listed = run("git", "ls-files", "--cached", "--others", "--exclude-standard", folder=ROOT).splitlines()
    for name in listed:
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    for name in ("requirements.txt", "requirements.lock", "Makefile", "install.py"):
        if (folder / name).exists():  # older than the installation, as after `make`
            os.utime(folder / name, (0, 0))
    (folder / ".venv").symlink_to(environment)
    run("git", "init", "--quiet", "--initial-branch", "main", folder=folder)
    with (folder / ".git/info/exclude").open("a") as file:
        file.write(".venv\n")
    commit_all(folder, "the working tree")
    return folder


@pytest.fixture(scope="module")
def executed(repository):
    """The notebook, run in the repository with the shortened default in the place of the 3B model."""
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    (parameters,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    parameters.source += f"\nOVERRIDES = {overrides(SMALL)}"
    client = nbclient.NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(repository)}}
    )
    client.execute()
    return notebook


def output(notebook, source: str) -> str:
    """What the one cell that holds `source` has printed."""
    (cell,) = [cell for cell in notebook.cells if source in cell.source and cell.cell_type == "code"]
    return "".join(each.get("text", "") for each in cell.outputs)


def test_the_notebook_in_git_has_no_outputs():
    for cell in json.loads(NOTEBOOK.read_text())["cells"]:
        assert cell.get("outputs", []) == []
        assert cell.get("execution_count") is None


def test_the_notebook_runs_from_the_code_to_the_adapter(executed, repository):
    assert "nothing is missing" in output(executed, "stages/doctor.py")
    assert "micro-F1" in output(executed, "--score")
    pictures = [
        each
        for cell in executed.cells
        for each in cell.get("outputs", [])
        if "image/png" in each.get("data", {})
    ]
    assert len(pictures) == 2
    assert (repository / "adapter.zip").stat().st_size > 10_000


def test_the_notebook_s_secrets_reach_no_output(executed, repository):
    text = json.dumps(executed)
    for name in ("HF_TOKEN", "KAGGLE_API_TOKEN"):
        assert f"{name} is" in text
        if os.environ.get(name):
            assert os.environ[name] not in text


def test_a_clone_that_pulls_has_the_adapter_and_runs_nothing(executed, repository, tmp_path):
    """The commands of docs/sharing.md, with a folder as the remote."""
    store, clone = tmp_path / "store", tmp_path / "clone"
    store.mkdir()
    (repository / "adapter.zip").unlink(missing_ok=True)
    run("dvc", "remote", "add", "--default", "store", str(store), folder=repository)
    commit_all(repository, "what the run made")
    run("dvc", "push", folder=repository)

    run("git", "clone", "--quiet", str(repository), str(clone), folder=tmp_path)
    run("dvc", "pull", folder=clone)
    assert "up to date" in run("dvc", "status", "dvc.yaml", folder=clone)
    assert "didn't change, skipping" in run("dvc", "repro", "dvc.yaml", folder=clone)
    adapter = "models/adapter/adapter_model.safetensors"
    assert (clone / adapter).read_bytes() == (repository / adapter).read_bytes()

    film = next((clone / "data/images").rglob("*.png"))
    Image.open(film).resize((300, 280)).save(tmp_path / "film.png")
    explained = run(
        sys.executable, "stages/explain.py", str(tmp_path / "film.png"), "--samples", "2", folder=clone
    )
    assert "film.png" in explained


def test_an_experiment_is_pushed_and_pulled(executed, repository, tmp_path):
    server, clone = tmp_path / "server.git", tmp_path / "clone"
    run("git", "clone", "--quiet", "--bare", str(repository), str(server), folder=tmp_path)
    run("git", "clone", "--quiet", str(server), str(clone), folder=tmp_path)
    (name,) = run("dvc", "exp", "list", "--all-commits", "--name-only", folder=repository).split()
    run("dvc", "exp", "push", "--no-cache", str(server), name, folder=repository)
    run("dvc", "exp", "pull", "--no-cache", "origin", name, folder=clone)
    assert name in run("dvc", "exp", "list", "--all-commits", "--name-only", folder=clone)


def test_a_refused_run_is_taken_back_by_the_commands_that_its_error_names(executed, repository):
    """`dvc exp run -S` leaves the refused value in params.yaml,
    and DVC removes outputs before it runs a stage.
    """
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        ["dvc", "exp", "run", "-S", "split.train=0.7"],
        cwd=repository,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "add up to 0.9" in line
    run("bash", "-c", line.partition("come back with: ")[2].rstrip(")"), folder=repository)
    assert run("git", "status", "--porcelain", "params.yaml", "dvc.lock", "metrics", folder=repository) == ""
    assert "up to date" in run("dvc", "status", "dvc.yaml", folder=repository)
