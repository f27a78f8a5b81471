"""Tests import the package as the stages do; `workspace` is a small copy of the repository to run stages in."""

import importlib.util
import os
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

ROOT = Path(__file__).resolve().parents[1]

sys.path.append(str(ROOT / "stages"))  # last: `import evaluate` means the library, not stages/evaluate.py
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

SMALL = {  # a run of seconds: everything else is as committed
    "data": {"phantom": {"count": 120}},
    "split": {"min_samples_per_class": 3},
    "train": {
        "gradient_accumulation_steps": 1,
        "num_train_epochs": 0.25,
        "warmup_steps": 2,
        "eval_steps": 2,
        "save_steps": 2,
        "dataloader_num_workers": 0,
        "learning_rate": 1.0e-3,
    },
    "evaluate": {"max_new_tokens": 24, "bootstrap_samples": 50, "gallery": 3},
}


def write_params(folder: Path, *changes: dict) -> None:
    """params.yaml of the repository with `changes` laid over it, the tiny base by its whole path."""
    yaml = YAML(typ="safe")
    params = yaml.load(ROOT / "params.yaml")
    for change in ({"model": {"id": str(ROOT / "models/tiny-paligemma")}}, *changes):
        lay_over(params, change)
    with (folder / "params.yaml").open("w") as file:
        yaml.dump(params, file)


def lay_over(params: dict, change: dict) -> None:
    for name, value in change.items():
        if isinstance(value, dict):
            lay_over(params[name], value)
        else:
            params[name] = value


def run_stage(name: str) -> None:
    """The stage's `main` in this process and the current folder: without the seconds of importing everything anew."""
    spec = importlib.util.spec_from_file_location(f"stage_{name}", ROOT / "stages" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    path = list(sys.path)
    spec.loader.exec_module(module)
    sys.path[:] = path  # evaluate.py moves its folder to the end
    module.main()


@pytest.fixture(scope="session")
def small_data(tmp_path_factory) -> Path:
    """A folder with params.yaml and the outputs of the three data stages, on 120 phantoms."""
    folder = tmp_path_factory.mktemp("small")
    write_params(folder, SMALL)
    here = os.getcwd()
    os.chdir(folder)
    try:
        for stage in ("fetch", "synthesize_reports", "split"):
            run_stage(stage)
    finally:
        os.chdir(here)
    return folder


@pytest.fixture
def workspace(small_data, tmp_path, monkeypatch) -> Path:
    """A folder of its own, with the small data and params, to train and evaluate in; it is the current folder."""
    (tmp_path / "data").symlink_to(small_data / "data")
    write_params(tmp_path, SMALL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["stage"])
    return tmp_path


@pytest.fixture(scope="session")
def finished(small_data, tmp_path_factory):
    """A workspace where training and evaluation have run to the end."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "data").symlink_to(small_data / "data")
    write_params(folder, SMALL)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("sys.argv", ["stage"])
        run_stage("train_qlora")
        run_stage("evaluate")
    return folder
