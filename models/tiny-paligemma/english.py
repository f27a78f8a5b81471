"""The pretraining text: grounded English about phantoms, put together from `corpus.yaml`."""

import random
from pathlib import Path

from ruamel.yaml import YAML

CORPUS: dict = YAML(typ="safe").load(Path(__file__).with_name("corpus.yaml"))
FINDINGS: dict = CORPUS["findings"]


def lesson(task: str, findings: frozenset[str], rng: random.Random) -> tuple[str, str]:
    """One training pair, prompt and answer, for an image that shows `findings`."""
    if task == "question":
        return question(findings, rng)
    return CORPUS["prompts"][task], {"caption": caption, "describe": describe}[task](findings, rng)


def caption(findings: frozenset[str], rng: random.Random) -> str:
    """The findings in the field's words and nothing else."""
    return "; ".join(term(name, rng) for name in sorted(findings)) or "nothing"


def describe(findings: frozenset[str], rng: random.Random) -> str:
    """A few sentences: what is seen, what is not, what is normal, and mostly a conclusion."""
    order = rng.sample(sorted(findings), len(findings))
    body = [observation(name, rng) for name in order] or [rng.choice(CORPUS["nothing"])]
    extras = remarks(findings, rng) + ([denial(findings, rng)] if rng.random() < 0.7 else [])
    text = " ".join(body + extras if rng.random() < 0.7 else extras + body)
    headings = rng.choice(CORPUS["headings"])
    if headings is None:
        return text
    conclusion = (
        listing([term(name, rng) for name in order])
        if order
        else rng.choice(CORPUS["conclusions"]["nothing"])
    )
    return f"{headings[0]}: {text} {headings[1]}: {capital(conclusion)}."


def observation(name: str, rng: random.Random) -> str:
    if rng.random() < 0.2:
        return rng.choice(FINDINGS[name]["clauses"])
    return statement(CORPUS["seen"], term(name, rng), rng)


def denial(findings: frozenset[str], rng: random.Random) -> str:
    absent = rng.sample([name for name in FINDINGS if name not in findings], rng.randint(1, 3))
    denied = (
        [term(name, rng) for name in absent]
        if rng.random() < 0.85
        else rng.sample(rng.choice(CORPUS["unseen"]), 2)
    )
    return statement(CORPUS["denied"], listing(denied, "or"), rng)


def statement(wording: dict, subject: str, rng: random.Random) -> str:
    """An opening or a predicate around `subject`, and mostly a place."""
    place = f" {rng.choice(CORPUS['places'])}" if rng.random() < 0.6 else ""
    if rng.random() < 0.6:
        return capital(f"{rng.choice(wording['openings'])} {subject}{place}.")
    return capital(f"{subject} {rng.choice(wording['predicates'])}{place}.")


def remarks(findings: frozenset[str], rng: random.Random) -> list[str]:
    """Up to two statements of what is normal."""
    true = [each["text"] for each in CORPUS["scenery"] if not findings & set(each["unless"])]
    return rng.sample(true, min(len(true), rng.randint(0, 2)))


def question(findings: frozenset[str], rng: random.Random) -> tuple[str, str]:
    """A question about one finding, and `yes` or `no`."""
    present = bool(findings) and rng.random() < 0.5
    name = rng.choice(sorted(findings if present else set(FINDINGS) - findings))
    return CORPUS["prompts"]["question"].format(term=term(name, rng)), "yes" if present else "no"


def term(name: str, rng: random.Random) -> str:
    return rng.choice(FINDINGS[name]["terms"])


def listing(items: list[str], word: str = "and") -> str:
    """`a, b and c`."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} {word} {items[-1]}"


def capital(text: str) -> str:
    return text[0].upper() + text[1:]
