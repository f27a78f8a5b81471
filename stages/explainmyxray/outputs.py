"""Outputs are written aside and renamed into place, so that what is there is whole, whenever the process
ends.

Beside an output NAME stand, while PID writes it, `.NAME.PID.part` (what is being written) and, for a moment,
`.NAME.PID.old.part` (what was there before). Those of a process that was killed are cleared away when NAME is
next written.
"""

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from explainmyxray.errors import UserError


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a path beside `path` to write a file or a folder to; it replaces `path` when the block ends
    without error.

    Raises UserError where a folder stands in the place of a file.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _clear_leftovers(path)
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    old = path.with_name(f".{path.name}.{os.getpid()}.old.part")
    try:
        yield aside
        if aside.is_dir():
            # A folder cannot be renamed over another. Removing takes long, so that it comes last: a process
            # killed before or between the two renames leaves one whole folder or the other, never part of
            # one.
            if os.path.lexists(path):
                os.rename(path, old)
            os.rename(aside, path)
            _remove(old)
        elif path.is_dir() and not path.is_symlink():
            raise UserError(f"{path} is a folder, and a file is to be written there: move it away")
        else:
            os.replace(aside, path)
    finally:
        _remove(aside)


@contextmanager
def replacing_folder(path: str | Path) -> Iterator[Path]:
    """As `replacing`, for what must be a folder. Raises UserError, before any work, where something else
    stands there.
    """
    path = Path(path)
    if path.is_symlink():
        raise UserError(f"{path} is a symbolic link, and a folder is to be written there: remove the link")
    if path.exists() and not path.is_dir():
        raise UserError(f"{path} is a file, and a folder is to be written there: move it away")
    with replacing(path) as aside:
        yield aside


def _clear_leftovers(path: Path) -> None:
    """Remove what dead processes left beside `path`; where one died between its two renames, put back what
    was there.
    """
    pattern = re.compile(rf"\.{re.escape(path.name)}\.(\d{{1,9}})(\.old)?\.part")
    for entry in sorted(path.parent.iterdir()):
        match = pattern.fullmatch(entry.name)
        if not match or _is_running(int(match[1])):
            continue
        if match[2] and not os.path.lexists(path):
            os.rename(entry, path)
        else:
            _remove(entry)


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        return True
    return True


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
