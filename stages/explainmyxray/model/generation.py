"""Generating reports: batched and greedy; prompts are of one length, so that nothing is padded."""

from collections.abc import Sequence
from pathlib import Path

import torch
from tqdm import tqdm
from transformers import PaliGemmaProcessor

from explainmyxray import settings
from explainmyxray.model.base import gpu_memory
from explainmyxray.model.batches import open_image, prompt_batch


@torch.inference_mode()
def generate(model, processor: PaliGemmaProcessor, images: Path, names: Sequence[str], how: settings.Evaluate,
             label: str = "generating") -> list[str]:
    """One report an image, in order; generation ends at <eos> or after `how.max_new_tokens` tokens."""
    reports = []
    with tqdm(total=len(names), desc=label, unit="image", mininterval=2) as progress, gpu_memory():
        for start in range(0, len(names), how.batch_size):
            chunk = names[start:start + how.batch_size]
            batch = prompt_batch([open_image(images, name) for name in chunk], processor)
            batch = {name: value.to(model.device) for name, value in batch.items()}
            tokens = model.generate(
                **batch, max_new_tokens=how.max_new_tokens, num_beams=how.num_beams, do_sample=False,
                top_k=None, top_p=None, temperature=None,
            )
            written = tokens[:, batch["input_ids"].shape[1]:]
            reports += [text.strip() for text in processor.batch_decode(written, skip_special_tokens=True)]
            progress.update(len(chunk))
    return reports


@torch.inference_mode()
def image_features(model, processor: PaliGemmaProcessor, images: Path, names: Sequence[str], batch_size: int) -> torch.Tensor:
    """(n, hidden) mean patch features of the vision tower, in float32 on the CPU."""
    tower = model.get_base_model().model.vision_tower
    features = []
    with tqdm(total=len(names), desc="image features", unit="image", mininterval=2) as progress, gpu_memory():
        for start in range(0, len(names), batch_size):
            chunk = names[start:start + batch_size]
            pixels = processor.image_processor([open_image(images, name) for name in chunk], return_tensors="pt").pixel_values
            patches = tower(pixels.to(model.device, tower.dtype)).last_hidden_state
            features.append(patches.mean(1).float().cpu())
            progress.update(len(chunk))
    return torch.cat(features)
