"""A zip file as a container. Its directory is not trusted: what it says of a member is held against what is
unpacked.
"""

import errno
import os
import stat
import zipfile
from functools import lru_cache
from pathlib import Path

from explainmyxray.errors import UserError
from explainmyxray.images.decoding import BROKEN_FILE_ERRORS, MAX_FILE_BYTES, BadImage
from explainmyxray.sources.containers import UNSAFE_NAME, Container, Member

MAX_RATIO = 200  # of unpacked to packed size, from 1 MiB on; images hardly shrink, bombs do by 1,000
BROKEN = (zipfile.BadZipFile, MemoryError, *BROKEN_FILE_ERRORS)


class ZipArchive(Container):
    def members(self) -> list[Member]:
        listed = _directory(self.path).infolist()
        return [
            Member(info.filename, index, info.file_size, refusal(info)) for index, info in enumerate(listed)
        ]

    def read(self, member: Member) -> bytes:
        archive = _directory(self.path)
        info = archive.infolist()[member.index]
        reason = refusal(info)
        if reason:
            raise BadImage(reason)
        try:
            with archive.open(info) as stream:
                # One byte more than announced: a read() without a size unpacks all there is before it cuts it
                # off.
                data = stream.read(info.file_size + 1)
        except OSError as error:
            if error.errno not in (None, errno.EINVAL):  # EINVAL: an offset before the file's start
                raise
            raise BadImage("unreadable") from None
        except BROKEN:
            raise BadImage("unreadable") from None
        if len(data) != info.file_size:
            raise BadImage("unreadable")
        return data

    def checksum(self, member: Member) -> int:
        return _directory(self.path).infolist()[member.index].CRC

    def stored_bytes(self) -> int:
        return self.path.stat().st_size

    def first_unreadable(self) -> str | None:
        """The name of the first member whose bytes fail their checksum; None where all are whole."""
        for member in self.members():
            try:
                self.read(member)
            except BadImage as bad:
                if bad.reason == "unreadable":
                    return member.name
        return None


def refusal(info: zipfile.ZipInfo) -> str | None:
    """Why a member is not even opened, judged by its directory entry; None where it may be."""
    if UNSAFE_NAME.search(info.orig_filename):
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


def _directory(path: Path) -> zipfile.ZipFile:
    """The opened archive. Raises UserError where it is no whole zip file."""
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


# Each process reads an archive's directory once; inode, time and size tell a file that was replaced.
@lru_cache(maxsize=4)
def _open(path: str, inode: int, modified: int, size: int) -> zipfile.ZipFile:
    return zipfile.ZipFile(path)
