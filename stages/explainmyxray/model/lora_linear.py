"""A linear layer with LoRA in fewer operations, where a CPU computes in float32; elsewhere PEFT's own.

PEFT clones the layer's output, draws a random number for each input, and holds the masked input for the
backward. Here the same is computed as one function, whose backward is written out: the dropped positions
alone are drawn and held, and products are added in place.
"""

import math

import torch
from peft.tuners.lora import LoraLayer
from torch.nn import functional as F

from explainmyxray.model.decoded_weights import frozen_weight
from explainmyxray.model.float32_stream import has_float32_stream


def use_fused_lora(model: torch.nn.Module) -> None:
    """Have the LoRA layers of a PEFT `model` compute by `FusedLora` where they can."""
    for module in list(model.modules()):
        if isinstance(module, LoraLayer) and isinstance(module.get_base_layer(), torch.nn.Linear):
            kind = type(module)
            if not issubclass(kind, FusedLora):
                module.__class__ = type(f"Fused{kind.__name__}", (FusedLora, kind), {})


class FusedLora:
    """PEFT's LoRA over a frozen linear layer, its forward replaced where `LoraLinear` computes the same."""

    def forward(self, x: torch.Tensor, *args, **kwargs) -> torch.Tensor:
        adapters = [name for name in self.active_adapters if name in self.lora_A]
        base = self.get_base_layer()
        if has_float32_stream(base):
            # Its input may be beyond fp16's range, to which autocast would bring LoRA's small products.
            device_type = "cpu" if x.is_meta else x.device.type
            with torch.autocast(device_type, enabled=False):
                return super().forward(x, *args, **kwargs)
        fits = (
            len(adapters) == 1
            and not (args or kwargs or self.disable_adapters or self.merged or self.lora_variant)
            and x.dtype == torch.float32
            and x.device.type in ("cpu", "meta")
            and not torch.is_autocast_enabled("cpu")
            and not base.weight.requires_grad
        )
        if not fits:
            return super().forward(x, *args, **kwargs)
        (name,) = adapters
        dropout = self.lora_dropout[name]
        probability = dropout.p if self.training and isinstance(dropout, torch.nn.Dropout) else 0.0
        return LoraLinear.apply(
            x, base, self.lora_A[name].weight, self.lora_B[name].weight, self.scaling[name], probability
        )


class LoraLinear(torch.autograd.Function):
    """x W' + b + scaling / (1 - p) * dropout(x) A' B', with W and b frozen; gradients of x, A and B."""

    @staticmethod
    def forward(ctx, x, base, lora_a, lora_b, scaling, probability):
        rows = x.reshape(-1, x.shape[-1])
        output = F.linear(rows, frozen_weight(base), base.bias)
        dropped = draw_dropped(rows, probability)
        scale = scaling / (1 - probability)
        reduced = F.linear(drop(rows, dropped), lora_a)
        output.addmm_(reduced, lora_b.t(), alpha=scale)
        ctx.base, ctx.scale, ctx.shape = base, scale, x.shape
        ctx.save_for_backward(rows, lora_a, lora_b, reduced, dropped)
        return output.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx, gradient):
        rows, lora_a, lora_b, reduced, dropped = ctx.saved_tensors
        gradient = gradient.reshape(-1, gradient.shape[-1])
        of_reduced = (gradient @ lora_b).mul_(ctx.scale)
        of_b = (gradient.t() @ reduced).mul_(ctx.scale)
        of_a = of_reduced.t() @ drop(rows, dropped)
        of_x = None
        if ctx.needs_input_grad[0]:
            of_x = of_reduced @ lora_a
            if dropped is not None:
                of_x.view(-1).index_fill_(0, dropped, 0.0)
            of_x = of_x.addmm_(gradient, frozen_weight(ctx.base)).view(ctx.shape)
        return of_x, None, of_a, of_b, None, None


def draw_dropped(rows: torch.Tensor, probability: float) -> torch.Tensor | None:
    """Positions in the flattened `rows`, each dropped with `probability` independently of the others.

    Drawn by the gaps between them, which are distributed geometrically (Devroye 1986, chapter X.2): a
    random number a dropped position, where a mask takes one for every position.
    """
    if probability == 0:
        return None
    size = rows.numel()
    expected = size * probability
    if rows.is_meta:
        return torch.empty(round(expected), dtype=torch.long, device="meta")
    # Six standard deviations more than expected: hardly ever too few.
    count = math.ceil(expected + 6 * math.sqrt(expected) + 6)
    positions = torch.full((1,), -1)
    while positions[-1] < size:
        uniform = torch.rand(count)
        gaps = uniform.neg_().log1p_().mul_(1 / math.log1p(-probability)).long().add_(1)
        positions = torch.cat([positions, positions[-1] + gaps.cumsum(0)])
    return positions[1 : int(torch.searchsorted(positions, size))]


def drop(rows: torch.Tensor, dropped: torch.Tensor | None) -> torch.Tensor:
    """`rows` with zeros at the positions `dropped` of its flattened form."""
    if dropped is None:
        return rows
    copy = rows.clone(memory_format=torch.contiguous_format)
    copy.view(-1).index_fill_(0, dropped, 0.0)
    return copy
