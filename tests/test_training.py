"""Training and evaluation as a person runs them, on 120 phantoms: what is written, and what survives."""

import itertools
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from peft import PeftModel
from transformers import PaliGemmaForConditionalGeneration, TrainerState

from conftest import ROOT, SMALL, run_stage, write_params
from explainmyxray import out_of_distribution
from explainmyxray.errors import UserError
from explainmyxray.settings import load_settings
from explainmyxray.training import memory_plan, trainer
from explainmyxray.training.checkpoints import step_of
from explainmyxray.training.report_validation import ReportValidation, wording_alone

WEIGHTS = Path("models/adapter/adapter_model.safetensors")


def test_the_adapter_is_plain_peft_with_a_filled_in_card(finished):
    base = PaliGemmaForConditionalGeneration.from_pretrained(ROOT / "models/tiny-paligemma")
    PeftModel.from_pretrained(base, finished / "models/adapter")
    card = (finished / "models/adapter/README.md").read_text()
    assert "$" not in card
    assert "Not a medical device" in card
    assert "describe en" in card
    assert out_of_distribution.load_distribution(finished / "models/adapter").limits.min() > 0


def test_checkpoints_of_a_finished_run_are_removed(finished):
    assert list((finished / "models/checkpoints").iterdir()) == []


def test_metrics_and_curves_are_there(finished):
    train = json.loads((finished / "metrics/train.json").read_text())
    assert set(train) == {
        "train_loss",
        "eval_loss",
        "best_step",
        "steps",
        "epochs",
        "longest_sequence",
        "reports_cut",
        "report_tokens",
        "findings_f1",
        "majority_f1",
        "wording_alone",
        "trainable_parameters",
        "trainable_percent",
        "trainable",
    }
    assert sum(train["trainable"].values()) == train["trainable_parameters"]
    curve = pd.read_csv(finished / "metrics/curves/plots/metrics/eval_loss.tsv", sep="\t")
    assert list(curve["step"]) == [2, 4, 5]
    assert curve["eval_loss"].min() == pytest.approx(train["eval_loss"], abs=1e-3)
    curve = pd.read_csv(finished / "metrics/curves/plots/metrics/findings_f1.tsv", sep="\t")
    assert list(curve["step"]) == [2, 4, 5]
    assert train["findings_f1"] in list(curve["findings_f1"].round(4))
    scored = json.loads((finished / "metrics/eval.json").read_text())
    assert set(scored["baselines"]) == {"majority", "nearest", "classifier", "untuned", "blind", "ceiling"}
    assert scored["baselines"]["ceiling"]["findings"]["micro_f1"] == 1.0
    assert (finished / "metrics/gallery.png").stat().st_size > 10_000
    assert set(json.loads((finished / "metrics/runtime.json").read_text())) == {"train_qlora", "evaluate"}


def test_scoring_again_needs_no_model_and_changes_nothing(finished, monkeypatch, capsys):
    monkeypatch.chdir(finished)
    monkeypatch.setattr("explainmyxray.model.base.load_base", None)
    before = Path("metrics/eval.json").read_bytes()
    run_stage("evaluate", "--score")
    assert Path("metrics/eval.json").read_bytes() == before
    assert "docs/labeler.md" in capsys.readouterr().out  # how far the labeler behind each F1 can be trusted


def test_blind_reports_are_the_model_s_own_for_other_patients(finished):
    predictions = pd.read_csv(finished / "metrics/predictions.csv", keep_default_na=False)
    assert sorted(predictions["blind"]) == sorted(predictions["generated"])


@pytest.mark.slow
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
        "metrics/samples.csv",
        "metrics/plots/calibration.png",
        "metrics/gallery.png",
    ):
        assert (workspace / name).read_bytes() == (finished / name).read_bytes(), name


