"""Which files are meant where a person names files and folders, and what is wrong with one."""

import os
from collections.abc import Iterable
from pathlib import Path

from explainmyxray.errors import UserError
from explainmyxray.images.decoding import BadImage
from explainmyxray.images.films import open_film

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
        if not path.exists():
            raise UserError(f"there is no {path}")
        if not (path.is_file() and os.access(path, os.R_OK)):
            raise UserError(f"{path} is no file that can be read")
    if not found:
        raise UserError(f"no image: name a file, or a folder with {', '.join(sorted(SUFFIXES))} in it")
    return found


def image_problem(data: bytes) -> str:
    """Why a file's content is no film that can be used; blank where it is one."""
    try:
        open_film(data)
    except BadImage as bad:
        return problem_message(bad)
    return ""


def problem_message(bad: BadImage) -> str:
    """A decoder's reason as a person reads it."""
    reason = "no PNG, JPEG or DICOM" if bad.reason == "not_an_image" else bad.reason.replace("_", " ")
    return f"not an image that can be used: {reason}"


def _is_image(file: Path) -> bool:
    """By suffix, or by a DICOM file's first bytes: on a hospital's CD files have no suffix."""
    if file.suffix.lower() in SUFFIXES:
        return True
    if not os.access(file, os.R_OK):
        return False
    with file.open("rb") as start:
        return start.read(DICOM_PREAMBLE + 4)[DICOM_PREAMBLE:] == b"DICM"
