"""4-bit weights on a CPU are what they are on a GPU: two faults of bitsandbytes 0.50.2 on CPUs with AVX-512, and what keeps them out.

1. Decoding takes the first constants of a row for the next ones where its length is no multiple of the block of 64: half of the
   tiny base's vision tower, and the 4,304 columns of SigLIP's fc2. A weight in blocks is the same weight in rows of one block each.
2. With AVX512-BF16, the first inference packs all weights anew. Packed, they lose digits and have no backward, so that a
   validation would end the training.
"""

import math
from functools import cache

import torch
from bitsandbytes.nn import Linear4bit

KERNEL = "bitsandbytes::dequantize_4bit"
CPU = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)
LIBRARY = torch.library.Library("bitsandbytes", "IMPL")  # holds the registration for as long as it lives


def exact_on_cpu(model: torch.nn.Module) -> None:
    """Have the 4-bit layers of `model` decoded exactly on a CPU, and never packed."""
    _decode_in_blocks()
    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False


@cache
def _decode_in_blocks() -> None:
    kernel = torch.library.get_kernel(KERNEL, "CPU")

    def decode(packed, absmax, blocksize, quant_type, shape, dtype):
        blocks, rest = divmod(math.prod(shape), blocksize)
        rows = shape if rest else (blocks, blocksize)
        return kernel.call_boxed(CPU, packed, absmax, blocksize, quant_type, rows, dtype).view(shape)

    LIBRARY.impl(KERNEL.split("::")[1], decode, "CPU", allow_override=True)
