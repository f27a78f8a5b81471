"""The split: on the real label file and names, on random tables, and as a command."""

import csv
import json
import re
import subprocess
import sys
from collections import Counter, defaultdict

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import REAL, ROOT
from explainmyxray.errors import UserError
from explainmyxray.reports.findings import FINDINGS
from explainmyxray.settings import Split
from explainmyxray.splits.group import find_groups
from explainmyxray.splits.make_splits import SPLITS, make_splits
from explainmyxray.tables import NO_FINDING, REPORT_COLUMNS, read_table, split_labels, write_table

NIH = REAL / "nih_sample" / "sample_labels.csv"
NAMES = REAL / "chest_xray_pneumonia" / "names.txt"
GUIDE = {
    "train": 0.8,
    "val": 0.1,
    "test": 0.1,
    "min_samples_per_class": 10,
    "max_samples": 8000,
    "stratify_by": "labels",
    "group_by": "patient",
}
NOTHING_SHARED = {"patients": 0, "images": 0, "near_duplicates": 0, "test_images_of_train_patients": 0}


def table(rows) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["image", "patient", "labels", "sha256"]).assign(near_duplicate_of="")


def nih() -> pd.DataFrame:
    if not NIH.exists():
        pytest.skip(f"{NIH} is not here")
    rows = []
    with NIH.open() as file:
        for row in csv.DictReader(file):
            labels = "|".join(sorted(row["Finding Labels"].split("|")))
            rows.append((row["Image Index"], row["Patient ID"], labels, row["Image Index"]))
    return table(rows)


def pneumonia() -> pd.DataFrame:
    if not NAMES.exists():
        pytest.skip(f"{NAMES} is not here")
    rows = []
    for name in sorted(set(NAMES.read_text().split())):
        person = re.search(r"person(\d+)_(bacteria|virus)|((?:NORMAL2-)?IM-\d+)-", name)
        labels = NO_FINDING if "/NORMAL/" in name else "Pneumonia"
        rows.append((name, "-".join(filter(None, person.groups())), labels, name))
    return table(rows)


def both() -> pd.DataFrame:
    return pd.concat([nih(), pneumonia()], ignore_index=True)


@pytest.mark.parametrize("make, images", [(nih, 5185), (pneumonia, 5856), (both, 8000)])
@pytest.mark.parametrize(
    "shares, tolerance", [((0.8, 0.1, 0.1), 2), ((0.7, 0.15, 0.15), 2), ((0.9, 0.05, 0.05), 5)]
)
def test_real_labels(make, images, shares, tolerance):
    """Tolerances: 0.1 % of the rows overall, two images for each combination and each label in each split.

    A share of 5 % is less than one image of a rare combination, but each split gets one: it adds up to five
    in a label.
    """
    values = GUIDE | dict(zip(SPLITS, shares))
    parts, figures = make_splits(make(), Split(**values), seed=42)
    kept = pd.concat(parts.values())
    assert len(kept) == images == figures["kept"]["images"]
    assert figures["shared"] == NOTHING_SHARED
    assert figures["unplaced"] == {}
    combinations = Counter(kept["labels"])
    for name, share in zip(SPLITS, shares):
        assert abs(len(parts[name]) / images - share) < 0.001
        here = Counter(parts[name]["labels"])
        for labels, n in combinations.items():
            assert here[labels] >= 1
            assert abs(here[labels] - share * n) <= 2, (name, labels)
        for label in (*FINDINGS, NO_FINDING):
            n = sum(figures[each]["labels"][label]["count"] for each in SPLITS)
            assert abs(figures[name]["labels"][label]["count"] - share * n) <= tolerance, (name, label)


def test_real_counts():
    figures = make_splits(nih(), Split(**GUIDE), seed=42)[1]
    assert figures["total"] == {"images": 5606, "patients": 4230}
    dropped = figures["dropped"]
    assert len(dropped["rare_combinations"]) == 244 - 38
    assert dropped["rare_images"] == sum(dropped["rare_combinations"].values()) == 5606 - 5185
    assert pneumonia()["patient"].nunique() == 4097


