"""Checkpoints: which run they belong to, on which disk they lie, and which of them can be resumed from."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from conftest import ROOT, SMALL, write_params
from explainmyxray.errors import RESTORE, UserError
from explainmyxray.settings import Settings, load_settings
from explainmyxray.training import checkpoints
from explainmyxray.training.fingerprint import run_fingerprint, syntax

TINY_BASE = ROOT / "models/tiny-paligemma"


# --- the fingerprint ---


def with_parameters(settings: Settings, section: str, **values) -> Settings:
    changed = getattr(settings, section).model_copy(update=values)
    return settings.model_copy(update={section: changed})


class Run:
    """A run's inputs in a folder: a base, a split table and an image."""

    def __init__(self, folder: Path):
        shutil.copytree(TINY_BASE, folder / "base")
        self.table = folder / "train.csv"
        self.image = folder / "image.png"
        self.table.write_text("image,report\nimage.png,clear\n")
        self.image.write_bytes(b"pixels")
        self.settings = with_parameters(load_settings(ROOT / "params.yaml"), "model", id=str(folder / "base"))

    def fingerprint(self) -> str:
        return run_fingerprint(self.settings, [self.table], [self.image], None)


@pytest.fixture
def run(tmp_path) -> Run:
    (tmp_path / "here").mkdir()
    return Run(tmp_path / "here")


def test_the_fingerprint_holds_no_path(run, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    assert Run(tmp_path / "elsewhere").fingerprint() == run.fingerprint()


def test_builds_of_torch_for_other_drivers_are_one_library(run, monkeypatch):
    before = run.fingerprint()
    monkeypatch.setattr(
        "explainmyxray.training.fingerprint.version",
        lambda name: f"{sys.modules['importlib.metadata'].version(name).partition('+')[0]}+cu126",
    )
    assert run.fingerprint() == before


@pytest.mark.parametrize(
    "values",
    [{"dataloader_num_workers": 0}, {"gradient_checkpointing": True}, {"save_total_limit": 9}],
)
def test_what_makes_a_run_only_faster_leaves_its_fingerprint(run, values):
    before = run.fingerprint()
    run.settings = with_parameters(run.settings, "train", **values)
    assert run.fingerprint() == before


@pytest.mark.parametrize(
    "section, values",
    [
        ("lora", {"r": 4}),
        ("train", {"seed": 1}),
        ("train", {"max_steps": 7}),
        ("augment", {"rotation": 0.0}),
        ("quantization", {"bnb_4bit_quant_type": "fp4"}),
        ("model", {"max_length": 200}),
    ],
)
def test_a_parameter_changes_the_fingerprint(run, section, values):
    before = run.fingerprint()
    run.settings = with_parameters(run.settings, section, **values)
    assert run.fingerprint() != before


def test_data_and_base_change_the_fingerprint(run):
    found = {run.fingerprint()}
    run.image.write_bytes(b"other pixels")
    found.add(run.fingerprint())
    run.table.write_text("image,report\nimage.png,a mass\n")
    found.add(run.fingerprint())
    (Path(run.settings.model.id) / "config.json").write_text("{}")
    found.add(run.fingerprint())
    assert len(found) == 4


SOURCE = '''
"""A module."""
from a import b

class C:
    """A class."""
    x: int = 0

    def f(self, *args, key=None, **more):
        """A function."""
        # a comment
        label = f"{self.x!r:>{key}} of {args}" "{" 'text'
        return [(y, -1.5e-7) for y in args if y is not None] or {"a": b"b", **more}
'''


def test_comments_docstrings_and_layout_are_no_part_of_the_code():
    edited = SOURCE.replace("# a comment", "# another").replace('"""A function."""', '"""It returns."""\n')
    edited = edited.replace("[(y, -1.5e-7)", "[\n            (y, -1.5e-7)")
    assert edited != SOURCE
    assert syntax(edited) == syntax(SOURCE)
    assert syntax(SOURCE.replace("-1.5e-7", "-1.5e-8")) != syntax(SOURCE)


def test_the_code_s_syntax_is_the_same_under_every_python():
    """Noted down under Python 3.11; the tests run under 3.11 to 3.14."""
    assert hashlib.sha256(syntax(SOURCE).encode()).hexdigest()[:16] == "46d3db69834a9951"


# --- which checkpoint can be resumed from ---

STATE = {"global_step": 2, "max_steps": 8, "stateful_callbacks": {}}


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    """A checkpoint of one process in fp16, as far as it is looked at."""
    folder = tmp_path / "checkpoint-2"
    folder.mkdir()
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "scaler.pt"):
        torch.save({"state": torch.arange(100)}, folder / name)
    save_file({"lora_A": torch.zeros(2)}, folder / "adapter_model.safetensors")
    (folder / "trainer_state.json").write_text(json.dumps(STATE))
    return folder


def find(checkpoint: Path, has_scaler: bool) -> Path | None:
    return checkpoints.find_resumable_checkpoint(checkpoint.parent, num_processes=1, has_scaler=has_scaler)


def test_a_whole_checkpoint_is_found(checkpoint):
    assert find(checkpoint, has_scaler=True) == checkpoint


