"""Images and text as a model takes them: the prompt, and an image with its report as what is to be learnt."""

from pathlib import Path

import torch
from PIL import Image
from transformers import PaliGemmaProcessor

from explainmyxray.errors import UserError

PROMPT = "describe en"  # PaliGemma's own prompt for captions; an adapter knows only the one it was tuned with
IGNORE_INDEX = -100  # the label of a position without loss, as in transformers


def prompt_text() -> str:
    """The prompt with the place of the image spelt out, as the processor wants it."""
    return f"<image>{PROMPT}"


def prompt_length(processor: PaliGemmaProcessor) -> int:
    """Tokens before the report: image, <bos>, prompt and line break."""
    text = processor.tokenizer(f"<bos>{PROMPT}\n", add_special_tokens=False)
    return processor.image_seq_length + len(text.input_ids)


def open_image(images: Path, name: str) -> Image.Image:
    """A prepared image in greyscale. Raises UserError where it is missing or damaged."""
    try:
        with Image.open(images / name) as image:
            return image.convert("L")
    except OSError as error:
        raise UserError(
            f"{images / name} cannot be read ({type(error).__name__}): run `dvc repro --force fetch`"
        ) from None


class TrainingCollator:
    """Batches padded on the right to their longest report; `labels` holds the report and <eos> alone."""

    def __init__(self, processor: PaliGemmaProcessor):
        self.processor = processor
        processor.tokenizer.padding_side = "right"  # positions count from the start

    def __call__(self, samples: list[tuple[Image.Image, str]]) -> dict[str, torch.Tensor]:
        images, reports = zip(*samples)
        # `suffix` makes the processor return labels, and token_type_ids, without which the prompt would be
        # causal.
        batch = self.processor(
            images=list(images),
            text=[prompt_text()] * len(images),
            suffix=list(reports),
            padding="longest",
            return_tensors="pt",
        )
        return dict(batch)


def prompt_batch(images: list[Image.Image], processor: PaliGemmaProcessor) -> dict[str, torch.Tensor]:
    """Images with the prompt, ready to be generated for: all rows are of one length, so nothing is padded."""
    return dict(processor(images=images, text=[prompt_text()] * len(images), return_tensors="pt"))
