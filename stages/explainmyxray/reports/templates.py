"""The wordings of the reports as typed entries, and the rules that a wording keeps.

A wording claims what its label carries and nothing more, so each is searched for words that say more: those that
radiology reports use for a side, a place, a severity, a number, a date, a cause or a doubt.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from explainmyxray.errors import UserError
from explainmyxray.reports.findings import FINDINGS

CLAIMS = {  # the beginnings of the words
    "a side": "left|right|bilateral|unilateral|lateral|contralateral|both|either|sided|hemithora",
    "a place": "upper|lower|mid|apex|apic|bas(?:e|al|ilar|es)|lobe|lobar|lingula|hilar|hilum|perihilar|retrocardiac",
    "a severity or size": "mild|moderate|sever|small|large|tiny|minimal|minor|marked|massive|extensive|subtle|gross|"
    "trace|slight|borderline|diffuse|widespread|advanced|significant|prominent|dense|faint|cm|mm|early|big|huge",
    "a number": r"\w*\d|one|two|three|four|five|single|solitary|multiple|several|numerous|few|many",
    "a date": "(?<!no )acute|subacute|chronic|new|old|interval|unchanged|stable|worse|improv|prior|previous|since|"
    "today|yesterday|day|week|month|year|recent|again|persist|now|increas|decreas|resolv|residual|develop",
    "a cause": "due to|because|caus|secondary|result|heart failure|congestive|infect|malignan|cancer|tumor|tumour|"
    "metasta|tubercul|viral|virus|bacteri|covid|trauma|smok|aspirat|cardiogenic|postoperative|iatrogenic",
    "a doubt": "may|might|could|possibl|probabl|likely|suspect|question|suggest|exclude|uncertain|versus|vs",
}
CLAIMED = {kind: re.compile(rf"\b(?:{words})", re.I) for kind, words in CLAIMS.items()}
DENIAL = re.compile(
    r"\b(?:no|not|non|without|absent|absence|denies|negative|free|clear|normal|unremarkable)\b", re.I
)
SLOT = "{negatives}"
TEMPLATES = Path(__file__).with_name("templates.yaml")

Text = Annotated[str, Field(min_length=1)]
Names = list[str]


class Entry(BaseModel):
    """Strict: no unknown name, no number for a text; frozen."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Finding(Entry):
    terms: Annotated[list[Text], Field(min_length=1)]
    sentences: Annotated[list[str], Field(min_length=4)]
    impression: Annotated[list[str], Field(min_length=3)]
    pertinent: Names


class NoFinding(Entry):
    impression: Annotated[list[str], Field(min_length=3)]
    pertinent: Names


class Normal(Entry):
    unless: Names
    sentences: Annotated[list[str], Field(min_length=1)]


class Negative(Entry):
    phrase: str
    unless: Names


class Negatives(Entry):
    frames: Annotated[list[str], Field(min_length=1)]
    phrases: dict[str, Negative]


class ReportTemplates(Entry):
    full_up_to: Annotated[int, Field(ge=0)]
    findings: dict[str, Finding]
    no_finding: NoFinding
    urgency: Names
    normal: dict[str, Normal]
    negatives: Negatives


def load_templates(path: str | Path = TEMPLATES) -> ReportTemplates:
    """The templates in the file at `path`. Raises UserError that names the file and every bad entry."""
    try:
        templates = ReportTemplates.model_validate(YAML(typ="safe").load(Path(path)))
        problems = [*_names(templates), *(() if _unknown(templates) else _wordings(templates))]
    except FileNotFoundError:
        raise UserError(f"{path} is missing") from None
    except YAMLError as error:
        raise UserError(f"{path} is no YAML: {error}") from None
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors()]
    if problems:
        raise UserError(f"{path}: {'; '.join(problems)}")
    return templates


def _unknown(templates: ReportTemplates) -> set[str]:
    return set(templates.findings) ^ set(FINDINGS)


