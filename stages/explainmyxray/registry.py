"""The sources of films by name: read from sources/registry.yaml, before and without any of their code."""

import difflib
from dataclasses import dataclass
from pathlib import Path

from ruamel.yaml import YAML

REGISTRY = Path(__file__).with_name("sources") / "registry.yaml"


@dataclass(frozen=True)
class KaggleDataSet:
    """Where Kaggle has a data set, and about how many GB (10^9 bytes) are downloaded."""

    owner: str
    name: str
    download_gb: float


@dataclass(frozen=True)
class Source:
    """What is known of a source without its code; `reports`: whether each of its films has a real one."""

    about: str
    reports: bool = False
    kaggle: KaggleDataSet | None = None


def _read_registry() -> tuple[dict[str, Source], dict[str, list[str]]]:
    registry = YAML(typ="safe").load(REGISTRY)
    found = {}
    for name, entry in registry["sources"].items():
        kaggle = KaggleDataSet(**entry["kaggle"]) if "kaggle" in entry else None
        found[name] = Source(entry["about"], entry.get("reports", False), kaggle)
    return found, registry["groups"]


SOURCES, GROUPS = _read_registry()


def resolve_sources(names: list[str]) -> tuple[str, ...]:
    """The sources that `names` mean, groups taken apart, each once. Raises ValueError for an unknown name."""
    resolved: list[str] = []
    for name in names:
        if name not in SOURCES and name not in GROUPS:
            known = [*SOURCES, *GROUPS]
            similar = difflib.get_close_matches(str(name), known, n=1)
            advice = f"did you mean {similar[0]}?" if similar else f"there are {', '.join(known)}"
            raise ValueError(f"{str(name)[:40]} is no source: {advice}")
        resolved += GROUPS.get(name, [name])
    return tuple(dict.fromkeys(resolved))
