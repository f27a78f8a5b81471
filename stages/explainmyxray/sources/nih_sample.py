"""Kaggle's sample of NIH's ChestX-ray14: the films that its label file has a row for."""

from collections import Counter
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from explainmyxray.errors import UserError, shortened
from explainmyxray.sources.ages import age_years
from explainmyxray.sources.archive_files import IDENTIFIER, list_images, read_member_table, read_yaml
from explainmyxray.sources.containers import Container, ContainerFilm
from explainmyxray.sources.kaggle_download import get_data_set, page
from explainmyxray.tables import NO_FINDING, join_labels

if TYPE_CHECKING:
    from explainmyxray import settings

LABEL_FILE = "sample_labels.csv"


def films(data: "settings.Data", seed: int) -> tuple[list[ContainerFilm], dict]:
    """The films, downloaded where they are missing, and an audit of all other files. Raises UserError."""
    return films_in(get_data_set("sample", Path(data.archives)))


def films_in(container: Container) -> tuple[list[ContainerFilm], dict]:
    """The films of an archive that have a row in its label file, and an audit of all else."""
    images, audit = list_images(container, [LABEL_FILE])
    rows, row_audit = read_labels(container)
    known = {"source": "nih_sample", "subtype": ""}
    found = []
    for member in images:
        image = PurePosixPath(member.name).stem
        if image in rows:
            study = known | rows[image]
            found.append(ContainerFilm(f"nih_sample/{image}", study, container, member))
    audit |= {
        "images_without_row": len(images) - len(found),
        "rows": len(rows),
        "rows_without_image": len(rows) - len(found),
        **row_audit,
    }
    return found, audit


def read_labels(container: Container) -> tuple[dict[str, dict[str, str]], dict]:
    """The studies columns that NIH's label file has, by image without suffix; and an audit of what it has
    amiss.

    A row whose patient is no identifier is dropped; an age, sex or view that makes no sense is left blank;
    both are counted. Raises UserError where the file is missing, unreadable, lacks a column, or has a row
    that contradicts what it should be.
    """
    names = read_yaml("nih_sample.yaml")
    columns = names["columns"]
    where = f"{LABEL_FILE} in {container.path}"
    table = read_member_table(container, LABEL_FILE, columns.values(), page("sample"))
    rows = {}
    rows_dropped = 0
    blanked = Counter(age_years=0, sex=0, view=0)
    for values in table.itertuples(index=False, name=None):
        row = dict(zip(columns, values, strict=True))
        image = PurePosixPath(row["image"]).stem
        labels = set(row["labels"].split("|"))
        if not labels <= names["labels"].keys() or (NO_FINDING in labels and len(labels) > 1):
            shown = shortened(row["labels"])
            known = ", ".join(names["labels"])
            raise UserError(
                f"{where}: {image[:100]} has the labels {shown}; known, the first alone, are {known}"
            )
        if not row["patient"]:
            raise UserError(f"{where}: {image[:100]} has no patient")
        if image in rows:
            raise UserError(f"{where}: {image[:100]} has two rows")
        if not IDENTIFIER.fullmatch(row["patient"]):
            rows_dropped += 1
            continue
        findings = {names["labels"][label] for label in labels} - {NO_FINDING}
        cells = {
            "age_years": age_years(row["age_years"]),
            "sex": row["sex"] if row["sex"] in names["sex"] else "",
            "view": row["view"] if row["view"] in names["view"] else "",
        }
        for column, value in cells.items():
            blanked[column] += bool(row[column]) and not value
        rows[image] = cells | {"labels": join_labels(findings), "patient": f"nih_sample-{row['patient']}"}
    return rows, {"rows_dropped": rows_dropped, "cells_blanked": dict(blanked)}
