"""The picture of an ablation: each variant's seeds, and how far it is from the first variant."""

from pathlib import Path

import numpy as np
import pandas as pd

from explainmyxray.pictures.style import BLUE, GREY, INK, VERMILION, picture


def plot_ablation(table: pd.DataFrame, path: str | Path, figure: str = "micro-F1") -> None:
    """Draw the rows of `figure` from `table` (variant, value, least, most, difference, low, high): seeds left, difference right."""
    rows = table[table["figure"] == figure].reset_index(drop=True)
    place = np.arange(len(rows))
    with picture(path, 1000, 110 + 34 * len(rows)) as drawn:
        seeds, moved = drawn.add_axes((0.17, 0.2, 0.33, 0.64)), drawn.add_axes((0.55, 0.2, 0.25, 0.64))
        seeds.hlines(place, rows["least"], rows["most"], colors=GREY, linewidth=2.5)
        seeds.scatter(rows["value"], place, c=BLUE, s=48, zorder=3)
        seeds.set_yticks(place, rows["variant"])
        seeds.set_title(f"{figure}: all seeds, and their span", loc="left", fontsize=11)
        more_than_chance = (rows["low"] > 0) | (rows["high"] < 0)
        colours = np.where(more_than_chance, VERMILION, GREY)
        moved.hlines(place[1:], rows["low"][1:], rows["high"][1:], colors=colours[1:], linewidth=2.5)
        moved.scatter(rows["difference"][1:], place[1:], c=colours[1:], s=48, zorder=3)
        moved.axvline(0, color=INK, linewidth=1)
        moved.set_yticks([])
        moved.set_title(f'difference from "{rows["variant"][0]}", 95 %', loc="left", fontsize=11)
        for at, row in enumerate(rows.itertuples()):
            text = "" if at == 0 else f"{row.difference:+.3f}  [{row.low:+.3f}, {row.high:+.3f}]"
            moved.text(
                1.05, at, text, transform=moved.get_yaxis_transform(), va="center", fontsize=9, color=INK
            )
        for axes in (seeds, moved):
            axes.set_ylim(len(rows) - 0.4, -0.6)
            axes.grid(axis="x", color="#E3E3E3", linewidth=0.8)
            axes.set_axisbelow(True)
            axes.tick_params(length=0, labelsize=9.5, labelcolor=INK)
            axes.spines[["top", "right", "left"]].set_visible(False)
