"""What a reviewer wants to know of a split: what its parts hold, and what two of them share."""

from collections import Counter

import numpy as np
import pandas as pd

from explainmyxray.reports.findings import FINDINGS
from explainmyxray.tables import LABELER, NO_FINDING, count_patients, split_labels


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


def compare_with_index(reports: pd.DataFrame) -> dict:
    """How far the labels that the labeler has read in a source's reports agree with those that somebody
    indexed the reports by; of both nobody knows the truth.

    A check of the labeler on these reports; empty where no report is indexed.
    """
    rows = reports[(reports["indexed_labels"] != "") & (reports["labels_origin"] == LABELER)]
    if rows.empty:
        return {}
    read = [split_labels(labels) for labels in rows["labels"]]
    indexed = [split_labels(labels) for labels in rows["indexed_labels"]]
    per_finding = {}
    for name in FINDINGS:
        pairs = Counter((name in a, name in b) for a, b in zip(read, indexed))
        per_finding[name] = {
            "both": pairs[True, True],
            "labeler_alone": pairs[True, False],
            "index_alone": pairs[False, True],
        }
    both, one = 0, 0
    for counts in per_finding.values():
        both += counts["both"]
        one += counts["labeler_alone"] + counts["index_alone"]
    return {
        "images": len(rows),
        "same_labels": int((rows["labels"] == rows["indexed_labels"]).sum()),
        "micro_f1": 2 * both / (2 * both + one) if both + one else 0.0,
        "per_finding": per_finding,
    }


def label_names(labels: str) -> list[str]:
    """`Effusion|Mass` as a sorted list; `No Finding` is a label, too."""
    return sorted(split_labels(labels)) or [NO_FINDING]
