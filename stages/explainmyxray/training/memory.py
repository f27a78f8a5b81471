"""What a training step needs of memory, estimated before weights are loaded; how many layers to recompute.

What autograd saves of a layer is what torch says that it saves, asked on the meta device, where tensors have
a shape and no content. Weights, optimizer and logits are added by arithmetic. Not counted: CUDA's own
context, about 0.5 GiB.
"""

from dataclasses import dataclass
from typing import Literal

import psutil
import torch
from torch import nn
from transformers import AttentionInterface, AutoModelForImageTextToText
from transformers.modeling_layers import GradientCheckpointingLayer

from explainmyxray.errors import UserError
from explainmyxray.model.adapter import add_lora
from explainmyxray.model.base import compute_dtype, load_family
from explainmyxray.model.families.family import LayerInputs
from explainmyxray.settings import Quantization, Settings
from explainmyxray.training.loss import MAX_CHUNK_LOGITS

GIB = 2**30
ALLOCATOR_OVERHEAD = 1.1  # what the allocator loses between blocks
BLOCK_SIZE = 64  # 4-bit weights that share a float32 constant (bitsandbytes)
NESTED_BLOCK_SIZE = 256  # constants that share one when they are quantised too
LOGIT_BYTES = 12  # of a logit at the worst moment: float32 logits, log-softmax, its gradient


@dataclass(frozen=True)
class LayerMemory:
    """Bytes that a layer holds for its backward: `input` where it is recomputed, else `saved`."""

    input: int
    saved: int
    largest: int  # of the tensors that are saved


@dataclass(frozen=True)
class StepMemory:
    """Bytes of a training step, by what they are for."""

    weights: int
    adapter: int
    logits: int
    workspace: int
    layers: tuple[LayerMemory, ...]

    def peak(self, num_stored: int) -> int:
        """The most that is held at once where all layers but the last `num_stored` are recomputed.

        The backward pass runs from the last layer to the first, so that the last layers' memory is free again
        before the first layers are recomputed.
        """
        first_stored = len(self.layers) - num_stored
        recomputed, stored = self.layers[:first_stored], self.layers[first_stored:]

        # Each recomputed layer's input is held from its forward on: counted for the whole step.
        inputs = sum(layer.input for layer in recomputed)

        # One layer's backward has at most three gradients as large as its largest tensor under way (of its
        # output, of its input, and one between), and one weight decoded from 4 bits.
        backward = 3 * max(layer.largest for layer in self.layers) + self.workspace

        # The worst moment is one of two. Between forward and backward, all stored layers are held, beside the
        # logits or the first backward that follows them. Later, the largest recomputed layer is held beside
        # its own backward.
        turning = sum(layer.saved for layer in stored) + max(self.logits, backward)
        recomputing = max((layer.saved for layer in recomputed), default=0) + backward
        return self.weights + self.adapter + inputs + max(turning, recomputing)

    def required(self, checkpointing: bool | Literal["auto"]) -> float:
        """The least that a step asks of a device, with or without gradient checkpointing."""
        return ALLOCATOR_OVERHEAD * self.peak(1 if checkpointing else len(self.layers))

    def num_stored(self, checkpointing: bool | Literal["auto"], free: float) -> int:
        """How many layers, from the last, are not recomputed: one, all, or for `auto` what `free` bytes hold.

        The last layer's backward follows its forward at once, so that recomputing it would save nothing.
        """
        if checkpointing is False:
            return len(self.layers)
        num_stored = 1
        if checkpointing == "auto":
            for count in range(2, len(self.layers) + 1):
                if ALLOCATOR_OVERHEAD * self.peak(count) <= free:
                    num_stored = count
        return num_stored


def plan_checkpointing(settings: Settings, prompt_length: int, report_length: int) -> int:
    """How many layers, from the last, are not to be recomputed; prints the estimate.

    Raises UserError where a step is too large for this device, with what would fit.
    """
    checkpointing = settings.train.gradient_checkpointing
    estimate = estimate_step(settings, prompt_length, report_length)
    free = free_memory()
    required = estimate.required(checkpointing)
    if required > free:
        raise UserError(
            f"a training step needs about {required / GIB:.1f} GiB and {free / GIB:.1f} are free: "
            f"{_what_fits(settings, prompt_length, report_length, free)}"
        )
    num_stored = estimate.num_stored(checkpointing, free)
    num_layers = len(estimate.layers)
    planned = ALLOCATOR_OVERHEAD * estimate.peak(num_stored)
    print(
        f"a step needs about {planned / GIB:.2f} of {free / GIB:.1f} GiB; "
        f"{num_layers - num_stored} of {num_layers} layers are recomputed",
        flush=True,
    )
    return num_stored


def _what_fits(settings: Settings, prompt_length: int, report_length: int, free: int) -> str:
    """The parameters of the largest batch that fits `free` bytes with 4-bit weights and checkpointing."""
    images = settings.train.gradient_accumulation_steps * settings.train.per_device_train_batch_size
    four_bit = settings.quantization.model_copy(update={"load_in_4bit": True})
    batch_size = settings.train.per_device_train_batch_size
    while batch_size:
        train = settings.train.model_copy(update={"per_device_train_batch_size": batch_size})
        smaller = settings.model_copy(update={"quantization": four_bit, "train": train})
        required = estimate_step(smaller, prompt_length, report_length).required(checkpointing=True)
        if required <= free:
            return (
                f"train.per_device_train_batch_size={batch_size}, "
                f"train.gradient_accumulation_steps={images // batch_size}, "
                "train.gradient_checkpointing=auto and quantization.load_in_4bit=true "
                f"need {required / GIB:.1f}"
            )
        batch_size //= 2
    return "no setting makes this model fit: take a larger GPU, or a smaller model.id"


