"""Tune the base model with QLoRA to write the reports of the training split.

    python stages/train_qlora.py

Reads data/splits, data/images and the base model; writes models/adapter (plain PEFT, a model card, and what
its images looked like), metrics/train.json and the training curves.

A run that was cut off goes on from its last checkpoint under models/checkpoints, or under the folder that the
environment variable EXPLAINMYXRAY_CHECKPOINTS names, which may lie on a disk that outlives the machine.
"""

import os
import shutil
import time
from pathlib import Path

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # the loader's processes are the parallelism
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read once, when torch is loaded; docs/benchmarks.md

import pandas as pd
import torch
from accelerate import PartialState
from accelerate.utils import set_seed
from transformers.utils import logging

from explainmyxray import out_of_distribution
from explainmyxray.command import parse_no_arguments
from explainmyxray.errors import exit_on_user_error
from explainmyxray.gpu import require_usable_gpu
from explainmyxray.model.adapter import add_lora, count_trainable, save_adapter
from explainmyxray.model.base import check_base, load_base, load_family, load_processor
from explainmyxray.model.inputs import open_image
from explainmyxray.model.tuned_on import save_tuned_on
from explainmyxray.model_card import write_model_card
from explainmyxray.outputs import replacing_folder
from explainmyxray.runtime import write_runtime
from explainmyxray.settings import Model, Settings, load_settings
from explainmyxray.tables import REPORT_COLUMNS, SOURCE, count_patients, read_table, write_metrics
from explainmyxray.training.checkpoints import checkpoints_folder
from explainmyxray.training.fingerprint import run_fingerprint
from explainmyxray.training.memory import enable_gradient_checkpointing, plan_checkpointing
from explainmyxray.training.processes import is_main_process, print_on_main_process, run_in_processes
from explainmyxray.training.sides import refuse_mirrored_sides
from explainmyxray.training.trainer import make_datasets, train

SPLITS, IMAGES, ADAPTER = Path("data/splits"), Path("data/images"), Path("models/adapter")


def main() -> None:
    parse_no_arguments(__doc__)
    run_in_processes(train_adapter, load_settings().train.num_processes)


@print_on_main_process()
def train_adapter() -> None:
    """What every process does; the main process writes."""
    settings = load_settings()
    require_usable_gpu()
    logging.set_verbosity_error()
    state = PartialState(cpu=not torch.cuda.is_available())  # finds the other processes and this one's GPU
    base = check_base(settings.model, settings.data.image_size)
    checkpoints = checkpoints_folder()
    tables = [SPLITS / f"{name}.csv" for name in ("train", "val")]
    rows = {table.stem: read_table(table, REPORT_COLUMNS) for table in tables}
    refuse_mirrored_sides(list(rows["train"]["report"]), settings.augment)
    print(
        f"{len(rows['train'])} training and {len(rows['val'])} validation images, "
        f"base {base.id} {base.revision or ''}",
        flush=True,
    )

    set_seed(settings.train.seed)
    started = time.monotonic()
    processor = load_processor(base, settings.data.image_size)
    training, validation = make_datasets(processor, rows, IMAGES, settings)
    num_stored = plan_checkpointing(
        settings.model_copy(update={"model": base}),
        training.prompt_length,
        min(max(training.report_lengths), training.max_report_length),
    )
    model = add_lora(load_base(base, settings.quantization), settings.lora, base.revision)
    enable_gradient_checkpointing(model, num_stored)
    num_trainable, percent = count_trainable(model)
    print(f"LoRA trains {num_trainable:,} parameters, {percent:.4f} % of all", flush=True)

    images = [IMAGES / name for table in rows.values() for name in table["image"]]
    checkpoints /= run_fingerprint(settings, tables, images, base.revision)
    figures = train(model, processor, training, validation, settings, checkpoints, Path("metrics/curves"))
    figures |= {"trainable_parameters": num_trainable, "trainable_percent": percent}
    if is_main_process():
        save(model, processor.prompt, settings, base, rows, figures)
        write_runtime("train_qlora", started, images=len(rows["train"]) * figures["epochs"])
        shutil.rmtree(checkpoints)
        print(
            f"best at step {figures['best_step']}: validation loss {figures['eval_loss']:.4f}; "
            f"adapter in {ADAPTER}",
            flush=True,
        )
    state.destroy_process_group()


def describe_reports(train: pd.DataFrame) -> str:
    """What the model card says of the training text."""
    real = int((train["report_origin"] == SOURCE).sum())
    if not real:
        return (
            "It was trained on synthetic reports, written from labels by templates: it knows the labels' findings and "
            "nothing else, and it names no side, size, severity or cause."
        )
    return (
        f"It was trained on {real} real reports and {len(train) - real} synthetic ones: it writes what such reports say, "
        "also of sides, sizes, changes and causes, of which no figure here measures whether they are right."
    )


def save(model, prompt: str, settings: Settings, base: Model, rows: dict, figures: dict) -> None:
    """The adapter with its card and what its images looked like, and the figures."""
    family = load_family(base)
    facts = {
        **figures,
        "revision": base.revision or "in this repository",
        "family": family.name,
        "model_class": family.model_class.__name__,
        "prompt": prompt,
        "reports": describe_reports(rows["train"]),
        "source": ", ".join(sorted(set(rows["train"]["source"]))),
        "train_images": len(rows["train"]),
        "train_patients": count_patients(rows["train"]),
        "val_images": len(rows["val"]),
    }
    training_images = (open_image(IMAGES, name) for name in rows["train"]["image"])
    validation_images = (open_image(IMAGES, name) for name in rows["val"]["image"])
    with replacing_folder(ADAPTER) as folder:
        save_adapter(model, folder)
        save_tuned_on(folder, prompt, rows["train"]["source"])
        write_model_card(folder, settings, facts)
        out_of_distribution.fit(training_images, validation_images).save(folder)
    write_metrics("metrics/train.json", figures)


if __name__ == "__main__":
    exit_on_user_error(main)
