"""The loss of a micro-batch over PaliGemma's vocabulary: in
chunks, all at once, and by torch's own function in chunks.

    python tests/benchmarks/loss.py    # the output layer alone, 4 reports of 124 tokens; 3 GB of memory

Time and memory do not depend on the weights' values. The ways run one after the
other in one process; all give the hidden states' gradient. The last line is JSON.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path += [str(Path(__file__).resolve().parents[2] / "stages"), str(Path(__file__).resolve().parents[1])]

import torch
from torch.nn import functional as F
from transformers import PaliGemmaForConditionalGeneration

import paligemma_3b
from explainmyxray.command import parse_no_arguments
from explainmyxray.model.base import device
from explainmyxray.training.loss import MAX_CHUNK_LOGITS, ChunkedCrossEntropy
from measure import peak

NUM_TOKENS = 4 * 124
ROUNDS = 3
AT_ONCE, CHUNKED, TORCH = "all at once", "in chunks", "torch's own"


def main() -> None:
    parse_no_arguments(__doc__)
    dtype = torch.float16 if torch.cuda.is_available() else torch.float32

    # Of the model only the output layer has data.
    with torch.device("meta"):
        base = PaliGemmaForConditionalGeneration(paligemma_3b.shape())
    text = base.config.get_text_config()
    head = torch.nn.Linear(text.hidden_size, text.vocab_size, bias=False, dtype=dtype, device=device())
    base.lm_head = head.requires_grad_(False)
    hidden_states = torch.randn(NUM_TOKENS, text.hidden_size, dtype=dtype, device=device()).requires_grad_()
    targets = torch.randint(text.vocab_size, (NUM_TOKENS,), device=device())
    same_chunks = torch.nn.LinearCrossEntropyOptions(
        batch_chunk_size=MAX_CHUNK_LOGITS // text.vocab_size, chunking_method=None
    )

    def at_once() -> None:
        F.cross_entropy(base.lm_head(hidden_states).float(), targets, reduction="sum").backward()

    def in_chunks() -> None:
        ChunkedCrossEntropy.apply(hidden_states, targets, base).backward()

    def by_torch() -> None:
        F.linear_cross_entropy(
            hidden_states, base.lm_head.weight, targets, reduction="sum", options=same_chunks
        ).backward()

    seconds, gib = {}, {}
    for name, way in {AT_ONCE: at_once, CHUNKED: in_chunks, TORCH: by_torch}.items():
        seconds[name] = min(measure_seconds(way) for _ in range(ROUNDS))
        gib[name] = measure_peak(way) / 2**30
        print(f"{name:<12}{seconds[name]:>7.3f} s {gib[name]:>6.2f} GiB beside the weights")
    figures = {
        "ratio": round(seconds[AT_ONCE] / seconds[CHUNKED], 3),
        "ratio_torch": round(seconds[AT_ONCE] / seconds[TORCH], 3),
        "gib": round(gib[CHUNKED], 3),
        "gib_torch": round(gib[TORCH], 3),
        "gib_at_once": round(gib[AT_ONCE], 3),
    }
    print(json.dumps(figures))


def measure_seconds(way: Callable[[], None]) -> float:
    started = time.perf_counter()
    way()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def measure_peak(way: Callable[[], None]) -> int:
    """The most bytes that a way holds at once beside what was there."""
    if not torch.cuda.is_available():
        return peak(way)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    way()
    return torch.cuda.max_memory_allocated() - before


if __name__ == "__main__":
    main()
