"""Writes a report from labels and the wordings of `templates.yaml`, which `templates` has checked.

A report has the two classic parts on one line, `Findings: … Impression: …`. It never looks at the labeler.
"""

import random
from collections.abc import Iterable

from explainmyxray.errors import UserError
from explainmyxray.reports.findings import FINDINGS
from explainmyxray.reports.templates import ReportTemplates
from explainmyxray.tables import NO_FINDING


def render_report(
    labels: Iterable[str], templates: ReportTemplates, rng: random.Random, pertinent_negatives: int
) -> str:
    """One report for an image with `labels`; none, or `No Finding`, is a normal one. Their order is no matter.

    Denies at most `pertinent_negatives` findings by name. Raises UserError for a label that is no finding.
    """
    there = frozenset(labels) - {NO_FINDING}
    if unknown := sorted(there - set(FINDINGS)):
        raise UserError(f"{', '.join(unknown)}: no finding; there are {', '.join(FINDINGS)}")
    present = [name for name in templates.findings if name in there]
    sentences = [rng.choice(templates.findings[name].sentences) for name in present]
    if len(present) <= templates.full_up_to:
        sentences += _normal(there, templates, rng) + _negatives(present, templates, rng, pertinent_negatives)
    return f"Findings: {' '.join(sentences)} Impression: {_impression(there, templates, rng)}"


def _normal(there: frozenset[str], templates: ReportTemplates, rng: random.Random) -> list[str]:
    return [rng.choice(each.sentences) for each in templates.normal.values() if not there & set(each.unless)]


def deniable(present: list[str], templates: ReportTemplates) -> list[str]:
    """The findings that a report of `present` may deny: they matter beside one of `present` and contradict none."""
    relevant = {name for each in present for name in templates.findings[each].pertinent}
    relevant = relevant if present else set(templates.no_finding.pertinent)
    phrases = templates.negatives.phrases
    return [name for name in phrases if name in relevant and not {name, *phrases[name].unless} & set(present)]


def _negatives(present: list[str], templates: ReportTemplates, rng: random.Random, most: int) -> list[str]:
    pool = deniable(present, templates)
    denied = set(rng.sample(pool, min(most, len(pool))))
    if not denied:
        return []
    phrases = [templates.negatives.phrases[name].phrase for name in pool if name in denied]
    return [rng.choice(templates.negatives.frames).replace("{negatives}", _join(phrases, "or"))]


def _impression(there: frozenset[str], templates: ReportTemplates, rng: random.Random) -> str:
    phrases = [rng.choice(templates.findings[name].impression) for name in templates.urgency if name in there]
    text = _join(phrases, "and") if phrases else rng.choice(templates.no_finding.impression)
    return f"{text[0].upper()}{text[1:]}."


def _join(phrases: list[str], word: str) -> str:
    if len(phrases) < 3:
        return f" {word} ".join(phrases)
    return f"{', '.join(phrases[:-1])}, {word} {phrases[-1]}"
