"""Two tables of predictions on one test set: which figures differ by more than the choice of test patients explains?"""

import numpy as np
import pandas as pd

from explainmyxray.errors import UserError
from explainmyxray.reports.findings import FINDINGS
from explainmyxray.reports.labeler import positive_findings
from explainmyxray.scoring import evaluation, finding_scores, intervals
from explainmyxray.scoring.sufficient_statistics import Parts, metrics_from_statistics, parts, totals
from explainmyxray.tables import split_labels

KEY = ["image", "patient", "labels"]  # the same test image: a name alone may be another phantom's


def shared(before: pd.DataFrame, after: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The rows of the test images that both tables have, in one order.

    Raises UserError where that is less than half of the larger: a comparison of two test sets compares the test sets.
    """
    both = before[KEY].merge(after[KEY])
    if 2 * len(both) < max(len(before), len(after)):
        raise UserError(
            f"{len(both)} test images are the same, of {len(before)} before and {len(after)} after: the split or "
            "the data differ, so that the figures cannot be compared"
        )
    return both.merge(before, on=KEY), both.merge(after, on=KEY)


def compare(before: pd.DataFrame, after: pd.DataFrame, samples: int, seed: int) -> pd.DataFrame:
    """A row a figure: `figure`, `before`, `after`, `difference`, `low`, `high`, `noise`.

    Both tables have the same images in the same order. Every resample draws the same patients for both, so that what makes
    an image hard for either cancels out. `low` and `high` are the middle 95 % of the differences (percentile bootstrap);
    `noise` says whether they include 0. F1 of a finding that no image has is left out.
    """
    drawn = intervals.weights(before["patient"], samples, seed)
    rows = [_parts(table) for table in (before, after)]
    point = [{name: float(value) for name, value in _figures(totals(each)).items()} for each in rows]
    resampled = [_figures(intervals.resampled(each, drawn)) for each in rows]
    table = pd.DataFrame(
        {
            "figure": name,
            "before": point[0][name],
            "after": point[1][name],
            "difference": point[1][name] - point[0][name],
            **intervals.confidence_interval(resampled[1][name] - resampled[0][name]),
        }
        for name in point[0]
    )
    without = {
        f"F1 {name}"
        for name, images in zip(FINDINGS, finding_scores.support(rows[0]["findings"].sum(0)))
        if not images
    }
    table["noise"] = (table["low"] <= 0) & (table["high"] >= 0)
    return table[~table["figure"].isin(without)].reset_index(drop=True)


def _parts(table: pd.DataFrame) -> Parts:
    true, said = table["labels"].map(split_labels), table[evaluation.MODEL].map(positive_findings)
    return parts(table[evaluation.MODEL], table["report"], list(true), list(said))


def _figures(sums: Parts) -> dict[str, np.ndarray]:
    by_finding = finding_scores.precision_recall_f1(sums["findings"])[..., 2]
    return metrics_from_statistics(sums) | dict(
        zip(map("F1 {}".format, FINDINGS), np.moveaxis(by_finding, -1, 0))
    )
