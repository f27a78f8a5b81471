"""How far the labeler can be trusted: its reading of real reports against the terms that they are indexed by.

    python tests/benchmarks/labeler.py      # fetches torchxrayvision 1.5.7 for its reports (29 MB)
    python tests/benchmarks/labeler.py --reports NLMCXR_reports.tgz     # the archive inside it

Open-i's reports were read by people who gave each its MeSH terms. A finding that the labeler calls present or
absent, or does not find in a report, is a statement without doubt; one that it calls uncertain is one with
doubt. A row a finding: precision, recall and F1 of the statements without doubt, and F1 over all of them
where doubt counts as absent, as in every F1 of this project, and as present. Then examples of both kinds of
disagreement; the last line is JSON. The labeler was not tuned on these texts.
"""

import argparse
import json
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

sys.path += [str(Path(__file__).resolve().parents[2] / "stages"), str(Path(__file__).resolve().parents[1])]

import openi_reports
from explainmyxray.reports.findings import FINDINGS
from explainmyxray.reports.labeler import label_report
from explainmyxray.sources.openi import findings_of_mesh, join_sections
from explainmyxray.tables import split_labels

MAX_SHOWN = 400  # characters of an example
BOTH, LABELER_ALONE, INDEX_ALONE = "both", "labeler_alone", "index_alone"
LEFT_OUT, ABSENT, PRESENT = "left out", "absent", "present"  # what an uncertain finding counts as


@dataclass
class Agreement:
    """Counts of one finding over all reports, and the reports in which the two disagree."""

    without_doubt: Counter = field(default_factory=Counter)
    uncertain: int = 0  # reports in which the labeler calls it uncertain
    uncertain_indexed: int = 0  # of these, indexed by it
    examples: dict[str, list[str]] = field(default_factory=lambda: {LABELER_ALONE: [], INDEX_ALONE: []})

    def scores(self, doubt: str = LEFT_OUT) -> dict[str, float]:
        """Precision, recall and F1; 0 where there is nothing. `doubt`: how an uncertain finding counts."""
        both = self.without_doubt[BOTH]
        labeler = both + self.without_doubt[LABELER_ALONE]
        index = both + self.without_doubt[INDEX_ALONE]
        if doubt != LEFT_OUT:
            index += self.uncertain_indexed
        if doubt == PRESENT:
            both += self.uncertain_indexed
            labeler += self.uncertain
        return {
            "precision": both / labeler if labeler else 0.0,
            "recall": both / index if index else 0.0,
            "f1": 2 * both / (labeler + index) if labeler + index else 0.0,
        }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--reports", type=Path, help="NLMCXR_reports.tgz; fetched where it is not given")
    parser.add_argument("--examples", type=int, default=1, help="of each kind of disagreement a finding")
    options = parser.parse_args()
    reports = openi_reports.load(options.reports or openi_reports.download())
    indexed = select_indexed(reports)
    agreements = measure(indexed)
    print(f"{len(reports)} reports, {len(indexed)} of them with a text and an index")
    titles = f"{'indexed':>9}{'read':>7}{'precision':>11}{'recall':>8}{'F1':>7}"
    titles += f"{'in doubt':>10}{'of them indexed':>17}{'F1: absent':>12}{'present':>9}"
    print(f"{'':<20}{titles}")
    for name, agreement in [*agreements.items(), ("all", pooled(agreements))]:
        counts, scores = agreement.without_doubt, agreement.scores()
        print(
            f"{name:<20}{counts[BOTH] + counts[INDEX_ALONE]:>9}{counts[BOTH] + counts[LABELER_ALONE]:>7}"
            f"{scores['precision']:>11.3f}{scores['recall']:>8.3f}{scores['f1']:>7.3f}"
            f"{agreement.uncertain:>10}{agreement.uncertain_indexed:>17}"
            f"{agreement.scores(ABSENT)['f1']:>12.3f}{agreement.scores(PRESENT)['f1']:>9.3f}"
        )
    for kind, says in ((LABELER_ALONE, "read, not indexed"), (INDEX_ALONE, "indexed, not read")):
        print(f"\n{says}:")
        for name, agreement in agreements.items():
            for text in agreement.examples[kind][: options.examples]:
                print(f"  {name}: {text if len(text) < MAX_SHOWN else text[:MAX_SHOWN] + '…'}")
    print(json.dumps({"reports": len(indexed), **figures(agreements)}))


def select_indexed(reports: list[openi_reports.OpeniReport]) -> list[openi_reports.OpeniReport]:
    """The reports that have a text and an index."""
    return [
        report for report in reports if report.findings + report.impression and findings_of_mesh(report.mesh)
    ]


def measure(reports: list[openi_reports.OpeniReport]) -> dict[str, Agreement]:
    """The agreement of each finding over `reports`, each of which has a text and an index."""
    agreements = {name: Agreement() for name in FINDINGS}
    for report in reports:
        text = join_sections(report.findings, report.impression)
        read, indexed = label_report(text), split_labels(findings_of_mesh(report.mesh))
        for name, agreement in agreements.items():
            status = read.get(name, "absent")
            if status == "uncertain":
                agreement.uncertain += 1
                agreement.uncertain_indexed += name in indexed
            elif status == "present" and name in indexed:
                agreement.without_doubt[BOTH] += 1
            elif status == "present":
                agreement.without_doubt[LABELER_ALONE] += 1
                agreement.examples[LABELER_ALONE].append(f"{text} [{'; '.join(report.mesh)}]")
            elif name in indexed:
                agreement.without_doubt[INDEX_ALONE] += 1
                agreement.examples[INDEX_ALONE].append(f"{text} [{'; '.join(report.mesh)}]")
    return agreements


def pooled(agreements: dict[str, Agreement]) -> Agreement:
    """All findings together, as micro-F1 takes them."""
    total = Agreement()
    for agreement in agreements.values():
        total.without_doubt += agreement.without_doubt
        total.uncertain += agreement.uncertain
        total.uncertain_indexed += agreement.uncertain_indexed
    return total


def figures(agreements: dict[str, Agreement]) -> dict[str, dict]:
    """Without doubt, and as F1 counts it: precision, recall and F1 over all, and F1 of each finding."""
    result = {}
    for name, doubt in (("without_doubt", LEFT_OUT), ("doubt_as_absent", ABSENT)):
        of_all = pooled(agreements).scores(doubt)
        of_each = {finding: agreement.scores(doubt)["f1"] for finding, agreement in agreements.items()}
        result[name] = {**of_all, "per_finding": of_each}
    return result


if __name__ == "__main__":
    main()
