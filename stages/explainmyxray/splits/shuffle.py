"""A shuffle that depends on each image's name and the seed alone: one image more or less moves no other."""

import hashlib
from collections.abc import Iterable

import numpy as np


def shuffled_positions(names: Iterable[str], seed: int) -> np.ndarray:
    """The positions of `names`, sorted by a hash of seed and name."""
    keys = [hashlib.sha256(f"{seed}:{name}".encode()).hexdigest() for name in names]
    return np.argsort(keys, kind="stable")
