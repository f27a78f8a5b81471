"""Tune the base model with QLoRA to write the reports of the training split.

    python stages/train_qlora.py

Reads data/splits, data/images and the base model; writes models/adapter (plain PEFT, and what its images looked like),
metrics/train.json and the training curves. A run that was cut off goes on from its last checkpoint under models/checkpoints.
"""

import os
import shutil
import time
from pathlib import Path

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")   # the loader's processes are the parallelism
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")          # one process, one GPU: two would double the batch

from transformers import set_seed  # noqa: E402
from transformers.utils import logging  # noqa: E402

from explainmyxray import familiar  # noqa: E402
from explainmyxray.errors import exit_on_user_error  # noqa: E402
from explainmyxray.model.adapter import add_lora, save_adapter, trainable  # noqa: E402
from explainmyxray.model.base import check_base, load_base, load_processor  # noqa: E402
from explainmyxray.model.batches import PROMPT, open_image  # noqa: E402
from explainmyxray.model.identity import run_identity  # noqa: E402
from explainmyxray.model.training import train  # noqa: E402
from explainmyxray.outputs import replacing, rounded, write_metrics  # noqa: E402
from explainmyxray.runtime import write_runtime  # noqa: E402
from explainmyxray.settings import Settings, load_settings  # noqa: E402
from explainmyxray.studies import REPORT_COLUMNS, read_table  # noqa: E402

SPLITS, IMAGES, ADAPTER = Path("data/splits"), Path("data/images"), Path("models/adapter")


def main() -> None:
    settings = load_settings()
    logging.set_verbosity_error()
    base = check_base(settings.model)
    tables = [SPLITS / f"{name}.csv" for name in ("train", "val")]
    rows = {table.stem: read_table(table, REPORT_COLUMNS) for table in tables}
    print(f"{len(rows['train'])} training and {len(rows['val'])} validation images, base {base.id} {base.revision or ''}", flush=True)

    set_seed(settings.train.seed)
    started = time.monotonic()
    processor = load_processor(base)
    model = add_lora(load_base(base, settings.quantization), settings.lora, base.revision)
    count, percent = trainable(model)
    print(f"LoRA trains {count:,} parameters, {percent:.4f} % of all", flush=True)

    images = [IMAGES / name for part in rows.values() for name in part["image"]]
    checkpoints = Path("models/checkpoints") / run_identity(settings, tables, images, str(base.revision))
    figures = train(model, processor, rows, IMAGES, settings, checkpoints, Path("metrics/curves"))
    figures |= {"trainable_parameters": count, "trainable_percent": percent}

    with replacing(ADAPTER) as folder:
        save_adapter(model, folder, card_facts(settings, base.revision, rows, figures))
        familiar.fit(*((open_image(IMAGES, name) for name in rows[part]["image"]) for part in ("train", "val"))).save(folder)
    write_metrics("metrics/train.json", figures)
    write_runtime("train_qlora", started, images=len(rows["train"]) * figures["epochs"])
    shutil.rmtree(checkpoints)
    print(f"best at step {figures['best_step']}: validation loss {figures['eval_loss']:.4f}; adapter in {ADAPTER}", flush=True)


def card_facts(settings: Settings, revision: str | None, rows: dict, figures: dict) -> dict:
    """What the model card says of this run."""
    lora, quantization = settings.lora, settings.quantization
    return rounded(figures) | {
        "base": settings.model.id, "revision": revision or "in this repository", "prompt": PROMPT, "seed": settings.train.seed,
        "train_images": len(rows["train"]), "val_images": len(rows["val"]), "train_patients": rows["train"]["patient"].nunique(),
        "source": ", ".join(sorted(set(rows["train"]["source"]))),
        "r": lora.r, "alpha": lora.alpha, "dropout": lora.dropout, "target_modules": ", ".join(lora.target_modules),
        "quantization": f"4 bits, {quantization.bnb_4bit_quant_type}" if quantization.load_in_4bit else "none",
    }


if __name__ == "__main__":
    exit_on_user_error(main)
