"""Phantoms to click on: drawn for the page, and seen by no training."""

from PIL import Image

from explainmyxray.sources.phantom import PhantomFilm

EXAMPLES = 2  # a stream of random numbers of their own, beside phantom.PIPELINE and phantom.PRETRAINING
SHOWN = ("Effusion", "Cardiomegaly", "Mass", "Pneumothorax", "Consolidation|Effusion", "No Finding")
SEED, SIDE = 12, 224


def examples() -> list[tuple[str, Image.Image]]:
    """What was drawn, in words, and the drawing."""
    return [
        (
            labels.replace("|", ", ").lower(),
            PhantomFilm("", {"labels": labels}, EXAMPLES, SEED, number, number, SIDE).read(),
        )
        for number, labels in enumerate(SHOWN)
    ]
