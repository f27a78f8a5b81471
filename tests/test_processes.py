"""Several processes share a step: the same curve as one, the first alone writes, an error is one line."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from conftest import ROOT, SMALL, run_stage, write_params
from explainmyxray.errors import UserError
from explainmyxray.settings import load_settings
from explainmyxray.training.processes import count_processes, find_free_port

COMMAND = [sys.executable, ROOT / "stages/train_qlora.py"]
NAMES = ("train_loss", "eval_loss", "findings_f1", "learning_rate")
SHARED = {
    "lora": {"dropout": 0.0},  # each process would draw its own
    "train": {"gradient_accumulation_steps": 2, "num_train_epochs": 0.5},
}


def train(folder: Path, *changes: dict) -> subprocess.CompletedProcess:
    write_params(folder, SMALL, SHARED, *changes)
    return subprocess.run(COMMAND, cwd=folder, capture_output=True, text=True)


def curve(folder: Path, name: str) -> pd.Series:
    table = pd.read_csv(folder / f"metrics/curves/plots/metrics/{name}.tsv", sep="\t", index_col="step")
    return table[name]


@pytest.mark.slow
def test_two_processes_follow_the_curve_of_one(workspace):
    write_params(workspace, SMALL, SHARED)
    run_stage("train_qlora")
    alone = [curve(workspace, name) for name in NAMES]
    shutil.rmtree(workspace / "models")

    done = train(workspace, {"train": {"num_processes": 2}})
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("best at step") == 1
    assert (workspace / "models/adapter/adapter_model.safetensors").is_file()
    for one, name in zip(alone, NAMES):
        pd.testing.assert_series_equal(one, curve(workspace, name), rtol=1e-4)


@pytest.mark.slow
def test_two_processes_that_are_killed_go_on_from_their_checkpoint(workspace):
    """Their dropout, too, is what it would have been."""
    two = {"train": {"num_processes": 2, "gradient_accumulation_steps": 2, "max_steps": 6}}
    write_params(workspace, SMALL, two)
    killed = subprocess.Popen(COMMAND, cwd=workspace, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    checkpoints = workspace / "models/checkpoints"
    written = {"trainer_state.json", "rng_state_0.pth", "rng_state_1.pth"}
    while killed.poll() is None and not written <= {path.name for path in checkpoints.glob("*/*/*")}:
        time.sleep(0.1)
    killed.kill()
    killed.communicate()  # its processes hold the pipes open until they have ended, too
    assert killed.returncode == -signal.SIGKILL

    adapters = []
    for goes_on in (True, False):
        done = subprocess.run(COMMAND, cwd=workspace, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert ("going on from" in done.stdout) == goes_on
        adapters.append((workspace / "models/adapter/adapter_model.safetensors").read_bytes())
    assert adapters[0] == adapters[1]


@pytest.mark.slow
def test_an_error_in_a_process_is_one_line(workspace):
    done = train(workspace, {"train": {"num_processes": 2, "learning_rate": 1.0e30, "warmup_steps": 0}})
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    last_line = done.stderr.strip().splitlines()[-1]
    assert last_line.startswith("error: the ")
    assert "at step 2" in last_line


@pytest.mark.slow
def test_processes_whose_output_nobody_reads_end_without_a_traceback(workspace):
    write_params(workspace, SMALL, SHARED, {"train": {"num_processes": 2}})
    command = " ".join(map(str, COMMAND))
    done = subprocess.run(["bash", "-c", f"{command} | true"], cwd=workspace, capture_output=True, text=True)
    assert "Traceback" not in done.stderr
    assert not (workspace / "models/adapter").exists()


def test_a_step_that_cannot_be_shared_is_refused(workspace):
    write_params(workspace, SMALL, SHARED, {"train": {"num_processes": 3}})
    with pytest.raises(UserError, match=r"is no multiple of num_processes \(3\)"):
        run_stage("train_qlora")


@pytest.mark.parametrize(
    "wanted, steps, on_gpu, count",
    [("auto", 8, False, 2), ("auto", 1, False, 1), ("auto", 8, True, 1), (4, 8, True, 4), (1, 8, False, 1)],
)
def test_two_processes_share_a_step_on_a_cpu_and_one_takes_it_on_a_gpu(
    wanted, steps, on_gpu, count, monkeypatch
):
    monkeypatch.setattr("torch.cuda.is_available", lambda: on_gpu)
    train = load_settings(ROOT / "params.yaml").train
    shared = train.model_copy(update={"num_processes": wanted, "gradient_accumulation_steps": steps})
    assert count_processes(shared) == count


def train_on_two_machines(folder: Path, data: Path, **environment: str) -> list[tuple[int, str, str]]:
    """Status, output and errors of a process in each of two folders, started as `torchrun` starts them."""
    environment |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1", "LOCAL_RANK": "0"}
    environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(find_free_port())}
    processes = []
    for rank in range(2):
        machine = folder / f"machine{rank}"
        machine.mkdir()
        (machine / "data").symlink_to(data)
        write_params(machine, SMALL, SHARED, {"train": {"max_steps": 2}})
        processes.append(
            subprocess.Popen(
                COMMAND,
                cwd=machine,
                env={**os.environ, **environment, "RANK": str(rank)},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    results = []
    for process in processes:
        output, errors = process.communicate()
        results.append((process.returncode, output, errors))
    return results


@pytest.mark.slow
def test_machines_without_a_shared_folder_are_told_so(small_data, tmp_path):
    for status, _, errors in train_on_two_machines(tmp_path, small_data / "data"):
        assert status == 1
        lines = [line for line in errors.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1
        assert "process 1 does not see models/checkpoints/" in lines[0]
        assert "one shared folder in EXPLAINMYXRAY_CHECKPOINTS" in lines[0]
        assert "Traceback" not in errors


@pytest.mark.slow
def test_machines_with_a_shared_folder_train_one_adapter(small_data, tmp_path):
    shared = tmp_path / "shared"
    results = train_on_two_machines(tmp_path, small_data / "data", EXPLAINMYXRAY_CHECKPOINTS=str(shared))
    assert [status for status, _, _ in results] == [0, 0], results
    assert (tmp_path / "machine0/models/adapter/adapter_model.safetensors").is_file()
    assert not (tmp_path / "machine1/models").exists()
    assert list(shared.iterdir()) == []
