"""dvc.yaml says what the code does: every module that a stage imports is a dep, every section that it reads a param."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from imports import local_files

ROOT = Path(__file__).resolve().parents[1]
STAGES = YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"]
SECTIONS = set(YAML(typ="safe").load(ROOT / "params.yaml"))


def script(stage: str) -> Path:
    return ROOT / "stages" / f"{stage}.py"


@pytest.mark.parametrize("stage", STAGES)
def test_deps_are_the_imports(stage):
    declared = {dep for dep in STAGES[stage]["deps"] if dep.startswith("stages/")}
    imported = {str(path.relative_to(ROOT)) for path in local_files(script(stage), ROOT / "stages")}
    assert declared == imported


@pytest.mark.parametrize("stage", STAGES)
def test_params_are_the_sections_read(stage):
    """A section read but not declared would change results without `dvc repro` noticing; the reverse reruns for nothing."""
    declared = {param.split(".")[0] for param in STAGES[stage]["params"]}
    code = [path for path in local_files(script(stage), ROOT / "stages") if path.suffix == ".py"]
    read = set()
    for path in code:
        for node in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(node, ast.Attribute)
                and isinstance(node.value, ast.Name)
                and node.value.id in ("settings", "s")
            ):
                read.add(node.attr)
    chosen = set(re.findall(r"getattr\(s, name\)", "".join(path.read_text() for path in code)))
    if chosen:  # the run's identity reads sections by name
        read |= {"model", "quantization", "lora", "augment", "train"}
    assert read & SECTIONS == declared


def test_every_section_is_read_by_some_stage():
    declared = {param.split(".")[0] for stage in STAGES.values() for param in stage["params"]}
    assert declared == SECTIONS


def test_metrics_in_git_have_no_lists_and_finite_numbers():
    def check(value, path):
        assert not isinstance(value, list), f"{path}: dvc metrics diff drops lists"
        if isinstance(value, dict):
            for name, each in value.items():
                check(each, f"{path}.{name}")

    for metric in YAML(typ="safe").load(ROOT / "dvc.yaml")["metrics"]:
        if (ROOT / metric).is_file():
            check(json.loads((ROOT / metric).read_text()), metric)


@pytest.mark.parametrize(
    "changed, rerun",
    [
        ("lora.r=32", {"train_qlora", "evaluate"}),
        ("train.seed=1", {"train_qlora", "evaluate"}),
        ("evaluate.num_beams=2", {"evaluate"}),
        ("split.max_samples=100", {"split", "train_qlora", "evaluate"}),
        ("data.phantom.count=500", set(STAGES)),
    ],
)
def test_a_parameter_reruns_what_reads_it_and_no_more(changed, rerun):
    """Read off dvc.yaml: the stages that declare the parameter, and all that follow from their outputs."""
    key = changed.split("=")[0]
    stale = {
        name
        for name, stage in STAGES.items()
        if any(key == param or key.startswith(param + ".") for param in stage["params"])
    }
    grown = True
    while grown:
        outs = {
            out if isinstance(out, str) else next(iter(out)) for name in stale for out in STAGES[name]["outs"]
        }
        more = {
            name
            for name, stage in STAGES.items()
            if any(dep.startswith(out) for dep in stage["deps"] for out in outs)
        }
        grown = not more <= stale
        stale |= more
    assert stale == rerun


def test_no_remote_code_is_run():
    for path in (ROOT / "stages").rglob("*.py"):
        assert "trust_remote_code" not in path.read_text(), path


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_script_is_read_at_one_glance(stage):
    assert len(script(stage).read_text().splitlines()) <= 130


@pytest.mark.parametrize(
    "line, message",
    [
        (("  r: 16", "  rr: 16"), "lora.rr is no parameter: did you mean r?"),
        (("  r: 16", "  r: 32.0"), "lora.r: input should be a valid integer"),
        (("  train: 0.8", "  train: 0.7"), "add up to 0.9, not to 1"),
        (
            ("source: phantom", "source: kaggl"),
            "data.source: input should be 'phantom' or 'kaggle', got 'kaggl'",
        ),
        (("save_steps: 250", "save_steps: 260"), "save_steps (260) is no multiple of eval_steps (125)"),
        (
            ("num_train_epochs: 10", "num_train_epochs: ten"),
            "train.num_train_epochs: input should be a valid number",
        ),
        (("fp16: true", "fp16: false"), "go with quantization.bnb_4bit_compute_dtype float32, not float16"),
        (("learning_rate: 2.0e-4", "learning_rate: 1e-05"), None),
    ],
)
def test_a_bad_parameter_is_one_line_before_any_work(tmp_path, line, message):
    text = (ROOT / "params.yaml").read_text()
    assert text.count(line[0]) == 1
    (tmp_path / "params.yaml").write_text(text.replace(*line))
    program = "from explainmyxray.errors import exit_on_user_error as run; from explainmyxray.settings import load_settings; run(load_settings)"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(ROOT / "stages")},
    )
    if message is None:  # what `dvc exp run -S train.learning_rate=1e-5` writes is a number
        assert done.returncode == 0, done.stderr
    else:
        assert done.returncode == 1
        assert message in done.stderr and done.stderr.count("\n") == 1 and "Traceback" not in done.stderr
