"""95 % percentile bootstrap over patients (Efron & Tibshirani 1993, chapter 13).

The images of one patient resemble each other, so patients are drawn, with all their images, not images. Every figure is
a function of sums over images (`parts.metrics_from_statistics`), so a resample is a row of weights times a table of sums: 10,000 take
seconds. The same weights serve every system, so that differences between two of them are paired.
"""

import numpy as np


def weights(patients, samples: int, seed: int) -> np.ndarray:
    """How often each resample draws the patient of each image: float64 (samples, n), from n patient names.

    A function of the names, `samples` and `seed` alone: two systems on one test set get the same draws.
    """
    names, patient_of = np.unique(np.asarray(patients, dtype=str), return_inverse=True)
    draws = np.random.default_rng(seed).multinomial(
        len(names), np.full(len(names), 1 / len(names)), size=samples
    )
    return draws[:, patient_of].astype(
        float
    )  # float: matrix products of whole numbers are slow, and exact up to 2**53


def resampled(parts: dict[str, np.ndarray], drawn: np.ndarray) -> dict[str, np.ndarray]:
    """Sums of each part, (n, ...), over the images of each resample: (samples, ...)."""
    return {name: np.tensordot(drawn, part.astype(float), axes=1) for name, part in parts.items()}


def confidence_interval(values: np.ndarray) -> dict[str, float]:
    """The middle 95 % of a figure's values over the resamples, (samples,)."""
    low, high = np.quantile(values, [0.025, 0.975])
    return {"low": float(low), "high": float(high)}
