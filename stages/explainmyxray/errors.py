"""A person's mistake is one line and exit status 1; anything else is a bug and keeps its traceback."""

import errno
import shutil
import sys
from collections.abc import Callable


class UserError(Exception):
    """Something that the person at the keyboard can put right: the message says what is wrong and what to do."""


def exit_on_user_error(main: Callable[[], None]) -> None:
    """Run `main`; print a `UserError` (or a full disk) as one line and exit with status 1."""
    try:
        main()
    except UserError as error:  # one from a loader's process brings its traceback along, the message last
        message = str(error).strip().splitlines()[-1].removeprefix(f"{UserError.__module__}.UserError: ")
    except (OSError, RuntimeError) as error:  # torch says RuntimeError where it cannot write
        if getattr(error, "errno", None) != errno.ENOSPC and shutil.disk_usage(".").free > 2**20:
            raise
        message = "no space left on the disk: free some and run again"
    else:
        return
    sys.exit(f"error: {message}")
