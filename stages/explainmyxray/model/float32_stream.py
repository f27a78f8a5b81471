"""The language model's residual stream in float32, products of matrices in fp16: where bfloat16 is missing.

Gemma 2, Gemma 3 and other models that were trained in bfloat16 have a residual stream beyond fp16's 65,504.
Here each layer adds to a float32 stream. A product's input is divided by a power of two for each row (a
token), which changes no digit, so that neither the input nor the product overflows; likewise for the
gradients of the backward pass.
"""

from functools import partial

import torch
from torch import nn


def keep_float32_stream(base) -> None:
    """Have the language model of `base`, with weights in fp16 or in 4 bits, add up its layers in float32.

    Bases that compute in another type need it not. Names, classes and weights of the layers stay as they are.
    """
    # 1) The stream begins at the embedding, and ends at the output layer.
    base.get_input_embeddings().register_forward_hook(lambda module, args, output: output.float())
    head = base.get_output_embeddings()
    head.register_forward_pre_hook(lambda module, args: (args[0].to(module.weight.dtype),))

    # 2) What lies between adds to it. Norms compute in float32 and return their input's type.
    for layer in base.get_decoder().modules():
        if isinstance(layer, nn.Linear) and layer is not head:
            layer.forward = partial(scaled_product, layer)


def has_float32_stream(layer: nn.Module) -> bool:
    """Whether a linear layer is one of `keep_float32_stream`'s."""
    return isinstance(vars(layer).get("forward"), partial)


def scaled_product(layer: nn.Linear, x: torch.Tensor) -> torch.Tensor:
    """(..., out) the layer's output in float32, for `x` (..., in) of any float32 size.

    Uses the layer's own forward, which decodes its weight if that is in 4 bits.
    """
    scales = RowScales()
    own_forward = type(layer).forward
    # A 4-bit layer casts to its compute type, any other is in fp16 itself.
    product = own_forward(layer, Divide.apply(x, scales)).to(torch.float16)
    if layer.bias is None:
        return Multiply.apply(product, scales)
    # The bias was added to the divided product: taken off, and added to the whole one.
    bias = layer.bias.float()
    return Multiply.apply(product - layer.bias.to(product.dtype), scales) + bias


class RowScales:
    """The powers of two of one product: of its input's rows, and of its gradient's."""

    forward: torch.Tensor
    backward: torch.Tensor


class Divide(torch.autograd.Function):
    """A product's input, each row divided to at most 1, in fp16."""

    @staticmethod
    def forward(ctx, x, scales):
        ctx.scales, ctx.dtype = scales, x.dtype
        scales.forward = power_of_two(x)
        return (x.float() / scales.forward).half()

    @staticmethod
    def backward(ctx, gradient):
        scale = ctx.scales.backward / ctx.scales.forward
        return (gradient.float() * scale).to(ctx.dtype), None


class Multiply(torch.autograd.Function):
    """A product, each row multiplied to its own size, in float32."""

    @staticmethod
    def forward(ctx, product, scales):
        ctx.scales = scales
        return product.float() * scales.forward

    @staticmethod
    def backward(ctx, gradient):
        # `gradient` times the forward scale is the product's gradient; `Divide` multiplies what is divided
        # here.
        scaled = gradient.float() * ctx.scales.forward
        ctx.scales.backward = power_of_two(scaled)
        return (scaled / ctx.scales.backward).half(), None


def power_of_two(rows: torch.Tensor) -> torch.Tensor:
    """(..., 1) for each row of `rows` (..., n) the power of two by which it is divided to at most 1."""
    largest = rows.detach().float().abs().amax(-1, keepdim=True)
    # Of a row of zeros, and of what is not finite, any will do.
    exponent = largest.clamp(2.0**-100, 2.0**100).log2().ceil()
    return torch.exp2(exponent)