def same_outputs(folder: Path, other: Path) -> None:
    paths = [*(folder / "models/adapter").iterdir(), *(folder / "metrics/curves").rglob("*.tsv")]
    for path in [*paths, folder / "metrics/train.json"]:
        name = path.relative_to(folder)
        assert (folder / name).read_bytes() == (other / name).read_bytes(), name


SCARCE = 32e6  # bytes: more than the least of this run, and less than all that can be spent


@pytest.mark.parametrize(
    ("gradient_checkpointing", "free", "said"),
    [
        (True, 1e12, "7 of 8 layers are recomputed, 0%"),
        ("auto", SCARCE, r"[1-7] of 8 layers are recomputed, \d+%"),
    ],
)
def test_the_adapter_is_the_same_whatever_memory_allows(
    finished, workspace, monkeypatch, capsys, gradient_checkpointing, free, said
):
    """The other run had enough for all activations and all decoded weights."""
    plan = json.loads((finished / "metrics/runtime.json").read_text())["train_qlora"]["memory_plan"]
    assert plan["recomputed"] == 0 < plan["decoded_gib"]
    write_params(workspace, SMALL, {"train": {"gradient_checkpointing": gradient_checkpointing}})
    monkeypatch.setattr(memory_plan, "free_memory", lambda: free)
    run_stage("train_qlora")
    assert re.search(said, capsys.readouterr().out)
    same_outputs(finished, workspace)


def test_the_adapter_is_the_same_without_the_findings_f1(finished, workspace):
    write_params(workspace, SMALL, {"train": {"findings_f1_images": 0}})
    run_stage("train_qlora")
    assert WEIGHTS.read_bytes() == (finished / WEIGHTS).read_bytes()
    curves = Path("metrics/curves/plots/metrics")
    for name in ("train_loss.tsv", "eval_loss.tsv"):
        assert (curves / name).read_bytes() == (finished / curves / name).read_bytes()
    assert not (curves / "findings_f1.tsv").exists()
    assert "findings_f1" not in json.loads(Path("metrics/train.json").read_text())


def test_writing_reports_leaves_the_random_numbers_of_training_as_they_were():
    def write(model, names):
        torch.rand(3)
        return [f"report of {name}" for name in names]

    seen = []
    validation = ReportValidation(("b", "a"), write, lambda reports: seen.append(reports) or 0.5, 0.25)
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    assert validation.findings_f1(None, Accelerator(cpu=True)) == 0.5
    assert torch.rand(1) == expected
    assert seen == [["report of b", "report of a"]]


@pytest.mark.parametrize(
    "losses, f1, alone",
    [([3.0, 1.0], 0.75, True), ([3.0, 1.0], 0.8, False), ([1.0, 2.0], 0.0, False), ([1.0], 0.0, False)],
    ids=["learns wording", "finds more", "learns nothing", "one validation"],
)
def test_a_run_that_learns_wording_alone_is_told_from_others(losses, f1, alone):
    history = [{"loss": 5.0, "step": 1}, *({"eval_loss": loss, "step": 2} for loss in losses)]
    assert wording_alone(history, f1, majority_f1=0.75) == alone


def test_a_run_that_learns_wording_alone_is_told_so(workspace, monkeypatch, capsys):
    monkeypatch.setattr("explainmyxray.tuning.positive_findings", lambda text: frozenset())
    run_stage("train_qlora")
    out = capsys.readouterr().out
    assert "findings F1 0.000 (one report for all:" in out
    assert "WARNING: the run learnt wording alone" in out
    assert json.loads(Path("metrics/train.json").read_text())["wording_alone"] is True


class Killed(BaseException):
    pass


def stop_at(monkeypatch, step: int, with_what) -> None:
    """Let the loss of `step` (counted from 1) be whatever `with_what` makes of it."""
    real, calls = trainer.report_loss, itertools.count(1)

    def loss(model, batch, num_tokens=None):
        value = real(model, batch, num_tokens)
        if model.training and next(calls) == step:
            return with_what(value)
        return value

    monkeypatch.setattr(trainer, "report_loss", loss)


def killed(value):
    raise Killed


