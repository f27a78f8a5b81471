"""LoRA in fewer operations computes what PEFT's does, and drops inputs as `Dropout` does."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from explainmyxray.model import lora_linear
from explainmyxray.model.lora_linear import draw_dropped, use_fused_lora


def make_layer(fused: bool, probability: float = 0.0) -> nn.Module:
    """A linear layer of 24 inputs and 40 outputs with LoRA; the same weights each time."""
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(24, 40))
    config = LoraConfig(r=4, lora_alpha=8, lora_dropout=probability, target_modules=["0"])
    model = get_peft_model(base, config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:  # zero at the start, which would hide lora_A's gradients
                weight.normal_()
    if fused:
        use_fused_lora(model)
    return model


def run(model: nn.Module) -> dict[str, torch.Tensor]:
    """Output of a fixed input, and the gradients of input and adapter."""
    x = torch.randn(2, 5, 24, generator=torch.Generator().manual_seed(1)).requires_grad_()
    output = model(x)
    (output**2).sum().backward()
    found = {"output": output.detach(), "x": x.grad}
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            found[name] = weight.grad
    return found


def test_output_and_gradients_are_peft_s():
    expected, found = run(make_layer(fused=False)), run(make_layer(fused=True))
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-4)


def test_with_dropout_output_and_gradients_are_those_of_the_inputs_that_are_left(monkeypatch):
    """PEFT's layer, shown the same mask, for a probability of a quarter."""
    mask = torch.rand(2, 5, 24, generator=torch.Generator().manual_seed(2)) >= 0.25
    dropped = (~mask).flatten().nonzero().flatten()
    monkeypatch.setattr(lora_linear, "draw_dropped", lambda rows, probability: dropped)
    monkeypatch.setattr(nn.Dropout, "forward", lambda module, x: x * mask / 0.75)
    expected, found = run(make_layer(False, 0.25)), run(make_layer(True, 0.25))
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("mode", ["disabled", "merged", "half"])
def test_elsewhere_it_is_peft_s_own(mode, monkeypatch):
    def run_fused(*args):
        raise AssertionError("the fused layer was used")

    model = make_layer(fused=True)
    x = torch.randn(2, 24)
    expected = make_layer(fused=False)
    monkeypatch.setattr(lora_linear.LoraLinear, "apply", run_fused)
    if mode == "disabled":
        with model.disable_adapter(), expected.disable_adapter():
            assert torch.equal(model(x), expected(x))
    elif mode == "merged":
        model.merge_adapter()
        expected.merge_adapter()
        assert torch.equal(model(x), expected(x))
    else:
        model, expected, x = model.bfloat16(), expected.bfloat16(), x.bfloat16()
        assert torch.equal(model(x), expected(x))


@pytest.mark.parametrize("probability", [0.05, 0.5, 0.95])
def test_each_position_is_dropped_with_the_probability_and_without_regard_to_the_others(probability):
    torch.manual_seed(0)
    rows = torch.empty(40, 50)
    draws = 2000
    masks = torch.zeros(draws, rows.numel())
    for mask in masks:
        dropped = draw_dropped(rows, probability)
        assert torch.equal(dropped, dropped.unique())
        mask[dropped] = 1
    deviation = (probability * (1 - probability)) ** 0.5
    # Of a position, of neighbours together, and of a draw's count: within five standard errors of what
    # they should be.
    assert (masks.mean(0) - probability).abs().max() < 5 * deviation / draws**0.5
    centred = (masks - probability) / deviation
    of_neighbours = (centred[:, 1:] * centred[:, :-1]).mean()
    assert abs(of_neighbours) < 5 / masks.numel() ** 0.5
    assert masks.sum(1).var() == pytest.approx(rows.numel() * deviation**2, rel=0.2)
    assert abs(masks.mean() - probability) < 5 * deviation / masks.numel() ** 0.5


def test_the_same_seed_drops_the_same():
    rows = torch.empty(10, 10)
    torch.manual_seed(3)
    first = draw_dropped(rows, 0.1)
    torch.manual_seed(3)
    assert torch.equal(draw_dropped(rows, 0.1), first)
