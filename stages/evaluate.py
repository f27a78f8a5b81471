"""Write a report for every test image, score it, and put baselines and a ceiling beside it.

    python stages/evaluate.py           # generate, then score
    python stages/evaluate.py --score   # score metrics/predictions.csv again, without the model

Reads models/adapter, data/splits and data/images, for the pictures metrics/curves and metrics/labels.csv,
too; writes metrics/predictions.csv, metrics/samples.csv (reports of some test and validation images in both
decodings, and what sampled reports find there), metrics/known_words.csv (of the training reports),
metrics/eval.json, the few figures of it that compare commits to metrics/headline.json, and the pictures.
"""

import argparse
import os
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read once, when torch is loaded; docs/benchmarks.md
# This folder last: `import evaluate` means Hugging Face's library, not this script.
sys.path.append(sys.path.pop(0))

import numpy as np
import pandas as pd
from accelerate.utils import set_seed
from transformers.utils import logging

from explainmyxray.errors import UserError, exit_on_user_error
from explainmyxray.generation import consensus, generate, hold_decoded_for, image_features, sample
from explainmyxray.gpu import require_usable_gpu
from explainmyxray.model.adapter import load_adapter, tuned_base, weights_digest
from explainmyxray.model.base import check_base, load_base, load_processor
from explainmyxray.model.image_batches import forkable_processes
from explainmyxray.pictures.calibration_plots import plot_calibration
from explainmyxray.pictures.gallery import draw_gallery
from explainmyxray.pictures.plots import plot_findings, plot_systems
from explainmyxray.pictures.training_plots import plot_confusion, plot_curves, plot_labels
from explainmyxray.reports.templates import load_templates
from explainmyxray.reports.writer import render_report
from explainmyxray.runtime import write_runtime
from explainmyxray.scoring import baselines, evaluation, sampled_reports
from explainmyxray.scoring.malformed import vocabulary
from explainmyxray.settings import Settings, load_settings
from explainmyxray.tables import (
    ORIGINS,
    REPORT_COLUMNS,
    patient_or_image,
    read_table,
    split_labels,
    write_metrics,
    write_table,
)

SPLITS, IMAGES, ADAPTER = Path("data/splits"), Path("data/images"), Path("models/adapter")
METRICS = Path("metrics")
PREDICTIONS, SAMPLES = METRICS / "predictions.csv", METRICS / "samples.csv"
KNOWN_WORDS = METRICS / "known_words.csv"
CURVES, LABEL_COUNTS = METRICS / "curves/plots/metrics", METRICS / "labels.csv"
VALIDATION_IMAGES = 64  # at most, that tell which decoding is the better one


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--score", action="store_true", help="score metrics/predictions.csv again, without the model"
    )
    options = parser.parse_args()
    settings = load_settings()
    if not options.score:
        predictions, samples = predict(settings)
        write_table(PREDICTIONS, predictions)
        write_table(SAMPLES, samples)
        # Beside the predictions, so that they can be scored again in a clone that has no data.
        train = read_table(SPLITS / "train.csv", REPORT_COLUMNS)
        write_table(KNOWN_WORDS, pd.DataFrame({"word": vocabulary(train["report"])}))
    predictions = read_table(PREDICTIONS, evaluation.COLUMNS)
    known_words = read_table(KNOWN_WORDS, ("word",))["word"]
    scored = evaluation.score(predictions, known_words, settings.seed, settings.evaluate.bootstrap_samples)
    sampled = sampled_reports.score_samples(
        read_table(SAMPLES, sampled_reports.COLUMNS),
        predictions.set_index("image")[evaluation.MODEL],
        settings.seed,
        settings.evaluate.bootstrap_samples,
    )
    metrics = scored.metrics | sampled.metrics
    write_metrics(METRICS / "eval.json", metrics)
    write_metrics(METRICS / "headline.json", evaluation.headline(metrics))
    print(summary(metrics), flush=True)
    write_plots(predictions, scored, sampled, settings)


