"""Split the reports into train, val and test: `python stages/split.py`.

Reads data/reports.csv; writes data/splits/{train,val,test}.csv, metrics/split.json with what was dropped and what two
splits share, and metrics/labels.csv with the label counts for a plot.
"""

import pandas as pd

from explainmyxray.errors import exit_on_user_error
from explainmyxray.outputs import replacing
from explainmyxray.settings import load_settings
from explainmyxray.splits.make_splits import SPLITS, make_splits
from explainmyxray.tables import REPORT_COLUMNS, read_table, write_metrics, write_table

REPORTS, FOLDER, METRICS, COUNTS = (
    "data/reports.csv",
    "data/splits",
    "metrics/split.json",
    "metrics/labels.csv",
)


def main() -> None:
    settings = load_settings()
    parts, figures = make_splits(read_table(REPORTS, REPORT_COLUMNS), settings.split, settings.seed)
    with replacing(FOLDER) as folder:
        for name, part in parts.items():
            write_table(folder / f"{name}.csv", part)
    write_metrics(METRICS, figures)
    counts = [
        (name, label, each["count"]) for name in SPLITS for label, each in figures[name]["labels"].items()
    ]
    write_table(COUNTS, pd.DataFrame(counts, columns=["split", "label", "count"]))
    print(summary(figures))


def summary(figures: dict) -> str:
    """The figures as a table for a person: a row a label, a column a split, shares in percent."""
    lines = [f"{'':20}" + "".join(f"{name:>16}" for name in SPLITS)]
    for what in ("images", "patients"):
        lines.append(f"{what:20}" + "".join(f"{figures[name][what]:16}" for name in SPLITS))
    for label in figures["train"]["labels"]:
        cells = [figures[name]["labels"][label] for name in SPLITS]
        if any(cell["count"] for cell in cells):
            lines.append(f"{label:20}" + "".join(f"{cell['count']:9} {cell['share']:6.1%}" for cell in cells))
    dropped, shared, plain = figures["dropped"], figures["shared"], figures["plain"]
    lines += [
        f"dropped: {dropped['rare_images']} images of {len(dropped['rare_combinations'])} rare label combinations, "
        f"{dropped['over_max_samples']} over max_samples",
        f"shared by two splits: {shared['patients']} patients, {shared['images']} images, {shared['near_duplicates']} near "
        f"copies; a plain split shares {plain['patients']} patients, {plain['images']} images, {plain['near_duplicates']} near copies",
    ]
    if figures["unplaced"]:
        lines.append(f"not in every split, for want of patients: {', '.join(figures['unplaced'])}")
    return "\n".join(lines)


if __name__ == "__main__":
    exit_on_user_error(main)
