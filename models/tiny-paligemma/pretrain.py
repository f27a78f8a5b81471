"""Make the tiny base: a PaliGemma of two million parameters that can see phantoms and speak English about them.

    cd models/tiny-paligemma && dvc repro

It stands for what PaliGemma's own pretraining gives, so that the pipeline runs anywhere: the tokenizer is learnt from
`corpus.yaml`, the tower learns to tell the findings of phantoms, and projector and language model learn to caption and describe
what it sees and to answer questions about it. Neither the report templates nor the pipeline's phantoms are ever seen.
"""

import json
import math
import os
import random
import sys
from collections.abc import Callable
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

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1] / "stages"))

import english  # noqa: E402
from explainmyxray.sources import phantom  # noqa: E402
from explainmyxray.tables import split_labels  # noqa: E402

FINDINGS = tuple(english.CORPUS["findings"])


@dataclass(frozen=True)
class Lesson:
    """What is learnt in one part of pretraining: `loss` of rows of the data trains `learners`."""

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
    figures = train(model, processor, images[held_out:], findings[held_out:], params)
    rescale(model, params["norm_scale"])
    model.to(torch.bfloat16).float()  # as it will be loaded
    figures |= check(model, processor, images[:held_out], findings[:held_out], params)
    save(model, processor)
    (HERE / "pretrain.json").write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps(figures, indent=2))


