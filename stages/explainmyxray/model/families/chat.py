"""Chat models that see: MedGemma and Gemma 3, Qwen3-VL, and others with a chat template and one image a turn.

The user's turn holds the image and the prompt, the assistant's the report. What stands around them is the
template's, and what an image's tokens attend to is the model's: both come from the processor's own output.
"""

import inspect
from functools import cached_property

import torch
from PIL import Image
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from transformers import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, AutoModelForImageTextToText, PreTrainedConfig

from explainmyxray.errors import UserError
from explainmyxray.model.families.family import (
    IGNORE_INDEX,
    Batch,
    Family,
    LayerInputs,
    ReportProcessor,
    Sample,
    repeat_rows,
)

REPORT_MARK = "REPORT"  # stands for the report while the template is asked what it puts around one
SMALLEST_SIDE = 256  # pixels: processors of models that take any size enlarge what is smaller
TOWERS = ("vision_tower", "visual", "vision_model")  # names of the vision tower


class ChatReportProcessor(ReportProcessor):
    def __init__(self, processor, prompt: str, image_size: int | None):
        super().__init__(processor, prompt, image_size)
        if getattr(processor, "chat_template", None) is None:
            raise UserError(
                "model.id: this base has no chat template, so that nobody can say how it is asked: take its "
                "instruction-tuned version"
            )
        question = [{"type": "image"}, {"type": "text", "text": prompt}]
        turns = [
            {"role": "user", "content": question},
            {"role": "assistant", "content": [{"type": "text", "text": REPORT_MARK}]},
        ]
        conversation = processor.apply_chat_template(turns, tokenize=False)
        self.prompt_text, _, after = conversation.rpartition(REPORT_MARK)
        self._end_token_id = self._first_special_token(after)

    def _first_special_token(self, after: str) -> int:
        """The token by which the template ends the assistant's turn; without one, the tokenizer's own end."""
        tokens = self.tokenizer(after.strip(), add_special_tokens=False).input_ids
        if not tokens:
            return self.tokenizer.eos_token_id
        if tokens[0] not in self.tokenizer.added_tokens_decoder:
            raise UserError(
                f"model.id: the chat template of this base ends an answer by {after[:40]!r}, which is no "
                "token of its own: a report would have no end"
            )
        return tokens[0]

    @cached_property
    def prompt_length(self) -> int:
        """Counted on a blank image: a processor that takes any size has as many tokens as its size asks."""
        blank = Image.new("L", (self.image_size, self.image_size))
        return self.prompt_batch([blank])["input_ids"].shape[1]

    @property
    def example(self) -> str:
        return (
            'processor(images=[[film.convert("RGB")]], '
            f'text=[{self.prompt_text!r}], add_special_tokens=False, return_tensors="pt")'
        )

    @property
    def end_token_id(self) -> int:
        return self._end_token_id

    def prompt_batch(self, images: list[Image.Image]) -> Batch:
        batch = self.processor(
            images=[[image.convert("RGB")] for image in images],
            text=[self.prompt_text] * len(images),
            add_special_tokens=False,  # the template has them
            return_tensors="pt",
        )
        return {name: value for name, value in batch.items() if isinstance(value, torch.Tensor)}

    def training_batch(self, samples: list[Sample]) -> Batch:
        images, reports = zip(*samples)
        batch = self.prompt_batch(list(images))
        prompt = batch["input_ids"]
        tokens = self.tokenizer(list(reports), add_special_tokens=False).input_ids
        targets = [torch.tensor([*row, self.end_token_id]) for row in tokens]
        in_report = pad_sequence([torch.ones_like(row) for row in targets], batch_first=True)

        # What a report's tokens are, for each input that has an entry a token: the types of tokens (0 is
        # text, 1 an image's) and the attention mask. Prompts are of one length, so that reports begin
        # together.
        pad_token_id = self.tokenizer.pad_token_id
        if pad_token_id is None:
            pad_token_id = self.end_token_id
        appended = {
            "input_ids": pad_sequence(targets, batch_first=True, padding_value=pad_token_id),
            "attention_mask": in_report,
        }
        for name, value in batch.items():
            if value.shape == prompt.shape:
                of_report = appended.get(name, torch.zeros_like(in_report))
                batch[name] = torch.cat([value, of_report.to(value.dtype)], dim=1)
        labels = pad_sequence(targets, batch_first=True, padding_value=IGNORE_INDEX)
        batch["labels"] = torch.cat([torch.full_like(prompt, IGNORE_INDEX), labels], dim=1)
        return batch

    def pixel_batch(self, images: list[Image.Image]) -> Batch:
        in_colour = [image.convert("RGB") for image in images]
        batch = self.processor.image_processor(in_colour, return_tensors="pt")
        return {name: value for name, value in batch.items() if isinstance(value, torch.Tensor)}