def enable_gradient_checkpointing(model, num_stored: int) -> None:
    """Gradient checkpointing for all layers of a PEFT `model` but the last `num_stored`."""
    model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    # PEFT has every sub-model's input require a gradient: a frozen vision tower would get a backward for
    # nothing.
    model.get_base_model().disable_input_require_grads()
    layers = checkpointable_layers(model)
    for layer in layers[len(layers) - num_stored :]:
        layer.gradient_checkpointing = False


def checkpointable_layers(model) -> list[nn.Module]:
    """The layers of the vision tower, then those of the language model."""
    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]


def free_memory() -> int:
    """Bytes that this process may still take: of its GPU, or of the machine's memory."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()  # what torch's allocator keeps for this process counts as used
        free, total = torch.cuda.mem_get_info()
        return free
    return psutil.virtual_memory().available


def estimate_step(settings: Settings, prompt_length: int, report_length: int) -> StepMemory:
    """Memory of a step with reports of `report_length` tokens, after `prompt_length` of image and prompt."""
    family = load_family(settings.model)
    dtype = compute_dtype(settings.quantization)

    # The whole model with its adapter, without the data. Where a part attends by SDPA, it is measured by its
    # stand-in; where it does not (Gemma 2, whose attention has a soft cap), attention weights are saved.
    with torch.device("meta"):
        base = AutoModelForImageTextToText.from_config(family.config).to(dtype).requires_grad_(False)
        model = add_lora(base, settings.lora)
    for module in model.modules():
        part = getattr(module, "config", None)
        if getattr(part, "_attn_implementation_internal", None) == "sdpa":
            part._attn_implementation_internal = "meta_sdpa"
    model.train()

    # Adapter: float32 weights and gradients, and Adam's two moments.
    moment_bytes = 1 if "8bit" in settings.train.optim else 4
    num_trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)

    # Workspace: the largest weight that is decoded for a product; the output layer is not in 4 bits.
    head = model.get_output_embeddings()
    linear_layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    largest_weight = max(module.weight.numel() for module in linear_layers if module is not head)

    batch_size = settings.train.per_device_train_batch_size
    num_logits = min(
        batch_size * report_length * family.config.get_text_config().vocab_size, MAX_CHUNK_LOGITS
    )
    sequence_length = prompt_length + report_length
    of_tower = set(family.vision_tower(base).modules())
    layers = []
    for layer in checkpointable_layers(model):
        in_tower = layer in of_tower
        inputs = family.layer_inputs(
            layer, in_tower, batch_size, settings.data.image_size, sequence_length, dtype
        )
        layers.append(measure_layer(layer, inputs, in_tower, dtype))
    return StepMemory(
        weights=frozen_bytes(model, settings.quantization),
        adapter=num_trained * (4 + 4 + 2 * moment_bytes),
        logits=num_logits * LOGIT_BYTES,
        workspace=largest_weight * dtype.itemsize,
        layers=tuple(layers),
    )


def frozen_bytes(model, quantization: Quantization) -> int:
    """Bytes of the frozen base: its linear layers, the output layer apart, in 4 bits with their constants."""
    constant = 4 / BLOCK_SIZE
    if quantization.bnb_4bit_use_double_quant:  # constants in 8 bits, and theirs in float32
        constant = 1 / BLOCK_SIZE + 4 / (BLOCK_SIZE * NESTED_BLOCK_SIZE)

    four_bit = set()
    if quantization.load_in_4bit:
        four_bit = {id(module.weight) for module in model.modules() if isinstance(module, nn.Linear)}
        four_bit.discard(id(model.get_output_embeddings().weight))

    total = 0.0
    for weight in model.parameters():  # each once: the output layer and the embedding are one
        if not weight.requires_grad:
            total += weight.numel() * (0.5 + constant if id(weight) in four_bit else weight.itemsize)
    return int(total)


def measure_layer(layer: nn.Module, inputs: LayerInputs, in_tower: bool, dtype: torch.dtype) -> LayerMemory:
    """Run `layer` on inputs without content; add up what autograd saves, each storage once, no parameter."""
    layer = layer.to(dtype)  # as autocast has the adapters
    # A layer of the vision tower takes part in the backward only where it holds an adapter, for nothing
    # before it is trained.
    in_backward = not in_tower or any(weight.requires_grad for weight in layer.parameters())
    hidden_states = torch.empty(inputs.shape, dtype=dtype, device="meta").requires_grad_(in_backward)
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

    with torch.autograd.graph.saved_tensors_hooks(record, lambda tensor: tensor):
        layer(hidden_states, **inputs.kwargs)
    return LayerMemory(
        input=hidden_states.nbytes if in_backward else 0,
        saved=sum(sizes),
        largest=max(sizes, default=0),
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
