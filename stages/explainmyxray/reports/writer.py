"""Writes a report from labels and the wordings of `templates.yaml`, which it checks first.

A report has the two classic parts on one line, `Findings: … Impression: …`. It never looks at the labeler.
"""

import random
from collections.abc import Iterable
from pathlib import Path

from explainmyxray.errors import UserError
from explainmyxray.reports.bank import Bank, check
from explainmyxray.reports.findings import FINDINGS
from explainmyxray.studies import NO_FINDING

BANK = Path(__file__).with_name("templates.yaml")


def load_bank(path: str | Path = BANK) -> Bank:
    """Read and check the wordings. Raises UserError with one line that names the file and each bad entry."""
    return check(path)


def write(labels: Iterable[str], bank: Bank, rng: random.Random, pertinent_negatives: int) -> str:
    """One report for an image with `labels`; none, or `No Finding`, is a normal one. Their order is no matter.

    Denies at most `pertinent_negatives` findings by name. Raises UserError for a label that is no finding.
    """
    there = frozenset(labels) - {NO_FINDING}
    if unknown := sorted(there - set(FINDINGS)):
        raise UserError(f"{', '.join(unknown)}: no finding; there are {', '.join(FINDINGS)}")
    present = [name for name in bank.findings if name in there]
    sentences = [rng.choice(bank.findings[name].sentences) for name in present]
    if len(present) <= bank.full_up_to:
        sentences += _normal(there, bank, rng) + _negatives(present, bank, rng, pertinent_negatives)
    return f"Findings: {' '.join(sentences)} Impression: {_impression(there, bank, rng)}"


def _normal(there: frozenset[str], bank: Bank, rng: random.Random) -> list[str]:
    return [rng.choice(each.sentences) for each in bank.normal.values() if not there & set(each.unless)]


def deniable(present: list[str], bank: Bank) -> list[str]:
    """The findings that a report of `present` may deny: they matter beside one of `present` and contradict none."""
    relevant = {name for each in present for name in bank.findings[each].pertinent}
    relevant = relevant if present else set(bank.no_finding.pertinent)
    phrases = bank.negatives.phrases
    return [name for name in phrases if name in relevant and not {name, *phrases[name].unless} & set(present)]


def _negatives(present: list[str], bank: Bank, rng: random.Random, most: int) -> list[str]:
    pool = deniable(present, bank)
    denied = set(rng.sample(pool, min(most, len(pool))))
    if not denied:
        return []
    phrases = [bank.negatives.phrases[name].phrase for name in pool if name in denied]
    return [rng.choice(bank.negatives.frames).replace("{negatives}", _join(phrases, "or"))]


def _impression(there: frozenset[str], bank: Bank, rng: random.Random) -> str:
    phrases = [rng.choice(bank.findings[name].impression) for name in bank.urgency if name in there]
    text = _join(phrases, "and") if phrases else rng.choice(bank.no_finding.impression)
    return f"{text[0].upper()}{text[1:]}."


def _join(phrases: list[str], word: str) -> str:
    if len(phrases) < 3:
        return f" {word} ".join(phrases)
    return f"{', '.join(phrases[:-1])}, {word} {phrases[-1]}"
