"""4-bit weights are on a CPU what they are on a GPU: two faults of bitsandbytes with AVX-512, kept out.

Found in bitsandbytes 0.50.2:

1. Dequantisation takes the first constants of a row for the next ones where its length is no multiple of the
   block size of 64: half of the tiny base's vision tower, and the 4,304 columns of SigLIP's fc2.
2. With AVX512-BF16, the first inference packs all weights anew. Packed, they lose digits and have no
   backward: a validation would end the training.
"""

import math
from functools import cache

import torch
from bitsandbytes.nn import Linear4bit

KERNEL = "bitsandbytes::dequantize_4bit"
CPU = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)
LIBRARY = torch.library.Library("bitsandbytes", "IMPL")  # holds the registration for as long as it lives


def fix_cpu_kernels(model: torch.nn.Module) -> None:
    """Have the 4-bit layers of `model` dequantised exactly on a CPU, and never packed."""
    _dequantize_in_blocks()
    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False


@cache
def _dequantize_in_blocks() -> None:
    """Put a wrapper around the CPU kernel, once a process: it shows the kernel rows of one block each.

    A weight is stored as one sequence of blocks, whatever its shape, so that rows as long as a block decode
    to the same numbers and never meet the first fault. Where the last block is not full, the shape stays.
    """
    kernel = torch.library.get_kernel(KERNEL, "CPU")

    def dequantize(packed, absmax, blocksize, quant_type, shape, dtype):
        blocks, rest = divmod(math.prod(shape), blocksize)
        rows = shape if rest else (blocks, blocksize)
        return kernel.call_boxed(CPU, packed, absmax, blocksize, quant_type, rows, dtype).view(shape)

    LIBRARY.impl(KERNEL.split("::")[1], dequantize, "CPU", allow_override=True)
