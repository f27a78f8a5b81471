"""Calibration of sampled reports: is a finding that p of the samples name there in p of the images?

`explain` shows the share of sampled reports that name a finding. Measured here on images whose findings are
known: the expected calibration error over bins of equal width (Guo et al. 2017, arXiv:1706.04599, equation
3), and risk against coverage: how good the reports are that remain when those with the least agreement among
their samples go to a person (Geifman & El-Yaniv 2017, arXiv:1705.08500). All of it is a function of sums over
images, as the other figures are, so that resamples of patients give intervals and differences are paired.

`sklearn.calibration.calibration_curve` has the same bins and the same points (tests/test_calibration.py holds
this), but neither counts nor weights.
"""

from collections.abc import Sequence

import numpy as np

from explainmyxray.reports.findings import SHOWN_SHARE
from explainmyxray.scoring.finding_scores import Findings, indicators

NUM_BINS = 10
EDGES = np.linspace(0, 1, NUM_BINS + 1)  # a bin holds its upper edge, as in scikit-learn
COVERAGES = np.linspace(0.2, 1, 9)  # shares of the images whose reports are kept


def shares(sampled: Sequence[Findings]) -> np.ndarray:
    """(14,) the share of one image's sampled reports that name each finding."""
    return indicators(sampled).mean(axis=0)


def agreement(report: Findings, sampled: Sequence[Findings]) -> float:
    """The share of one image's sampled reports that name exactly the findings of its report."""
    return sum(each == report for each in sampled) / len(sampled)


def bin_statistics(probabilities: np.ndarray, present: np.ndarray) -> np.ndarray:
    """What each image adds to each bin, (n, NUM_BINS, 3): findings, sum of their shares, how many are there.

    From (n, 14) shares and (n, 14) truths. Only shares that are shown count, `SHOWN_SHARE` or more: of the
    many findings that no sample names, nearly none is there, and they would hide the error of the others.
    """
    bins = np.searchsorted(EDGES[1:-1], probabilities)
    shown = probabilities >= SHOWN_SHARE
    statistics = np.zeros((len(probabilities), NUM_BINS, 3))
    for number in range(NUM_BINS):
        inside = shown & (bins == number)
        statistics[:, number, 0] = inside.sum(axis=1)
        statistics[:, number, 1] = (inside * probabilities).sum(axis=1)
        statistics[:, number, 2] = (inside & present).sum(axis=1)
    return statistics


def expected_calibration_error(sums: np.ndarray) -> np.ndarray:
    """(..., NUM_BINS, 3) sums of `bin_statistics` to (...): the mean distance of share and truth, 0 to 1.

    Each bin counts as often as it has findings; 0 where there are none at all.
    """
    count, share, present = np.moveaxis(sums, -1, 0)
    distance = np.abs(share - present).sum(axis=-1)
    return distance / np.maximum(count.sum(axis=-1), 1)


def error_by_chance(probabilities: np.ndarray, samples: int, seed: int) -> float:
    """The mean expected calibration error of shares (n, 14) that are true, on so few images.

    A few findings in a bin are seldom exactly as often there as they should be: below this figure an error
    is no evidence (Bröcker & Smith 2007, "Increasing the Reliability of Reliability Diagrams").
    """
    rng = np.random.default_rng(seed)
    errors = []
    for _ in range(samples):
        drawn = rng.random(probabilities.shape) < probabilities
        errors.append(expected_calibration_error(bin_statistics(probabilities, drawn).sum(axis=0)))
    return float(np.mean(errors))


def kept_weights(agreements: np.ndarray, weights: np.ndarray, coverage: float) -> np.ndarray:
    """Weights (samples, n) of the images that are kept at a coverage: those with the most agreement.

    `weights` (samples, n) say how often a resample has each image; ones (1, n) are the images themselves. Of
    images that agree equally at the limit each is kept in part, so that no order of rows decides.
    """
    # 1) Groups of images with the same agreement, the most agreement first.
    _, group = np.unique(-agreements, return_inverse=True)
    membership = np.eye(group.max() + 1)[group]  # (n, groups)
    size = weights @ membership  # (samples, groups)
    # 2) How much of each group there is room for.
    before = np.cumsum(size, axis=1) - size
    room = coverage * weights.sum(axis=1, keepdims=True) - before
    kept_share = np.clip(np.divide(room, size, out=np.zeros_like(size), where=size > 0), 0, 1)
    return weights * kept_share[:, group]
