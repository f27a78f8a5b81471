"""From rows of a split to batches: prepared images, one prompt, and the report as what is to be learnt."""

from pathlib import Path

import pandas as pd
import torch
from PIL import Image
from torch.utils.data import Dataset
from torchvision.transforms import (
    ColorJitter,
    Compose,
    InterpolationMode,
    RandomHorizontalFlip,
    RandomRotation,
)
from transformers import PaliGemmaProcessor

from explainmyxray import settings
from explainmyxray.errors import UserError

PROMPT = "describe en"  # PaliGemma's own prompt for long captions; an adapter knows only the prompt it was tuned with
IGNORED = -100


def prompt_text() -> str:
    """The prompt with the place of the image spelt out, as the processor wants it."""
    return f"<image>{PROMPT}"


def prompt_length(processor: PaliGemmaProcessor) -> int:
    """Tokens before the report: image, <bos>, prompt and line break."""
    return processor.image_seq_length + len(
        processor.tokenizer(f"<bos>{PROMPT}\n", add_special_tokens=False).input_ids
    )


def open_image(images: Path, name: str) -> Image.Image:
    """A prepared image in greyscale. Raises UserError where it is missing or damaged."""
    try:
        with Image.open(images / name) as image:
            return image.convert("L")
    except OSError as error:
        raise UserError(
            f"{images / name} cannot be read ({type(error).__name__}): run `dvc repro --force fetch`"
        ) from None


class ReportDataset(Dataset):
    """Image and report of each row. Augmentation depends on seed, epoch and row alone, so that a resumed run sees the same."""

    def __init__(
        self,
        rows: pd.DataFrame,
        images: Path,
        processor: PaliGemmaProcessor,
        max_length: int,
        augment: settings.Augment | None = None,
        seed: int = 0,
    ):
        self.names, self.images, self.seed, self.epoch = list(rows["image"]), images, seed, 0
        self.reports, self.tokens = fit(list(rows["report"]), processor, max_length)
        self.before = prompt_length(processor)
        self.room = max_length - self.before
        self.longest, self.cut = self.before + max(self.tokens), sum(each > self.room for each in self.tokens)
        self.augment = augmentation(augment) if augment else None

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, row: int) -> tuple[Image.Image, str]:
        image = open_image(self.images, self.names[row])
        if self.augment:
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(
                    hash((self.seed, self.epoch, row))
                )  # of integers: the same everywhere
                image = self.augment(image)  # of greyscale, a third of the work
        return image, self.reports[row]


def augmentation(augment: settings.Augment) -> Compose:
    """The guide's light augmentation: mirror, small turn, exposure."""
    return Compose(
        [
            RandomHorizontalFlip(augment.horizontal_flip),
            RandomRotation(augment.rotation, InterpolationMode.BILINEAR),
            ColorJitter(brightness=augment.color_jitter, contrast=augment.color_jitter),
        ]
    )


def fit(reports: list[str], processor: PaliGemmaProcessor, max_length: int) -> tuple[list[str], list[int]]:
    """Reports that fit `max_length` tokens with image, prompt and <eos>, and the tokens of each with <eos> before any cut.

    A cut report keeps its <eos>, which the processor adds after it: plain truncation would drop it, and the model would
    never learn to stop. Raises UserError where not even a few words fit.
    """
    before = prompt_length(processor)
    room = max_length - before - 1
    if room < 8:
        raise UserError(
            f"model.max_length {max_length} leaves {max(room, 0)} tokens for a report: image and prompt take {before}"
        )
    tokens = processor.tokenizer(reports, add_special_tokens=False).input_ids
    fitted = [
        processor.tokenizer.decode(each[:room]) if len(each) > room else report
        for report, each in zip(reports, tokens)
    ]
    return fitted, [len(each) + 1 for each in tokens]


class TrainingCollator:
    """Batches padded on the right to their longest report; `labels` holds the report and <eos>, all else is ignored."""

    def __init__(self, processor: PaliGemmaProcessor):
        self.processor = processor
        processor.tokenizer.padding_side = "right"  # positions count from the start

    def __call__(self, samples: list[tuple[Image.Image, str]]) -> dict[str, torch.Tensor]:
        images, reports = zip(*samples)
        return dict(
            self.processor(
                images=list(images),
                text=[prompt_text()] * len(images),
                suffix=list(reports),
                padding="longest",
                return_tensors="pt",
            )
        )


def prompt_batch(images: list[Image.Image], processor: PaliGemmaProcessor) -> dict[str, torch.Tensor]:
    """Images with the prompt, ready to be generated for: all rows are of one length, so nothing is padded."""
    return dict(processor(images=images, text=[prompt_text()] * len(images), return_tensors="pt"))
