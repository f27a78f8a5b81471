"""How well the findings of the generated reports agree with the labels, from sets of names.

The figures are functions of counts, so that a resample of patients needs the counts alone. `No Finding` is the empty
set: it counts in `exact_match` and nowhere else.
"""

import itertools

import numpy as np

from explainmyxray.reports.findings import FINDINGS

NOTHING = "nothing"


def counts(true, predicted) -> np.ndarray:
    """True positives, false positives and false negatives: int64 (n, 14, 3), from two lists of n sets of findings.

    Raises ValueError for a name that is none of the 14: it would be left out of every figure without a word.
    """
    true, predicted = _indicators(true), _indicators(predicted)
    return np.stack([true & predicted, ~true & predicted, true & ~predicted], axis=-1).astype(np.int64)


def exact(true, predicted) -> np.ndarray:
    """1.0 where the two sets are equal, else 0.0: (n,)."""
    return np.array([each == other for each, other in zip(true, predicted, strict=True)], dtype=float)


def precision_recall_f1(counted: np.ndarray) -> np.ndarray:
    """(..., 3) true positives, false positives, false negatives to (..., 3) precision, recall, F1; 0 if undefined."""
    tp, fp, fn = np.moveaxis(np.asarray(counted, dtype=float), -1, 0)
    return np.stack([_ratio(tp, tp + fp), _ratio(tp, tp + fn), _ratio(2 * tp, 2 * tp + fp + fn)], axis=-1)


def micro_f1(counted: np.ndarray) -> np.ndarray:
    """(..., 14, 3) summed counts to (...): F1 over all findings pooled."""
    return precision_recall_f1(np.sum(counted, axis=-2))[..., 2]


def macro_f1(counted: np.ndarray) -> np.ndarray:
    """(..., 14, 3) summed counts to (...): the mean F1 of the findings that some image has.

    A finding that no image has can only be wrong: it would drag the mean to 0 for its absence. Inventing it costs
    `micro_f1` all the same.
    """
    here = support(counted) > 0
    return _ratio((precision_recall_f1(counted)[..., 2] * here).sum(-1), here.sum(-1).astype(float))


def support(counted: np.ndarray) -> np.ndarray:
    """(..., 14, 3) counts to (..., 14): images that have the finding."""
    return counted[..., 0] + counted[..., 2]


def per_finding(counted: np.ndarray) -> dict[str, dict[str, float]]:
    """(14, 3) summed counts to precision, recall, F1 (0 to 1) and support of all 14 findings."""
    figures, number = precision_recall_f1(counted), support(counted)
    return {
        name: {"precision": float(p), "recall": float(r), "f1": float(f), "support": int(images)}
        for name, (p, r, f), images in zip(FINDINGS, figures, number)
    }


def confusion(true, predicted) -> list[tuple[str, str]]:
    """(actual, predicted) pairs for a confusion matrix: what was written instead of what.

    A finding of an image that was found meets itself. Each one missed meets each one invented in the same report, and
    `nothing` where there is none.
    """
    pairs = []
    for each, other in zip(true, predicted, strict=True):
        pairs += [(name, name) for name in sorted(each & other)]
        if each != other:
            pairs += itertools.product(sorted(each - other) or [NOTHING], sorted(other - each) or [NOTHING])
    return pairs


def _indicators(sets) -> np.ndarray:
    if unknown := set().union(*sets) - set(FINDINGS):
        raise ValueError(f"{', '.join(sorted(unknown))}: none of the 14 findings")
    return np.array([[name in each for name in FINDINGS] for each in sets], dtype=bool).reshape(
        -1, len(FINDINGS)
    )


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)
