"""The loss: cross-entropy over the report's tokens, from the logits of a few of them at a time.

A vocabulary has up to 262,208 entries: the logits of a whole batch, with their gradient, would be most of
a step's memory. The output layer is frozen, so that all that is wanted of a chunk's logits is the gradient of
its hidden states, which is taken before the next chunk's logits are made.

torch's own `linear_cross_entropy` is no slower and holds less memory (`tests/benchmarks/loss.py`), but it has
no soft cap on the logits, which PaliGemma 2 needs, and its gradients differ in the sixth digit.
"""

from collections.abc import Iterator

import torch
from torch.nn import functional as F

from explainmyxray.model.families.family import IGNORE_INDEX

# Logits held at once: those of 130 tokens of PaliGemma's vocabulary, 0.4 GB with their gradient.
MAX_CHUNK_LOGITS = 2**25

# A chunk's gradient is taken before fp16's loss scale is known. At scale 1, fp16 loses what is below 6e-8:
# the gradient of most logits of a token that the model is sure of. A power of two changes no float32 digit.
GRADIENT_SCALE = 128


def report_loss(
    model, batch: dict[str, torch.Tensor], num_tokens: torch.Tensor | int | None = None
) -> torch.Tensor:
    """Mean cross-entropy of a batch's report tokens; with `num_tokens`, their sum divided by that number.

    `num_tokens` counts the report tokens of all micro-batches of a step: then accumulated gradients equal
    those of one large batch, however ragged the micro-batches are. Equals `model(**batch).loss` for a single
    batch.
    """
    base, hidden_states, targets = _forward(model, batch)
    head_is_frozen = not any(weight.requires_grad for weight in base.get_output_embeddings().parameters())
    if head_is_frozen:
        total = ChunkedCrossEntropy.apply(hidden_states, targets, base)
    else:
        total = _cross_entropy(hidden_states, targets, base).sum()
    return total / (len(targets) if num_tokens is None else num_tokens)


def token_losses(model, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """For each row of a batch the cross-entropy (t,) of its report's t tokens, <eos> among them."""
    base, hidden_states, targets = _forward(model, batch)
    chunks = _chunks(hidden_states, targets, base)
    losses = torch.cat([_cross_entropy(states, tokens, base) for states, tokens in chunks])
    report_lengths = (batch["labels"] != IGNORE_INDEX).sum(1)
    return losses.split(report_lengths.tolist())


def _forward(model, batch: dict[str, torch.Tensor]) -> tuple[torch.nn.Module, torch.Tensor, torch.Tensor]:
    """The base, the hidden state (m, hidden) before each report token, and that token (m,), row after row."""
    # DistributedDataParallel wraps the PEFT model once more.
    base = getattr(model, "module", model).get_base_model()

    # The output layer would compute logits for image and prompt as well. It is asked for a single position,
    # the least that it takes, and its inputs are caught on their way. The whole model is called, not the part
    # below the output layer, for that is the call that DistributedDataParallel and autocast hook into.
    caught = []
    hook = base.base_model.register_forward_hook(
        lambda module, args, output: caught.append(output.last_hidden_state)
    )
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    try:
        model(**inputs, logits_to_keep=1, use_cache=False)
    finally:
        hook.remove()

    # A token is predicted from the position before it, so the last position predicts none.
    hidden_states = caught[0][:, :-1]
    targets = batch["labels"][:, 1:]
    in_report = targets != IGNORE_INDEX
    return base, hidden_states[in_report], targets[in_report]


def _chunks(
    hidden_states: torch.Tensor, targets: torch.Tensor, base
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Hidden states and targets, split so that a part has at most `MAX_CHUNK_LOGITS` logits."""
    size = max(1, MAX_CHUNK_LOGITS // base.config.get_text_config().vocab_size)
    return zip(hidden_states.split(size), targets.split(size))


def _cross_entropy(hidden_states: torch.Tensor, targets: torch.Tensor, base) -> torch.Tensor:
    """(m,) cross-entropy in float32, from the logits that the base computes, with its soft cap if any."""
    head = base.get_output_embeddings()
    logits = head(hidden_states.to(head.weight.dtype)).float()
    soft_cap = getattr(base.config.get_text_config(), "final_logit_softcapping", None)
    if soft_cap:
        logits = torch.tanh(logits / soft_cap) * soft_cap
    return F.cross_entropy(logits, targets, reduction="none")


class ChunkedCrossEntropy(torch.autograd.Function):
    """The sum of the targets' cross-entropies, from at most `MAX_CHUNK_LOGITS` logits at a time.

    The forward pass takes the gradient of the hidden states too; the backward pass has only to multiply it.
    """

    @staticmethod
    def forward(ctx, hidden_states: torch.Tensor, targets: torch.Tensor, base) -> torch.Tensor:
        needs_gradient = ctx.needs_input_grad[0]
        total = torch.zeros((), device=hidden_states.device)
        gradients = []
        for states, tokens in _chunks(hidden_states.detach(), targets, base):
            # Autograd is off inside a Function: it is put on for a graph of this chunk alone.
            with torch.set_grad_enabled(needs_gradient):
                loss = _cross_entropy(states.requires_grad_(needs_gradient), tokens, base).sum()
                scaled_loss = GRADIENT_SCALE * loss
            total += loss.detach()

            # Taking the gradient frees the graph and with it the chunk's logits.
            if needs_gradient:
                gradients += torch.autograd.grad(scaled_loss, states)
        if needs_gradient:
            ctx.save_for_backward(torch.cat(gradients))
        return total

    @staticmethod
    def backward(ctx, output_gradient: torch.Tensor):
        # The two factors first, in float32: dividing an fp16 gradient would lose what its scale has kept.
        (scaled_gradient,) = ctx.saved_tensors
        return scaled_gradient * (output_gradient / GRADIENT_SCALE), None, None
