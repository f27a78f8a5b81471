"""What sampled reports tell: both decodings side by side, calibration, and risk against coverage.

From `metrics/samples.csv`, without model or image, at any time.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import pandas as pd

from explainmyxray.reports.findings import SHOWN_SHARE
from explainmyxray.reports.labeler import positive_findings
from explainmyxray.scoring import calibration, finding_scores
from explainmyxray.scoring.by_source import score_by_source
from explainmyxray.scoring.evaluation import headline_rows, nested
from explainmyxray.scoring.finding_scores import Findings, indicators
from explainmyxray.scoring.intervals import bootstrap_weights, confidence_interval, resample
from explainmyxray.scoring.sufficient_statistics import (
    Statistics,
    metrics_from_statistics,
    sufficient_statistics,
)
from explainmyxray.tables import join_labels, patient_or_image, split_labels

DECODINGS = ("greedy", "consensus")
# Of samples.csv, all text. `sampled` holds the findings of each sampled report, `adapter` names the weights.
COLUMNS = ("split", "image", "source", "patient", "labels", "report", *DECODINGS, "sampled", "adapter")
SEPARATOR = ";"  # between the samples of an image
MICRO_F1 = "findings.micro_f1"

Labeler = Callable[[str], Findings]


@dataclass(frozen=True)
class SampledEvaluation:
    """`metrics` are the sections `decodings` and `calibration` of eval.json.

    reliability: bin, share, present, low, high, findings; a row a bin that holds findings.
    coverage: coverage, micro_f1, exact_match, low, high; a row a share of images whose reports are kept.
    """

    metrics: dict
    reliability: pd.DataFrame
    coverage: pd.DataFrame


def join_samples(reports: Sequence[str]) -> str:
    """The findings of one image's sampled reports as a cell of the column `sampled`."""
    return SEPARATOR.join(join_labels(positive_findings(report)) for report in reports)


def split_samples(cell: str) -> list[Findings]:
    """A set of findings a sampled report."""
    return [split_labels(labels) for labels in cell.split(SEPARATOR)]


def score_samples(
    samples: pd.DataFrame,
    reports: pd.Series,
    seed: int,
    bootstrap_samples: int,
    labeler: Labeler = positive_findings,
) -> SampledEvaluation:
    """Score a table with the text `COLUMNS`.

    `reports` are the model's reports by image: their findings are what the samples agree with or do not.
    """
    labeler = cache(labeler)
    decodings = {}
    for split, rows in samples.groupby("split"):
        decodings[split] = _score_decodings(rows, seed, bootstrap_samples, labeler)
    test = samples[samples["split"] == "test"]
    texts = reports.loc[test["image"]].reset_index(drop=True)
    metrics, reliability, coverage = _calibrate(test, texts, seed, bootstrap_samples, labeler)
    return SampledEvaluation({"decodings": decodings, "calibration": metrics}, reliability, coverage)


def calibration_statistics(samples: pd.DataFrame) -> np.ndarray:
    """(n, NUM_BINS, 3) what each image of a table with `COLUMNS` adds to each bin."""
    return calibration.bin_statistics(_shares(samples), indicators(_true(samples)))


def _score_decodings(rows: pd.DataFrame, seed: int, bootstrap_samples: int, labeler: Labeler) -> dict:
    """The headline figures of both decodings on the same images, and by how much consensus is better."""
    weights = bootstrap_weights(patient_or_image(rows), bootstrap_samples, seed)
    metrics: dict = {"n": len(rows)}
    by_decoding, resampled = {}, {}
    for name in DECODINGS:
        predicted = [labeler(text) for text in rows[name]]
        statistics = sufficient_statistics(rows[name], rows["report"], _true(rows), predicted)
        by_decoding[name] = statistics
        figures = headline_rows(name, statistics, weights).set_index("figure")
        metrics[name] = nested(figures["value"].to_dict())
        metrics[name]["ci95"] = nested(figures[["low", "high"]].to_dict("index"))
        resampled[name] = metrics_from_statistics(resample(statistics, weights))[MICRO_F1]
    difference = metrics["consensus"]["findings"]["micro_f1"] - metrics["greedy"]["findings"]["micro_f1"]
    interval = confidence_interval(resampled["consensus"] - resampled["greedy"])
    return metrics | {
        "consensus_minus_greedy": {"micro_f1": difference, **interval},
        "by_source": score_by_source(rows["source"], by_decoding, weights),
    }


