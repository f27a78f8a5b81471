"""docs/extending.md: the lines that it shows, applied to a copy of the code, do what it says."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from dvc.utils.cli_parse import to_path_overrides
from dvc.utils.hydra import apply_overrides
from PIL import Image
from transformers import LlamaConfig

from conftest import ROOT, SMALL, write_params
from explainmyxray.errors import UserError
from explainmyxray.model.adapter import add_lora
from explainmyxray.model.base import check_base, load_base, load_processor
from explainmyxray.reports.labeler import positive_findings
from explainmyxray.reports.templates import load_templates
from explainmyxray.scoring.evaluation import COLUMNS, IMAGE_COLUMNS
from explainmyxray.settings import load_settings
from explainmyxray.tables import read_table, write_table
from explainmyxray.training.loss import report_loss
from explainmyxray.training.memory import estimate_step
from tiny_bases import save_tiny_base

PAGE = (ROOT / "docs/extending.md").read_text()


@dataclass(frozen=True)
class Block:
    """A code block of the page: its language, the file that its first line names, and what follows."""

    language: str
    path: str
    lines: list[str]


def section(title: str) -> str:
    """What the page says under a heading."""
    return PAGE.split(f"\n## {title}\n")[1].split("\n## ")[0]


def blocks(title: str) -> list[Block]:
    found = []
    for language, path, body in re.findall(r"```(\w+)\n(?:---|#) (\S+)\n(.*?)```", section(title), re.DOTALL):
        found.append(Block(language, path, body.splitlines()))
    assert found
    return found


def commands(title: str) -> list[str]:
    without_code = re.sub(r"```.*?```", "", section(title), flags=re.DOTALL)
    return re.findall(r"^    (.+)$", without_code, re.MULTILINE)


def apply_block(block: Block, folder: Path) -> None:
    """A diff replaces its lines of a file, hunk by hunk; any other block is the whole of a new file."""
    path = folder / block.path
    if block.language != "diff":
        path.write_text("\n".join(block.lines) + "\n")
        return
    text = path.read_text()
    for hunk in "\n".join(block.lines).split("\n@@\n"):
        lines = hunk.split("\n")
        before = "".join(f"{line[1:]}\n" for line in lines if not line.startswith("+"))
        after = "".join(f"{line[1:]}\n" for line in lines if not line.startswith("-"))
        assert text.count(before) == 1, f"{block.path} has not, or not once:\n{before}"
        text = text.replace(before, after)
    path.write_text(text)


@pytest.fixture
def changed(tmp_path):
    """A function that applies a section of the page to a copy of the code, and returns the copy's folder."""

    def change(title: str) -> Path:
        shutil.copytree(ROOT / "stages", tmp_path / "stages", ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / ".gitignore", tmp_path)
        write_params(tmp_path, SMALL)
        for block in blocks(title):
            apply_block(block, tmp_path)
        return tmp_path

    return change


def run(folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess:
    """Python in the folder; a script imports the code beside it, as in the repository."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
    )


def run_program(folder: Path, program: str) -> str:
    """A few lines of Python that use the package in the folder; the stages' scripts stay out of the way."""
    done = run(folder, "-c", f"import sys\nsys.path.append('stages')\n{program}")
    assert done.returncode == 0, done.stderr
    return done.stdout


def run_stage(folder: Path, name: str, **variables: str) -> str:
    done = run(folder, f"stages/{name}.py", **variables)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_source(changed):
    folder = changed("A data source")
    rng = np.random.default_rng(0)
    for number in range(30):
        film = folder / f"data/my_hospital/{('Effusion|Mass', 'No Finding')[number // 2 % 2]}"
        film.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (96, 80), np.uint8)).save(film / f"{number // 2}_{number}.png")
    (film / "15_30.png").write_bytes(b"no image")
    write_params(folder, SMALL, {"data": {"source": "my_hospital"}})

    assert "my_hospital: 30 images kept; dropped: 1 not an image" in run_stage(folder, "fetch")
    run_stage(folder, "synthesize_reports")
    run_stage(folder, "split")
    reports = read_table(folder / "data/reports.csv")
    assert set(reports["source"]) == {"my_hospital"} and reports["patient"].nunique() == 15
    assert positive_findings(reports["report"][0]) == {"Effusion", "Mass"}
    assert sum(len(read_table(path)) for path in (folder / "data/splits").glob("*.csv")) == 30


