"""The loss: cross-entropy over the report's tokens, from logits of a few of them at a time.

PaliGemma's vocabulary has 257,216 entries: logits of a whole batch, with their gradient, would be most of a step's memory.
The output layer is frozen, so the gradient of a part's states is all that is wanted of its logits, and is taken at once.
"""

import torch
from torch.nn import functional as F

from explainmyxray.model.batches import IGNORED

ENTRIES = 2**25   # of logits held at once: 130 tokens of PaliGemma's vocabulary, 0.4 GB with gradient


def report_loss(model, batch: dict[str, torch.Tensor], tokens: torch.Tensor | int | None = None) -> torch.Tensor:
    """Mean cross-entropy of a batch's report tokens; with `tokens`, their sum divided by that number.

    `tokens` counts the report tokens of all micro-batches of a step: then accumulated gradients equal those of one large
    batch, however ragged the micro-batches are. Equals `model(**batch).loss` for a single batch.
    """
    base = getattr(model, "module", model).get_base_model()   # within DistributedDataParallel, too
    states, told = report_states(model, base, batch)
    frozen = not any(weight.requires_grad for weight in base.lm_head.parameters())
    total = LossInParts.apply(states, told, base) if frozen else token_losses(states, told, base).sum()
    return total / (len(told) if tokens is None else tokens)


def report_states(model, base, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """The last hidden state before each report token (m, hidden), and the token (m,), over all rows of the batch."""
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    states = []
    hook = base.model.register_forward_hook(lambda module, args, output: states.append(output.last_hidden_state))
    try:
        model(**inputs, logits_to_keep=1, use_cache=False)   # as little as the output layer can be asked for
    finally:
        hook.remove()
    told = batch["labels"][:, 1:]   # each token is told from the position before it
    return states[0][:, :-1][told != IGNORED], told[told != IGNORED]


def token_losses(states: torch.Tensor, told: torch.Tensor, base) -> torch.Tensor:
    """(m,) cross-entropy of each token in float32, with the output layer as PaliGemma, or PaliGemma 2 with its cap, has it."""
    logits = base.lm_head(states.to(base.lm_head.weight.dtype)).float()
    if cap := getattr(base.config.get_text_config(), "final_logit_softcapping", None):
        logits = torch.tanh(logits / cap) * cap
    return F.cross_entropy(logits, told, reduction="none")


class LossInParts(torch.autograd.Function):
    """The sum of `token_losses` over parts of at most `ENTRIES` logits, and its gradient of `states`."""

    @staticmethod
    def forward(ctx, states: torch.Tensor, told: torch.Tensor, base) -> torch.Tensor:
        rows = max(1, ENTRIES // base.lm_head.weight.shape[0])
        gradients, total = [], torch.zeros((), device=states.device)
        for part, tokens in zip(states.split(rows), told.split(rows)):
            with torch.set_grad_enabled(ctx.needs_input_grad[0]):
                part = part.detach().requires_grad_(ctx.needs_input_grad[0])
                loss = token_losses(part, tokens, base).sum()
            total += loss.detach()
            if ctx.needs_input_grad[0]:
                gradients += torch.autograd.grad(loss, part)
        if gradients:
            ctx.save_for_backward(torch.cat(gradients))
        return total

    @staticmethod
    def backward(ctx, above: torch.Tensor):
        return ctx.saved_tensors[0] * above, None, None


def report_logits(model, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (n, t, vocabulary) and labels (n, t) of the batch's t report positions, `IGNORED` where a report has ended."""
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    labels = batch["labels"]
    prompt = int((labels != IGNORED).any(0).nonzero()[0])          # all prompts are alike, so all reports start here
    kept = labels.shape[1] - prompt + 1                            # each token is told from the position before it
    return model(**inputs, logits_to_keep=kept, use_cache=False).logits[:, :-1], labels[:, prompt:]
