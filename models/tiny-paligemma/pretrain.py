"""Make the tiny base: a PaliGemma of two million parameters that sees phantoms and speaks English about them.

    cd models/tiny-paligemma && dvc repro      # which runs PYTHONPATH=../../stages python pretrain.py

It stands for what PaliGemma's own pretraining gives, so that the pipeline runs anywhere: the tokenizer is
learnt from `corpus.yaml`, the vision tower learns to recognise the findings of phantoms, and projector and
language model learn to caption and describe what it sees and to answer questions about it. Neither the report
templates nor the pipeline's phantoms are ever seen.
"""

import itertools
import json
import math
import os
import random
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from ruamel.yaml import YAML
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, trainers
from torch.nn import functional as F
from tqdm import tqdm
from transformers import (
    GemmaTokenizer,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    PaliGemmaProcessor,
    SiglipImageProcessor,
    get_cosine_schedule_with_warmup,
)

import english
from explainmyxray.sources import phantom
from explainmyxray.tables import split_labels

HERE = Path(__file__).parent
FINDINGS = tuple(english.CORPUS["findings"])


@dataclass(frozen=True)
class Lesson:
    """One part of pretraining: `loss`, a function of rows of the data, trains `learners`."""

    name: str
    learners: list[torch.nn.Module]
    loss: Callable[[np.ndarray], torch.Tensor]


def main() -> None:
    params = YAML(typ="safe").load(HERE / "params.yaml")
    torch.manual_seed(params["seed"])
    processor = make_processor(params)
    model = make_model(params, processor)
    print(f"{model.num_parameters():,} parameters, {len(processor.tokenizer):,} tokens", flush=True)
    images, findings = draw_phantoms(params)
    held_out = len(images) // 50
    figures = []
    for number, settings in enumerate(params["rounds"]):
        seed = params["seed"] + number
        losses = train(model, processor, images[held_out:], findings[held_out:], params, settings, seed)
        rescale(model, params["norm_scale"])
        model.to(torch.bfloat16).float()  # as it will be loaded
        score = question_f1(model, processor, images[:held_out], findings[:held_out])
        save(model, processor)
        figures.append(losses | score)
        print(json.dumps(figures[-1]), flush=True)
        # The next round goes on from the weights as they were saved.
        rescale(model.float(), 1 / params["norm_scale"])
    (HERE / "pretrain.json").write_text(json.dumps(figures, indent=2) + "\n")


