"""What each report adds to the figures, and the figures from sums of it: for all images, a slice, or a resample."""

import evaluate
import numpy as np
import pandas as pd

from explainmyxray.scoring import bleu, finding_scores, rouge

Parts = dict[str, np.ndarray]


def parts(texts: pd.Series, references: pd.Series, true, predicted) -> Parts:
    """What each of n texts adds to the figures: arrays of n rows, whose sums `metrics_from_statistics` turns into the figures."""
    module = evaluate.load(
        rouge.__file__, keep_in_memory=True
    )  # in memory: no file that a second run could meet
    by_pair = module.compute(predictions=texts.tolist(), references=references.tolist(), per_pair=True)
    return {
        "n": np.ones(len(texts)),
        "bleu": bleu.statistics(texts, references),
        "rouge": np.stack([by_pair[kind] for kind in rouge.KINDS], axis=-1),
        "findings": finding_scores.counts(true, predicted),
        "exact": finding_scores.exact(true, predicted),
    }


def totals(rows: Parts, chosen=slice(None)) -> Parts:
    """The sums of all rows, or of the `chosen` ones."""
    return {name: part[chosen].sum(0) for name, part in rows.items()}


def metrics_from_statistics(sums: Parts) -> dict[str, np.ndarray]:
    """The figures of `sums`: numbers, or arrays (samples,) where the sums have a first dimension for resamples."""
    by_kind = np.moveaxis(sums["rouge"], -1, 0) / sums["n"]
    return {
        "bleu": np.apply_along_axis(bleu.from_statistics, -1, sums["bleu"]),
        **dict(zip(rouge.KINDS, by_kind)),
        "findings.micro_f1": finding_scores.micro_f1(sums["findings"]),
        "findings.macro_f1": finding_scores.macro_f1(sums["findings"]),
        "findings.exact_match": sums["exact"] / sums["n"],
    }
