"""Read the 14 findings out of any English chest X-ray report by rules; it never sees the templates.

After NegEx (Chapman 2001), ConText (Harkema 2009), NegBio (Peng 2018) and CheXpert's labeler (Irvin 2019),
with a cue's scope found from words and commas instead of a parse: find the mentions, find the cues for
negation and uncertainty around them, then combine them over the report, where present outranks uncertain, and
uncertain absent. Words are taken as spelt. `vocabulary.yaml` holds all phrases, the decisions on them, and
the sources.

`No Finding` is present where a report says something normal and nothing is present or uncertain, absent where
a finding is present, and uncertain otherwise; a text that says nothing (empty, history alone) has no labels.
"""

import re
from collections.abc import Iterator
from itertools import chain
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
    """A cue at `start` to `end` of a sentence, and what it `means` for mentions on its `side`."""

    means: str
    side: str
    start: int
    end: int


# 1) The vocabulary as regular expressions


def _expand(phrase: str) -> str:
    """A phrase of the vocabulary in the syntax of `re`."""
    phrase = re.sub(r"<([a-z]+)>", lambda match: VOCABULARY["words"][match[1]], phrase)
    return re.sub(r"(?<!\\)\((?!\?)", "(?:", phrase).replace("| ", "|")


def _any_of(phrases: list[str]) -> str:
    """A pattern for any of the phrases; of none, it never matches."""
    return "|".join(map(_expand, phrases)) or "(?!)"


def _words(phrases: list[str]) -> re.Pattern:
    """Any of the phrases as whole words of a normalized sentence."""
    return re.compile(rf"(?<!\S)(?:{_any_of(phrases)})(?!\S)")


def _phrases_of_findings(kind: str) -> dict[str, re.Pattern]:
    return {finding: _words(entry.get(kind, [])) for finding, entry in VOCABULARY["findings"].items()}


def _section_names(kind: str) -> re.Pattern:
    return re.compile(_any_of(VOCABULARY["sections"][kind]), re.IGNORECASE)


NAMES = _phrases_of_findings("names")
SIGNS = _phrases_of_findings("signs")
NAMESAKES = _phrases_of_findings("ignore")
NORMAL = [(entry["absent"], _words(entry["phrases"])) for entry in VOCABULARY["normal"]]
CUES = [(group["means"], group.get("side"), _words(group["phrases"])) for group in VOCABULARY["cues"]]
SCOPE_ENDS = _words(VOCABULARY["ends"])
LIST_RESTARTS = _words(VOCABULARY["restarts"])
STATEMENT = _words(VOCABULARY["statements"])
OR = _words(VOCABULARY["either"])

# In the patterns below, mentions are written over with `#` and cues with `~`. Of two mentions joined by
# "or", few words apart, the first is followed by OR_NEXT, the second preceded by OR_LAST.
_OR = f"(?:{_any_of(VOCABULARY['either'])})"
_FEW_WORDS = r"(?:(?!and |with )[^\s,;~]+ ){0,4}"
OR_NEXT = re.compile(rf" {_FEW_WORDS}(?:, )?{_OR} {_FEW_WORDS}#")
OR_LAST = re.compile(rf"# {_FEW_WORDS}(?:, )?{_OR} {_FEW_WORDS}$")
# What parts a cue from the mention before it: a verb of the mention's own, or a comma with another mention...
_VERB = r"\b(?:is|are|was|were|has|have|there)\b"
OTHER_CLAUSE = re.compile(rf"(?<!that )(?<!which ){_VERB}|[,:] [^,]*#")
# ... unless it is the comma of a list ("effusion, pneumothorax and consolidation are absent").
LIST = re.compile(rf"(?!.*{_VERB}).* (?:and|or|nor) [^,]*#")

