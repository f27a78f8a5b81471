"""What a run cost: times, throughput and memory, kept apart
from the metrics because no two runs agree on them.
"""

import json
import resource
import sys
import time
from pathlib import Path

from explainmyxray.tables import write_metrics

RUNTIME = Path("metrics/runtime.json")  # not in git


def write_runtime(stage: str, started: float, images: float, memory_plan: dict[str, float]) -> None:
    """Put seconds since `started` (of `time.monotonic`), images a second, peak memory and what memory was
    planned to be spent on for `stage` beside the others'.
    """
    seconds = time.monotonic() - started
    figures = json.loads(RUNTIME.read_text()) if RUNTIME.is_file() else {}
    figures[stage] = {
        "seconds": seconds,
        "images_per_second": images / seconds,
        "peak_ram_gib": _peak_ram(),
        **_peak_gpu(),
        "memory_plan": memory_plan,
    }
    write_metrics(RUNTIME, figures)


def _peak_ram() -> float:
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage counts kilobytes on Linux, bytes on macOS
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def _peak_gpu() -> dict[str, float]:
    import torch

    return {"peak_gpu_gib": torch.cuda.max_memory_allocated() / 2**30} if torch.cuda.is_available() else {}
