"""Images a second of a training step that several processes share, one a GPU.

    python tests/benchmarks/processes.py --processes 2                    # the tiny base
    python tests/benchmarks/processes.py --processes 2 --base FOLDER --precision fp16

A step stays one of 32 images, each process computing its share. The last line is JSON.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
sys.path += [str(Path(__file__).resolve().parents[2] / "stages"), str(Path(__file__).resolve().parents[1])]

import pandas as pd
import torch
from accelerate import PartialState
from transformers.utils import logging

import paligemma_3b
from benchmarks.recipes import AUTO, DTYPES, make_plans, make_settings, our_recipe, run_steps, write_films
from explainmyxray.errors import exit_on_user_error
from explainmyxray.model.adapter import add_lora
from explainmyxray.model.base import load_base, load_processor
from explainmyxray.model.free_memory import free_memory
from explainmyxray.training.batches import ReportDataset
from explainmyxray.training.processes import is_main_process, print_on_main_process, run_in_processes


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--base", default=str(paligemma_3b.TINY), help="a folder or a hub id")
    parser.add_argument(
        "--precision", choices=list(DTYPES), default="fp16" if torch.cuda.is_available() else "fp32"
    )
    parser.add_argument("--films", type=int, default=64)
    parser.add_argument("--steps", type=int, default=2, help="timed optimizer steps")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no step after them")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        settings = make_settings(options.base, options.precision)
        rows = write_films(Path(folder), load_processor(settings.model), settings, options.films)
        run_in_processes(partial(measure_share, Path(folder), rows, options), options.processes)


@print_on_main_process()
def measure_share(folder: Path, rows: pd.DataFrame, options: argparse.Namespace) -> None:
    """What each process does; the main process prints."""
    logging.set_verbosity_error()
    deadline = time.monotonic() + options.seconds
    state = PartialState(cpu=not torch.cuda.is_available())  # finds the other processes and this one's GPU
    settings = make_settings(options.base, options.precision)
    processor = load_processor(settings.model)
    dataset = ReportDataset(rows, folder / "prepared", processor, settings.model.max_length)
    plan = make_plans(settings, dataset, free_memory())[AUTO]
    model = add_lora(load_base(settings.model, settings.quantization), settings.lora)
    steps = run_steps(model, our_recipe(dataset, processor, plan), settings, options.steps, deadline)
    if is_main_process():
        figures = {
            "processes": options.processes,
            "images_per_s": round(1 / steps.seconds_per_image, 2),
            "peak_gib": round(steps.peak_bytes / 2**30, 3),
        }
        print(json.dumps(figures), flush=True)
    state.destroy_process_group()


if __name__ == "__main__":
    exit_on_user_error(main)
