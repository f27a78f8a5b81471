"""Films of one's own: a CSV beside them says of each whose it is and what is known of it.

The CSV is `data.table`. Columns: `image` (relative to the CSV), `patient`, and `report` or `labels` or both;
`view`, `age_years` and `sex` where they are known. docs/own-data.md has an example.
"""

import difflib
import hashlib
import os
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
from PIL import Image

from explainmyxray.errors import UserError, shortened
from explainmyxray.images.decoding import MAX_FILE_BYTES, REASONS, BadImage
from explainmyxray.images.films import open_film
from explainmyxray.sources import Film
from explainmyxray.sources.ages import OLDEST, age_years
from explainmyxray.sources.archive_files import IDENTIFIER, read_text_columns, read_yaml
from explainmyxray.tables import NO_FINDING, join_labels

if TYPE_CHECKING:
    from explainmyxray import settings

NEEDED = ("image", "patient")
EITHER = ("report", "labels")
OPTIONAL = ("view", "age_years", "sex")
MAX_CELL = 20_000  # characters of a report; the longest of Open-i's 3,955 has under 1,800
MAX_TABLE_BYTES = 2**30
ROW_REASONS = ("no_image", "image_named_twice", "no_report_and_no_labels", "report_too_long")
SUFFIX = re.compile(r"\.(png|jpe?g|dcm|dicom)$", re.IGNORECASE)
UNSAFE = re.compile(r"[^A-Za-z0-9_./-]+")
# Folders and a name that begin with a letter or digit; a folder x.png would meet the image of x.
SAFE_PATH = re.compile(
    r"(?:(?![^/]*\.png/)[A-Za-z0-9][A-Za-z0-9_.-]*/)*[A-Za-z0-9][A-Za-z0-9_.-]*", re.IGNORECASE
)
MAX_NAME = 80  # characters of a path under data/images, before a hash that keeps two of them apart
VIEWS = {name.casefold(): name for name in ("PA", "AP", "frontal", "lateral")}
SEXES = {"f": "F", "female": "F", "m": "M", "male": "M"}


@dataclass(frozen=True)
class TableFilm(Film):
    """A film that lies at `path`, which must lead to a file inside `folder`."""

    folder: Path
    path: str  # relative to `folder`

    def read(self) -> Image.Image:
        file = self.folder / self.path
        try:
            # Where links and steps up lead counts, not what the path looks like.
            if not file.resolve().is_relative_to(self.folder.resolve()):
                raise BadImage("outside_the_folder")
            # A pipe in the place of a film is not waited for.
            descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK)
            with open(descriptor, "rb") as opened:
                data = opened.read(MAX_FILE_BYTES + 1)
        except FileNotFoundError:
            raise BadImage("missing") from None
        except (OSError, ValueError, RuntimeError):  # a null byte in the path, a loop of links
            raise BadImage("unreadable") from None
        return open_film(data)


def films(data: "settings.Data", seed: int) -> tuple[list[TableFilm], dict]:
    """A film for each row that can be used, and an audit that counts the others by reason.

    Raises UserError where the table is missing, is none, lacks a column, or has an unknown label.
    """
    table = read_film_table(data.table)
    folder = Path(data.table).parent
    rows_dropped = dict.fromkeys(ROW_REASONS, 0)
    cells_blanked = dict.fromkeys(OPTIONAL, 0)
    audit = {
        "rows": len(table),
        "rows_dropped": rows_dropped,
        "rows_without_patient": 0,
        "cells_blanked": cells_blanked,
        "bad_dropped": dict.fromkeys(REASONS, 0),
    }
    names = _image_names(table["image"])
    known_labels = set(read_yaml("nih_sample.yaml")["labels"].values())
    found, seen = [], set()
    # One row at a time: a table may have a hundred thousand. Numbered as a spreadsheet does, below a header.
    for number, values in enumerate(table.itertuples(index=False, name=None), start=2):
        row = dict(zip(table.columns, values, strict=True))
        report = " ".join(row["report"].split())
        labels = _checked_labels(row["labels"], known_labels, f"{data.table}, row {number}")
        reason = _row_problem(row["image"], row["image"] in seen, report, labels)
        if reason:
            rows_dropped[reason] += 1
            continue
        seen.add(row["image"])
        cells = {
            "view": VIEWS.get(row["view"].strip().casefold(), ""),
            "age_years": _age(row["age_years"]),
            "sex": SEXES.get(row["sex"].strip().casefold(), ""),
        }
        for column, value in cells.items():
            cells_blanked[column] += bool(row[column].strip()) and not value
        patient = row["patient"].strip()
        audit["rows_without_patient"] += not patient
        study = {
            "source": "table",
            "patient": _patient_key(patient),
            "labels": labels,
            "report": report,
            **cells,
        }
        found.append(TableFilm(f"table/{names[row['image']]}", study, folder, row["image"]))
    return found, audit


