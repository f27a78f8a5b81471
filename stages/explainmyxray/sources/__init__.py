"""Sources of films: each says which images it offers and what it knows of them; nothing is decoded before `read`.

A new source is a module with films of its own and a branch in `load_source`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

if TYPE_CHECKING:
    from explainmyxray import settings


@dataclass(frozen=True)
class Film:
    """One image that a source offers, not yet decoded. It can be pickled, so that another process reads it."""

    name: str  # its path under data/images without suffix, as in "nih_sample/00000013_005"
    study: dict[str, str]  # what the source knows of the studies columns, blank where unknown

    def read(self) -> Image.Image:
        """The image in 8-bit greyscale, at full size. Raises `archive.BadImage` where there is no usable one."""
        raise NotImplementedError


def load_source(data: "settings.Data", seed: int) -> tuple[list[Film], dict[str, dict]]:
    """The films of `data.source`, and for each of their data sets an account of what else was found, in numbers.

    Raises UserError where the source cannot be had or is broken as a whole.
    """
    if data.source == "phantom":
        from explainmyxray.sources import phantom

        return list(phantom.films(data, seed)), {"phantom": {}}
    from explainmyxray.sources import kaggle

    return kaggle.films(Path(data.archives))
