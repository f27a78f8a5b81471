"""What a training step needs of memory, counted before any weight is loaded: on the model's own layers, without their data.

What autograd keeps of a layer is what torch says it keeps, asked on the meta device, where tensors have a shape and no
content. To that come weights, optimizer and logits by arithmetic. Not counted: CUDA's own context (some 0.5 GiB) and
what the allocator loses between blocks (`SLACK`).
"""

from dataclasses import dataclass

import psutil
import torch
from torch import nn
from transformers import AttentionInterface, AutoConfig, PaliGemmaForConditionalGeneration
from transformers.modeling_layers import GradientCheckpointingLayer

from explainmyxray import settings
from explainmyxray.errors import UserError
from explainmyxray.model.adapter import add_lora
from explainmyxray.model.base import compute_dtype, hub_errors
from explainmyxray.training.loss import MAX_CHUNK_LOGITS

SLACK = 1.1
BLOCK, BLOCKS = (
    64,
    256,
)  # weights that share a constant in bitsandbytes, and constants that share one when quantised
GIB = 2**30
LOGIT = 12  # bytes of an entry of the logits at the worst moment: float32 logits, log-softmax, its gradient


@dataclass(frozen=True)
class Layer:
    """Bytes that one layer of the model keeps for its backward: its input where it is recomputed, else `saved`."""

    input: int
    saved: int
    largest: int  # of the tensors that are saved


@dataclass(frozen=True)
class Budget:
    """Bytes of a training step, by what they are for."""

    weights: int
    adapter: int
    logits: int
    workspace: int
    layers: tuple[Layer, ...]

    def peak(self, kept: int = 0) -> int:
        """The most that is held at once with the last `kept` layers not recomputed: their backward comes first and frees them."""
        recomputed, last = self.layers[: len(self.layers) - kept], self.layers[len(self.layers) - kept :]
        inputs, saved = sum(layer.input for layer in recomputed), sum(layer.saved for layer in last)
        again = max((layer.saved for layer in recomputed), default=0)
        backward = max(3 * layer.largest for layer in self.layers) + self.workspace
        return (
            self.weights + self.adapter + inputs + max(saved + max(self.logits, backward), again + backward)
        )

    def needed(self, checkpointing: bool | str) -> float:
        """The least that a step asks of a device, with or without `checkpointing`."""
        return SLACK * self.peak(1 if checkpointing else len(self.layers))

    def kept(self, checkpointing: bool | str, free: float) -> int:
        """How many layers, from the last, keep what their backward needs: all, one, or for `auto` as many as `free` bytes hold.

        The last layer's backward follows its forward at once: to enable_gradient_checkpointing it would win nothing.
        """
        if checkpointing == "auto":
            return max(
                (count for count in range(1, len(self.layers) + 1) if SLACK * self.peak(count) <= free),
                default=1,
            )
        return 1 if checkpointing else len(self.layers)


def plan_checkpointing(s: settings.Settings, before: int, report: int) -> int:
    """How many layers are not to be recomputed. Raises UserError where a step is too large for this device, with what would fit."""
    found, free = budget(s, before, report), free_memory()
    needed = found.needed(s.train.gradient_checkpointing)
    if needed > free:
        raise UserError(
            f"a training step needs about {needed / GIB:.1f} GiB and {free / GIB:.1f} are free: "
            f"{_what_fits(s, before, report, free)}"
        )
    kept = found.kept(s.train.gradient_checkpointing, free)
    print(
        f"a step needs about {SLACK * found.peak(kept) / GIB:.2f} of {free / GIB:.1f} GiB; "
        f"{len(found.layers) - kept} of {len(found.layers)} layers are recomputed",
        flush=True,
    )
    return kept


def enable_gradient_checkpointing(model, kept: int) -> None:
    """Gradient checkpointing for all layers of `model` but the last `kept`."""
    model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    model.get_base_model().disable_input_require_grads()  # or a frozen tower has a backward, for nothing
    layers = layers_of(model)
    for layer in layers[len(layers) - kept :]:
        layer.gradient_checkpointing = False


def free_memory() -> int:
    """Bytes that this process may still take: of its GPU, or of the machine's memory."""
    return torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else psutil.virtual_memory().available


def _what_fits(s: settings.Settings, before: int, report: int, free: int) -> str:
    four_bit = s.quantization.model_copy(update={"load_in_4bit": True})
    train, batch = (
        s.train.model_copy(update={"gradient_checkpointing": True}),
        s.train.per_device_train_batch_size,
    )
    while batch:
        smaller = s.model_copy(
            update={
                "quantization": four_bit,
                "train": train.model_copy(update={"per_device_train_batch_size": batch}),
            }
        )
        if (needed := budget(smaller, before, report).needed(True)) <= free:
            steps = s.train.gradient_accumulation_steps * s.train.per_device_train_batch_size // batch
            return (
                f"train.per_device_train_batch_size={batch}, train.gradient_accumulation_steps={steps}, "
                f"train.gradient_checkpointing=auto and quantization.load_in_4bit=true need {needed / GIB:.1f}"
            )
        batch //= 2
    return "no setting makes this model fit: take a larger GPU, or a smaller model.id"


