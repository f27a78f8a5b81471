"""The entries of `templates.yaml`, which explains them, and what they must have in common."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from explainmyxray.errors import UserError
from explainmyxray.reports.findings import FINDINGS
from explainmyxray.reports.wordings import Frame, Phrase, PositivePhrase, PositiveSentence, Sentence

TEMPLATES = Path(__file__).with_name("templates.yaml")

FindingNames = list[str]
Term = Annotated[str, Field(min_length=1)]


class Entry(BaseModel):
    """Strict: no unknown name, no number for a text; frozen."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Finding(Entry):
    terms: Annotated[list[Term], Field(min_length=1)]
    sentences: Annotated[list[PositiveSentence], Field(min_length=4)]
    impression: Annotated[list[PositivePhrase], Field(min_length=3)]
    pertinent: FindingNames


class NoFinding(Entry):
    impression: Annotated[list[Phrase], Field(min_length=3)]
    pertinent: FindingNames


class Normal(Entry):
    unless: FindingNames
    sentences: Annotated[list[Sentence], Field(min_length=1)]


class Negative(Entry):
    phrase: PositivePhrase
    unless: FindingNames


class Negatives(Entry):
    frames: Annotated[list[Frame], Field(min_length=1)]
    phrases: dict[str, Negative]


class ReportTemplates(Entry):
    full_up_to: Annotated[int, Field(ge=0)]
    findings: dict[str, Finding]
    no_finding: NoFinding
    urgency: FindingNames
    normal: dict[str, Normal]
    negatives: Negatives

    @model_validator(mode="after")
    def _entries_agree(self):
        problems = list(_wrong_names(self)) or list(_wrong_wordings(self))
        if problems:
            raise ValueError("; ".join(problems))
        return self


def load_templates(path: str | Path = TEMPLATES) -> ReportTemplates:
    """The templates in the file at `path`. Raises UserError that names the file and every bad entry."""
    try:
        return ReportTemplates.model_validate(YAML(typ="safe").load(Path(path)))
    except FileNotFoundError:
        raise UserError(f"{path} is missing") from None
    except YAMLError as error:
        raise UserError(f"{path} is no YAML: {error}") from None
    except ValidationError as error:
        problems = [_problem(details) for details in error.errors()]
        raise UserError(f"{path}: {'; '.join(problems)}") from None


def _problem(details: dict) -> str:
    """One of pydantic's errors as `entry: 'wording' problem`."""
    message = details["msg"].removeprefix("Value error, ")
    if not details["loc"]:  # of all entries together: they are named already
        return message
    if details["type"] == "value_error":
        message = f"{details['input']!r} {message}"
    return f"{'.'.join(map(str, details['loc']))}: {message}"


def _wrong_names(templates: ReportTemplates) -> Iterator[str]:
    """Findings that are missing, unknown, or not among the negatives where one is asked for."""
    for name in sorted(set(templates.findings) - set(FINDINGS)):
        yield f"findings.{name} is no finding"
    for name in sorted(set(FINDINGS) - set(templates.findings)):
        yield f"findings.{name} is missing"
    if sorted(templates.urgency) != sorted(FINDINGS):
        yield "urgency does not name each finding once"

    phrases = templates.negatives.phrases
    yield from _not_among(phrases, FINDINGS, "negatives.phrases", "is no finding")
    for name, normal in templates.normal.items():
        yield from _not_among(normal.unless, FINDINGS, f"normal.{name}.unless", "is no finding")
    for name, negative in phrases.items():
        yield from _not_among(negative.unless, FINDINGS, f"negatives.phrases.{name}.unless", "is no finding")
    for name, finding in templates.findings.items():
        yield from _not_among(
            finding.pertinent, phrases, f"findings.{name}.pertinent", "negatives.phrases lacks"
        )
    yield from _not_among(
        templates.no_finding.pertinent, phrases, "no_finding.pertinent", "negatives.phrases lacks"
    )


def _not_among(names, known, where: str, problem: str) -> Iterator[str]:
    for name in names:
        if name not in known:
            yield f"{where} names {name}, which {problem}"


@dataclass(frozen=True)
class Place:
    """A wording, the entry where it stands, the findings it may name, and whether it must name one."""

    where: str
    text: str
    may_name: frozenset[str]
    must_name: bool
    may_repeat: bool = False


def _places(templates: ReportTemplates) -> Iterator[Place]:
    for name, finding in templates.findings.items():
        for text in finding.sentences:
            yield Place(f"findings.{name}.sentences", text, frozenset([name]), must_name=True)
        for text in finding.impression:
            yield Place(f"findings.{name}.impression", text, frozenset([name]), must_name=True)
    for text in templates.no_finding.impression:
        yield Place("no_finding.impression", text, frozenset(), must_name=False)
    for name, normal in templates.normal.items():
        for text in normal.sentences:
            yield Place(f"normal.{name}.sentences", text, frozenset(normal.unless), must_name=False)
    for text in templates.negatives.frames:
        yield Place("negatives.frames", text, frozenset(), must_name=False)
    for name, negative in templates.negatives.phrases.items():
        where = f"negatives.phrases.{name}.phrase"
        yield Place(where, negative.phrase, frozenset([name]), must_name=True, may_repeat=True)


def _wrong_wordings(templates: ReportTemplates) -> Iterator[str]:
    """Wordings that name another finding, or none of their own, or that stand twice."""
    terms = {}
    for name, finding in templates.findings.items():
        starts = "|".join(map(re.escape, finding.terms))
        terms[name] = re.compile(rf"\b(?:{starts})", re.IGNORECASE)
    first_place: dict[str, str] = {}
    for place in _places(templates):
        named = {name for name, pattern in terms.items() if pattern.search(place.text)}
        others = sorted(named - place.may_name)
        if others:
            yield f"{place.where}: {place.text!r} names another finding: {', '.join(others)}"
        if place.must_name and not named & place.may_name:
            yield f"{place.where}: {place.text!r} names none of its finding's terms"
        key = place.text.lower()
        if key in first_place and not place.may_repeat:
            yield f"{place.where}: {place.text!r} stands at {first_place[key]} too"
        first_place.setdefault(key, place.where)