@pytest.mark.parametrize("name", ["paligemma-224", "paligemma-448", "paligemma2"])
def test_another_paligemma(name, tmp_path):
    base, settings = prepare_base(name, tmp_path)
    processor = load_processor(base)
    estimate = estimate_step(
        settings.model_copy(update={"model": base}), processor.prompt_length, report_length=8
    )
    assert estimate.peak(num_stored=1) > 0
    assert loss_of_a_report(base, settings, processor) > 0


def loss_of_a_report(base, settings, processor) -> float:
    model = add_lora(load_base(base, settings.quantization), settings.lora)
    size = processor.image_size
    loss = report_loss(model, processor.training_batch([(Image.new("L", (size, size), 100), "No effusion.")]))
    loss.backward()
    return loss.item()


def test_a_model_that_no_family_fits_is_refused(tmp_path):
    settings = load_settings(ROOT / "params.yaml")
    LlamaConfig().save_pretrained(tmp_path)
    with pytest.raises(UserError, match="is a llama model: take PaliGemma, or a chat model that sees images"):
        check_base(settings.model.model_copy(update={"id": str(tmp_path)}))


@pytest.mark.slow
def test_a_family(changed, tmp_path):
    """The loss is that of the conversation as LLaVA's authors write it, spelt out here by hand."""
    folder = changed("A base")
    save_tiny_base("llava", tmp_path / "llava")
    printed = run_program(
        folder,
        r"""
import torch
from PIL import Image
from explainmyxray.model.base import check_base, load_base, load_processor
from explainmyxray.settings import load_settings
from explainmyxray.training.loss import report_loss
from explainmyxray.model.adapter import add_lora
from explainmyxray.training.memory import estimate_step

settings = load_settings()
base = check_base(settings.model.model_copy(update={"id": "llava"}), settings.data.image_size)
processor = load_processor(base, settings.data.image_size)
model = add_lora(load_base(base, settings.quantization), settings.lora)
image, report = Image.new("L", (224, 224), 90), "No effusion."
found = report_loss(model, processor.training_batch([(image, report)]))

by_hand = processor.processor(
    images=image.convert("RGB"), text=f"USER: <image>\n{processor.prompt} ASSISTANT: ", return_tensors="pt"
)
target = processor.tokenizer(f"{report}<eos>", add_special_tokens=False, return_tensors="pt")["input_ids"]
labels = torch.cat([torch.full_like(by_hand["input_ids"], -100), target], 1)
input_ids = torch.cat([by_hand["input_ids"], target], 1)
own = model(input_ids=input_ids, pixel_values=by_hand["pixel_values"], labels=labels).loss
print(found.item(), own.item())
report_length = target.shape[1]
step = estimate_step(settings.model_copy(update={"model": base}), processor.prompt_length, report_length)
assert step.peak(num_stored=1) > 0
""",
    )
    found, expected = map(float, printed.split())
    assert found == pytest.approx(expected, rel=1e-5)


def prepare_base(name: str, folder: Path):
    """A tiny base of the family, checked, and the settings as committed."""
    settings = load_settings(ROOT / "params.yaml")
    folder = save_tiny_base(name, folder / name)
    return check_base(settings.model.model_copy(update={"id": str(folder)})), settings


