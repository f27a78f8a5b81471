"""How often the overlay points at the sign of a finding, whose place on a phantom is known.

    python tests/benchmarks/overlay.py    # after `make repro`: it reads models/adapter

The pointing game (Zhang et al. 2018, arXiv:1608.00507) on phantoms that no training saw: a hit is a peak of the heatmap
that touches the sign. Chance is the share of patches that touch it; `usual place` always points at the patch that the signs of that
finding touch most often, on other phantoms: no model is needed for a sign that is always in one place, so that the others,
which move, are summed up apart. Both halves of the overlay are measured alone as well. Counted are findings that are drawn
and that the report names. The last line is JSON.
"""

import json
import os
import sys
from collections import Counter
from pathlib import Path

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
ROOT = Path(__file__).resolve().parents[2]
os.chdir(ROOT)
sys.path += [str(ROOT / "stages"), str(ROOT / "tests")]

import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402
from tqdm import tqdm  # noqa: E402

from explainmyxray.explaining.attribution import Attribution, attribute, patch_grid_side  # noqa: E402
from explainmyxray.explaining.loading import ADAPTER, load  # noqa: E402
from explainmyxray.generation import generate_batch  # noqa: E402
from explainmyxray.sources import phantom  # noqa: E402
from signs import touched  # noqa: E402

SEED, COUNT, OTHERS = 20260, 300, 1000  # phantoms to point at, and as many others as tell the usual places
FIXED = 0.9  # of the others have a sign in its usual place: it does not move


def main() -> None:
    explainer = load(ADAPTER, 0)
    side = patch_grid_side(explainer.model)
    usual = usual_places(side)
    films = list(phantom.sample(phantom.PIPELINE, SEED, COUNT, explainer.side))
    rows, drawn = [], Counter()
    for film in tqdm(films, desc="pointing", unit="phantom", mininterval=5):
        signs, image = touched(film, side), film.read()
        drawn.update(signs.keys())
        (report,) = generate_batch(explainer.model, explainer.processor, [image], explainer.generation)
        attributions = attribute(
            explainer.model, explainer.processor, image, report, explainer.generation.batch_size
        )
        rows += [
            points(finding, signs[finding], attributions[finding], usual[finding][0])
            for finding in signs.keys() & attributions.keys()
        ]
    table = summary(pd.DataFrame(rows), drawn, usual)
    print(table.to_string(float_format="{:.2f}".format))
    print(
        json.dumps(
            {
                "phantoms": COUNT,
                **{
                    row.replace(" ", "_"): {
                        name.replace(" ", "_"): int(share) if share >= 1 else round(float(share), 3)
                        for name, share in table.loc[row].items()
                    }
                    for row in ("moving signs", "all")
                },
            }
        )
    )


def points(finding: str, sign: np.ndarray, attribution: Attribution, usual: int) -> dict:
    """Whether each way to point hits a sign (rows, columns); for chance, the share of patches that do."""
    return {
        "finding": finding,
        "overlay": sign[attribution.peak],
        "occlusion alone": sign.flat[attribution.occlusion.argmax()],
        "saliency alone": sign.flat[attribution.saliency.argmax()],
        "usual place": sign.flat[usual],
        "chance": sign.mean(),
    }


def usual_places(side: int) -> dict[str, tuple[int, bool]]:
    """For each finding the patch that its signs touch most often, and whether they move."""
    signs: dict[str, list[np.ndarray]] = {}
    for film in phantom.sample(phantom.PIPELINE, SEED + 1, OTHERS, 224):
        for finding, sign in touched(film, side).items():
            signs.setdefault(finding, []).append(sign)
    shares = {finding: np.mean(each, 0) for finding, each in signs.items()}
    return {finding: (int(share.argmax()), bool(share.max() < FIXED)) for finding, share in shares.items()}


def summary(rows: pd.DataFrame, drawn: Counter, usual: dict[str, tuple[int, bool]]) -> pd.DataFrame:
    """A line a finding, one for those that move and one for all: how many were drawn and named, and each way's share of hits."""
    table = _shares(rows, rows["finding"], drawn)
    moving = [finding for finding in drawn if usual[finding][1]]
    for name, kept in (("moving signs", moving), ("all", list(drawn))):
        part = rows[rows["finding"].isin(kept)].assign(finding=name)
        table = pd.concat(
            [table, _shares(part, part["finding"], {name: sum(drawn[finding] for finding in kept)})]
        )
    return table


def _shares(rows: pd.DataFrame, by: pd.Series, drawn: dict[str, int]) -> pd.DataFrame:
    table = rows.drop(columns="finding").astype(float).groupby(by).mean()
    table.insert(0, "named", by.value_counts())
    table.insert(0, "drawn", pd.Series(drawn))
    return table


if __name__ == "__main__":
    main()
