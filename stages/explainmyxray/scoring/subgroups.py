"""The test set in subgroups: where a figure over all images hides that one kind of them fares badly."""

from collections.abc import Callable

import numpy as np
import pandas as pd

from explainmyxray.tables import split_labels

TOO_SMALL = 30  # images; below, an interval is wider than any difference worth a word
AGE_GROUPS = {"under_18": 0, "18_to_39": 18, "40_to_64": 40, "65_and_over": 65}  # from so many years on
NUM_FINDINGS = ("none", "single", "combined")


def subgroup_metrics(
    predictions: pd.DataFrame, score: Callable[[np.ndarray], dict]
) -> dict[str, dict[str, dict]]:
    """`<kind>.<subgroup>`: n, too_small, bleu, exact_match, micro_f1.

    `score` gives the figures of the rows that a mask (n,) chooses. Unknown ages, views and sexes are in no
    subgroup. `findings.none` has no micro_f1: with nothing to be found it is always 0, and `exact_match` says
    all.
    """
    # Each kind of subgroup with the one that every row belongs to; blank where unknown.
    kinds = {
        "source": predictions["source"],
        "findings": predictions["labels"].map(_num_findings),
        "view": predictions["view"],
        "sex": predictions["sex"],
        "age": predictions["age_years"].map(_age_group),
    }
    metrics = {}
    for kind, subgroup_of in kinds.items():
        metrics[kind] = {}
        for subgroup in sorted(set(subgroup_of) - {""}):
            mask = (subgroup_of == subgroup).to_numpy()
            figures = score(mask)
            metrics[kind][subgroup] = {
                "n": int(mask.sum()),
                "too_small": bool(mask.sum() < TOO_SMALL),
                "bleu": float(figures["bleu"]),
                "exact_match": float(figures["findings.exact_match"]),
            }
            if subgroup != "none":
                metrics[kind][subgroup]["micro_f1"] = float(figures["findings.micro_f1"])
    return metrics


def _num_findings(labels: str) -> str:
    return NUM_FINDINGS[min(len(split_labels(labels)), 2)]


def _age_group(years: str) -> str:
    if not years:
        return ""
    groups = [name for name, first in AGE_GROUPS.items() if float(years) >= first]
    return groups[-1]
