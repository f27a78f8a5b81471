"""What a device has free, as far as this process may take it."""

import os
from pathlib import Path

import psutil
import torch

GIB = 2**30
ALLOCATOR_OVERHEAD = 1.1  # what the allocator loses between blocks
CGROUP = Path("/sys/fs/cgroup")  # of version 2: a container sees its own limits there


def free_memory() -> int:
    """Bytes that this process may still take: of its GPU, or its share of the machine's memory."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()  # what torch's allocator keeps for this process counts as used
        free, total = torch.cuda.mem_get_info()
        return free
    free = psutil.virtual_memory().available
    left = _left_in_container()
    if left is not None:
        free = min(free, left)
    # Processes that share a step share the memory; each plans for itself.
    return free // int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def _left_in_container() -> int | None:
    """Bytes below the container's limit; None where there is no limit."""
    try:
        limit = (CGROUP / "memory.max").read_text().strip()
        if limit == "max":
            return None
        used = int((CGROUP / "memory.current").read_text())
        # Cached files count as used, and are given up where memory is asked for.
        cached = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
        return int(limit) - used + int(cached.get("inactive_file", 0))
    except (OSError, ValueError):
        return None
