"""A training step of this repository against the plain recipe, on the same model, data, batch and precision.

    python tests/benchmarks/training.py                                   # the tiny base on a CPU, minutes
    python tests/benchmarks/training.py --shape 3b --precision fp16    # a GPU; random weights, 6 GB of disk
    python tests/benchmarks/training.py --profile                         # and where the time goes

The plain recipe (`recipes.py`) opens films from their files; it is run on prepared images too. The recipes
take turns in one process. Speed and memory do not depend on the weights' values. The last line is JSON.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")
sys.path += [str(Path(__file__).resolve().parents[2] / "stages"), str(Path(__file__).resolve().parents[1])]

import torch
from torch.profiler import profile
from transformers import AutoConfig, AutoModelForImageTextToText
from transformers.utils import logging

import paligemma_3b
from benchmarks.recipes import (
    AUTO,
    DTYPES,
    FOUR_BIT,
    GUIDE,
    make_plans,
    make_settings,
    our_recipe,
    peak_of_step,
    plain_recipe,
    run_steps,
    write_films,
)
from benchmarks.trl_recipe import trl_recipe
from explainmyxray.model.adapter import add_lora
from explainmyxray.model.base import compute_dtype, device, load_base, load_processor
from explainmyxray.model.free_memory import free_memory
from explainmyxray.settings import Settings
from explainmyxray.training.batches import ReportDataset

NUM_FILMS = 64


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=["tiny", "3b"], default="tiny")
    parser.add_argument(
        "--precision", choices=list(DTYPES), default="fp16" if torch.cuda.is_available() else "fp32"
    )
    parser.add_argument("--steps", type=int, default=4, help="timed optimizer steps a round")
    parser.add_argument("--rounds", type=int, default=3, help="of all recipes, after one to warm up")
    parser.add_argument("--profile", action="store_true")
    options = parser.parse_args()
    logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as folder:
        run(Path(folder), options)


def run(folder: Path, options: argparse.Namespace) -> None:
    base = paligemma_3b.TINY
    if options.shape == "3b":
        dtype = getattr(torch, DTYPES[options.precision])
        base = paligemma_3b.write_random_base(folder / "base", dtype, device())
    settings = make_settings(base, options.precision)
    processor = load_processor(settings.model)
    rows = write_films(folder, processor, settings, NUM_FILMS)
    dataset = ReportDataset(rows, folder / "prepared", processor, settings.model.max_length)

    # As the stage does, before any weight is loaded.
    plans = make_plans(settings, dataset, free_memory())
    model = add_lora(load_base(settings.model, settings.quantization), settings.lora)
    recipes = {
        "plain, films": plain_recipe(folder, rows, processor),
        "plain, prepared": plain_recipe(folder, rows, processor, "prepared"),
    }
    peer = trl_recipe(folder, rows, processor)
    if peer is None:
        print("TRL is not installed (tests/benchmarks/trl_recipe.py): its row is left out")
    else:
        recipes["TRL, films"] = peer
    for name, plan in plans.items():
        recipes[name] = our_recipe(dataset, processor, plan)

    # The first round warms up.
    seconds = {name: float("inf") for name in recipes}
    for turn in range(options.rounds + 1):
        for name, recipe in recipes.items():
            measured = run_steps(model, recipe, settings, options.steps)
            if turn > 0:
                seconds[name] = min(seconds[name], measured.seconds_per_image)
    rates = {name: 1 / each for name, each in seconds.items()}
    peaks = {name: peak_of_step(model, recipe, settings) for name, recipe in recipes.items()}

    print(f"{'':<17}{'images/s':>9}{'ratio':>7}{'peak MiB':>10}")
    for name, rate in rates.items():
        print(f"{name:<17}{rate:>9.1f}{rate / rates['plain, films']:>7.2f}{peaks[name] / 2**20:>10.0f}")
    size = 8192 if torch.cuda.is_available() else 2048
    flops = count_operations(settings, dataset)
    speed = measure_throughput(compute_dtype(settings.quantization), size)
    print(
        f"arithmetic: {flops / 1e9:.2f} GFLOP an image, recomputation included; one product of matrices "
        "reaches "
        f"{speed / 1e9:.0f} GFLOP/s here, so at most {speed / flops:.0f} images/s"
    )
    for name, plan in plans.items():
        print(f"{name}: estimated peak {plan.peak / 2**20:.0f} MiB; {plan}")
    if options.profile:
        with profile() as profiler:
            run_steps(model, recipes[AUTO], settings, num_steps=1)
        table = profiler.key_averages().table(
            sort_by=f"self_{device().type}_time_total", row_limit=20, max_name_column_width=50
        )
        print(table)
    figures = {
        "ratio": round(rates[AUTO] / rates["plain, films"], 3),
        "ratio_prepared": round(rates[AUTO] / rates["plain, prepared"], 3),
        "ratio_four_bit": round(rates[FOUR_BIT] / rates["plain, films"], 3),
        "ratio_all_recomputed": round(rates[GUIDE] / rates["plain, films"], 3),
        "peak_gib": round(peaks[AUTO] / 2**30, 3),
        "peak_gib_all_recomputed": round(peaks[GUIDE] / 2**30, 3),
        "peak_gib_plain": round(peaks["plain, films"] / 2**30, 3),
        "estimated_gib": round(plans[AUTO].peak / 2**30, 3),
        "images_per_s": round(rates[AUTO], 2),
        "floor_images_per_s": round(speed / flops, 1),
        "shape": options.shape,
        "precision": options.precision,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
    }
    print(json.dumps(figures))


def count_operations(settings: Settings, dataset: ReportDataset) -> float:
    """Floating-point operations of an image's products of matrices, at the least that checkpointing allows.

    A frozen layer asks for one product forward, one when it is recomputed and one backward, each of 2
    operations a weight and token; attention for two products of tokens with tokens, those again, and four
    backward. Adapters are left out.
    """
    config = AutoConfig.from_pretrained(settings.model.id)
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    vision, text = config.vision_config, config.text_config
    report_length = max(dataset.report_lengths)
    num_patches = (vision.image_size // vision.patch_size) ** 2
    num_tokens = dataset.prompt_length + report_length

    frozen = count_linear_weights(model.model.vision_tower) * num_patches
    frozen += count_linear_weights(model.model.language_model) * num_tokens
    attention = vision.num_hidden_layers * num_patches**2 * vision.hidden_size
    attention += text.num_hidden_layers * num_tokens**2 * text.num_attention_heads * text.head_dim
    head = text.vocab_size * text.hidden_size * report_length  # forward and backward: it is never recomputed
    return 3 * 2 * frozen + 8 * 2 * attention + 2 * 2 * head


def count_linear_weights(part: torch.nn.Module) -> int:
    return sum(module.weight.numel() for module in part.modules() if isinstance(module, torch.nn.Linear))


def measure_throughput(dtype: torch.dtype, size: int) -> float:
    """Operations a second of a product of matrices of `size` rows and columns."""
    ones = torch.ones(size, size, dtype=dtype, device=device())
    seconds = []
    for _ in range(6):
        started = time.perf_counter()
        (ones @ ones)[0, 0].item()  # waits for a GPU
        seconds.append(time.perf_counter() - started)
    return 2 * size**3 / min(seconds)


if __name__ == "__main__":
    main()
