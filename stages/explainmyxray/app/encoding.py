"""Pictures as the page sends them: PNG files in memory, with nothing in them but pixels."""

import base64
import io

from PIL import Image


def to_png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def to_data_uri(image: Image.Image) -> str:
    return "data:image/png;base64," + base64.b64encode(to_png(image)).decode()
