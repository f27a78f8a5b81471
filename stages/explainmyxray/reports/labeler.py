"""Read the 14 findings out of any English chest X-ray report by rules and a vocabulary, with no look at the writer.

The way of NegEx (Chapman 2001), ConText (Harkema 2009), NegBio (Peng 2018) and CheXpert's labeler (Irvin 2019), a cue's
scope found from words and commas, not from a parse: find the mentions, find the cues for negation and doubt around
them, then gather them over the report, where present outranks uncertain, and uncertain absent. Words are taken as
spelt. `vocabulary.yaml` holds all phrases, the decisions on them, and the sources.

`No Finding` is present where a report says something normal and nothing is present or uncertain, absent where a finding
is present, and uncertain otherwise; a text that says nothing (empty, history alone) has no labels.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from ruamel.yaml import YAML

from explainmyxray.reports.findings import FINDINGS
from explainmyxray.tables import NO_FINDING

VOCABULARY = YAML(typ="safe").load(Path(__file__).with_name("vocabulary.yaml"))
RANK = {"absent": 0, "uncertain": 1, "present": 2}
OPPOSITE = {"absent": "present", "uncertain": "uncertain", "present": "absent"}


class Mention(NamedTuple):
    """A finding named at `start` to `end` of a sentence, and the `status` it has where no cue changes it."""

    finding: str
    status: str
    start: int
    end: int


class Cue(NamedTuple):
    """A cue at `start` to `end` of a sentence, and what it `means` for the findings on one `side` of it or either."""

    means: str
    side: str
    start: int
    end: int


def _expand(phrase: str) -> str:
    """A phrase of the vocabulary as Python's `re` has it."""
    phrase = re.sub(r"<([a-z]+)>", lambda match: VOCABULARY["words"][match[1]], phrase)
    return re.sub(r"(?<!\\)\((?!\?)", "(?:", phrase).replace("| ", "|")


def _any_of(phrases: list[str]) -> str:
    """A pattern for any of the phrases; of none, it never matches."""
    return "|".join(map(_expand, phrases)) or "(?!)"


def _words(phrases: list[str]) -> re.Pattern:
    """The same, as whole words of a plain sentence."""
    return re.compile(rf"(?<!\S)(?:{_any_of(phrases)})(?!\S)")


NAMES, SIGNS, IGNORED = (
    {finding: _words(entry.get(kind, [])) for finding, entry in VOCABULARY["findings"].items()}
    for kind in ("names", "signs", "ignore")
)
NORMAL = [(entry["absent"], _words(entry["phrases"])) for entry in VOCABULARY["normal"]]
CUES = [(group["means"], group.get("side"), _words(group["phrases"])) for group in VOCABULARY["cues"]]
ENDS, RESTARTS, SAID, OR = (_words(VOCABULARY[name]) for name in ("ends", "restarts", "said", "either"))

# Below, mentions read `#` and cues read `~`. Two mentions joined by "or", few words apart:
_OR, _FEW = f"(?:{_any_of(VOCABULARY['either'])})", r"(?:(?!and |with )[^\s,;~]+ ){0,4}"
OR_NEXT = re.compile(rf" {_FEW}(?:, )?{_OR} {_FEW}#")
OR_LAST = re.compile(rf"# {_FEW}(?:, )?{_OR} {_FEW}$")
# What parts a cue from the mention before it: a verb of the mention's own, or a comma with another mention...
_VERB = r"\b(?:is|are|was|were|has|have|there)\b"
OTHER_CLAUSE = re.compile(rf"(?<!that )(?<!which ){_VERB}|[,:] [^,]*#")
# ... unless it is the comma of a list ("effusion, pneumothorax and consolidation are absent").
LIST = re.compile(rf"(?!.*{_VERB}).* (?:and|or|nor) [^,]*#")

# With a colon: the vocabulary's where a sentence can start, or any in capitals. Without: the former, alone on its line.
_SECTIONS = VOCABULARY["sections"]
_HEADERS = f"(?i:{_any_of([name for names in _SECTIONS.values() for name in names])})"
HEADER = re.compile(
    rf"(?:(?:(?<![^\n])|(?<=[.;:?]\s)|(?<=[.;:?]\s\s))[ \t]*({_HEADERS})|\b([A-Z][A-Z /&-]{{2,40}}))[ \t]*:"
    rf"|^[ \t]*({_HEADERS})[ \t]*$",
    re.MULTILINE,
)
UNREAD, UNREAD_SENTENCE = (
    re.compile(_any_of(_SECTIONS[kind]), re.I) for kind in ("unread", "unread_sentence")
)
BLANK_LINE, FULL_STOP = re.compile(r"\n\s*\n"), re.compile(r"\.(?=\s|$)|\n")
# Full stops, save in figures and abbreviations; blank lines; a bullet, a number, or a new line's capital (but no XXXX).
SENTENCE_END = re.compile(
    r"(?<!\bvs)(?<!\bDr)(?<!\bapprox)(?<!\be\.g)(?<!\bi\.e)\.(?=\s|$|[A-Z][a-z])|(?<=\w)[!?](?=\s+[A-Z])"
    r"|\n\s*\n|\n(?=\s*(?:[-*•]|\d+[.)]|(?!XX)[A-Z]))|\s(?=\d{1,2}[.)]\s+[A-Z])"
)