def predict(settings: Settings) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The columns `evaluation.COLUMNS`: the test split with a report from the model and each baseline; and
    `sampled_reports.COLUMNS`: a part of test and validation split in both decodings, with what was sampled.
    """
    require_usable_gpu()
    logging.set_verbosity_error()
    train = read_table(SPLITS / "train.csv", REPORT_COLUMNS)
    validation = read_table(SPLITS / "val.csv", REPORT_COLUMNS)
    test = read_table(SPLITS / "test.csv", REPORT_COLUMNS)
    train_images, test_images = list(train["image"]), list(test["image"])
    predictions = test[[*evaluation.IMAGE_COLUMNS, *ORIGINS, "report"]].copy()
    set_seed(settings.seed)
    started = time.monotonic()

    # 1) The tuned model's report of each image, and, as `blind`, its report of another patient's image.
    base = check_base(tuned_base(ADAPTER, settings.model))
    processor = load_processor(base, settings.data.image_size)
    model = load_adapter(load_base(base, settings.quantization), ADAPTER, processor.prompt)
    plan = hold_decoded_for(model, processor, settings.evaluate, forkable_processes())
    num_processes = plan.num_processes
    if settings.evaluate.decoding == "consensus":  # all are sampled for it
        of_test = decode_both(model, processor, "test", test, settings, num_processes)
        generated = list(of_test["consensus"])
    else:
        generated = generate(
            model, processor, IMAGES, test_images, settings.evaluate, num_processes=num_processes
        )
        some = choose_images(test, settings.evaluate.sampled_images, settings.seed)
        of_test = decode_both(model, processor, "test", some, settings, num_processes)
    predictions[evaluation.MODEL] = generated
    shown = baselines.other_patients(patient_or_image(test), settings.seed)
    predictions["blind"] = [generated[image] for image in shown]

    # 2) Both decodings on validation images, which may choose between them.
    some = choose_images(validation, VALIDATION_IMAGES, settings.seed)
    of_validation = decode_both(model, processor, "val", some, settings, num_processes)
    samples = pd.concat([of_test, of_validation], ignore_index=True)

    # 3) The base without adapter: its reports, and its image features for what needs no language model.
    with model.disable_adapter():
        predictions["untuned"] = generate(
            model, processor, IMAGES, test_images, settings.evaluate, "untuned", settings.seed, num_processes
        )
        features = image_features(
            model, processor, IMAGES, train_images + test_images, settings.evaluate.batch_size, num_processes
        )
        train_features, test_features = np.split(features.numpy(), [len(train)])
    write_runtime("evaluate", started, images=2 * len(test), memory_plan=plan.figures())

    # 4) Baselines without a language model, and the ceiling.
    train_labels = [split_labels(labels) for labels in train["labels"]]
    test_labels = [split_labels(labels) for labels in test["labels"]]
    classified = baselines.classifier(
        train_features, train_labels, test_features, settings.seed, patient_or_image(train)
    )
    similar = baselines.nearest(train_features, test_features)
    predictions["majority"] = baselines.majority(train)
    predictions["nearest"] = train["report"].to_numpy()[similar]
    predictions["classifier"] = render_reports("classifier", classified, test_images, settings)
    predictions["ceiling"] = render_reports("ceiling", test_labels, test_images, settings)
    return predictions[[*evaluation.COLUMNS, *ORIGINS]], samples[list(sampled_reports.COLUMNS)]


def choose_images(rows: pd.DataFrame, at_most: int, seed: int) -> pd.DataFrame:
    """That many rows, drawn once for a seed, in their order; all where there are no more."""
    return rows.sample(min(at_most, len(rows)), random_state=seed).sort_index()


def decode_both(
    model, processor, split: str, rows: pd.DataFrame, settings: Settings, num_processes: int
) -> pd.DataFrame:
    """The columns `sampled_reports.COLUMNS` of some rows of a split."""
    names = list(rows["image"])
    greedy = settings.evaluate.model_copy(update={"decoding": "greedy"})
    table = rows[["image", "source", "patient", "labels", "report"]].assign(split=split)
    table["greedy"] = generate(
        model, processor, IMAGES, names, greedy, f"greedy, {split}", num_processes=num_processes
    )
    sampled = sample(
        model,
        processor,
        IMAGES,
        names,
        settings.evaluate,
        f"{settings.evaluate.samples} samples each, {split}",
        settings.seed,
        num_processes,
    )
    table["consensus"] = [consensus(reports) for reports in sampled]
    table["sampled"] = [sampled_reports.join_samples(reports) for reports in sampled]
    return table.assign(adapter=weights_digest(ADAPTER))


def render_reports(
    system: str, findings: Sequence[frozenset[str]], images: Sequence[str], settings: Settings
) -> list[str]:
    """A fresh report for each image from its findings, worded independently of the reference reports."""
    templates = load_templates()
    reports = []
    for image, positive in zip(images, findings):
        rng = random.Random(f"{system}:{settings.seed}:{image}")
        reports.append(render_report(positive, templates, rng, settings.reports.pertinent_negatives))
    return reports


def write_plots(
    predictions: pd.DataFrame,
    scored: evaluation.Evaluation,
    sampled: sampled_reports.SampledEvaluation,
    settings: Settings,
) -> None:
    """The tables and pictures behind `dvc plots show`."""
    plots = METRICS / "plots"
    write_table(plots / "findings.csv", scored.findings.round(4))
    write_table(plots / "confusion.csv", scored.confusion)
    write_table(plots / "reliability.csv", sampled.reliability.round(4))
    write_table(plots / "coverage.csv", sampled.coverage.round(4))
    plot_calibration(sampled.reliability, sampled.coverage, plots / "calibration.png")
    plot_findings(scored.findings, plots / "findings.png")
    plot_systems(scored.systems, plots / "baselines.png")
    plot_confusion(scored.confusion, plots / "confusion.png")
    plot_curves(CURVES, plots / "curves.png")
    plot_labels(read_table(LABEL_COUNTS, ("split", "label", "count")), plots / "labels.png")
    try:
        draw_gallery(
            predictions,
            scored.predicted,
            scored.best_to_worst,
            IMAGES,
            METRICS / "gallery.png",
            settings.evaluate.gallery,
        )
    except FileNotFoundError as error:
        raise UserError(
            f"{error.filename} is missing, which the gallery shows: run `dvc repro fetch`"
        ) from None


def summary(metrics: dict) -> str:
    """The headline figures of the model and of what it is measured against; both decodings; calibration."""
    lines = [
        f"{'':<11}{'BLEU':>7}{'ROUGE-L':>9}{'micro-F1':>10}{'macro-F1':>10}{'exact':>8}"
        f"{'distinct':>10}{'malformed':>11}"
    ]
    for name, figures in {"model": metrics, **metrics["baselines"]}.items():
        findings = figures["findings"]
        bleu, rouge, malformed = "–", "–", "–"
        if "text_figures" not in figures:
            bleu, rouge = f"{figures['bleu']:.2f}", f"{figures['rougeL']:.3f}"
            malformed = str(figures["malformed_reports"]["any"])
        lines.append(
            f"{name:<11}{bleu:>7}{rouge:>9}{findings['micro_f1']:>10.3f}"
            f"{findings['macro_f1']:>10.3f}{findings['exact_match']:>8.3f}{figures['distinct_reports']:>10}"
            f"{malformed:>11}"
        )
    for source, figures in metrics["by_source"].items():
        lines.append(source_line(source, figures))
    references = metrics["references"]
    if references["real"]:
        lines.append(
            f"{references['real']} of {metrics['n']} references are real reports: classifier and ceiling,"
        )
        lines.append(
            f"which speak templates, have no figures of their text. F1 compares {references['f1_compares']}"
        )
    labeler = metrics["labeler"]
    lines.append(
        f"findings are what the labeler reads, whose own F1 is {labeler['doubt_as_absent']['f1']:.3f} on "
        f"{labeler['reports']} real reports,"
    )
    lines.append(f"{labeler['without_doubt']['f1']:.3f} of statements without doubt: docs/labeler.md")
    lines += [decodings_line(split, metrics["decodings"][split]) for split in ("test", "val")]
    calibration = metrics["calibration"]
    lines.append(
        f"calibration error of {calibration['findings']} shares: {calibration['ece']:.3f}, of true ones "
        f"{calibration['ece_by_chance']:.3f} by chance"
    )
    return "\n".join(lines)


def source_line(source: str, figures: dict) -> str:
    """Micro-F1 of each system on the films of one source."""
    of_systems = [f"{name} {figures[name]['micro_f1']:.3f}" for name in evaluation.SYSTEMS]
    return f"{figures['n']} images of {source}: micro-F1 {', '.join(of_systems)}"


def decodings_line(split: str, figures: dict) -> str:
    """Both decodings on the same images; the better one on validation images may become the default."""
    f1 = {name: figures[name]["findings"]["micro_f1"] for name in sampled_reports.DECODINGS}
    difference = figures["consensus_minus_greedy"]
    return (
        f"{figures['n']} images of {split}: micro-F1 greedy {f1['greedy']:.3f}, consensus "
        f"{f1['consensus']:.3f}, difference {difference['micro_f1']:+.3f} "
        f"({difference['low']:+.3f} to {difference['high']:+.3f})"
    )


if __name__ == "__main__":
    exit_on_user_error(main)
