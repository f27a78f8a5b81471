"""The test set in parts: where a figure over all images hides that one kind of them fares badly."""

from collections.abc import Callable, Iterator

import numpy as np
import pandas as pd

from explainmyxray.tables import split_labels

TOO_SMALL = 30  # images; below, an interval is wider than any difference worth a word
AGES = {"under_18": 0, "18_to_39": 18, "40_to_64": 40, "65_and_over": 65}  # years from which a group counts


def figures(predictions: pd.DataFrame, score: Callable[[np.ndarray], dict]) -> dict[str, dict[str, dict]]:
    """`<kind>.<part>`: n, too_small, bleu, exact_match, micro_f1; `score` gives the figures of the images in a mask.

    Unknown ages, views and sexes are in no part. `findings.none` has no micro_f1: with nothing to be found it is
    always 0, and `exact_match` says all.
    """
    found = {}
    for kind, part_of in _kinds(predictions):
        found[kind] = {}
        for part in sorted(set(part_of) - {""}):
            chosen = (part_of == part).to_numpy()
            figures = score(chosen)
            found[kind][part] = {
                "n": int(chosen.sum()),
                "too_small": bool(chosen.sum() < TOO_SMALL),
                "bleu": float(figures["bleu"]),
                "exact_match": float(figures["findings.exact_match"]),
            }
            if part != "none":
                found[kind][part]["micro_f1"] = float(figures["findings.micro_f1"])
    return found


def _kinds(predictions: pd.DataFrame) -> Iterator[tuple[str, pd.Series]]:
    """Each kind of slice with the part that every row belongs to; blank where unknown."""
    yield "source", predictions["source"]
    yield (
        "findings",
        predictions["labels"].map(lambda labels: ("none", "single", "combined")[_number(labels)]),
    )
    yield "view", predictions["view"]
    yield "sex", predictions["sex"]
    yield "age", predictions["age_years"].map(_age_group)


def _number(labels: str) -> int:
    return min(len(split_labels(labels)), 2)


def _age_group(years: str) -> str:
    if not years:
        return ""
    return [name for name, first in AGES.items() if float(years) >= first][-1]
