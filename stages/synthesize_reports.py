"""Write a report for every image of the studies table: `python stages/synthesize_reports.py`.

Reads data/studies.csv and the wordings in stages/explainmyxray/reports/templates.yaml, writes
data/reports.csv. The text of an image depends on its labels, its name and the seed alone, so that another
image more or less changes none.
"""

import random

from explainmyxray.command import parse_no_arguments
from explainmyxray.errors import UserError, exit_on_user_error
from explainmyxray.reports.findings import FINDINGS
from explainmyxray.reports.templates import load_templates
from explainmyxray.reports.writer import render_report
from explainmyxray.settings import load_settings
from explainmyxray.tables import REPORT_COLUMNS, read_table, split_labels, write_table

STUDIES = "data/studies.csv"
REPORTS = "data/reports.csv"


def main() -> None:
    parse_no_arguments(__doc__)
    settings = load_settings()
    templates = load_templates()
    studies = read_table(STUDIES)
    reports = []
    for image, text in zip(studies["image"], studies["labels"]):
        labels = split_labels(text)
        unknown = sorted(labels - set(FINDINGS))
        if unknown:
            raise UserError(
                f"{STUDIES}: {image} has the label {unknown[0]!r}, which is no finding of findings.yaml"
            )
        rng = random.Random(f"{settings.seed}:{image}")
        reports.append(render_report(labels, templates, rng, settings.reports.pertinent_negatives))
    studies["report"] = reports
    write_table(REPORTS, studies[list(REPORT_COLUMNS)])
    words = studies["report"].str.split().str.len()
    print(
        f"{len(studies)} reports, {studies['report'].nunique()} different texts, "
        f"{words.median():.0f} words in the middle and {words.max()} at most -> {REPORTS}"
    )


if __name__ == "__main__":
    exit_on_user_error(main)
