"""`kill -9` at ten random moments: the run goes on, and ends with the adapter that it would have had."""

import multiprocessing
import os
import random
import time
from pathlib import Path

import pytest

from conftest import ROOT, SMALL, run_stage, write_params

KILLS = 10
STEPS = {"max_steps": 12, "per_device_train_batch_size": 2}  # with six validations and checkpoints


def train(folder: Path) -> None:
    os.chdir(folder)
    run_stage("train_qlora")


def killed_after(seconds: float | None, folder: Path, context) -> bool:
    """Train in `folder`, in a process of its own; whether it was killed before it came to its end."""
    process = context.Process(target=train, args=(folder,))
    process.start()
    process.join(seconds)
    running = process.is_alive()
    process.kill()
    process.join()
    assert running or process.exitcode == 0
    return running


@pytest.mark.slow
def test_ten_kills_at_random_moments_change_nothing(small_data, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT / "tests"), str(ROOT / "stages")]))
    context = multiprocessing.get_context("forkserver")  # imports once, then forks
    context.set_forkserver_preload(["conftest", "train_qlora"])
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "data").symlink_to(small_data / "data")
        write_params(tmp_path / name, SMALL, {"train": STEPS})
    killed_after(0, tmp_path / "whole", context)  # starts the server
    started = time.monotonic()
    assert not killed_after(None, tmp_path / "whole", context)
    whole_run = time.monotonic() - started

    rng, kills = random.Random(0), 0
    while kills < KILLS:
        if killed_after(rng.uniform(0.2, 0.8) * whole_run, tmp_path / "killed", context):
            kills += 1
    killed_after(None, tmp_path / "killed", context)
    for name in (
        "models/adapter/adapter_model.safetensors",
        "metrics/train.json",
        "metrics/curves/plots/metrics/eval_loss.tsv",
    ):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
