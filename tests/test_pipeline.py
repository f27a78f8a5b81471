"""dvc.yaml says what the code does: which code, data and
parameters a stage's outputs come from, and nothing else.
"""

import ast
import json
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from conftest import ROOT
from imports import imported_modules, local_files

STAGES = YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"]
METRICS = sorted(set(re.findall(r"metrics/\w+\.json", (ROOT / "dvc.yaml").read_text())))
SECTIONS = set(YAML(typ="safe").load(ROOT / "params.yaml"))
PACKAGE = ROOT / "stages/explainmyxray"

# Rooms from the ground up: a module imports from its own room and from those on the floors below.
PLUMBING = {
    "errors",
    "outputs",
    "tables",
    "settings",
    "runtime",
    "hub",
    "gpu",
    "model_card",
    "command",
    "child_process",
    "registry",
}
FLOORS = [
    PLUMBING,
    {"images"},
    {"reports"},
    {"sources", "splits"},
    {"model"},
    {"training", "generation", "out_of_distribution"},
    {"scoring"},
    {"tuning"},
    {"comparing", "explaining"},
    {"pictures"},
    {"app"},
]

# Plumbing: no edit here can change what a stage writes, so
# that it is no dep and a mended message retrains nothing.
NO_DEP = {f"{name}.py" for name in PLUMBING - {"tables"}} | {"__init__.py", "model_card.md"}


def stage_files(stage: str) -> set[str]:
    """Files of the repository that the stage runs on, without the plumbing."""
    files = {path.relative_to(ROOT) for path in local_files(ROOT / f"stages/{stage}.py", ROOT / "stages")}
    plumbing = {(PACKAGE / name).relative_to(ROOT) for name in NO_DEP}
    return {str(path) for path in files - plumbing if not is_docstring_alone(ROOT / path)}


def is_docstring_alone(path: Path) -> bool:
    """Whether a module of Python holds no code, as the `__init__` of most rooms."""
    return path.suffix == ".py" and all(
        isinstance(node, ast.Expr) for node in ast.parse(path.read_text()).body
    )


def code_deps(stage: str) -> set[str]:
    return {dep for dep in STAGES[stage]["deps"] if dep.startswith("stages/")}


def holds(dep: str, path: str) -> bool:
    """Whether the file `path` is the dep or lies in the folder that the dep names."""
    return path == dep or path.startswith(f"{dep}/")


@pytest.mark.parametrize("stage", STAGES)
def test_every_file_that_a_stage_imports_is_in_a_dep(stage):
    """Of a room that is a dep, an edit of any file counts; of plumbing, none does."""
    uncovered = [path for path in stage_files(stage) if not any(holds(dep, path) for dep in code_deps(stage))]
    assert uncovered == []


@pytest.mark.parametrize("stage", STAGES)
def test_every_dep_is_imported(stage):
    files = stage_files(stage)
    unused = [dep for dep in code_deps(stage) if not any(holds(dep, path) for path in files)]
    assert unused == []


def test_no_import_runs_upward():
    floor_of = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
    upward = []
    for path in sorted(PACKAGE.rglob("*.py")):
        room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if room == "__init__":
            continue
        for module in imported_modules(path):
            parts = module.split(".")
            if parts[0] != "explainmyxray" or len(parts) == 1:
                continue
            other = parts[1]
            if other not in floor_of:  # `from explainmyxray import settings` names the package as well
                continue
            plumbing = floor_of[other] == 0
            if other != room and not plumbing and floor_of[other] >= floor_of[room]:
                upward.append(f"{path.relative_to(PACKAGE)} imports {module}")
    assert upward == []


def test_every_room_has_its_floor():
    rooms = {path.name.removesuffix(".py") for path in PACKAGE.iterdir() if path.suffix in ("", ".py")}
    assert rooms - {"__init__", "__pycache__"} <= {room for floor in FLOORS for room in floor}


def test_no_file_name_stands_for_two_things():
    names = [path.name for path in (ROOT / "stages").rglob("*") if path.suffix in (".py", ".yaml", ".md")]
    names = [name for name in names if name != "__init__.py"]
    twice = {name for name in names if names.count(name) > 1}
    # A command and the data file that it reads may share their stem, not their name.
    assert twice == set()


# --- parameters ---


def is_within(name: str, section: str) -> bool:
    """Whether the parameter `name` is `section` or lies in it."""
    return name == section or name.startswith(f"{section}.")


def is_within_any(name: str, sections: list[str]) -> bool:
    return any(is_within(name, section) for section in sections)


def has_any(section: str, names: set[str]) -> bool:
    return any(is_within(name, section) for name in names)


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_declares_the_parameters_that_it_reads(stage, parameters_read):
    """One that is read but not declared would change outputs without `dvc repro` noticing."""
    declared = STAGES[stage]["params"]
    assert {name for name in parameters_read[stage] if not is_within_any(name, declared)} == set()


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_reads_the_parameters_that_it_declares(stage, parameters_read):
    """One that is declared but not read would run the stage again for nothing."""
    names = parameters_read[stage]
    assert {each for each in STAGES[stage]["params"] if not has_any(each, names)} == set()


