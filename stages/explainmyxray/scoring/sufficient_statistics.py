"""Sufficient statistics of the figures: what each report adds to them, and the figures from sums of it.

A sum over all images, a subgroup or a bootstrap resample gives that set's figures without a second look at
the texts.
"""

from collections.abc import Sequence

import evaluate
import numpy as np
import pandas as pd

from explainmyxray.scoring import bleu, finding_scores, rouge

Statistics = dict[str, np.ndarray]


def sufficient_statistics(
    texts: pd.Series,
    references: pd.Series,
    true: Sequence[frozenset[str]],
    predicted: Sequence[frozenset[str]],
) -> Statistics:
    """A row a text: `n` (n,), `bleu` (n, 10), `rouge` (n, 3), `findings` (n, 14, 3), `exact` (n,)."""
    # In memory: no cache file that a second run at the same time could meet.
    metric = evaluate.load(rouge.__file__, keep_in_memory=True)
    f_measures = metric.compute(predictions=texts.tolist(), references=references.tolist(), per_pair=True)
    return {
        "n": np.ones(len(texts)),
        "bleu": bleu.statistics(texts, references),
        "rouge": np.stack([f_measures[kind] for kind in rouge.KINDS], axis=-1),
        "findings": finding_scores.outcome_counts(true, predicted),
        "exact": finding_scores.exact_match(true, predicted),
    }


def total(statistics: Statistics) -> Statistics:
    """The sums over all rows."""
    return {name: values.sum(axis=0) for name, values in statistics.items()}


def select(statistics: Statistics, mask: np.ndarray) -> Statistics:
    """The rows that a boolean mask (n,) chooses."""
    return {name: values[mask] for name, values in statistics.items()}


def metrics_from_statistics(sums: Statistics) -> dict[str, np.ndarray]:
    """The figures of `sums`: numbers, or arrays (samples,) where the sums are those of resamples."""
    mean_rouge = np.moveaxis(sums["rouge"], -1, 0) / sums["n"]
    return {
        "bleu": np.apply_along_axis(bleu.from_statistics, -1, sums["bleu"]),
        **dict(zip(rouge.KINDS, mean_rouge)),
        "findings.micro_f1": finding_scores.micro_f1(sums["findings"]),
        "findings.macro_f1": finding_scores.macro_f1(sums["findings"]),
        "findings.exact_match": sums["exact"] / sums["n"],
    }
