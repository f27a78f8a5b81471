"""Pictures of what training and split leave as tables, and of what was written instead of what.

`dvc plots show` draws these tables too, with Vega, which a browser loads from a CDN: without a network its
plots stay blank, and these pictures remain.
"""

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

from explainmyxray.pictures.style import (
    BLUE,
    GREEN,
    GREY,
    GRID,
    INK,
    ORANGE,
    VERMILION,
    png_figure,
    style_rows,
)
from explainmyxray.reports.findings import FINDINGS
from explainmyxray.scoring.finding_scores import NOTHING

SPLIT_COLOURS = {"train": BLUE, "val": ORANGE, "test": GREEN}


def plot_curves(curves: Path, path: str | Path) -> None:
    """Draw losses, findings F1 and learning rate over the steps from DVCLive's tables (step, <name>).

    A run that ends before its first validation has neither validation loss nor F1, and none is drawn.
    """
    panels = {
        "Loss: cross-entropy a token": {"train_loss": BLUE, "eval_loss": VERMILION},
        "Findings F1, validation images": {"findings_f1": BLUE, "majority_f1": GREY},
        "Learning rate": {"learning_rate": BLUE},
    }
    with png_figure(path, 1200, 380) as figure:
        for column, (title, series) in enumerate(panels.items()):
            axes = figure.add_axes((0.05 + 0.335 * column, 0.14, 0.265, 0.74))
            for name, colour in series.items():
                file = curves / f"{name}.tsv"
                if not file.is_file():
                    continue
                table = pd.read_csv(file, sep="\t")
                # Validations are few: a dot for each.
                marker = "o" if name in ("eval_loss", "findings_f1") else None
                axes.plot(table["step"], table[name], color=colour, marker=marker, label=name)
            if "findings_f1" in series:
                axes.set_ylim(0, 1)
            if "eval_loss" in series:
                # From a loss near 9 to one under 1: what happens late is seen on a logarithmic scale alone.
                axes.set_yscale("log")
                axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
                axes.yaxis.set_major_formatter(ScalarFormatter())
                axes.yaxis.set_minor_formatter(NullFormatter())
            if len(axes.lines) > 1:
                axes.legend(frameon=False)
            axes.set_title(title, loc="left", fontsize=11, color=INK)
            axes.set_xlabel("step")
            axes.grid(color=GRID, linewidth=0.8)
            axes.spines[["top", "right"]].set_visible(False)


def plot_labels(counts: pd.DataFrame, path: str | Path) -> None:
    """Draw how many images of each split have each label, from `counts` (split, label, count)."""
    counts = counts.astype({"count": int})
    table = counts.pivot(index="label", columns="split", values="count")
    table = table.reindex(columns=list(SPLIT_COLOURS)).fillna(0)
    table = table[table.sum(axis=1) > 0].sort_values("train", ascending=False)
    most = table.to_numpy().max()
    with png_figure(path, 900, 110 + 38 * len(table)) as figure:
        axes = figure.add_axes((0.2, 0.08, 0.76, 0.84))
        for number, (split, colour) in enumerate(SPLIT_COLOURS.items()):
            places = np.arange(len(table)) + 0.27 * (number - 1)
            axes.barh(places, table[split], height=0.25, color=colour, label=split)
            for place, count in zip(places, table[split]):
                axes.text(count + 0.008 * most, place, f"{count:.0f}", va="center", fontsize=7, color=INK)
        axes.set_yticks(range(len(table)), table.index.str.replace("_", " "))
        style_rows(axes, len(table))
        axes.set_title("Images with each label, per split", loc="left", fontsize=12, color=INK)
        axes.legend(frameon=False, loc="lower right")


def plot_confusion(pairs: pd.DataFrame, path: str | Path) -> None:
    """Draw how often which finding was written for which, from `pairs` (actual, predicted)."""
    occurring = set(pairs["actual"]) | set(pairs["predicted"])
    names = [name for name in (*FINDINGS, NOTHING) if name in occurring] or [NOTHING]
    counts = pd.crosstab(pairs["actual"], pairs["predicted"])
    counts = counts.reindex(index=names, columns=names, fill_value=0).to_numpy()
    labels = [name.replace("_", " ") for name in names]
    # Each row as shares, so that a rare finding's confusions are as visible as a common one's.
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    with png_figure(path, 900, 800) as figure:
        axes = figure.add_axes((0.18, 0.04, 0.78, 0.76))
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
        for (row, column), count in np.ndenumerate(counts):
            if count > 0:
                colour = "white" if shares[row, column] > 0.5 else INK
                axes.text(column, row, str(count), ha="center", va="center", fontsize=9, color=colour)
        axes.set_xticks(range(len(names)), labels, rotation=45, ha="left")
        axes.xaxis.tick_top()
        axes.set_yticks(range(len(names)), labels)
        axes.tick_params(length=0, labelsize=9, labelcolor=INK)
        axes.spines[:].set_color(GREY)
        axes.set_ylabel("in the image", color=INK)
        axes.set_xlabel("in the generated report", color=INK)
        figure.text(0.02, 0.965, "Findings found, and written for another", fontsize=12, color=INK)
