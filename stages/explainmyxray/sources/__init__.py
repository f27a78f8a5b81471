"""Sources of films: which images there are, and what is known of each. Nothing is decoded before `Film.read`.

To add a source: write a module in this room with a subclass of `Film` (for films in a zip file or a folder
there is `containers.ContainerFilm`) and a function that returns films and audits as `load_source` does; call
it from there; put the source's name into `settings.Data.source`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

if TYPE_CHECKING:
    from explainmyxray import settings


@dataclass(frozen=True)
class Film:
    """One image of a source, not yet decoded. It can be pickled, so that another process reads it."""

    name: str  # its path under data/images without suffix, as in "nih_sample/00000013_005"
    study: dict[str, str]  # columns of the studies table that the source knows, blank where unknown

    def read(self) -> Image.Image:
        """The image in 8-bit greyscale, at full size. Raises `images.decoding.BadImage` where there is no
        usable one.
        """
        raise NotImplementedError


def load_source(data: "settings.Data", seed: int) -> tuple[list[Film], dict[str, dict]]:
    """The films of `data.source`, and by data set an audit: counts of all else that was found, and why it is
    left out.

    Raises UserError where the source cannot be had or is broken as a whole.
    """
    # Imported here: phantoms need no Kaggle client, and Kaggle's films no drawing.
    if data.source == "phantom":
        from explainmyxray.sources import phantom

        return list(phantom.films(data, seed)), {"phantom": {}}
    from explainmyxray.sources import kaggle

    return kaggle.films(Path(data.archives))
