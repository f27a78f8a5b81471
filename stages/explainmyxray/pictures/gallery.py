"""The gallery: X-rays beside true and generated report, with the findings found, missed and invented."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import matplotlib
import pandas as pd
from PIL import Image, ImageDraw, ImageFont

from explainmyxray.outputs import replacing
from explainmyxray.pictures.style import BLUE, GREEN, GREY, INK, VERMILION, note
from explainmyxray.scoring.references import are_real
from explainmyxray.tables import split_labels

# All lengths are pixels of the page.
WIDTH, MARGIN, GAP = 1000, 20, 24
XRAY = 224
LEFT = MARGIN + XRAY + GAP  # of the reference report
COLUMN = (WIDTH - LEFT - MARGIN - GAP) // 2
HEAD, FOOT = 64, 34
LINE, HEADING, CAPTION = 18, 23, 38
MAX_LINES = 14  # of a text; an untuned model may ramble
SYMBOLS = {"found": ("✓", GREEN), "missed": ("✗", VERMILION), "invented": ("+", BLUE)}
RULE = "#DDDDDD"


@dataclass(frozen=True)
class Line:
    """A line of text: where its upper left corner stands on the page, and how it looks."""

    left: int
    top: int
    text: str
    size: int = 13
    bold: bool = False
    colour: str = INK


def draw_gallery(
    predictions: pd.DataFrame,
    predicted: Sequence[frozenset[str]],
    best_to_worst: Sequence[int],
    images: str | Path,
    path: str | Path,
    n: int,
) -> None:
    """Draw `n` cases, best, median and worst, as a PNG 1000 pixels wide.

    `predicted` are the findings read from each row's generated report, `best_to_worst` rows (both of
    `scoring.evaluation.Evaluation`), `images` the folder that the column `image` is relative to. Raises
    OSError where an image is missing.
    """
    # 1) Lay out: all lines of text, and where each X-ray stands.
    lines = [Line(MARGIN, 20, "Reports on the test split: best, median and worst cases", size=18, bold=True)]
    xrays = {}
    top = HEAD
    cases = choose(best_to_worst, n)
    shown = predictions.iloc[[row for _, row in cases]]
    for kind, row in cases:
        case = predictions.iloc[row]
        xrays[top] = Path(images) / case["image"]
        of_case = _lines_of_case(case, predicted[row], kind, top)
        lines += of_case
        top = max(top + XRAY + CAPTION, of_case[-1].top + LINE) + GAP
    lines.append(Line(MARGIN, top + 2, note(are_real(shown).sum(), len(shown))))
    # 2) Draw, from top to bottom.
    page = Image.new("RGB", (WIDTH, top + FOOT), "white")
    drawing = ImageDraw.Draw(page)
    for rule in (*xrays, top):
        drawing.line((MARGIN, rule - GAP // 2, WIDTH - MARGIN, rule - GAP // 2), fill=RULE)
    for xray_top, file in xrays.items():
        page.paste(_square(file), (MARGIN, xray_top))
    for line in lines:
        drawing.text((line.left, line.top), line.text, line.colour, font(line.size, line.bold))
    with replacing(path) as aside:
        page.save(aside, format="png")


def choose(best_to_worst: Sequence[int], n: int) -> list[tuple[str, int]]:
    """(kind, row) of `n` different rows: a third of best, median and worst each; what is over is median."""
    n = min(n, len(best_to_worst))
    num_best, num_worst = n // 3, (n + 1) // 3
    num_median = n - num_best - num_worst
    first_worst = len(best_to_worst) - num_worst
    first_median = num_best + (first_worst - num_best - num_median) // 2
    cases = [("best", row) for row in best_to_worst[:num_best]]
    cases += [("median", row) for row in best_to_worst[first_median : first_median + num_median]]
    cases += [("worst", row) for row in best_to_worst[first_worst:]]
    return [(kind, int(row)) for kind, row in cases]


def outcomes(true: frozenset[str], predicted: frozenset[str]) -> dict[str, list[str]]:
    """The findings found, missed and invented, where there are any; `No Finding` where both are empty."""
    if not true | predicted:
        return {"found": ["No Finding"]}
    kinds = {"found": true & predicted, "missed": true - predicted, "invented": predicted - true}
    return {kind: sorted(names) for kind, names in kinds.items() if names}


def wrap(text: str, width: int, max_lines: int = MAX_LINES, bold: bool = False) -> list[str]:
    """`text` in at most `max_lines` lines of `width` pixels; longer words are cut, longer texts end in …"""
    typeface = font(bold=bold)
    lines = [""]
    for word in text.split() or ["(nothing)"]:
        joined = f"{lines[-1]} {word}".strip()
        if typeface.getlength(joined) <= width:
            lines[-1] = joined
            continue
        if lines[-1]:
            lines.append("")
        # Letter by letter, for a word that is longer than a line.
        for letter in word:
            if typeface.getlength(lines[-1] + letter) > width:
                lines.append("")
            lines[-1] += letter
    if len(lines) > max_lines:
        last = lines[max_lines - 1]
        lines = [*lines[: max_lines - 1], f"{last[:-2]}…"]
    return lines


def _lines_of_case(case: pd.Series, predicted: frozenset[str], kind: str, top: int) -> list[Line]:
    """Caption, the two reports side by side, and under both the findings, the lowest of all last."""
    lines = []
    for number, text in enumerate(_caption(case)):
        lines.append(Line(MARGIN, top + XRAY + 5 + 15 * number, text, size=11, colour=GREY))
    # The reports, in two columns.
    columns = {
        LEFT: (f"Reference · {kind} case", case["report"]),
        LEFT + COLUMN + GAP: ("Generated", case["generated"]),
    }
    bottom = top
    for left, (heading, report) in columns.items():
        lines.append(Line(left, top, heading, bold=True))
        wrapped = wrap(report, COLUMN)
        for number, text in enumerate(wrapped):
            lines.append(Line(left, top + HEADING + LINE * number, text))
        bottom = max(bottom, top + HEADING + LINE * len(wrapped))
    # The findings, a line or more for each outcome.
    bottom += LINE // 2
    for outcome, names in outcomes(split_labels(case["labels"]), predicted).items():
        symbol, colour = SYMBOLS[outcome]
        text = f"{symbol} {outcome}: {', '.join(names)}".replace("_", " ")
        for part in wrap(text, 2 * COLUMN + GAP, bold=True):
            lines.append(Line(LEFT, bottom, part, bold=True, colour=colour))
            bottom += LINE
    return lines


def _caption(case: pd.Series) -> list[str]:
    """The source, and on a line of its own what is known of view, age and sex."""
    age = f"{case['age_years']} years" if case["age_years"] else ""
    known = [value for value in (case["view"], age, case["sex"]) if value]
    return [case["source"], " · ".join(known)]


@cache
def font(size: int = 13, bold: bool = False) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with matplotlib; in the basic layout, which every build of Pillow has."""
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    file = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name
    return ImageFont.truetype(file, size, layout_engine=ImageFont.Layout.BASIC)


def _square(file: Path) -> Image.Image:
    """Grey, and 224 pixels a side with black bars, so that the page shows a pixel of it as one of its own."""
    square = Image.new("L", (XRAY, XRAY))
    with Image.open(file) as image:
        image = image.convert("L")
    image.thumbnail((XRAY, XRAY), Image.Resampling.LANCZOS)
    square.paste(image, ((XRAY - image.width) // 2, (XRAY - image.height) // 2))
    return square
