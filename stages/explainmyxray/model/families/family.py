"""What a family of bases has to say: `Family` from a base's configuration alone, `ReportProcessor` with its
processor.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from PIL import Image
from torch import nn
from transformers import PreTrainedConfig

Batch = dict[str, torch.Tensor]
Sample = tuple[Image.Image, str]  # an image with its report

IGNORE_INDEX = -100  # the label of a position without loss, as in transformers


def repeat_rows(batch: Batch, count: int) -> Batch:
    """Each row of a batch `count` times; a row may have several entries in an input, as patches are."""
    num_rows = len(batch["input_ids"])
    repeated = {}
    for name, value in batch.items():
        by_row = value.unflatten(0, (num_rows, -1))
        repeated[name] = by_row.repeat_interleave(count, 0).flatten(0, 1)
    return repeated


class ReportProcessor(ABC):
    """A base's processor with its prompt: images and reports in, batches out.

    `processor` is the one of transformers, `prompt` what the model is asked (an adapter knows only the one it
    was tuned with), and `image_size` the pixels a side of the images that are given to it; None where images
    may have any size and nobody has said which.
    """

    def __init__(self, processor, prompt: str, image_size: int | None):
        self.processor = processor
        self.prompt = prompt
        self.image_size = image_size

    @property
    def tokenizer(self):
        return self.processor.tokenizer

    @property
    @abstractmethod
    def prompt_length(self) -> int:
        """Tokens before the report: image and prompt, with all that the family puts around them."""

    @property
    @abstractmethod
    def example(self) -> str:
        """The Python expression that makes the batch of an image `film`, in transformers alone."""

    @property
    @abstractmethod
    def end_token_id(self) -> int:
        """The token that ends a report, the last one with a label."""

    @abstractmethod
    def training_batch(self, samples: list[Sample]) -> Batch:
        """Images with prompt and report, padded on the right; `labels` holds the report and its end alone."""

    @abstractmethod
    def prompt_batch(self, images: list[Image.Image]) -> Batch:
        """Images with the prompt, ready to be generated for: all rows are of one length, without padding."""

    @abstractmethod
    def pixel_batch(self, images: list[Image.Image]) -> Batch:
        """Images alone, as the vision tower takes them."""

    def decode(self, tokens: torch.Tensor) -> list[str]:
        """The text of each row of tokens (n, length), without special tokens."""
        texts = self.processor.batch_decode(tokens, skip_special_tokens=True)
        return [text.strip() for text in texts]


@dataclass(frozen=True)
class LayerInputs:
    """What a layer is called with, on the meta device: `shape` of its hidden states, and what goes beside."""

    shape: tuple[int, ...]
    kwargs: dict = field(default_factory=dict)


class Family(ABC):
    """What differs between families, as far as a base's configuration tells it."""

    name: ClassVar[str]
    prompt: ClassVar[str]  # of `model.prompt: null`
    prompt_tokens: ClassVar[int]  # of the prompt and what is put around it, at most: to estimate with
    model_class: ClassVar[type]  # or an Auto class, with from_pretrained
    processor_class: ClassVar[type[ReportProcessor]]

    def __init__(self, config: PreTrainedConfig):
        self.config = config

    @classmethod
    @abstractmethod
    def fits(cls, config: PreTrainedConfig) -> bool:
        """Whether a base with this configuration is of this family."""

    @property
    @abstractmethod
    def image_size(self) -> int | None:
        """Pixels a side of the image that the base takes; None where it takes any."""

    @abstractmethod
    def num_image_tokens(self, image_size: int) -> int:
        """Tokens of an image of `image_size` pixels a side."""

    @property
    def needs_float32_stream(self) -> bool:
        """Whether the residual stream can exceed fp16's 65,504, so that it must stay in float32."""
        return False

    @abstractmethod
    def vision_tower(self, base) -> nn.Module:
        """The vision tower of a loaded `base`, without what projects its features for the language model."""

    @abstractmethod
    def patch_features(self, base, pixels: Batch) -> torch.Tensor:
        """(n, patches, hidden) features of the vision tower for a `pixel_batch` of n images."""

    @abstractmethod
    def pixels(self, batch: Batch) -> torch.Tensor:
        """(n, 3, side, side): the pixels of a batch as an image has them."""

    @abstractmethod
    def with_pixels(self, batch: Batch, pixels: torch.Tensor) -> Batch:
        """The one row of `batch` beside each of the images `pixels` (n, 3, side, side)."""

    @property
    @abstractmethod
    def patch_size(self) -> int:
        """Pixels a side of a patch."""

    @abstractmethod
    def layer_inputs(
        self,
        layer: nn.Module,
        in_tower: bool,
        batch_size: int,
        image_size: int,
        sequence_length: int,
        dtype: torch.dtype,
    ) -> LayerInputs:
        """What `layer`, of the vision tower or of the language model, takes in a training step."""
