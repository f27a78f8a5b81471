"""A GPU that torch cannot use is never passed over in silence:
what each command says, on machines that are faked.
"""

import pytest
import torch
from PIL import Image

from conftest import run_stage, write_params
from explainmyxray import gpu
from explainmyxray.errors import UserError

CLOSED_MODULE = (
    "NVRM version: NVIDIA UNIX x86_64 Kernel Module  {}  Sun May 12 19:39:15 UTC 2024\nGCC version:  gcc\n"
)
OPEN_MODULE = (
    "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  {}  Release Build  (dvs-builder@U22)\n"
)
COMMANDS = {
    "train_qlora": [],
    "evaluate": [],
    "explain": ["film.png"],
    "app": [],
}
PAST_THE_CHECK = "is missing"  # the next thing that an empty folder lacks


class Machine:
    """A machine with parts of an NVIDIA driver, in a folder; torch is CUDA 13.0's build and sees no GPU."""

    def __init__(self, folder, monkeypatch):
        self.folder, self.patch = folder, monkeypatch
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        self.set_torch("2.14.1+cu130", cuda="13.0")
        for name in ("dev", "bin"):
            (folder / name).mkdir()
        monkeypatch.setenv("PATH", str(folder / "bin"))  # no nvidia-smi of the real machine
        monkeypatch.setattr(gpu, "VERSION_FILE", folder / "version")
        monkeypatch.setattr(gpu, "DEVICE_FOLDER", folder / "dev")

    def set_torch(self, version: str, cuda: str | None) -> None:
        self.patch.setattr(torch, "__version__", torch.torch_version.TorchVersion(version))
        self.patch.setattr(torch.version, "cuda", cuda)

    def add_kernel_module(self, version: str, text: str = CLOSED_MODULE) -> None:
        (self.folder / "version").write_text(text.format(version))

    def add_device(self) -> None:
        (self.folder / "dev/nvidia0").touch()

    def add_nvidia_smi(self, script: str) -> None:
        path = self.folder / "bin/nvidia-smi"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)


@pytest.fixture
def machine(tmp_path, monkeypatch):
    write_params(tmp_path, {"train": {"num_processes": 1}})
    Image.new("L", (64, 64)).save(tmp_path / "film.png")
    monkeypatch.chdir(tmp_path)
    return Machine(tmp_path, monkeypatch)


def error_of(command: str, monkeypatch) -> str:
    """What the command ends with in a folder that holds params.yaml alone."""
    with pytest.raises(UserError) as caught:
        run_stage(command, *COMMANDS[command])
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("command", COMMANDS)
def test_an_old_driver_ends_each_command_in_one_line_with_what_to_do(machine, monkeypatch, command):
    machine.add_kernel_module("535.183.01")
    machine.add_device()
    message = error_of(command, monkeypatch)
    assert "driver 535.183.01 is here" in message
    assert "torch 2.14.1+cu130 (CUDA 13.0) needs 580 or newer" in message
    assert "make .venv/installed TORCH=cu126" in message
    assert 'CUDA_VISIBLE_DEVICES=""' in message


@pytest.mark.parametrize("hidden", ["", "-1"])
@pytest.mark.parametrize("command", COMMANDS)
def test_cuda_visible_devices_that_hides_all_means_the_cpu(machine, monkeypatch, capsys, command, hidden):
    machine.add_kernel_module("535.183.01")
    machine.add_device()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    assert PAST_THE_CHECK in error_of(command, monkeypatch)
    assert "driver" not in capsys.readouterr().err


def test_a_machine_without_a_driver_computes_on_the_cpu_without_a_word(machine, monkeypatch, capsys):
    assert PAST_THE_CHECK in error_of("evaluate", monkeypatch)
    assert "driver" not in capsys.readouterr().err


def test_under_wsl_only_nvidia_smi_knows_the_driver(machine, monkeypatch):
    machine.add_nvidia_smi("echo 552.44; echo 552.44")
    assert "driver 552.44 is here" in error_of("evaluate", monkeypatch)


def test_an_nvidia_smi_that_fails_leaves_the_kernel_s_account(machine, monkeypatch):
    machine.add_nvidia_smi("echo Failed to initialize NVML: Driver/library version mismatch; exit 18")
    machine.add_kernel_module("550.54.15", OPEN_MODULE)
    machine.add_device()
    assert "driver 550.54.15 is here" in error_of("evaluate", monkeypatch)


def test_a_container_without_its_host_s_gpus_is_told_and_computes_on_the_cpu(machine, monkeypatch, capsys):
    machine.add_kernel_module("580.82.07", OPEN_MODULE)
    assert PAST_THE_CHECK in error_of("evaluate", monkeypatch)
    (warning,) = capsys.readouterr().err.splitlines()
    assert "driver 580.82.07 is here, but no GPU" in warning and "--gpus all" in warning


def test_a_build_for_the_cpu_does_not_pass_over_a_gpu(machine, monkeypatch):
    machine.set_torch("2.14.1+cpu", cuda=None)
    machine.add_nvidia_smi("echo 580.82.07")
    message = error_of("evaluate", monkeypatch)
    assert "torch 2.14.1+cpu is built without CUDA" in message and "TORCH=cu126" in message


def test_a_new_driver_whose_gpu_torch_does_not_see_is_told_with_torch_s_reason(machine, monkeypatch):
    machine.add_nvidia_smi("echo 580.82.07")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    monkeypatch.setattr(torch.cuda, "init", raises(RuntimeError("No CUDA GPUs are available\nmore")))
    message = error_of("evaluate", monkeypatch)
    assert "sees no GPU (No CUDA GPUs are available; CUDA_VISIBLE_DEVICES=7)" in message


def raises(error: Exception):
    def function():
        raise error

    return function


@pytest.mark.parametrize("capability, is_refused", [((6, 0), True), ((7, 5), False), ((9, 0), False)])
def test_a_gpu_older_than_all_kernels_is_refused(machine, monkeypatch, capability, is_refused):
    """Kaggle lends P100s, capability 6.0, for which CUDA 13 has no compiler any more."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_75", "sm_80", "sm_120", "compute_120"])
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "A GPU")
    message = error_of("evaluate", monkeypatch)
    if is_refused:
        assert "A GPU has compute capability 6.0" in message and "kernels from 7.5 on" in message
    else:
        assert PAST_THE_CHECK in message
