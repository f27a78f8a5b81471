"""The look that all pictures share, and the same bytes for the same figures."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import matplotlib.style
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from explainmyxray.outputs import replacing

# Okabe & Ito, "Color Universal Design", 2008: told apart with any kind of colour vision. Symbols say the same again.
GREEN, VERMILION, BLUE, ORANGE, GREY, INK = "#009E73", "#D55E00", "#0072B2", "#E69F00", "#8A8A8A", "#1A1A1A"
DPI = 100
NOTE = "For research and teaching, not a medical device. All reports are machine-made: the references are synthetic."


@contextmanager
def picture(path: str | Path, width: int, height: int) -> Iterator[Figure]:
    """Yield a figure of `width` x `height` pixels; write it to `path` as PNG when the block ends without error."""
    with matplotlib.style.context("default"):  # a person's own matplotlibrc would change the bytes
        figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI, facecolor="white")
        FigureCanvasAgg(figure)
        yield figure
        with replacing(path) as aside:
            figure.savefig(
                aside, format="png", metadata={"Software": None}
            )  # no version: it would change the bytes
