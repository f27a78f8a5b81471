"""What an adapter was tuned on, kept beside its weights: the one prompt that it knows, and its films."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from explainmyxray.errors import UserError

FILE = "tuned_on.json"


@dataclass(frozen=True)
class TunedOn:
    """The `prompt` as the model was asked, and the `sources` of the training images, sorted."""

    prompt: str
    sources: tuple[str, ...]


def save_tuned_on(folder: Path, prompt: str, sources: Iterable[str]) -> None:
    facts = {"prompt": prompt, "sources": sorted(set(sources))}
    (folder / FILE).write_text(json.dumps(facts, indent=2) + "\n")


def load_tuned_on(folder: str | Path) -> TunedOn | None:
    """What was saved beside an adapter; None for an adapter
    from elsewhere. Raises UserError where it is damaged.
    """
    try:
        facts = json.loads((Path(folder) / FILE).read_text())
        return TunedOn(str(facts["prompt"]), tuple(map(str, facts["sources"])))
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{Path(folder) / FILE} is damaged: run `dvc repro train_qlora`") from None


def check_prompt(folder: str | Path, prompt: str) -> None:
    """Raises UserError where the adapter in `folder` was tuned
    with another prompt: its answers would be no reports.
    """
    tuned_on = load_tuned_on(folder)
    if tuned_on is not None and tuned_on.prompt != prompt:
        raise UserError(
            f"{folder} was tuned with the prompt {tuned_on.prompt!r}, and is asked {prompt!r}: "
            "go back to its prompt, or run `dvc repro train_qlora`"
        )
