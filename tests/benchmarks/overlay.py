"""How often the overlay points at the sign of a finding, whose place on a phantom is known.

    python tests/benchmarks/overlay.py    # after `make repro`: it reads models/adapter

The pointing game (Zhang et al. 2018, arXiv:1608.00507) on phantoms that no training saw: a hit is a peak of
the heatmap that touches the sign. Chance is the share of patches that touch it. `usual place` always points
at the patch that the signs of that finding touch most often, on other phantoms: no model is needed for a sign
that is always in one place, so that the others, which move, are summed up apart. Both halves of the overlay
are measured alone as well. Counted are findings that are drawn and that the report names. The last line is
JSON.
"""

import json
import os
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
sys.path += [str(Path(__file__).resolve().parents[2] / "stages"), str(Path(__file__).resolve().parents[1])]

import numpy as np
import pandas as pd
from tqdm import tqdm

from conftest import ROOT
from explainmyxray.command import parse_no_arguments
from explainmyxray.errors import exit_on_user_error
from explainmyxray.explaining.attribution import Attribution, attribute, cell_size
from explainmyxray.explaining.loading import ADAPTER, load_explainer
from explainmyxray.generation import generate_batch
from explainmyxray.model.families import family_of
from explainmyxray.sources import phantom
from signs import touched

SEED = 20260
NUM_FILMS = 300  # to point at
NUM_OTHERS = 1000  # that tell the usual places
FIXED = 0.9  # of the others have a sign in its usual place: it does not move
SUMMARY_ROWS = ("moving signs", "all")


@dataclass(frozen=True)
class UsualPlace:
    """The patch (flat index) that a finding's signs touch
    most often, and whether they move from film to film.
    """

    patch: int
    moves: bool


def main() -> None:
    parse_no_arguments(__doc__)
    os.chdir(ROOT)
    explainer = load_explainer(ADAPTER, 0)
    side = explainer.side // cell_size(explainer.side, family_of(explainer.model).patch_size)
    usual_places = find_usual_places(side)
    films = list(phantom.sample(phantom.PIPELINE, SEED, NUM_FILMS, explainer.side))
    rows = []
    drawn = Counter()
    for film in tqdm(films, desc="pointing", unit="phantom", mininterval=5):
        signs = touched(film, side)
        drawn.update(signs.keys())
        image = film.read()
        (report,) = generate_batch(explainer.model, explainer.processor, [image], explainer.generation)
        attributions = attribute(
            explainer.model, explainer.processor, image, report, explainer.generation.batch_size
        )
        for finding in signs.keys() & attributions.keys():
            hits = count_hits(signs[finding], attributions[finding], usual_places[finding].patch)
            rows.append({"finding": finding, **hits})
    table = summarize(pd.DataFrame(rows), drawn, usual_places)
    print(table.to_string(float_format="{:.2f}".format))

    figures = {"phantoms": NUM_FILMS}
    for row in SUMMARY_ROWS:
        shares = {}
        for name, share in table.loc[row].items():
            shares[name.replace(" ", "_")] = int(share) if share >= 1 else round(float(share), 3)
        figures[row.replace(" ", "_")] = shares
    print(json.dumps(figures))


def count_hits(sign: np.ndarray, attribution: Attribution, usual_patch: int) -> dict[str, float]:
    """Whether each way to point hits a sign (rows, columns); for chance, the share of patches that do."""
    return {
        "overlay": sign[attribution.peak],
        "occlusion alone": sign.flat[attribution.occlusion.argmax()],
        "saliency alone": sign.flat[attribution.saliency.argmax()],
        "usual place": sign.flat[usual_patch],
        "chance": sign.mean(),
    }


def find_usual_places(side: int) -> dict[str, UsualPlace]:
    """Each finding's usual place on phantoms that are not pointed at."""
    signs: dict[str, list[np.ndarray]] = {}
    for film in phantom.sample(phantom.PIPELINE, SEED + 1, NUM_OTHERS, 224):
        for finding, sign in touched(film, side).items():
            signs.setdefault(finding, []).append(sign)
    places = {}
    for finding, each in signs.items():
        share = np.mean(each, 0)
        places[finding] = UsualPlace(int(share.argmax()), bool(share.max() < FIXED))
    return places


def summarize(rows: pd.DataFrame, drawn: Counter, usual_places: dict[str, UsualPlace]) -> pd.DataFrame:
    """A line a finding, one for those that move and one for all:
    how many were drawn and named, and each way's share of hits.
    """
    moving = [finding for finding in drawn if usual_places[finding].moves]
    tables = [share_of_hits(rows, drawn)]
    for name, findings in zip(SUMMARY_ROWS, (moving, list(drawn))):
        part = rows[rows["finding"].isin(findings)].assign(finding=name)
        tables.append(share_of_hits(part, {name: sum(drawn[finding] for finding in findings)}))
    return pd.concat(tables)


def share_of_hits(rows: pd.DataFrame, drawn: dict[str, int]) -> pd.DataFrame:
    """By finding: the number drawn, the number named, and the share of these that each way hits."""
    findings = rows["finding"]
    table = rows.drop(columns="finding").astype(float).groupby(findings).mean()
    table.insert(0, "named", findings.value_counts())
    table.insert(0, "drawn", pd.Series(drawn))
    return table


if __name__ == "__main__":
    exit_on_user_error(main)
