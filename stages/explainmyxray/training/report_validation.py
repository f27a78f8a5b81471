"""Findings F1 while training: at each validation, greedy reports of a few validation images.

The loss is a mean over tokens, and most tokens are wording: it may fall while the reports name no more
findings than one report for all images. Nothing here touches the adapter: the loss alone decides on the best
checkpoint and on early stopping.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object


@dataclass(frozen=True)
class ReportValidation:
    """What is written and scored; this room knows neither how reports are generated nor what a finding is.

    `write` gives the model's report of each image name, `score` the F1 of a report for each of `names`, in
    their order; `majority_f1` is that of one report for all.
    """

    names: tuple[str, ...]
    write: Callable[[torch.nn.Module, list[str]], list[str]]
    score: Callable[[list[str]], float]
    majority_f1: float

    def findings_f1(self, model: torch.nn.Module, accelerator: Accelerator) -> float:
        """F1 of the reports of all `names`; processes share the writing, and each gets the figure.

        The random numbers that training draws afterwards are those that it would have drawn without.
        """
        share = list(self.names[accelerator.process_index :: accelerator.num_processes])
        with torch.random.fork_rng(devices=_devices(accelerator)):
            written = self.write(model, share)
        report_of = dict(gather_object(list(zip(share, written))))
        return self.score([report_of[name] for name in self.names])


def wording_alone(history: list[dict], findings_f1: float, majority_f1: float) -> bool:
    """Whether the validation loss fell over a run, while its best adapter finds no more than the majority.

    `history` is that of Trainer's state. A run of fewer than two validations tells nothing.
    """
    losses = [entry["eval_loss"] for entry in history if "eval_loss" in entry]
    return len(losses) > 1 and min(losses) < losses[0] and findings_f1 <= majority_f1


def _devices(accelerator: Accelerator) -> list[int]:
    """The GPU whose random state is to be restored, beside the CPU's."""
    return [accelerator.device.index or 0] if accelerator.device.type == "cuda" else []
