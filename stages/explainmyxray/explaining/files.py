"""Which files are meant where a person names files and folders."""

import os
from collections.abc import Iterable
from pathlib import Path

from explainmyxray.errors import UserError

SUFFIXES = {".png", ".jpg", ".jpeg", ".dcm", ".dicom"}
DICOM_PREAMBLE = 128  # bytes before the mark


def find_images(paths: Iterable[Path]) -> list[Path]:
    """The files named, and of a folder the images in it, sorted.
    Raises UserError where there is none or one cannot be read.
    """
    found = []
    for path in paths:
        if path.is_dir():
            found += sorted(file for file in path.rglob("*") if file.is_file() and _is_image(file))
        else:
            found.append(path)
    for path in found:
        if not (path.is_file() and os.access(path, os.R_OK)):
            raise UserError(f"{path} is no file that can be read")
    if not found:
        raise UserError(f"no image: name a file, or a folder with {', '.join(sorted(SUFFIXES))} in it")
    return found


def _is_image(file: Path) -> bool:
    """By suffix, or by a DICOM file's first bytes: on a hospital's CD files have no suffix."""
    if file.suffix.lower() in SUFFIXES:
        return True
    if not os.access(file, os.R_OK):
        return False
    with file.open("rb") as start:
        return start.read(DICOM_PREAMBLE + 4)[DICOM_PREAMBLE:] == b"DICM"
