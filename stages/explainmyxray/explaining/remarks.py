"""What is wrong with a report as a text, whatever the image shows."""

import re

from explainmyxray.reports.labeler import label_report, positive_findings

IMPRESSION = re.compile(r"\bimpression\s*:", re.IGNORECASE)
SECTION = re.compile(r"\b(?:findings|impression)\s*:", re.IGNORECASE)
NO_REPORT = "this text is no report: it says nothing of a chest X-ray"


def remarks_on(report: str) -> tuple[str, ...]:
    """A remark for each fault: a text that is no report, or one whose impression contradicts its findings."""
    if not SECTION.search(report) and not label_report(report):
        return (NO_REPORT,)
    contradiction = _contradiction(report)
    return (contradiction,) if contradiction else ()


def _contradiction(report: str) -> str:
    """How the impression contradicts what stands before it;
    blank where it does not, or where there is only one of them.

    An impression may leave out findings, or add some: that is how it is written. It contradicts where
    one of the two denies what the other asserts, or where each asserts what the other does not.
    """
    parts = IMPRESSION.split(report, maxsplit=1)
    if len(parts) == 1:
        return ""
    findings, impression = parts
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
