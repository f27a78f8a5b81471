"""How well the findings of the generated reports agree with the labels, from sets of names.

The figures are functions of counts, so that a resample of patients needs the counts alone. `No Finding` is
the empty set: it counts in `exact_match` and nowhere else.
"""

import itertools
from collections.abc import Sequence

import numpy as np

from explainmyxray.reports.findings import FINDINGS

NOTHING = "nothing"

Findings = frozenset[str]


def outcome_counts(true: Sequence[Findings], predicted: Sequence[Findings]) -> np.ndarray:
    """True positives, false positives, false negatives: int64 (n, 14, 3), from two lists of n sets.

    Raises ValueError for a name that is none of the 14: it would be left out of every figure without a word.
    """
    actual, named = indicators(true), indicators(predicted)
    return np.stack([actual & named, ~actual & named, actual & ~named], axis=-1).astype(np.int64)


def exact_match(true: Sequence[Findings], predicted: Sequence[Findings]) -> np.ndarray:
    """1.0 where the two sets are equal, else 0.0: (n,)."""
    return np.array([a == b for a, b in zip(true, predicted, strict=True)], dtype=float)


def precision_recall_f1(counts: np.ndarray) -> np.ndarray:
    """(..., 3) true positives, false positives, false negatives to (..., 3) precision, recall, F1.

    0 where one is undefined.
    """
    tp, fp, fn = np.moveaxis(np.asarray(counts, dtype=float), -1, 0)
    precision = _ratio(tp, tp + fp)
    recall = _ratio(tp, tp + fn)
    f1 = _ratio(2 * tp, 2 * tp + fp + fn)
    return np.stack([precision, recall, f1], axis=-1)


def f1(counts: np.ndarray) -> np.ndarray:
    """(..., 3) true positives, false positives, false negatives to (...): F1, 0 if undefined."""
    return precision_recall_f1(counts)[..., 2]


def micro_f1(counts: np.ndarray) -> np.ndarray:
    """(..., 14, 3) summed counts to (...): F1 over all findings pooled."""
    return f1(np.sum(counts, axis=-2))


def macro_f1(counts: np.ndarray) -> np.ndarray:
    """(..., 14, 3) summed counts to (...): the mean F1 of the findings that some image has.

    A finding that no image has can only be wrong: it would drag the mean to 0 for its absence. Inventing it
    costs `micro_f1` all the same.
    """
    present = support(counts) > 0
    return _ratio((f1(counts) * present).sum(-1), present.sum(-1).astype(float))


def support(counts: np.ndarray) -> np.ndarray:
    """(..., 14, 3) counts to (..., 14): images that have the finding."""
    return counts[..., 0] + counts[..., 2]


def per_finding(counts: np.ndarray) -> dict[str, dict[str, float]]:
    """(14, 3) summed counts to precision, recall, F1 (0 to 1) and support of all 14 findings."""
    scores = precision_recall_f1(counts)
    images = support(counts)
    figures = {}
    for name, (precision, recall, f1), num_images in zip(FINDINGS, scores, images):
        figures[name] = {
            "precision": float(precision),
            "recall": float(recall),
            "f1": float(f1),
            "support": int(num_images),
        }
    return figures


def confusion_pairs(true: Sequence[Findings], predicted: Sequence[Findings]) -> list[tuple[str, str]]:
    """(actual, predicted) pairs for a confusion matrix: what was written instead of what.

    A finding of an image that was found meets itself. Each one missed meets each one invented in the same
    report, and `nothing` where there is none.
    """
    pairs = []
    for actual, named in zip(true, predicted, strict=True):
        pairs += [(name, name) for name in sorted(actual & named)]
        if actual != named:
            missed = sorted(actual - named) or [NOTHING]
            invented = sorted(named - actual) or [NOTHING]
            pairs += itertools.product(missed, invented)
    return pairs


def indicators(sets: Sequence[Findings]) -> np.ndarray:
    """n sets as a boolean array (n, 14)."""
    unknown = frozenset().union(*sets) - set(FINDINGS)
    if unknown:
        raise ValueError(f"{', '.join(sorted(unknown))}: none of the 14 findings")
    array = np.zeros((len(sets), len(FINDINGS)), dtype=bool)
    for row, findings in enumerate(sets):
        for name in findings:
            array[row, FINDINGS.index(name)] = True
    return array


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """The quotient, 0 where the denominator is."""
    return np.divide(numerator, denominator, out=np.zeros_like(numerator), where=denominator > 0)
