"""What a revision says of itself: its predictions, as DVC keeps them beside its figures."""

import io

import dvc.api
import pandas as pd
from dvc.exceptions import DvcException

from explainmyxray.errors import UserError
from explainmyxray.scoring import evaluation
from explainmyxray.tables import parse_table

PREDICTIONS = "metrics/predictions.csv"


def load_predictions(revision: str | None) -> pd.DataFrame:
    """The table of predictions of a commit, a branch or an experiment, of the working tree for None.

    Raises UserError where there is none.
    """
    text = _read(PREDICTIONS, revision)
    return parse_table(io.StringIO(text), f"{PREDICTIONS} of {_name(revision)}", evaluation.COLUMNS)


def _read(path: str, revision: str | None) -> str:
    try:
        return dvc.api.read(path, rev=revision)
    except (DvcException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{_name(revision)} has no {path}: {reason}") from None


def _name(revision: str | None) -> str:
    return revision or "the working tree"
