"""Training and evaluation as a person runs them, on 120 phantoms and a few steps: what is written, and what survives."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from peft import PeftModel
from transformers import PaliGemmaForConditionalGeneration

from conftest import SMALL, run_stage, write_params
from explainmyxray import out_of_distribution
from explainmyxray.errors import UserError
from explainmyxray.training import trainer

ROOT = Path(__file__).resolve().parents[1]
WEIGHTS = Path("models/adapter/adapter_model.safetensors")


def test_the_adapter_is_plain_peft_with_a_filled_in_card(finished):
    base = PaliGemmaForConditionalGeneration.from_pretrained(ROOT / "models/tiny-paligemma")
    PeftModel.from_pretrained(base, finished / "models/adapter")
    card = (finished / "models/adapter/README.md").read_text()
    assert "$" not in card and "Not a medical device" in card and "describe en" in card
    assert out_of_distribution.load(finished / "models/adapter").limit > 0
    assert not (finished / "models/checkpoints").exists() or not any(
        (finished / "models/checkpoints").iterdir()
    )


def test_metrics_and_curves_are_there(finished):
    train = json.loads((finished / "metrics/train.json").read_text())
    assert {
        "train_loss",
        "eval_loss",
        "best_step",
        "epochs",
        "trainable_parameters",
        "trainable_percent",
    } <= set(train)
    curve = pd.read_csv(finished / "metrics/curves/plots/metrics/eval_loss.tsv", sep="\t")
    assert list(curve["step"]) == sorted(set(curve["step"])) and curve["eval_loss"].min() == pytest.approx(
        train["eval_loss"], abs=1e-3
    )
    scored = json.loads((finished / "metrics/eval.json").read_text())
    assert set(scored["baselines"]) == {"majority", "nearest", "classifier", "untuned", "blind", "ceiling"}
    assert scored["baselines"]["ceiling"]["findings"]["micro_f1"] == 1.0
    assert (finished / "metrics/gallery.png").stat().st_size > 10_000
    assert set(json.loads((finished / "metrics/runtime.json").read_text())) == {"train_qlora", "evaluate"}


def test_scoring_again_needs_no_model_and_changes_nothing(finished, monkeypatch):
    monkeypatch.chdir(finished)
    monkeypatch.setattr("explainmyxray.model.base.load_base", None)
    before = Path("metrics/eval.json").read_bytes()
    run_stage("evaluate", "--score")
    assert Path("metrics/eval.json").read_bytes() == before


def test_blind_reports_are_the_model_s_own_for_other_patients(finished):
    predictions = pd.read_csv(finished / "metrics/predictions.csv", keep_default_na=False)
    assert sorted(predictions["blind"]) == sorted(predictions["generated"])


def test_two_runs_give_the_same_bytes(finished, workspace):
    run_stage("train_qlora")
    run_stage("evaluate")
    for name in (
        "models/adapter/adapter_model.safetensors",
        "models/adapter/adapter_config.json",
        "models/adapter/README.md",
        "metrics/train.json",
        "metrics/eval.json",
        "metrics/predictions.csv",
        "metrics/gallery.png",
    ):
        assert (workspace / name).read_bytes() == (finished / name).read_bytes(), name


def same_outputs(folder: Path, other: Path) -> None:
    names = [
        path.relative_to(folder)
        for path in [*(folder / "models/adapter").iterdir(), *(folder / "metrics/curves").rglob("*.tsv")]
    ]
    for name in [*names, Path("metrics/train.json")]:
        assert (folder / name).read_bytes() == (other / name).read_bytes(), name


class Killed(BaseException):
    pass


def stop_at(monkeypatch, step: int, with_what) -> None:
    """Let the loss of `step` (counted from 1) be whatever `with_what` makes of it."""
    real, calls = trainer.report_loss, iter(range(1, 10_000))

    def loss(model, batch, num_tokens=None):
        value = real(model, batch, num_tokens)
        return with_what(value) if model.training and next(calls) == step else value

    monkeypatch.setattr(trainer, "report_loss", loss)


def killed(value):
    raise Killed


def test_a_killed_run_goes_on_and_ends_with_the_same_adapter(finished, workspace, monkeypatch, capsys):
    with monkeypatch.context() as patch, pytest.raises(Killed):
        stop_at(patch, 5, killed)
        run_stage("train_qlora")
    assert not WEIGHTS.exists()
    run_stage("train_qlora")
    assert "going on from" in capsys.readouterr().out
    same_outputs(workspace, finished)


@pytest.mark.parametrize(
    "part", ["optimizer.pt", "rng_state.pth", "trainer_state.json", "adapter_model.safetensors"]
)
def test_a_torn_checkpoint_is_put_away(finished, workspace, monkeypatch, capsys, part):
    with monkeypatch.context() as patch, pytest.raises(Killed):
        stop_at(patch, 5, killed)
        run_stage("train_qlora")
    last = sorted(
        Path("models/checkpoints").glob("*/checkpoint-*"), key=lambda path: int(path.name.split("-")[1])
    )[-1]
    torn = last / part
    torn.write_bytes(torn.read_bytes()[:100])
    run_stage("train_qlora")
    out = capsys.readouterr().out
    assert f"{last.name} is torn" in out and "going on from" in out
    same_outputs(workspace, finished)


def test_a_run_with_other_parameters_starts_anew(workspace, monkeypatch, capsys):
    with monkeypatch.context() as patch, pytest.raises(Killed):
        stop_at(patch, 5, killed)
        run_stage("train_qlora")
    write_params(workspace, SMALL, {"lora": {"r": 4}})
    run_stage("train_qlora")
    assert "going on from" not in capsys.readouterr().out


def test_early_stopping_stops_at_the_same_step_after_a_crash(workspace, monkeypatch):
    """Nothing counts as improvement, so the fourth validation, at step 8 of 24, is the last; also for a run that was killed."""
    write_params(workspace, SMALL, {"train": {"num_train_epochs": 1, "early_stopping_threshold": 9.0}})
    run_stage("train_qlora")
    assert json.loads(Path("metrics/train.json").read_text())["steps"] == 8
    (workspace / "whole").mkdir()
    for name in ("models", "metrics"):
        (workspace / name).rename(workspace / "whole" / name)
    with monkeypatch.context() as patch, pytest.raises(Killed):  # between two validations
        stop_at(patch, 8, killed)
        run_stage("train_qlora")
    with monkeypatch.context() as patch, pytest.raises(Killed):  # after the end of training
        patch.setattr(trainer, "check_best", lambda *args: killed(None))
        run_stage("train_qlora")
    run_stage("train_qlora")
    same_outputs(workspace, workspace / "whole")


def test_a_loss_that_is_not_finite_stops_at_once_and_leaves_the_old_adapter(workspace, monkeypatch):
    WEIGHTS.parent.mkdir(parents=True)
    WEIGHTS.write_bytes(b"the old one")
    stop_at(monkeypatch, 3, lambda value: value * torch.nan)
    with pytest.raises(UserError, match=r"nan at step 3: try bfloat16"):
        run_stage("train_qlora")
    assert WEIGHTS.read_bytes() == b"the old one"


def test_a_gradient_that_is_not_finite_stops_at_once(workspace, monkeypatch):
    real = trainer.report_loss

    def loss(model, batch, num_tokens=None):
        weight = next(weight for weight in model.parameters() if weight.requires_grad)
        return (
            real(model, batch, num_tokens) + torch.sqrt(weight - weight.detach()).sum()
        )  # 0, with the slope of a root at 0

    monkeypatch.setattr(trainer, "report_loss", loss)
    with pytest.raises(UserError, match=r"norm of the gradients is inf at step 1: try bfloat16"):
        run_stage("train_qlora")


def test_the_text_does_not_depend_on_the_batch_size(finished, workspace):
    (workspace / "models").symlink_to(finished / "models")
    write_params(workspace, SMALL, {"evaluate": {"batch_size": 5}})
    run_stage("evaluate")
    tables = [
        pd.read_csv(folder / "metrics/predictions.csv", keep_default_na=False)
        for folder in (workspace, finished)
    ]
    assert np.array_equal(tables[0]["generated"], tables[1]["generated"])


@pytest.mark.parametrize(
    "stage, file, content, says",
    [
        ("synthesize_reports", "data/studies.csv", "image,source\na,b\n", "lacks the columns"),
        ("split", "data/reports.csv", "", "is no table"),
        ("train_qlora", "data/splits/train.csv", None, "is missing"),
    ],
)
def test_a_bad_table_is_one_line_and_leaves_earlier_outputs(
    tmp_path, monkeypatch, stage, file, content, says
):
    write_params(tmp_path, SMALL)
    monkeypatch.chdir(tmp_path)
    Path(file).parent.mkdir(parents=True)
    if content is not None:
        Path(file).write_text(content)
    with pytest.raises(UserError, match=says) as error:
        run_stage(stage)
    assert "\n" not in str(error.value)
