"""PaliGemma 1 and 2, pretrained and mix, at 224, 448 and 896 pixels.

The processor marks the report itself: it is the `suffix`, and image and prompt, which attend both ways, are
the prefix.
"""

from functools import cached_property

import torch
from PIL import Image
from torch import nn
from transformers import PaliGemmaForConditionalGeneration, PreTrainedConfig

from explainmyxray.model.families.family import (
    Batch,
    Family,
    LayerInputs,
    ReportProcessor,
    Sample,
    repeat_rows,
)


class PaliGemmaReportProcessor(ReportProcessor):
    def __init__(self, processor, prompt: str, image_size: int | None):
        super().__init__(processor, prompt, image_size)
        processor.tokenizer.padding_side = "right"  # positions count from the start

    @property
    def prompt_text(self) -> str:
        """The prompt with the place of the image spelt out, as the processor wants it."""
        return f"<image>{self.prompt}"

    @cached_property
    def prompt_length(self) -> int:
        text = self.tokenizer(f"<bos>{self.prompt}\n", add_special_tokens=False)
        return self.processor.image_seq_length + len(text.input_ids)

    @property
    def example(self) -> str:
        return f'processor(images=film, text={self.prompt_text!r}, return_tensors="pt")'

    @property
    def end_token_id(self) -> int:
        return self.tokenizer.eos_token_id

    def training_batch(self, samples: list[Sample]) -> Batch:
        images, reports = zip(*samples)
        # `suffix` makes the processor return labels, and token_type_ids, without which the prompt would be
        # causal.
        batch = self.processor(
            images=list(images),
            text=[self.prompt_text] * len(images),
            suffix=list(reports),
            padding="longest",
            return_tensors="pt",
        )
        return dict(batch)

    def prompt_batch(self, images: list[Image.Image]) -> Batch:
        return dict(self.processor(images=images, text=[self.prompt_text] * len(images), return_tensors="pt"))

    def pixel_batch(self, images: list[Image.Image]) -> Batch:
        return dict(self.processor.image_processor(images, return_tensors="pt"))


class PaliGemma(Family):
    name = "paligemma"
    prompt = "describe en"  # PaliGemma's own prompt for captions
    prompt_tokens = 8
    model_class = PaliGemmaForConditionalGeneration
    processor_class = PaliGemmaReportProcessor

    @classmethod
    def fits(cls, config: PreTrainedConfig) -> bool:
        return config.model_type == "paligemma"

    @property
    def needs_float32_stream(self) -> bool:
        """Gemma 2's, trained in bfloat16; PaliGemma 1 is trained in fp16 by its makers' own notebook."""
        return self.config.text_config.model_type == "gemma2"

    @property
    def image_size(self) -> int:
        return self.config.vision_config.image_size

    @property
    def patch_size(self) -> int:
        return self.config.vision_config.patch_size

    def num_image_tokens(self, image_size: int) -> int:
        return (self.image_size // self.patch_size) ** 2

    def vision_tower(self, base) -> nn.Module:
        return base.model.vision_tower

    def patch_features(self, base, pixels: Batch) -> torch.Tensor:
        tower = self.vision_tower(base)
        pixel_values = pixels["pixel_values"].to(base.device, tower.dtype)
        return tower(pixel_values).last_hidden_state

    def pixels(self, batch: Batch) -> torch.Tensor:
        return batch["pixel_values"]

    def with_pixels(self, batch: Batch, pixels: torch.Tensor) -> Batch:
        return repeat_rows(batch, len(pixels)) | {"pixel_values": pixels}

    def layer_inputs(
        self,
        layer: nn.Module,
        in_tower: bool,
        batch_size: int,
        image_size: int,
        sequence_length: int,
        dtype: torch.dtype,
    ) -> LayerInputs:
        if in_tower:
            shape = (batch_size, self.num_image_tokens(image_size), self.config.vision_config.hidden_size)
            return LayerInputs(shape, {"attention_mask": None})
        text = self.config.text_config
        rotation = torch.empty(batch_size, sequence_length, text.head_dim, dtype=dtype, device="meta")
        mask = torch.empty(batch_size, 1, sequence_length, sequence_length, dtype=dtype, device="meta")
        kwargs = {"attention_mask": mask, "position_embeddings": (rotation, rotation)}
        return LayerInputs((batch_size, sequence_length, text.hidden_size), kwargs)
