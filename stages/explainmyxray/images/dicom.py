"""The film in a DICOM file. Nothing of the file but its pixels leaves this module: no name, no id, no date.

To be called through `films.open_film`: the decoders that pydicom calls can end the process on a damaged file.
"""

import io
import logging
import warnings

import numpy as np
import pydicom
from PIL import Image
from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_voi_lut, apply_windowing, pixel_array

from explainmyxray.images.decoding import BadImage, check_size

# pydicom's remarks quote header values, a patient's name among them.
logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)

MAGIC = b"DICM"  # after a preamble of 128 bytes
DEFLATED = b"1.2.840.10008.1.2.1.99"


def is_dicom(data: bytes) -> bool:
    return data[128:132] == MAGIC


def decode_dicom(data: bytes) -> Image.Image:
    """The first frame of a DICOM file as an 8-bit greyscale image in which dense is white.

    Values are rescaled, then windowed; without a window they run from the darkest to the brightest. DICOM
    PS3.3, C.11.1 (modality), C.11.2 (window) and C.7.6.3.1.2 (MONOCHROME1: the lowest value is white). Raises
    BadImage.
    """
    # pydicom unpacks a deflated file whole before a size can be looked at, and no film comes so.
    if DEFLATED in data[132 : 2**20]:
        raise BadImage("unknown_compression")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they quote the header as well
            return _first_frame(pydicom.dcmread(io.BytesIO(data)))
    except BadImage:
        raise
    except MemoryError:
        raise BadImage("too_much_memory") from None
    # Any error: pydicom raises what its many decoders raise. Its message could hold what the header holds.
    except Exception:
        raise BadImage("damaged") from None


def _first_frame(dataset: pydicom.Dataset) -> Image.Image:
    if "PixelData" not in dataset:
        raise BadImage("not_an_image")
    check_size(int(dataset.Columns), int(dataset.Rows))
    pixels = pixel_array(dataset, index=0)
    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        pixels = apply_color_lut(pixels, dataset)
    if pixels.ndim == 3:
        return Image.fromarray(to_bytes(pixels, pixels.min(), pixels.max())).convert("L")
    values = apply_modality_lut(pixels, dataset)
    # Both may be there and yet be empty.
    has_window = dataset.get("WindowCenter") is not None and dataset.get("WindowWidth") is not None
    if has_window:
        # What lies far outside the window becomes one of its ends: so they show what is black and what is
        # white.
        ends = apply_windowing(np.array([-(2.0**31), 2.0**31]), dataset)
        values = apply_windowing(values, dataset)
        if ends[0] > ends[1]:  # pydicom turns grey around where the rescale slope falls
            values = ends.sum() - values
    else:
        values = apply_voi_lut(values, dataset)
        ends = values
    shown = to_bytes(values, ends.min(), ends.max())
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        shown = 255 - shown
    return Image.fromarray(shown)


def to_bytes(pixels: np.ndarray, low: float, high: float) -> np.ndarray:
    """Numbers from `low` to `high` as uint8 from 0 to 255."""
    share = (pixels.astype(float) - float(low)) / max(float(high) - float(low), 1e-9)
    return (share.clip(0, 1) * 255 + 0.5).astype(np.uint8)
