"""The shape of google/paligemma-3b-pt-224, without its
weights: time and memory of a step do not depend on them.
"""

import json
import shutil
from pathlib import Path

import torch
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    GemmaConfig,
    PaliGemmaConfig,
    SiglipVisionConfig,
)

TINY = Path(__file__).resolve().parents[1] / "models/tiny-paligemma"


def write_random_base(folder: Path, dtype: torch.dtype, device: torch.device) -> Path:
    """PaliGemma-3B with random weights, made on `device` and written in `dtype`: 5.5 GiB in 16 bits.

    It has the tiny base's tokenizer, whose ids it embeds as well as any.
    """
    config = shape(image_token=AutoConfig.from_pretrained(TINY).image_token_index)
    with device:
        model = AutoModelForImageTextToText.from_config(config, dtype=dtype)
    model.save_pretrained(folder)
    for path in TINY.glob("*token*.json"):
        shutil.copy(path, folder)
    processor = json.loads((TINY / "processor_config.json").read_text())
    processor["image_processor"]["image_seq_length"] = 256
    (folder / "processor_config.json").write_text(json.dumps(processor))
    return folder


def shape(image_token: int = 257152) -> PaliGemmaConfig:
    """The configuration that google/paligemma-3b-pt-224 has, but for the id of the image's token."""
    return PaliGemmaConfig(
        vision_config=SiglipVisionConfig(
            hidden_size=1152,
            intermediate_size=4304,
            num_hidden_layers=27,
            num_attention_heads=16,
            patch_size=14,
            image_size=224,
            projection_dim=2048,
            vision_use_head=False,
        ).to_dict(),
        text_config=GemmaConfig(
            hidden_size=2048,
            intermediate_size=16384,
            num_hidden_layers=18,
            num_attention_heads=8,
            num_key_value_heads=1,
            head_dim=256,
            vocab_size=257216,
        ).to_dict(),
        projection_dim=2048,
        image_token_index=image_token,
    )