def read_film_table(path: str) -> pd.DataFrame:
    """The CSV at `path`: all columns that are known here, as text, blank where it has none of that name.

    Raises UserError where it is missing, is no table, is empty or lacks a column.
    """
    try:
        if os.path.getsize(path) > MAX_TABLE_BYTES:
            raise UserError(f"data.table: {path} has over {MAX_TABLE_BYTES >> 20} MiB: divide it")
        table = read_text_columns(path)
    except FileNotFoundError:
        raise UserError(f"data.table: there is no {path}: name the CSV that lists your films") from None
    except OSError as error:
        raise UserError(f"data.table: {path} cannot be read: {error.strerror}") from None
    except ValueError as error:  # as are pandas' errors and UnicodeDecodeError
        problem = str(error).strip().splitlines()[0]
        raise UserError(
            f"data.table: {path} is no CSV in UTF-8: {problem}; a cell that holds a comma wants quotes "
            "around it"
        ) from None
    missing = [name for name in NEEDED if name not in table]
    if not any(name in table for name in EITHER):
        missing.append("report or labels")
    if missing:
        has = ", ".join(shortened(name) for name in table.columns[:12])
        raise UserError(f"data.table: {path} lacks the column {' and '.join(missing)}; it has {has}")
    if table.empty:
        raise UserError(f"data.table: {path} has no rows: it wants one for each film")
    return table.reindex(columns=[*NEEDED, *EITHER, *OPTIONAL], fill_value="")


def _row_problem(image: str, seen: bool, report: str, labels: str) -> str:
    """Why a row cannot be used, one of `ROW_REASONS`; blank where it can."""
    if not image.strip():
        return "no_image"
    if seen:
        return "image_named_twice"
    if not report and not labels:
        return "no_report_and_no_labels"
    if len(report) > MAX_CELL:
        return "report_too_long"
    return ""


def _checked_labels(text: str, known: set[str], where: str) -> str:
    """The labels of a cell, sorted; blank where it is. Raises UserError for one that is none of the 14."""
    labels = {label.strip() for label in text.split("|")} - {""}
    for label in sorted(labels - known):
        similar = difflib.get_close_matches(label, known, n=1)
        advice = f"did you mean {similar[0]}?" if similar else f"there are {', '.join(sorted(known))}."
        raise UserError(
            f"{where}: the label {shortened(label)} is none of NIH's 14: {advice} Several are joined by |"
        )
    if NO_FINDING in labels and len(labels) > 1:
        raise UserError(f"{where}: {NO_FINDING} stands beside other labels: {shortened(text)}")
    return join_labels(labels - {NO_FINDING}) if labels else ""


def _patient_key(text: str) -> str:
    """The patient, apart from those of other sources; a name that is no plain identifier becomes a hash."""
    if not text:
        return ""
    if not IDENTIFIER.fullmatch(text):
        text = hashlib.sha256(text.encode()).hexdigest()[:16]
    return f"table-{text}"


def _age(text: str) -> str:
    """`60`, `60.0` or `060Y` as `60`; blank where impossible or unknown."""
    text = text.strip()
    match = re.fullmatch(r"(\d{1,3})(\.\d{1,9})?", text, re.ASCII)
    if not match:
        return age_years(text)
    return str(int(match[1])) if int(match[1]) <= OLDEST else ""


def _image_names(images: pd.Series) -> dict[str, str]:
    """For each path in the table one under data/images without suffix, safe on any disk and not another's.

    Paths that differ in suffix, case or unsafe characters alone are kept apart by a hash of the path.
    """
    plain = {image: UNSAFE.sub("_", SUFFIX.sub("", image)) for image in images.unique()}
    times = Counter(name.casefold() for name in plain.values())  # some disks take upper for lower case
    names = {}
    for image, name in plain.items():
        if times[name.casefold()] == 1 and len(name) <= MAX_NAME and SAFE_PATH.fullmatch(name):
            names[image] = name
        else:
            digest = hashlib.sha256(image.encode()).hexdigest()[:12]
            names[image] = f"{digest}-{name.replace('/', '_')[-MAX_NAME:]}"
    return names
