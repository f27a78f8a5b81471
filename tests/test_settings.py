"""params.yaml: a mistake is one line that says what and
where, and the values that DVC writes are read as numbers.
"""

import subprocess
import sys
from pathlib import Path

import pytest
from dvc.utils.cli_parse import to_path_overrides
from dvc.utils.hydra import apply_overrides

from conftest import ROOT
from explainmyxray.errors import UserError
from explainmyxray.settings import load_settings

COMMITTED = (ROOT / "params.yaml").read_text()


def stopped(folder: Path, text: str) -> str:
    """The one line with which a stage ends that finds `text` in params.yaml."""
    (folder / "params.yaml").write_text(text)
    program = (
        "from explainmyxray.errors import exit_on_user_error\n"
        "from explainmyxray.settings import load_settings\n"
        "exit_on_user_error(load_settings)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=folder,
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(ROOT / "stages")},
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
    assert len(done.stderr) < 1000
    return done.stderr


def changed(old: str, new: str) -> str:
    assert COMMITTED.count(old) == 1
    return COMMITTED.replace(old, new)


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("  r: 16", "  rr: 16", "lora.rr is no parameter: did you mean r?"),
        ("  r: 16", "  r: 32.0", "lora.r: input should be a valid integer"),
        ("  train: 0.8", "  train: 0.7", "add up to 0.9, not to 1"),
        ("source: phantom", "source: kaggl", "data.source: kaggl is no source: did you mean kaggle?"),
        ("save_steps: 250", "save_steps: 260", "save_steps (260) is no multiple of eval_steps (125)"),
        (
            "num_train_epochs: 10",
            "num_train_epochs: ten",
            "train.num_train_epochs: input should be a valid number",
        ),
        ("fp16: true", "fp16: false", "go with quantization.bnb_4bit_compute_dtype float32, not float16"),
        ("  r: 16", f"  r: {'9' * 4000}", "lora.r"),
        ("  r: 16", "  r: " + "x" * 100_000, "lora.r: input should be a valid integer"),
    ],
)
def test_a_bad_parameter_is_one_line_before_any_work(tmp_path, old, new, message):
    assert message in stopped(tmp_path, changed(old, new))


@pytest.mark.parametrize(
    "text, message",
    [
        ("seed: 42\n  data: [", "in line 2, column"),
        ("a: &a [*a, *a", "params.yaml is no YAML"),
        ("x: " + "[" * 20_000, "nested too deeply"),
        (f"seed: {'1' * 5_000}", "cannot be read"),
        ("just text", "params.yaml"),
        ("", "params.yaml"),
    ],
)
def test_a_broken_file_is_one_line_that_says_where(tmp_path, text, message):
    line = stopped(tmp_path, text)
    assert message in line
    assert "yaml.dev" not in line


def test_a_folder_in_the_place_of_the_file_is_one_line(tmp_path):
    (tmp_path / "params.yaml").mkdir()
    with pytest.raises(UserError, match="cannot be read"):
        load_settings(tmp_path / "params.yaml")


def test_a_number_as_dvc_writes_it_is_a_number(tmp_path):
    """`dvc exp run -S train.learning_rate=1e-5` writes 1e-05, which PyYAML reads as text."""
    (tmp_path / "params.yaml").write_text(changed("learning_rate: 2.0e-4", "learning_rate: 1e-05"))
    assert load_settings(tmp_path / "params.yaml").train.learning_rate == 1e-5


def test_overrides_are_checked_as_the_file_is():
    settings = load_settings(ROOT / "params.yaml", ["lora.r=32", "lora.target_modules=[q_proj, v_proj]"])
    assert settings.lora.r == 32
    assert settings.lora.target_modules == ["q_proj", "v_proj"]
    for override, message in {
        "lora.rr=32": "did you mean r",
        "lora.r": "write a parameter and its value",
        "seed.r=1": "seed is no section",
        "lora.r=[": "no YAML",
    }.items():
        with pytest.raises(UserError, match=message):
            load_settings(ROOT / "params.yaml", [override])


def test_sources_are_a_name_or_a_list_as_dvc_writes_it(tmp_path):
    """Through DVC's own parser of `-S`, which reads a value by Hydra's grammar."""
    (tmp_path / "params.yaml").write_text(COMMITTED)
    for override, sources in {
        "data.source=openi": ("openi",),
        "data.source=[nih_sample,openi]": ("nih_sample", "openi"),
        "data.source=[kaggle,nih_sample]": ("chest_xray_pneumonia", "nih_sample"),
    }.items():
        for path, changes in to_path_overrides([override]).items():
            apply_overrides(tmp_path / path, changes)
        assert load_settings(tmp_path / "params.yaml").data.source == sources


def test_the_table_is_named_by_its_path_as_dvc_writes_it(tmp_path):
    (tmp_path / "params.yaml").write_text(COMMITTED)
    for path, changes in to_path_overrides(["data.source=table", "data.table=my/films.csv"]).items():
        apply_overrides(tmp_path / path, changes)
    data = load_settings(tmp_path / "params.yaml").data
    assert (data.source, data.table) == (("table",), "my/films.csv")


@pytest.mark.parametrize(
    "value, message",
    [
        ("[nih_sample, opne]", "opne is no source: did you mean openi?"),
        ("[]", "should be a source's name or a list"),
        ("[1]", "should be a source's name or a list"),
        ("table", "source table wants data.table"),
    ],
)
def test_a_source_that_there_is_not_is_one_line(tmp_path, value, message):
    assert message in stopped(tmp_path, changed("source: phantom", f"source: {value}"))
