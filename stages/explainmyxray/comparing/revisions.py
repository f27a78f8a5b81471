"""The predictions of a revision, as DVC keeps them beside its figures."""

import io

import dvc.api
import pandas as pd
from dvc.exceptions import DvcException

from explainmyxray.errors import UserError
from explainmyxray.scoring import evaluation
from explainmyxray.tables import parse_table

PREDICTIONS = "metrics/predictions.csv"


def predictions(revision: str | None) -> pd.DataFrame:
    """The table of predictions of a commit, a branch or an experiment, of the working tree for None.

    Raises UserError where there is none.
    """
    try:
        text = dvc.api.read(PREDICTIONS, rev=revision)
    except (DvcException, OSError) as error:
        raise UserError(
            f"{revision or 'the working tree'} has no {PREDICTIONS}: {str(error).splitlines()[0]}"
        ) from None
    return parse_table(
        io.StringIO(text), f"{PREDICTIONS} of {revision or 'the working tree'}", evaluation.COLUMNS
    )
