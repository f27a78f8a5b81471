"""Several processes on one machine, each with its share of a step, as Accelerate finds them.

Processes that were started by `accelerate launch` or `torchrun`, on one machine or more, are used as they
are.
"""

import logging
import os
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout

import torch
from torch import multiprocessing

from explainmyxray.child_process import end_with_parent
from explainmyxray.errors import UserError, disk_errors
from explainmyxray.settings import Train

# Any of these says that a launcher started this process beside others: torchrun, or one of three MPIs.
LAUNCHED = {"RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK"}

# On any CPU, so that two machines have the same adapter: dropout is drawn in each process. Threads of one
# process wait for each other at each small operation (docs/benchmarks.md); processes, once a step.
CPU_PROCESSES = 2


def count_processes(train: Train) -> int:
    """How many processes share a step, of whose micro-batches each computes as many.

    `auto` is one where there is a GPU, and `CPU_PROCESSES` on a CPU, one where the step cannot be halved.
    """
    if train.num_processes != "auto":
        return train.num_processes
    if torch.cuda.is_available() or train.gradient_accumulation_steps % CPU_PROCESSES:
        return 1
    return CPU_PROCESSES


def run_in_processes(main: Callable[[], None], num_processes: int) -> None:
    """Run `main`, a module's own function, in so many processes; the first error ends them all.

    Raises UserError where there are GPUs, and fewer than processes.
    """
    if LAUNCHED & os.environ.keys() or num_processes == 1:
        return main()
    num_gpus = torch.cuda.device_count()
    if 0 < num_gpus < num_processes:
        raise UserError(f"train.num_processes {num_processes}: there are {num_gpus} GPUs")

    # What torchrun would set.
    os.environ.update(
        WORLD_SIZE=str(num_processes),
        LOCAL_WORLD_SIZE=str(num_processes),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(find_free_port()),
    )
    # Each process would start a thread for every core.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, torch.get_num_threads() // num_processes)))
    start_method = multiprocessing.get_start_method()
    # It would say that it ends the other processes, above the line that says why.
    logging.getLogger("torch.multiprocessing.spawn").setLevel(logging.ERROR)
    try:
        with tempfile.TemporaryDirectory() as folder:
            arguments = (main, start_method, f"{folder}/rendezvous")
            multiprocessing.spawn(_run_process, arguments, nprocs=num_processes)
    except multiprocessing.ProcessRaisedException as error:  # with the traceback of the first that failed
        last_line = str(error).strip().splitlines()[-1]
        if last_line.startswith(f"{UserError.__module__}.UserError: "):
            raise UserError(str(error)) from None
        raise


def _run_process(rank: int, main: Callable[[], None], start_method: str, rendezvous: str) -> None:
    end_with_parent()
    # `spawn` has made itself the start method here: each process of the data loader would import everything
    # anew.
    multiprocessing.set_start_method(start_method, force=True)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank))
    if not torch.cuda.is_available():
        _meet_on_this_machine(rank, rendezvous)
    with disk_errors():
        main()


def _meet_on_this_machine(rank: int, rendezvous: str) -> None:
    """Join the group of processes through the file `rendezvous` and the loopback interface.

    By itself torch would listen for the others on all interfaces, and gloo on the address of the host's name.
    """
    if sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    world_size = int(os.environ["WORLD_SIZE"])
    torch.distributed.init_process_group("gloo", f"file://{rendezvous}", rank=rank, world_size=world_size)


def find_free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@contextmanager
def print_on_main_process() -> Iterator[None]:
    """Only the main process prints."""
    if is_main_process():
        yield
    else:
        with redirect_stdout(None):
            yield


def is_main_process() -> bool:
    """Whether this is the process that writes: the first of all, or the only one."""
    return int(os.environ.get("RANK", 0)) == 0
