"""A function of each batch of images, on a CPU in several processes at once.

Writing a token is many small operations, in which a second thread saves no time (docs/benchmarks.md): a
process for each core saves all that the cores are worth. They are forked, so that they share the model.
"""

import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from explainmyxray.child_process import end_with_parent
from explainmyxray.model.inputs import open_image

Result = TypeVar("Result")


def forkable_processes() -> int:
    """As many as torch has threads; 1 where there is a GPU, which no forked process can use, or no Linux."""
    if torch.cuda.is_available() or sys.platform != "linux":
        return 1
    return torch.get_num_threads()


def map_batches(
    function: Callable[[list[Image.Image]], Sequence[Result]],
    images: Path,
    names: Sequence[str],
    batch_size: int,
    desc: str,
    num_processes: int = 1,
) -> list[Result]:
    """A result for each of the files `names` of the folder `images`, in order; `function` is given
    `batch_size` images at a time and returns as many results.

    Shows a progress bar. With `num_processes` above 1 each computes whole batches, with one thread: the
    results are those of one process with one thread.
    """
    batches = ImageBatches(function, images, names, batch_size)
    num_workers = min(num_processes, len(batches))
    loader = DataLoader(
        batches,
        batch_size=None,
        collate_fn=lambda of_batch: of_batch,
        num_workers=num_workers if num_workers > 1 else 0,
        multiprocessing_context="fork" if num_workers > 1 else None,
        # Else one whose results nobody takes any more would wait for that for ever.
        worker_init_fn=lambda worker: end_with_parent(),
        generator=torch.Generator(),  # it draws a seed for its workers, which would move the global one
    )
    results = []
    with tqdm(total=len(names), desc=desc, unit="image", mininterval=2) as progress:
        for of_batch in loader:
            results.extend(of_batch)
            progress.update(len(of_batch))
    return results


class ImageBatches(Dataset):
    """Item i is what `function` returns for the i-th batch."""

    def __init__(self, function: Callable, images: Path, names: Sequence[str], batch_size: int):
        self.function = function
        self.images = images
        self.names = list(names)
        self.batch_size = batch_size

    def __len__(self) -> int:
        return math.ceil(len(self.names) / self.batch_size)

    def __getitem__(self, number: int):
        start = number * self.batch_size
        names = self.names[start : start + self.batch_size]
        return self.function([open_image(self.images, name) for name in names])
