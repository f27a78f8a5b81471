"""The two Kaggle data sets: which files are images, and what their names and the label file say of each."""

import io
import re
from collections import Counter
from pathlib import Path, PurePosixPath

import pandas as pd
from ruamel.yaml import YAML

from explainmyxray.errors import UserError, shortened
from explainmyxray.images.decoding import REASONS, BadImage
from explainmyxray.sources import kaggle_download
from explainmyxray.sources.containers import Container, ContainerFilm, Member
from explainmyxray.tables import NO_FINDING, join_labels

SUFFIXES = (".jpeg", ".jpg", ".png")
LABEL_FILE = "sample_labels.csv"
# An image's name without suffix, or a patient's number: short enough for any disk, and nothing that a shell
# or a spreadsheet takes for more than a name.
IDENTIFIER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
AGE = re.compile(r"(\d{1,4})([YMWD])", re.ASCII)
YEARS = {"Y": 1, "M": 1 / 12, "W": 7 / 365.25, "D": 1 / 365.25}  # the units of a DICOM age string
OLDEST = 120  # years; NIH's file has a 411Y


def films(archives: Path) -> tuple[list[ContainerFilm], dict[str, dict]]:
    """The films of both data sets, and by data set an audit of its other files; downloads what is missing."""
    pneumonia = kaggle_download.get_data_set("chest-xray-pneumonia", archives)
    nih = kaggle_download.get_data_set("sample", archives)
    pneumonia_found, pneumonia_audit = pneumonia_films(pneumonia)
    nih_found, nih_audit = nih_films(nih)
    return pneumonia_found + nih_found, {"chest_xray_pneumonia": pneumonia_audit, "nih_sample": nih_audit}


def pneumonia_films(container: Container) -> tuple[list[ContainerFilm], dict]:
    """The films of chest-xray-pneumonia: folder and file name give label, subtype and patient."""
    folders = _read_yaml("chest_xray_pneumonia.yaml")
    images, audit = find_images(container)
    found = []
    for member in images:
        name = PurePosixPath(member.name)
        folder = folders.get(name.parent.name)
        match = re.fullmatch(folder["name"], name.stem, re.ASCII) if folder else None
        if not match:
            audit["bad_dropped"]["unknown_name"] += 1
            continue
        part = match.groupdict()
        subtype = part.get("subtype", "")
        patient = part.get("patient") or f"{subtype}-{part['number']}"
        study = {
            "source": "chest_xray_pneumonia",
            "patient": f"chest_xray_pneumonia-{patient}",
            "labels": folder["label"],
            "subtype": subtype,
            "view": "",
            "age_years": "",
            "sex": "",
        }
        found.append(ContainerFilm(f"chest_xray_pneumonia/{name.stem}", study, container, member))
    return found, audit


def nih_films(container: Container) -> tuple[list[ContainerFilm], dict]:
    """The films of NIH's sample that have a row in its label file."""
    images, audit = find_images(container)
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
    names = _read_yaml("nih_sample.yaml")
    columns = names["columns"]
    where = f"{LABEL_FILE} in {container.path}"
    table = _read_label_file(container, where)
    missing = [theirs for theirs in columns.values() if theirs not in table]
    if missing:
        plural = "s" if len(missing) > 1 else ""
        raise UserError(f"{where} lacks the column{plural} {', '.join(missing)}: replace the archive")
    rows = {}
    rows_dropped = 0
    blanked = Counter(age_years=0, sex=0, view=0)
    for values in table[list(columns.values())].itertuples(index=False, name=None):
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
        kept = {
            "age_years": age_years(row["age_years"]),
            "sex": row["sex"] if row["sex"] in names["sex"] else "",
            "view": row["view"] if row["view"] in names["view"] else "",
        }
        for column, value in kept.items():
            blanked[column] += bool(row[column]) and not value
        rows[image] = kept | {"labels": join_labels(findings), "patient": f"nih_sample-{row['patient']}"}
    return rows, {"rows_dropped": rows_dropped, "cells_blanked": dict(blanked)}


def age_years(text: str) -> str:
    """`060Y` as `60`, in completed years: `013M` is 1, `001D` is 0. Blank where impossible or unknown."""
    match = AGE.fullmatch(text.strip().upper())
    if not match:
        return ""
    years = int(int(match[1]) * YEARS[match[2]])
    return str(years) if years <= OLDEST else ""


def find_images(container: Container) -> tuple[list[Member], dict]:
    """The image files, of identical ones the one nearest the root, and an audit of all other members."""
    members = sorted(container.members(), key=lambda member: (member.depth, member.name, member.index))
    bad = dict.fromkeys(REASONS, 0)
    audit = {
        "archive_bytes": container.stored_bytes(),
        "members": len(members),
        "label_files": 0,
        "junk_dropped": 0,
        "tree_copies_dropped": 0,
        "bad_dropped": bad,
    }
    first_with: dict[str, Member] = {}
    checksums: dict[str, int] = {}  # of those in `first_with`, each made once
    for member in members:
        name = PurePosixPath(member.name)
        stem = name.stem
        if _is_label_file(member):
            audit["label_files"] += 1
        elif member.name.endswith("/") or _is_mac_junk(name) or name.suffix.lower() not in SUFFIXES:
            audit["junk_dropped"] += 1
        elif member.refusal:
            bad[member.refusal] += 1
        elif not IDENTIFIER.fullmatch(stem):
            bad["unknown_name"] += 1
        elif stem not in first_with:
            first_with[stem] = member
        elif member.size != first_with[stem].size:
            bad["name_taken"] += 1
        else:
            # Same name and size: the same file only if the bytes are, of which a folder has to read both.
            try:
                if stem not in checksums:
                    checksums[stem] = container.checksum(first_with[stem])
                same = container.checksum(member) == checksums[stem]
            except BadImage as unreadable:
                bad[unreadable.reason] += 1
                continue
            if same:
                audit["tree_copies_dropped"] += 1
            else:
                bad["name_taken"] += 1
    return list(first_with.values()), audit


def _read_label_file(container: Container, where: str) -> pd.DataFrame:
    """NIH's label file as text columns, of several the one nearest the root. Raises UserError."""
    copies = [member for member in container.members() if _is_label_file(member)]
    if not copies:
        page = kaggle_download.page("sample")
        raise UserError(f"{container.path} has no {LABEL_FILE}: get the whole data set from {page}")
    nearest = min(copies, key=lambda member: (member.depth, member.name, member.index))
    try:
        text = io.BytesIO(container.read(nearest))
        return pd.read_csv(text, dtype=str, keep_default_na=False, index_col=False)
    except BadImage as bad:
        raise UserError(f"{where} cannot be read ({bad.reason}): replace the archive") from None
    except ValueError as error:  # as are pandas' errors and UnicodeDecodeError
        raise UserError(f"{where} is no table ({error}): replace the archive") from None


def _is_label_file(member: Member) -> bool:
    name = PurePosixPath(member.name)
    return name.name == LABEL_FILE and not _is_mac_junk(name)


def _is_mac_junk(name: PurePosixPath) -> bool:
    return "__MACOSX" in name.parts or name.name.startswith("._")


def _read_yaml(name: str) -> dict:
    return YAML(typ="safe").load(Path(__file__).with_name(name))