def _calibrate(
    rows: pd.DataFrame, reports: pd.Series, seed: int, bootstrap_samples: int, labeler: Labeler
) -> tuple[dict, pd.DataFrame, pd.DataFrame]:
    """The section `calibration` of eval.json, and the tables behind its pictures."""
    probabilities, true = _shares(rows), _true(rows)
    present = indicators(true)
    weights = bootstrap_weights(patient_or_image(rows), bootstrap_samples, seed)
    bins = calibration.bin_statistics(probabilities, present)
    resampled_bins = np.tensordot(weights, bins, axes=1)
    reliability = _reliability(bins.sum(axis=0), resampled_bins)

    # How much an image's samples agree with its report, and how good that report is.
    predicted = [labeler(text) for text in reports]
    sampled = [split_samples(cell) for cell in rows["sampled"]]
    agreements = np.array([calibration.agreement(*pair) for pair in zip(predicted, sampled)])
    statistics = {
        "n": np.ones(len(rows)),
        "findings": finding_scores.outcome_counts(true, predicted),
        "exact": finding_scores.exact_match(true, predicted),
    }
    coverage = _coverage(statistics, agreements, weights)

    unnamed = present & (probabilities < SHOWN_SHARE)
    metrics = {
        "n": len(rows),
        "samples": len(sampled[0]),
        "adapter": rows["adapter"].iloc[0],
        "ece": float(calibration.expected_calibration_error(bins.sum(axis=0))),
        "ci95": confidence_interval(calibration.expected_calibration_error(resampled_bins)),
        "ece_by_chance": calibration.error_by_chance(probabilities, 200, seed),
        "findings": int(bins[..., 0].sum()),
        "present_but_not_shown": int(unnamed.sum()),
        "bins": _bin_metrics(reliability),
        "coverage": _coverage_metrics(coverage),
    }
    return metrics, reliability, coverage


def _reliability(sums: np.ndarray, resampled: np.ndarray) -> pd.DataFrame:
    """A row a bin that holds findings, from sums (bins, 3) and those of resamples (samples, bins, 3)."""
    rows = []
    for number, (count, share, present) in enumerate(sums):
        if count == 0:
            continue
        drawn = resampled[:, number]
        drawn = drawn[drawn[:, 0] > 0]  # resamples that have the bin
        interval = {"low": 0.0, "high": 1.0}
        if len(drawn) > 0:
            interval = confidence_interval(drawn[:, 2] / drawn[:, 0])
        row = {"bin": number, "share": share / count, "present": present / count}
        rows.append(row | interval | {"findings": int(count)})
    return pd.DataFrame(rows, columns=["bin", "share", "present", "low", "high", "findings"])


def _coverage(statistics: Statistics, agreements: np.ndarray, weights: np.ndarray) -> pd.DataFrame:
    """A row a coverage: the figures of the reports that are kept, those most agreed on first."""
    rows = []
    for coverage in calibration.COVERAGES:
        kept = calibration.kept_weights(agreements, np.ones((1, len(agreements))), coverage)
        drawn = calibration.kept_weights(agreements, weights, coverage)
        sums = resample(statistics, kept)
        f1_of_resamples = finding_scores.micro_f1(resample(statistics, drawn)["findings"])
        row = {
            "coverage": round(float(coverage), 2),
            "micro_f1": float(finding_scores.micro_f1(sums["findings"])[0]),
            "exact_match": float(sums["exact"][0] / sums["n"][0]),
        }
        rows.append(row | confidence_interval(f1_of_resamples))
    return pd.DataFrame(rows)


def _bin_metrics(reliability: pd.DataFrame) -> dict:
    """The bins by their limits in percent: `80_to_90`."""
    metrics = {}
    for row in reliability.itertuples():
        first, last = (round(100 * edge) for edge in calibration.EDGES[row.bin : row.bin + 2])
        metrics[f"{first}_to_{last}"] = {
            "findings": row.findings,
            "share": row.share,
            "present": row.present,
        }
    return metrics


def _coverage_metrics(table: pd.DataFrame) -> dict:
    """The rows by their share of reports in percent."""
    metrics = {}
    for row in table.itertuples():
        interval = {"low": row.low, "high": row.high}
        figures = {"micro_f1": row.micro_f1, "exact_match": row.exact_match, "ci95": interval}
        metrics[f"{row.coverage:.0%}".removesuffix("%")] = figures
    return metrics


def _true(rows: pd.DataFrame) -> list[Findings]:
    return [split_labels(labels) for labels in rows["labels"]]


def _shares(rows: pd.DataFrame) -> np.ndarray:
    """(n, 14) the share of each image's sampled reports that name each finding."""
    return np.stack([calibration.shares(split_samples(cell)) for cell in rows["sampled"]])
