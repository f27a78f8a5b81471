"""Train, validation and test: filter, cap, group, stratify, audit.

The order of the rows does not matter, and the seed decides every tie.
"""

from collections import defaultdict

import numpy as np
import pandas as pd

from explainmyxray.errors import UserError
from explainmyxray.settings import Split
from explainmyxray.splits.audit import count_leaks, describe_split, label_names
from explainmyxray.splits.cap import cap_images
from explainmyxray.splits.filter import drop_rare_combinations
from explainmyxray.splits.group import find_groups
from explainmyxray.splits.plain import plain_split
from explainmyxray.splits.shuffle import shuffled_positions
from explainmyxray.splits.stratify import assign_groups, count_missing
from explainmyxray.tables import count_patients

SPLITS = ("train", "val", "test")


def make_splits(reports: pd.DataFrame, split: Split, seed: int) -> tuple[dict[str, pd.DataFrame], dict]:
    """The rows of `reports` as train, val and test, sorted by image, and the figures for metrics/split.json.

    Raises UserError where no row or no image for a split is left, or where the plain split cannot stratify.
    """
    reports = reports.sort_values("image", ignore_index=True)
    common, rare = drop_rare_combinations(reports, split.min_samples_per_class)
    selected = cap_images(common, split, seed)
    if split.group_by == "patient":
        places = _grouped_split(selected, split, seed)
    else:
        places = plain_split(selected, split, seed)
    parts = {name: selected[places == name].reset_index(drop=True) for name in SPLITS}
    for name, part in parts.items():
        if part.empty:
            raise UserError(
                f"split {name} is empty: {len(selected)} images of {count_patients(selected)} patients "
                "are too few"
            )

    unplaced = {}
    if split.group_by == "patient" and split.stratify_by == "labels":
        unplaced = count_missing(selected["labels"], places, SPLITS)
    figures = {
        "group_by": split.group_by,
        "total": {"images": len(reports), "patients": count_patients(reports)},
        "kept": {"images": len(selected), "patients": count_patients(selected)},
        "dropped": {
            "rare_images": sum(rare.values()),
            "over_max_samples": len(common) - len(selected),
            "rare_combinations": rare,
        },
        "shared": count_leaks(selected, places),
        "plain": count_leaks(selected, plain_split(selected, split, seed, strict=False)),  # for comparison
        # Of these nobody can tell whether one person's films are in two splits.
        "leaks_that_cannot_be_seen": {"images_without_patient": int((selected["patient"] == "").sum())},
        "unplaced": unplaced,
    }
    for name, part in parts.items():
        figures[name] = describe_split(part)
    return parts, figures


def _grouped_split(reports: pd.DataFrame, split: Split, seed: int) -> np.ndarray:
    """The split's name for each row; rows of one group are in one split."""
    # 1) The rows of each group, rows and groups in shuffled order.
    group_of_row = find_groups(reports)
    members = defaultdict(list)
    for row in shuffled_positions(reports["image"], seed):
        members[group_of_row[row]].append(row)
    # 2) Each group to a split, label combinations balanced where the settings ask for it.
    classes = None
    if split.stratify_by == "labels":
        classes = [_classes(labels) for labels in reports["labels"]]
    assigned = assign_groups(list(members.values()), classes, [split.train, split.val, split.test])
    # 3) From groups back to rows.
    places = np.empty(len(reports), dtype=object)
    for rows, place in zip(members.values(), assigned):
        places[rows] = SPLITS[place]
    return places


def _classes(labels: str) -> list[str]:
    """What is balanced: first the combination, which must reach every split, then each label in it."""
    return [labels] + [f"has {name}" for name in label_names(labels)]
