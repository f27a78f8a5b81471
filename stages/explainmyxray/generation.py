"""Generating reports in batches: greedy, by beam search, or
the consensus of sampled ones; sampled ones themselves.

Greedy decoding takes the likeliest first words, and a finding that has more wordings than "normal" loses to
it. The consensus is the sampled report that agrees most with the others: minimum Bayes risk decoding (Kumar &
Byrne 2004), which is less misled by an unlikely mode (Eikema & Aziz 2020, arXiv:2005.10283). Prompts are of
one length, so nothing is padded.
"""

import re
import zlib
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import torch
from PIL import Image
from transformers import EpsilonLogitsWarper, LogitsProcessor, LogitsProcessorList

from explainmyxray import settings
from explainmyxray.gpu import gpu_memory_errors
from explainmyxray.model.families import family_of
from explainmyxray.model.families.family import ReportProcessor
from explainmyxray.model.image_batches import map_batches
from explainmyxray.model.inference_memory import InferencePlan, hold_decoded_weights
from explainmyxray.model.shared_prompt import SharedPromptDecoding
from explainmyxray.reports.labeler import positive_findings

# A piece that stands for something else than its letters: <image>,
# <loc0597>, <seg039>, <unused7>, <start_of_turn>, <table>.
CONTROL_PIECE = re.compile(r"<[^<>\s]+>")
BYTE_PIECE = re.compile(r"<0x[0-9A-F]{2}>")  # of a character that has no piece of its own: text

# Without sampling by transformers, and without a base's own values for it.
GREEDY = {"do_sample": False, "top_k": None, "top_p": None, "temperature": None}

# Sampled reports at once for each image of a batch: they share what takes most memory, image and prompt.
TEXTS_PER_IMAGE = 4


def hold_decoded_for(
    model, processor: ReportProcessor, generation: settings.Evaluate, max_processes: int = 1
) -> InferencePlan:
    """Have a loaded `model` hold as many weights decoded as memory allows beside what `generation` takes, in
    as many processes, up to `max_processes`, as it has room for.
    """
    num_texts = generation.batch_size * max(TEXTS_PER_IMAGE, generation.num_beams)
    return hold_decoded_weights(
        model, processor, generation.batch_size, num_texts, generation.max_new_tokens, max_processes
    )


@gpu_memory_errors()
def generate(
    model,
    processor: ReportProcessor,
    images: Path,
    names: Sequence[str],
    generation: settings.Evaluate,
    desc: str = "generating",
    seed: int = 0,
    num_processes: int = 1,
) -> list[str]:
    """One report for each file `names` of the folder `images`, in order, as `generate_batch` has them.

    `num_processes` as in `map_batches`.
    """

    def decode(batch: list[Image.Image]) -> list[str]:
        return generate_batch(model, processor, batch, generation, seed)

    samples = generation.samples if generation.decoding == "consensus" else 1
    return map_batches(decode, images, names, images_at_once(generation, samples), desc, num_processes)


@gpu_memory_errors()
def sample(
    model,
    processor: ReportProcessor,
    images: Path,
    names: Sequence[str],
    generation: settings.Evaluate,
    desc: str = "sampling",
    seed: int = 0,
    num_processes: int = 1,
) -> list[list[str]]:
    """`generation.samples` reports for each file `names`, as `sample_reports` has them of images."""

    def decode(batch: list[Image.Image]) -> list[list[str]]:
        return sample_reports(model, processor, batch, generation, generation.samples, seed)

    batch_size = images_at_once(generation, generation.samples)
    return map_batches(decode, images, names, batch_size, desc, num_processes)


def generate_batch(
    model,
    processor: ReportProcessor,
    images: list[Image.Image],
    generation: settings.Evaluate,
    seed: int = 0,
) -> list[str]:
    """One report an image, decoded as `generation.decoding` says, of `max_new_tokens` tokens at most.

    `seed` is that of sampled reports; greedy decoding and beams need none.
    """
    if generation.decoding == "consensus":
        sampled = sample_reports(model, processor, images, generation, generation.samples, seed)
        return [consensus(reports) for reports in sampled]
    beams = generation.num_beams if generation.decoding == "beam" else 1
    return generate_texts(
        model,
        processor,
        images,
        max_new_tokens=generation.max_new_tokens,
        num_beams=beams,
        custom_generate=SharedPromptDecoding() if beams == 1 else None,
        **GREEDY,
    )


@torch.inference_mode()
def sample_reports(
    model,
    processor: ReportProcessor,
    images: list[Image.Image],
    generation: settings.Evaluate,
    samples: int,
    seed: int,
) -> list[list[str]]:
    """`samples` reports an image; image and prompt are computed once for all of them.

    A token less likely than `generation.epsilon_cutoff` is never drawn (epsilon sampling: Hewitt et al. 2022,
    arXiv:2210.15191; the best of those that Freitag et al. 2023, arXiv:2305.09860, tried for minimum Bayes
    risk). Each image has random numbers of its own, from `seed` and its pixels: its reports are the same in
    any batch.
    """
    sampled = []
    cutoff = [EpsilonLogitsWarper(generation.epsilon_cutoff)] if generation.epsilon_cutoff else []
    chunk = images_at_once(generation, samples)
    for start in range(0, len(images), chunk):
        some = images[start : start + chunk]
        seeds = [seed + zlib.crc32(image.tobytes()) for image in some]
        texts = generate_texts(
            model,
            processor,
            some,
            cutoff,
            max_new_tokens=generation.max_new_tokens,
            num_beams=1,
            custom_generate=SharedPromptDecoding(samples, seeds),
            **GREEDY,
        )
        sampled += [texts[first : first + samples] for first in range(0, len(texts), samples)]
    return sampled


