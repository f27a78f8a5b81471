"""Decoding where image and prompt are computed once a row, however many texts are drawn from it.

For `model.generate(custom_generate=...)`: transformers prepares inputs, cache and logits processors as for
its own decoding, which would compute image and prompt anew for each text and carry finished rows to the end.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import GenerationConfig, LogitsProcessorList

# What a decoding step takes a row of, beside the cache. Rows are the last dimension but one: Qwen's positions
# have three dimensions.
ROW_INPUTS = ("attention_mask", "token_type_ids", "mm_token_type_ids", "position_ids")
MIN_FINISHED = 0.25  # share of finished rows from which they are taken out: to copy the cache costs time, too


@dataclass(frozen=True)
class SharedPromptDecoding:
    """Greedy decoding of each row, or `texts` sampled for each, from the row's seed.

    A sampled token is the one at which the cumulated probabilities pass a random number. The numbers of a row
    depend on its seed alone, so that its texts are the same in any batch.
    """

    texts: int = 1
    seeds: Sequence[int] | None = None  # one a row; None: greedy

    def __call__(
        self,
        model,
        input_ids: torch.Tensor,
        logits_processor: LogitsProcessorList,
        generation_config: GenerationConfig,
        **model_kwargs,
    ) -> torch.Tensor:
        """(texts, length) the prompts' tokens and those after them, texts of a row side by side."""
        # 1) Image and prompt, once a row.
        inputs = model.prepare_inputs_for_generation(input_ids, is_first_iteration=True, **model_kwargs)
        outputs = model(**inputs, return_dict=True)

        # 2) From here on a row for each text.
        rows = torch.arange(len(input_ids), device=input_ids.device).repeat_interleave(self.texts)
        outputs.past_key_values.batch_repeat_interleave(self.texts)
        logits = outputs.logits[:, -1].float()[rows]
        sequences = input_ids[rows]
        model_kwargs = _select_rows(model_kwargs, rows)

        max_length = generation_config.max_length
        ends = torch.tensor(_as_list(generation_config.eos_token_id), device=input_ids.device)
        padding = generation_config.pad_token_id
        result = sequences.new_full((len(rows), max_length), padding)
        result[:, : input_ids.shape[1]] = sequences
        uniform = self._draw(max_length - input_ids.shape[1], input_ids.device)

        # 3) A token for each row that is left: `active` are their places in the result.
        active = torch.arange(len(rows), device=input_ids.device)
        finished = torch.zeros(len(rows), dtype=torch.bool, device=input_ids.device)
        for length in range(input_ids.shape[1], max_length):
            scores = logits_processor(sequences, logits)
            numbers = None if uniform is None else uniform[active, length - input_ids.shape[1]]
            tokens = choose(scores, numbers).masked_fill(finished, padding)
            result[active, length] = tokens
            finished = finished | torch.isin(tokens, ends)
            num_finished = int(finished.sum())
            if num_finished == len(active) or length + 1 == max_length:
                break

            # 4) The next logits; finished rows are taken out from time to time.
            sequences = torch.cat([sequences, tokens[:, None]], 1)
            model_kwargs = model._update_model_kwargs_for_generation(outputs, model_kwargs)
            if num_finished >= MIN_FINISHED * len(active):
                left = (~finished).nonzero().flatten()
                active, finished, sequences = active[left], finished[left], sequences[left]
                model_kwargs = _select_rows(model_kwargs, left)
                model_kwargs["past_key_values"].batch_select_indices(left)
            inputs = model.prepare_inputs_for_generation(sequences, next_sequence_length=1, **model_kwargs)
            outputs = model(**inputs, return_dict=True)
            logits = outputs.logits[:, -1].float()
        return result[:, : length + 1]

    def _draw(self, count: int, device: torch.device) -> torch.Tensor | None:
        """(texts, count) a random number for each token of each text."""
        if self.seeds is None:
            return None
        generators = [torch.Generator().manual_seed(seed) for seed in self.seeds]
        return torch.cat([torch.rand(self.texts, count, generator=each) for each in generators]).to(device)


def choose(scores: torch.Tensor, uniform: torch.Tensor | None) -> torch.Tensor:
    """(n,) the likeliest token of each row of `scores` (n, vocabulary), or the one its random number says."""
    if uniform is None:
        return scores.argmax(-1)
    cumulated = scores.softmax(-1).cumsum(-1, dtype=torch.float64)
    # Not the number itself, for rounding leaves the sum a little off 1. `right`: no token of probability 0.
    thresholds = uniform[:, None].double() * cumulated[:, -1:]
    return torch.searchsorted(cumulated, thresholds, right=True).flatten()


def _select_rows(model_kwargs: dict, rows: torch.Tensor) -> dict:
    """`model_kwargs` with so many of the rows; pixels, which the first forward alone takes, are left out."""
    selected = {}
    for name, value in model_kwargs.items():
        if not isinstance(value, torch.Tensor):
            selected[name] = value
        elif name in ROW_INPUTS:
            selected[name] = value.index_select(value.dim() - 2, rows)
    return selected


def _as_list(ends: int | list[int]) -> list[int]:
    return ends if isinstance(ends, list) else [ends]
