"""What two revisions hold: their predictions, as DVC keeps them beside the figures, and their parameters."""

import io
import json

import dvc.api
import pandas as pd
from dvc.exceptions import DvcException
from ruamel.yaml import YAML

from explainmyxray.errors import RESTORE, UserError
from explainmyxray.scoring import evaluation, sampled_reports
from explainmyxray.tables import parse_table

PREDICTIONS = "metrics/predictions.csv"
SAMPLES = "metrics/samples.csv"
PARAMETERS, LOCK = "params.yaml", "dvc.lock"
ABSENT = "–"


def load_predictions(revision: str | None) -> pd.DataFrame:
    """The table of predictions of a commit, a branch or an experiment, of the working tree for None.

    Raises UserError where there is none.
    """
    text = _read(PREDICTIONS, revision)
    return parse_table(io.StringIO(text), f"{PREDICTIONS} of {_name(revision)}", evaluation.COLUMNS)


def load_samples(revision: str | None) -> pd.DataFrame | None:
    """The table of sampled reports of a revision, of the working tree for None; None where it has none."""
    try:
        text = _read(SAMPLES, revision)
    except UserError:  # a revision from before they were sampled
        return None
    return parse_table(io.StringIO(text), f"{SAMPLES} of {_name(revision)}", sampled_reports.COLUMNS)


def load_metrics(path: str, revision: str | None) -> dict:
    """A metrics file of a revision, of the working tree for None. Raises UserError where there is none."""
    return json.loads(_read(path, revision))


def load_parameters(revision: str | None) -> dict[str, str]:
    """The parameters of a revision, of the working tree for None, by dotted name: `{"lora.r": "16"}`.

    As text, unchecked: another revision's parameters need not be today's. Raises UserError where there are
    none.
    """
    return _flat(YAML(typ="safe").load(_read(PARAMETERS, revision)))


def stale_parameters(revision: str | None, parameters: dict[str, str]) -> pd.DataFrame:
    """`parameter`, `before`, `after`: what the figures of a revision, of the working tree for None, were made
    with, where its `parameters` have another value by now. No row where it has no dvc.lock.
    """
    try:
        stages = YAML(typ="safe").load(_read(LOCK, revision))["stages"]
    except UserError:
        stages = {}
    used = {}
    for stage in stages.values():
        used |= _flat(stage.get("params", {}).get(PARAMETERS, {}))
    return changed_parameters(used, {name: value for name, value in parameters.items() if name in used})


def _flat(nested: dict) -> dict[str, str]:
    flat = {}
    waiting = [("", nested)]
    while waiting:
        prefix, section = waiting.pop()
        for name, value in section.items():
            if isinstance(value, dict):
                waiting.append((f"{prefix}{name}.", value))
            else:
                flat[f"{prefix}{name}"] = "null" if value is None else str(value)
    return flat


def changed_parameters(before: dict[str, str], after: dict[str, str]) -> pd.DataFrame:
    """`parameter`, `before`, `after`: a row a parameter that differs; a dash where a revision has none."""
    rows = []
    for name in sorted(before.keys() | after.keys()):
        value_before, value_after = before.get(name, ABSENT), after.get(name, ABSENT)
        if value_before != value_after:
            rows.append({"parameter": name, "before": value_before, "after": value_after})
    return pd.DataFrame(rows, columns=["parameter", "before", "after"])


def _read(path: str, revision: str | None) -> str:
    try:
        return dvc.api.read(path, rev=revision)
    except (DvcException, OSError) as error:
        reason = str(error).splitlines()[0]
        if "unknown Git revision" in reason:
            raise UserError(f"{revision} is no revision here and no experiment (`dvc exp list`)") from None
        if revision is None:
            raise UserError(
                f"{path} is missing: DVC removes it until a run has ended; the committed one comes back with "
                f"{RESTORE}"
            ) from None
        raise UserError(f"{revision} has no {path}: {reason}") from None


def _name(revision: str | None) -> str:
    return revision or "the working tree"
