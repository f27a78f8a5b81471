"""The gallery: X-rays beside the true and the generated report, with the findings found, missed and invented."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from explainmyxray.pictures.gallery_page import (
    BOLD,
    MARGIN,
    MARKS,
    PLAIN,
    SMALL,
    TITLE,
    WIDTH,
    XRAY,
    Page,
    chip_label,
    wrap,
)
from explainmyxray.pictures.style import GREY, NOTE, picture
from explainmyxray.tables import split_labels

GAP = 24  # pixels
COLUMN = (WIDTH - 2 * MARGIN - XRAY - 2 * GAP) // 2
HEAD, FOOT, TEXT, LINE, CHIP, CAPTION = 92, 30, 22, 17, 28, 34
MOST_LINES = 14  # of a text; an untuned model may ramble


def draw_gallery(
    predictions: pd.DataFrame,
    predicted: Sequence[frozenset[str]],
    order: Sequence[int],
    images: str | Path,
    path: str | Path,
    n: int,
) -> None:
    """Draw `n` cases, best, median and worst, as a PNG 1000 pixels wide.

    `predicted` are the findings read from each row's generated report, `order` the rows from best to worst
    (`scoring.evaluation.Evaluation`), `images` the folder that the column `image` is relative to. Raises OSError where an image is
    missing.
    """
    cases = [(kind, *_laid_out(predictions.iloc[row], predicted[row])) for kind, row in choose(order, n)]
    with picture(path, WIDTH, HEAD + FOOT + sum(height for *_, height in cases)) as figure:
        page = Page(figure)
        _head(page)
        top = HEAD
        for kind, case, texts, chips, height in cases:
            page.rule(top - 10)
            page.xray(MARGIN, top, Path(images) / case["image"])
            page.write(MARGIN, top + XRAY + 6, _caption(case), SMALL, GREY)
            _texts(page, top, kind, texts, chips)
            top += height
        page.rule(top - 10)
        page.write(MARGIN, top + 4, NOTE, PLAIN)


def choose(order: Sequence[int], n: int) -> list[tuple[str, int]]:
    """(kind, row) of `n` different rows, best first: a third each of best, median and worst; what is over is median."""
    n = min(n, len(order))
    best, worst = n // 3, (n + 1) // 3
    middle = list(order[best : len(order) - worst])
    start = (len(middle) - (n - best - worst)) // 2
    median = middle[start : start + n - best - worst]
    kinds = {"best": order[:best], "median": median, "worst": order[len(order) - worst :]}
    return [(kind, int(row)) for kind, rows in kinds.items() for row in rows]


def findings_of(true: frozenset[str], predicted: frozenset[str]) -> list[tuple[str, str]]:
    """(kind, finding) for every finding that either set has; one `found` `No Finding` where both are empty."""
    kinds = {"found": true & predicted, "missed": true - predicted, "invented": predicted - true}
    pairs = [(kind, name) for kind, names in kinds.items() for name in sorted(names)]
    return pairs or [("found", "No Finding")]


def _laid_out(case: pd.Series, predicted: frozenset[str]) -> tuple[pd.Series, list, list, int]:
    """The case, its two texts in lines, its chips in lines, and the pixels it takes from top to bottom."""
    texts = [wrap(case[column], PLAIN, COLUMN, MOST_LINES) for column in ("report", "generated")]
    chips = _lines_of_chips(findings_of(split_labels(case["labels"]), predicted))
    beside = TEXT + LINE * max(map(len, texts)) + 12 + CHIP * len(chips)
    return case, texts, chips, max(XRAY + CAPTION, beside) + GAP


def _lines_of_chips(pairs: list[tuple[str, str]]) -> list[list[tuple[float, str, str]]]:
    """Chips laid out in lines of the two columns' width: (left edge, kind, label) each."""
    lines, left = [[]], 0.0
    for kind, name in pairs:
        label, width = chip_label(kind, name)
        if lines[-1] and left + width > 2 * COLUMN + GAP:
            lines, left = [*lines, []], 0.0
        lines[-1].append((left, kind, label))
        left += width
    return lines


def _head(page: Page) -> None:
    page.write(MARGIN, 16, "Reports on the test split: best, median and worst cases", TITLE)
    left = MARGIN
    for kind in MARKS:
        label, width = chip_label(kind, kind)
        page.chip(left, 44, kind, label)
        left += width


def _texts(page: Page, top: float, kind: str, texts: list[list[str]], chips: list) -> None:
    first = MARGIN + XRAY + GAP
    for left, heading, lines in zip(
        (first, first + COLUMN + GAP), (f"Reference · {kind} case", "Generated"), texts
    ):
        page.write(left, top, heading, BOLD)
        for place, line in enumerate(lines):
            page.write(left, top + TEXT + LINE * place, line, PLAIN)
    under = top + TEXT + LINE * max(map(len, texts)) + 12
    for place, line in enumerate(chips):
        for left, mark, label in line:
            page.chip(first + left, under + CHIP * place, mark, label)


def _caption(case: pd.Series) -> str:
    """The source, and on a line of its own what is known of view, age and sex."""
    age = f"{case['age_years']} years" if case["age_years"] else ""
    known = " · ".join(value for value in (case["view"], age, case["sex"]) if value)
    return f"{case['source']}\n{known}".strip()
