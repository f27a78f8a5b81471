"""Tune the base model with QLoRA to write the reports of the training split.

    python stages/train_qlora.py

Reads data/splits, data/images and the base model; writes models/adapter (plain PEFT, and what its images looked like),
metrics/train.json and the training curves. A run that was cut off goes on from its last checkpoint under models/checkpoints.
"""

import os
import shutil
import time
from pathlib import Path

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # the loader's processes are the parallelism

import torch
from accelerate import PartialState
from accelerate.utils import set_seed
from transformers.utils import logging

from explainmyxray import out_of_distribution
from explainmyxray.errors import exit_on_user_error
from explainmyxray.gpu import require_usable_gpu
from explainmyxray.model.adapter import add_lora, save_adapter, trainable
from explainmyxray.model.base import check_base, load_base, load_processor
from explainmyxray.model.inputs import PROMPT, open_image
from explainmyxray.outputs import replacing
from explainmyxray.runtime import write_runtime
from explainmyxray.settings import Settings, load_settings
from explainmyxray.tables import REPORT_COLUMNS, read_table, rounded, write_metrics
from explainmyxray.training.fingerprint import run_fingerprint
from explainmyxray.training.memory import enable_gradient_checkpointing, plan_checkpointing
from explainmyxray.training.processes import is_first, quiet_but_first, run_in_processes
from explainmyxray.training.trainer import datasets, train

SPLITS, IMAGES, ADAPTER = Path("data/splits"), Path("data/images"), Path("models/adapter")


def main() -> None:
    run_in_processes(train_adapter, load_settings().train.num_processes)


@quiet_but_first()
def train_adapter() -> None:
    """What every process does; the first one writes."""
    settings = load_settings()
    require_usable_gpu()
    logging.set_verbosity_error()
    state = PartialState(cpu=not torch.cuda.is_available())  # finds the other processes and this one's GPU
    base = check_base(settings.model)
    tables = [SPLITS / f"{name}.csv" for name in ("train", "val")]
    rows = {table.stem: read_table(table, REPORT_COLUMNS) for table in tables}
    print(
        f"{len(rows['train'])} training and {len(rows['val'])} validation images, base {base.id} {base.revision or ''}",
        flush=True,
    )

    set_seed(settings.train.seed)
    started = time.monotonic()
    processor = load_processor(base)
    training, validation = datasets(processor, rows, IMAGES, settings)
    kept = plan_checkpointing(
        settings.model_copy(update={"model": base}), training.before, min(max(training.tokens), training.room)
    )
    model = add_lora(load_base(base, settings.quantization), settings.lora, base.revision)
    enable_gradient_checkpointing(model, kept)
    count, percent = trainable(model)
    print(f"LoRA trains {count:,} parameters, {percent:.4f} % of all", flush=True)

    images = [IMAGES / name for part in rows.values() for name in part["image"]]
    checkpoints = Path("models/checkpoints") / run_fingerprint(settings, tables, images, str(base.revision))
    figures = train(model, processor, training, validation, settings, checkpoints, Path("metrics/curves"))
    figures |= {"trainable_parameters": count, "trainable_percent": percent}
    if is_first():
        save(model, settings, base.revision, rows, figures)
        write_runtime("train_qlora", started, images=len(rows["train"]) * figures["epochs"])
        shutil.rmtree(checkpoints)
        print(
            f"best at step {figures['best_step']}: validation loss {figures['eval_loss']:.4f}; adapter in {ADAPTER}",
            flush=True,
        )
    state.destroy_process_group()


def save(model, settings: Settings, revision: str | None, rows: dict, figures: dict) -> None:
    """The adapter with its card and what its images looked like, and the figures."""
    with replacing(ADAPTER) as folder:
        save_adapter(model, folder, card_facts(settings, revision, rows, figures))
        out_of_distribution.fit(
            *((open_image(IMAGES, name) for name in rows[part]["image"]) for part in ("train", "val"))
        ).save(folder)
    write_metrics("metrics/train.json", figures)


def card_facts(settings: Settings, revision: str | None, rows: dict, figures: dict) -> dict:
    """What the model card says of this run."""
    lora, quantization = settings.lora, settings.quantization
    targets = lora.target_modules if isinstance(lora.target_modules, str) else ", ".join(lora.target_modules)
    return rounded(figures) | {
        "base": settings.model.id,
        "revision": revision or "in this repository",
        "prompt": PROMPT,
        "seed": settings.train.seed,
        "train_images": len(rows["train"]),
        "val_images": len(rows["val"]),
        "train_patients": rows["train"]["patient"].nunique(),
        "source": ", ".join(sorted(set(rows["train"]["source"]))),
        "r": lora.r,
        "alpha": lora.alpha,
        "dropout": lora.dropout,
        "target_modules": targets,
        "quantization": f"4 bits, {quantization.bnb_4bit_quant_type}"
        if quantization.load_in_4bit
        else "none",
    }


if __name__ == "__main__":
    exit_on_user_error(main)
