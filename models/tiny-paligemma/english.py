"""The pretraining text: grounded English about phantoms, put together from `corpus.yaml`."""

import random
from collections.abc import Iterator
from pathlib import Path

from ruamel.yaml import YAML

CORPUS: dict = YAML(typ="safe").load(Path(__file__).with_name("corpus.yaml"))


def listing(items: list[str], word: str = "and") -> str:
    """`a, b and c`."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} {word} {items[-1]}"


def sentence(text: str) -> str:
    return text[0].upper() + text[1:]


def caption(findings: frozenset[str], rng: random.Random) -> str:
    """One sentence in a layman's words."""
    if not findings:
        return rng.choice(CORPUS["caption_frames"]["nothing"])
    plain = [rng.choice(CORPUS["findings"][name]["plain"]) for name in shuffled(findings, rng)]
    return rng.choice(CORPUS["caption_frames"]["seen"]).format(seen=listing(plain))


def describe(findings: frozenset[str], rng: random.Random) -> str:
    """A few sentences in the field's words: what is seen, what is not, what is normal, and mostly a summary."""
    frames, order = CORPUS["describe_frames"], shuffled(findings, rng)
    if len(order) > 1 and rng.random() < 0.5:
        body = [rng.choice(frames["seen"]).format(seen=listing(terms(order, rng)))]
    else:
        body = [rng.choice(frames["seen"]).format(seen=term) for term in terms(order, rng)]
    body = body or [rng.choice(frames["nothing"])]
    absent = [name for name in CORPUS["findings"] if name not in findings]
    denied = terms(rng.sample(absent, rng.randint(1, 3)), rng)
    if rng.random() < 0.2:
        denied = rng.choice(CORPUS["unseen"]).split(", ")[:2]
    extras = [rng.choice(frames["denied"]).format(denied=listing(denied, "or"))] if rng.random() < 0.7 else []
    scenery = [each["text"] for each in CORPUS["scenery"] if not findings & set(each["unless"])]
    extras += rng.sample(scenery, min(len(scenery), rng.randint(0, 2)))
    summary = []
    if rng.random() < 0.6:
        summary = ([rng.choice(frames["summary"]).format(seen=listing(terms(order, rng)))] if order
                   else [rng.choice(frames["summary_nothing"])])
    sentences = body + extras if rng.random() < 0.6 else extras + body
    return " ".join(sentence(each) for each in sentences + summary)


def question(findings: frozenset[str], rng: random.Random) -> tuple[str, str]:
    """A question about one finding, and `yes` or `no`."""
    present = bool(findings) and rng.random() < 0.5
    name = rng.choice(sorted(findings) if present else sorted(set(CORPUS["findings"]) - findings))
    term = rng.choice(CORPUS["findings"][name]["terms"])
    return CORPUS["prompts"]["question"].format(term=term), "yes" if present else "no"


def lesson(findings: frozenset[str], rng: random.Random) -> tuple[str, str]:
    """One training pair, prompt and answer, for an image that shows `findings`."""
    task = rng.random()
    if task < 0.25:
        return CORPUS["prompts"]["caption"], caption(findings, rng)
    if task < 0.9:
        return CORPUS["prompts"]["describe"], describe(findings, rng)
    return question(findings, rng)


def listed(findings: frozenset[str], rng: random.Random) -> str:
    """The findings in the field's words and nothing else."""
    return "; ".join(terms(sorted(findings), rng)) or "nothing"


def drill(task: str, findings: frozenset[str], rng: random.Random) -> tuple[str, str]:
    """One training pair of a given task."""
    if task == "question":
        return question(findings, rng)
    return CORPUS["prompts"][task], {"caption": caption, "describe": describe, "list": listed}[task](findings, rng)


def terms(names, rng: random.Random) -> list[str]:
    return [rng.choice(CORPUS["findings"][name]["terms"]) for name in names]


def shuffled(findings, rng: random.Random) -> list[str]:
    return rng.sample(sorted(findings), len(findings))


def sentences() -> Iterator[str]:
    """Every frame, term and remark of the corpus, for the tokenizer and for the test that keeps templates apart."""
    for group in ("caption_frames", "describe_frames"):
        for frames in CORPUS[group].values():
            yield from frames
    for words in CORPUS["findings"].values():
        yield from words["plain"] + words["terms"]
    yield from CORPUS["unseen"] + [each["text"] for each in CORPUS["scenery"]] + list(CORPUS["prompts"].values())