@pytest.mark.parametrize("make, patients", [(nih, 250), (pneumonia, 300)])
def test_the_plain_split_leaks_and_says_so(make, patients):
    frame = make()
    figures = make_splits(frame, Split(**GUIDE | {"group_by": "none"}), seed=42)[1]
    assert figures["group_by"] == "none"
    assert figures["shared"]["patients"] > patients
    assert figures["shared"]["test_images_of_train_patients"] > 100
    assert figures["shared"] == figures["plain"] == make_splits(frame, Split(**GUIDE), seed=42)[1]["plain"]


def test_the_cap_keeps_each_combination_in_proportion():
    frame = both()
    parts, figures = make_splits(frame, Split(**GUIDE | {"max_samples": 3000}), seed=42)
    kept, before = Counter(pd.concat(parts.values())["labels"]), Counter(frame["labels"])
    common = {labels: n for labels, n in before.items() if n >= 10}
    assert sum(kept.values()) == 3000
    assert figures["dropped"]["over_max_samples"] == sum(common.values()) - 3000
    assert all(abs(kept[labels] - n * 3000 / sum(common.values())) < 1 for labels, n in common.items())


def test_one_seed_one_split():
    frame = nih()
    once = make_splits(frame, Split(**GUIDE), seed=42)[0]
    again = make_splits(frame.sample(frac=1, random_state=1), Split(**GUIDE), seed=42)[0]
    other = make_splits(frame, Split(**GUIDE), seed=43)[0]
    for name in SPLITS:
        pd.testing.assert_frame_equal(once[name], again[name])
        assert list(once[name]["image"]) == sorted(once[name]["image"])
        assert set(once[name]["image"]) != set(other[name]["image"])


COMBINATIONS = ("No Finding", "Mass", "Edema", "Edema|Mass")
PATIENTS = st.sampled_from(["", *"abcdefghijkl"])
PIXELS = st.sampled_from(["", *map(str, range(40))])
TABLES = st.lists(st.tuples(PATIENTS, st.sampled_from(COMBINATIONS), PIXELS), min_size=1, max_size=40)


def linked(rows) -> list[set[int]]:
    """Groups found the slow way: each row joins all earlier groups that share its patient or its pixels."""
    groups: list[tuple[set[int], set[str]]] = []  # rows, and the patients and pixels that link them
    for i, (_, patient, _, pixels) in enumerate(rows):
        members, links = {i}, set()
        if patient:
            links.add(f"patient {patient}")
        if pixels:
            links.add(f"pixels {pixels}")
        joined = [group for group in groups if group[1] & links]
        apart = [group for group in groups if group not in joined]
        for other_members, other_links in joined:
            members |= other_members
            links |= other_links
        groups = [*apart, (members, links)]
    return [members for members, _ in groups]


@settings(max_examples=100, deadline=None)
@given(
    rows=TABLES,
    random=st.randoms(use_true_random=False),
    stratify_by=st.sampled_from(["labels", "none"]),
    shares=st.sampled_from([(0.8, 0.1, 0.1), (0.7, 0.15, 0.15), (0.34, 0.33, 0.33)]),
)
def test_random_tables(rows, random, stratify_by, shares):
    rows = [(f"{i:02}.png", patient, labels, pixels) for i, (patient, labels, pixels) in enumerate(rows)]
    frame = table(rows)

    # The groups are those found the slow way.
    found = defaultdict(set)
    for i, group in enumerate(find_groups(frame)):
        found[group].add(i)
    groups = linked(rows)
    assert sorted(map(sorted, found.values())) == sorted(map(sorted, groups))

    # Refused are only tables of fewer groups than splits.
    values = {"min_samples_per_class": 1, "max_samples": 10**6, "stratify_by": stratify_by}
    split = Split(**GUIDE | values | dict(zip(SPLITS, shares)))
    try:
        parts, figures = make_splits(frame, split, seed=1)
    except UserError:
        assert len(groups) < 3
        return

    # Every row is in one split, and no group in two.
    assert sorted(pd.concat(parts.values())["image"]) == sorted(frame["image"])
    assert figures["shared"] == NOTHING_SHARED

    # The order of the rows does not matter.
    shuffled = rows.copy()
    random.shuffle(shuffled)
    again, same = make_splits(table(shuffled), split, seed=1)
    assert same == figures
    assert all(parts[name].equals(again[name]) for name in SPLITS)

    # A combination missing from a split is listed, and is one that fewer than three groups hold (groups of
    # several combinations can get in each other's way).
    if stratify_by == "labels":
        splits_with = Counter()
        for part in parts.values():
            splits_with.update(set(part["labels"]))
        missing = {labels: 3 - count for labels, count in splits_with.items() if count < 3}
        assert figures["unplaced"] == missing
        combinations_of = [{rows[i][2] for i in members} for members in groups]
        if all(len(combinations) == 1 for combinations in combinations_of):
            holders = Counter(combinations.pop() for combinations in combinations_of)
            assert all(holders[labels] < 3 for labels in missing)