# A section header is one of the vocabulary's with a colon, where a sentence can start; any words in
# capitals with a colon; or one of the vocabulary's alone on its line.
_HEADERS = f"(?i:{_any_of(list(chain.from_iterable(VOCABULARY['sections'].values())))})"
HEADER = re.compile(
    rf"(?:(?:(?<![^\n])|(?<=[.;:?]\s)|(?<=[.;:?]\s\s))[ \t]*({_HEADERS})|\b([A-Z][A-Z /&-]{{2,40}}))[ \t]*:"
    rf"|^[ \t]*({_HEADERS})[ \t]*$",
    re.MULTILINE,
)
UNREAD_SECTION = _section_names("unread")  # to the next header or blank line
UNREAD_SENTENCE = _section_names("unread_sentence")  # to the first full stop or line's end
BLANK_LINE = re.compile(r"\n\s*\n")
FULL_STOP = re.compile(r"\.(?=\s|$)|\n")
# Full stops, save in figures and abbreviations; blank lines; a bullet, a number, or a new line's capital
# (but no XXXX).
SENTENCE_END = re.compile(
    r"(?<!\bvs)(?<!\bDr)(?<!\bapprox)(?<!\be\.g)(?<!\bi\.e)\.(?=\s|$|[A-Z][a-z])|(?<=\w)[!?](?=\s+[A-Z])"
    r"|\n\s*\n|\n(?=\s*(?:[-*•]|\d+[.)]|(?!XX)[A-Z]))|\s(?=\d{1,2}[.)]\s+[A-Z])"
)


# 2) A report


def label_report(text: str) -> dict[str, str]:
    """The findings a report mentions, and `No Finding` if it says anything: present, absent or uncertain."""
    statuses: dict[str, str] = {}
    says_something = False
    for sentence in _sentences(text):
        says_something = says_something or bool(STATEMENT.search(sentence))
        for finding, status in _read_sentence(sentence):
            earlier = statuses.get(finding, status)
            statuses[finding] = max(earlier, status, key=RANK.get)
    labels = {finding: statuses[finding] for finding in FINDINGS if finding in statuses}
    if says_something or labels:
        strongest = max(labels.values(), key=RANK.get, default="absent")
        labels[NO_FINDING] = OPPOSITE[strongest]
    return labels


def positive_findings(text: str) -> frozenset[str]:
    """The findings that a report calls present; uncertain ones are not among them."""
    labels = label_report(text)
    return frozenset(finding for finding in FINDINGS if labels.get(finding) == "present")


def _sentences(text: str) -> Iterator[str]:
    """The normalized sentences of the sections that count: lower case, one blank between words and marks."""
    for passage in _passages(text):
        for sentence in SENTENCE_END.split(passage):
            normalized = sentence.lower().replace("can't", "cannot").replace("n't", " not")
            normalized = re.sub(r"[^\w\s,;:?/=]|_|\bx{3,}\b", " ", normalized)
            normalized = re.sub(r"([,;:?/=])", r" \1 ", normalized)
            yield " ".join(normalized.split())


def _passages(text: str) -> Iterator[str]:
    """The text without its sections on history, comparison and technique."""
    headers = list(HEADER.finditer(text))
    starts = [header.start() for header in headers] + [len(text)]
    yield text[: starts[0]]
    for header, end in zip(headers, starts[1:], strict=True):
        name = (header[1] or header[2] or header[3]).strip()
        body = text[header.end() : end].lstrip()
        if UNREAD_SECTION.fullmatch(name):
            yield _after_first(BLANK_LINE, body)
        elif UNREAD_SENTENCE.fullmatch(name):
            yield _after_first(FULL_STOP, body)
        else:  # a header can be a sentence's subject, as in "HEART: normal"
            yield text[header.start() : end]


def _after_first(pattern: re.Pattern, text: str) -> str:
    """What follows the first match of `pattern`; nothing where there is none."""
    match = pattern.search(text)
    return text[match.end() :] if match else ""


# 3) A sentence


