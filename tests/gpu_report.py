"""What a GPU does with this repository, in under ten minutes:
memory, speed, fp16, a kill, generation; as one table.

    python tests/gpu_report.py    # or: make gpu-report; PaliGemma-3B's shape with random weights
    python tests/gpu_report.py --base google/paligemma-3b-pt-224    # its true weights, from the hub's cache
    python tests/gpu_report.py --shape tiny   # the tiny base; on a CPU this is the default, shortened

Prints the table and writes it to gpu_report.md and gpu_report.json. Each section has its share of the time;
one that fails says why in the table, and the others go on. Time and memory do not depend on the weights'
values. Whether fp16 stays finite does, so that random weights tell little about it.
"""

import argparse
import json
import os
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
sys.path.append(str(Path(__file__).resolve().parents[1] / "stages"))

import torch
from transformers.utils import logging

import paligemma_3b
from benchmarks import gpu_sections
from benchmarks.gpu_sections import FULL, SHORT, Bench, Row
from benchmarks.recipes import DTYPES
from explainmyxray.errors import UserError, exit_on_user_error
from explainmyxray.gpu import require_usable_gpu

MINUTES = 9.5
MIN_SECONDS = 5  # with less time left a section is not begun
GRACE = (
    0.9  # the share of a section's time after which it begins nothing new; what hangs is cut off at its end
)


@dataclass(frozen=True)
class Section:
    """A part of the report, with the most seconds that it may take."""

    name: str
    measure: Callable[[Bench, float], Iterator[Row]]
    seconds: float


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    on_gpu = torch.cuda.is_available()
    parser.add_argument("--shape", choices=["tiny", "3b"], default="3b" if on_gpu else "tiny")
    parser.add_argument("--base", help="a folder or a hub id, in place of a shape")
    parser.add_argument("--precision", choices=list(DTYPES), default="fp16" if on_gpu else "fp32")
    parser.add_argument("--minutes", type=float, default=MINUTES, help=f"for all of it (default: {MINUTES})")
    parser.add_argument("--folder", type=Path, default=Path(), help="of the two files (default: this folder)")
    options = parser.parse_args()
    require_usable_gpu()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.filterwarnings(
        "ignore", "This DataLoader will create"
    )  # the guide's four processes on two cores
    options.folder.mkdir(parents=True, exist_ok=True)
    base = options.base or (None if options.shape == "3b" else str(paligemma_3b.TINY))
    started = time.monotonic()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), base, options.precision, FULL if on_gpu else SHORT)
        try:
            for row in measure_sections(bench, started + 60 * options.minutes):
                rows.append(row)
                print(as_markdown_row(row), flush=True)
        finally:  # whatever ended it: what was measured is kept
            rows.append(Row("all", "this report", round(time.monotonic() - started), "s"))
            write_report(rows, options.folder)


def measure_sections(bench: Bench, deadline: float) -> Iterator[Row]:
    """The rows of all sections, as they come; none is begun or goes on after `deadline`."""
    two_gpus_seconds = 100 if torch.cuda.device_count() > 1 else 0
    sections = [
        Section("machine", gpu_sections.describe_machine, 30),
        Section("base", gpu_sections.prepare_base, 120),
        Section("training", gpu_sections.measure_training, 170),
        Section("generation", gpu_sections.measure_generation, 60),
        Section("finite", gpu_sections.measure_finiteness, 130),
        Section("runs", gpu_sections.measure_runs, float("inf")),
        Section("two GPUs", gpu_sections.measure_two_gpus, float("inf")),
    ]
    for section in sections:
        reserved = two_gpus_seconds if section.name == "runs" else 0
        seconds = min(section.seconds, deadline - reserved - time.monotonic())
        if seconds < MIN_SECONDS:
            yield Row(section.name, "not run", note="no time left")
            continue
        try:
            with time_limit(seconds):
                yield from section.measure(bench, time.monotonic() + GRACE * seconds)
        except UserError as error:
            yield Row(section.name, "failed", note=str(error))
        except Exception as error:  # whatever it is, the other sections go on
            first_line = str(error).strip().partition("\n")[0]
            yield Row(section.name, "failed", note=f"{type(error).__name__}: {first_line}")


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise TimeoutError in the block after so many seconds."""

    def stop(signum, frame):
        raise TimeoutError(f"cut off after {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def write_report(rows: list[Row], folder: Path) -> None:
    """The table as Markdown and as JSON."""
    lines = ["| | | measured | |", "|---|---|---|---|"]
    lines += [as_markdown_row(row) for row in rows]
    (folder / "gpu_report.md").write_text("\n".join(lines) + "\n")
    (folder / "gpu_report.json").write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")
    print(f"\nwritten to {folder / 'gpu_report.md'} and {folder / 'gpu_report.json'}", flush=True)


def as_markdown_row(row: Row) -> str:
    measured = f"{row.value} {row.unit}".strip()
    cells = (row.section, row.what, measured, row.note)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


if __name__ == "__main__":
    exit_on_user_error(main)
