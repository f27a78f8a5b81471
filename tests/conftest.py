"""Tests import the package as the stages do; `workspace` is
a small copy of the repository to run stages in.
"""

import contextlib
import fcntl
import importlib.util
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from ruamel.yaml import YAML

ROOT = Path(__file__).resolve().parents[1]
REAL = ROOT.parent / "shared/real"  # real films and label files, where they are at hand

sys.path.append(str(ROOT / "stages"))  # last: `import evaluate` means the library, not stages/evaluate.py
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Before torch is imported, and for the processes that tests start: all of it on the CPU.
os.environ["CUDA_VISIBLE_DEVICES"] = ""
# One thread a process: tests run side by side, and threads that wait for one another take the cores from
# them.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from explainmyxray import settings  # noqa: E402

SMALL = {  # a run of seconds: everything else is as committed
    "data": {"phantom": {"count": 120}},
    "split": {"min_samples_per_class": 3},
    "train": {
        "num_processes": 1,
        "gradient_accumulation_steps": 1,
        "num_train_epochs": 0.25,
        "warmup_steps": 2,
        "eval_steps": 2,
        "save_steps": 2,
        "dataloader_num_workers": 0,
        "findings_f1_images": 4,
        "learning_rate": 1.0e-3,
    },
    "evaluate": {
        "max_new_tokens": 24,
        "bootstrap_samples": 50,
        "gallery": 3,
        "samples": 2,
        "sampled_images": 6,
    },
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


READ: dict[str, set[str]] = {}  # the parameters that each stage has read in this session, by dotted name


@contextlib.contextmanager
def recorded_parameters(stage: str):
    """Note in `READ` each parameter that is read, by whatever
    name its section has there; checks do not count.
    """
    section_names = {settings.Settings: ""} | dict(_sections(settings.Settings, ""))
    reads = READ.setdefault(stage, set())
    get = settings.Section.__getattribute__

    def recording_get(section, name):
        prefix = section_names.get(type(section))
        asked_by = sys._getframe(1).f_code.co_filename
        if prefix is not None and asked_by != settings.__file__:
            fields = type(section).model_fields
            names = list(fields) if name == "model_dump" else [name]
            reads.update(prefix + each for each in names if each in fields and not _is_section(fields[each]))
        return get(section, name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(settings.Section, "__getattribute__", recording_get)
        yield


def _is_section(field) -> bool:
    return isinstance(field.annotation, type) and issubclass(field.annotation, settings.Section)


def _sections(section: type, prefix: str):
    """Each section class below `section` with the dotted name that its parameters begin with."""
    for name, field in section.model_fields.items():
        if _is_section(field):
            yield field.annotation, f"{prefix}{name}."
            yield from _sections(field.annotation, f"{prefix}{name}.")


def run_stage(name: str, *arguments: str) -> None:
    """The stage's `main` in this process and the current
    folder: without the seconds of importing everything anew.
    """
    spec = importlib.util.spec_from_file_location(f"stage_{name}", ROOT / "stages" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    path = list(sys.path)
    spec.loader.exec_module(module)
    sys.path[:] = path  # evaluate.py moves its folder to the end
    with recorded_parameters(name), pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [f"{name}.py", *arguments])
        module.main()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Side by side, files with slow tests come first, so that the workers end at about the same time."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return
    slow_files = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow_files)


@pytest.fixture(scope="session", autouse=True)
def no_arguments():
    """Stages that are called as functions see no argument of pytest's, which they would refuse."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["pytest"])
        yield


def make_once(name: str, tmp_path_factory, make: Callable[[Path], None]) -> Path:
    """A folder filled by `make`, which runs in one of pytest-xdist's workers; the others get a copy."""
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent  # of all workers
    original, record = base / f"original-{name}", base / f"parameters-read-{name}.json"
    with (base / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not record.exists():
            original.mkdir()
            with pytest.MonkeyPatch.context() as patch:
                patch.chdir(original)
                make(original)
            record.write_text(json.dumps({stage: sorted(names) for stage, names in READ.items()}))
    for stage, names in json.loads(record.read_text()).items():
        READ.setdefault(stage, set()).update(names)
    folder = tmp_path_factory.mktemp(name)
    shutil.copytree(original, folder, symlinks=True, dirs_exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def small_data(tmp_path_factory) -> Path:
    """A folder with params.yaml and the outputs of the three data stages, on 120 phantoms."""

    def make(folder: Path) -> None:
        write_params(folder, SMALL)
        for stage in ("fetch", "synthesize_reports", "split"):
            run_stage(stage)

    return make_once("small", tmp_path_factory, make)


@pytest.fixture
def workspace(small_data, tmp_path, monkeypatch) -> Path:
    """A folder of its own, with the small data and params,
    to train and evaluate in; it is the current folder.
    """
    (tmp_path / "data").symlink_to(small_data / "data")
    shutil.copytree(small_data / "metrics", tmp_path / "metrics")
    write_params(tmp_path, SMALL)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def finished(small_data, tmp_path_factory) -> Path:
    """A workspace where training and evaluation have run to the end."""

    def make(folder: Path) -> None:
        (folder / "data").symlink_to(small_data / "data")
        shutil.copytree(small_data / "metrics", folder / "metrics")
        write_params(folder, SMALL)
        run_stage("train_qlora")
        run_stage("evaluate")

    return make_once("finished", tmp_path_factory, make)


@pytest.fixture(scope="session")
def parameters_read(finished) -> dict[str, set[str]]:
    """By stage, the parameters that it read while the small pipeline ran."""
    return READ