def label(text: str) -> dict[str, str]:
    """The findings a report mentions, and `No Finding` if it says anything: each `present`, `absent` or `uncertain`."""
    found: dict[str, str] = {}
    said = False
    for sentence in _sentences(text):
        said = said or bool(SAID.search(sentence))
        for finding, status in _read(sentence):
            found[finding] = max(found.get(finding, status), status, key=RANK.get)
    labels = {finding: found[finding] for finding in FINDINGS if finding in found}
    if said or labels:
        labels[NO_FINDING] = OPPOSITE[max(labels.values(), key=RANK.get, default="absent")]
    return labels


def positive_findings(text: str) -> frozenset[str]:
    """The findings that a report says are there; uncertain ones are not among them."""
    return frozenset(finding for finding, status in label(text).items() if status == "present") - {NO_FINDING}


def _sentences(text: str) -> Iterator[str]:
    """The sentences of the sections that count, plain: lower case, one blank between words and marks."""
    for passage in _passages(text):
        for sentence in SENTENCE_END.split(passage):
            plain = sentence.lower().replace("can't", "cannot").replace("n't", " not")
            plain = re.sub(r"[^\w\s,;:?/=]|_|\bx{3,}\b", " ", plain)
            yield " ".join(re.sub(r"([,;:?/=])", r" \1 ", plain).split())


def _passages(text: str) -> Iterator[str]:
    """The text without its sections on history, comparison and technique."""
    headers = list(HEADER.finditer(text))
    starts = [header.start() for header in headers] + [len(text)]
    yield text[: starts[0]]
    for header, end in zip(headers, starts[1:], strict=True):
        name, body = (header[1] or header[2] or header[3]).strip(), text[header.end() : end].lstrip()
        if UNREAD.fullmatch(name):
            yield "".join(BLANK_LINE.split(body, maxsplit=1)[1:])
        elif UNREAD_SENTENCE.fullmatch(name):
            yield "".join(FULL_STOP.split(body, maxsplit=1)[1:])
        else:  # a header can be a sentence's subject, as in "HEART: normal"
            yield text[header.start() : end]


def _read(sentence: str) -> Iterator[tuple[str, str]]:
    """The findings of one plain sentence with their status in it; a finding may come more than once."""
    for findings, match in [
        (findings, match) for findings, pattern in NORMAL for match in pattern.finditer(sentence)
    ]:
        yield from ((finding, "absent") for finding in findings)
        sentence = _hide(sentence, match)
    mentions = _mentions(sentence)
    marked, cues = sentence, []
    for _, _, start, end in mentions:
        marked = marked[:start] + "#" * (end - start) + marked[end:]
    for means, side, pattern in CUES if mentions else ():
        for match in pattern.finditer(marked):
            cues += [Cue(means, side, *match.span())] if side else []
            marked = _hide(marked, match)
    cues.sort(key=lambda cue: cue.start)
    for mention in mentions:
        if (status := _status(mention, cues, sentence, marked)) != "unread":
            yield mention.finding, status


def _hide(sentence: str, match: re.Match) -> str:
    """The sentence with the words of a match, but no mention in it, overwritten, so that they are not read again."""
    return sentence[: match.start()] + re.sub("[^ #]", "~", match[0]) + sentence[match.end() :]


def _mentions(sentence: str) -> list[Mention]:
    """The mentions of findings in a plain sentence; a sign that is part of a name ("nodular opacity") is none."""
    names, signs = [], []
    for finding in FINDINGS:
        own = sentence
        for match in IGNORED[finding].finditer(sentence):
            own = _hide(own, match)
        names += [Mention(finding, "present", *match.span()) for match in NAMES[finding].finditer(own)]
        signs += [Mention(finding, "uncertain", *match.span()) for match in SIGNS[finding].finditer(own)]
    return names + [
        sign for sign in signs if all(sign.end <= name.start or name.end <= sign.start for name in names)
    ]


def _status(mention: Mention, cues: list[Cue], sentence: str, marked: str) -> str:
    """What the nearest cues make of a mention, one on either side: present, uncertain, absent, or unread."""
    ahead = (
        cue for cue in reversed(cues) if cue.side != "after" and _reaches(cue, mention, sentence, marked)
    )
    behind = (cue for cue in cues if cue.side != "before" and _reaches_back(cue, mention, marked))
    nearest = {cue.means for cue in (next(ahead, None), next(behind, None)) if cue}
    if nearest:
        return min(nearest, key=("absent", "unread", "uncertain").index)
    alternative = OR_NEXT.match(marked, mention.end) or OR_LAST.search(marked, 0, mention.start)
    return "uncertain" if alternative else mention.status


def _reaches(cue: Cue, mention: Mention, sentence: str, marked: str) -> bool:
    """Whether the scope of a cue before a mention holds it; a doubt's ends at a comma, save in a list with "or"."""
    ended = ENDS.search(marked, cue.end, mention.start) or RESTARTS.search(sentence, cue.end, mention.end)
    if cue.start >= mention.start or ended:
        return False
    return (
        cue.means != "uncertain"
        or "," not in marked[cue.end : mention.start]
        or bool(OR.search(marked, cue.end))
    )


def _reaches_back(cue: Cue, mention: Mention, marked: str) -> bool:
    """Whether the scope of a cue after a mention holds it: the same clause, or one of the list that ends there."""
    if cue.start < mention.end or ENDS.search(marked, mention.end, cue.start):
        return False
    between = marked[mention.end : cue.start]
    return not OTHER_CLAUSE.search(between) or bool(LIST.match(between))
