"""How sure the model is: how often it asserts a finding in reports sampled from its own distribution.

Monte Carlo over reports, compared by what they assert (cf. Kuhn et al. 2023, arXiv:2302.09664). The probabilities of a
report's tokens are not shown: they tell how usual its wording is (`tests/benchmarks/confidence.py`). Nor is the probability
of a sentence against the one that denies it: a report opens with what is there, so that a denial in its place is unlikely
whatever the image shows.
"""

from accelerate.utils import set_seed
from PIL import Image
from transformers import PaliGemmaProcessor

from explainmyxray.generation import generate_texts
from explainmyxray.reports.findings import FINDINGS
from explainmyxray.reports.labeler import positive_findings


def sample_findings(
    model, processor: PaliGemmaProcessor, image: Image.Image, samples: int, max_new_tokens: int, seed: int
) -> list[frozenset[str]]:
    """The findings that each of `samples` reports asserts; the reports are drawn at temperature 1."""
    set_seed(seed)
    reports = generate_texts(
        model,
        processor,
        [image],
        max_new_tokens=max_new_tokens,
        do_sample=True,
        num_return_sequences=samples,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
    )
    return [positive_findings(report) for report in reports]


def shares(sampled: list[frozenset[str]]) -> dict[str, float]:
    """For each finding the share of the sampled reports that assert it."""
    return {finding: sum(finding in each for each in sampled) / len(sampled) for finding in FINDINGS}
