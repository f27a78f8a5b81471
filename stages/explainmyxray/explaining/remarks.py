"""What is wrong with a report as a text, whatever the image shows."""

import re

from explainmyxray.explaining.explanation import NO_REPORT
from explainmyxray.reports.findings import FINDINGS
from explainmyxray.reports.labeler import SENTENCE_END, label_report, positive_findings

IMPRESSION = re.compile(r"\bimpression\s*:", re.IGNORECASE)
SECTION = re.compile(r"\b(?:findings|impression)\s*:", re.IGNORECASE)
# A sentence on one place, size or time leaves room for the opposite on another: "Small left effusion. No
# right effusion." No template of this project has these words.
QUALIFIER = re.compile(
    r"\b(?:left|right|bilateral|upper|lower|middle|base|apex|apical|basilar|lobe|new|acute|large|"
    r"significant|other|otherwise|definitely|additional|additionally|further|prior|previous|previously|"
    r"recurrent|residual)\b",
    re.IGNORECASE,
)


def remarks_on(report: str) -> tuple[str, ...]:
    """A remark for each fault: a text that is no report, or one that contradicts itself."""
    if not SECTION.search(report) and not label_report(report):
        return (NO_REPORT,)
    contradiction = _contradiction(report)
    return (contradiction,) if contradiction else ()


def _contradiction(report: str) -> str:
    """How the report contradicts itself; blank where it does not."""
    sections = IMPRESSION.split(report, maxsplit=1)
    for name, section in zip(("findings", "impression"), sections):
        both = _asserted_and_denied(section)
        if both:
            return f"the report contradicts itself: {_names(both)} asserted and denied in its {name}"
    return _between_sections(*sections) if len(sections) == 2 else ""


def _asserted_and_denied(section: str) -> set[str]:
    """The findings that one sentence of a section asserts and another denies, both without a qualifier."""
    asserted, denied = set(), set()
    for sentence in SENTENCE_END.split(section):
        if QUALIFIER.search(sentence):
            continue
        labels = label_report(sentence)
        asserted |= {finding for finding in FINDINGS if labels.get(finding) == "present"}
        denied |= {finding for finding in FINDINGS if labels.get(finding) == "absent"}
    return asserted & denied


def _between_sections(findings: str, impression: str) -> str:
    """How the impression contradicts the findings; blank where it does not.

    An impression may leave out findings, or add some: that is how it is written. It contradicts where
    one of the two denies what the other asserts, or where each asserts what the other does not.
    """
    in_findings, in_impression = positive_findings(findings), positive_findings(impression)

    denied = {name for name in in_findings if label_report(impression).get(name) == "absent"}
    denied |= {name for name in in_impression if label_report(findings).get(name) == "absent"}
    if denied:
        return f"the report contradicts itself: its findings and its impression differ on {_names(denied)}"
    only_findings, only_impression = in_findings - in_impression, in_impression - in_findings
    if only_findings and only_impression:
        return (
            f"the report contradicts itself: {_names(only_findings)} in its findings, "
            f"{_names(only_impression)} in its impression"
        )
    return ""


def _names(findings: set[str] | frozenset[str]) -> str:
    return ", ".join(finding.replace("_", " ").lower() for finding in sorted(findings))