def make_processor(params: dict) -> PaliGemmaProcessor:
    """PaliGemma's processor over a Gemma tokenizer of few pieces; what no piece spells falls back to bytes."""
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    learner = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    learner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    rng = random.Random(params["seed"])
    combinations = [split_labels(labels) for labels in phantom.MIX]
    lessons = (
        part
        for _ in range(200)
        for each in combinations
        for task in params["speak"]["tasks"]
        for part in english.lesson(task, each, rng)
    )
    learner.train_from_iterator(
        lessons,
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


def make_model(params: dict, processor: PaliGemmaProcessor) -> PaliGemmaForConditionalGeneration:
    """The shape of `params` with fresh weights, the patch embedding as a cosine transform: patches start out legible."""
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
    embedding = model.model.vision_tower.embeddings.patch_embedding
    embedding.weight.data = (
        cosine_filters(*embedding.weight.shape[:3:2])[:, None].expand_as(embedding.weight) / 3
    )
    return model


def cosine_filters(count: int, side: int) -> torch.Tensor:
    """(count, side, side): the two-dimensional cosine transform's lowest frequencies, each of mean square 1 / side."""
    basis = torch.cos(math.pi / side * torch.outer(torch.arange(side), torch.arange(side) + 0.5))
    lowest = sorted(
        ((u, v) for u in range(side) for v in range(side)), key=lambda uv: (uv[0] ** 2 + uv[1] ** 2, uv)
    )[:count]
    filters = torch.stack([torch.outer(basis[u], basis[v]) for u, v in lowest])
    return filters / filters.square().mean((1, 2), keepdim=True).sqrt() / side


def draw_phantoms(params: dict) -> tuple[np.ndarray, list[frozenset[str]]]:
    """(n, side, side) bytes and n sets of findings."""
    films = list(
        phantom.sample(
            phantom.PRETRAINING, params["seed"], params["phantoms"], params["vision"]["image_size"]
        )
    )
    with ProcessPoolExecutor() as pool:
        drawn = pool.map(_draw, films, chunksize=64)
        images = np.stack(list(tqdm(drawn, total=len(films), desc="drawing phantoms", mininterval=5)))
    return images, [split_labels(film.study["labels"]) for film in films]


def _draw(film: phantom.PhantomFilm) -> np.ndarray:
    return np.asarray(film.read())


def train(model, processor, images, findings, params: dict) -> dict[str, float]:
    """Two rounds: the tower learns to tell the findings, then projector and language model, on its features, to speak of them.

    The tower stays as it is while they do, so that each image passes through it once a round. The second round shows turned and
    unevenly exposed films, as tuning does, and asks for more short answers: most tokens of a description say nothing of the image.
    """
    torch.manual_seed(params["seed"])
    picks = np.random.default_rng(params["seed"])
    losses = {}
    for see, speak in (("see", "speak"), ("see_turned", "drill")):
        look = partial(to_pixels, rng=picks, **params[see].get("augment", {}))
        losses[f"{see}_loss"] = optimise(
            recognition(see, model, images, findings, look), params[see], len(images), picks
        )
        features = tower_features(model, images, look)
        losses[f"{speak}_loss"] = optimise(
            speech(speak, model, processor, features, findings, params), params[speak], len(images), picks
        )
    return losses


def recognition(name: str, model, images, findings, look) -> Lesson:
    """Rows to the binary cross-entropy of their findings, told from the tower's mean feature."""
    head = torch.nn.Linear(
        model.config.vision_config.hidden_size, len(FINDINGS)
    )  # left behind after pretraining
    targets = torch.tensor([[name in each for name in FINDINGS] for each in findings], dtype=torch.float32)

    def loss(rows):
        features = model.model.vision_tower(look(images[rows])).last_hidden_state
        return F.binary_cross_entropy_with_logits(head(features.mean(1)), targets[rows])

    return Lesson(name, [model.model.vision_tower, head], loss)


def speech(name: str, model, processor, features, findings, params: dict) -> Lesson:
    """Rows to the cross-entropy of a text about each, all of one task so that they are of about one length."""
    tasks, rng = params[name]["tasks"], random.Random(params["seed"])

    def loss(rows):
        task = rng.choices(list(tasks), list(tasks.values()))[0]
        seen = SimpleNamespace(pooler_output=model.model.multi_modal_projector(features[rows].float()))
        return text_loss(model, processor, seen, [english.lesson(task, findings[row], rng) for row in rows])

    return Lesson(name, [model.model.multi_modal_projector, model.model.language_model], loss)


@torch.inference_mode()
def tower_features(model, images: np.ndarray, look) -> torch.Tensor:
    """(n, patches, hidden) of the tower, in half precision to save memory."""
    starts = tqdm(range(0, len(images), 128), desc="features", mininterval=10)
    return torch.cat(
        [
            model.model.vision_tower(look(images[start : start + 128])).last_hidden_state.half()
            for start in starts
        ]
    )


def optimise(lesson: Lesson, settings: dict, count: int, picks: np.random.Generator) -> float:
    """AdamW with warm-up and a cosine over random rows; returns the smoothed last loss."""
    parameters = [each for part in lesson.learners for each in part.train().parameters()]
    optimizer = torch.optim.AdamW(
        parameters, settings["learning_rate"], (0.9, 0.98), weight_decay=0.05, fused=True
    )
    schedule = get_cosine_schedule_with_warmup(optimizer, settings["warmup_steps"], settings["steps"])
    recent = None
    with tqdm(range(settings["steps"]), desc=lesson.name, mininterval=10) as progress:
        for _ in progress:
            loss = lesson.loss(picks.integers(count, size=settings["batch_size"]))
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            recent = loss.item() if recent is None else 0.98 * recent + 0.02 * loss.item()
            progress.set_postfix_str(f"loss {recent:.4f}", refresh=False)
    return round(recent, 4)


def text_loss(model, processor, seen, lessons: list[tuple[str, str]]) -> torch.Tensor:
    """Cross-entropy of the answers, each after its image (`seen`, the tower's output) and its prompt."""
    tokenizer, image = processor.tokenizer, "<image>" * processor.image_seq_length
    prompts = [
        tokenizer(f"{image}<bos>{prompt}\n", add_special_tokens=False).input_ids for prompt, _ in lessons
    ]
    answers = [tokenizer(f"{answer}<eos>", add_special_tokens=False).input_ids for _, answer in lessons]
    length = max(len(a) + len(b) for a, b in zip(prompts, answers))
    ids = torch.full((len(lessons), length), tokenizer.pad_token_id)
    mask, kinds = torch.zeros_like(ids), torch.zeros_like(ids)
    for row, (prompt, answer) in enumerate(zip(prompts, answers)):
        total = len(prompt) + len(answer)
        ids[row, :total], mask[row, :total] = torch.tensor(prompt + answer), 1
        kinds[row, len(prompt) : total] = 1
    hidden = model.model(
        input_ids=ids, attention_mask=mask, token_type_ids=kinds, mm_encoder_outputs={"image": seen}
    ).last_hidden_state
    spoken = kinds[:, 1:].bool()
    return F.cross_entropy(model.lm_head(hidden[:, :-1][spoken]), ids[:, 1:][spoken])


def to_pixels(
    images: np.ndarray, rng: np.random.Generator | None = None, rotation: float = 0, exposure: float = 0
) -> torch.Tensor:
    """(n, side, side) bytes as (n, 3, side, side) from -1 to 1.

    With `rng`, mirrored and shifted at random, turned by up to `rotation` degrees (what comes in is black), and brighter
    or darker, with more or less contrast, by a share of up to `exposure`.
    """
    pixels = torch.from_numpy(images).float().div(255)
    if rng is not None:
        mirrored = torch.from_numpy(rng.random(len(pixels)) < 0.5)
        pixels[mirrored] = pixels[mirrored].flip(-1)
        pixels = pixels.roll(tuple(int(n) for n in rng.integers(-8, 9, 2)), (1, 2))
    if rotation or exposure:
        angle = torch.from_numpy(rng.uniform(-rotation, rotation, len(pixels))).float().deg2rad()
        brightness, contrast = torch.from_numpy(
            rng.uniform(1 - exposure, 1 + exposure, (2, len(pixels), 1, 1))
        ).float()
        turn = torch.stack(
            [angle.cos(), -angle.sin(), 0 * angle, angle.sin(), angle.cos(), 0 * angle], 1
        ).view(-1, 2, 3)
        grid = F.affine_grid(turn, (len(pixels), 1, *pixels.shape[1:]), align_corners=False)
        pixels = F.grid_sample(pixels[:, None], grid, align_corners=False)[:, 0] * brightness
        mean = pixels.mean((1, 2), keepdim=True)
        pixels = ((pixels - mean) * contrast + mean).clamp(0, 1)
    return pixels.mul(2).sub(1)[:, None].expand(-1, 3, -1, -1)


@torch.inference_mode()
def check(model, processor, images, findings, params: dict) -> dict[str, float]:
    """F1 over findings of the yes/no questions, put about phantoms kept out of training."""
    model.eval()
    tokenizer = processor.tokenizer
    yes, no = (tokenizer.convert_tokens_to_ids(tokenizer.tokenize(word))[0] for word in ("yes", "no"))
    hits = wrong = missed = 0
    for start in range(0, len(images), 32):
        pixels, truth = to_pixels(images[start : start + 32]), findings[start : start + 32]
        for name in FINDINGS:
            prompt = english.CORPUS["prompts"]["question"].format(
                term=english.CORPUS["findings"][name]["terms"][0]
            )
            text = "<image>" * processor.image_seq_length + f"<bos>{prompt}\n"
            ids = torch.tensor([tokenizer(text, add_special_tokens=False).input_ids] * len(pixels))
            logits = model(
                input_ids=ids, pixel_values=pixels, token_type_ids=torch.zeros_like(ids), logits_to_keep=1
            ).logits[:, -1]
            for said, shown in zip((logits[:, yes] > logits[:, no]).tolist(), truth):
                hits += said and name in shown
                wrong += said and name not in shown
                missed += not said and name in shown
    return {"phantoms_held_out": len(images), "question_f1": round(2 * hits / (2 * hits + wrong + missed), 4)}


@torch.no_grad()
def rescale(model, factor: float) -> None:
    """Multiply what each norm hands to its projections by `factor` and divide those projections by it.

    The model computes what it did. What changes is how far an adapter moves it: LoRA's update acts on the norm's output, and
    at one learning rate its effect grows with the width (Yang and Hu 2021, arXiv:2011.14522). 128 dimensions are not
    2,048: without this, the guide's learning rate would hardly move the tiny base. Of the factors tried, test F1 after 160 of
    500 steps: 24: 0.74, 48: 0.81; after 220: 64: 0.90, 96: 0.88. A power of two costs bfloat16 nothing. The tower is left as it is.
    """
    for layer in model.model.language_model.layers:
        for norm, users in (
            (layer.input_layernorm, (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj)),
            (layer.post_attention_layernorm, (layer.mlp.gate_proj, layer.mlp.up_proj)),
        ):
            norm.weight.copy_((1 + norm.weight) * factor - 1)  # Gemma's norm multiplies by 1 + weight
            _divide(users, factor)
        _widen(layer.self_attn.v_proj, layer.self_attn.o_proj, factor)


def _divide(projections, factor: float) -> None:
    for projection in projections:
        projection.weight.div_(factor)


def _widen(first, second, factor: float) -> None:
    first.weight.mul_(factor)
    second.weight.div_(factor)


def save(model, processor) -> None:
    """Config, weights and processor in the layout of any hub repository."""
    model.to(torch.bfloat16).save_pretrained(HERE)  # the precision that Gemma's weights come in
    processor.save_pretrained(HERE)
    size = os.path.getsize(HERE / "model.safetensors")
    if size > 8_000_000:
        raise SystemExit(f"model.safetensors has {size:,} bytes; the repository holds 8 MB at most")


if __name__ == "__main__":
    main()
