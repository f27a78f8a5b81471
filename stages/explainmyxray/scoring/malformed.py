"""Malformed reports: what neither BLEU nor the findings notice.

A text that names the right findings and holds `<loc0597>`, ends in the middle of a sentence or writes a word
that no training report has is no report. The rules need no list of templates: what a report must have is read
off its reference.
"""

import re
from collections.abc import Iterable, Sequence

DEFECTS = ("non_word", "no_impression", "cut_off", "unknown_word")

PIECE = re.compile(r"<[^<>\s]+>")  # of the tokenizer: <loc0597>, <seg039>, <unused12>, <image>
WORD = re.compile(r"[^\W\d_]+")  # letters of any alphabet
IMPRESSION = re.compile(r"\bimpression:\s*\w", re.IGNORECASE)
SENTENCE_END = re.compile(r"[.!?][\"')\]]*\s*$")


def words(text: str) -> set[str]:
    """The words of a text in lower case, without the tokenizer's pieces."""
    return set(WORD.findall(PIECE.sub(" ", text).casefold()))


def vocabulary(reports: Iterable[str]) -> list[str]:
    """Every word of the training reports, sorted."""
    found = set()
    for report in reports:
        found |= words(report)
    return sorted(found)


def defects(text: str, reference: str, known_words: frozenset[str]) -> set[str]:
    """Which of `DEFECTS` a generated text has.

    `non_word`: a piece that no report holds. `no_impression`: the reference has an impression, the text none.
    `cut_off`: the reference ends with a sentence, the text does not. `unknown_word`: a word that no training
    report has.
    """
    found = set()
    if PIECE.search(text):
        found.add("non_word")
    if IMPRESSION.search(reference) and not IMPRESSION.search(text):
        found.add("no_impression")
    if SENTENCE_END.search(reference) and not SENTENCE_END.search(text):
        found.add("cut_off")
    if not words(text) <= known_words:
        found.add("unknown_word")
    return found


def count_malformed(
    texts: Sequence[str], references: Sequence[str], known_words: frozenset[str]
) -> dict[str, int]:
    """How many of the texts have a defect (`any`), and how many have each of `DEFECTS`."""
    counts = dict.fromkeys(("any", *DEFECTS), 0)
    for text, reference in zip(texts, references, strict=True):
        found = defects(text, reference, known_words)
        counts["any"] += bool(found)
        for defect in found:
            counts[defect] += 1
    return counts
