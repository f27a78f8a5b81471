"""4-bit weights decoded once, instead of at each product: the same numbers, for more memory.

On a CPU bitsandbytes decodes a layer's whole weight for a product, forward and backward, and forgets it. A
layer that holds its decoded weight computes the very same products.
"""

import math

import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit
from torch import nn
from torch.nn import functional as F

MAX_FUSED_ROWS = 64  # not measured: no GPU was at hand


class DecodedLinear4bit(Linear4bit):
    """A `Linear4bit` that holds its weight decoded, in the type of its products, beside the 4 bits."""

    decoded: torch.Tensor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # A GPU's kernel for few rows reads 4 bits a weight, where the decoded ones are 16.
        num_rows = x.numel() // x.shape[-1]
        if x.is_cuda and num_rows <= MAX_FUSED_ROWS and not torch.is_grad_enabled():
            return super().forward(x)
        # Types as in Linear4bit.forward: products in the decoded weight's type, the output in the input's.
        bias = None if self.bias is None else self.bias.to(self.decoded.dtype)
        return F.linear(x.to(self.decoded.dtype), self.decoded, bias).to(x.dtype)


def decode_weights(part: nn.Module) -> None:
    """Have every 4-bit layer in `part` hold its weight decoded."""
    for layer in four_bit_layers(part):
        if not isinstance(layer, DecodedLinear4bit):
            layer.decoded = frozen_weight(layer)
            # Not a new module: names, adapters and PEFT's merging stay as they are.
            layer.__class__ = DecodedLinear4bit


def forget_decoded_weights(part: nn.Module) -> None:
    """Have every 4-bit layer in `part` decode its weight at each product again."""
    for layer in four_bit_layers(part):
        if isinstance(layer, DecodedLinear4bit):
            layer.__class__ = Linear4bit
            del layer.decoded


def four_bit_layers(part: nn.Module) -> list[Linear4bit]:
    return [module for module in part.modules() if isinstance(module, Linear4bit)]


def decoded_size(layer: Linear4bit) -> int:
    """Bytes of the layer's weight, decoded."""
    state = layer.weight.quant_state
    return math.prod(state.shape) * (layer.compute_dtype or state.dtype).itemsize


def frozen_weight(layer: nn.Linear) -> torch.Tensor:
    """(out, in) the weight of a frozen linear layer as its products take it, decoded now if in 4 bits."""
    if isinstance(layer, DecodedLinear4bit):
        return layer.decoded
    if not isinstance(layer, Linear4bit):
        return layer.weight
    weight = layer.weight
    # Outside of inference mode, so that a backward can use it, too.
    with torch.inference_mode(False), torch.no_grad():
        decoded = dequantize_4bit(weight.data, weight.quant_state)
    return decoded if layer.compute_dtype is None else decoded.to(layer.compute_dtype)
