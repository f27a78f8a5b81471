"""The gate of a pull request: figures that may not get worse, and guards that give figures a meaning."""

import pandas as pd

from explainmyxray.comparing.comparison import ECE, LOWER_IS_BETTER, compare
from explainmyxray.scoring.evaluation import HEADLINE, MODEL
from explainmyxray.settings import Gate

MICRO_F1 = "findings.micro_f1"


def worse_figures(figures: pd.DataFrame, gate: Gate) -> list[str]:
    """A line for each headline figure, and the calibration error, that is worse by more than chance.

    And by more than `max_drop` of what it was.
    """
    lines = []
    for row in figures[figures["figure"].isin((*HEADLINE, ECE))].itertuples():
        least_loss = row.low if row.figure in LOWER_IS_BETTER else -row.high
        if least_loss > gate.max_drop * row.before:
            lines.append(
                f"{row.figure} is worse by more than chance: {row.before:.3f} to {row.after:.3f} "
                f"({row.low:+.3f} to {row.high:+.3f})"
            )
    return lines


def broken_guards(
    predictions: pd.DataFrame, evaluation: dict, split: dict, gate: Gate, samples: int, seed: int
) -> list[str]:
    """A line for each guard that a revision breaks.

    `predictions`, `evaluation` and `split` are its predictions.csv, eval.json and split.json.
    """
    guards = [
        blind_guard(predictions, samples, seed),
        same_text_guard(predictions, gate.max_same_text),
        malformed_guard(evaluation, gate.max_malformed),
        leak_guard(split),
    ]
    return [line for line in guards if line]


def blind_guard(predictions: pd.DataFrame, samples: int, seed: int) -> str:
    """A line where the model finds no more than when it is shown another patient's image, else blank."""
    blind = predictions.assign(**{MODEL: predictions["blind"]})
    row = compare(blind, predictions, samples, seed).set_index("figure").loc[MICRO_F1]
    if row["low"] > 0:
        return ""
    return (
        f"blind is as good as the model: {MICRO_F1} {row['before']:.3f} of another patient's image, "
        f"{row['after']:.3f} of the patient's own"
    )


def same_text_guard(predictions: pd.DataFrame, max_same_text: float) -> str:
    """A line where too many reports are one text, else blank.

    Normal films may share one: the share of the commonest labels is allowed, and `max_same_text` on top.
    """
    same_text = _largest_share(predictions[MODEL])
    same_labels = _largest_share(predictions["labels"])
    if same_text <= same_labels + max_same_text:
        return ""
    return (
        f"{same_text:.0%} of the reports are the same text; the commonest labels are those of "
        f"{same_labels:.0%} of the images"
    )


def malformed_guard(evaluation: dict, max_malformed: float) -> str:
    """A line where too many reports are malformed, else blank, also where they were not counted yet."""
    if "malformed_reports" not in evaluation:
        return ""
    malformed, n = evaluation["malformed_reports"]["any"], evaluation["n"]
    if malformed <= max_malformed * n:
        return ""
    return f"{malformed} of {n} reports are malformed, over {max_malformed:.1%}"


def leak_guard(split: dict) -> str:
    """A line where two splits share a patient, an image or a near duplicate, else blank."""
    shared = {name: count for name, count in split["shared"].items() if count}
    if not shared:
        return ""
    counts = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in shared.items())
    return f"the splits leak: {counts} in two of them"


def _largest_share(values: pd.Series) -> float:
    return float(values.value_counts(normalize=True).max())