def images_at_once(generation: settings.Evaluate, samples: int) -> int:
    """Images of one batch that gets `samples` reports each: at most `generation.batch_size`."""
    return min(generation.batch_size, max(1, TEXTS_PER_IMAGE * generation.batch_size // samples))


def consensus(reports: list[str]) -> str:
    """The report whose findings agree most with the others';
    among equal ones, the one whose words do; then the first.
    """
    findings = [positive_findings(report) for report in reports]
    words = [Counter(report.lower().split()) for report in reports]

    def agreement(number: int) -> tuple[float, float]:
        others = [other for other in range(len(reports)) if other != number]
        of_findings = sum(_findings_f1(findings[number], findings[other]) for other in others)
        of_words = sum(_words_f1(words[number], words[other]) for other in others)
        return round(of_findings, 9), round(of_words, 9)  # so that an order of adding decides nothing

    return reports[max(range(len(reports)), key=agreement)]


def _findings_f1(one: frozenset[str], other: frozenset[str]) -> float:
    """F1 of two sets; 1 for two empty ones, which agree."""
    return 2 * len(one & other) / (len(one) + len(other)) if one or other else 1.0


def _words_f1(one: Counter, other: Counter) -> float:
    """F1 of two bags of words; 0 where either is empty."""
    return 2 * (one & other).total() / max(one.total() + other.total(), 1)


@torch.inference_mode()
def generate_texts(
    model,
    processor: ReportProcessor,
    images: list[Image.Image],
    logits_processors: Sequence[LogitsProcessor] = (),
    **generate_kwargs,
) -> list[str]:
    """The text after image and prompt, of words alone, all images in one batch.

    `logits_processors` see the scores of words alone; `generate_kwargs` are those of `model.generate`.
    """
    on_device = {name: value.to(model.device) for name, value in processor.prompt_batch(images).items()}
    logits_processor = LogitsProcessorList([words_only(model, processor), *logits_processors])
    sequences = model.generate(
        **on_device,
        logits_processor=logits_processor,
        eos_token_id=sorted(end_tokens(model, processor)),
        **generate_kwargs,
    )
    new_tokens = sequences[:, on_device["input_ids"].shape[1] :]
    return processor.decode(new_tokens)


def words_only(model, processor: ReportProcessor) -> LogitsProcessor:
    """What keeps `model.generate` to words: tuning leaves the
    base's other pieces a small probability of their own.
    """
    vocabulary = model.get_output_embeddings().weight.shape[0]
    return SuppressPieces(no_words(processor.tokenizer, vocabulary, end_tokens(model, processor)))


def end_tokens(model, processor: ReportProcessor) -> frozenset[int]:
    """The tokens that end a text: the one that the adapter learns, and the base's own."""
    configured = model.generation_config.eos_token_id  # of a chat model several
    ends = set(configured) if isinstance(configured, list) else {configured}
    return frozenset((ends | {processor.end_token_id, processor.tokenizer.eos_token_id}) - {None})


@lru_cache(maxsize=4)
def no_words(tokenizer, vocabulary: int, ends: frozenset[int]) -> torch.Tensor:
    """(vocabulary,) true for each piece that no report can hold; those that end a report, `ends`, are false.

    That is control pieces, special ones and the rows of the output layer that have no piece at all.
    """
    pieces = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    suppressed = torch.ones(vocabulary, dtype=torch.bool)
    for number, piece in enumerate(pieces):
        if piece is None:
            continue
        suppressed[number] = bool(CONTROL_PIECE.fullmatch(piece)) and not BYTE_PIECE.fullmatch(piece)
    suppressed[list(tokenizer.all_special_ids)] = True
    suppressed[list(ends)] = False
    return suppressed


class SuppressPieces(LogitsProcessor):
    """Gives the pieces of a mask (vocabulary,) no probability,
    in greedy decoding, beams and samples alike.
    """

    def __init__(self, suppressed: torch.Tensor):
        self.suppressed = suppressed

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.suppressed = self.suppressed.to(scores.device)
        return scores.masked_fill(self.suppressed, -torch.inf)


@gpu_memory_errors()
def image_features(
    model,
    processor: ReportProcessor,
    images: Path,
    names: Sequence[str],
    batch_size: int,
    num_processes: int = 1,
) -> torch.Tensor:
    """(n, hidden) mean patch features of the vision tower, in float32 on the CPU."""
    family, base = family_of(model), model.get_base_model()

    @torch.inference_mode()
    def mean_features(batch: list[Image.Image]) -> torch.Tensor:
        patches = family.patch_features(base, processor.pixel_batch(batch))
        return patches.mean(1).float().cpu()

    rows = map_batches(mean_features, images, names, batch_size, "image features", num_processes)
    return torch.stack(rows)
