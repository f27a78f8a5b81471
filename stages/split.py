"""Split the reports into train, val and test: `python stages/split.py`.

Reads data/reports.csv; writes data/splits/{train,val,test}.csv, metrics/split.json with what was dropped and
what two splits share, and metrics/labels.csv with the label counts for a plot.
"""

import pandas as pd

from explainmyxray.command import parse_no_arguments
from explainmyxray.errors import exit_on_user_error
from explainmyxray.outputs import replacing_folder
from explainmyxray.settings import load_settings
from explainmyxray.splits.audit import compare_with_index
from explainmyxray.splits.make_splits import SPLITS, make_splits
from explainmyxray.tables import REPORT_COLUMNS, read_table, write_metrics, write_table

REPORTS = "data/reports.csv"
SPLITS_FOLDER = "data/splits"
METRICS = "metrics/split.json"
LABEL_COUNTS = "metrics/labels.csv"


def main() -> None:
    parse_no_arguments(__doc__)
    settings = load_settings()
    reports = read_table(REPORTS, REPORT_COLUMNS)
    parts, figures = make_splits(reports, settings.split, settings.seed)
    figures["labels_against_index"] = compare_with_index(reports)
    with replacing_folder(SPLITS_FOLDER) as folder:
        for name, part in parts.items():
            write_table(folder / f"{name}.csv", part)
    write_metrics(METRICS, figures)
    write_table(LABEL_COUNTS, label_counts(figures))
    print(summary(figures))


def label_counts(figures: dict) -> pd.DataFrame:
    """A row for each split and label: the plot `labels per split` reads it."""
    rows = []
    for name in SPLITS:
        for label, label_figures in figures[name]["labels"].items():
            rows.append((name, label, label_figures["count"]))
    return pd.DataFrame(rows, columns=["split", "label", "count"])


def summary(figures: dict) -> str:
    """The figures as a table for a person: a row a label, a column a split, shares in percent."""
    lines = [_row("", [f"{name:>16}" for name in SPLITS])]
    for what in ("images", "patients"):
        lines.append(_row(what, [f"{figures[name][what]:16}" for name in SPLITS]))
    for label in figures["train"]["labels"]:
        cells = [figures[name]["labels"][label] for name in SPLITS]
        if any(cell["count"] for cell in cells):
            lines.append(_row(label, [f"{cell['count']:9} {cell['share']:6.1%}" for cell in cells]))
    dropped = figures["dropped"]
    lines.append(
        f"dropped: {dropped['rare_images']} images of {len(dropped['rare_combinations'])} rare label "
        f"combinations, {dropped['over_max_samples']} over max_samples"
    )
    lines.append(
        f"shared by two splits: {_leaks(figures['shared'])}; a plain split shares {_leaks(figures['plain'])}"
    )
    nameless = figures["leaks_that_cannot_be_seen"]["images_without_patient"]
    if nameless:
        lines.append(
            f"{nameless} images have no patient: whether one person's are in two splits cannot be seen"
        )
    check = figures["labels_against_index"]
    if check:
        lines.append(
            f"labels read in {check['images']} reports against those that they are indexed by: "
            f"{check['same_labels']} the same, micro-F1 {check['micro_f1']:.3f}"
        )
    if figures["unplaced"]:
        lines.append(f"not in every split, for want of patients: {', '.join(figures['unplaced'])}")
    return "\n".join(lines)


def _row(title: str, cells: list[str]) -> str:
    return f"{title:20}{''.join(cells)}"


def _leaks(shared: dict[str, int]) -> str:
    names = {"patients": "patients", "images": "images", "near_duplicates": "near duplicates"}
    return ", ".join(f"{shared[key]} {name}" for key, name in names.items())


if __name__ == "__main__":
    exit_on_user_error(main)
