"""JPEG and PNG files that are not trusted, decoded to 8-bit greyscale; limits are checked before memory is
spent.

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
MAX_SIDE = 20_000  # pixels; Pillow resizes a row of 50,000,000 in 7 s and 1.3 GB
# A progressive JPEG usually has ten scans, and each of them costs a pass over the whole image: thousands fit
# into a few kilobytes and take minutes
# (https://libjpeg-turbo.org/pmwiki/uploads/About/TwoIssueswiththeJPEGStandard.pdf).
MAX_SCANS = 100
START_OF_SCAN = b"\xff\xda"
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
    "too_many_scans",
    "truncated",
    "damaged",
    "too_slow",
    "too_much_memory",
    # its name
    "unknown_name",
    "name_taken",
    # the path that a table gives
    "missing",
    "outside_the_folder",
)
# What zlib, struct and Pillow raise for a broken file.
BROKEN_FILE_ERRORS = (
    zlib.error,
    struct.error,
    EOFError,
    ValueError,
    OverflowError,
    RuntimeError,
)
# What Pillow raises beside those: OSError for a file that ends early, SyntaxError for a broken header, and so
# on.
BROKEN_IMAGE_ERRORS = (OSError, SyntaxError, LookupError, TypeError, *BROKEN_FILE_ERRORS)
COLOUR_SPREAD = (
    12  # grey levels by which the channels of a grey picture may differ on average; JPEG costs one or two
)


class BadImage(Exception):
    """A file that is no usable image; `reason` is one of `REASONS`."""

    def __init__(self, reason: str):
        super().__init__(reason)
        self.reason = reason


def decode(data: bytes) -> Image.Image:
    """A JPEG or PNG file, known by its content, as an upright 8-bit greyscale image without alpha.

    Raises BadImage. Pixels, sides and scans are bounded before any pixel is decoded.
    """
    if not data:
        raise BadImage("empty")
    try:
        with warnings.catch_warnings():
            # Pillow's own pixel limit, which is above this one, and its remarks on metadata.
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(data), formats=("JPEG", "PNG"))
            check_size(image.width, image.height)
            # Inside a scan 0xFF is never followed by 0xDA, so that this counts scans, and those of a
            # thumbnail.
            if image.format == "JPEG" and data.count(START_OF_SCAN) > MAX_SCANS:
                raise BadImage("too_many_scans")
            image.load()
            return greyscale(ImageOps.exif_transpose(image))
    except UnidentifiedImageError:
        raise BadImage("not_an_image") from None
    except Image.DecompressionBombError:
        raise BadImage("too_many_pixels") from None
    except MemoryError:
        raise BadImage("too_much_memory") from None
    except BROKEN_IMAGE_ERRORS as error:
        raise BadImage("truncated" if "truncated" in str(error).lower() else "damaged") from None


def check_size(width: int, height: int) -> None:
    """Raises BadImage where an image is too large to be decoded, in all or on one side."""
    if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
        raise BadImage("too_many_pixels")


def greyscale(image: Image.Image) -> Image.Image:
    """`image` in mode L. 16 bits are scaled (65535 is white), not clipped as by Pillow; alpha is dropped."""
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.uint32).clip(0, 65535)
        return Image.fromarray(((values + 128) // 257).astype(np.uint8))
    if image.mode in ("P", "PA", "CMYK"):
        image = image.convert("RGB")
    return image.convert("L")


def has_colour(data: bytes) -> bool:
    """Whether a PNG or JPEG file holds a colour picture, not a grey one stored in three channels.

    For a file that `decode` takes: nothing is checked here.
    """
    with Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as image:
        channels = np.asarray(image.convert("RGB").resize((64, 64)), float)
    spread = channels.max(-1) - channels.min(-1)
    return bool(spread.mean() > COLOUR_SPREAD)
