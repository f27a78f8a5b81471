"""Every system on the films of each source: children's and adults' films are not one test set.

A figure over all sources hides that a system fails on the smaller one, and rewards one that only tells the
sources apart: where most of one source's films are ill, its mark in the corner is a label.
"""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from explainmyxray.scoring import finding_scores
from explainmyxray.scoring.intervals import confidence_interval, resample
from explainmyxray.scoring.sufficient_statistics import (
    Statistics,
    metrics_from_statistics,
    select,
    total,
)


def score_by_source(
    sources: pd.Series, statistics: Mapping[str, Statistics], weights: np.ndarray
) -> dict[str, dict]:
    """`<source>`: n and `<system>`: bleu, micro_f1, ci95 of micro_f1; empty where there is one source alone.

    `sources` (n,) name each image's source, `statistics` are those of each system (n, ...), and `weights`
    (samples, n) the resamples of patients.
    """
    names = sorted(set(sources))
    if len(names) < 2:
        return {}
    metrics = {}
    for name in names:
        mask = (sources == name).to_numpy()
        metrics[name] = {"n": int(mask.sum())}
        for system, of_all in statistics.items():
            metrics[name][system] = _figures(select(of_all, mask), weights[:, mask])
    return metrics


def _figures(statistics: Statistics, weights: np.ndarray) -> dict:
    figures = metrics_from_statistics(total(statistics))
    counts = resample({"findings": statistics["findings"]}, weights)["findings"]
    return {
        "bleu": float(figures["bleu"]),
        "micro_f1": float(figures["findings.micro_f1"]),
        "ci95": confidence_interval(finding_scores.micro_f1(counts)),
    }
