"""From an upload to what the page shows of it, in memory. No other module of the page knows the model."""

import logging
import re
import traceback

import numpy as np
from PIL import Image

from explainmyxray.app.encoding import to_data_uri
from explainmyxray.app.result import Finding, Overlay, Result, Section
from explainmyxray.errors import UserError
from explainmyxray.explaining.attribution import Attribution, attribute
from explainmyxray.explaining.explainer import Explainer
from explainmyxray.explaining.explanation import Explanation
from explainmyxray.images.films import open_film
from explainmyxray.reports.findings import SHOWN_SHARE

MAX_SHOWN_SIDE = 1024  # pixels; a larger film is shrunk to be shown
HEATMAP_COLOUR = (230, 159, 0)  # Okabe & Ito's orange: distinct from grey by any kind of sight
MAX_OPACITY = 200  # of 255, so that the film shows through
SECTION = re.compile(r"\b(Findings|Impression): ")

logger = logging.getLogger(__name__)


def handle_upload(explainer: Explainer, data: bytes) -> Result:
    """What the page shows of a PNG, JPEG or DICOM file. What goes wrong is the result's `problem`."""
    try:
        return _explain(explainer, data)
    except UserError as error:
        return Result(problem=str(error))
    except Exception as error:
        # Where it happened, and not its message, which could quote a file's header: a patient's name.
        place = traceback.extract_tb(error.__traceback__)[-1]
        logger.error(
            "a film was not explained: %s in %s, line %d", type(error).__name__, place.filename, place.lineno
        )
        return Result(
            problem=f"This film cannot be explained, by an error of the program ({type(error).__name__})."
        )


def _explain(explainer: Explainer, data: bytes) -> Result:
    explanation = next(explainer.explain([("", data)]))  # no name: it may be a patient's
    if explanation.problem:
        return Result(
            problem=f"This is {explanation.problem}. A chest X-ray is wanted, as PNG, JPEG or DICOM."
        )
    film = open_film(data)
    if explanation.warning:  # a heatmap over it would lend it credit
        return build_result(film, explanation, {})
    attributions = attribute(
        explainer.model,
        explainer.processor,
        explainer.prepare(film),
        explanation.report,
        explainer.generation.batch_size,
    )
    return build_result(film, explanation, attributions)


def build_result(film: Image.Image, explanation: Explanation, attributions: dict[str, Attribution]) -> Result:
    """`film` upright and of any size; `attributions` by finding."""
    shown = film.copy()
    shown.thumbnail((MAX_SHOWN_SIDE, MAX_SHOWN_SIDE), Image.Resampling.LANCZOS)
    return Result(
        warning=explanation.warning,
        remarks=explanation.remarks,
        film=to_data_uri(shown),
        report=split_sections(explanation.report),
        findings=list_findings(explanation),
        sampled=explanation.probabilities is not None,
        calibration=explanation.calibration,
        overlays=tuple(build_overlay(finding, each) for finding, each in attributions.items()),
    )


def split_sections(report: str) -> tuple[Section, ...]:
    """The report at its titles, in order."""
    before, *rest = SECTION.split(report)  # text, title, text, title, text ...
    sections = [Section("", before.strip())] if before.strip() else []
    for title, text in zip(rest[::2], rest[1::2], strict=True):
        sections.append(Section(title, text.strip()))
    return tuple(sections)


def list_findings(explanation: Explanation) -> tuple[Finding, ...]:
    """Those that the report names, then others that some samples name; each group by falling probability."""
    probabilities = explanation.probabilities
    if probabilities is None:
        return tuple(Finding(to_words(finding), True, None) for finding in explanation.findings)
    listed = []
    for finding, probability in probabilities.items():
        in_report = finding in explanation.findings
        if in_report or probability >= SHOWN_SHARE:
            like = (explanation.measured or {}).get(finding)
            worth = f"{like.present:.0%} of {like.findings}" if like else ""
            listed.append(Finding(to_words(finding), in_report, round(100 * probability), worth))
    listed.sort(key=lambda each: (not each.in_report, -each.percent))
    return tuple(listed)


def build_overlay(finding: str, attribution: Attribution) -> Overlay:
    heatmap = attribution.heatmap
    rows, columns = heatmap.shape
    pixels = np.zeros((rows, columns, 4), np.uint8)
    pixels[..., :3] = HEATMAP_COLOUR
    pixels[..., 3] = (heatmap * MAX_OPACITY).round()
    row, column = attribution.peak
    return Overlay(
        finding=to_words(finding),
        sentences=tuple(sentence.split(": ", 1)[-1] for sentence in attribution.sentences),
        heatmap=to_data_uri(Image.fromarray(pixels)),
        rows=rows,
        columns=columns,
        any_patch_counts=bool(heatmap.any()),
        row=row,
        column=column,
        factor=format_factor(attribution.likelihood_ratio),
    )


def format_factor(factor: float) -> str:
    if factor >= 1000:
        return "over 1,000"
    return f"{factor:.0f}" if factor >= 10 else f"{factor:.1f}"


def to_words(finding: str) -> str:
    """`Pleural_Thickening` as a person writes it."""
    return finding.replace("_", " ").lower()
