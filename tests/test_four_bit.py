"""4-bit weights on a CPU: decoded as they were coded, whatever the CPU, and left alone by inference."""

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit, get_4bit_type, quantize_4bit
from PIL import Image

from explainmyxray.model.adapter import add_lora
from explainmyxray.model.base import load_base, load_processor
from explainmyxray.model.decoded_weights import decode_weights, forget_decoded_weights
from explainmyxray.training.loss import report_loss
from explainmyxray.training.memory import checkpointable_layers
from explainmyxray.training.memory_plan import enable_gradient_checkpointing
from test_loss import MODEL, REPORTS, SETTINGS, gradients


def load():
    torch.manual_seed(0)
    return add_lora(
        load_base(MODEL, SETTINGS.quantization), SETTINGS.lora.model_copy(update={"dropout": 0.0})
    )


# Three of the tiny base's tower, and SigLIP's fc2.
@pytest.mark.parametrize("shape", [(160, 160), (160, 480), (128, 256), (1152, 4304)])
@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
def test_weights_are_decoded_as_they_were_coded(shape, quant_type):
    load()
    weights = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    packed, state = quantize_4bit(weights, quant_type=quant_type)
    codes = torch.stack([packed.flatten() >> 4, packed.flatten() & 15], 1).flatten()[: weights.numel()].long()
    constants = state.absmax.repeat_interleave(state.blocksize)[: weights.numel()]
    expected = (get_4bit_type(quant_type, device="cpu")[codes] * constants).view(shape)
    torch.testing.assert_close(dequantize_4bit(packed, state), expected, rtol=1e-6, atol=0)


def test_a_validation_changes_neither_weights_nor_gradients(monkeypatch):
    """On any CPU that says to have AVX512-BF16, whether it does or not."""
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: True)
    model = load()
    weights = {name: weight.clone() for name, weight in model.named_parameters()}
    batch = load_processor(MODEL).training_batch(
        [(Image.new("L", (224, 224), 90), report) for report in REPORTS]
    )

    report_loss(model.train(), batch).backward()
    before = gradients(model)
    with torch.inference_mode():
        report_loss(model.eval(), batch)
    report_loss(model.train(), batch).backward()
    after = gradients(model)
    assert before.keys() == after.keys()
    for name, gradient in before.items():
        assert torch.equal(gradient, after[name]), name
    for name, weight in model.named_parameters():
        assert torch.equal(weight, weights[name]), name


@pytest.mark.parametrize("num_stored", [1, 8])
def test_weights_decoded_once_change_no_byte_of_a_step(num_stored):
    """Whatever is recomputed: loss and gradients with dropout, of all layers decoded, some, and none."""
    model = load().train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.05
    layers = checkpointable_layers(model)
    batch = load_processor(MODEL).training_batch(
        [(Image.new("L", (224, 224), 90), report) for report in REPORTS]
    )
    results = []
    for decoded in ([], layers[2:5], [model]):
        forget_decoded_weights(model)
        for part in decoded:
            decode_weights(part)
        enable_gradient_checkpointing(model, num_stored)
        torch.manual_seed(1)
        loss = report_loss(model, batch)
        loss.backward()
        results.append({"loss": loss.detach(), **gradients(model)})
    for result in results[1:]:
        for name, value in results[0].items():
            assert torch.equal(value, result[name]), name
