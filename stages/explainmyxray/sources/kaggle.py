"""The two Kaggle data sets: which archive members are images, and what names and label file say of each."""

import io
import re
import zipfile
from pathlib import Path, PurePosixPath

import pandas as pd
from ruamel.yaml import YAML

from explainmyxray.errors import UserError
from explainmyxray.images.decoding import REASONS, BadImage
from explainmyxray.sources import kaggle_download
from explainmyxray.sources.archive import ArchiveFilm, members, read_member, refusal
from explainmyxray.tables import NO_FINDING, join_labels

SUFFIXES = (".jpeg", ".jpg", ".png")
LABEL_FILE = "sample_labels.csv"
YEARS = {"Y": 1, "M": 1 / 12, "W": 7 / 365.25, "D": 1 / 365.25}  # the units of a DICOM age string
OLDEST = 120  # years; NIH's file has a 411Y


def films(archives: Path) -> tuple[list[ArchiveFilm], dict[str, dict]]:
    """The films of both data sets and, by data set, an account of the other members; downloads what is missing."""
    paths = [kaggle_download.archive(name, archives) for name in kaggle_download.DATA_SETS]
    pneumonia, pneumonia_account = pneumonia_films(paths[0])
    nih, nih_account = nih_films(paths[1])
    return pneumonia + nih, {"chest_xray_pneumonia": pneumonia_account, "nih_sample": nih_account}


def pneumonia_films(path: Path) -> tuple[list[ArchiveFilm], dict]:
    """The films of chest-xray-pneumonia: folder and name say label, subtype and patient."""
    folders = _data("chest_xray_pneumonia.yaml")
    found, account = _images(path)
    offered = []
    for index, name in found:
        folder = folders.get(name.parent.name, {"name": "(?!)", "label": ""})
        if not (match := re.fullmatch(folder["name"], name.stem)):
            account["bad_dropped"]["unknown_name"] += 1
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
        offered.append(ArchiveFilm(f"chest_xray_pneumonia/{name.stem}", study, str(path), index))
    return offered, account


def nih_films(path: Path) -> tuple[list[ArchiveFilm], dict]:
    """The films of NIH's sample that have a row in its label file."""
    found, account = _images(path)
    rows = read_labels(path)
    known = {"source": "nih_sample", "subtype": ""}
    offered = [
        ArchiveFilm(f"nih_sample/{name.stem}", known | rows[name.stem], str(path), index)
        for index, name in found
        if name.stem in rows
    ]
    return offered, account | {
        "images_without_row": len(found) - len(offered),
        "rows": len(rows),
        "rows_without_image": len(rows) - len(offered),
    }


def read_labels(path: Path) -> dict[str, dict[str, str]]:
    """The studies columns that the label file in the archive at `path` knows, by image without suffix.

    Raises UserError where the file is missing, unreadable, lacks a column, or holds a row that makes no sense.
    """
    names = _data("nih_sample.yaml")
    where = f"{LABEL_FILE} in {path}"
    copies = [(_depth(info), index) for index, info in enumerate(members(path)) if _is_label_file(info)]
    if not copies:
        raise UserError(
            f"{path} has no {LABEL_FILE}: get the whole data set from {kaggle_download.page('sample')}"
        )
    try:
        table = pd.read_csv(
            io.BytesIO(read_member(path, min(copies)[1])), dtype=str, keep_default_na=False, index_col=False
        )
    except BadImage as bad:
        raise UserError(f"{where} cannot be read ({bad.reason}): replace the archive") from None
    except ValueError as error:  # as are pandas' errors and UnicodeDecodeError
        raise UserError(f"{where} is no table ({error}): replace the archive") from None
    columns = names["columns"]
    if missing := [theirs for theirs in columns.values() if theirs not in table]:
        raise UserError(
            f"{where} lacks the column{'s' * (len(missing) > 1)} {', '.join(missing)}: replace the archive"
        )
    rows = {}
    for values in table[list(columns.values())].itertuples(index=False, name=None):
        row = dict(zip(columns, values, strict=True))
        image = PurePosixPath(row.pop("image")).stem
        labels = set(row["labels"].split("|"))
        if not labels <= names["labels"].keys() or (NO_FINDING in labels and len(labels) > 1):
            known = ", ".join(names["labels"])
            raise UserError(
                f"{where}: {image} has the labels {row['labels']!r}; known, the first alone, are {known}"
            )
        if not row["patient"]:
            raise UserError(f"{where}: {image} has no patient")
        if image in rows:
            raise UserError(f"{where}: {image} has two rows")
        rows[image] = row | {
            "labels": join_labels({names["labels"][label] for label in labels} - {NO_FINDING}),
            "patient": f"nih_sample-{row['patient']}",
            "age_years": age_years(row["age_years"]),
        }
    return rows


def age_years(text: str) -> str:
    """`060Y` as `60`, in completed years: `013M` is 1, `001D` is 0. Blank where impossible or unknown."""
    match = re.fullmatch(r"(\d+)([YMWD])", text.strip().upper())
    years = int(int(match[1]) * YEARS[match[2]]) if match else OLDEST + 1
    return str(years) if years <= OLDEST else ""


def _images(path: Path) -> tuple[list[tuple[int, PurePosixPath]], dict]:
    """Index and name of each image file, of copies the one nearest the root, and the account of the other members."""
    listed = members(path)
    account = {
        "archive_bytes": path.stat().st_size,
        "members": len(listed),
        "label_files": 0,
        "junk_dropped": 0,
        "tree_copies_dropped": 0,
        "bad_dropped": dict.fromkeys(REASONS, 0),
    }
    taken: dict[str, zipfile.ZipInfo] = {}
    found = []
    for index in sorted(
        range(len(listed)), key=lambda index: (_depth(listed[index]), listed[index].filename, index)
    ):
        info = listed[index]
        name = PurePosixPath(info.filename)
        if _is_label_file(info):
            account["label_files"] += 1
        elif info.filename.endswith("/") or _is_mac_junk(name) or name.suffix.lower() not in SUFFIXES:
            account["junk_dropped"] += 1
        elif reason := refusal(info):
            account["bad_dropped"][reason] += 1
        elif (first := taken.setdefault(name.stem, info)) is info:
            found.append((index, name))
        elif (first.CRC, first.file_size) == (info.CRC, info.file_size):
            account["tree_copies_dropped"] += 1
        else:
            account["bad_dropped"]["name_taken"] += 1
    return found, account


def _is_label_file(info: zipfile.ZipInfo) -> bool:
    name = PurePosixPath(info.filename)
    return name.name == LABEL_FILE and not _is_mac_junk(name)


def _is_mac_junk(name: PurePosixPath) -> bool:
    return "__MACOSX" in name.parts or name.name.startswith("._")


def _depth(info: zipfile.ZipInfo) -> int:
    return info.filename.count("/")


def _data(name: str) -> dict:
    return YAML(typ="safe").load(Path(__file__).with_name(name))
