"""A person's mistake is one line and exit status 1; anything else is a bug and keeps its traceback."""

import sys
from collections.abc import Callable


class UserError(Exception):
    """Something that the person at the keyboard can put right: the message says what is wrong and what to do."""


def exit_on_user_error(main: Callable[[], None]) -> None:
    """Run `main`; print a `UserError` (or a full disk) as one line and exit with status 1."""
    try:
        main()
    except UserError as error:
        message = str(error)
    except OSError as error:
        if error.errno != 28:  # ENOSPC
            raise
        message = f"no space left on the disk{f' for {error.filename}' if error.filename else ''}: free some and run again"
    else:
        return
    sys.exit(f"error: {' '.join(message.split())}")
