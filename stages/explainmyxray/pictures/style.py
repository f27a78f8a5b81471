"""The look that all pictures share, and the same bytes for the same figures."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from explainmyxray.outputs import replacing

# Okabe & Ito, "Color Universal Design", 2008: distinct for any kind of colour vision. Symbols
# say the same again.
GREEN, VERMILION, BLUE, ORANGE, GREY, INK = "#009E73", "#D55E00", "#0072B2", "#E69F00", "#8A8A8A", "#1A1A1A"
GRID = "#E3E3E3"
DPI = 100


def note(num_real: int, num_references: int) -> str:
    """What stands under the gallery: what its reports are, of which so many references are real."""
    if num_real == 0:
        made = "All reports are machine-made: the references are synthetic."
    elif num_real == num_references:
        made = "The references are real reports; the generated ones are machine-made."
    else:
        made = f"{num_real} of {num_references} references are real reports; all others are machine-made."
    return f"For research and teaching, not a medical device. {made}"


@contextmanager
def png_figure(path: str | Path, width: int, height: int) -> Iterator[Figure]:
    """Yield a figure of `width` x `height` pixels; when the block ends it is a PNG at `path`."""
    # The default style: a person's own matplotlibrc would change the bytes.
    with matplotlib.style.context("default"):
        figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI, facecolor="white")
        FigureCanvasAgg(figure)
        yield figure
        with replacing(path) as aside:
            # Without matplotlib's version, which would change the bytes.
            figure.savefig(aside, format="png", metadata={"Software": None})


def style_rows(axes: Axes, num_rows: int) -> None:
    """Rows from the top down, as a table has them, with vertical grid lines alone."""
    axes.set_ylim(num_rows - 0.4, -0.6)
    axes.grid(axis="x", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, labelsize=9.5, labelcolor=INK)
    axes.spines[["top", "right", "left"]].set_visible(False)


def annotate_row(axes: Axes, x: float, row: float, text: str, colour: str) -> None:
    """`text` beside a row, at `x` axes' widths from the left."""
    axes.text(x, row, text, transform=axes.get_yaxis_transform(), va="center", fontsize=9, color=colour)
