"""Generating reports in batches: greedy, by beam search or sampled. Prompts are of one length, so nothing is padded."""

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path

import torch
from PIL import Image
from tqdm import tqdm
from transformers import LogitsProcessor, LogitsProcessorList, PaliGemmaProcessor

from explainmyxray import settings
from explainmyxray.gpu import gpu_memory_errors
from explainmyxray.model.inputs import open_image, prompt_batch

# A piece that stands for something else than its letters: <image>, <loc0597>, <seg039>, <unused7>, <start_of_turn>, <table>.
CONTROL_PIECE = re.compile(r"<[^<>\s]+>")
BYTE_PIECE = re.compile(r"<0x[0-9A-F]{2}>")  # of a character that has no piece of its own: text


@gpu_memory_errors()
def generate(
    model,
    processor: PaliGemmaProcessor,
    images: Path,
    names: Sequence[str],
    generation: settings.Evaluate,
    desc: str = "generating",
) -> list[str]:
    """One report for each file `names` of the folder `images`, in order, `generation.batch_size` at a time."""
    reports = []
    for batch in image_batches(images, names, generation.batch_size, desc):
        reports += generate_batch(model, processor, batch, generation)
    return reports


def generate_batch(
    model, processor: PaliGemmaProcessor, images: list[Image.Image], generation: settings.Evaluate
) -> list[str]:
    """One report an image, all in one batch: of `generation.num_beams` beams, and `max_new_tokens` tokens at most."""
    return generate_texts(
        model,
        processor,
        images,
        max_new_tokens=generation.max_new_tokens,
        num_beams=generation.num_beams,
        do_sample=False,
        top_k=None,
        top_p=None,
        temperature=None,
    )


@torch.inference_mode()
def generate_texts(
    model, processor: PaliGemmaProcessor, images: list[Image.Image], **generate_kwargs
) -> list[str]:
    """The text after image and prompt, all images in one batch; `generate_kwargs` are those of `model.generate`."""
    batch = {name: value.to(model.device) for name, value in prompt_batch(images, processor).items()}
    sequences = model.generate(**batch, logits_processor=words_only(model, processor), **generate_kwargs)
    new_tokens = sequences[:, batch["input_ids"].shape[1] :]
    return [text.strip() for text in processor.batch_decode(new_tokens, skip_special_tokens=True)]


def words_only(model, processor: PaliGemmaProcessor) -> LogitsProcessorList:
    """What keeps `model.generate` to words: tuning leaves the base's other pieces a small probability of their own."""
    ends = {processor.tokenizer.eos_token_id}
    configured = model.generation_config.eos_token_id  # of a chat model several: <end_of_turn> among them
    ends |= set(configured) if isinstance(configured, list) else {configured}
    vocabulary = model.get_output_embeddings().weight.shape[0]
    return LogitsProcessorList(
        [SuppressPieces(no_words(processor.tokenizer, vocabulary, frozenset(ends - {None})))]
    )


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
    """Gives the pieces of a mask (vocabulary,) no probability, in greedy decoding, beams and samples alike."""

    def __init__(self, suppressed: torch.Tensor):
        self.suppressed = suppressed

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.suppressed = self.suppressed.to(scores.device)
        return scores.masked_fill(self.suppressed, -torch.inf)


@gpu_memory_errors()
@torch.inference_mode()
def image_features(
    model, processor: PaliGemmaProcessor, images: Path, names: Sequence[str], batch_size: int
) -> torch.Tensor:
    """(n, hidden) mean patch features of the vision tower, in float32 on the CPU."""
    tower = model.get_base_model().model.vision_tower
    features = []
    for batch in image_batches(images, names, batch_size, "image features"):
        pixels = processor.image_processor(batch, return_tensors="pt").pixel_values
        patches = tower(pixels.to(model.device, tower.dtype)).last_hidden_state
        features.append(patches.mean(1).float().cpu())
    return torch.cat(features)


def image_batches(
    images: Path, names: Sequence[str], batch_size: int, desc: str
) -> Iterator[list[Image.Image]]:
    """The files `names` of the folder `images`, `batch_size` at a time, with a progress bar."""
    with tqdm(total=len(names), desc=desc, unit="image", mininterval=2) as progress:
        for start in range(0, len(names), batch_size):
            batch = [open_image(images, name) for name in names[start : start + batch_size]]
            yield batch
            progress.update(len(batch))
