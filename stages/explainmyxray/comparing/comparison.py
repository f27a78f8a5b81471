"""Two tables of predictions on one test set: which figures differ by more than the choice of patients?"""

import numpy as np
import pandas as pd

from explainmyxray.errors import UserError
from explainmyxray.reports.findings import FINDINGS
from explainmyxray.reports.labeler import positive_findings
from explainmyxray.scoring import finding_scores
from explainmyxray.scoring.calibration import expected_calibration_error
from explainmyxray.scoring.evaluation import MODEL
from explainmyxray.scoring.intervals import bootstrap_weights, confidence_interval, resample
from explainmyxray.scoring.sampled_reports import calibration_statistics
from explainmyxray.scoring.sufficient_statistics import (
    Statistics,
    metrics_from_statistics,
    sufficient_statistics,
    total,
)
from explainmyxray.tables import patient_or_image, split_labels

KEY = ["image", "patient", "labels"]  # the same test image: a name alone may be another phantom's
ECE = "calibration.ece"
LOWER_IS_BETTER = {ECE}


def common_images(before: pd.DataFrame, after: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The rows of the test images that both tables have, in one order.

    Raises UserError where that is less than half of the larger: a comparison of two test sets compares the
    test sets.
    """
    both = before[KEY].merge(after[KEY])
    if 2 * len(both) < max(len(before), len(after)):
        raise UserError(
            f"{len(both)} test images are the same, of {len(before)} before and {len(after)} after: the "
            "split or the data differ, so that the figures cannot be compared"
        )
    return both.merge(before, on=KEY), both.merge(after, on=KEY)


def compare(before: pd.DataFrame, after: pd.DataFrame, samples: int, seed: int) -> pd.DataFrame:
    """A row a figure: `figure`, `before`, `after`, `difference`, `low`, `high`, `within_noise`.

    Both tables have the same images in the same order. Every resample draws the same patients for both, so
    that what makes an image hard for either cancels out. `low` and `high` are the middle 95 % of the
    differences (percentile bootstrap); `within_noise` says whether they include 0. F1 of a finding that no
    image has is left out.
    """
    statistics_before, statistics_after = _statistics(before), _statistics(after)
    weights = bootstrap_weights(patient_or_image(before), samples, seed)
    figures_before = _figures(total(statistics_before))
    figures_after = _figures(total(statistics_after))
    resampled_before = _figures(resample(statistics_before, weights))
    resampled_after = _figures(resample(statistics_after, weights))
    rows = []
    for name in figures_before:
        differences = resampled_after[name] - resampled_before[name]
        rows.append(_row(name, figures_before[name], figures_after[name], differences))
    table = pd.DataFrame(rows)
    support = finding_scores.support(statistics_before["findings"].sum(axis=0))
    absent = [_f1_name(finding) for finding, images in zip(FINDINGS, support) if images == 0]
    return table[~table["figure"].isin(absent)].reset_index(drop=True)


def compare_calibration(before: pd.DataFrame, after: pd.DataFrame, samples: int, seed: int) -> pd.DataFrame:
    """A row as `compare` has it for the calibration error, from two tables of sampled reports (samples.csv).

    On the test images that both have; no row where they are less than half of the larger.
    """
    before, after = before[before["split"] == "test"], after[after["split"] == "test"]
    both = before[KEY].merge(after[KEY])
    if 2 * len(both) < max(len(before), len(after)):
        return pd.DataFrame()
    statistics_before = calibration_statistics(both.merge(before, on=KEY))
    statistics_after = calibration_statistics(both.merge(after, on=KEY))
    weights = bootstrap_weights(patient_or_image(both), samples, seed)
    resampled_before = expected_calibration_error(np.tensordot(weights, statistics_before, axes=1))
    resampled_after = expected_calibration_error(np.tensordot(weights, statistics_after, axes=1))
    row = _row(
        ECE,
        expected_calibration_error(statistics_before.sum(axis=0)),
        expected_calibration_error(statistics_after.sum(axis=0)),
        resampled_after - resampled_before,
    )
    return pd.DataFrame([row])


def is_better(figure: str, difference: float) -> bool:
    """Whether a figure that moved so far is better: most want to be high, an error low."""
    return difference < 0 if figure in LOWER_IS_BETTER else difference > 0


def _row(name: str, before: float, after: float, differences: np.ndarray) -> dict:
    """A row of the comparison, from the figure of both and their differences in the resamples (samples,)."""
    interval = confidence_interval(differences)
    return {
        "figure": name,
        "before": float(before),
        "after": float(after),
        "difference": float(after) - float(before),
        **interval,
        "within_noise": interval["low"] <= 0 <= interval["high"],
    }


def compared_figures(predictions: pd.DataFrame) -> dict[str, float]:
    """The figures that `compare` compares, of one table."""
    figures = _figures(total(_statistics(predictions)))
    return {name: float(value) for name, value in figures.items()}


def _statistics(table: pd.DataFrame) -> Statistics:
    true = [split_labels(labels) for labels in table["labels"]]
    predicted = [positive_findings(text) for text in table[MODEL]]
    return sufficient_statistics(table[MODEL], table["report"], true, predicted)


def _figures(sums: Statistics) -> dict[str, np.ndarray]:
    """The figures over all findings, and F1 of each finding."""
    figures = metrics_from_statistics(sums)
    f1 = finding_scores.f1(sums["findings"])
    for column, finding in enumerate(FINDINGS):
        figures[_f1_name(finding)] = f1[..., column]
    return figures


def _f1_name(finding: str) -> str:
    return f"F1 {finding}"
