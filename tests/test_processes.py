"""Several processes share a step: the same curve as one, the first alone writes, an error is one line."""

import subprocess
import sys
from pathlib import Path

import pandas as pd

from conftest import SMALL, write_params

ROOT = Path(__file__).resolve().parents[1]
SHARED = {
    "lora": {"dropout": 0.0},
    "train": {"gradient_accumulation_steps": 2, "num_train_epochs": 0.5},
}  # dropout is each one's own


def train(folder: Path, *changes: dict):
    write_params(folder, SMALL, SHARED, *changes)
    return subprocess.run(
        [sys.executable, ROOT / "stages/train_qlora.py"], cwd=folder, capture_output=True, text=True
    )


def curve(folder: Path, name: str) -> pd.Series:
    return pd.read_csv(folder / f"metrics/curves/plots/metrics/{name}.tsv", sep="\t", index_col="step")[name]


def test_two_processes_follow_the_curve_of_one(workspace, tmp_path):
    curves = []
    for count in (1, 2):
        done = train(workspace, {"train": {"num_processes": count}})
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("best at step") == 1
        assert (workspace / "models/adapter/adapter_model.safetensors").is_file()
        curves.append([curve(workspace, name) for name in ("train_loss", "eval_loss", "learning_rate")])
    for one, two in zip(*curves):
        pd.testing.assert_series_equal(one, two, rtol=1e-4)


def test_an_error_in_a_process_is_one_line(workspace):
    done = train(workspace, {"train": {"num_processes": 2, "learning_rate": 1.0e30, "warmup_steps": 0}})
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith("error: the ")
    assert "at step 2" in done.stderr


def test_a_step_that_cannot_be_shared_is_refused(workspace):
    done = train(workspace, {"train": {"num_processes": 3}})
    assert done.returncode == 1 and "is no multiple of num_processes (3)" in done.stderr
