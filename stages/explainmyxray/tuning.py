"""The tuning of the stage `train_qlora`, as each of its processes runs it."""

import shutil
import time
from pathlib import Path

import pandas as pd
import torch
from accelerate import PartialState
from accelerate.utils import set_seed
from transformers.utils import logging

from explainmyxray import out_of_distribution
from explainmyxray.generation import GREEDY, generate_texts
from explainmyxray.model.adapter import add_lora, count_trainable, save_adapter, trainable_by_part
from explainmyxray.model.base import check_base, load_base, load_family, load_processor
from explainmyxray.model.families.family import ReportProcessor
from explainmyxray.model.inputs import open_image
from explainmyxray.model.shared_prompt import SharedPromptDecoding
from explainmyxray.model.tuned_on import save_tuned_on
from explainmyxray.model_card import write_model_card
from explainmyxray.outputs import replacing_folder
from explainmyxray.reports.labeler import positive_findings
from explainmyxray.runtime import write_runtime
from explainmyxray.scoring.finding_scores import Findings, micro_f1, outcome_counts
from explainmyxray.settings import Model, Settings, Train, load_settings
from explainmyxray.tables import (
    REPORT_COLUMNS,
    SOURCE,
    count_patients,
    read_table,
    split_labels,
    write_metrics,
)
from explainmyxray.training.checkpoints import checkpoints_folder
from explainmyxray.training.fingerprint import run_fingerprint
from explainmyxray.training.memory_plan import apply_plan, plan_memory
from explainmyxray.training.processes import is_main_process, print_on_main_process
from explainmyxray.training.report_validation import ReportValidation
from explainmyxray.training.sides import refuse_mirrored_sides
from explainmyxray.training.trainer import make_datasets, train

SPLITS, IMAGES, ADAPTER = Path("data/splits"), Path("data/images"), Path("models/adapter")


@print_on_main_process()
def tune() -> None:
    """Write models/adapter, metrics/train.json and the training curves; the main process writes."""
    settings = load_settings()
    logging.set_verbosity_error()
    if not is_main_process():
        logging.disable_progress_bar()
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
    longest_report = min(max(training.report_lengths), training.max_report_length)
    plan = plan_memory(settings.model_copy(update={"model": base}), training.prompt_length, longest_report)
    state.wait_for_everyone()  # each has seen what is free before one of them takes its part
    model = add_lora(load_base(base, settings.quantization), settings.lora, base.revision)
    apply_plan(model, plan)
    num_trainable, percent = count_trainable(model)
    by_part = trainable_by_part(model)
    parts = ", ".join(f"{number:,} in {part}" for part, number in by_part.items() if number)
    print(f"LoRA trains {num_trainable:,} parameters, {percent:.4f} % of all: {parts}", flush=True)

    images = [IMAGES / name for name in pd.concat(rows.values())["image"]]
    checkpoints /= run_fingerprint(settings, tables, images, base.revision)
    report_validation = make_report_validation(processor, rows, settings.train, max_new_tokens=longest_report)
    figures = train(
        model,
        processor,
        training,
        validation,
        settings,
        checkpoints,
        Path("metrics/curves"),
        report_validation,
    )
    figures |= {"trainable_parameters": num_trainable, "trainable_percent": percent, "trainable": by_part}
    if is_main_process():
        save(model, processor, settings, base, rows, figures)
        num_images = len(rows["train"]) * figures["epochs"]
        write_runtime("train_qlora", started, num_images, plan.figures())
        shutil.rmtree(checkpoints)
        print(
            f"best at step {figures['best_step']}: validation loss {figures['eval_loss']:.4f}; "
            f"adapter in {ADAPTER}",
            flush=True,
        )
        if figures.get("wording_alone"):
            print(
                "WARNING: the run learnt wording alone: its validation loss fell, but greedy reports name no "
                f"more findings (F1 {figures['findings_f1']:.3f}) than one report for all images "
                f"({figures['majority_f1']:.3f}): try more steps or more films, and see in metrics/eval.json "
                "what evaluate.decoding=consensus finds",
                flush=True,
            )
    state.destroy_process_group()


def describe_reports(train: pd.DataFrame) -> str:
    """What the model card says of the training text."""
    real = int((train["report_origin"] == SOURCE).sum())
    if not real:
        return (
            "It was trained on synthetic reports, written from labels by templates: it knows the labels' "
            "findings and nothing else, and it names no side, size, severity or cause."
        )
    return (
        f"It was trained on {real} real reports and {len(train) - real} synthetic ones: it writes what such "
        "reports say, also of sides, sizes, changes and causes, of which no figure here measures whether "
        "they are right."
    )


def make_report_validation(
    processor: ReportProcessor, rows: dict[str, pd.DataFrame], train: Train, max_new_tokens: int
) -> ReportValidation | None:
    """Findings F1 on `train.findings_f1_images` validation images, drawn once for a seed; None for 0."""
    if train.findings_f1_images == 0:
        return None
    count = min(train.findings_f1_images, len(rows["val"]))
    some = rows["val"].sample(count, random_state=train.seed)
    true = [split_labels(labels) for labels in some["labels"]]
    commonest = rows["train"]["labels"].mode()[0]  # of equally common ones the first, as the baseline has it

    def write(model, names: list[str]) -> list[str]:
        reports = []
        size = 2 * train.per_device_train_batch_size  # as for the validation loss
        for start in range(0, len(names), size):
            batch = [open_image(IMAGES, name) for name in names[start : start + size]]
            reports += generate_texts(
                model,
                processor,
                batch,
                max_new_tokens=max_new_tokens,
                num_beams=1,
                custom_generate=SharedPromptDecoding(),
                **GREEDY,
            )
        return reports

    def f1(predicted: list[Findings]) -> float:
        return float(micro_f1(outcome_counts(true, predicted).sum(axis=0)))

    def reports_f1(reports: list[str]) -> float:
        return f1([positive_findings(report) for report in reports])

    majority_f1 = f1([split_labels(commonest)] * count)
    return ReportValidation(tuple(some["image"]), write, reports_f1, majority_f1)


def save(
    model, processor: ReportProcessor, settings: Settings, base: Model, rows: dict, figures: dict
) -> None:
    """The adapter with its card and what its images looked like, and the figures."""
    family = load_family(base)
    facts = {
        **figures,
        "revision": base.revision or "in this repository",
        "family": family.name,
        "model_class": family.model_class.__name__,
        "prompt": processor.prompt,
        "inputs": processor.example,
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
        save_tuned_on(folder, processor.prompt, rows["train"]["source"])
        write_model_card(folder, settings, facts)
        out_of_distribution.fit(training_images, validation_images).save(folder)
    write_metrics("metrics/train.json", figures)
