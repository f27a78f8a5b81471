"""Give every image of the studies table a report: `python stages/synthesize_reports.py`.

A report that the source brings is kept word for word; where it brings no labels, the labeler reads them in
that report. Where there are labels alone, the report is written from them and the wordings in
stages/explainmyxray/reports/templates.yaml: it depends on the labels, the image's name and the seed alone, so
that another image more or less changes none. Reads data/studies.csv, writes data/reports.csv.
"""

import random

import pandas as pd
from tqdm import tqdm

from explainmyxray.command import parse_no_arguments
from explainmyxray.errors import UserError, exit_on_user_error
from explainmyxray.reports.findings import FINDINGS
from explainmyxray.reports.labeler import positive_findings
from explainmyxray.reports.templates import ReportTemplates, load_templates
from explainmyxray.reports.writer import render_report
from explainmyxray.settings import Settings, load_settings
from explainmyxray.tables import (
    LABELER,
    REPORT_COLUMNS,
    SOURCE,
    TEMPLATES,
    join_labels,
    read_table,
    split_labels,
    write_table,
)

STUDIES = "data/studies.csv"
REPORTS = "data/reports.csv"


def main() -> None:
    parse_no_arguments(__doc__)
    settings = load_settings()
    templates = load_templates()
    studies = read_table(STUDIES)
    rows = []
    known = zip(studies["image"], studies["labels"], studies["report"])
    # The labeler takes some milliseconds a report: of a hundred thousand, minutes.
    for image, labels, report in tqdm(known, total=len(studies), desc="reports", mininterval=15, delay=15):
        rows.append(complete(image, labels, report, templates, settings))
    columns = ["labels", "report", "report_origin", "labels_origin"]
    studies[columns] = pd.DataFrame(rows, columns=columns, index=studies.index)
    write_table(REPORTS, studies[list(REPORT_COLUMNS)])
    print(summary(studies))


def complete(
    image: str, labels: str, report: str, templates: ReportTemplates, settings: Settings
) -> tuple[str, str, str, str]:
    """Labels, report, and the origin of the report and of the labels. Raises UserError."""
    unknown = sorted(split_labels(labels) - set(FINDINGS))
    if unknown:
        raise UserError(
            f"{STUDIES}: {image} has the label {unknown[0]!r}, which is no finding of findings.yaml"
        )
    if report:
        if labels:
            return labels, report, SOURCE, SOURCE
        return join_labels(positive_findings(report)), report, SOURCE, LABELER
    if not labels:
        raise UserError(f"{STUDIES}: {image} has neither a report nor labels")
    rng = random.Random(f"{settings.seed}:{image}")
    report = render_report(split_labels(labels), templates, rng, settings.reports.pertinent_negatives)
    return labels, report, TEMPLATES, SOURCE


def summary(reports: pd.DataFrame) -> str:
    """The reports for a person: how many, how long, and where they are from."""
    words = reports["report"].str.split().str.len()
    real = (reports["report_origin"] == SOURCE).sum()
    lines = [
        f"{len(reports)} reports, {reports['report'].nunique()} different texts, "
        f"{words.median():.0f} words in the middle and {words.max()} at most -> {REPORTS}"
    ]
    if real:
        read = (reports["labels_origin"] == LABELER).sum()
        lines.append(f"{real} of them are the source's own; of {read} the labeler has read the labels")
    return "\n".join(lines)


if __name__ == "__main__":
    exit_on_user_error(main)