def make_processor(params: dict) -> PaliGemmaProcessor:
    """PaliGemma's processor over a Gemma tokenizer of few pieces, which spells all else in bytes."""
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    learner = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    learner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    learner.train_from_iterator(
        sample_texts(params),
        trainers.BpeTrainer(
            vocab_size=params["tokenizer"]["vocab_size"],
            show_progress=False,
            initial_alphabet=["\n", *map(chr, range(33, 127))],
            special_tokens=special + [f"<0x{byte:02X}>" for byte in range(256)],
        ),
    )
    pieces = json.loads(learner.to_str())["model"]
    tokenizer = GemmaTokenizer(vocab=pieces["vocab"], merges=[tuple(merge) for merge in pieces["merges"]])
    tokenizer.add_special_tokens(
        {"additional_special_tokens": [AddedToken("<image>", normalized=False, special=True)]}
    )
    vision = params["vision"]
    image_processor = SiglipImageProcessor(
        size={"height": vision["image_size"], "width": vision["image_size"]}
    )
    image_processor.image_seq_length = (vision["image_size"] // vision["patch_size"]) ** 2
    return PaliGemmaProcessor(image_processor, tokenizer)


def sample_texts(params: dict) -> Iterator[str]:
    """What the tokenizer learns from: prompts and answers about each combination of findings of phantoms."""
    rng = random.Random(params["seed"])
    combinations = [split_labels(labels) for labels in phantom.MIX]
    for _ in range(200):
        for findings in combinations:
            for task in params["lessons"]["tasks"]:
                yield from english.lesson(task, findings, params["lessons"]["named"], rng)


def make_model(params: dict, processor: PaliGemmaProcessor) -> PaliGemmaForConditionalGeneration:
    """The shape of `params` with fresh weights; the patch embedding starts as a cosine transform."""
    tokenizer, text = processor.tokenizer, params["text"]
    ids = {
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    model = PaliGemmaForConditionalGeneration(
        PaliGemmaConfig(
            vision_config={
                "model_type": "siglip_vision_model",
                "vision_use_head": False,
                "projection_dim": text["hidden_size"],
                **params["vision"],
            },
            text_config={
                "model_type": "gemma",
                "vocab_size": len(tokenizer),
                "max_position_embeddings": 1024,
                **text,
                **ids,
            },
            image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
            projection_dim=text["hidden_size"],
            **ids,
        )
    )
    embedding = model.model.vision_tower.embeddings.patch_embedding  # (hidden, 3 channels, side, side)
    hidden_size, channels, side, _ = embedding.weight.shape
    filters = cosine_filters(hidden_size, side)
    embedding.weight.data = filters[:, None].expand_as(embedding.weight) / channels
    return model


def cosine_filters(count: int, side: int) -> torch.Tensor:
    """(count, side, side): the lowest frequencies of a 2D cosine transform, of root mean square 1 / side."""
    basis = torch.cos(math.pi / side * torch.outer(torch.arange(side), torch.arange(side) + 0.5))
    frequencies = itertools.product(range(side), repeat=2)
    lowest = sorted(frequencies, key=lambda uv: (uv[0] ** 2 + uv[1] ** 2, uv))[:count]
    filters = torch.stack([torch.outer(basis[u], basis[v]) for u, v in lowest])
    return filters / filters.square().mean((1, 2), keepdim=True).sqrt() / side


def draw_phantoms(params: dict) -> tuple[np.ndarray, list[frozenset[str]]]:
    """(n, side, side) bytes and n sets of findings."""
    image_size = params["vision"]["image_size"]
    films = list(phantom.sample(phantom.PRETRAINING, params["seed"], params["phantoms"], image_size))
    with ProcessPoolExecutor() as pool:
        drawn = pool.map(_draw, films, chunksize=64)
        images = np.stack(list(tqdm(drawn, total=len(films), desc="drawing phantoms", mininterval=5)))
    return images, [split_labels(film.study["labels"]) for film in films]


def _draw(film: phantom.PhantomFilm) -> np.ndarray:
    return np.asarray(film.read())


def train(model, processor, images, findings, params: dict, settings: dict, seed: int) -> dict[str, float]:
    """A round: the tower learns to recognise findings, then projector and language model to speak of them.

    The tower stays as it is while they do, so that each image passes through it once more. Both see rotated
    and unevenly exposed films, as tuning does: an adapter cannot learn from what its base does not see.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    augment = partial(to_pixels, rng=rng, **params["augment"])
    losses = {}
    if "see" in settings:
        see = recognition(model, images, findings, augment)
        losses["see_loss"] = optimise(see, settings["see"], len(images), rng)
    features = tower_features(model, images, augment)
    cut_words = settings["speak"].get("cut_words", 0)
    speak = speech(model, processor, features, findings, params["lessons"], cut_words, random.Random(seed))
    losses["speak_loss"] = optimise(speak, settings["speak"], len(images), rng)
    return losses


def recognition(model, images, findings, augment) -> Lesson:
    """The binary cross-entropy of each finding, predicted from the tower's mean feature."""
    # A head for this part alone: it is not kept.
    head = torch.nn.Linear(model.config.vision_config.hidden_size, len(FINDINGS))
    targets = torch.zeros(len(findings), len(FINDINGS))
    for row, present in enumerate(findings):
        targets[row, [FINDINGS.index(name) for name in present]] = 1

    def loss(rows):
        features = model.model.vision_tower(augment(images[rows])).last_hidden_state
        return F.binary_cross_entropy_with_logits(head(features.mean(1)), targets[rows])

    return Lesson("see", [model.model.vision_tower, head], loss)


def speech(
    model, processor, features, findings, lessons: dict, cut_words: float, rng: random.Random
) -> Lesson:
    """The cross-entropy of a text about each row; all of a batch are of one task, so of about one length."""
    tasks, named, tokenizer = lessons["tasks"], lessons["named"], processor.tokenizer

    def loss(rows):
        task = rng.choices(list(tasks), list(tasks.values()))[0]
        image_features = model.model.multi_modal_projector(features[rows].float())
        prompts, answers = [], []
        for row in rows:
            prompt, answer = english.lesson(task, findings[row], named, rng)
            prompts.append(prompt)
            answers.append(answer_ids(tokenizer, answer, cut_words, rng))
        return text_loss(model, processor, image_features, prompts, answers)

    return Lesson("speak", [model.model.multi_modal_projector, model.model.language_model], loss)


def answer_ids(tokenizer, answer: str, cut_words: float, rng: random.Random) -> list[int]:
    """The tokens of an answer and its end; a share `cut_words` of the words is cut, and spelt part by part.

    Pieces that are always merged into longer ones (`▁chan` into `▁change`) never occur in the text. What
    was never learnt is never written, and other words need it (`▁chan|ges`). BPE dropout (Provilkov et al.
    2020, arXiv:1910.13267) shows such pieces as well; the library's own can't be seeded.
    """
    parts = [""]
    for word in re.findall(r"\s*\S+", answer):
        if cut_words and len(word) > 2 and rng.random() < cut_words:
            at = rng.randrange(2, len(word))
            parts[-1] += word[:at]
            parts.append(word[at:])
        else:
            parts[-1] += word
    encoded = tokenizer(parts, add_special_tokens=False).input_ids
    return [*itertools.chain.from_iterable(encoded), tokenizer.eos_token_id]


@torch.inference_mode()
def tower_features(model, images: np.ndarray, augment) -> torch.Tensor:
    """(n, patches, hidden) of the tower, in half precision to save memory."""
    features = []
    for start in tqdm(range(0, len(images), 128), desc="features", mininterval=10):
        pixels = augment(images[start : start + 128])
        features.append(model.model.vision_tower(pixels).last_hidden_state.half())
    return torch.cat(features)


def optimise(lesson: Lesson, settings: dict, num_rows: int, rng: np.random.Generator) -> float:
    """AdamW with warm-up and a cosine schedule over random rows; returns the last loss, smoothed."""
    parameters = []
    for module in lesson.learners:
        parameters += module.train().parameters()
    optimizer = torch.optim.AdamW(
        parameters, settings["learning_rate"], (0.9, 0.98), weight_decay=0.05, fused=True
    )
    schedule = get_cosine_schedule_with_warmup(optimizer, settings["warmup_steps"], settings["steps"])
    smoothed = None
    with tqdm(range(settings["steps"]), desc=lesson.name, mininterval=10) as progress:
        for _ in progress:
            loss = lesson.loss(rng.integers(num_rows, size=settings["batch_size"]))
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            smoothed = loss.item() if smoothed is None else 0.98 * smoothed + 0.02 * loss.item()
            progress.set_postfix_str(f"loss {smoothed:.4f}", refresh=False)
    return round(smoothed, 4)


def text_loss(
    model, processor, image_features: torch.Tensor, texts: list[str], answers: list[list[int]]
) -> torch.Tensor:
    """Cross-entropy of the answers' tokens, each after its image (projected features) and its prompt."""
    # 1) Image tokens, prompt and answer of each lesson, padded on the right.
    tokenizer = processor.tokenizer
    image_tokens = "<image>" * processor.image_seq_length
    prompts = [
        tokenizer(f"{image_tokens}<bos>{text}\n", add_special_tokens=False).input_ids for text in texts
    ]
    length = max(len(prompt) + len(answer) for prompt, answer in zip(prompts, answers))
    input_ids = torch.full((len(texts), length), tokenizer.pad_token_id)
    attention_mask = torch.zeros_like(input_ids)
    # 0: image and prompt, attended in both directions; 1: answer.
    token_type_ids = torch.zeros_like(input_ids)
    for row, (prompt, answer) in enumerate(zip(prompts, answers)):
        end = len(prompt) + len(answer)
        input_ids[row, :end] = torch.tensor(prompt + answer)
        attention_mask[row, :end] = 1
        token_type_ids[row, len(prompt) : end] = 1
    # 2) The model without its vision tower, whose features are computed once for all steps.
    hidden_states = model.model(
        input_ids=input_ids,
        attention_mask=attention_mask,
        token_type_ids=token_type_ids,
        mm_encoder_outputs={"image": SimpleNamespace(pooler_output=image_features)},
    ).last_hidden_state
    # 3) Logits of the answers alone: the state at a position predicts the next token.
    is_target = token_type_ids[:, 1:].bool()
    logits = model.lm_head(hidden_states[:, :-1][is_target])
    return F.cross_entropy(logits, input_ids[:, 1:][is_target])


def to_pixels(
    images: np.ndarray, rng: np.random.Generator | None = None, rotation: float = 0, exposure: float = 0
) -> torch.Tensor:
    """(n, side, side) bytes as (n, 3, side, side) from -1 to 1.

    With `rng`, mirrored and shifted at random, rotated by up to `rotation` degrees (what comes in is black),
    and brightness and contrast changed by a share of up to `exposure`.
    """
    pixels = torch.from_numpy(images).float().div(255)
    if rng is not None:
        mirrored = torch.from_numpy(rng.random(len(pixels)) < 0.5)
        pixels[mirrored] = pixels[mirrored].flip(-1)
        shift = tuple(int(offset) for offset in rng.integers(-8, 9, 2))
        pixels = pixels.roll(shift, (1, 2))
    if rotation or exposure:
        angle = torch.from_numpy(rng.uniform(-rotation, rotation, len(pixels))).float().deg2rad()
        factors = rng.uniform(1 - exposure, 1 + exposure, (2, len(pixels), 1, 1))
        brightness, contrast = torch.from_numpy(factors).float()
        zero = 0 * angle
        matrix = torch.stack([angle.cos(), -angle.sin(), zero, angle.sin(), angle.cos(), zero], 1)
        grid = F.affine_grid(matrix.view(-1, 2, 3), (len(pixels), 1, *pixels.shape[1:]), align_corners=False)
        pixels = F.grid_sample(pixels[:, None], grid, align_corners=False)[:, 0] * brightness
        mean = pixels.mean((1, 2), keepdim=True)
        pixels = ((pixels - mean) * contrast + mean).clamp(0, 1)
    return pixels.mul(2).sub(1)[:, None].expand(-1, 3, -1, -1)


@torch.inference_mode()
def question_f1(model, processor, images, findings) -> dict[str, float]:
    """F1 over findings of the yes/no questions, asked about phantoms kept out of training."""
    model.eval()
    tokenizer = processor.tokenizer
    yes, no = (tokenizer.convert_tokens_to_ids(tokenizer.tokenize(word))[0] for word in ("yes", "no"))
    image_tokens = "<image>" * processor.image_seq_length
    true_positives = false_positives = false_negatives = 0
    for start in range(0, len(images), 32):
        pixels = to_pixels(images[start : start + 32])
        for name in FINDINGS:
            term = english.FINDINGS[name]["terms"][0]
            prompt = english.CORPUS["prompts"]["question"].format(term=term)
            ids = tokenizer(f"{image_tokens}<bos>{prompt}\n", add_special_tokens=False).input_ids
            input_ids = torch.tensor([ids] * len(pixels))
            logits = model(
                input_ids=input_ids,
                pixel_values=pixels,
                token_type_ids=torch.zeros_like(input_ids),
                logits_to_keep=1,
            ).logits[:, -1]
            answered_yes = (logits[:, yes] > logits[:, no]).tolist()
            for answered, present in zip(answered_yes, findings[start : start + 32]):
                true_positives += answered and name in present
                false_positives += answered and name not in present
                false_negatives += not answered and name in present
    f1 = 2 * true_positives / (2 * true_positives + false_positives + false_negatives)
    return {"phantoms_held_out": len(images), "question_f1": round(f1, 4)}


@torch.no_grad()
def rescale(model, factor: float) -> None:
    """Multiply what each norm hands to its projections by `factor` and divide those projections by it.

    The model computes what it did. What changes is how far an adapter moves it: LoRA's update acts on the
    norm's output, and at one learning rate its effect grows with the width (Yang and Hu 2021,
    arXiv:2011.14522). 128 dimensions are not 2,048: without this, the guide's learning rate would hardly move
    the tiny base. Of the factors tried, test F1 after 160 of 500 steps: 24: 0.74, 48: 0.81; after 220: 64:
    0.90, 96: 0.88. A power of two costs bfloat16 nothing. The tower is left as it is.
    """
    for layer in model.model.language_model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        _scale_norm(layer.input_layernorm, factor)
        _scale(1 / factor, attention.q_proj, attention.k_proj, attention.v_proj)
        _scale_norm(layer.post_attention_layernorm, factor)
        _scale(1 / factor, mlp.gate_proj, mlp.up_proj)
        # Values are passed on linearly: the output projection's input grows in the same way.
        _scale(factor, attention.v_proj)
        _scale(1 / factor, attention.o_proj)


def _scale_norm(norm, factor: float) -> None:
    norm.weight.copy_((1 + norm.weight) * factor - 1)  # Gemma's norm multiplies by 1 + weight


def _scale(factor: float, *projections) -> None:
    for projection in projections:
        projection.weight.mul_(factor)


def save(model, processor) -> None:
    """Config, weights and processor in the layout of any hub repository."""
    model.to(torch.bfloat16).save_pretrained(HERE)  # the precision that Gemma's weights come in
    processor.save_pretrained(HERE)
    size = os.path.getsize(HERE / "model.safetensors")
    if size > 8_000_000:
        raise SystemExit(f"model.safetensors has {size:,} bytes; the repository holds 8 MB at most")


if __name__ == "__main__":
    main()