def _read_sentence(sentence: str) -> Iterator[tuple[str, str]]:
    """The findings of one normalized sentence with their status in it; a finding may come more than once."""
    # Statements of normal anatomy rule findings out, and their words are not read again. All are looked for
    # before any is hidden.
    statements = []
    for findings, pattern in NORMAL:
        for match in pattern.finditer(sentence):
            statements.append((findings, match))
    for findings, match in statements:
        for finding in findings:
            yield finding, "absent"
        sentence = _hide(sentence, match)

    mentions = _find_mentions(sentence)
    if not mentions:
        return
    marked = sentence
    for mention in mentions:
        marked = marked[: mention.start] + "#" * (mention.end - mention.start) + marked[mention.end :]
    cues, marked = _find_cues(marked)
    for mention in mentions:
        status = _status(mention, cues, sentence, marked)
        if status != "unread":
            yield mention.finding, status


def _hide(sentence: str, match: re.Match) -> str:
    """The sentence with the words of a match, but no mention in it, written over: they are not read again."""
    return sentence[: match.start()] + re.sub("[^ #]", "~", match[0]) + sentence[match.end() :]


def _find_mentions(sentence: str) -> list[Mention]:
    """The mentions of findings in a normalized sentence; a sign within a name ("nodular opacity") is none."""
    names, signs = [], []
    for finding in FINDINGS:
        readable = sentence
        for match in NAMESAKES[finding].finditer(sentence):
            readable = _hide(readable, match)
        for match in NAMES[finding].finditer(readable):
            names.append(Mention(finding, "present", *match.span()))
        for match in SIGNS[finding].finditer(readable):
            signs.append(Mention(finding, "uncertain", *match.span()))
    return names + [sign for sign in signs if not any(_overlap(sign, name) for name in names)]


def _overlap(one: Mention, other: Mention) -> bool:
    return one.start < other.end and other.start < one.end


def _find_cues(marked: str) -> tuple[list[Cue], str]:
    """The cues of a sentence with its mentions marked, from first to last, and the sentence with them hidden.

    Groups are looked for in the vocabulary's order, and a cue hides its words from the groups after its own.
    A group without a side only hides.
    """
    cues = []
    for means, side, pattern in CUES:
        for match in pattern.finditer(marked):
            if side:
                cues.append(Cue(means, side, *match.span()))
            marked = _hide(marked, match)
    cues.sort(key=lambda cue: cue.start)
    return cues, marked


def _status(mention: Mention, cues: list[Cue], sentence: str, marked: str) -> str:
    """What the nearest cues make of a mention, one on either side: present, uncertain, absent, or unread."""
    meanings = set()
    for cue in reversed(cues):
        if cue.side != "after" and _reaches_forward(cue, mention, sentence, marked):
            meanings.add(cue.means)
            break
    for cue in cues:
        if cue.side != "before" and _reaches_back(cue, mention, marked):
            meanings.add(cue.means)
            break
    for meaning in ("absent", "unread", "uncertain"):
        if meaning in meanings:
            return meaning
    # No cue: of two findings joined by "or", each is uncertain.
    is_alternative = OR_NEXT.match(marked, mention.end) or OR_LAST.search(marked, 0, mention.start)
    return "uncertain" if is_alternative else mention.status


def _reaches_forward(cue: Cue, mention: Mention, sentence: str, marked: str) -> bool:
    """Whether a mention is in the scope of a cue before it.

    The scope of uncertainty ends at a comma, save in a list with "or".
    """
    if cue.start >= mention.start:
        return False
    if SCOPE_ENDS.search(marked, cue.end, mention.start):
        return False
    if LIST_RESTARTS.search(sentence, cue.end, mention.end):
        return False
    if cue.means == "uncertain" and "," in marked[cue.end : mention.start]:
        return bool(OR.search(marked, cue.end))
    return True


def _reaches_back(cue: Cue, mention: Mention, marked: str) -> bool:
    """Whether a mention is in the scope of a cue after it: in its clause, or in the list that ends there."""
    if cue.start < mention.end or SCOPE_ENDS.search(marked, mention.end, cue.start):
        return False
    between = marked[mention.end : cue.start]
    return not OTHER_CLAUSE.search(between) or bool(LIST.match(between))
