"""Attribution: on which parts of the image the sentences that name a finding depend.

Two methods, multiplied, since on phantoms, where the place of each sign is known, neither points as well
alone (`tests/benchmarks/overlay.py`). The output that is attributed is the log-probability of the sentences,
each token given all before it:
- occlusion (Zeiler & Fergus 2014, arXiv:1311.2901): a sliding window of cells is replaced by its
  baseline, here the mean grey of each cell; the fall of the output is the window's attribution;
- saliency (Simonyan et al. 2014, arXiv:1312.6034) with SmoothGrad (Smilkov et al. 2017, arXiv:1706.03825):
  the size of the output's gradient with respect to the pixels, averaged over noisy copies of the image.

The maps have a cell a patch of the vision tower, or one for several where there are more than 16 a side.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from explainmyxray.gpu import gpu_memory_errors
from explainmyxray.model.families import family_of
from explainmyxray.model.families.family import ReportProcessor
from explainmyxray.reports.labeler import SENTENCE_END, positive_findings
from explainmyxray.training.loss import token_losses

WINDOW = 2  # cells a side of the sliding window: behind a single one, most of a sign is still seen beside it
MAX_CELLS = 16  # a side of the maps: windows are squares of cells, so that their number grows with its square
NOISE_SAMPLES = 8  # noisy copies of SmoothGrad
NOISE_STD = 0.1  # where pixels run from -1 (black) to 1 (white)
MAX_LOG_RATIO = 50  # exp() of more would be no figure that anyone reads

Batch = dict[str, torch.Tensor]
Span = tuple[int, int]  # first character and the one after the last


@dataclass(frozen=True)
class Attribution:
    """What a finding depends on: the `sentences` that name it, and two maps of (rows, columns) of cells.

    `occlusion` is the fall of the sentences' log-probability without a cell, averaged over the windows
    that hide it; `saliency` the mean absolute gradient of that log-probability over the cell's pixels.
    """

    sentences: tuple[str, ...]
    occlusion: np.ndarray
    saliency: np.ndarray

    @property
    def heatmap(self) -> np.ndarray:
        """(rows, columns) both maps multiplied: 1 at the peak, down to 0; 0 everywhere if no cell counts."""
        product = self.occlusion.clip(0) * self.saliency
        return product / max(float(product.max()), 1e-30)

    @property
    def peak(self) -> tuple[int, int]:
        """Row and column of the cell that counts most."""
        row, column = np.unravel_index(self.heatmap.argmax(), self.heatmap.shape)
        return int(row), int(column)

    @property
    def likelihood_ratio(self) -> float:
        """How many times likelier the sentences are with the peak
        visible than with it hidden; 1 if no cell counts.
        """
        fall = float(self.occlusion[self.peak])
        return float(np.exp(np.clip(fall, 0, MAX_LOG_RATIO)))


def attribute(
    model, processor: ReportProcessor, image: Image.Image, report: str, batch_size: int
) -> dict[str, Attribution]:
    """An `Attribution` for each finding that a sentence of
    the report names, occluded images `batch_size` at a time.

    `image` is greyscale and of the model's own size.
    """
    # 1) Which characters of the report name which finding.
    spans = sentences_naming(report)
    if not spans:
        return {}

    # 2) Which tokens those characters are: the output to be attributed is the sum of their log-probabilities.
    encoded = processor.tokenizer(report, add_special_tokens=False, return_offsets_mapping=True)
    offsets = encoded["offset_mapping"]
    tokens = {finding: _tokens_within(offsets, sentences) for finding, sentences in spans.items()}

    # 3) Both maps, from one forward pass a window and one
    # backward pass a noisy copy for all findings together.
    batch = processor.training_batch([(image, report)])
    occlusions = occlusion(model, batch, tokens, batch_size)
    saliencies = saliency(model, batch, tokens)

    found = {}
    for finding, sentences in spans.items():
        texts = tuple(report[start:end] for start, end in sentences)
        found[finding] = Attribution(texts, occlusions[finding], saliencies[finding])
    return found


def cell_size(image_size: int, patch_size: int) -> int:
    """Pixels a side of a cell of both maps: a patch, or so many that a side has at most `MAX_CELLS` cells."""
    patches = image_size // patch_size
    cells = max(number for number in range(1, min(patches, MAX_CELLS) + 1) if patches % number == 0)
    return patches // cells * patch_size


def sentences_naming(report: str) -> dict[str, list[Span]]:
    """For each finding that a sentence asserts, the spans of those sentences in the report."""
    spans: dict[str, list[Span]] = {}
    for start, end in _sentences(report):
        for finding in sorted(positive_findings(report[start:end])):
            spans.setdefault(finding, []).append((start, end))
    return spans


def _sentences(report: str) -> Iterator[Span]:
    """The span of each sentence, without white space before it and its full stop."""
    ends = [match.span() for match in SENTENCE_END.finditer(report)]
    ends.append((len(report), len(report)))
    start = 0
    for end, next_start in ends:
        sentence = report[start:end]
        start += len(sentence) - len(sentence.lstrip())
        if start < end:
            yield start, end
        start = next_start


def _tokens_within(offsets: list[Span], spans: list[Span]) -> list[int]:
    """Positions of the tokens that overlap one of the spans."""
    positions = []
    for position, (start, end) in enumerate(offsets):
        if any(start < span_end and end > span_start for span_start, span_end in spans):
            positions.append(position)
    return positions


@gpu_memory_errors()
@torch.inference_mode()
def occlusion(model, batch: Batch, tokens: dict[str, list[int]], batch_size: int) -> dict[str, np.ndarray]:
    """For each name (rows, columns): the fall of its tokens'
    log-probability without a cell; `batch` holds one report.
    """
    # 1) The baseline: every cell in its own mean grey. Its
    # detail is gone, while the film keeps its exposure.
    pixels = family_of(model).pixels(batch)
    cell = cell_size(pixels.shape[-1], family_of(model).patch_size)
    windows = _sliding_windows(pixels.shape[-1] // cell)
    baseline = F.interpolate(F.avg_pool2d(pixels, cell), scale_factor=cell)

    # 2) The losses (tokens,) of the image as it is, which is the first mask, and of each occluded image.
    masks = torch.cat([torch.zeros_like(windows[:1]), windows])
    losses = []
    for some in masks.split(batch_size):
        hidden = F.interpolate(some[:, None], scale_factor=cell)
        occluded = pixels * (1 - hidden) + baseline * hidden
        losses += token_losses(model, _with_pixels(model, batch, occluded))
    original, *occluded_losses = torch.stack(losses).cpu()
    fall = torch.stack(occluded_losses) - original  # (windows, tokens) of log-probability

    # 3) A cell's attribution is the mean over the windows that hide it.
    maps = {}
    for name, positions in tokens.items():
        of_window = fall[:, positions].sum(1)[:, None, None]
        maps[name] = ((of_window * windows).sum(0) / windows.sum(0)).numpy()
    return maps


@gpu_memory_errors()
def saliency(model, batch: Batch, tokens: dict[str, list[int]]) -> dict[str, np.ndarray]:
    """For each name (rows, columns): mean absolute SmoothGrad
    of its tokens' log-probability over a cell's pixels.
    """
    pixels = family_of(model).pixels(batch)
    generator = torch.Generator().manual_seed(0)
    noise = NOISE_STD * torch.randn(NOISE_SAMPLES, 1, *pixels.shape[-2:], generator=generator)

    # 1) The sum of the gradients. Copies one by one: a backward
    # pass needs far more memory than those of occlusion.
    gradients = {name: torch.zeros_like(pixels[:, 0]) for name in tokens}
    for each in noise:
        noisy = (pixels + each).requires_grad_()
        (losses,) = token_losses(model, _with_pixels(model, batch, noisy))
        for name, positions in tokens.items():
            (gradient,) = torch.autograd.grad(losses[positions].sum(), noisy, retain_graph=True)
            # A film is grey: its three channels move together. In
            # fp16 a gradient can overflow; such a pixel is left out.
            gradients[name] += gradient.sum(1).nan_to_num()

    # 2) Its size, as a mean over each cell.
    cell = cell_size(pixels.shape[-1], family_of(model).patch_size)
    return {name: F.avg_pool2d(total.abs(), cell)[0].numpy() for name, total in gradients.items()}


def _with_pixels(model, batch: Batch, pixels: torch.Tensor) -> Batch:
    """The batch's one report beside each of some images (n, 3, side, side), on the model's device."""
    rows = family_of(model).with_pixels(batch, pixels)
    return {name: value.to(model.device) for name, value in rows.items()}


def _sliding_windows(side: int) -> torch.Tensor:
    """(windows, side, side): 1 in each window of `WINDOW` x `WINDOW` cells, 0 elsewhere."""
    width = min(WINDOW, side)
    positions = side - width + 1
    windows = torch.zeros(positions**2, side, side)
    for number, window in enumerate(windows):
        row, column = divmod(number, positions)
        window[row : row + width, column : column + width] = 1
    return windows