def test_duplicates_and_blanks():
    """Equal pixels tie two patients together; a blank ties nothing."""
    ties = [("1", "x"), ("2", "x"), ("2", "y"), ("", ""), ("", "")]
    frame = table([(name, patient, "Mass", sha256) for name, (patient, sha256) in zip("abcde", ties)])
    assert list(find_groups(frame)) == [0, 0, 0, 1, 2]
    assert list(find_groups(frame.assign(near_duplicate_of=["c", "", "", "", "c"]))) == [0, 0, 0, 1, 0]


def test_near_duplicates_stay_together_and_are_counted_where_they_do_not():
    rows = [(f"{i:03}.png", str(i), COMBINATIONS[i % 4], str(i)) for i in range(400)]
    frame = table(rows)
    # 100 films, each stored by two patients
    frame.loc[:199, "near_duplicate_of"] = [f"{i // 2 * 2:03}.png" for i in range(200)]
    together = make_splits(frame, Split(**GUIDE), seed=1)[1]
    assert together["shared"] == NOTHING_SHARED and together["plain"]["near_duplicates"] > 10
    apart = make_splits(frame, Split(**GUIDE | {"group_by": "none"}), seed=1)[1]
    assert apart["shared"]["near_duplicates"] == together["plain"]["near_duplicates"]


def test_empty_class_and_empty_split():
    frame = table([(f"{i}.png", str(i), "Mass", str(i)) for i in range(9)])
    with pytest.raises(UserError, match="no label combination has 10 images: lower split.min_samples_per"):
        make_splits(frame, Split(**GUIDE), seed=1)
    with pytest.raises(UserError, match="is empty"):
        make_splits(frame.assign(patient="one"), Split(**GUIDE | {"min_samples_per_class": 1}), seed=1)
    with pytest.raises(UserError, match="group_by none cannot stratify"):
        split = Split(**GUIDE | {"min_samples_per_class": 1, "group_by": "none"})
        make_splits(frame.assign(labels=[*FINDINGS[:9]]), split, seed=1)


def test_command(tmp_path):
    rows = [(f"{i:03}.png", str(i // 2), COMBINATIONS[i % 4], str(i)) for i in range(200)]
    frame = table([*rows, ("z.png", "z", "Hernia", "z")]).reindex(columns=REPORT_COLUMNS, fill_value="")
    write_table(tmp_path / "data" / "reports.csv", frame)
    (tmp_path / "params.yaml").write_text((ROOT / "params.yaml").read_text())

    def run():
        command = [sys.executable, str(ROOT / "stages" / "split.py")]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)

    done = run()
    assert done.returncode == 0, done.stderr
    assert "shared by two splits: 0 patients, 0 images" in done.stdout
    figures = json.loads((tmp_path / "metrics" / "split.json").read_text())
    assert figures["dropped"]["rare_combinations"] == {"Hernia": 1}
    counts = pd.read_csv(tmp_path / "metrics" / "labels.csv")
    assert list(counts.columns) == ["split", "label", "count"] and len(counts) == 45
    parts = {
        name: read_table(tmp_path / "data" / "splits" / f"{name}.csv", REPORT_COLUMNS) for name in SPLITS
    }
    assert [len(part) for part in parts.values()] == [160, 20, 20]
    masses = sum("Mass" in split_labels(labels) for labels in parts["train"]["labels"])
    assert masses == figures["train"]["labels"]["Mass"]["count"]
    before = (tmp_path / "metrics" / "split.json").read_bytes()
    run()
    assert (tmp_path / "metrics" / "split.json").read_bytes() == before
    write_table(tmp_path / "data" / "reports.csv", frame.head(8))
    failed = run()
    assert failed.returncode == 1 and failed.stderr.count("\n") == 1
    assert "lower split.min_samples_per_class" in failed.stderr
