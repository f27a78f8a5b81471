"""Train, val and test: filter, cap, group, stratify, audit. No patient, no image and no near copy is in two splits.

The order of the rows is no matter, and the seed decides every tie.
"""

import hashlib
from collections import Counter, defaultdict

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from sklearn.model_selection import train_test_split

from explainmyxray.errors import UserError
from explainmyxray.reports.findings import FINDINGS
from explainmyxray.settings import Split
from explainmyxray.splits.stratify import assign, missing
from explainmyxray.tables import NO_FINDING, split_labels

SPLITS = ("train", "val", "test")
LINKS = ("patient", "sha256", "near_duplicate_of")  # rows that share one of these stay together


def make_splits(reports: pd.DataFrame, split: Split, seed: int) -> tuple[dict[str, pd.DataFrame], dict]:
    """The rows of `reports` as train, val and test, each sorted by image, and the figures for `metrics/split.json`.

    Raises UserError where no row or no image for a split is left, or where the plain split cannot stratify.
    """
    reports = reports.sort_values("image", ignore_index=True)
    common, rare = _drop_rare(reports, split.min_samples_per_class)
    kept = _cap(common, split, seed)
    if split.group_by == "patient":
        places, unplaced = _grouped(kept, split, seed)
    else:
        places, unplaced = _plain(kept, split, seed), {}
    parts = {name: kept[places == name].reset_index(drop=True) for name in SPLITS}
    if empty := [name for name in SPLITS if parts[name].empty]:
        raise UserError(
            f"split {empty[0]} is empty: {len(kept)} images of {_patients(kept)} patients are too few"
        )
    dropped = {"rare_images": sum(rare.values()), "over_max_samples": len(common) - len(kept)}
    figures = {
        "group_by": split.group_by,
        "total": {"images": len(reports), "patients": _patients(reports)},
        "kept": {"images": len(kept), "patients": _patients(kept)},
        "dropped": dropped | {"rare_combinations": rare},
        "shared": leaks(kept, places),
        "plain": leaks(kept, _plain(kept, split, seed, strict=False)),
        "unplaced": unplaced,
    }
    return parts, figures | {name: _describe(part) for name, part in parts.items()}


def _drop_rare(reports: pd.DataFrame, least: int) -> tuple[pd.DataFrame, dict[str, int]]:
    """The rows whose label combination has `least` images, and the images of each combination that has fewer."""
    counts = Counter(reports["labels"])
    rare = {labels: counts[labels] for labels in sorted(counts) if counts[labels] < least}
    common = reports[~reports["labels"].isin(rare)].reset_index(drop=True)
    if common.empty:
        raise UserError(f"no label combination has {least} images: lower split.min_samples_per_class")
    return common, rare


def _cap(reports: pd.DataFrame, split: Split, seed: int) -> pd.DataFrame:
    """At most `max_samples` images: each label combination keeps its share, to the nearest image (largest remainder).

    Images are drawn, not patients: the shares come out exactly, and a patient who loses images still is in one split.
    """
    most = split.max_samples
    if len(reports) <= most:
        return reports
    strata = reports["labels"] if split.stratify_by == "labels" else pd.Series("", index=reports.index)
    counts = strata.value_counts().sort_index()
    exact = counts * most / len(reports)
    quota = exact.astype(int)
    quota[(quota - exact).sort_values(kind="stable").index[: most - quota.sum()]] += 1
    shuffled = strata.iloc[_order(reports["image"], seed)]
    drawn = shuffled[shuffled.groupby(shuffled).cumcount() < shuffled.map(quota)]
    return reports.loc[drawn.index.sort_values()].reset_index(drop=True)


def _order(names: pd.Series, seed: int) -> np.ndarray:
    """A shuffle that hangs on each name and the seed alone, so that another image more or less moves no other."""
    return np.argsort(
        [hashlib.sha256(f"{seed}:{name}".encode()).hexdigest() for name in names], kind="stable"
    )


