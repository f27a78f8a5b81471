"""The loss: cross-entropy over the report's tokens, from logits of a few of them at a time.

PaliGemma's vocabulary has 257,216 entries: logits of a whole batch, with their gradient, would be most of a step's memory.
The output layer is frozen, so the gradient of a part's states is all that is wanted of its logits, and is taken at once.
"""

from collections.abc import Iterator

import torch
from torch.nn import functional as F

from explainmyxray.model.inputs import IGNORE_INDEX

MAX_CHUNK_LOGITS = 2**25  # of logits held at once: 130 tokens of PaliGemma's vocabulary, 0.4 GB with gradient


def report_loss(
    model, batch: dict[str, torch.Tensor], tokens: torch.Tensor | int | None = None
) -> torch.Tensor:
    """Mean cross-entropy of a batch's report tokens; with `tokens`, their sum divided by that number.

    `tokens` counts the report tokens of all micro-batches of a step: then accumulated gradients equal those of one large
    batch, however ragged the micro-batches are. Equals `model(**batch).loss` for a single batch.
    """
    base, states, told = _before_tokens(model, batch)
    frozen = not any(weight.requires_grad for weight in base.lm_head.parameters())
    total = ChunkedCrossEntropy.apply(states, told, base) if frozen else _losses(states, told, base).sum()
    return total / (len(told) if tokens is None else tokens)


def token_losses(model, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """For each row of a batch the cross-entropy (t,) of its report's t tokens, <eos> among them, each given all before it."""
    base, states, told = _before_tokens(model, batch)
    losses = torch.cat([_losses(*part, base) for part in _parts(states, told, base)])
    return losses.split((batch["labels"] != IGNORE_INDEX).sum(1).tolist())


def _before_tokens(
    model, batch: dict[str, torch.Tensor]
) -> tuple[torch.nn.Module, torch.Tensor, torch.Tensor]:
    """The base, the last hidden state before each report token (m, hidden), and the token (m,), row after row."""
    base = getattr(model, "module", model).get_base_model()  # within DistributedDataParallel, too
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    states = []
    hook = base.model.register_forward_hook(
        lambda module, args, output: states.append(output.last_hidden_state)
    )
    try:
        model(**inputs, logits_to_keep=1, use_cache=False)  # as little as the output layer can be asked for
    finally:
        hook.remove()
    told = batch["labels"][:, 1:]  # each token is told from the position before it
    return base, states[0][:, :-1][told != IGNORE_INDEX], told[told != IGNORE_INDEX]


def _parts(states: torch.Tensor, told: torch.Tensor, base) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    rows = max(1, MAX_CHUNK_LOGITS // base.config.get_text_config().vocab_size)
    return zip(states.split(rows), told.split(rows))


def _losses(states: torch.Tensor, told: torch.Tensor, base) -> torch.Tensor:
    """(m,) cross-entropy in float32, from logits as PaliGemma has them, or PaliGemma 2 with its cap."""
    logits = base.lm_head(states.to(base.lm_head.weight.dtype)).float()
    if cap := getattr(base.config.get_text_config(), "final_logit_softcapping", None):
        logits = torch.tanh(logits / cap) * cap
    return F.cross_entropy(logits, told, reduction="none")


class ChunkedCrossEntropy(torch.autograd.Function):
    """The sum of the tokens' losses from at most `MAX_CHUNK_LOGITS` logits at a time, and its gradient of the states before them."""

    @staticmethod
    def forward(ctx, states: torch.Tensor, told: torch.Tensor, base) -> torch.Tensor:
        total, gradients, wanted = torch.zeros((), device=states.device), [], ctx.needs_input_grad[0]
        for part, tokens in _parts(states.detach(), told, base):
            with torch.set_grad_enabled(wanted):
                loss = _losses(part.requires_grad_(wanted), tokens, base).sum()
            total += loss.detach()
            gradients += torch.autograd.grad(loss, part) if wanted else ()
        if wanted:
            ctx.save_for_backward(torch.cat(gradients))
        return total

    @staticmethod
    def backward(ctx, above: torch.Tensor):
        return ctx.saved_tensors[0] * above, None, None