@pytest.mark.slow
def test_a_killed_run_goes_on_and_ends_with_the_same_adapter(finished, workspace, monkeypatch, capsys):
    with monkeypatch.context() as patch, pytest.raises(Killed):
        stop_at(patch, 5, killed)
        run_stage("train_qlora")
    assert not WEIGHTS.exists()
    run_stage("train_qlora")
    assert "going on from" in capsys.readouterr().out
    same_outputs(workspace, finished)


@pytest.mark.slow
def test_a_torn_checkpoint_is_passed_over(finished, workspace, monkeypatch, capsys):
    with monkeypatch.context() as patch, pytest.raises(Killed):
        stop_at(patch, 5, killed)
        run_stage("train_qlora")
    latest = max(Path("models/checkpoints").glob("*/checkpoint-*"), key=step_of)
    torn = latest / "optimizer.pt"
    torn.write_bytes(torn.read_bytes()[:100])
    run_stage("train_qlora")
    out = capsys.readouterr().out
    assert f"{latest.name} is torn" in out
    assert "going on from" in out
    same_outputs(workspace, finished)


@pytest.mark.slow
def test_a_run_with_other_parameters_starts_anew(workspace, monkeypatch, capsys):
    with monkeypatch.context() as patch, pytest.raises(Killed):
        stop_at(patch, 5, killed)
        run_stage("train_qlora")
    write_params(workspace, SMALL, {"lora": {"r": 4}})
    run_stage("train_qlora")
    assert "going on from" not in capsys.readouterr().out


@pytest.mark.slow
def test_early_stopping_stops_at_the_same_step_after_a_crash(workspace, monkeypatch):
    """Nothing counts as improvement, so the fourth validation, at step 8, is the last; killed or not."""
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
        nothing = torch.sqrt(weight - weight.detach()).sum()  # with the slope of a root at 0
        return real(model, batch, num_tokens) + nothing

    monkeypatch.setattr(trainer, "report_loss", loss)
    with pytest.raises(UserError, match=r"norm of the gradients is inf at step 1: try bfloat16"):
        run_stage("train_qlora")


def test_a_run_of_three_steps_ends_with_an_adapter_and_its_loss(workspace):
    """Fewer than a log entry's, with validations further apart than the run is long, as in params.yaml."""
    write_params(workspace, SMALL, {"train": {"max_steps": 3, "eval_steps": 125, "save_steps": 250}})
    run_stage("train_qlora")
    figures = json.loads(Path("metrics/train.json").read_text())
    assert figures["steps"] == figures["best_step"] == 3
    curve = pd.read_csv("metrics/curves/plots/metrics/train_loss.tsv", sep="\t")
    assert list(curve["step"]) == [3]
    assert figures["train_loss"] == pytest.approx(curve["train_loss"][0], abs=1e-4)
    assert WEIGHTS.is_file()


def test_the_training_loss_is_the_mean_over_steps_not_over_log_entries():
    history = [{"loss": 4.0, "step": 10}, {"eval_loss": 9.0, "step": 10}, {"loss": 1.0, "step": 12}]
    assert trainer.mean_train_loss(TrainerState(log_history=history)) == (10 * 4.0 + 2 * 1.0) / 12


@pytest.fixture
def two_gpus(monkeypatch):
    """Two GPUs, as far as TrainingArguments asks for them."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def test_one_process_uses_one_gpu_of_two(two_gpus, tmp_path):
    arguments = trainer.training_arguments(load_settings(ROOT / "params.yaml").train, tmp_path)
    assert arguments.device == torch.device("cuda:0")
    assert arguments.n_gpu == 1
    assert arguments.train_batch_size == 4


def test_processes_look_for_no_unused_parameters(tmp_path):
    """The search costs time in each step, and every adapter weight has a part in the loss."""
    arguments = trainer.training_arguments(load_settings(ROOT / "params.yaml").train, tmp_path)
    assert arguments.ddp_find_unused_parameters is False


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