def test_every_section_is_declared_by_some_stage():
    declared = {param.split(".")[0] for stage in STAGES.values() for param in stage["params"]}
    assert declared == SECTIONS - {"gate"}  # of a command, compare.py


# --- what DVC itself makes of it ---


@pytest.fixture(scope="module")
def finished_copy(tmp_path_factory) -> Path:
    """A copy of the code whose stages only touch their
    outputs, run to the end: what DVC holds for up to date.
    """
    folder = tmp_path_factory.mktemp("copy")
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / "stages", folder / "stages", ignore=shutil.ignore_patterns("__pycache__"))
    base = folder / "models/tiny-paligemma"
    base.mkdir(parents=True)
    shutil.copy(ROOT / "models/tiny-paligemma/dvc.lock", base)
    pipeline = YAML(typ="safe").load(folder / "dvc.yaml")
    for stage in pipeline["stages"].values():
        outs = [out if isinstance(out, str) else next(iter(out)) for out in stage["outs"]]
        stage["cmd"] = [f"{sys.executable} touch.py {out}" for out in outs]
    YAML().dump(pipeline, folder / "dvc.yaml")
    (folder / "touch.py").write_text(
        "import pathlib, sys\n"
        "path = pathlib.Path(sys.argv[1])\n"
        "if path.suffix:\n"
        "    path.parent.mkdir(parents=True, exist_ok=True)\n"
        "    path.write_text(path.name)\n"
        "else:\n"
        "    path.mkdir(parents=True)\n"
        "    for name in ('train.csv', 'val.csv', 'test.csv'):\n"
        "        (path / name).write_text(name)\n"
    )
    (folder / ".dvcignore").write_text("__pycache__\n")
    for command in (["init", "--no-scm", "-q"], ["repro", "-q"]):
        subprocess.run([sys.executable, "-m", "dvc", *command], cwd=folder, check=True)
    return folder


def changed_stages(folder: Path, edited: str, line: str) -> set[str]:
    """The stages that `dvc status` calls changed while `line` stands at the end of a file of `folder`."""
    path = folder / edited
    before = path.read_text()
    path.write_text(before + line)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "dvc", "status", "--json"],
            cwd=folder,
            capture_output=True,
            text=True,
            check=True,
        )
    finally:
        path.write_text(before)
    return set(json.loads(done.stdout))


@pytest.mark.parametrize(
    "edited, stages",
    [
        ("stages/explainmyxray/sources/phantom_drawing.py", {"fetch"}),
        ("stages/explainmyxray/images/decoding.py", {"fetch"}),
        ("stages/explainmyxray/training/loss.py", {"train_qlora"}),
        ("stages/explainmyxray/model/base.py", {"train_qlora", "evaluate"}),
        ("stages/explainmyxray/scoring/bleu.py", {"evaluate"}),
        ("stages/explainmyxray/reports/templates.yaml", set(STAGES) - {"fetch"}),
        ("stages/explainmyxray/tables.py", set(STAGES)),
        ("stages/split.py", {"split"}),
    ],
)
def test_an_edit_in_a_room_reruns_the_stages_that_use_it(finished_copy, edited, stages):
    """Downstream stages follow only if an output changes; these are the ones that run first."""
    assert changed_stages(finished_copy, edited, "# edited\n") == stages


@pytest.mark.parametrize(
    "edited",
    [
        "stages/explainmyxray/errors.py",
        "stages/explainmyxray/settings.py",
        "stages/explainmyxray/runtime.py",
        "stages/explainmyxray/outputs.py",
        "stages/explainmyxray/model_card.md",
        "stages/explainmyxray/comparing/comparison.py",
        "stages/explain.py",
    ],
)
def test_an_edit_of_plumbing_reruns_nothing(finished_copy, edited):
    assert changed_stages(finished_copy, edited, "# edited\n") == set()


@pytest.mark.parametrize(
    "old, new, stages",
    [
        ("  r: 16", "  r: 32", {"train_qlora"}),
        ("  image_size: 224", "  image_size: 448", {"fetch", "train_qlora", "evaluate"}),
        ("  max_samples: 8000", "  max_samples: 100", {"split"}),
        ("  bootstrap_samples: 1000", "  bootstrap_samples: 100", {"evaluate"}),
    ],
)
def test_a_parameter_reruns_what_reads_it(finished_copy, old, new, stages):
    path = finished_copy / "params.yaml"
    before = path.read_text()
    assert before.count(old) == 1
    path.write_text(before.replace(old, new))
    try:
        assert changed_stages(finished_copy, "touch.py", "") == stages
    finally:
        path.write_text(before)


# --- metrics ---


def leaves(value, path=""):
    """Each value of nested figures with its dotted name."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from leaves(inner, f"{path}.{name}")
    else:
        yield path, value


@pytest.mark.parametrize("metric", METRICS)
def test_metrics_are_finite_and_hold_no_list(metric, finished):
    """`dvc metrics diff` drops lists without a word and shows NaN as changed each time."""
    figures = json.loads((finished / metric).read_text())
    found = list(leaves(figures))
    assert found
    for name, value in found:
        assert not isinstance(value, list), name
        assert not isinstance(value, float) or math.isfinite(value), name


def test_no_remote_code_is_run():
    for path in (ROOT / "stages").rglob("*.py"):
        assert "trust_remote_code" not in path.read_text(), path
