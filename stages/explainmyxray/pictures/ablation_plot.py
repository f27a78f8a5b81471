"""The picture of an ablation: each variant's seeds, and how far it is from the first variant."""

from pathlib import Path

import numpy as np
import pandas as pd

from explainmyxray.pictures.style import (
    BLUE,
    GREY,
    INK,
    VERMILION,
    annotate_row,
    png_figure,
    style_rows,
)


def plot_ablation(table: pd.DataFrame, path: str | Path, figure: str = "micro-F1") -> None:
    """Draw the rows of `figure` from `table`: the seeds' span left, the difference right.

    `table` has the columns figure, variant, value, least, most, difference, low, high.
    """
    rows = table[table["figure"] == figure].reset_index(drop=True)
    places = np.arange(len(rows))
    with png_figure(path, 1000, 110 + 34 * len(rows)) as drawn:
        # Left: the value over all seeds, and the span from the least to the most of one seed.
        values = drawn.add_axes((0.17, 0.2, 0.33, 0.64))
        values.hlines(places, rows["least"], rows["most"], colors=GREY, linewidth=2.5)
        values.scatter(rows["value"], places, c=BLUE, s=48, zorder=3)
        values.set_yticks(places, rows["variant"])
        values.set_title(f"{figure}: all seeds, and their span", loc="left", fontsize=11)
        # Right: the difference from the first variant with its interval, coloured where it leaves out 0.
        differences = drawn.add_axes((0.55, 0.2, 0.25, 0.64))
        others = rows[1:]
        beyond_noise = (others["low"] > 0) | (others["high"] < 0)
        colours = np.where(beyond_noise, VERMILION, GREY)
        differences.hlines(places[1:], others["low"], others["high"], colors=colours, linewidth=2.5)
        differences.scatter(others["difference"], places[1:], c=colours, s=48, zorder=3)
        differences.axvline(0, color=INK, linewidth=1)
        differences.set_yticks([])
        differences.set_title(f'difference from "{rows["variant"][0]}", 95 %', loc="left", fontsize=11)
        for row in others.itertuples():
            text = f"{row.difference:+.3f}  [{row.low:+.3f}, {row.high:+.3f}]"
            annotate_row(differences, 1.05, row.Index, text, INK)
        for axes in (values, differences):
            style_rows(axes, len(rows))
