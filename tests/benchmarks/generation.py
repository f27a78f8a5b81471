"""Reports a second: batched, against one image at a time; in
several processes, as `evaluate` writes them on a CPU; with
weights that stay in 4 bits; and with the adapter merged.

    python tests/benchmarks/generation.py    # after `make repro`: it reads models/adapter and the test split
    python tests/benchmarks/generation.py --decoding consensus    # an image is a batch of 16 samples

All take turns on the same images. The last line is JSON.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the stages do
sys.path.append(str(Path(__file__).resolve().parents[2] / "stages"))

from transformers.utils import logging

from explainmyxray.errors import exit_on_user_error
from explainmyxray.generation import generate, hold_decoded_for
from explainmyxray.model.adapter import load_adapter
from explainmyxray.model.base import load_base, load_processor
from explainmyxray.model.image_batches import forkable_processes
from explainmyxray.settings import load_settings
from explainmyxray.tables import read_table

ROOT = Path(__file__).resolve().parents[2]
IMAGES, ADAPTER = ROOT / "data/images", ROOT / "models/adapter"
ROUNDS = 3
ONE_BY_ONE, BATCHED, PROCESSES = "one by one", "batched", "batched, processes"
FOUR_BIT, MERGED = "batched, 4 bits", "batched, merged"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--decoding", choices=["greedy", "beam", "consensus"], default="greedy")
    options = parser.parse_args()
    os.chdir(ROOT)
    logging.set_verbosity_error()
    settings = load_settings()
    evaluate = settings.evaluate.model_copy(update={"decoding": options.decoding})
    names = list(read_table("data/splits/test.csv")["image"])[: 2 * evaluate.batch_size]
    processor = load_processor(settings.model)
    model = load_adapter(load_base(settings.model, settings.quantization), ADAPTER, processor.prompt)
    hold_decoded_for(model, processor, settings.evaluate)
    four_bit = load_adapter(load_base(settings.model, settings.quantization), ADAPTER, processor.prompt)
    merged = load_adapter(
        load_base(settings.model, settings.quantization), ADAPTER, processor.prompt
    ).merge_and_unload()
    ways = {
        ONE_BY_ONE: (model, evaluate.model_copy(update={"batch_size": 1}), 1),
        BATCHED: (model, evaluate, 1),
        PROCESSES: (model, evaluate, forkable_processes()),
        FOUR_BIT: (four_bit, evaluate, 1),
        MERGED: (merged, evaluate, 1),
    }

    seconds = {name: float("inf") for name in ways}
    texts = {}
    for _ in range(ROUNDS):
        for name, (way_model, generation, num_processes) in ways.items():
            started = time.perf_counter()
            texts[name] = generate(
                way_model, processor, IMAGES, names, generation, name, num_processes=num_processes
            )
            seconds[name] = min(seconds[name], time.perf_counter() - started)

    print(f"{'':<20}{'reports/s':>10}{'ratio':>7}{'same text as one by one':>25}")
    ratios, num_same = {}, {}
    for name in ways:
        ratios[name] = seconds[ONE_BY_ONE] / seconds[name]
        num_same[name] = sum(text == single for text, single in zip(texts[name], texts[ONE_BY_ONE]))
        rate = len(names) / seconds[name]
        print(f"{name:<20}{rate:>10.2f}{ratios[name]:>7.1f}{num_same[name]:>18} of {len(names)}")
    figures = {
        "ratio": round(ratios[BATCHED], 2),
        "ratio_decoded": round(seconds[FOUR_BIT] / seconds[BATCHED], 2),
        "ratio_processes": round(seconds[BATCHED] / seconds[PROCESSES], 2),
        "same_text_processes": num_same[PROCESSES],
        "same_text_four_bit": num_same[FOUR_BIT],
        "ratio_merged": round(ratios[MERGED], 2),
        "same_text": num_same[BATCHED],
        "same_text_merged": num_same[MERGED],
        "reports": len(names),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    exit_on_user_error(main)