@pytest.mark.parametrize(
    "part",
    [
        "optimizer.pt",
        "scheduler.pt",
        "rng_state.pth",
        "scaler.pt",
        "adapter_model.safetensors",
        "trainer_state.json",
    ],
)
def test_a_torn_checkpoint_is_put_away(checkpoint, part, capsys):
    whole = (checkpoint / part).read_bytes()
    (checkpoint / part).write_bytes(whole[: len(whole) // 2])
    assert find(checkpoint, has_scaler=True) is None
    assert not checkpoint.exists()
    assert "checkpoint-2 is torn: put away" in capsys.readouterr().out


def test_a_missing_loss_scale_is_no_checkpoint_to_go_on_from(checkpoint):
    """Trainer would go on at another scale without a word."""
    (checkpoint / "scaler.pt").unlink()
    assert find(checkpoint, has_scaler=True) is None


def test_a_cpu_has_no_loss_scale(checkpoint):
    (checkpoint / "scaler.pt").unlink()
    assert find(checkpoint, has_scaler=False) == checkpoint


# --- another disk ---


def test_the_folder_is_made_where_the_variable_says(tmp_path, monkeypatch):
    monkeypatch.delenv(checkpoints.VARIABLE, raising=False)
    assert checkpoints.checkpoints_folder() == Path("models/checkpoints")
    monkeypatch.setenv(checkpoints.VARIABLE, str(tmp_path / "drive"))
    assert checkpoints.checkpoints_folder() == tmp_path / "drive"
    assert (tmp_path / "drive").is_dir()


def test_a_disk_that_is_not_mounted_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv(checkpoints.VARIABLE, str(tmp_path / "drive/MyDrive/checkpoints"))
    with pytest.raises(UserError, match="there is no folder .*MyDrive: mount its disk"):
        checkpoints.checkpoints_folder()
    assert not (tmp_path / "drive").exists()


def test_a_file_in_the_folder_s_place_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "drive").touch()
    monkeypatch.setenv(checkpoints.VARIABLE, str(tmp_path / "drive"))
    with pytest.raises(UserError, match="drive cannot be made: File exists"):
        checkpoints.checkpoints_folder()


def test_a_full_disk_is_one_line_and_other_errors_stay(tmp_path, monkeypatch):
    with pytest.raises(RuntimeError, match="a bug"), checkpoints.full_disk_errors(tmp_path):
        raise RuntimeError("a bug")
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(checkpoints.shutil, "disk_usage", lambda path: usage(10, 10, 0))
    with pytest.raises(UserError, match=f"no space left on the disk of {tmp_path}"):
        with checkpoints.full_disk_errors(tmp_path):
            raise RuntimeError("unexpected pos 64 vs 0")  # torch's words


def clone(folder: Path, data: Path, *changes: dict) -> Path:
    """The code, the tiny base and prepared data in a folder of their own, as on another machine."""
    for name in ("stages", "models/tiny-paligemma"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(data, folder / "data")
    write_params(folder, SMALL, {"model": {"id": "models/tiny-paligemma"}}, *changes)
    return folder


@pytest.mark.slow
def test_a_killed_run_goes_on_in_another_clone(small_data, finished, tmp_path, monkeypatch):
    """With other loader processes, no layer recomputed and another comment; it ends with the same adapter."""
    drive = tmp_path / "drive"
    monkeypatch.setenv(checkpoints.VARIABLE, str(drive))
    first = clone(tmp_path / "first", small_data / "data")
    faster = {"dataloader_num_workers": 1, "gradient_checkpointing": False}
    second = clone(tmp_path / "second", small_data / "data", {"train": faster})
    with (second / "stages/explainmyxray/training/loss.py").open("a") as file:
        file.write("# another comment\n")
    command = [sys.executable, "stages/train_qlora.py"]

    killed = subprocess.Popen(command, cwd=first, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not list(drive.glob("*/checkpoint-2/trainer_state.json")):
        assert killed.poll() is None
        time.sleep(0.01)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    assert not (first / "models/checkpoints").exists()
    assert not (first / "models/adapter").exists()

    done = subprocess.run(command, cwd=second, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"going on from {drive}" in done.stdout
    for name in (
        "models/adapter/adapter_model.safetensors",
        "metrics/train.json",
        "metrics/curves/plots/metrics/train_loss.tsv",
    ):
        assert (second / name).read_bytes() == (finished / name).read_bytes(), name
    assert list(drive.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("num_processes", [1, 2])
def test_ctrl_c_under_dvc_is_one_line_and_the_next_run_goes_on(workspace, num_processes):
    """In a clone, whose packed objects DVCLive opens; a loader's process gets the signal, too."""
    changes = {"num_train_epochs": 0.5, "dataloader_num_workers": 1, "num_processes": num_processes}
    write_params(workspace, SMALL, {"train": changes | {"gradient_accumulation_steps": num_processes}})
    command = f"{sys.executable} {ROOT / 'stages/train_qlora.py'}"
    (workspace / "dvc.yaml").write_text(f"stages: {{train: {{cmd: {command}}}}}")
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for git in (["init", "-q"], ["add", "params.yaml"], [*identity, "commit", "-qm", "a"], ["gc", "-q"]):
        subprocess.run(["git", *git], check=True)
    dvc = [sys.executable, "-m", "dvc"]
    subprocess.run([*dvc, "init", "-q"], check=True)

    run = subprocess.Popen([*dvc, "repro"], start_new_session=True, stderr=subprocess.PIPE, text=True)
    while not list(Path("models/checkpoints").glob("*/checkpoint-2/trainer_state.json")):
        assert run.poll() is None
        time.sleep(0.01)
    os.killpg(run.pid, signal.SIGINT)  # as a terminal does, to DVC, the stage and its loader
    _, errors = run.communicate()
    lines = [line for line in errors.splitlines() if line and not line.startswith("Loading weights")]
    line, dvc_line = lines
    assert line == (
        "interrupted: the next run goes on from the last checkpoint, if there is one "
        f"(earlier outputs come back with: {RESTORE})"
    )
    assert dvc_line.startswith("ERROR: failed to reproduce 'train'")

    run = subprocess.run(command.split(), capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "going on from models/checkpoints" in run.stdout
