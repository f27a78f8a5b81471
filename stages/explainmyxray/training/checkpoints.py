"""Checkpoints: where they lie, and which one a run goes on from.

They are Trainer's own folders, `checkpoint-STEP`, below one named by the run's fingerprint. A checkpoint that
a crash has torn is removed, with a line that says so. Nothing here links, locks or renames: a mounted Google
Drive has none of it.
"""

import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from safetensors import safe_open
from transformers.trainer_pt_utils import safe_globals

from explainmyxray.errors import UserError

DEFAULT_FOLDER = Path("models/checkpoints")
VARIABLE = "EXPLAINMYXRAY_CHECKPOINTS"  # the environment variable that names another folder


def checkpoints_folder() -> Path:
    """The folder of all runs' checkpoints: models/checkpoints, or what EXPLAINMYXRAY_CHECKPOINTS names.

    Raises UserError where the latter cannot be made. Its parent must be there: below a disk that is not
    mounted, a new folder would be one on the disk that the checkpoints are to outlive.
    """
    named = os.environ.get(VARIABLE)
    if not named:
        return DEFAULT_FOLDER
    folder = Path(named)
    if not folder.parent.is_dir():
        raise UserError(f"{VARIABLE}: there is no folder {folder.parent}: mount its disk, or make the folder")
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise UserError(f"{VARIABLE}: {folder} cannot be made: {error.strerror}") from None
    if not os.access(folder, os.W_OK):
        raise UserError(f"{VARIABLE}: {folder} cannot be written to")
    return folder


@contextmanager
def full_disk_errors(folder: Path) -> Iterator[None]:
    """Raise UserError where the disk of `folder`, which need not be this folder's, is full."""
    try:
        yield
    except (OSError, RuntimeError) as error:  # torch says RuntimeError where it cannot write
        if not folder.is_dir() or shutil.disk_usage(folder).free > 2**20:
            raise
        raise UserError(f"no space left on the disk of {folder}: free some and run again") from error


def agree_on_checkpoint(folder: Path, accelerator: Accelerator) -> str | None:
    """The checkpoint in `folder` that all processes go on from, chosen by the first; None for a new start.

    Raises UserError, in every process, where one of them does not see the first one's folder: it could not
    load the checkpoint now, nor the best adapter at the end.
    """
    # The first process looks alone: a second one would find what the first is removing.
    decision = [None, None]
    if accelerator.is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
        marker = folder / f"{uuid.uuid4().hex}.seen"
        marker.touch()
        has_scaler = accelerator.scaler is not None
        checkpoint = find_resumable_checkpoint(folder, accelerator.num_processes, has_scaler)
        decision = [marker.name, checkpoint.name if checkpoint else None]
    broadcast_object_list(decision)
    marker_name, checkpoint_name = decision

    # A folder of this name may lie on another machine's own disk, from an earlier run: ask for the marker.
    seen = gather_object([(folder / marker_name).is_file()])
    if accelerator.is_main_process:
        (folder / marker_name).unlink()
    if not all(seen):
        raise UserError(
            f"process {seen.index(False)} does not see {folder} of process 0: it is on another machine, or "
            f"has other data. Give all machines one shared folder in {VARIABLE}, and the same data and code"
        )
    return str(folder / checkpoint_name) if checkpoint_name else None


def find_resumable_checkpoint(folder: Path, num_processes: int, has_scaler: bool) -> Path | None:
    """The latest resumable checkpoint in `folder`, or None; torn ones are removed.

    A run killed after its last step goes on from the checkpoint before: Trainer would train on from a
    finished one.
    """
    for checkpoint in sorted(folder.glob("checkpoint-*"), key=step_of, reverse=True):
        state = read_state(checkpoint, num_processes, has_scaler)
        if state is None:
            print(f"{checkpoint} is torn: put away", flush=True)
            shutil.rmtree(checkpoint)
        elif not is_finished(state):
            print(f"going on from {checkpoint}", flush=True)
            return checkpoint
    return None


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def read_state(checkpoint: Path, num_processes: int, has_scaler: bool) -> dict | None:
    """Trainer's state; None unless every file can be read that resuming reads."""
    names = ["optimizer.pt", "scheduler.pt"]
    if num_processes == 1:
        names.append("rng_state.pth")
    else:
        names += [f"rng_state_{rank}.pth" for rank in range(num_processes)]
    if has_scaler:  # of fp16: Trainer would go on without it, at another loss scale
        names.append("scaler.pt")
    try:
        with safe_globals():
            for name in names:
                torch.load(checkpoint / name, weights_only=True, map_location="cpu")
        with safe_open(checkpoint / "adapter_model.safetensors", "pt") as weights:
            weights.keys()
        return json.loads((checkpoint / "trainer_state.json").read_text())
    except Exception:  # each format has its own errors for a file cut short
        return None


def is_finished(state: dict) -> bool:
    """Whether the run ended at this checkpoint, by its last step or by early stopping."""
    control = state["stateful_callbacks"].get("TrainerControl", {})
    stopped = control.get("args", {}).get("should_training_stop", False)
    return stopped or state["global_step"] >= state["max_steps"]
