"""Prepared images, as training and evaluation read them."""

from pathlib import Path

from PIL import Image

from explainmyxray.errors import UserError


def open_image(images: Path, name: str) -> Image.Image:
    """A prepared image in greyscale. Raises UserError where it is missing or damaged."""
    try:
        with Image.open(images / name) as image:
            return image.convert("L")
    except OSError as error:
        raise UserError(
            f"{images / name} cannot be read ({type(error).__name__}): run `dvc repro --force fetch`"
        ) from None
