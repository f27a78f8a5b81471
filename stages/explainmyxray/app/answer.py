"""From an uploaded file to what the page shows of it, in memory from end to end."""

import base64
import binascii

from explainmyxray.app.sheet import problem, sheet
from explainmyxray.errors import UserError
from explainmyxray.explaining.attribution import attribute
from explainmyxray.explaining.explainer import Explainer
from explainmyxray.images.films import open_film


def answer(explainer: Explainer, upload: str) -> str:
    """HTML for a PNG, JPEG or DICOM file in base64: its explanation, or one line that says why there is none."""
    try:
        data = base64.b64decode(upload or "", validate=True)
    except (binascii.Error, ValueError):
        return problem("no file arrived: choose it again")
    try:
        told = next(explainer.explain([("", data)]))  # no name: it may be a patient's
        if told.problem:
            return problem(f"This is {told.problem}. A chest X-ray is wanted, as PNG, JPEG or DICOM.")
        film = open_film(data)
        looks = attribute(
            explainer.model,
            explainer.processor,
            explainer.prepare(film),
            told.report,
            explainer.generation.batch_size,
        )
        return sheet(film, told, looks)
    except UserError as error:
        return problem(str(error))
