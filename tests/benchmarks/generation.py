"""Reports a second: batched, as `evaluate` writes them, against one image at a time; and with the adapter merged.

    python tests/benchmarks/generation.py    # after `make repro`: it reads models/adapter and the test split

The three take turns on the same images. The last line is JSON.
"""

import json
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
ROOT = Path(__file__).resolve().parents[2]
os.chdir(ROOT)
sys.path.append(str(ROOT / "stages"))

from transformers.utils import logging  # noqa: E402

from explainmyxray.generation import generate  # noqa: E402
from explainmyxray.model.adapter import load_adapter  # noqa: E402
from explainmyxray.model.base import load_base, load_processor  # noqa: E402
from explainmyxray.settings import load_settings  # noqa: E402
from explainmyxray.tables import read_table  # noqa: E402

IMAGES, ROUNDS = Path("data/images"), 3


def main() -> None:
    logging.set_verbosity_error()
    settings = load_settings()
    names = list(read_table("data/splits/test.csv")["image"])[: 2 * settings.evaluate.batch_size]
    processor = load_processor(settings.model)
    model = load_adapter(load_base(settings.model, settings.quantization), "models/adapter")
    merged = load_adapter(
        load_base(settings.model, settings.quantization), "models/adapter"
    ).merge_and_unload()
    one = settings.evaluate.model_copy(update={"batch_size": 1})
    ways = {
        "one by one": (model, one),
        "batched": (model, settings.evaluate),
        "batched, merged": (merged, settings.evaluate),
    }
    seconds, texts = {name: [] for name in ways}, {}
    for _ in range(ROUNDS):
        for name, (which, how) in ways.items():
            started = time.perf_counter()
            texts[name] = generate(which, processor, IMAGES, names, how, name)
            seconds[name].append(time.perf_counter() - started)
    rates = {name: len(names) / min(each) for name, each in seconds.items()}
    same = {
        name: sum(text == other for text, other in zip(texts[name], texts["one by one"])) for name in ways
    }
    print(f"{'':<17}{'reports/s':>10}{'ratio':>7}{'same text as one by one':>25}")
    for name, rate in rates.items():
        print(f"{name:<17}{rate:>10.2f}{rate / rates['one by one']:>7.1f}{same[name]:>18} of {len(names)}")
    print(
        json.dumps(
            {
                "ratio": round(rates["batched"] / rates["one by one"], 2),
                "ratio_merged": round(rates["batched, merged"] / rates["one by one"], 2),
                "same_text": same["batched"],
                "same_text_merged": same["batched, merged"],
                "reports": len(names),
            }
        )
    )


if __name__ == "__main__":
    main()
