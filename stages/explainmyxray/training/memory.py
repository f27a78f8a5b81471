"""What a training step needs of memory, estimated before weights are loaded.

What autograd saves of a layer is what torch says that it saves, asked on the meta device, where tensors have
a shape and no content. Weights, optimizer and logits are added by arithmetic. Not counted: CUDA's own
context, about 0.5 GiB.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import AttentionInterface, AutoModelForImageTextToText
from transformers.modeling_layers import GradientCheckpointingLayer

from explainmyxray.model.adapter import add_lora
from explainmyxray.model.base import compute_dtype, load_family
from explainmyxray.model.families.family import LayerInputs
from explainmyxray.model.float32_stream import keep_float32_stream
from explainmyxray.settings import Quantization, Settings
from explainmyxray.training.loss import MAX_CHUNK_LOGITS

BLOCK_SIZE = 64  # 4-bit weights that share a float32 constant (bitsandbytes)
NESTED_BLOCK_SIZE = 256  # constants that share one when they are quantised too
LOGIT_BYTES = 12  # of a logit at the worst moment: float32 logits, log-softmax, its gradient


@dataclass(frozen=True)
class LayerMemory:
    """What a layer costs a step: bytes that it holds for its backward, `input` where it is recomputed, else
    `saved`; the operations of its forward's products of matrices; and its 4-bit weights.
    """

    input: int = 0
    saved: int = 0
    largest: int = 0  # bytes of the largest tensor that is saved
    operations: int = 0
    in_backward: bool = True
    num_decodable: int = 0  # weights in 4 bits
    decoded: int = 0  # bytes of all of them, decoded
    largest_decoded: int = 0  # bytes of the largest matrix among them


@dataclass(frozen=True)
class StepMemory:
    """Bytes of a training step, by what they are for."""

    weights: int
    adapter: int
    logits: int
    layers: tuple[LayerMemory, ...]
    rest: LayerMemory  # what is in no layer and in 4 bits: the projector
    masks: int = 0  # of attention

    @property
    def parts(self) -> tuple[LayerMemory, ...]:
        """The layers, and the rest as the last one."""
        return (*self.layers, self.rest)

    def peak(self, num_stored: int, decoded: frozenset[int] = frozenset()) -> int:
        """The most that is held at once where all layers but the last `num_stored` are recomputed, and the
        weights of the parts with the numbers `decoded` are held decoded.

        The backward pass runs from the last layer to the first, so that the last layers' memory is free again
        before the first layers are recomputed.
        """
        first_stored = len(self.layers) - num_stored
        recomputed, stored = self.layers[:first_stored], self.layers[first_stored:]

        # Each recomputed layer's input is held from its forward on: counted for the whole step.
        inputs = sum(layer.input for layer in recomputed)

        # One layer's backward has at most three gradients as large as its largest tensor under way (of its
        # output, of its input, and one between), and one weight decoded from 4 bits.
        backward = 3 * max(layer.largest for layer in self.layers) + self._workspace(decoded)

        # The worst moment is one of two. Between forward and backward, all stored layers are held, beside the
        # logits or the first backward that follows them. Later, the largest recomputed layer is held beside
        # its own backward.
        turning = sum(layer.saved for layer in stored) + max(self.logits, backward)
        recomputing = max((layer.saved for layer in recomputed), default=0) + backward
        return self._constant(decoded) + inputs + max(turning, recomputing)

    def validation_peak(self, decoded: frozenset[int] = frozenset()) -> int:
        """The most that a validation holds, of twice the images and no backward: counted as one layer's
        tensors, and the logits.
        """
        layer = max(layer.saved for layer in self.layers)
        return self._constant(decoded) + self._workspace(decoded) + 2 * layer + self.logits

    def _constant(self, decoded: frozenset[int]) -> int:
        """What is held from the first step to the last."""
        decoded_weights = sum(self.parts[number].decoded for number in decoded)
        return self.weights + self.adapter + self.masks + decoded_weights

    def _workspace(self, decoded: frozenset[int]) -> int:
        """The largest weight that is decoded for a product."""
        in_four_bits = [part for number, part in enumerate(self.parts) if number not in decoded]
        return max((part.largest_decoded for part in in_four_bits), default=0)


def checkpointable_layers(model) -> list[nn.Module]:
    """The layers of the vision tower, then those of the language model."""
    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]


def estimate_step(
    settings: Settings, prompt_length: int, report_length: int, dtype: torch.dtype | None = None
) -> StepMemory:
    """Memory of a step with reports of `report_length` tokens, after `prompt_length` of image and prompt.

    Computed in `dtype`, by default as this device does.
    """
    family = load_family(settings.model)
    dtype = dtype or compute_dtype(settings.quantization)

    # The whole model with its adapter, without the data. Where a part attends by SDPA, it is measured by its
    # stand-in; where it does not (Gemma 2, whose attention has a soft cap), attention weights are saved.
    with torch.device("meta"):
        base = AutoModelForImageTextToText.from_config(family.config).to(dtype).requires_grad_(False)
        stream_dtype = dtype
        if dtype == torch.float16 and family.needs_float32_stream:  # as `load_base` does
            keep_float32_stream(base)
            stream_dtype = torch.float32
        model = add_lora(base, settings.lora)
    text_config = base.config.get_text_config()
    uses_sdpa = text_config._attn_implementation == "sdpa"
    for module in model.modules():
        part = getattr(module, "config", None)
        if getattr(part, "_attn_implementation_internal", None) == "sdpa":
            part._attn_implementation_internal = "meta_sdpa"
    model.train()

    # Adapter: float32 weights and gradients, and Adam's two moments.
    moment_bytes = 1 if "8bit" in settings.train.optim else 4
    num_trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)

    batch_size = settings.train.per_device_train_batch_size
    num_logits = min(batch_size * report_length * text_config.vocab_size, MAX_CHUNK_LOGITS)
    sequence_length = prompt_length + report_length

    # A mask for each kind of layer: a truth value an entry for SDPA, else a number that is added.
    num_masks = len(set(getattr(text_config, "layer_types", None) or ["full_attention"]))
    mask_bytes = num_masks * batch_size * sequence_length**2 * (1 if uses_sdpa else stream_dtype.itemsize)
    of_tower = set(family.vision_tower(base).modules())
    four_bit = four_bit_weights(model, settings.quantization)
    layers, of_layers = [], set()
    for layer in checkpointable_layers(model):
        in_tower = layer in of_tower
        hidden_dtype = dtype if in_tower else stream_dtype
        inputs = family.layer_inputs(
            layer, in_tower, batch_size, settings.data.image_size, sequence_length, hidden_dtype
        )
        layers.append(measure_layer(layer, inputs, in_tower, dtype, hidden_dtype, four_bit))
        of_layers.update(layer.modules())
    in_rest = [module for module in model.modules() if module not in of_layers]
    tower_is_trained = any(weight.requires_grad for weight in family.vision_tower(base).parameters())
    rest = LayerMemory(in_backward=tower_is_trained, **decoded_sizes(in_rest, four_bit, dtype))
    return StepMemory(
        weights=frozen_bytes(model, settings.quantization),
        adapter=num_trained * (4 + 4 + 2 * moment_bytes),
        logits=num_logits * LOGIT_BYTES,
        layers=tuple(layers),
        rest=rest,
        masks=mask_bytes,
    )


def frozen_bytes(model, quantization: Quantization) -> int:
    """Bytes of the frozen base: its linear layers, the output layer apart, in 4 bits with their constants."""
    constant = 4 / BLOCK_SIZE
    if quantization.bnb_4bit_use_double_quant:  # constants in 8 bits, and theirs in float32
        constant = 1 / BLOCK_SIZE + 4 / (BLOCK_SIZE * NESTED_BLOCK_SIZE)

    four_bit = four_bit_weights(model, quantization)
    total = 0.0
    for weight in model.parameters():  # each once: the output layer and the embedding are one
        if not weight.requires_grad:
            total += weight.numel() * (0.5 + constant if id(weight) in four_bit else weight.itemsize)
    return int(total)


def four_bit_weights(model, quantization: Quantization) -> set[int]:
    """The `id` of each weight that will be in 4 bits: of linear layers, the output layer apart."""
    if not quantization.load_in_4bit:
        return set()
    linear = {id(module.weight) for module in model.modules() if isinstance(module, nn.Linear)}
    trained = {id(weight) for weight in model.parameters() if weight.requires_grad}
    return linear - trained - {id(model.get_output_embeddings().weight)}


def decoded_sizes(modules: Iterable[nn.Module], four_bit: set[int], dtype: torch.dtype) -> dict[str, int]:
    """`num_decodable`, `decoded` and `largest_decoded` of a `LayerMemory` with these `modules`."""
    linear = [module for module in modules if isinstance(module, nn.Linear)]
    sizes = [module.weight.numel() for module in linear if id(module.weight) in four_bit]
    return {
        "num_decodable": sum(sizes),
        "decoded": sum(sizes) * dtype.itemsize,
        "largest_decoded": max(sizes, default=0) * dtype.itemsize,
    }


def measure_layer(
    layer: nn.Module,
    inputs: LayerInputs,
    in_tower: bool,
    dtype: torch.dtype,
    hidden_dtype: torch.dtype,
    four_bit: set[int],
) -> LayerMemory:
    """Run `layer`, in `dtype`, on inputs without content; add up what autograd saves, each storage once, no
    parameter.

    `four_bit` holds the `id` of each weight that will be in 4 bits. Attention's own products are not counted.
    """
    decoded = decoded_sizes(layer.modules(), four_bit, dtype)  # before parameters are replaced
    layer = layer.to(dtype)  # as autocast has the adapters
    # A layer of the vision tower takes part in the backward only where it holds an adapter, for nothing
    # before it is trained.
    in_backward = not in_tower or any(weight.requires_grad for weight in layer.parameters())
    hidden_states = torch.empty(inputs.shape, dtype=hidden_dtype, device="meta").requires_grad_(in_backward)
    mask = inputs.kwargs.get("attention_mask")
    extra_tensors = [] if mask is None else [mask]

    # Weights and mask are there anyway: their storages count as seen. Tensors are held, for the storage of
    # one that is freed could come back under the same number.
    seen = {}
    for tensor in [*layer.parameters(), *layer.buffers(), *extra_tensors]:
        seen[tensor.untyped_storage()._cdata] = tensor
    sizes = []

    def record(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in seen:
            seen[storage._cdata] = tensor
            sizes.append(storage.nbytes())
        return tensor

    operations = FlopCounterMode(display=False)
    with operations, torch.autograd.graph.saved_tensors_hooks(record, lambda tensor: tensor):
        layer(hidden_states, **inputs.kwargs)
    return LayerMemory(
        input=hidden_states.nbytes if in_backward else 0,
        saved=sum(sizes),
        largest=max(sizes, default=0),
        operations=operations.get_total_flops(),
        in_backward=in_backward,
        **decoded,
    )


class MetaSdpa(torch.autograd.Function):
    """Memory-efficient attention as far as its memory goes: it saves queries, keys, values and its output.

    The meta device has no such kernel; torch's fallback there would save the attention weights.
    """

    @staticmethod
    def forward(ctx, query, key, value):
        output = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, output)
        return output


def meta_sdpa(module, query, key, value, attention_mask, **kwargs):
    """`MetaSdpa` as transformers calls an attention: grouped keys and values repeated, as for its SDPA."""
    num_groups = query.shape[1] // key.shape[1]
    if num_groups > 1:
        key = key.repeat_interleave(num_groups, 1)
        value = value.repeat_interleave(num_groups, 1)
    return MetaSdpa.apply(query, key, value).transpose(1, 2), None


AttentionInterface.register("meta_sdpa", meta_sdpa)
