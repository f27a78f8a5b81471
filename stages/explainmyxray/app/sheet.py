"""What the page shows of one image, as HTML that holds all that it needs: no file and no link, nothing of the upload but its pixels."""

import base64
import io
import re
from collections.abc import Iterator
from html import escape

import numpy as np
from PIL import Image

from explainmyxray.explaining.attribution import Attribution
from explainmyxray.explaining.explainer import NOTICE, Explanation

SHOWN_SIDE = 1024  # pixels; a larger film is shrunk to be shown
HEAT = (
    230,
    159,
    0,
)  # Okabe & Ito's orange: how much is told by how dense it is, and on grey by any kind of sight
DENSEST = 200  # of 255, so that the film shows through
LIKELY = 0.05  # findings that fewer sampled reports name are left out
HEADER, BOLD = re.compile(r"^([A-Z][a-z]+:)"), r"<b>\1</b>"
CAUTION = "On phantoms the box misses the sign about one time in five; on real films nobody has checked it."  # benchmarks/overlay.py


def sheet(film: Image.Image, told: Explanation, looks: dict[str, Attribution]) -> str:
    """Film with overlays, report, findings and certainty; `film` upright and of any size."""
    warning = (
        f'<p class="warning" role="alert"><b>Do not trust this report:</b> {escape(told.warning)}.</p>'
        if told.warning
        else ""
    )
    return (
        f'<div class="sheet">{_film(film, looks)}<div class="told">{warning}{_report(told.report)}{_findings(told)}'
        f'{_sure(told)}<p class="notice">{escape(NOTICE)}</p></div></div>'
    )


def problem(text: str) -> str:
    """One line in the place of a sheet."""
    return f'<p class="warning" role="alert">{escape(text)}</p>'


def name(finding: str) -> str:
    return finding.replace("_", " ").lower()


def _film(film: Image.Image, looks: dict[str, Attribution]) -> str:
    """The film, a layer over it for each finding, and the choice between them, which needs neither script nor server."""
    choices = [*looks, None]  # None: the film alone
    inputs = "".join(
        f'<input type="radio" name="look" id="look-{number}"{" checked" * (number == 0)}>'
        for number in range(len(choices))
    )
    labels = "".join(
        f'<label for="look-{number}">{name(each) if each else "film alone"}</label>'
        for number, each in enumerate(choices)
    )
    layers = "".join(
        f'<div class="layer layer-{number}">{_layer(each)}</div>'
        for number, each in enumerate(looks.values())
    )
    words = "".join(
        f'<div class="words words-{number}">{_words(each)}</div>'
        for number, each in enumerate(looks.values())
    )
    rules = "".join(
        f"#look-{n}:checked~.frame .layer-{n},#look-{n}:checked~.words-{n}{{display:block}}"
        f"#look-{n}:checked~.choice label[for=look-{n}]{{background:#1a1a1a;color:#fff}}"
        f"#look-{n}:focus-visible~.choice label[for=look-{n}]{{outline:3px solid #0072b2}}"
        for n in range(len(choices))
    )
    shown = film.copy()
    shown.thumbnail((SHOWN_SIDE, SHOWN_SIDE), Image.Resampling.LANCZOS)
    choice = f'<div class="choice"><span>Where it looked for</span>{labels}</div>' if looks else ""
    nothing = (
        ""
        if looks
        else '<div class="words" style="display:block">The report names no finding, so there is no place to show.</div>'
    )
    return (
        f'<div class="film"><style>{rules}</style>{inputs}{choice}'
        f'<div class="frame"><img class="xray" alt="the film" src="{uri(shown)}">{layers}</div>{words}{nothing}</div>'
    )


def _layer(look: Attribution) -> str:
    """The heat over the film, patch by patch, and a box around the patch that counts most."""
    rows, columns = look.heatmap.shape
    pixels = np.zeros((rows, columns, 4), np.uint8)
    pixels[..., :3], pixels[..., 3] = HEAT, (look.heatmap * DENSEST).round()
    row, column = look.peak
    box = (
        f'<div class="box" style="left:{column / columns:.2%};top:{row / rows:.2%};width:{1 / columns:.2%};height:{1 / rows:.2%}"></div>'
        if look.heatmap.any()
        else ""
    )
    return f'<img class="heat" alt="" src="{uri(Image.fromarray(pixels))}">{box}'


def _words(look: Attribution) -> str:
    """The legend: what the colour means, and what the box."""
    said = " and ".join(f"“{escape(each.split(': ', 1)[-1])}”" for each in look.sentences)
    if not look.heatmap.any():
        return f"No single place counts for {said}: hiding any of them leaves it as likely."
    rows, columns = look.heatmap.shape
    times = (
        f"{look.likelihood_ratio:.1f}"
        if look.likelihood_ratio < 10
        else f"{look.likelihood_ratio:.0f}"
        if look.likelihood_ratio < 1000
        else "over 1,000"
    )
    return (
        '<span class="ramp"><i></i><span>counts little</span><span>counts most</span></span>'
        f"The denser the orange, the more {said} hangs on that patch of {rows} x {columns}. Box: the patch that counts most; "
        f"with the detail around it wiped out, the model finds these words {times} times less likely. {CAUTION}"
    )


def _report(report: str) -> str:
    """The report, its parts under each other, their headers in bold."""
    parts = re.sub(r" (Impression:)", r"\n\1", escape(report)).split("\n")
    return "<h2>Report</h2>" + "".join(f'<p class="report">{HEADER.sub(BOLD, part)}</p>' for part in parts)


def _findings(told: Explanation) -> str:
    """Each finding that the report names, or that some of the sampled reports name, with their share."""
    rows = "".join(_finding(*row) for row in _likely(told))
    if not rows:
        return "<h2>Findings</h2><p>The report names none.</p>"
    how = "how many of the sampled reports name it" if told.probabilities else "no reports were sampled"
    return f'<h2>Findings <small>{how}</small></h2><table class="findings">{rows}</table>'


def _finding(finding: str, named: bool, share: float | None) -> str:
    bar = (
        ""
        if share is None
        else f'<td class="bar"><i style="width:{share:.0%}"></i></td><td class="share">{share:.0%}</td>'
    )
    return (
        f'<tr class="{"named" if named else "other"}"><td>{"●" if named else "○"} {name(finding)}</td>{bar}'
        f'<td class="where">{"in the report" if named else "not in it"}</td></tr>'
    )


def _likely(told: Explanation) -> Iterator[tuple[str, bool, float | None]]:
    """Findings with whether the report names them and their share: named ones first, then by share."""
    shares = told.probabilities or dict.fromkeys(told.findings)
    for finding, share in sorted(
        shares.items(), key=lambda pair: (pair[0] not in told.findings, -(pair[1] or 0))
    ):
        if finding in told.findings or share >= LIKELY:
            yield finding, finding in told.findings, share


def _sure(told: Explanation) -> str:
    return (
        f"<h2>Certainty</h2><p><b>{told.certainty:.0%}</b>: the probability that the model gives to its own words, on average. "
        "It tells how sure it is of them, not whether they are true.</p>"
    )


def uri(image: Image.Image) -> str:
    return "data:image/png;base64," + base64.b64encode(png(image)).decode()


def png(image: Image.Image) -> bytes:
    """The image as a PNG file with nothing but its pixels in it."""
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()
