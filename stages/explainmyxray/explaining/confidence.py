"""How sure the model is of what it writes: the probabilities of its tokens, and how often it would name a finding.

A finding's probability is the share of sampled reports that name it (Monte Carlo over the model's own distribution of
reports; cf. Kuhn et al. 2023, arXiv:2302.09664). The probability of a sentence against the one that denies it is no measure
here: a report opens with what is there, so that a denial in its place is unlikely whatever the image shows.
"""

import torch
from accelerate.utils import set_seed
from PIL import Image
from transformers import PaliGemmaProcessor

from explainmyxray.generation import generate_texts
from explainmyxray.model.inputs import TrainingCollator
from explainmyxray.reports.findings import FINDINGS
from explainmyxray.reports.labeler import positive_findings
from explainmyxray.training.loss import token_losses


@torch.inference_mode()
def token_probability(
    model, processor: PaliGemmaProcessor, images: list[Image.Image], reports: list[str]
) -> list[float]:
    """For each image the mean probability of its report's tokens, <eos> among them, each given all before it."""
    batch = TrainingCollator(processor)(list(zip(images, reports)))
    on_device = {name: value.to(model.device) for name, value in batch.items()}
    return [losses.neg().exp().mean().item() for losses in token_losses(model, on_device)]


def finding_probabilities(
    model, processor: PaliGemmaProcessor, image: Image.Image, samples: int, max_new_tokens: int, seed: int
) -> dict[str, float]:
    """For each finding the share of `samples` reports that assert it; they are drawn at temperature 1."""
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
    asserted = [positive_findings(report) for report in reports]
    return {finding: sum(finding in findings for findings in asserted) / samples for finding in FINDINGS}
