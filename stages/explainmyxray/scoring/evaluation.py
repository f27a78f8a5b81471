"""The whole of `metrics/eval.json` from `metrics/predictions.csv`: without model or image, at any time."""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache

import evaluate
import numpy as np
import pandas as pd

from explainmyxray.reports.findings import FINDINGS
from explainmyxray.reports.labeler import positive_findings
from explainmyxray.scoring import bleu, finding_scores
from explainmyxray.scoring.by_source import score_by_source
from explainmyxray.scoring.finding_scores import Findings
from explainmyxray.scoring.intervals import bootstrap_weights, confidence_interval, resample
from explainmyxray.scoring.malformed import count_malformed
from explainmyxray.scoring.references import (
    TEXT_FIGURES,
    describe_references,
    labeler_validity,
    reason_to_leave_out,
)
from explainmyxray.scoring.subgroups import subgroup_metrics
from explainmyxray.scoring.sufficient_statistics import (
    Statistics,
    metrics_from_statistics,
    select,
    sufficient_statistics,
    total,
)
from explainmyxray.tables import count_patients, patient_or_image, split_labels

MODEL = "generated"
BASELINES = ("majority", "nearest", "classifier", "untuned", "blind", "ceiling")
SYSTEMS = (MODEL, *BASELINES)
IMAGE_COLUMNS = ("image", "source", "patient", "labels", "view", "age_years", "sex")
COLUMNS = (*IMAGE_COLUMNS, "report", *SYSTEMS)  # of predictions.csv, all text
HEADLINE = ("bleu", "rougeL", "findings.micro_f1", "findings.macro_f1", "findings.exact_match")

Labeler = Callable[[str], Findings]


@dataclass(frozen=True)
class Evaluation:
    """`metrics` is eval.json; the rest is what the pictures and `dvc plots` show of the same figures.

    findings: finding, f1, low, high, support; a row a finding.
    systems: system, figure, value, low, high; a row a headline figure of the model and of each baseline, save
        those of a text that is left out.
    confusion: actual, predicted; a row a finding found, or written for another.
    predicted: findings read from the model's reports, a set a row of the predictions.
    best_to_worst: rows of the predictions from the best report to the worst.
    """

    metrics: dict
    findings: pd.DataFrame
    systems: pd.DataFrame
    confusion: pd.DataFrame
    predicted: list[Findings]
    best_to_worst: np.ndarray


def score(
    predictions: pd.DataFrame,
    known_words: Iterable[str],
    seed: int,
    bootstrap_samples: int,
    labeler: Labeler = positive_findings,
) -> Evaluation:
    """Score a table with the text `COLUMNS`.

    `known_words` are those of the training reports (`malformed.vocabulary`); `labeler` gives the findings
    that a text says are there.

    Raises ValueError where `labels` or `labeler` name what is none of the 14 findings.
    """
    # 1) What each report says, and what it adds to each figure. Each text is read once.
    true = [split_labels(labels) for labels in predictions["labels"]]
    labeler = cache(labeler)
    predicted = {}
    statistics = {}
    for system in SYSTEMS:
        predicted[system] = [labeler(text) for text in predictions[system]]
        statistics[system] = sufficient_statistics(
            predictions[system], predictions["report"], true, predicted[system]
        )
    left_out = {}
    for system in SYSTEMS:
        reason = reason_to_leave_out(system, predictions)
        if reason:
            left_out[system] = reason
    # 2) The same resamples of patients for every system.
    weights = bootstrap_weights(patient_or_image(predictions), bootstrap_samples, seed)
    by_system = []
    for system in SYSTEMS:
        rows = headline_rows(system, statistics[system], weights)
        if system in left_out:
            rows = rows[~rows["figure"].isin(TEXT_FIGURES)]
        by_system.append(rows)
    systems = pd.concat(by_system, ignore_index=True)
    # 3) The tables behind the pictures.
    confusion = finding_scores.confusion_pairs(true, predicted[MODEL])
    return Evaluation(
        metrics=_metrics(predictions, statistics, systems, left_out, weights, frozenset(known_words)),
        findings=_finding_rows(statistics[MODEL]["findings"], weights),
        systems=systems,
        confusion=pd.DataFrame(confusion, columns=["actual", "predicted"]),
        predicted=predicted[MODEL],
        best_to_worst=_best_to_worst(statistics[MODEL]),
    )


def headline(metrics: dict) -> dict:
    """The few figures of `metrics` that `dvc metrics` and `dvc exp show` compare on one screen.

    `greedy`, `consensus`, `untuned` and `blind` are micro-F1, too; `greedy` and `consensus` are of the
    images that reports were sampled of.
    """
    baselines, decodings = metrics["baselines"], metrics["decodings"]["test"]
    return {
        "bleu": metrics["bleu"],
        "micro_f1": metrics["findings"]["micro_f1"],
        "greedy": decodings["greedy"]["findings"]["micro_f1"],
        "consensus": decodings["consensus"]["findings"]["micro_f1"],
        "untuned": baselines["untuned"]["findings"]["micro_f1"],
        "blind": baselines["blind"]["findings"]["micro_f1"],
        "ece": metrics["calibration"]["ece"],
        "malformed": metrics["malformed_reports"]["any"],
    }


