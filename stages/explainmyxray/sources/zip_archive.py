"""Zip archives whose members are not trusted: nothing is extracted, and sizes are bounded before memory is spent.

A member that cannot be used raises `BadImage` with one of `REASONS`; an archive that cannot be used raises UserError.
"""

import errno
import os
import re
import stat
import zipfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from PIL import Image

from explainmyxray.errors import UserError
from explainmyxray.images.decoding import BROKEN_FILE_ERRORS, MAX_FILE_BYTES, BadImage, decode
from explainmyxray.sources import Film

MAX_RATIO = 200  # of unpacked to packed size, from 1 MiB on; images hardly shrink, bombs do by 1,000
BROKEN = (zipfile.BadZipFile, *BROKEN_FILE_ERRORS)


@dataclass(frozen=True)
class ArchiveFilm(Film):
    """A film inside a zip archive, found by its place in the central directory, for names can come twice."""

    archive: str
    index: int

    def read(self) -> Image.Image:
        return decode(read_member(self.archive, self.index))


def members(path: str | Path) -> list[zipfile.ZipInfo]:
    """What the archive's central directory lists. Raises UserError where it is no whole zip file."""
    return _opened(path).infolist()


def refusal(info: zipfile.ZipInfo) -> str | None:
    """Why a member is not even opened, judged by its directory entry; None where it may be."""
    if re.search(r"(^|/)\.\.(/|$)|^/|[\\:\x00-\x1f]", info.orig_filename):
        return "unsafe_name"
    if stat.S_ISLNK(info.external_attr >> 16):
        return "symlink"
    if info.flag_bits & 1:
        return "encrypted"
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # LZMA can ask for gigabytes
        return "unknown_compression"
    if info.file_size > MAX_FILE_BYTES:
        return "too_large"
    if info.file_size > max(2**20, MAX_RATIO * info.compress_size):
        return "zip_bomb"
    return None


def read_member(path: str | Path, index: int) -> bytes:
    """The member's bytes, checked against its size and checksum. Raises BadImage."""
    archive = _opened(path)
    info = archive.infolist()[index]
    if reason := refusal(info):
        raise BadImage(reason)
    try:
        with archive.open(info) as stream:
            data = stream.read(
                info.file_size + 1
            )  # a plain read() unpacks more than declared before it cuts it off
        if len(data) == info.file_size:
            return data
        raise BadImage("unreadable")
    except OSError as error:
        if error.errno not in (None, errno.EINVAL):  # EINVAL: an offset before the file's start
            raise
        raise BadImage("unreadable") from None
    except BROKEN:
        raise BadImage("unreadable") from None


def first_unreadable(path: str | Path) -> str | None:
    """The name of the first member whose bytes fail their checksum; None where all are whole."""
    for index, info in enumerate(members(path)):
        try:
            read_member(path, index)
        except BadImage as bad:
            if bad.reason == "unreadable":
                return info.filename
    return None


def _opened(path: str | Path) -> zipfile.ZipFile:
    try:
        state = os.stat(path)
        return _open(str(path), state.st_ino, state.st_mtime_ns, state.st_size)
    except OSError as error:
        if error.errno not in (None, errno.EINVAL):
            raise UserError(f"{path} cannot be read: {error.strerror}") from None
        problem = error
    except BROKEN as error:
        problem = error
    raise UserError(
        f"{path} is no whole zip archive ({problem}): delete it to have it downloaded again, "
        "or put a whole copy there"
    ) from None


@lru_cache(
    maxsize=4
)  # each process reads a central directory once; the numbers tell a file that was replaced
def _open(path: str, inode: int, modified: int, size: int) -> zipfile.ZipFile:
    return zipfile.ZipFile(path)