def budget(s: settings.Settings, before: int, report: int) -> Budget:
    """What a step of `s` needs where the longest report has `report` tokens, after `before` tokens of image and prompt."""
    with hub_errors(s.model.id, revision=s.model.revision):
        config = AutoConfig.from_pretrained(s.model.id, revision=s.model.revision)
    dtype = compute_dtype(s.quantization)
    config._attn_implementation = "kept_by_sdpa"
    with torch.device("meta"):
        model = add_lora(PaliGemmaForConditionalGeneration(config).to(dtype).requires_grad_(False), s.lora)
    model.train()
    trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
    batch = s.train.per_device_train_batch_size
    return Budget(
        weights=weights(model, s.quantization),
        adapter=trained
        * (4 + 4 + (2 if "8bit" in s.train.optim else 8)),  # float32 weights, gradients, Adam's two moments
        logits=LOGIT * min(batch * report * config.text_config.vocab_size, MAX_CHUNK_LOGITS),
        workspace=max(
            linear.weight.numel() for linear in linears if linear is not model.get_output_embeddings()
        )
        * dtype.itemsize,
        layers=tuple(count_layer(layer, batch, before + report, config, dtype) for layer in layers_of(model)),
    )


def layers_of(model) -> list[nn.Module]:
    """The layers of the vision tower, then those of the language model."""
    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]


class KeptBySdpa(torch.autograd.Function):
    """What a memory-efficient attention kernel keeps: queries, keys, values and its output. The meta device has none."""

    @staticmethod
    def forward(ctx, query, key, value):
        out = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, out)
        return out


def kept_by_sdpa(module, query, key, value, attention_mask, **kwargs):
    groups = query.shape[1] // key.shape[1]
    key, value = (each.repeat_interleave(groups, 1) if groups > 1 else each for each in (key, value))
    return KeptBySdpa.apply(query, key, value).transpose(1, 2), None


AttentionInterface.register("kept_by_sdpa", kept_by_sdpa)


def weights(model, quantization: settings.Quantization) -> int:
    """Bytes of the frozen base: linear layers but the output layer in 4 bits, with their constants."""
    four_bit = set()
    if quantization.load_in_4bit:
        four_bit = {id(module.weight) for module in model.modules() if isinstance(module, nn.Linear)} - {
            id(model.get_output_embeddings().weight)
        }
    constant = 1 / BLOCK + 4 / (BLOCK * BLOCKS) if quantization.bnb_4bit_use_double_quant else 4 / BLOCK
    frozen = [
        weight for weight in model.parameters() if not weight.requires_grad
    ]  # each once, the tied ones too
    return int(
        sum(
            weight.numel() * (0.5 + constant if id(weight) in four_bit else weight.itemsize)
            for weight in frozen
        )
    )


def count_layer(layer: nn.Module, batch: int, tokens: int, config, dtype: torch.dtype) -> Layer:
    """Run `layer` on inputs without content and add up what autograd saves, each storage once and no parameter."""
    vision, text = config.vision_config, config.text_config
    if hasattr(layer, "layer_norm1"):  # of the vision tower
        hidden = torch.empty(
            batch,
            (vision.image_size // vision.patch_size) ** 2,
            vision.hidden_size,
            dtype=dtype,
            device="meta",
        )
        more, in_backward = (
            {"attention_mask": None},
            any(weight.requires_grad for weight in layer.parameters()),
        )
    else:
        hidden = torch.empty(batch, tokens, text.hidden_size, dtype=dtype, device="meta")
        turn = torch.empty(batch, tokens, text.head_dim, dtype=dtype, device="meta")
        mask = torch.empty(batch, 1, tokens, tokens, dtype=dtype, device="meta")
        more, in_backward = {"attention_mask": mask, "position_embeddings": (turn, turn)}, True
    layer = layer.to(dtype)  # as autocast has the adapters
    not_counted = [
        *layer.parameters(),
        *layer.buffers(),
        *(value for value in more.values() if torch.is_tensor(value)),
    ]
    storages = {tensor.untyped_storage()._cdata: tensor for tensor in not_counted}
    sizes = []

    def count(tensor: torch.Tensor) -> torch.Tensor:
        if storages.setdefault(tensor.untyped_storage()._cdata, tensor) is tensor:
            sizes.append(tensor.untyped_storage().nbytes())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        layer(hidden.requires_grad_(in_backward), **more)
    return Layer(hidden.nbytes if in_backward else 0, sum(sizes), max(sizes, default=0))
