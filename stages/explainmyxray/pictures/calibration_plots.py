"""The picture of `scoring.sampled_reports.SampledEvaluation`: reliability, and risk against coverage."""

from pathlib import Path

import pandas as pd

from explainmyxray.pictures.style import BLUE, GREY, GRID, INK, ORANGE, png_figure


def plot_calibration(reliability: pd.DataFrame, coverage: pd.DataFrame, path: str | Path) -> None:
    """Draw both tables: reliability (share, present, low, high, findings), coverage (coverage, micro_f1, low,
    high, exact_match).
    """
    with png_figure(path, 1000, 460) as figure:
        left = figure.add_axes((0.07, 0.13, 0.4, 0.75))
        left.plot([0, 1], [0, 1], color=GREY, linestyle="--", linewidth=1, label="as often as sampled")
        left.vlines(reliability["share"], reliability["low"], reliability["high"], colors=BLUE, linewidth=2)
        left.scatter(reliability["share"], reliability["present"], c=BLUE, s=48, zorder=3, clip_on=False)
        for row in reliability.itertuples():
            # Beside the dot, on the side where the page has room.
            side, align = (-0.03, "right") if row.share > 0.5 else (0.03, "left")
            left.text(
                row.share + side, row.present, str(row.findings), ha=align, va="center", fontsize=8, color=INK
            )
        left.set_title("Reliability, with 95 % intervals and numbers of findings", loc="left", fontsize=11)
        left.set_xlabel("share of the sampled reports that name the finding")
        left.set_ylabel("share of such findings that are there")
        left.legend(frameon=False, loc="upper left", fontsize=9)

        right = figure.add_axes((0.57, 0.13, 0.4, 0.75))
        right.fill_between(coverage["coverage"], coverage["low"], coverage["high"], color=BLUE, alpha=0.18)
        right.plot(coverage["coverage"], coverage["micro_f1"], color=BLUE, marker="o", label="micro-F1")
        right.plot(
            coverage["coverage"], coverage["exact_match"], color=ORANGE, marker="s", label="exact findings"
        )
        right.set_title("Reports kept: those with the most agreement first", loc="left", fontsize=11)
        right.set_xlabel("coverage: share of the reports that are kept")
        right.legend(frameon=False, loc="lower left", fontsize=9)
        for axes in (left, right):
            axes.set_xlim(0, 1)
            axes.set_ylim(0, 1)
            axes.grid(color=GRID, linewidth=0.8)
            axes.set_axisbelow(True)
            axes.spines[["top", "right"]].set_visible(False)
