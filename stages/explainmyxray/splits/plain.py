"""The usual split by image, scikit-learn's `train_test_split` twice. It puts patients into several splits."""

import numpy as np
import pandas as pd
from sklearn.model_selection import train_test_split

from explainmyxray.errors import UserError
from explainmyxray.settings import Split


def plain_split(reports: pd.DataFrame, split: Split, seed: int, strict: bool = True) -> np.ndarray:
    """The split's name for each row.

    Where a combination has too few images to stratify, raises UserError if `strict`, else splits without
    stratifying.
    """
    places = np.full(len(reports), "train", dtype=object)
    if len(reports) < 3:
        return places
    labels = reports["labels"].to_numpy() if split.stratify_by == "labels" else None
    rest = _divide(np.arange(len(reports)), labels, split.train, seed, strict)[1]
    if len(rest) > 1:
        val, test = _divide(rest, labels, split.val / (split.val + split.test), seed, strict)
        places[val] = "val"
        places[test] = "test"
    return places


def _divide(
    rows: np.ndarray, labels: np.ndarray | None, share: float, seed: int, strict: bool
) -> tuple[np.ndarray, np.ndarray]:
    """`share` of the rows and the others, stratified on `labels` where there are any."""
    stratify = None if labels is None else labels[rows]
    try:
        return train_test_split(rows, train_size=share, random_state=seed, stratify=stratify)
    except ValueError as error:
        if strict:
            cannot = "" if labels is None else " stratify"
            advice = "add images" if labels is None else "raise split.min_samples_per_class"
            raise UserError(f"split.group_by none cannot{cannot}: {error}; {advice}") from None
    try:
        return train_test_split(rows, train_size=share, random_state=seed)
    except ValueError:  # too few rows for such a share
        return rows, rows[:0]
