"""What a reviewer wants to know of a split: what its parts hold, and what two of them share."""

from collections import Counter

import numpy as np
import pandas as pd

from explainmyxray.reports.findings import FINDINGS
from explainmyxray.tables import NO_FINDING, count_patients, split_labels


def count_leaks(reports: pd.DataFrame, places: np.ndarray) -> dict[str, int]:
    """How many patients, identical images and near-duplicate groups are in two splits; blanks do not count.

    Beside them, how many test images have a patient in train. `places` holds the split's name for each row.
    """
    trained = set(reports["patient"][places == "train"]) - {""}
    test_patients = reports["patient"][places == "test"]
    return {
        "patients": _count_shared(reports["patient"], places),
        "images": _count_shared(reports["sha256"], places),
        "near_duplicates": _count_shared(reports["near_duplicate_of"], places),
        "test_images_of_train_patients": int(test_patients.isin(trained).sum()),
    }


def _count_shared(values: pd.Series, places: np.ndarray) -> int:
    """How many of the values that are not blank stand in more than one split."""
    known = values != ""
    splits_of_value = pd.Series(places[known]).groupby(values[known].to_numpy()).nunique()
    return int((splits_of_value > 1).sum())


def describe_split(part: pd.DataFrame) -> dict:
    """Images, patients, and count and share of each label."""
    counts = Counter()
    for labels in part["labels"]:
        counts.update(label_names(labels))
    label_figures = {}
    for name in (*FINDINGS, NO_FINDING):
        label_figures[name] = {"count": counts[name], "share": counts[name] / len(part)}
    return {"images": len(part), "patients": count_patients(part), "labels": label_figures}


def label_names(labels: str) -> list[str]:
    """`Effusion|Mass` as a sorted list; `No Finding` is a label, too."""
    return sorted(split_labels(labels)) or [NO_FINDING]
