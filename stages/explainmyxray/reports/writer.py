"""Writes a report from labels and the wordings of `templates.yaml`.

A report has the two classic parts on one line, `Findings: … Impression: …`. It never sees the labeler.
"""

import random
from collections.abc import Iterable

from explainmyxray.errors import UserError
from explainmyxray.reports.findings import FINDINGS
from explainmyxray.reports.templates import ReportTemplates
from explainmyxray.reports.wordings import SLOT
from explainmyxray.tables import NO_FINDING


def render_report(
    labels: Iterable[str], templates: ReportTemplates, rng: random.Random, pertinent_negatives: int
) -> str:
    """One report for an image with `labels`, in any order; with none, or `No Finding`, a normal one.

    Denies at most `pertinent_negatives` findings by name. Raises UserError for a label that is no finding.
    """
    present = frozenset(labels) - {NO_FINDING}
    unknown = sorted(present - set(FINDINGS))
    if unknown:
        raise UserError(f"{', '.join(unknown)}: no finding; there are {', '.join(FINDINGS)}")
    # The order of the parts is the order of the random choices: another one would change every report.
    sentences = _positive_sentences(present, templates, rng)
    if len(present) <= templates.full_up_to:
        sentences += _normal_sentences(present, templates, rng)
        sentences += _negative_sentences(present, templates, rng, pertinent_negatives)
    return f"Findings: {' '.join(sentences)} Impression: {_impression(present, templates, rng)}"


def _positive_sentences(present: frozenset[str], templates: ReportTemplates, rng: random.Random) -> list[str]:
    """A sentence for each finding, in the templates' order."""
    return [rng.choice(finding.sentences) for name, finding in templates.findings.items() if name in present]


def _normal_sentences(present: frozenset[str], templates: ReportTemplates, rng: random.Random) -> list[str]:
    """A sentence for each part of the body that no finding forbids to call normal."""
    return [
        rng.choice(normal.sentences)
        for normal in templates.normal.values()
        if present.isdisjoint(normal.unless)
    ]


def _negative_sentences(
    present: frozenset[str], templates: ReportTemplates, rng: random.Random, most: int
) -> list[str]:
    """One sentence that denies `most` findings, or as many as can be; none where none can be denied."""
    deniable = _deniable_findings(present, templates)
    denied = set(rng.sample(deniable, min(most, len(deniable))))
    if not denied:
        return []
    phrases = [templates.negatives.phrases[name].phrase for name in deniable if name in denied]
    return [rng.choice(templates.negatives.frames).replace(SLOT, _join(phrases, "or"))]


def _deniable_findings(present: frozenset[str], templates: ReportTemplates) -> list[str]:
    """The findings worth denying beside one of `present`, or in a normal report, and contradicting none."""
    pertinent = set()
    for name in present:
        pertinent.update(templates.findings[name].pertinent)
    if not present:
        pertinent.update(templates.no_finding.pertinent)
    deniable = []
    for name, negative in templates.negatives.phrases.items():
        if name in pertinent and name not in present and present.isdisjoint(negative.unless):
            deniable.append(name)
    return deniable


def _impression(present: frozenset[str], templates: ReportTemplates, rng: random.Random) -> str:
    """The findings again, the most urgent first, as one sentence."""
    phrases = [
        rng.choice(templates.findings[name].impression) for name in templates.urgency if name in present
    ]
    text = _join(phrases, "and") if phrases else rng.choice(templates.no_finding.impression)
    return f"{text[0].upper()}{text[1:]}."


def _join(phrases: list[str], word: str) -> str:
    """`a`, `a or b`, `a, b, or c`."""
    if len(phrases) < 3:
        return f" {word} ".join(phrases)
    return f"{', '.join(phrases[:-1])}, {word} {phrases[-1]}"
