"""Where the model looked: on which patches of the image the sentences that name a finding hang.

Two answers, multiplied, for on phantoms, where the place of each sign is known, neither points as well alone
(`tests/benchmarks/overlay.py`):
- occlusion (Zeiler & Fergus 2014, arXiv:1311.2901): a window of patches loses its detail, each patch taking its own mean
  grey. How far the log-probability of the sentences falls, each token given all before it, is what the window was worth;
- gradient (SmoothGrad, Smilkov et al. 2017, arXiv:1706.03825): how strongly that log-probability answers to the pixels of
  a patch, averaged over noisy copies of the image.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F
from transformers import PaliGemmaProcessor

from explainmyxray.model.base import gpu_memory
from explainmyxray.model.inputs import TrainingCollator
from explainmyxray.reports.labeler import SENTENCE_END, positive_findings
from explainmyxray.training.loss import token_losses

WINDOW = 2  # patches a side: one alone leaves most of a sign to be seen beside it
COPIES, NOISE = 8, 0.1  # noisy copies, and their deviation where black to white is 2

Batch = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Attribution:
    """What a finding hangs on: `sentences` of the report, and two maps of (rows, columns) of patches.

    `fall` is by how much the log-probability of the sentences falls without a patch, on average over the windows that hide
    it; `pull` how strongly it answers to the patch's pixels.
    """

    sentences: tuple[str, ...]
    fall: np.ndarray
    pull: np.ndarray

    @property
    def heat(self) -> np.ndarray:
        """(rows, columns): 1 at the patch that counts most, down to 0; 0 everywhere where none counts."""
        heat = self.fall.clip(0) * self.pull
        return heat / max(float(heat.max()), 1e-30)

    @property
    def hottest(self) -> tuple[int, int]:
        """Row and column of the patch that counts most."""
        row, column = np.unravel_index(self.heat.argmax(), self.heat.shape)
        return int(row), int(column)

    @property
    def times(self) -> float:
        """How many times less likely the sentences are with the hottest patch hidden; 1 where no patch counts."""
        return float(np.exp(min(max(self.fall[self.hottest], 0), 50)))


def look(
    model, processor: PaliGemmaProcessor, film: Image.Image, report: str, batch_size: int
) -> dict[str, Attribution]:
    """A `Attribution` for each finding that a sentence of the report names; `film` as the model takes it, `batch_size` windows at a time."""
    named = sentences_naming(report)
    if not named:
        return {}
    batch = TrainingCollator(processor)([(film, report)])
    places = processor.tokenizer(report, add_special_tokens=False, return_offsets_mapping=True)[
        "offset_mapping"
    ]
    tokens = {
        finding: [
            number
            for number, (start, end) in enumerate(places)
            if any(start < last and end > first for first, last in spans)
        ]
        for finding, spans in named.items()
    }
    falls = occlusion(model, batch, tokens, batch_size)
    pulls = gradient(model, batch, tokens)
    return {
        finding: Attribution(
            tuple(report[first:last] for first, last in spans), falls[finding], pulls[finding]
        )
        for finding, spans in named.items()
    }


def grid(model) -> int:
    """Patches a side of the model's image."""
    vision = model.config.vision_config
    return vision.image_size // vision.patch_size


def sentences_naming(report: str) -> dict[str, list[tuple[int, int]]]:
    """For each finding that a sentence says is there, start and end of those sentences in the report."""
    named: dict[str, list[tuple[int, int]]] = {}
    for start, end in _sentences(report):
        for finding in sorted(positive_findings(report[start:end])):
            named.setdefault(finding, []).append((start, end))
    return named


def _sentences(report: str) -> Iterator[tuple[int, int]]:
    """Start and end of each sentence, its full stop left out."""
    start = 0
    for end, after in [
        *(match.span() for match in SENTENCE_END.finditer(report)),
        (len(report), len(report)),
    ]:
        start += len(report[start:end]) - len(report[start:end].lstrip())
        if start < end:
            yield start, end
        start = after


@gpu_memory()
@torch.inference_mode()
def occlusion(model, batch: Batch, tokens: dict[str, list[int]], batch_size: int) -> dict[str, np.ndarray]:
    """For each name (rows, columns): by how much the log-probability of its tokens falls without a patch."""
    pixels, windows = batch["pixel_values"], _windows(grid(model))
    patch = pixels.shape[-1] // windows.shape[-1]
    coarse = F.interpolate(F.avg_pool2d(pixels, patch), scale_factor=patch)
    losses = []
    for some in torch.cat([torch.zeros_like(windows[:1]), windows]).split(
        batch_size
    ):  # first of all nothing is hidden
        hidden = F.interpolate(some[:, None], scale_factor=patch)
        losses += token_losses(model, _with_pixels(model, batch, pixels * (1 - hidden) + coarse * hidden))
    whole, *without = torch.stack(losses).cpu()
    fall = torch.stack(without) - whole  # (windows, tokens)
    worth = {name: fall[:, which].sum(1)[:, None, None] * windows for name, which in tokens.items()}
    return {name: (each.sum(0) / windows.sum(0)).numpy() for name, each in worth.items()}


@gpu_memory()
def gradient(model, batch: Batch, tokens: dict[str, list[int]]) -> dict[str, np.ndarray]:
    """For each name (rows, columns): how strongly the log-probability of its tokens answers to a patch's pixels, as a mean."""
    pixels = batch["pixel_values"]
    noise = NOISE * torch.randn(COPIES, 1, *pixels.shape[-2:], generator=torch.Generator().manual_seed(0))
    total = dict.fromkeys(tokens, 0)
    for each in noise:  # one by one: a backward pass needs far more memory than the forward passes above
        noisy = (pixels + each).requires_grad_()
        (losses,) = token_losses(model, _with_pixels(model, batch, noisy))
        for name, which in tokens.items():
            total[name] = (
                total[name]
                + torch.autograd.grad(losses[which].sum(), noisy, retain_graph=True)[0].sum(1).nan_to_num()
            )
    patch = pixels.shape[-1] // grid(model)
    return {name: F.avg_pool2d(each.abs(), patch)[0].numpy() for name, each in total.items()}


def _with_pixels(model, batch: Batch, pixels: torch.Tensor) -> Batch:
    """The batch's one report beside each of some images (n, 3, side, side), on the model's device."""
    rows = {name: value.expand(len(pixels), *value.shape[1:]) for name, value in batch.items()} | {
        "pixel_values": pixels
    }
    return {name: value.to(model.device) for name, value in rows.items()}


def _windows(side: int) -> torch.Tensor:
    """(windows, side, side): 1 in each window of `WINDOW` x `WINDOW` patches, 0 elsewhere."""
    width = min(WINDOW, side)
    windows = torch.zeros((side - width + 1) ** 2, side, side)
    for number, window in enumerate(windows):
        row, column = divmod(number, side - width + 1)
        window[row : row + width, column : column + width] = 1
    return windows
