"""Where fp16 overflows, a residual stream in float32 does not: on a CPU, where fp16 is slow."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText

from conftest import ROOT
from explainmyxray.generation import GREEDY, generate_texts
from explainmyxray.model import base as base_module
from explainmyxray.model.adapter import add_lora
from explainmyxray.model.base import load_base, load_processor
from explainmyxray.model.families import family_of
from explainmyxray.settings import load_settings
from explainmyxray.training.loss import report_loss
from tiny_bases import save_tiny_base

SETTINGS = load_settings(ROOT / "params.yaml")
LOSS_SCALE = 1024.0
REPORTS = ("No effusion.", "Findings: There is a pleural effusion. Impression: Pleural effusion.")
LANGUAGE_MODEL = r".*language_model.*_proj"


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, str]:
    """Tiny bases whose families ask for the stream, and `large`: a Gemma 3 that leaves fp16's range."""
    folder = tmp_path_factory.mktemp("bases")
    found = {}
    for name in ("paligemma2", "gemma3", "qwen3-vl"):
        found[name] = str(save_tiny_base(name, folder / name))
        save_in_fp16_values(AutoModelForImageTextToText.from_pretrained(found[name]), folder / name)
    shutil.copytree(folder / "gemma3", folder / "large")
    large = AutoModelForImageTextToText.from_pretrained(folder / "large")
    with torch.no_grad():
        for layer in large.model.language_model.layers:
            # The input of down_proj is beyond 65,504, and so is what is added to the stream.
            layer.mlp.gate_proj.weight *= 16
            layer.mlp.up_proj.weight *= 2**18
            layer.post_feedforward_layernorm.weight.fill_(40_000)
    save_in_fp16_values(large, folder / "large")
    return found | {"large": str(folder / "large")}


def save_in_fp16_values(model, folder: Path) -> None:
    """So that float32 and fp16 quantise and compute with the very same weights."""
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(weight.half())
    model.save_pretrained(folder)


@pytest.fixture
def load(folders, monkeypatch):
    """A function that loads one of the bases with LoRA, computing in a type, in 4 bits or not."""

    def loaded(name: str, dtype: torch.dtype, four_bit: bool = True):
        monkeypatch.setattr(base_module, "compute_dtype", lambda quantization: dtype)
        model = SETTINGS.model.model_copy(update={"id": folders[name]})
        quantization = SETTINGS.quantization.model_copy(update={"load_in_4bit": four_bit})
        lora = SETTINGS.lora.model_copy(update={"dropout": 0.0, "target_modules": LANGUAGE_MODEL})
        torch.manual_seed(0)
        tuned = add_lora(load_base(model, quantization), lora)
        for weight_name, weight in tuned.named_parameters():
            if "lora_B" in weight_name:
                torch.nn.init.normal_(weight, std=0.02)
        return tuned, load_processor(model, 224)

    return loaded


def images() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 255, (224, 224), np.uint8)) for _ in REPORTS]


def step(model, processor) -> tuple[float, torch.Tensor]:
    """Loss and gradients of a training step as Trainer takes it with `fp16`: autocast and a loss scale."""
    batch = processor.training_batch(list(zip(images(), REPORTS)))
    in_fp16 = model.get_input_embeddings().weight.dtype == torch.float16
    with torch.autocast("cpu", torch.float16, enabled=in_fp16):
        loss = report_loss(model.train(), batch)
    (LOSS_SCALE * loss).backward()
    gradients = [weight.grad.flatten() for weight in model.parameters() if weight.requires_grad]
    return loss.item(), torch.cat(gradients) / LOSS_SCALE


@pytest.mark.parametrize("four_bit", [False, True])
@pytest.mark.parametrize("name", ["large", "paligemma2", "gemma3", "qwen3-vl"])
def test_a_step_in_fp16_is_within_1_percent_of_float32(load, name, four_bit):
    expected, expected_gradients = step(*load(name, torch.float32, four_bit))
    found, gradients = step(*load(name, torch.float16, four_bit))
    assert found == pytest.approx(expected, rel=0.01)
    difference = torch.linalg.vector_norm(gradients - expected_gradients)
    assert difference < 0.01 * torch.linalg.vector_norm(expected_gradients)


def test_plain_fp16_overflows_where_ours_is_finite(load, monkeypatch):
    monkeypatch.setattr(base_module, "keep_float32_stream", lambda base: None)
    loss, gradients = step(*load("large", torch.float16))
    assert not (np.isfinite(loss) and gradients.isfinite().all())


def test_the_stream_is_in_float32_and_products_in_fp16(load):
    model, processor = load("large", torch.float16)
    largest, types = [], set()
    for layer in model.get_base_model().get_decoder().layers:
        layer.register_forward_hook(lambda module, args, output: largest.append(output.abs().max().item()))
        layer.mlp.down_proj.base_layer.register_forward_hook(
            lambda module, args, output: types.add((module.weight.quant_state.dtype, output.dtype))
        )
    step(model, processor)
    assert max(largest) > 65_504 and np.isfinite(largest).all()
    assert types == {(torch.float16, torch.float32)}


@pytest.mark.parametrize("name", ["large", "paligemma2", "gemma3", "qwen3-vl"])
def test_generation_without_autocast_is_that_of_float32(load, name):
    written = {}
    for dtype in (torch.float32, torch.float16):
        model, processor = load(name, dtype)
        with torch.inference_mode():
            logits = model.eval()(**processor.prompt_batch(images())).logits[:, -1].float()
        texts = generate_texts(model, processor, images(), max_new_tokens=3, **GREEDY)
        written[dtype] = (logits, texts)
    expected, found = written[torch.float32][0], written[torch.float16][0]
    assert torch.linalg.vector_norm(found - expected) < 0.01 * torch.linalg.vector_norm(expected)
    assert len(written[torch.float16][1]) == len(REPORTS)


def test_the_first_paligemma_s_stream_stays_in_fp16(tmp_path, monkeypatch):
    """Its makers' own notebook trains it in fp16: what is not asked for is not paid for."""
    monkeypatch.setattr(base_module, "compute_dtype", lambda quantization: torch.float16)
    model = SETTINGS.model.model_copy(update={"id": str(ROOT / "models/tiny-paligemma")})
    base = load_base(model, SETTINGS.quantization)
    assert not family_of(base).needs_float32_stream
    assert base.get_input_embeddings()(torch.tensor([[3]])).dtype == torch.float16