def _metrics(
    predictions: pd.DataFrame,
    statistics: dict[str, Statistics],
    systems: pd.DataFrame,
    left_out: dict[str, str],
    weights: np.ndarray,
    known_words: frozenset[str],
) -> dict:
    """eval.json; `left_out` says why some systems have no figures of their text."""
    of_model = statistics[MODEL]
    by_system = {}
    for system in SYSTEMS:
        texts = predictions[system]
        by_system[system] = {
            **_system_metrics(statistics[system], texts),
            "malformed_reports": count_malformed(texts, predictions["report"], known_words),
        }
    for system, reason in left_out.items():
        for name in (*TEXT_FIGURES, "malformed_reports"):
            del by_system[system][name]
        by_system[system] = {"text_figures": reason, **by_system[system]}
    figures = by_system[MODEL]
    # BLEU once more by the metric itself, which names its settings in a signature.
    metric = evaluate.load(bleu.__file__, keep_in_memory=True)
    texts, references = predictions[MODEL].tolist(), predictions["report"].tolist()
    direct = metric.compute(predictions=texts, references=references)
    figures["bleu"] = direct["score"]
    figures["findings"]["per_finding"] = finding_scores.per_finding(of_model["findings"].sum(axis=0))
    intervals = {}
    for row in systems[systems["system"] == MODEL].itertuples():
        intervals[row.figure] = {"low": row.low, "high": row.high}

    def score_subgroup(mask: np.ndarray) -> dict:
        return metrics_from_statistics(total(select(of_model, mask)))

    return {
        "n": len(predictions),
        "patients": count_patients(predictions),
        "references": describe_references(predictions),
        "labeler": labeler_validity(),
        **figures,
        "bleu_signature": direct["signature"],
        "ci95": nested(intervals),
        "baselines": {name: by_system[name] for name in BASELINES},
        "slices": subgroup_metrics(predictions, score_subgroup),
        "by_source": _by_source(predictions, statistics, left_out, weights),
    }


def _by_source(
    predictions: pd.DataFrame, statistics: dict[str, Statistics], left_out: Iterable[str], weights: np.ndarray
) -> dict:
    """`score_by_source`, without figures of a text that is left out."""
    metrics = score_by_source(predictions["source"], statistics, weights)
    for of_source in metrics.values():
        for system in left_out:
            of_source[system].pop("bleu")
    return metrics


def _system_metrics(statistics: Statistics, texts: pd.Series) -> dict:
    figures = metrics_from_statistics(total(statistics))
    return {
        **nested({name: float(value) for name, value in figures.items()}),
        "distinct_reports": texts.nunique(),
        "repetitive_reports": int(texts.map(_repeats_a_sentence).sum()),
    }


def nested(flat: dict) -> dict:
    """`{"findings.micro_f1": 1}` as `{"findings": {"micro_f1": 1}}`."""
    result = {}
    for name, value in flat.items():
        *sections, last = name.split(".")
        place = result
        for section in sections:
            place = place.setdefault(section, {})
        place[last] = value
    return result


def _repeats_a_sentence(text: str) -> bool:
    sentences = [sentence.strip().casefold() for sentence in re.split(r"[.!?\n]", text)]
    sentences = [sentence for sentence in sentences if sentence]
    return len(set(sentences)) < len(sentences)


def headline_rows(system: str, statistics: Statistics, weights: np.ndarray) -> pd.DataFrame:
    """A row a headline figure of a system, with its interval."""
    figures = metrics_from_statistics(total(statistics))
    resampled = metrics_from_statistics(resample(statistics, weights))
    rows = []
    for name in HEADLINE:
        interval = confidence_interval(resampled[name])
        rows.append({"system": system, "figure": name, "value": float(figures[name]), **interval})
    return pd.DataFrame(rows)


def _finding_rows(counts: np.ndarray, weights: np.ndarray) -> pd.DataFrame:
    """A row a finding with its F1, the interval and the support, from counts (n, 14, 3)."""
    figures = finding_scores.per_finding(counts.sum(axis=0))
    resampled_f1 = finding_scores.f1(np.tensordot(weights, counts.astype(float), axes=1))
    rows = []
    for column, name in enumerate(FINDINGS):
        interval = confidence_interval(resampled_f1[:, column])
        f1, support = figures[name]["f1"], figures[name]["support"]
        rows.append({"finding": name, "f1": f1, **interval, "support": support})
    return pd.DataFrame(rows)


def _best_to_worst(statistics: Statistics) -> np.ndarray:
    """Most agreement of the findings first.

    Of equals the one with more to find, then fewer errors, then the closer wording.
    """
    tp, fp, fn = statistics["findings"].sum(axis=1).T
    # Jaccard's index of the two sets of findings; 1 where both are empty.
    agreement = np.where(tp + fp + fn > 0, tp / np.maximum(tp + fp + fn, 1), 1.0)
    rouge_l = statistics["rouge"][:, -1]
    return np.lexsort([-rouge_l, fp + fn, -tp, -agreement])
