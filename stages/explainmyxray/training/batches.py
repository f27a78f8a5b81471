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
from explainmyxray.model.inputs import open_image, prompt_length


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
