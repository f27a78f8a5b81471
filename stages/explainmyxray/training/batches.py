"""From rows of a split to samples: a prepared image, augmented, and its report, cut to what fits."""

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

from explainmyxray import settings
from explainmyxray.errors import UserError
from explainmyxray.model.families.family import ReportProcessor
from explainmyxray.model.inputs import open_image

MIN_REPORT_LENGTH = 8  # tokens: fewer hold no sentence


class ReportDataset(Dataset):
    """Image and report of each row.

    Augmentation depends on seed, epoch and row alone, so that a resumed run sees the same images.
    `report_lengths` counts each report's tokens, <eos> among them, before any cut; `max_report_length` is
    what fits beside the prompt.
    """

    def __init__(
        self,
        rows: pd.DataFrame,
        images: Path,
        processor: ReportProcessor,
        max_length: int,
        augment: settings.Augment | None = None,
        seed: int = 0,
    ):
        self.images = images
        self.image_names = list(rows["image"])
        self.augment = augmentation(augment) if augment else None
        self.seed = seed
        self.epoch = 0
        self.reports, self.report_lengths = truncate_reports(list(rows["report"]), processor, max_length)
        self.prompt_length = processor.prompt_length
        self.max_report_length = max_length - self.prompt_length
        self.longest_sequence = self.prompt_length + max(self.report_lengths)
        self.num_truncated = sum(length > self.max_report_length for length in self.report_lengths)

    def __len__(self) -> int:
        return len(self.image_names)

    def __getitem__(self, row: int) -> tuple[Image.Image, str]:
        image = open_image(self.images, self.image_names[row])
        if self.augment:
            # torchvision draws from torch's global generator: seed it for this sample, and restore it
            # afterwards. The hash of a tuple of integers is the same in every process and on every machine.
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(hash((self.seed, self.epoch, row)))
                image = self.augment(image)  # in greyscale: a third of the work
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


def truncate_reports(
    reports: list[str], processor: ReportProcessor, max_length: int
) -> tuple[list[str], list[int]]:
    """Reports cut to fit `max_length` with image, prompt and <eos>; and their lengths before, with <eos>.

    A cut report keeps its <eos>, which the processor adds after it: plain truncation would drop it, and the
    model would never learn to stop. Raises UserError where not even a few words fit.
    """
    before = processor.prompt_length
    longest = max_length - before - 1  # without <eos>
    if longest < MIN_REPORT_LENGTH:
        raise UserError(
            f"model.max_length {max_length} leaves {max(longest, 0)} tokens for a report: "
            f"image and prompt take {before}"
        )
    truncated, lengths = [], []
    for report, tokens in zip(reports, processor.tokenizer(reports, add_special_tokens=False).input_ids):
        fits = len(tokens) <= longest
        truncated.append(report if fits else processor.tokenizer.decode(tokens[:longest]))
        lengths.append(len(tokens) + 1)
    return truncated, lengths
