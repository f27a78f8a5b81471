"""Several processes on one machine, each with its share of a step; Accelerate finds them by their environment.

Processes that were started by `accelerate launch` or `torchrun`, on one machine or more, are used as they are.
"""

import contextlib
import os
import socket
from collections.abc import Callable, Iterator

import torch
from torch import multiprocessing

from explainmyxray.errors import UserError


def run_in_processes(main: Callable[[], None], count: int) -> None:
    """Run `main`, a module's own function, in `count` processes, and wait for them; the first error ends them all."""
    if "RANK" in os.environ:
        return main()
    os.environ.setdefault(
        "CUDA_VISIBLE_DEVICES", ",".join(map(str, range(count)))
    )  # Trainer takes all that it sees
    if count == 1:
        return main()
    if 0 < torch.cuda.device_count() < count:
        raise UserError(f"train.num_processes {count}: there are {torch.cuda.device_count()} GPUs")
    os.environ.update(
        WORLD_SIZE=str(count),
        LOCAL_WORLD_SIZE=str(count),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(free_port()),
    )
    os.environ.setdefault(
        "OMP_NUM_THREADS", str(max(1, os.cpu_count() // count))
    )  # or they fight for the cores
    try:
        multiprocessing.spawn(_one, args=(main, multiprocessing.get_start_method()), nprocs=count)
    except multiprocessing.ProcessRaisedException as error:  # with the traceback of the first that failed
        if str(error).strip().splitlines()[-1].startswith(f"{UserError.__module__}.UserError: "):
            raise UserError(str(error)) from None
        raise


def _one(rank: int, main: Callable[[], None], start_method: str) -> None:
    multiprocessing.set_start_method(
        start_method, force=True
    )  # or each loader's process would import everything anew
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank))
    main()


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@contextlib.contextmanager
def quiet_but_first() -> Iterator[None]:
    """Only the first process prints."""
    with contextlib.nullcontext() if is_first() else contextlib.redirect_stdout(None):
        yield


def is_first() -> bool:
    """Whether this is the process that writes: the first of all, or the only one."""
    return int(os.environ.get("RANK", 0)) == 0
