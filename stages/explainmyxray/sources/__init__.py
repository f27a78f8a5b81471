"""Sources of films: which images there are, and what is known of each. Nothing is decoded before `Film.read`.

A source is the module of its name in this room, with a function `films(data, seed)`, and an entry in
`registry.yaml`; `docs/extending.md` shows one. For films in a zip file or a folder there is
`containers.ContainerFilm`.
"""

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from PIL import Image

if TYPE_CHECKING:
    from explainmyxray import settings


@dataclass(frozen=True)
class Film:
    """One image of a source, not yet decoded. It can be pickled, so that another process reads it."""

    name: str  # its path under data/images without suffix, as in "nih_sample/00000013_005"
    study: dict[str, str]  # columns of the studies table that the source knows; unknown ones may be left out

    def read(self) -> Image.Image:
        """The image in 8-bit greyscale, at full size. Raises `images.decoding.BadImage` where there is no
        usable one.
        """
        raise NotImplementedError


def load_source(data: "settings.Data", seed: int) -> tuple[list[Film], dict[str, dict]]:
    """The films of all sources in `data.source`, and by source an audit: counts of all else that was found,
    and why it is left out.

    Raises UserError where a source cannot be had or is broken as a whole.
    """
    films, audits = [], {}
    for name in data.source:
        # Imported by name, and only then: phantoms need no Kaggle client, and Kaggle's films no drawing.
        source = importlib.import_module(f"{__name__}.{name}")
        found, audits[name] = source.films(data, seed)
        films += found
    return films, audits
