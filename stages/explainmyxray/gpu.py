"""The machine's NVIDIA driver, and whether the installed torch
can use it: a run never falls back to the CPU in silence.

torch says that there is no GPU whenever it cannot use the one that is there, and it gives no reason. The
kernel's own account of the driver tells the two apart. On a machine without an NVIDIA driver, macOS among
them, nothing here speaks.
"""

import os
import re
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from explainmyxray.errors import UserError

VERSION_FILE = Path("/proc/driver/nvidia/version")  # of the kernel module; a container sees its host's
DEVICE_FOLDER = Path("/dev")  # nvidia0, nvidia1, ...; a container sees those that it was given

# The oldest driver for each major version of CUDA, as Linux numbers them: table 1 of
# https://docs.nvidia.com/deploy/cuda-compatibility/minor-version-compatibility.html
OLDEST_DRIVER = {11: 450, 12: 525, 13: 580}

REINSTALL = "`make .venv/installed TORCH=cu126`"  # CUDA 12.6: drivers from 525 on; docs/install.md
ON_CPU = 'to compute on the CPU, set CUDA_VISIBLE_DEVICES=""'


@dataclass(frozen=True)
class Driver:
    """The NVIDIA driver of this machine, and whether one of its GPUs can be reached from here."""

    version: str  # "535.183.01", or "of unknown version"
    has_device: bool

    def is_older_than(self, major: int) -> bool:
        found = re.match(r"\d+", self.version)
        return found is not None and int(found.group()) < major


@dataclass(frozen=True)
class Problem:
    """Why torch does not use this machine's NVIDIA driver,
    in one line; `has_gpu`: a GPU is there and stays idle.
    """

    message: str
    has_gpu: bool


def find_driver() -> Driver | None:
    """The NVIDIA driver; None where there is none."""
    # nvidia-smi answers for a driver and a device, and is all that WSL has.
    version = _ask_nvidia_smi()
    if version:
        return Driver(version, has_device=True)
    try:
        text = VERSION_FILE.read_text()
    except OSError:
        return None
    found = re.search(r"Kernel Module.*?\s(\d+(?:\.\d+)+)\s", text)
    devices = [path for path in DEVICE_FOLDER.glob("nvidia*") if re.fullmatch(r"nvidia\d+", path.name)]
    return Driver(found.group(1) if found else "of unknown version", has_device=bool(devices))


def _ask_nvidia_smi() -> str | None:
    """The driver's version as nvidia-smi tells it; None where it is missing or fails."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = re.match(r"\d+(?:\.\d+)+", done.stdout)
    return found.group() if done.returncode == 0 and found else None


def cpu_is_wanted() -> bool:
    """Whether CUDA_VISIBLE_DEVICES hides every GPU on purpose."""
    return os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")


def require_usable_gpu() -> None:
    """Raises UserError where this machine has an NVIDIA GPU that the installed torch cannot use.

    A driver without a device, as in a container that was given
    none, is a warning on stderr: there is no GPU to lose.
    """
    problem = find_problem()
    if problem is None:
        return
    if problem.has_gpu:
        raise UserError(problem.message)
    print(f"warning: {problem.message}", file=sys.stderr, flush=True)


def find_problem() -> Problem | None:
    """What keeps the installed torch from this machine's GPU;
    None where it uses one, or where there is nothing to use.
    """
    if cpu_is_wanted():
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own words about an old driver, which name no command
        available = torch.cuda.is_available()
    if available:
        return _find_missing_kernels()
    driver = find_driver()
    return None if driver is None else _explain(driver)


def _find_missing_kernels() -> Problem | None:
    """The GPU is older than all that this torch was compiled
    for: each kernel would fail (a P100 under CUDA 13).
    """
    compiled = [int(arch.removeprefix("sm_")) for arch in torch.cuda.get_arch_list() if arch[3:].isdigit()]
    major, minor = torch.cuda.get_device_capability()
    if not compiled or 10 * major + minor >= min(compiled):
        return None
    oldest = f"{min(compiled) // 10}.{min(compiled) % 10}"
    return Problem(
        f"{torch.cuda.get_device_name()} has compute capability {major}.{minor}, and the installed torch "
        f"{torch.__version__} has kernels from {oldest} on: take another GPU (on Kaggle: T4), or install "
        "a torch "
        f"for it: {REINSTALL}; {ON_CPU}",
        has_gpu=True,
    )


def _explain(driver: Driver) -> Problem:
    """Why torch sees no GPU although `driver` is there, and the command that mends it."""
    here = f"NVIDIA driver {driver.version} is here"
    torch_here = f"the installed torch {torch.__version__}"
    cuda = torch.version.cuda
    needed = OLDEST_DRIVER.get(int(cuda.partition(".")[0]), 0) if cuda else 0
    if not driver.has_device:
        wrong = f"{here}, but no GPU: start the container with its GPUs (docker run --gpus all)"
    elif cuda is None:
        wrong = f"{here}, and {torch_here} is built without CUDA: install one with it: {REINSTALL}"
    elif driver.is_older_than(needed):
        wrong = (
            f"{here}, and {torch_here} (CUDA {cuda}) needs {needed} or newer: "
            f"update the driver, or install a torch for this one: {REINSTALL}"
        )
    else:
        wrong = (
            f"{here}, but {torch_here} sees no GPU ({_torch_s_reason()}): run nvidia-smi to see what it finds"
        )
    return Problem(f"{wrong}; {ON_CPU}", driver.has_device)


def _torch_s_reason() -> str:
    """What CUDA says when it is started, and the variable that may hide the GPUs."""
    reason = "CUDA gives no reason"
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return reason if visible is None else f"{reason}; CUDA_VISIBLE_DEVICES={visible}"


@contextmanager
def gpu_memory_errors() -> Iterator[None]:
    """Raise UserError, with what to try, where the GPU's memory is full."""
    try:
        yield
    except torch.cuda.OutOfMemoryError:
        total = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory / 2**30
        raise UserError(
            f"the GPU's {total:.0f} GiB are too few: halve train.per_device_train_batch_size and double "
            "train.gradient_accumulation_steps (or lower evaluate.batch_size), and keep "
            "quantization.load_in_4bit and train.gradient_checkpointing true"
        ) from None