def groups(reports: pd.DataFrame) -> np.ndarray:
    """A number for each row: rows linked by patient, by identical pixels or as near copies, over others or directly, have the same.

    A blank means unknown and links nothing.
    """
    rows, keys, offset = [], [], len(reports)
    for column in LINKS:
        known = np.flatnonzero(reports[column] != "")
        codes = pd.factorize(reports[column].iloc[known])[0]
        rows.append(known)
        keys.append(codes + offset)
        offset += len(known)
    rows, keys = np.concatenate(rows), np.concatenate(keys)
    graph = coo_array((np.ones(len(rows)), (rows, keys)), shape=(offset, offset))
    return pd.factorize(connected_components(graph, directed=False)[1][: len(reports)])[0]


def _grouped(reports: pd.DataFrame, split: Split, seed: int) -> tuple[np.ndarray, dict[str, int]]:
    """The split of each row, and the label combinations that some split lacks, with the number of splits that do."""
    group = groups(reports)
    members = defaultdict(list)
    for row in _order(reports["image"], seed):
        members[group[row]].append(row)
    classes = [_classes(labels) for labels in reports["labels"]] if split.stratify_by == "labels" else None
    chosen = assign(list(members.values()), classes, [split.train, split.val, split.test])
    places = np.empty(len(reports), dtype=object)
    for rows, place in zip(members.values(), chosen):
        places[rows] = SPLITS[place]
    return places, missing(reports["labels"], places, SPLITS) if classes else {}


def _classes(labels: str) -> tuple[str, ...]:
    """What is balanced: the combination, and each label in it; the combination comes first."""
    return (labels, *(f"has {name}" for name in _labels(labels)))


def _labels(labels: str) -> list[str]:
    return sorted(split_labels(labels)) or [NO_FINDING]


def _plain(reports: pd.DataFrame, split: Split, seed: int, strict: bool = True) -> np.ndarray:
    """The usual split by image, scikit-learn's `train_test_split(stratify=labels)` twice, which leaks patients.

    Where a combination has too few images for that, raises UserError, or, not `strict`, splits without stratifying.
    """
    labels = reports["labels"].to_numpy()

    def two(rows, share):
        stratify = labels[rows] if split.stratify_by == "labels" else None
        try:
            return train_test_split(rows, train_size=share, random_state=seed, stratify=stratify)
        except ValueError as error:
            if strict:
                message = f"split.group_by none cannot stratify: {error}; raise split.min_samples_per_class"
                raise UserError(message) from None
        try:
            return train_test_split(rows, train_size=share, random_state=seed)
        except ValueError as error:  # too few rows for such a share
            if strict:
                raise UserError(f"split: {error}") from None
            return rows, rows[:0]

    places = np.full(len(reports), "train", dtype=object)
    if len(reports) < 3:
        return places
    rest = two(np.arange(len(reports)), split.train)[1]
    if len(rest) > 1:
        val, test = two(rest, split.val / (split.val + split.test))
        places[val], places[test] = "val", "test"
    return places


def leaks(reports: pd.DataFrame, places: np.ndarray) -> dict[str, int]:
    """What two splits share: patients, pixel-identical images, films of which both have a copy, and the test images whose patient is in train."""
    shared = {}
    for name, column in {
        "patients": "patient",
        "images": "sha256",
        "near_duplicates": "near_duplicate_of",
    }.items():
        known = reports[column] != ""
        shared[name] = int(
            (pd.Series(places[known]).groupby(reports[column][known].to_numpy()).nunique() > 1).sum()
        )
    trained = set(reports["patient"][places == "train"]) - {""}
    shared["test_images_of_train_patients"] = int(reports["patient"][places == "test"].isin(trained).sum())
    return shared


def _patients(reports: pd.DataFrame) -> int:
    return reports.loc[reports["patient"] != "", "patient"].nunique()


def _describe(part: pd.DataFrame) -> dict:
    counts = Counter(name for labels in part["labels"] for name in _labels(labels))
    labels = {
        name: {"count": counts[name], "share": counts[name] / len(part)} for name in (*FINDINGS, NO_FINDING)
    }
    return {"images": len(part), "patients": _patients(part), "labels": labels}
