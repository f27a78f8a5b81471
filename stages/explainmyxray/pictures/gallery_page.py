"""A page addressed in pixels, and text broken into lines by its measured width."""

from pathlib import Path

from matplotlib.backends.backend_agg import RendererAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.lines import Line2D
from PIL import Image

from explainmyxray.pictures.style import BLUE, DPI, GREEN, INK, VERMILION

WIDTH, MARGIN, XRAY = 1000, 20, 224  # pixels
MARKS = {
    "found": ("✓", GREEN, "#E0F3ED"),
    "missed": ("✗", VERMILION, "#FBE8DC"),
    "invented": ("+", BLUE, "#DEECF6"),
}
SMALL, PLAIN, BOLD = FontProperties(size=8), FontProperties(size=9), FontProperties(size=9, weight="bold")
TITLE = FontProperties(size=13, weight="bold")
MEASURE = RendererAgg(WIDTH, 1, DPI)


class Page:
    """A figure addressed in pixels from its upper left corner."""

    def __init__(self, figure: Figure):
        self.figure, self.height = figure, figure.get_figheight() * DPI

    def write(
        self, left: float, top: float, text: str, font: FontProperties, colour: str = INK, **more
    ) -> None:
        place = left / WIDTH, 1 - top / self.height
        self.figure.text(*place, text, fontproperties=font, color=colour, va="top", parse_math=False, **more)

    def chip(self, left: float, top: float, kind: str, label: str) -> None:
        _, colour, tint = MARKS[kind]
        box = {"boxstyle": "round,pad=0.3", "facecolor": tint, "edgecolor": colour, "linewidth": 1.3}
        self.write(left + 5, top + 5, label, BOLD, bbox=box)

    def rule(self, top: float) -> None:
        place = 1 - top / self.height
        ends = [MARGIN / WIDTH, 1 - MARGIN / WIDTH]
        self.figure.add_artist(Line2D(ends, [place, place], color="#DDDDDD", linewidth=1))

    def xray(self, left: float, top: float, path: Path) -> None:
        box = left / WIDTH, 1 - (top + XRAY) / self.height, XRAY / WIDTH, XRAY / self.height
        axes = self.figure.add_axes(box)
        with Image.open(path) as image:
            axes.imshow(
                _square(image).convert("RGB"), interpolation="none", aspect="auto"
            )  # a colour map would round
        axes.set_axis_off()


def chip_label(kind: str, name: str) -> tuple[str, float]:
    """What stands on a chip, and the pixels it takes with the gap behind it."""
    label = f"{MARKS[kind][0]} {name.replace('_', ' ')}"
    return label, text_width(label, BOLD) + 24


def text_width(text: str, font: FontProperties) -> float:
    return MEASURE.get_text_width_height_descent(text, font, ismath=False)[0]


def wrap(text: str, font: FontProperties, width: float, most: int) -> list[str]:
    """`text` in lines of at most `width` pixels, `most` at most; a longer word is cut, a longer text ends in …"""
    lines = [""]
    for word in text.split() or ["(nothing)"]:
        joined = f"{lines[-1]} {word}".strip()
        if text_width(joined, font) <= width:
            lines[-1] = joined
            continue
        lines += [""] * bool(lines[-1])
        for letter in word:
            if text_width(lines[-1] + letter, font) > width:
                lines.append("")
            lines[-1] += letter
    if len(lines) > most:
        lines = [*lines[: most - 1], lines[most - 1][:-2] + "…"]
    return lines


def _square(image: Image.Image) -> Image.Image:
    """Grey, and 224 pixels a side with black bars: the page shows one pixel of it as one of its own."""
    image = image.convert("L")
    image.thumbnail((XRAY, XRAY), Image.Resampling.LANCZOS)
    square = Image.new("L", (XRAY, XRAY))
    square.paste(image, ((XRAY - image.width) // 2, (XRAY - image.height) // 2))
    return square
