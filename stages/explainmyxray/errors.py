"""A person's mistake is one line and exit status 1; anything else is a bug and keeps its traceback."""

import errno
import os
import select
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

MAX_SHOWN = 60  # characters of a value that a message shows
# What an OSError says of the machine, not of this code, with what to do about it.
DISK_ERRORS = {
    errno.ENOSPC: "no space left on the disk: free some and run again",
    errno.EDQUOT: "no space left in your quota: free some and run again",
    errno.EROFS: "the disk is read-only: work in a folder that can be written to",
    errno.EACCES: "permission denied: change its permissions, or work in a folder of your own",
    errno.EPERM: "not permitted: change its permissions, or work in a folder of your own",
    errno.ENAMETOOLONG: "the name is too long for this disk: work in a folder with a shorter path",
}
RESTORE = "git checkout HEAD -- params.yaml dvc.lock metrics && dvc checkout --force"
# Where outputs go: each may lie on a disk of its own.
OUTPUT_FOLDERS = (".", "data", "metrics", "models", "models/checkpoints")


class UserError(Exception):
    """What the person at the keyboard can put right: the message says what is wrong and what to do."""


def exit_on_user_error(main: Callable[[], None], interrupted: str = "interrupted") -> None:
    """Run `main`; print a `UserError` (or a full or read-only disk) as one line and exit with status 1.

    Ctrl-C ends it with the line `interrupted` and by the signal, as Python itself does after its traceback.
    """
    by_signal = False
    try:
        main()
    except KeyboardInterrupt:
        by_signal = True
    except UserError as error:
        # One from a data loader's process brings its traceback along, the message last.
        message = str(error).strip().splitlines()[-1].removeprefix(f"{UserError.__module__}.UserError: ")
    except (OSError, RuntimeError) as error:
        if _nobody_reads_output():
            # Python flushes it once more on its way out.
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            sys.exit(1)
        message = _disk_problem(error)
        if message is None:
            raise
    else:
        return
    if by_signal:
        # Raised anew: with the first one's traceback, all that `main` had open would stay until Python ends.
        sys.excepthook = lambda *_: print(f"\n{interrupted}{_how_to_restore()}", file=sys.stderr)
        raise KeyboardInterrupt
    sys.exit(f"error: {printable(message)}{_how_to_restore()}")


def _how_to_restore() -> str:
    """DVC removes a stage's outputs before it runs the stage: the commands that bring the committed ones
    back.
    """
    if "DVC_STAGE" not in os.environ:
        return ""
    return f" (earlier outputs come back with: {RESTORE})"


def shortened(value: object) -> str:
    """A value as a message quotes it: in quotation marks, on one line, cut where it is long."""
    text = str(value)
    if len(text) > MAX_SHOWN:
        text = f"{text[:MAX_SHOWN]}…"
    return repr(text)


def printable(text: str) -> str:
    """`text` with its control characters written out: a file's name could move the cursor or rename the
    terminal.
    """
    characters = [c if c.isprintable() else c.encode("unicode_escape").decode() for c in text]
    return "".join(characters)


@contextmanager
def disk_errors() -> Iterator[None]:
    """Turn what an error says of the disk, or of a closed output, into a UserError, that another process can
    tell it.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        message = "what reads this output has ended" if _nobody_reads_output() else _disk_problem(error)
        if message is None:
            raise
        raise UserError(message) from error


def _nobody_reads_output() -> bool:
    """Whether what read this process's output, as `| head` does, has ended."""
    output = select.poll()
    output.register(1, 0)
    return any(event & select.POLLERR for _, event in output.poll(0))


def _disk_problem(error: OSError | RuntimeError) -> str | None:
    """What a person can do about the disk, or None where the error has another cause."""
    number = getattr(error, "errno", None)
    if number in DISK_ERRORS:
        place = getattr(error, "filename2", None) or getattr(error, "filename", None)
        return f"{place}: {DISK_ERRORS[number]}" if place else DISK_ERRORS[number]
    # torch says RuntimeError where it cannot write, without a number: see whether a disk is full.
    for folder in OUTPUT_FOLDERS:
        if Path(folder).exists() and shutil.disk_usage(folder).free < 2**20:
            return DISK_ERRORS[errno.ENOSPC]
    return None
