"""The kinds of wording in `templates.yaml`, and the rules that each keeps.

A wording claims what its label carries and nothing more, so it is searched for the words that radiology
reports use for a side, a place, a severity, a number, a date, a cause or a doubt. Each rule returns the text,
or raises ValueError, to which pydantic adds the entry.
"""

import re
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator
from ruamel.yaml import YAML

CLAIMS: dict[str, list[str]] = YAML(typ="safe").load(Path(__file__).with_name("claims.yaml"))
CLAIM_PATTERNS = {
    claim: re.compile(rf"\b(?:{'|'.join(words)})", re.IGNORECASE) for claim, words in CLAIMS.items()
}
DENIAL = re.compile(
    r"\b(?:no|not|non|without|absent|absence|denies|negative|free|clear|normal|unremarkable)\b", re.IGNORECASE
)
PLACEHOLDER = re.compile(r"[{}<>\[\]%$]")
SLOT = "{negatives}"  # where a frame takes the findings that it denies


def _is_tidy(text: str) -> str:
    if not text.strip():
        raise ValueError("is empty")
    if text != " ".join(text.split()):
        raise ValueError("has stray spaces")
    return text


def _claims_nothing(text: str) -> str:
    claims = []
    for claim, pattern in CLAIM_PATTERNS.items():
        found = pattern.search(text)
        if found:
            claims.append(f"claims {claim}: {found.group()!r}")
    if claims:
        raise ValueError("; ".join(claims))
    return text


def _denies_nothing(text: str) -> str:
    found = DENIAL.search(text)
    if found:
        raise ValueError(f"denies: {found.group()!r}")
    return text


def _has_no_placeholder(text: str) -> str:
    if PLACEHOLDER.search(text):
        raise ValueError("has a stray placeholder")
    return text


def _has_one_slot(text: str) -> str:
    if text.count(SLOT) != 1 or PLACEHOLDER.search(text.replace(SLOT, "")):
        raise ValueError(f"holds one {SLOT}")
    return text


def _ends_with_full_stop(text: str) -> str:
    if not text.endswith("."):
        raise ValueError("is a sentence and ends with a full stop")
    return text


def _has_no_full_stop(text: str) -> str:
    if text.endswith("."):
        raise ValueError("is a phrase without a full stop")
    return text


Wording = Annotated[str, AfterValidator(_is_tidy), AfterValidator(_claims_nothing)]
Sentence = Annotated[Wording, AfterValidator(_has_no_placeholder), AfterValidator(_ends_with_full_stop)]
Phrase = Annotated[Wording, AfterValidator(_has_no_placeholder), AfterValidator(_has_no_full_stop)]
Frame = Annotated[Wording, AfterValidator(_has_one_slot), AfterValidator(_ends_with_full_stop)]
PositiveSentence = Annotated[Sentence, AfterValidator(_denies_nothing)]
PositivePhrase = Annotated[Phrase, AfterValidator(_denies_nothing)]
