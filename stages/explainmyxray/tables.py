"""The studies table: one row an image kept, read and written in one place.

Every value is text and a blank means unknown, so that `00000013` stays an identifier and nothing turns into
NaN. `labels` is blank where the source has a report and no labels; `report` is blank where it has labels
alone. `sha256` is of the decoded pixels; `near_duplicate_of` is the first image of a group of near
duplicates, blank for an image without. `indexed_labels` are the findings that somebody indexed a report by,
where a source has them: a check of the labeler, never a truth to score against.

The reports table has no blank in `labels` and `report` any more, and says where each is from:
`report_origin` is `source` or `templates`, `labels_origin` is `source` or `labeler`.
"""

import json
import math
from pathlib import Path
from typing import TextIO

import pandas as pd

from explainmyxray.errors import UserError
from explainmyxray.outputs import replacing

COLUMNS = (
    "image",
    "source",
    "patient",
    "labels",
    "subtype",
    "view",
    "age_years",
    "sex",
    "report",
    "sha256",
    "near_duplicate_of",
    "indexed_labels",
)
ORIGINS = ("report_origin", "labels_origin")
REPORT_COLUMNS = (*COLUMNS, *ORIGINS)
SOURCE, TEMPLATES, LABELER = "source", "templates", "labeler"  # what the origins say
NO_FINDING = "No Finding"


def join_labels(labels) -> str:
    """`{"Mass", "Effusion"}` as `Effusion|Mass`; no label at all as `No Finding`."""
    return "|".join(sorted(labels)) or NO_FINDING


def split_labels(text: str) -> frozenset[str]:
    """`Effusion|Mass` as a set of findings; `No Finding` as the empty set."""
    return frozenset(text.split("|")) - {NO_FINDING, ""}


def count_patients(frame: pd.DataFrame) -> int:
    """How many different patients are known by name."""
    return frame.loc[frame["patient"] != "", "patient"].nunique()


def patient_or_image(frame: pd.DataFrame) -> pd.Series:
    """Each row's patient; where none is known, its image's name: then every film counts as a person's."""
    return frame["patient"].where(frame["patient"] != "", frame["image"])


def read_table(path: str | Path, columns=COLUMNS) -> pd.DataFrame:
    """Read a table of text columns.

    Raises UserError where the file is missing, empty, or lacks one of `columns`.
    """
    try:
        with open(path, encoding="utf-8", newline="") as file:
            return parse_table(file, path, columns)
    except FileNotFoundError:
        raise UserError(f"{path} is missing: `dvc checkout` brings it back, `dvc repro` makes it") from None


def parse_table(file: TextIO, name: str | Path, columns=COLUMNS) -> pd.DataFrame:
    """The table in an open `file`, called `name` in messages. Raises UserError where it is empty or lacks a
    column.
    """
    try:
        frame = pd.read_csv(file, dtype=str, keep_default_na=False)
    except (pd.errors.EmptyDataError, pd.errors.ParserError, UnicodeDecodeError) as error:
        raise UserError(f"{name} is no table: {error}") from None
    if missing := [column for column in columns if column not in frame]:
        raise UserError(f"{name} lacks the column{'s' * (len(missing) > 1)} {', '.join(missing)}")
    if frame.empty:
        raise UserError(f"{name} has no rows: there is nothing to work on")
    return frame


def write_table(path: str | Path, frame: pd.DataFrame) -> None:
    """Write `frame` as CSV, aside and renamed into place."""
    with replacing(path) as aside:
        frame.to_csv(aside, index=False, lineterminator="\n")


def rounded(figures):
    """`figures` with every float at four places, ready for `dvc metrics diff`.

    Raises ValueError for a list, which the diff drops without a word, and for a float that is not finite,
    which it shows as changed each time.
    """
    if isinstance(figures, dict):
        return {str(name): rounded(value) for name, value in figures.items()}
    if isinstance(figures, (list, tuple)):
        raise ValueError("metrics hold no lists: `dvc metrics diff` drops them silently")
    if isinstance(figures, float):
        if not math.isfinite(figures):
            raise ValueError("metrics are finite numbers")
        return round(figures, 4) + 0.0  # + 0.0 turns -0.0 into 0.0
    return figures


def write_metrics(path: str | Path, figures: dict) -> None:
    """Write nested `figures` as JSON, rounded, in the order given."""
    with replacing(path) as aside:
        aside.write_text(json.dumps(rounded(figures), indent=2, ensure_ascii=False) + "\n")
