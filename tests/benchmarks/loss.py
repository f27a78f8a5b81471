"""The loss of a micro-batch over PaliGemma's vocabulary: in chunks, all at once, and by torch's own function in chunks.

    python tests/benchmarks/loss.py    # the output layer alone, 4 reports of 124 tokens, random weights; 3 GB of memory

Time and memory do not depend on the weights' values. The ways run one after the other in one process; all give the
hidden states' gradient. The last line is JSON.
"""

import json
import sys
import time
from pathlib import Path

sys.path += [str(Path(__file__).resolve().parents[2] / "stages"), str(Path(__file__).resolve().parents[1])]

import torch
from torch.nn import functional as F
from transformers import PaliGemmaForConditionalGeneration

import paligemma_3b
from explainmyxray.model.base import device
from explainmyxray.training.loss import MAX_CHUNK_LOGITS, ChunkedCrossEntropy
from measure import peak

TOKENS, ROUNDS = 4 * 124, 3


def main() -> None:
    with torch.device("meta"):
        base = PaliGemmaForConditionalGeneration(paligemma_3b.shape())
    text, dtype = base.config.get_text_config(), torch.float16 if torch.cuda.is_available() else torch.float32
    base.lm_head = torch.nn.Linear(
        text.hidden_size, text.vocab_size, bias=False, dtype=dtype, device=device()
    ).requires_grad_(False)
    hidden_states = torch.randn(TOKENS, text.hidden_size, dtype=dtype, device=device()).requires_grad_()
    targets = torch.randint(text.vocab_size, (TOKENS,), device=device())
    same_chunks = torch.nn.LinearCrossEntropyOptions(
        batch_chunk_size=MAX_CHUNK_LOGITS // text.vocab_size, chunking_method=None
    )
    ways = {
        "all at once": lambda: F.cross_entropy(
            base.lm_head(hidden_states).float(), targets, reduction="sum"
        ).backward(),
        "in chunks": lambda: ChunkedCrossEntropy.apply(hidden_states, targets, base).backward(),
        "torch's own": lambda: F.linear_cross_entropy(
            hidden_states, base.lm_head.weight, targets, reduction="sum", options=same_chunks
        ).backward(),
    }
    seconds = {name: min(timed(way) for _ in range(ROUNDS)) for name, way in ways.items()}
    peaks = {name: most(way) / 2**30 for name, way in ways.items()}
    for name in ways:
        print(f"{name:<12}{seconds[name]:>7.3f} s {peaks[name]:>6.2f} GiB beside the weights")
    print(
        json.dumps(
            {
                "ratio": round(seconds["all at once"] / seconds["in chunks"], 3),
                "ratio_torch": round(seconds["all at once"] / seconds["torch's own"], 3),
                "gib": round(peaks["in chunks"], 3),
                "gib_torch": round(peaks["torch's own"], 3),
                "gib_at_once": round(peaks["all at once"], 3),
            }
        )
    )


def timed(way) -> float:
    started = time.perf_counter()
    way()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def most(way) -> int:
    """The most bytes that a way holds at once beside what was there."""
    if not torch.cuda.is_available():
        return peak(way)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    way()
    return torch.cuda.max_memory_allocated() - before


if __name__ == "__main__":
    main()
