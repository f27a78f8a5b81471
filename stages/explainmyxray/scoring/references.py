"""What the reference reports are, real or synthetic, and what may therefore be compared with them."""

from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
from ruamel.yaml import YAML

from explainmyxray.reports.labeler import label_report
from explainmyxray.tables import LABELER, NO_FINDING, SOURCE

# Beside a real report their wording is another language, and its BLEU says nothing of the findings.
SPEAK_TEMPLATES = ("classifier", "ceiling")
TEXT_FIGURES = ("bleu", "rouge1", "rouge2", "rougeL")
GIVEN = "findings that the labeler reads in the generated report, with the labels that the source gives"
READ = (
    "findings that the labeler reads in both reports; what a report calls uncertain counts as not there, "
    "in either"
)


def are_real(predictions: pd.DataFrame) -> np.ndarray:
    """Whether each reference is a report that its source brought: bool (n,).

    None is in a table without the column: those of before it are synthetic.
    """
    if "report_origin" not in predictions:
        return np.zeros(len(predictions), dtype=bool)
    return (predictions["report_origin"] == SOURCE).to_numpy()


def describe_references(predictions: pd.DataFrame) -> dict:
    """The section `references` of eval.json: how many are real, and what F1 compares."""
    real = are_real(predictions)
    read = np.zeros(len(predictions), dtype=bool)
    if "labels_origin" in predictions:
        read = (predictions["labels_origin"] == LABELER).to_numpy()
    uncertain = 0
    for text in predictions["report"][read]:
        statuses = label_report(text)
        uncertain += sum(statuses[name] == "uncertain" for name in statuses if name != NO_FINDING)
    compared = READ if read.all() else GIVEN
    if read.any() and not read.all():
        compared = f"of {len(read) - read.sum()} images {GIVEN}; of {read.sum()} {READ}"
    return {
        "real": int(real.sum()),
        "synthetic": int((~real).sum()),
        "labels_read_by_labeler": int(read.sum()),
        "uncertain_findings": uncertain,
        "f1_compares": compared,
    }


@cache
def labeler_validity() -> dict:
    """The section `labeler` of eval.json: how well it reads real reports, which bounds what F1 can say.

    `reports` is their number; `without_doubt` and `doubt_as_absent`, as F1 counts it, each have `precision`,
    `recall`, `f1` and F1 of each finding under `per_finding`.
    """
    return YAML(typ="safe").load(Path(__file__).with_name("labeler_validity.yaml"))


def reason_to_leave_out(system: str, predictions: pd.DataFrame) -> str:
    """Why a system has no figures of its text; blank where it has."""
    real = are_real(predictions)
    if system not in SPEAK_TEMPLATES or not real.any():
        return ""
    return f"left out: {real.sum()} of {len(real)} references are real reports, and {system} speaks templates"