def _names(templates: ReportTemplates) -> Iterator[str]:
    """Problems with the names of findings."""
    for name in sorted(_unknown(templates)):
        yield (
            f"findings.{name} is no finding" if name in templates.findings else f"findings.{name} is missing"
        )
    if sorted(templates.urgency) != sorted(FINDINGS):
        yield "urgency does not name each finding once"
    phrases = templates.negatives.phrases
    lists = {f"normal.{name}.unless": each.unless for name, each in templates.normal.items()}
    lists |= {f"negatives.phrases.{name}.unless": each.unless for name, each in phrases.items()}
    lists["negatives.phrases"] = list(phrases)
    for where, names in lists.items():
        yield from (f"{where} names {name}, which is no finding" for name in names if name not in FINDINGS)
    pertinent = {f"findings.{name}": each.pertinent for name, each in templates.findings.items()}
    for where, names in (pertinent | {"no_finding": templates.no_finding.pertinent}).items():
        lacking = [name for name in names if name not in phrases]
        yield from (f"{where}.pertinent names {name}, which negatives.phrases lacks" for name in lacking)


def _wordings(templates: ReportTemplates) -> Iterator[str]:
    """Problems with the wordings, each under the name of its entry."""
    seen: dict[str, str] = {}
    for where, text, allowed, kind in _entries(templates):
        named = {name for name, each in templates.findings.items() if _names_finding(each.terms, text)}
        yield from (f"{where} {text!r} {problem}" for problem in _faults(text, kind, named, allowed))
        key = " ".join(text.lower().split())
        if kind != "negative phrase" and key in seen:
            yield f"{where} {text!r} stands at {seen[key]} too"
        seen.setdefault(key, where)


def _entries(templates: ReportTemplates) -> Iterator[tuple[str, str, set[str], str]]:
    """Where it stands, the wording, the findings that it may name, and its kind."""
    for name, each in templates.findings.items():
        yield from ((f"findings.{name}.sentences", text, {name}, "sentence") for text in each.sentences)
        yield from ((f"findings.{name}.impression", text, {name}, "phrase") for text in each.impression)
    yield from (
        ("no_finding.impression", text, set(), "normal phrase") for text in templates.no_finding.impression
    )
    for name, each in templates.normal.items():
        yield from (
            (f"normal.{name}.sentences", text, set(each.unless), "normal sentence") for text in each.sentences
        )
    yield from (("negatives.frames", text, set(), "frame sentence") for text in templates.negatives.frames)
    for name, each in templates.negatives.phrases.items():
        yield f"negatives.phrases.{name}", each.phrase, {name}, "negative phrase"


def _faults(text: str, kind: str, named: set[str], allowed: set[str]) -> Iterator[str]:
    if not text.strip():
        yield "is empty"
        return
    if text != " ".join(text.split()):
        yield "has stray spaces"
    sentence = kind.endswith("sentence")
    if sentence != text.endswith("."):
        yield "is a sentence and ends with a full stop" if sentence else "is a phrase without a full stop"
    if text.count(SLOT) != (kind == "frame sentence") or re.search(r"[{}<>\[\]%$]", text.replace(SLOT, "")):
        yield f"holds one {SLOT}" if kind == "frame sentence" else "has a stray placeholder"
    yield from (
        f"claims {claim}: {found.group()!r}"
        for claim, rule in CLAIMED.items()
        if (found := rule.search(text))
    )
    if other := sorted(named - allowed):
        yield f"names another finding: {', '.join(other)}"
    if kind in ("sentence", "phrase", "negative phrase"):
        if not named & allowed:
            yield "names none of its finding's terms"
        if found := DENIAL.search(text):
            yield f"denies: {found.group()!r}"


def _names_finding(terms: list[str], text: str) -> bool:
    return any(re.search(rf"\b{re.escape(term)}", text, re.I) for term in terms)
