"""How sure the model is: how often it asserts a finding in reports sampled from its own distribution.

Monte Carlo over reports, compared by what they assert (cf. Kuhn et al. 2023, arXiv:2302.09664). The
probabilities of a report's tokens are not shown: they tell how usual its wording is
(`tests/benchmarks/confidence.py`). Nor is the probability of a sentence against the one that denies it: a
report opens with what is there, so that a denial in its place is unlikely whatever the image shows.

A share is no probability of being right: what it was worth on the test split (`scoring/calibration.py`) is
shown beside it, where it was measured for this very adapter.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from explainmyxray.explaining.explanation import LikeFindings
from explainmyxray.reports.findings import FINDINGS, SHOWN_SHARE

EVALUATION = Path("metrics/eval.json")


@dataclass(frozen=True)
class Calibration:
    """What shares of sampled reports were worth on `images` test images with `samples` reports each.

    `error` is the expected calibration error. `bins` has, by the limits of a share in percent, the findings
    with such a share: a bin holds its upper limit.
    """

    images: int
    samples: int
    error: float
    bins: dict[tuple[int, int], LikeFindings]

    def like(self, share: float) -> LikeFindings | None:
        """The test findings with a like share; None where there were none, or where it is not shown."""
        for (above, up_to), findings in self.bins.items():
            if above < 100 * share <= up_to and share >= SHOWN_SHARE:
                return findings
        return None


def shares(sampled: list[frozenset[str]]) -> dict[str, float]:
    """For each finding the share of the sampled reports that
    assert it; `sampled` holds what each of them asserts.
    """
    return {finding: sum(finding in each for each in sampled) / len(sampled) for finding in FINDINGS}


def load_calibration(weights_digest: str, path: Path = EVALUATION) -> Calibration | None:
    """The calibration of the adapter whose weights have this digest; None where it was not measured.

    The figures of another adapter, such as the one before the last training, say nothing of this one.
    """
    try:
        measured = json.loads(path.read_text())["calibration"]
        if measured["adapter"] != weights_digest:
            return None
        bins = {}
        for name, figures in measured["bins"].items():
            above, up_to = name.split("_to_")
            bins[int(above), int(up_to)] = LikeFindings(figures["findings"], figures["present"])
        return Calibration(measured["n"], measured["samples"], measured["ece"], bins)
    except (OSError, ValueError, KeyError, TypeError):  # none, or one from before it was measured
        return None
