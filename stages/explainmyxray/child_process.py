"""A process that another one started ends with it, however that ends."""

import multiprocessing
import os
import threading


def end_with_parent() -> None:
    """End this process as soon as the one that started it has ended; at once, where it already has.

    A signal would not do: a pool's processes would wait for work forever, and a program that was started in
    the background ignores Ctrl-C's.
    """

    def wait() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
