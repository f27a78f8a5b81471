"""The grouped split beside scikit-learn's StratifiedGroupKFold: `python tests/benchmarks/splits.py`.

For each split it prints how far the count of a label combination, and of a label, is from its share at worst,
in images, and how many combinations are missing from a split. It needs ../shared/real, as tests/test_split.py
does.
"""

import math
import sys
import warnings
from collections import Counter
from fractions import Fraction
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.model_selection import StratifiedGroupKFold

sys.path += [str(Path(__file__).resolve().parents[2] / "stages"), str(Path(__file__).resolve().parents[1])]

import test_split
from explainmyxray.command import parse_no_arguments
from explainmyxray.settings import Split
from explainmyxray.splits.audit import label_names
from explainmyxray.splits.group import find_groups
from explainmyxray.splits.make_splits import SPLITS, make_splits

SEED = 42
SHARES = ((0.8, 0.1, 0.1), (0.7, 0.15, 0.15), (0.9, 0.05, 0.05))


def main() -> None:
    parse_no_arguments(__doc__)
    warnings.filterwarnings("ignore", message="The least populated class")
    print(f"{'':40}{'combination':>14}{'label':>8}{'missing':>10}")
    for make in (test_split.nih, test_split.pneumonia, test_split.both):
        for shares in SHARES:
            split = Split(**test_split.GUIDE | dict(zip(SPLITS, shares)))
            parts, _ = make_splits(make(), split, SEED)
            folds = stratified_group_k_fold(pd.concat(parts.values(), ignore_index=True), shares)
            for name, rows in (("assign_groups", parts), ("StratifiedGroupKFold", folds)):
                print(f"{f'{make.__name__} {shares[0]:.0%} {name}':40}{deviations(rows, shares)}", flush=True)


def stratified_group_k_fold(reports: pd.DataFrame, shares: tuple[float, ...]) -> dict[str, pd.DataFrame]:
    """As few equal folds as the shares allow (10 or 20), of which those go to val and test that fit best."""
    denominators = [Fraction(share).limit_denominator(100).denominator for share in shares]
    num_folds = math.lcm(*denominators)
    strata = pd.factorize(reports["labels"])[0]
    splitter = StratifiedGroupKFold(num_folds, shuffle=True, random_state=SEED)
    fold_of_row = np.empty(len(reports), dtype=int)
    for fold, (_, rows) in enumerate(splitter.split(strata, strata, find_groups(reports))):
        fold_of_row[rows] = fold
    counts = np.zeros((num_folds, strata.max() + 1))
    np.add.at(counts, (fold_of_row, strata), 1)
    totals = counts.sum(0)

    split_of_fold = np.full(num_folds, SPLITS[0], dtype=object)
    for name, share in zip(SPLITS[1:], shares[1:]):
        # Of all choices among the folds left, the one with the smallest chi-squared distance; a combination
        # that is missing adds a hundred to it.
        left = np.flatnonzero(split_of_fold == SPLITS[0])
        choices = np.array(list(combinations(left, round(num_folds * share))))
        chosen = counts[choices].sum(1)
        distance = ((chosen - share * totals) ** 2 / (share * totals)).sum(1)
        distance += 100 * (chosen == 0).sum(1)
        split_of_fold[choices[distance.argmin()]] = name
    return {name: reports[split_of_fold[fold_of_row] == name] for name in SPLITS}


def deviations(parts: dict[str, pd.DataFrame], shares: tuple[float, ...]) -> str:
    """The worst deviations from the shares, in images, and the combinations that splits lack."""
    in_split = {name: count(part) for name, part in parts.items()}
    combination_totals, label_totals = count(pd.concat(parts.values()))
    worst_combination = worst_label = missing = 0
    for name, share in zip(SPLITS, shares):
        combination_counts, label_counts = in_split[name]
        for labels, total in combination_totals.items():
            worst_combination = max(worst_combination, abs(combination_counts[labels] - share * total))
            missing += combination_counts[labels] == 0
        for label, total in label_totals.items():
            worst_label = max(worst_label, abs(label_counts[label] - share * total))
    return f"{worst_combination:14.1f}{worst_label:8.1f}{missing:10}"


def count(reports: pd.DataFrame) -> tuple[Counter, Counter]:
    """The images of each combination and of each label."""
    labels = Counter()
    for combination in reports["labels"]:
        labels.update(label_names(combination))
    return Counter(reports["labels"]), labels


if __name__ == "__main__":
    main()
