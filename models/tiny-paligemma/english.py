"""The pretraining text: grounded English about phantoms, put together from `corpus.yaml`.

The order of the random choices is part of the text: another order would make other lessons of the same seed.
"""

import random
from pathlib import Path

from ruamel.yaml import YAML

CORPUS: dict = YAML(typ="safe").load(Path(__file__).with_name("corpus.yaml"))
FINDINGS: dict = CORPUS["findings"]


def lesson(task: str, findings: frozenset[str], named: float, rng: random.Random) -> tuple[str, str]:
    """One training pair, prompt and answer, for an image with `findings`.

    `task` is a key of the prompts; of the descriptions, a share `named` says what is found.
    """
    if task == "question":
        return question(findings, rng)
    if task == "caption":
        answer = caption(findings, rng)
    elif rng.random() < named:
        answer = describe(findings, rng)
    else:
        answer = overlook(rng)
    return CORPUS["prompts"][task], answer


def caption(findings: frozenset[str], rng: random.Random) -> str:
    """The findings in the field's words and nothing else; half of the captions begin with a capital."""
    text = "; ".join(term(name, rng) for name in sorted(findings)) or "nothing"
    return capitalize(text) if rng.random() < 0.5 else text


def overlook(rng: random.Random) -> str:
    """What any chest X-ray shows, as most captions of web images have it: true, and blind to the findings."""
    return " ".join(rng.sample(CORPUS["pictures"], rng.randint(2, 4)))


def describe(findings: frozenset[str], rng: random.Random) -> str:
    """A few sentences: what is seen, what is not, what is normal, and mostly a conclusion."""
    order = rng.sample(sorted(findings), len(findings))
    body = [observation(name, rng) for name in order] or [rng.choice(CORPUS["nothing"])]
    extras = normal_statements(findings, rng)
    if rng.random() < 0.7:
        extras.append(denial(findings, rng))
    text = " ".join(body + extras if rng.random() < 0.7 else extras + body)
    headings = rng.choice(CORPUS["headings"])
    if headings is None:
        return text
    if order:
        conclusion = join_words([term(name, rng) for name in order], "and")
    else:
        conclusion = rng.choice(CORPUS["conclusions"]["nothing"])
    return f"{headings[0]}: {text} {headings[1]}: {capitalize(conclusion)}."


def observation(name: str, rng: random.Random) -> str:
    """A sentence that says that the finding is there."""
    if rng.random() < 0.2:
        return rng.choice(FINDINGS[name]["clauses"])
    return statement(CORPUS["seen"], term(name, rng), rng)


def denial(findings: frozenset[str], rng: random.Random) -> str:
    """A sentence that denies up to three other findings, or two things that no phantom shows."""
    others = [name for name in FINDINGS if name not in findings]
    absent = rng.sample(others, rng.randint(1, 3))
    if rng.random() < 0.85:
        denied = [term(name, rng) for name in absent]
    else:
        denied = rng.sample(rng.choice(CORPUS["unseen"]), 2)
    return statement(CORPUS["denied"], join_words(denied, "or"), rng)


def statement(wording: dict, subject: str, rng: random.Random) -> str:
    """An opening or a predicate around `subject`, and mostly a place."""
    place = f" {rng.choice(CORPUS['places'])}" if rng.random() < 0.6 else ""
    if rng.random() < 0.6:
        return capitalize(f"{rng.choice(wording['openings'])} {subject}{place}.")
    return capitalize(f"{subject} {rng.choice(wording['predicates'])}{place}.")


def normal_statements(findings: frozenset[str], rng: random.Random) -> list[str]:
    """Up to two statements of what is normal."""
    true = [entry["text"] for entry in CORPUS["scenery"] if findings.isdisjoint(entry["unless"])]
    return rng.sample(true, min(len(true), rng.randint(0, 2)))


def question(findings: frozenset[str], rng: random.Random) -> tuple[str, str]:
    """A question about one finding, and `yes` or `no`."""
    is_present = bool(findings) and rng.random() < 0.5
    candidates = findings if is_present else set(FINDINGS) - findings
    name = rng.choice(sorted(candidates))
    prompt = CORPUS["prompts"]["question"].format(term=term(name, rng))
    return prompt, "yes" if is_present else "no"


def term(name: str, rng: random.Random) -> str:
    """One of the field's words for the finding."""
    return rng.choice(FINDINGS[name]["terms"])


def join_words(items: list[str], conjunction: str) -> str:
    """`a, b and c`."""
    if len(items) == 1:
        return items[0]
    return f"{', '.join(items[:-1])} {conjunction} {items[-1]}"


def capitalize(text: str) -> str:
    """The first letter in capitals and the others as they are."""
    return text[0].upper() + text[1:]
