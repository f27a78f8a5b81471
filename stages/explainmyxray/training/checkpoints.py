"""Checkpoints: which one a run goes on from. What was torn by a crash is put away, with a line that says so."""

import json
import shutil
from pathlib import Path

import torch
from safetensors import safe_open
from transformers.trainer_pt_utils import safe_globals


def find_resumable_checkpoint(folder: Path, processes: int = 1) -> str | None:
    """The last whole checkpoint in `folder` of so many processes with something left to do; None to start at the beginning.

    A run killed after its last step goes on from the checkpoint before: Trainer would train on from a finished one.
    """
    for checkpoint in sorted(folder.glob("checkpoint-*"), key=step_of, reverse=True):
        state = state_of(checkpoint, processes)
        if state is None:
            print(f"{checkpoint} is torn: put away", flush=True)
            shutil.rmtree(checkpoint)
        elif not is_finished(state):
            print(f"going on from {checkpoint}", flush=True)
            return str(checkpoint)
    return None


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def state_of(checkpoint: Path, processes: int) -> dict | None:
    """Trainer's state, where all that resuming reads can be read; None where something is torn."""
    try:
        with safe_globals():
            random = (
                ["rng_state.pth"]
                if processes == 1
                else [f"rng_state_{rank}.pth" for rank in range(processes)]
            )
            for name in ("optimizer.pt", "scheduler.pt", *random):
                torch.load(checkpoint / name, weights_only=True, map_location="cpu")
        with safe_open(checkpoint / "adapter_model.safetensors", "pt") as weights:
            weights.keys()
        return json.loads((checkpoint / "trainer_state.json").read_text())
    except Exception:  # each format has its own errors for a file cut short
        return None


def is_finished(state: dict) -> bool:
    """Whether the run ended at this checkpoint, by its last step or by early stopping."""
    stopped = (
        state["stateful_callbacks"]
        .get("TrainerControl", {})
        .get("args", {})
        .get("should_training_stop", False)
    )
    return stopped or state["global_step"] >= state["max_steps"]
