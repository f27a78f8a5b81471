"""Generating reports: batched and generate_batch; prompts are of one length, so that nothing is padded."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from PIL import Image
from tqdm import tqdm
from transformers import PaliGemmaProcessor

from explainmyxray import settings
from explainmyxray.model.base import gpu_memory
from explainmyxray.model.inputs import open_image, prompt_batch


@gpu_memory()
def generate(
    model,
    processor: PaliGemmaProcessor,
    images: Path,
    names: Sequence[str],
    how: settings.Evaluate,
    label: str = "generating",
) -> list[str]:
    """One report an image, in order; generation ends at <eos> or after `how.max_new_tokens` tokens."""
    reports = []
    for chunk in chunks(images, names, how.batch_size, label):
        reports += generate_batch(model, processor, chunk, how)
    return reports


def generate_batch(
    model, processor: PaliGemmaProcessor, images: list[Image.Image], how: settings.Evaluate
) -> list[str]:
    """One report an image, all in one batch: the likeliest tokens, of `how.num_beams` beams."""
    return generate_texts(
        model,
        processor,
        images,
        max_new_tokens=how.max_new_tokens,
        num_beams=how.num_beams,
        do_sample=False,
        top_k=None,
        top_p=None,
        temperature=None,
    )


@torch.inference_mode()
def generate_texts(model, processor: PaliGemmaProcessor, images: list[Image.Image], **how) -> list[str]:
    """What the model writes after image and prompt, all in one batch; `how` goes to transformers' `generate`."""
    batch = {name: value.to(model.device) for name, value in prompt_batch(images, processor).items()}
    written = model.generate(**batch, **how)[:, batch["input_ids"].shape[1] :]
    return [text.strip() for text in processor.batch_decode(written, skip_special_tokens=True)]


@gpu_memory()
@torch.inference_mode()
def image_features(
    model, processor: PaliGemmaProcessor, images: Path, names: Sequence[str], batch_size: int
) -> torch.Tensor:
    """(n, hidden) mean patch features of the vision tower, in float32 on the CPU."""
    tower = model.get_base_model().model.vision_tower
    features = []
    for chunk in chunks(images, names, batch_size, "image features"):
        pixels = processor.image_processor(chunk, return_tensors="pt").pixel_values
        features.append(tower(pixels.to(model.device, tower.dtype)).last_hidden_state.mean(1).float().cpu())
    return torch.cat(features)


def chunks(images: Path, names: Sequence[str], size: int, label: str) -> Iterator[list[Image.Image]]:
    """The images, `size` at a time, with a progress bar."""
    with tqdm(total=len(names), desc=label, unit="image", mininterval=2) as progress:
        for start in range(0, len(names), size):
            chunk = [open_image(images, name) for name in names[start : start + size]]
            yield chunk
            progress.update(len(chunk))
