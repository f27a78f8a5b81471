"""Write a report for every test image, score it, and put baselines and a ceiling beside it.

    python stages/evaluate.py           # generate, then score
    python stages/evaluate.py --score   # score metrics/predictions.csv again, without the model

Reads models/adapter, data/splits and data/images; writes metrics/predictions.csv, metrics/eval.json and the pictures.
"""

import argparse
import os
import random
import sys
import time
from pathlib import Path

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
sys.path.append(
    sys.path.pop(0)
)  # this folder last: `import evaluate` means Hugging Face's library, not this script

import pandas as pd
from accelerate.utils import set_seed
from transformers.utils import logging

from explainmyxray.errors import UserError, exit_on_user_error
from explainmyxray.generation import generate, image_features
from explainmyxray.gpu import require_usable_gpu
from explainmyxray.model.adapter import load_adapter, tuned_base
from explainmyxray.model.base import check_base, load_base, load_processor
from explainmyxray.pictures.gallery import draw_gallery
from explainmyxray.pictures.plots import plot_findings, plot_systems
from explainmyxray.reports.templates import load_templates
from explainmyxray.reports.writer import render_report
from explainmyxray.runtime import write_runtime
from explainmyxray.scoring import baselines, evaluation
from explainmyxray.settings import Settings, load_settings
from explainmyxray.tables import REPORT_COLUMNS, read_table, split_labels, write_metrics, write_table

SPLITS, IMAGES, ADAPTER, METRICS = (
    Path("data/splits"),
    Path("data/images"),
    Path("models/adapter"),
    Path("metrics"),
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--score", action="store_true", help="score metrics/predictions.csv again, without the model"
    )
    settings, options = load_settings(), parser.parse_args()
    if not options.score:
        write_table(METRICS / "predictions.csv", predict(settings))
    predictions = read_table(METRICS / "predictions.csv", evaluation.COLUMNS)
    scored = evaluation.score(predictions, settings.seed, settings.evaluate.bootstrap_samples)
    write_metrics(METRICS / "eval.json", scored.metrics)
    print(summary(scored.metrics), flush=True)
    show(predictions, scored, settings)


def predict(settings: Settings) -> pd.DataFrame:
    """The test split with a report from the model and from each baseline: the columns of `evaluation.COLUMNS`."""
    require_usable_gpu()
    logging.set_verbosity_error()
    base = check_base(tuned_base(ADAPTER, settings.model))
    train, test = (read_table(SPLITS / f"{name}.csv", REPORT_COLUMNS) for name in ("train", "test"))
    set_seed(settings.seed)
    started = time.monotonic()
    processor = load_processor(base)
    model = load_adapter(load_base(base, settings.quantization), ADAPTER)
    predictions = test[[*evaluation.FACTS, "report"]].copy()
    predictions[evaluation.MODEL] = generate(model, processor, IMAGES, list(test["image"]), settings.evaluate)
    predictions["blind"] = predictions[evaluation.MODEL].to_numpy()[
        baselines.other_patients(test["patient"], settings.seed)
    ]
    with model.disable_adapter():
        predictions["untuned"] = generate(
            model, processor, IMAGES, list(test["image"]), settings.evaluate, "untuned"
        )
        seen = {
            name: image_features(
                model, processor, IMAGES, list(rows["image"]), settings.evaluate.batch_size
            ).numpy()
            for name, rows in (("train", train), ("test", test))
        }
    write_runtime("evaluate", started, images=2 * len(test))

    labels = train["labels"].map(split_labels)
    told = baselines.classifier(seen["train"], labels, seen["test"], settings.seed, train["patient"])
    predictions["majority"] = baselines.majority(train)
    predictions["nearest"] = train["report"].to_numpy()[baselines.nearest(seen["train"], seen["test"])]
    predictions["classifier"] = reports("classifier", told, test, settings)
    predictions["ceiling"] = reports("ceiling", test["labels"].map(split_labels), test, settings)
    return predictions[list(evaluation.COLUMNS)]


def reports(name: str, labels, test: pd.DataFrame, settings: Settings) -> list[str]:
    """Fresh reports from labels, worded independently of the reference reports."""
    templates = load_templates()
    rngs = (random.Random(f"{name}:{settings.seed}:{image}") for image in test["image"])
    return [
        render_report(each, templates, rng, settings.reports.pertinent_negatives)
        for each, rng in zip(labels, rngs)
    ]


def show(predictions: pd.DataFrame, scored: evaluation.Evaluation, settings: Settings) -> None:
    """The tables and pictures behind `dvc plots show`."""
    plots = METRICS / "plots"
    write_table(plots / "findings.csv", scored.findings.round(4))
    write_table(plots / "confusion.csv", scored.confusion)
    plot_findings(scored.findings, plots / "findings.png")
    plot_systems(scored.systems, plots / "baselines.png")
    try:
        draw_gallery(
            predictions,
            scored.predicted,
            scored.order,
            IMAGES,
            METRICS / "gallery.png",
            settings.evaluate.gallery,
        )
    except FileNotFoundError as error:
        raise UserError(
            f"{error.filename} is missing, which the gallery shows: run `dvc repro fetch`"
        ) from None


def summary(figures: dict) -> str:
    """The headline figures of the model and of what it is measured against."""
    rows = {"model": figures, **figures["baselines"]}
    lines = [f"{'':<11}{'BLEU':>7}{'ROUGE-L':>9}{'micro-F1':>10}{'macro-F1':>10}{'exact':>8}{'distinct':>10}"]
    for name, each in rows.items():
        f = each["findings"]
        lines.append(
            f"{name:<11}{each['bleu']:>7.2f}{each['rougeL']:>9.3f}{f['micro_f1']:>10.3f}{f['macro_f1']:>10.3f}"
            f"{f['exact_match']:>8.3f}{each['distinct_reports']:>10}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    exit_on_user_error(main)
