"""JPEG and PNG files that are not trusted, decoded to 8-bit greyscale; limits are checked before memory is spent.

What cannot be used raises `BadImage` with one of `REASONS`.
"""

import io
import struct
import warnings
import zlib

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

MAX_FILE_BYTES = 64 * 2**20  # the largest file of the two Kaggle data sets has under 3 MB
MAX_PIXELS = 50_000_000  # the largest film of NIH's originals has 3056 x 2544, under 8 million
REASONS = (
    # the archive member
    "unsafe_name",
    "symlink",
    "encrypted",
    "unknown_compression",
    "too_large",
    "zip_bomb",
    "unreadable",
    # the image
    "empty",
    "not_an_image",
    "too_many_pixels",
    "truncated",
    "damaged",
    # its name
    "unknown_name",
    "name_taken",
)
# What zlib, struct and Pillow raise for a broken file.
BROKEN_FILE_ERRORS = (
    zlib.error,
    struct.error,
    EOFError,
    ValueError,
    OverflowError,
    RuntimeError,
    MemoryError,
)


class BadImage(Exception):
    """A member that is no usable image; `reason` is one of `REASONS`."""

    def __init__(self, reason: str):
        super().__init__(reason)
        self.reason = reason


def decode(data: bytes) -> Image.Image:
    """A JPEG or PNG file, by content and whatever its name, as an upright 8-bit greyscale image without alpha.

    Raises BadImage. The number of pixels is bounded before any is decoded.
    """
    if not data:
        raise BadImage("empty")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # Pillow's own pixel limit, above this one, and remarks on metadata
            image = Image.open(io.BytesIO(data), formats=("JPEG", "PNG"))
            if image.width * image.height > MAX_PIXELS:
                raise BadImage("too_many_pixels")
            image.load()
            return greyscale(ImageOps.exif_transpose(image))
    except UnidentifiedImageError:
        raise BadImage("not_an_image") from None
    except Image.DecompressionBombError:
        raise BadImage("too_many_pixels") from None
    except (
        OSError,
        SyntaxError,
        LookupError,
        TypeError,
        *BROKEN_FILE_ERRORS,
    ) as error:  # Pillow's ways to say "broken file"
        raise BadImage("truncated" if "truncated" in str(error).lower() else "damaged") from None


def greyscale(image: Image.Image) -> Image.Image:
    """`image` in mode L. 16 bits are scaled (65535 is white), not clipped as Pillow does; alpha is left out."""
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.uint32).clip(0, 65535)
        return Image.fromarray(((values + 128) // 257).astype(np.uint8))
    if image.mode in ("P", "PA", "CMYK"):
        image = image.convert("RGB")
    return image.convert("L")
