"""95 % percentile bootstrap over patients (Efron & Tibshirani 1993, chapter 13).

The images of one patient resemble each other, so patients are drawn, with all their images, not images. Every
figure is a function of sums over images (`sufficient_statistics`), so a resample is a row of weights times a
table of sums: 10,000 take seconds. The same weights serve every system, so that differences between two of
them are paired.
"""

from collections.abc import Sequence

import numpy as np

from explainmyxray.scoring.sufficient_statistics import Statistics


def bootstrap_weights(patients: Sequence[str], samples: int, seed: int) -> np.ndarray:
    """How often each resample draws the patient of each image: float64 (samples, n), from n patient names.

    A function of the names, `samples` and `seed` alone: two systems on one test set get the same draws.
    """
    names, patient_index = np.unique(np.asarray(patients, dtype=str), return_inverse=True)
    rng = np.random.default_rng(seed)
    uniform = np.full(len(names), 1 / len(names))
    draws = rng.multinomial(len(names), uniform, size=samples)
    # As float: matrix products of integers are slow, and float64 is exact up to 2**53.
    return draws[:, patient_index].astype(float)


def resample(statistics: Statistics, weights: np.ndarray) -> Statistics:
    """Sums of each statistic, (n, ...), over the images of each resample: (samples, ...)."""
    return {name: np.tensordot(weights, values.astype(float), axes=1) for name, values in statistics.items()}


def confidence_interval(values: np.ndarray) -> dict[str, float]:
    """The middle 95 % of a figure's values over the resamples, (samples,)."""
    low, high = np.quantile(values, [0.025, 0.975])
    return {"low": float(low), "high": float(high)}
