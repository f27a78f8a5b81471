"""The whole of `metrics/eval.json` from `metrics/predictions.csv`: no model, no image, the same again at any time."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import evaluate
import numpy as np
import pandas as pd

from explainmyxray.reports.findings import FINDINGS
from explainmyxray.reports.labeler import positive_findings
from explainmyxray.scoring import bleu, finding_scores, intervals, subgroups
from explainmyxray.scoring.sufficient_statistics import Parts, metrics_from_statistics, parts, totals
from explainmyxray.tables import split_labels

MODEL = "generated"
BASELINES = ("majority", "nearest", "classifier", "untuned", "blind", "ceiling")
FACTS = ("image", "source", "patient", "labels", "view", "age_years", "sex")
COLUMNS = (*FACTS, "report", MODEL, *BASELINES)  # of predictions.csv, all text
HEADLINE = ("bleu", "rougeL", "findings.micro_f1", "findings.macro_f1", "findings.exact_match")

Reader = Callable[[str], frozenset[str]]


@dataclass(frozen=True)
class Evaluation:
    """`metrics` is eval.json; the rest is what the pictures and `dvc plots` show of the same figures."""

    metrics: dict
    findings: pd.DataFrame  # finding, f1, low, high, support: a row a finding
    systems: (
        pd.DataFrame
    )  # system, figure, value, low, high: a row a headline figure of the model and each baseline
    confusion: pd.DataFrame  # actual, predicted: a row a finding found, or written for another
    predicted: list[frozenset[str]]  # findings read from the model's reports, a set a row
    order: np.ndarray  # rows from the best report to the worst


def score(
    predictions: pd.DataFrame, seed: int, bootstrap_samples: int, read: Reader = positive_findings
) -> Evaluation:
    """Score a table with the text `COLUMNS`; `read` gives the findings that a text says are there.

    Raises ValueError where `labels` or `read` name what is none of the 14 findings.
    """
    true = [split_labels(labels) for labels in predictions["labels"]]
    drawn = intervals.weights(predictions["patient"], bootstrap_samples, seed)
    read = cache(read)  # baselines repeat themselves
    predicted = {system: [read(text) for text in predictions[system]] for system in (MODEL, *BASELINES)}
    rows = {
        system: parts(predictions[system], predictions["report"], true, predicted[system])
        for system in predicted
    }
    systems = pd.concat([_system_rows(system, rows[system], drawn) for system in rows], ignore_index=True)
    confusion = finding_scores.confusion(true, predicted[MODEL])
    return Evaluation(
        metrics=_metrics(predictions, rows, systems),
        findings=_finding_rows(rows[MODEL]["findings"], drawn),
        systems=systems,
        confusion=pd.DataFrame(confusion, columns=["actual", "predicted"]),
        predicted=predicted[MODEL],
        order=_best_first(rows[MODEL]),
    )


def _metrics(predictions: pd.DataFrame, rows: dict[str, Parts], systems: pd.DataFrame) -> dict:
    module = evaluate.load(bleu.__file__, keep_in_memory=True)
    direct = module.compute(
        predictions=predictions[MODEL].tolist(), references=predictions["report"].tolist()
    )
    model = _figures(rows[MODEL], predictions[MODEL])
    model["bleu"] = direct["score"]
    model["findings"]["per_finding"] = finding_scores.per_finding(rows[MODEL]["findings"].sum(0))
    own = systems[systems["system"] == MODEL]
    return {
        "n": len(predictions),
        "patients": predictions["patient"].nunique(),
        **model,
        "bleu_signature": direct["signature"],
        "ci95": _nested({row.figure: {"low": row.low, "high": row.high} for row in own.itertuples()}),
        "baselines": {name: _figures(rows[name], predictions[name]) for name in BASELINES},
        "slices": subgroups.figures(
            predictions, lambda chosen: metrics_from_statistics(totals(rows[MODEL], chosen))
        ),
    }


def _figures(rows: Parts, texts: pd.Series) -> dict:
    overall = {name: float(value) for name, value in metrics_from_statistics(totals(rows)).items()}
    said_twice = texts.map(_says_a_sentence_twice).sum()
    return {**_nested(overall), "distinct_reports": texts.nunique(), "repetitive_reports": int(said_twice)}


def _nested(flat: dict) -> dict:
    """`{"findings.micro_f1": 1}` as `{"findings": {"micro_f1": 1}}`."""
    nested = {}
    for name, value in flat.items():
        *sections, last = name.split(".")
        place = nested
        for section in sections:
            place = place.setdefault(section, {})
        place[last] = value
    return nested


def _says_a_sentence_twice(text: str) -> bool:
    sentences = [sentence.strip().casefold() for sentence in re.split(r"[.!?\n]", text) if sentence.strip()]
    return len(set(sentences)) < len(sentences)


def _system_rows(system: str, rows: Parts, drawn: np.ndarray) -> pd.DataFrame:
    point, resampled = (
        metrics_from_statistics(totals(rows)),
        metrics_from_statistics(intervals.resampled(rows, drawn)),
    )
    return pd.DataFrame(
        {
            "system": system,
            "figure": name,
            "value": float(point[name]),
            **intervals.confidence_interval(resampled[name]),
        }
        for name in HEADLINE
    )


def _finding_rows(counted: np.ndarray, drawn: np.ndarray) -> pd.DataFrame:
    drawn_f1 = finding_scores.precision_recall_f1(np.tensordot(drawn, counted.astype(float), axes=1))[..., 2]
    point = finding_scores.per_finding(counted.sum(0))
    return pd.DataFrame(
        {
            "finding": name,
            "f1": point[name]["f1"],
            **intervals.confidence_interval(values),
            "support": point[name]["support"],
        }
        for name, values in zip(FINDINGS, drawn_f1.T)
    )


def _best_first(rows: Parts) -> np.ndarray:
    """Most agreement of the findings first; of equals the one with more to find, fewer errors, the closer wording."""
    tp, fp, fn = rows["findings"].sum(1).T
    agreement = np.where(tp + fp + fn > 0, tp / np.maximum(tp + fp + fn, 1), 1.0)
    return np.lexsort([-rows["rouge"][:, -1], fp + fn, -tp, -agreement])
