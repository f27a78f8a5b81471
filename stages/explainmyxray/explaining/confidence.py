"""How sure the model is: how often it asserts a finding in reports sampled from its own distribution.

Monte Carlo over reports, compared by what they assert (cf. Kuhn et al. 2023, arXiv:2302.09664). The
probabilities of a report's tokens are not shown: they tell how usual its wording is
(`tests/benchmarks/confidence.py`). Nor is the probability of a sentence against the one that denies it: a
report opens with what is there, so that a denial in its place is unlikely whatever the image shows.
"""

from explainmyxray.reports.findings import FINDINGS


def shares(sampled: list[frozenset[str]]) -> dict[str, float]:
    """For each finding the share of the sampled reports that
    assert it; `sampled` holds what each of them asserts.
    """
    return {finding: sum(finding in each for each in sampled) / len(sampled) for finding in FINDINGS}
