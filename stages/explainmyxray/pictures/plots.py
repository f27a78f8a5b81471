"""The pictures of the figures: F1 per finding, and the model beside its baselines. Drawn from `scoring.evaluation.Evaluation`."""

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from explainmyxray.pictures.style import BLUE, GREEN, GREY, INK, picture

MODEL = "generated"
LABELS = {
    MODEL: "tuned model",
    "blind": "blind: the model, another patient's image",
    "untuned": "untuned: the base without adapter",
    "classifier": "classifier: linear, in a template",
    "nearest": "nearest: report of the closest image",
    "majority": "majority: one report for all",
    "ceiling": "ceiling: true labels, worded anew",
}
PANELS = {
    "bleu": ("BLEU", 100),
    "findings.micro_f1": ("F1 of the findings (micro)", 1),
}  # figure: title, scale


def plot_findings(rows: pd.DataFrame, path: str | Path) -> None:
    """Draw F1 with its 95 % interval and support from `rows` (finding, f1, low, high, support), in their order."""
    with picture(path, 900, 90 + 30 * len(rows)) as figure:
        axes = figure.add_axes((0.19, 0.12, 0.5, 0.77))
        known = (rows["support"] > 0).to_numpy()
        _dots(axes, rows["f1"].where(known), rows, np.where(known, BLUE, GREY))
        _frame(axes, rows["finding"].str.replace("_", " "), 1)
        axes.set_xlabel("F1")
        axes.set_title("F1 per finding on the test split, with 95 % interval", loc="left", fontsize=12)
        for place, row in enumerate(rows.itertuples()):
            images = f"{row.support} image{'s' * (row.support != 1)}"
            text = (
                f"{row.f1:.2f}  [{row.low:.2f}, {row.high:.2f}]   {images}"
                if row.support
                else "no image has it"
            )
            _beside(axes, place, text, INK if row.support else GREY)


def plot_systems(rows: pd.DataFrame, path: str | Path) -> None:
    """Draw BLEU and micro-F1 of model, baselines and ceiling from `rows` (system, figure, value, low, high)."""
    with picture(path, 1000, 380) as figure:
        figure.text(0.02, 0.93, "The model beside its baselines, with 95 % intervals", fontsize=12, color=INK)
        for column, (name, (title, scale)) in enumerate(PANELS.items()):
            axes = figure.add_axes((0.29 + 0.365 * column, 0.12, 0.205, 0.69))
            part = rows[rows["figure"] == name].set_index("system").loc[list(LABELS)]
            colours = [{MODEL: BLUE, "ceiling": GREEN}.get(system, GREY) for system in LABELS]
            _dots(axes, part["value"], part, colours)
            axes.axvline(
                part["value"]["ceiling"], color=GREEN, linestyle="--", linewidth=1, zorder=1, clip_on=False
            )
            _frame(axes, LABELS.values() if column == 0 else [""] * len(LABELS), scale)
            axes.get_yticklabels()[0].set_fontweight("bold")
            axes.set_title(title, loc="left", fontsize=10.5)
            places = 1 if scale > 1 else 2
            for place, row in enumerate(part.itertuples()):
                text = f"{row.value:.{places}f}  [{row.low:.{places}f}, {row.high:.{places}f}]"
                _beside(axes, place, text, INK)


def _dots(axes: Axes, values: pd.Series, rows: pd.DataFrame, colours) -> None:
    """A dot a row at its value, and a line from low to high; nothing where the value is missing."""
    place = np.arange(len(rows))
    drawn = values.notna().to_numpy()
    colours = np.asarray(colours)[drawn]
    axes.hlines(
        place[drawn], rows["low"][drawn], rows["high"][drawn], colors=colours, linewidth=2.5, zorder=2
    )
    axes.scatter(values[drawn], place[drawn], c=colours, s=48, zorder=3, clip_on=False)


def _frame(axes: Axes, labels, scale: float) -> None:
    axes.set_xlim(0, scale)
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.4, -0.6)  # the first row on top
    axes.grid(axis="x", color="#E3E3E3", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, labelsize=9.5, labelcolor=INK)
    axes.tick_params(axis="y", pad=10)  # clear of a dot at 0
    axes.spines[["top", "right", "left"]].set_visible(False)


def _beside(axes: Axes, place: float, text: str, colour: str) -> None:
    axes.text(1.06, place, text, transform=axes.get_yaxis_transform(), va="center", fontsize=9, color=colour)