def test_parameters_of_another_paligemma():
    for command in commands("A base"):
        overrides = shlex.split(command.removeprefix("dvc exp run"))[1::2]
        settings = load_settings(ROOT / "params.yaml", overrides)
        image_tokens = (settings.data.image_size // 14) ** 2  # patches of 14 pixels
        assert settings.model.max_length == image_tokens + 128


def test_a_prompt(tmp_path):
    """The command as a shell splits it, its override as DVC reads it, the prompt as the model is asked."""
    (command,) = commands("A prompt")
    override = shlex.split(command)[-1]
    params = shutil.copy(ROOT / "params.yaml", tmp_path)
    apply_overrides(params, to_path_overrides([override])["params.yaml"])
    model = load_settings(params).model.model_copy(update={"id": str(ROOT / "models/tiny-paligemma")})
    processor = load_processor(model)
    asked = override.partition("=")[2]
    tokens = processor.prompt_batch([Image.new("L", (224, 224))])["input_ids"][0]
    assert processor.tokenizer.decode(tokens, skip_special_tokens=True).strip() == asked


@pytest.mark.slow
def test_a_metric(changed):
    folder = changed("A metric")
    report = "Findings: There is a pleural effusion. Impression: Pleural effusion."
    row = dict.fromkeys(COLUMNS, report) | dict.fromkeys(IMAGE_COLUMNS, "") | {"labels": "Effusion"}
    rows = [row | {"patient": str(number)} for number in range(4)]
    rows[0]["generated"] = "Findings: The lungs are clear. Impression: No acute cardiopulmonary disease."
    write_table(folder / "predictions.csv", pd.DataFrame(rows))
    printed = run_program(
        folder,
        """
import json
from explainmyxray.scoring import evaluation
from explainmyxray.tables import read_table, write_table
predictions = read_table("predictions.csv", evaluation.COLUMNS)
print(json.dumps(evaluation.score(predictions, ["lungs"], 0, 20).metrics))
""",
    )
    metrics = json.loads(printed)
    assert metrics["baselines"]["ceiling"]["chrf"] == pytest.approx(100)
    assert 75 < metrics["chrf"] < 95  # three of four are as the reference
    assert metrics["ci95"]["chrf"]["low"] < metrics["chrf"] <= metrics["ci95"]["chrf"]["high"]


def test_a_wording(changed, tmp_path):
    folder = changed("Own wording")
    path = folder / "stages/explainmyxray/reports/templates.yaml"
    added = blocks("Own wording")[0].lines[-1].removeprefix("+      - ")
    assert added in load_templates(path).findings["Effusion"].sentences
    assert positive_findings(added) == {"Effusion"}

    original = ROOT / "stages/explainmyxray/reports/templates.yaml"
    last = "      - Pleural fluid is present.\n"
    refused_line = "      - There is a small pleural effusion.\n"
    (tmp_path / "refused.yaml").write_text(original.read_text().replace(last, last + refused_line))
    with pytest.raises(UserError) as refused:
        load_templates(tmp_path / "refused.yaml")
    shown = next(command for command in commands("Own wording") if command.startswith("error: "))
    assert str(refused.value).split(": ", 1)[1] == shown.split(": ", 2)[2]


def test_lora_on_the_language_model_alone(tmp_path):
    """The command as a shell splits it, its override as DVC reads it, the layers as PEFT matches them."""
    (command,) = commands("LoRA on the language model alone")
    override = shlex.split(command)[-1]
    params = shutil.copy(ROOT / "params.yaml", tmp_path)
    apply_overrides(params, to_path_overrides([override])["params.yaml"])
    settings = load_settings(params)
    base = check_base(settings.model.model_copy(update={"id": str(ROOT / "models/tiny-paligemma")}))
    model = add_lora(load_base(base, settings.quantization), settings.lora)
    trained = [name for name, weight in model.named_parameters() if weight.requires_grad]
    assert len(trained) == 2 * 4 * model.config.text_config.num_hidden_layers
    assert all("language_model" in name for name in trained)


@pytest.mark.slow
def test_a_tracker(changed, small_data, tmp_path):
    """With a stand-in for the wandb package, which notes what Trainer's callback logs."""
    folder = changed("A tracker")
    (folder / "data").symlink_to(small_data / "data")
    write_params(folder, SMALL, {"train": {"max_steps": 2, "warmup_steps": 1}})
    package = tmp_path / "packages/wandb"
    (package / "sdk/lib").mkdir(parents=True)
    for init in ("sdk/__init__.py", "sdk/lib/__init__.py"):
        (package / init).write_text("")
    (package / "sdk/lib/config_util.py").write_text("class ConfigError(Exception):\n    pass\n")
    (package / "__init__.py").write_text(STAND_IN)
    printed = run_stage(folder, "train_qlora", PYTHONPATH=str(package.parent))
    logged = [line for line in printed.splitlines() if line.startswith("wandb ")]
    assert any("train/loss" in line for line in logged) and any("eval/loss" in line for line in logged)


STAND_IN = """
from unittest.mock import MagicMock

__version__ = "0.31.0"
run, config, define_metric = MagicMock(), MagicMock(), MagicMock()
init = MagicMock()


def log(figures, *args, **kwargs):
    print("wandb", sorted(figures))
"""
