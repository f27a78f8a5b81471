"""Films from PNG, JPEG and DICOM files. Nothing of a DICOM file but its pixels leaves this module: no name, no id, no date."""

import io
import logging
import warnings

import numpy as np
import pydicom
from PIL import Image
from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_voi_lut, apply_windowing, pixel_array

from explainmyxray.images.decoding import MAX_FILE_BYTES, MAX_PIXELS, BadImage, decode

logging.getLogger("pydicom").setLevel(
    logging.CRITICAL + 1
)  # its remarks quote header values, a patient's name among them

DEFLATED = b"1.2.840.10008.1.2.1.99"
COLOUR = (
    12  # grey levels by which the channels of a grey picture may differ on average; JPEG costs one or two
)


def open_film(data: bytes) -> Image.Image:
    """An upright 8-bit greyscale image. Raises BadImage where there is none that can be used."""
    if len(data) > MAX_FILE_BYTES:
        raise BadImage("too_large")
    return decode_dicom(data) if data[128:132] == b"DICM" else decode(data)


def decode_dicom(data: bytes) -> Image.Image:
    """The first frame of a DICOM file: rescaled, windowed (or, without a window, from its darkest to its brightest), dense white.

    DICOM PS3.3, C.11.1 (modality), C.11.2 (window) and C.7.6.3.1.2 (MONOCHROME1: the lowest value is white). Raises BadImage.
    """
    if (
        DEFLATED in data[132 : 2**20]
    ):  # pydicom unpacks it whole before a size can be looked at, and no film comes so
        raise BadImage("unknown_compression")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they quote the header as well
            return _first_frame(pydicom.dcmread(io.BytesIO(data)))
    except BadImage:
        raise
    except (
        Exception
    ):  # pydicom raises what its many decoders raise, and the message could hold what the header holds
        raise BadImage("damaged") from None


def _first_frame(dataset: pydicom.Dataset) -> Image.Image:
    if "PixelData" not in dataset:
        raise BadImage("not_an_image")
    if int(dataset.Rows) * int(dataset.Columns) > MAX_PIXELS:
        raise BadImage("too_many_pixels")
    pixels = pixel_array(dataset, index=0)
    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        pixels = apply_color_lut(pixels, dataset)
    if pixels.ndim == 3:
        return Image.fromarray(to_bytes(pixels, pixels.min(), pixels.max())).convert("L")
    values = apply_modality_lut(pixels, dataset)
    if (
        dataset.get("WindowCenter") is not None and dataset.get("WindowWidth") is not None
    ):  # there, and not left empty
        ends = apply_windowing(
            np.array([-(2.0**31), 2.0**31]), dataset
        )  # what lies far outside the window becomes its ends
        values = apply_windowing(values, dataset)
        if ends[0] > ends[1]:  # pydicom turns grey around where the rescale slope falls
            values = ends.sum() - values
    else:
        values = apply_voi_lut(values, dataset)
        ends = values
    shown = to_bytes(values, ends.min(), ends.max())
    return Image.fromarray(255 - shown if dataset.PhotometricInterpretation == "MONOCHROME1" else shown)


def to_bytes(pixels: np.ndarray, low: float, high: float) -> np.ndarray:
    """Numbers from `low` to `high` as uint8 from 0 to 255."""
    share = (pixels.astype(float) - float(low)) / max(float(high) - float(low), 1e-9)
    return (share.clip(0, 1) * 255 + 0.5).astype(np.uint8)


def is_colour(data: bytes) -> bool:
    """Whether a PNG or JPEG file holds a colour picture, not a grey one stored in three channels."""
    if data[128:132] == b"DICM":
        return False
    with Image.open(io.BytesIO(data)) as image:
        channels = np.asarray(image.convert("RGB").resize((64, 64)), float)
    return bool((channels.max(-1) - channels.min(-1)).mean() > COLOUR)
