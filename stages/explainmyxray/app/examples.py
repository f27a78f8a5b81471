"""Phantoms to click on: drawn for the page, and seen by no training."""

from dataclasses import dataclass

from explainmyxray.app.encoding import to_png
from explainmyxray.sources.phantom import PhantomFilm

STREAM = 2  # of random numbers: 0 and 1 are phantom.PIPELINE and phantom.PRETRAINING
SEED = 12
SIDE = 224
LABELS = ("Effusion", "Cardiomegaly", "Mass", "Pneumothorax", "Consolidation|Effusion", "No Finding")


@dataclass(frozen=True)
class Example:
    """A phantom as a PNG file, and the findings drawn into it, in words."""

    caption: str
    png: bytes


def draw_examples() -> list[Example]:
    """One phantom for each entry of `LABELS`."""
    examples = []
    for number, labels in enumerate(LABELS):
        film = PhantomFilm("", {"labels": labels}, STREAM, SEED, number, number, SIDE)
        examples.append(Example(labels.replace("|", ", ").lower(), to_png(film.read())))
    return examples
