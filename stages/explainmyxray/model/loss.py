"""The loss: cross-entropy over the report's tokens, with logits at those positions only.

PaliGemma's vocabulary has 257,216 entries. Logits over image and prompt too would be most of the memory, for nothing.
"""

import torch
from torch.nn import functional as F

from explainmyxray.model.batches import IGNORED


def report_loss(model, batch: dict[str, torch.Tensor], tokens: torch.Tensor | int | None = None) -> torch.Tensor:
    """Mean cross-entropy of a batch's report tokens; with `tokens`, their sum divided by that number.

    `tokens` counts the report tokens of all micro-batches of a step: then accumulated gradients equal those of one large
    batch, however ragged the micro-batches are. Equals `model(**batch).loss` for a single batch.
    """
    logits, labels = report_logits(model, batch)
    loss = F.cross_entropy(
        logits.flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORED,
        reduction="mean" if tokens is None else "sum",
    )
    return loss if tokens is None else loss / tokens


def report_logits(model, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (n, t, vocabulary) and labels (n, t) of the batch's t report positions, `IGNORED` where a report has ended."""
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    labels = batch["labels"]
    prompt = int((labels != IGNORED).any(0).nonzero()[0])          # all prompts are alike, so all reports start here
    kept = labels.shape[1] - prompt + 1                            # each token is told from the position before it
    return model(**inputs, logits_to_keep=kept, use_cache=False).logits[:, :-1], labels[:, prompt:]
