"""A folder as a container, as Kaggle mounts a data set: read only, nothing is written into it.

A symbolic link inside it is never followed, neither to a file nor to a folder: it could lead anywhere.
"""

import os
import stat
import zlib
from pathlib import Path

from explainmyxray.errors import UserError
from explainmyxray.images.decoding import MAX_FILE_BYTES, BadImage
from explainmyxray.sources.containers import UNSAFE_NAME, Container, Member


class Folder(Container):
    def members(self) -> list[Member]:
        files = _files(self.path)
        names = sorted(files)
        return [
            Member(name, index, files[name].st_size, refusal(name, files[name]))
            for index, name in enumerate(names)
        ]

    def read(self, member: Member) -> bytes:
        if member.refusal:
            raise BadImage(member.refusal)
        try:
            # The file may have changed since it was listed: a link in its place is not followed, nor a pipe
            # waited for.
            descriptor = os.open(self.path / member.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            with open(descriptor, "rb") as file:
                if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                    raise BadImage("unreadable")
                data = file.read(MAX_FILE_BYTES + 1)
        except OSError:
            raise BadImage("unreadable") from None
        if len(data) > MAX_FILE_BYTES:
            raise BadImage("too_large")
        return data

    def checksum(self, member: Member) -> int:
        return zlib.crc32(self.read(member))

    def stored_bytes(self) -> int:
        return sum(state.st_size for state in _files(self.path).values())

    def is_empty(self) -> bool:
        return not any(self.path.iterdir())


def refusal(name: str, state: os.stat_result) -> str | None:
    """Why a file is not even opened; None where it may be. The reasons are those of zip members."""
    if UNSAFE_NAME.search(name):
        return "unsafe_name"
    if stat.S_ISLNK(state.st_mode):
        return "symlink"
    if not stat.S_ISREG(state.st_mode):  # a pipe or a device would be waited for
        return "unreadable"
    if state.st_size > MAX_FILE_BYTES:
        return "too_large"
    return None


def _files(folder: Path) -> dict[str, os.stat_result]:
    """All that lies in `folder` at any depth and is no folder, by its path inside. Raises UserError."""
    found = {}
    waiting = [""]  # folders yet to be listed
    while waiting:
        inside = waiting.pop()
        try:
            with os.scandir(folder / inside) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(f"{inside}{entry.name}/")
                    else:
                        found[f"{inside}{entry.name}"] = entry.stat(follow_symlinks=False)
        except OSError as error:
            raise UserError(f"{folder / inside} cannot be listed: {error.strerror}") from None
    return found
