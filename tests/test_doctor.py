"""`make doctor`: what is there and what is missing, each with what to do, and no secret."""

import os
import subprocess
import sys
from pathlib import Path

from conftest import ROOT, write_params


def doctor(folder: Path, *changes: dict, **env) -> subprocess.CompletedProcess:
    write_params(folder, *changes)
    return subprocess.run(
        [sys.executable, ROOT / "stages/doctor.py"],
        cwd=folder,
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HOME": str(folder / "hub"), **env},
    )


def test_the_embedded_default_lacks_nothing(tmp_path):
    done = doctor(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "MISSING" not in done.stdout
    for subject in (
        "Python 3.",
        "libraries: all",
        "GPU: ",
        "base: the folder",
        "memory: a step needs",
        "disk: ",
        "data: 2000 phantoms",
    ):
        assert subject in done.stdout


def test_what_is_missing_is_named_with_what_to_do_and_no_secret(tmp_path):
    (tmp_path / "data/archives").mkdir(parents=True)
    (tmp_path / "data/archives/sample.zip").touch()
    done = doctor(
        tmp_path,
        {"data": {"source": "kaggle"}, "model": {"id": "google/paligemma-3b-pt-224"}},
        HF_ENDPOINT="http://127.0.0.1:9",
        HF_TOKEN="hf_secret",
        KAGGLE_API_TOKEN="KGAT_secret",
        KAGGLE_API_ENVIRONMENT="TEST",
    )  # localhost:7777, where nobody listens
    assert done.returncode == 1
    assert (
        "MISSING  base: model.id: google/paligemma-3b-pt-224" in done.stdout
        and "check the network" in done.stdout
    )
    assert "ok       data: data/archives/sample.zip" in done.stdout
    assert (
        "paultimothymooney/chest-xray-pneumonia goes to data/archives/chest-xray-pneumonia.zip" in done.stdout
    )
    assert "secret" not in done.stdout + done.stderr and "Traceback" not in done.stderr


def test_a_step_that_does_not_fit_is_missing_memory(tmp_path):
    done = doctor(
        tmp_path, {"train": {"per_device_train_batch_size": 65536, "gradient_accumulation_steps": 1}}
    )
    assert done.returncode == 1
    assert (
        "MISSING  memory: a training step needs about" in done.stdout
        and "train.per_device_train_batch_size=" in done.stdout
    )
