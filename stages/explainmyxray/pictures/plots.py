"""The pictures of `scoring.evaluation.Evaluation`: F1 per finding, and the model beside its baselines."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from explainmyxray.pictures.style import BLUE, GREEN, GREY, INK, annotate_row, png_figure, style_rows
from explainmyxray.scoring.evaluation import MODEL

LABELS = {
    MODEL: "tuned model",
    "blind": "blind: the model, another patient's image",
    "untuned": "untuned: the base without adapter",
    "classifier": "classifier: linear, in a template",
    "nearest": "nearest: report of the closest image",
    "majority": "majority: one report for all",
    "ceiling": "ceiling: true labels, worded anew",
}
PANELS = {  # figure: its title, and the end of its scale
    "bleu": ("BLEU", 100),
    "findings.micro_f1": ("F1 of the findings (micro)", 1),
}


def plot_findings(rows: pd.DataFrame, path: str | Path) -> None:
    """Draw F1 with its 95 % interval and support from `rows` (finding, f1, low, high, support)."""
    with png_figure(path, 900, 90 + 30 * len(rows)) as figure:
        axes = figure.add_axes((0.19, 0.12, 0.5, 0.77))
        known = (rows["support"] > 0).to_numpy()
        _draw_intervals(axes, rows["f1"].where(known), rows, np.where(known, BLUE, GREY))
        _label_rows(axes, rows["finding"].str.replace("_", " "), 1)
        axes.set_xlabel("F1")
        axes.set_title("F1 per finding on the test split, with 95 % interval", loc="left", fontsize=12)
        for place, row in enumerate(rows.itertuples()):
            if row.support == 0:
                annotate_row(axes, 1.06, place, "no image has it", GREY)
                continue
            images = "1 image" if row.support == 1 else f"{row.support} images"
            annotate_row(axes, 1.06, place, f"{row.f1:.2f}  [{row.low:.2f}, {row.high:.2f}]   {images}", INK)


def plot_systems(rows: pd.DataFrame, path: str | Path) -> None:
    """Draw BLEU and micro-F1 of every system from `rows` (system, figure, value, low, high)."""
    highlighted = {MODEL: BLUE, "ceiling": GREEN}
    colours = [highlighted.get(system, GREY) for system in LABELS]
    with png_figure(path, 1000, 380) as figure:
        figure.text(0.02, 0.93, "The model beside its baselines, with 95 % intervals", fontsize=12, color=INK)
        for column, (name, (title, scale)) in enumerate(PANELS.items()):
            axes = figure.add_axes((0.29 + 0.365 * column, 0.12, 0.205, 0.69))
            panel = rows[rows["figure"] == name].set_index("system").reindex(list(LABELS))
            _draw_intervals(axes, panel["value"], panel, colours)
            ceiling = panel["value"]["ceiling"]
            if not np.isnan(ceiling):
                axes.axvline(ceiling, color=GREEN, linestyle="--", linewidth=1, zorder=1, clip_on=False)
            # The names stand beside the first panel alone.
            _label_rows(axes, list(LABELS.values()) if column == 0 else [""] * len(LABELS), scale)
            axes.get_yticklabels()[0].set_fontweight("bold")
            axes.set_title(title, loc="left", fontsize=10.5)
            digits = 1 if scale > 1 else 2
            for place, row in enumerate(panel.itertuples()):
                if np.isnan(row.value):  # `evaluation` says why in eval.json
                    annotate_row(axes, 1.06, place, "left out: templates", GREY)
                    continue
                text = f"{row.value:.{digits}f}  [{row.low:.{digits}f}, {row.high:.{digits}f}]"
                annotate_row(axes, 1.06, place, text, INK)


def _draw_intervals(axes: Axes, values: pd.Series, rows: pd.DataFrame, colours: Sequence[str]) -> None:
    """A dot a row at its value, and a line from low to high; nothing where the value is missing."""
    shown = values.notna().to_numpy()
    places = np.arange(len(rows))[shown]
    colours = np.asarray(colours)[shown]
    axes.hlines(places, rows["low"][shown], rows["high"][shown], colors=colours, linewidth=2.5, zorder=2)
    axes.scatter(values[shown], places, c=colours, s=48, zorder=3, clip_on=False)


def _label_rows(axes: Axes, labels: Sequence[str], scale: float) -> None:
    axes.set_xlim(0, scale)
    axes.set_yticks(range(len(labels)), labels)
    style_rows(axes, len(labels))
    axes.tick_params(axis="y", pad=10)  # clear of a dot at 0