class Chat(Family):
    name = "chat"
    prompt = "Write the report of this chest X-ray."
    prompt_tokens = 40
    model_class = AutoModelForImageTextToText
    processor_class = ChatReportProcessor

    @classmethod
    def fits(cls, config: PreTrainedConfig) -> bool:
        return type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING and hasattr(config, "vision_config")

    @property
    def image_size(self) -> int | None:
        return getattr(self.config.vision_config, "image_size", None)

    @property
    def patch_size(self) -> int:
        return self.config.vision_config.patch_size

    def num_image_tokens(self, image_size: int) -> int:
        pooled = getattr(self.config, "mm_tokens_per_image", None)  # Gemma 3
        if pooled is not None:
            return pooled
        return self._num_patches(image_size) // self._merge_size**2

    @property
    def _merge_size(self) -> int:
        """Patches a side that the model merges into one token."""
        return getattr(self.config.vision_config, "spatial_merge_size", 1)

    def _num_patches(self, image_size: int) -> int:
        if self.image_size is not None:
            return (self.image_size // self.patch_size) ** 2
        token_size = self.patch_size * self._merge_size
        tokens_a_side = -(-max(image_size, SMALLEST_SIDE) // token_size)
        return (tokens_a_side * self._merge_size) ** 2

    @property
    def needs_float32_stream(self) -> bool:
        """They were trained in bfloat16, where nothing kept the stream below fp16's largest number."""
        return True

    def vision_tower(self, base) -> nn.Module:
        return next(getattr(base.base_model, name) for name in TOWERS if hasattr(base.base_model, name))

    def patch_features(self, base, pixels: Batch) -> torch.Tensor:
        accepted = inspect.signature(base.base_model.get_image_features).parameters
        inputs = {name: value.to(base.device) for name, value in pixels.items() if name in accepted}
        inputs["pixel_values"] = inputs["pixel_values"].to(self.vision_tower(base).dtype)
        features = base.base_model.get_image_features(**inputs, return_dict=True).last_hidden_state
        num_images = len(pixels.get("image_grid_thw", pixels["pixel_values"]))
        return features.reshape(num_images, -1, features.shape[-1])

    def pixels(self, batch: Batch) -> torch.Tensor:
        values = batch["pixel_values"]
        if "image_grid_thw" in batch:
            return self._join_patches(values, batch["image_grid_thw"])
        if values.dim() != 4:
            raise UserError(
                f"no map for a {self.config.model_type} model: it takes an image in several parts"
            )
        return values

    def with_pixels(self, batch: Batch, pixels: torch.Tensor) -> Batch:
        rows = repeat_rows(batch, len(pixels))
        if "image_grid_thw" in batch:
            return rows | {"pixel_values": self._split_into_patches(pixels)}
        return rows | {"pixel_values": pixels}

    # Qwen's processors hand an image over as rows of patches, those that the model merges beside one another,
    # each doubled in time: a still image is a film of two frames.

    def _join_patches(self, patches: torch.Tensor, grids: torch.Tensor) -> torch.Tensor:
        merge, size = self._merge_size, self.patch_size
        _, rows, columns = grids[0].tolist()
        frames = self.config.vision_config.temporal_patch_size
        shape = (len(grids), rows // merge, columns // merge, merge, merge, 3, frames, size, size)
        first_frame = patches.view(shape)[:, :, :, :, :, :, 0]
        # -> image, colour, rows (outer, merged, within a patch), columns (likewise)
        ordered = first_frame.permute(0, 5, 1, 3, 6, 2, 4, 7)
        return ordered.reshape(len(grids), 3, rows * size, columns * size)

    def _split_into_patches(self, pixels: torch.Tensor) -> torch.Tensor:
        merge, size = self._merge_size, self.patch_size
        count, _, height, width = pixels.shape
        frames = self.config.vision_config.temporal_patch_size
        rows, columns = height // size // merge, width // size // merge
        ordered = pixels.reshape(count, 3, rows, merge, size, columns, merge, size)
        first_frame = ordered.permute(0, 2, 5, 3, 6, 1, 4, 7)
        patches = first_frame[:, :, :, :, :, :, None].expand(*[-1] * 6, frames, -1, -1)
        return patches.reshape(count * rows * columns * merge**2, 3 * frames * size**2)

    def layer_inputs(
        self,
        layer: nn.Module,
        in_tower: bool,
        batch_size: int,
        image_size: int,
        sequence_length: int,
        dtype: torch.dtype,
    ) -> LayerInputs:
        accepted = inspect.signature(layer.forward).parameters
        part = self.config.vision_config if in_tower else self.config.get_text_config()
        heads = getattr(part, "num_attention_heads", None) or part.num_heads
        head_size = getattr(part, "head_dim", None) or part.hidden_size // heads
        length = self._num_patches(image_size) if in_tower else sequence_length
        shape = (batch_size, length)
        kwargs = {"attention_mask": None}
        if "cu_seqlens" in accepted:  # images one behind the other, without a dimension for them
            shape = (batch_size * length,)
            kwargs = {"cu_seqlens": torch.arange(0, batch_size * length + 1, length)}
        if not in_tower:
            mask = torch.empty(batch_size, 1, length, length, dtype=dtype, device="meta")
            kwargs["attention_mask"] = mask
        if "position_embeddings" in accepted:
            rotation = torch.empty(*shape, head_size, dtype=dtype, device="meta")
            kwargs["position_embeddings"] = (rotation, rotation)
        return LayerInputs((*shape, part.hidden_size), kwargs)
