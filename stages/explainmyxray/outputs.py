"""Outputs are written aside and renamed into place, so that what is there is whole."""

import json
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a path beside `path` to write a file or a folder to; it replaces `path` when the block ends without error."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield aside
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        os.replace(aside, path)
    finally:
        if aside.is_dir():
            shutil.rmtree(aside)
        else:
            aside.unlink(missing_ok=True)


def rounded(figures):
    """`figures` with every float at four places, ready for `dvc metrics diff`.

    Raises ValueError for a list, which the diff drops without a word, and for a float that is not finite, which it shows
    as changed each time.
    """
    if isinstance(figures, dict):
        return {str(name): rounded(value) for name, value in figures.items()}
    if isinstance(figures, (list, tuple)):
        raise ValueError("metrics hold no lists: `dvc metrics diff` drops them silently")
    if isinstance(figures, float):
        if not math.isfinite(figures):
            raise ValueError("metrics are finite numbers")
        return round(figures, 4) + 0.0  # + 0.0 turns -0.0 into 0.0
    return figures


def write_metrics(path: str | Path, figures: dict) -> None:
    """Write nested `figures` as JSON, rounded, in the order given."""
    with replacing(path) as aside:
        aside.write_text(json.dumps(rounded(figures), indent=2, ensure_ascii=False) + "\n")
