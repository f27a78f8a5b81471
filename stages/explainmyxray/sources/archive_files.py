"""What lies in a data set's archive: which files are images, and the tables beside them."""

import csv
import io
import re
import warnings
from collections.abc import Collection
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import pandas as pd
from ruamel.yaml import YAML

from explainmyxray.errors import UserError
from explainmyxray.images.decoding import REASONS, BadImage
from explainmyxray.sources.containers import Container, Member

SUFFIXES = (".jpeg", ".jpg", ".png")
# An image's name without suffix, or a patient's number: short enough for any disk, and nothing that a shell
# or a spreadsheet takes for more than a name.
IDENTIFIER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")


def list_images(container: Container, tables: Collection[str] = ()) -> tuple[list[Member], dict]:
    """The image files, of identical ones the one nearest the root, and an audit of all other members.

    `tables` are the names of the files that describe the images.
    """
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
        if name.name in tables and not _is_mac_junk(name):
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


def read_member_table(container: Container, name: str, columns: Collection[str], page: str) -> pd.DataFrame:
    """The table called `name`, of several the one nearest the root, as text with `columns` in that order.

    `page` is where a whole data set can be had. Raises UserError where the table is missing, unreadable or
    lacks a column.
    """
    copies = []
    for member in container.members():
        path = PurePosixPath(member.name)
        if path.name == name and not _is_mac_junk(path):
            copies.append(member)
    if not copies:
        raise UserError(f"{container.path} has no {name}: get the whole data set from {page}")
    nearest = min(copies, key=lambda member: (member.depth, member.name, member.index))
    where = f"{name} in {container.path}"
    try:
        text = io.BytesIO(container.read(nearest))
        table = read_text_columns(text)
    except BadImage as bad:
        raise UserError(f"{where} cannot be read ({bad.reason}): replace the archive") from None
    except ValueError as error:  # as are pandas' errors and UnicodeDecodeError
        raise UserError(f"{where} is no table ({error}): replace the archive") from None
    missing = [column for column in columns if column not in table]
    if missing:
        plural = "s" if len(missing) > 1 else ""
        raise UserError(f"{where} lacks the column{plural} {', '.join(missing)}: replace the archive")
    return table[list(columns)]


def read_text_columns(file: str | BinaryIO) -> pd.DataFrame:
    """A CSV in UTF-8, every cell as text; blank cells beyond the header's last column are passed over.

    Raises ValueError, as all of pandas' errors are, where it is none, and OSError.
    """
    content = Path(file).read_bytes() if isinstance(file, str) else file.read()
    with warnings.catch_warnings(record=True) as caught:
        # pandas drops what is beyond the header's last column, if it begins in the first row, and only warns.
        warnings.simplefilter("always", pd.errors.ParserWarning)
        # utf-8-sig: a spreadsheet puts a mark before the first column's name.
        table = pd.read_csv(
            io.BytesIO(content), dtype=str, keep_default_na=False, encoding="utf-8-sig", index_col=False
        )
    if caught and _has_text_beyond_header(content.decode("utf-8-sig")):
        raise ValueError("rows have more cells than the header")
    return table.fillna("")


def _has_text_beyond_header(text: str) -> bool:
    rows = csv.reader(io.StringIO(text, newline=""))
    num_columns = len(next(rows))
    return any(any(row[num_columns:]) for row in rows)


def read_yaml(name: str) -> dict:
    """A data file of this room."""
    return YAML(typ="safe").load(Path(__file__).with_name(name))


def _is_mac_junk(name: PurePosixPath) -> bool:
    return "__MACOSX" in name.parts or name.name.startswith("._")
