"""What it would save to keep a frozen vision tower's features instead of computing them in each step.

    python tests/benchmarks/frozen_tower.py    # the tiny base on a CPU

LoRA is on the language model alone, and nothing augments the image, so that its features are the same in
every epoch. Times a micro-batch forward and backward with the tower, and with its output held. The last line
is JSON.
"""

import json
import sys
import time
from pathlib import Path

sys.path += [str(Path(__file__).resolve().parents[2] / "stages"), str(Path(__file__).resolve().parents[1])]

from PIL import Image

import paligemma_3b
from explainmyxray.errors import exit_on_user_error
from explainmyxray.model.adapter import add_lora
from explainmyxray.model.base import load_base, load_processor
from explainmyxray.model.families import family_of
from explainmyxray.settings import load_settings
from explainmyxray.training.loss import report_loss

ROOT = Path(__file__).resolve().parents[2]
ROUNDS, STEPS = 5, 10
REPORT = (
    "Findings: The heart is enlarged. There is a pleural effusion. Impression: Cardiomegaly and effusion."
)
LANGUAGE_MODEL = r".*language_model.*\.(q|k|v|o)_proj"


def main() -> None:
    settings = load_settings(ROOT / "params.yaml")
    base = settings.model.model_copy(update={"id": str(paligemma_3b.TINY)})
    lora = settings.lora.model_copy(update={"target_modules": LANGUAGE_MODEL})
    model = add_lora(load_base(base, settings.quantization), lora).train()
    images = [Image.new("L", (224, 224), 50 * shade) for shade in range(4)]
    batch = load_processor(base).training_batch([(image, REPORT) for image in images])

    # The tower's output as a step has it, in place of its forward.
    tower = family_of(model).vision_tower(model.get_base_model())
    computed = tower.forward
    cached = tower(batch["pixel_values"])
    ways = {"computed": computed, "cached": lambda *args, **kwargs: cached}

    # Ways take turns; the first round warms up.
    seconds = dict.fromkeys(ways, float("inf"))
    for turn in range(ROUNDS + 1):
        for name, forward in ways.items():
            tower.forward = forward
            started = time.perf_counter()
            for _ in range(STEPS):
                report_loss(model, batch).backward()
            if turn > 0:
                seconds[name] = min(seconds[name], time.perf_counter() - started)
    rates = {name: len(images) * STEPS / each for name, each in seconds.items()}
    for name, rate in rates.items():
        print(f"features {name:<9}{rate:>8.1f} images/s")
    print(json.dumps({"ratio": round(rates["cached"] / rates["computed"], 2)}))


if __name__ == "__main__":
    exit_on_user_error(main)
