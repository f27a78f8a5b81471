"""Training speed on a machine that is in use: threads that spin while they wait against ones that sleep.

    python tests/benchmarks/busy_machine.py    # about five minutes on two CPU cores

Each way of using the cores is a process of its own, for OpenMP reads its settings once; it trains the tiny
base as committed, first on a quiet machine, then beside an endless loop. The last line is JSON.
"""

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
sys.path += [str(Path(__file__).resolve().parents[2] / "stages"), str(Path(__file__).resolve().parents[1])]

SETTINGS = {
    "torch's own: a thread a core, waiting threads spin": {},
    "a thread a core, waiting threads sleep": {"OMP_WAIT_POLICY": "PASSIVE"},
    "one thread": {"OMP_NUM_THREADS": "1"},
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=4, help="timed optimizer steps, twice")
    parser.add_argument("--measure", action="store_true", help="train here and print images/s")
    options = parser.parse_args()
    if options.measure:
        print(images_per_second(options.steps))
        return
    figures = {}
    print(f"{'images/s':<52}{'quiet':>8}{'busy':>8}")
    for name, environment in SETTINGS.items():
        quiet = run(environment, options.steps)
        loop = multiprocessing.get_context("spawn").Process(target=spin, daemon=True)
        loop.start()
        busy = run(environment, options.steps)
        loop.kill()
        loop.join()
        print(f"{name:<52}{quiet:>8.1f}{busy:>8.1f}", flush=True)
        figures[name] = {"quiet": round(quiet, 2), "busy": round(busy, 2)}
    print(json.dumps(figures))


def run(environment: dict[str, str], steps: int) -> float:
    """Images a second of a process with that environment beside this one's own."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("OMP_")}
    command = [sys.executable, __file__, "--measure", "--steps", str(steps)]
    output = subprocess.run(
        command, env=inherited | environment, check=True, capture_output=True, text=True
    ).stdout
    return float(output.splitlines()[-1])


def spin() -> None:
    while True:
        time.perf_counter()


def images_per_second(steps: int) -> float:
    """Of the committed settings on prepared films; the better of two turns after one to warm up."""
    from transformers.utils import logging

    import paligemma_3b
    from benchmarks.recipes import AUTO, make_plans, make_settings, our_recipe, run_steps, write_films
    from explainmyxray.model.adapter import add_lora
    from explainmyxray.model.base import load_base, load_processor
    from explainmyxray.model.free_memory import free_memory
    from explainmyxray.training.batches import ReportDataset

    logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as folder:
        settings = make_settings(paligemma_3b.TINY, "fp32")
        processor = load_processor(settings.model)
        rows = write_films(Path(folder), processor, settings, 64)
        dataset = ReportDataset(rows, Path(folder) / "prepared", processor, settings.model.max_length)
        plan = make_plans(settings, dataset, free_memory())[AUTO]
        model = add_lora(load_base(settings.model, settings.quantization), settings.lora)
        recipe = our_recipe(dataset, processor, plan)
        turns = [run_steps(model, recipe, settings, steps).seconds_per_image for _ in range(3)]
    return 1 / min(turns[1:])


if __name__ == "__main__":
    main()
