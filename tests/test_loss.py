"""The loss at the report's positions is the plain recipe's loss: same value, same gradients."""

import math
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from conftest import ROOT
from explainmyxray.errors import UserError
from explainmyxray.model.adapter import add_lora
from explainmyxray.model.base import load_base, load_processor
from explainmyxray.model.families.family import IGNORE_INDEX
from explainmyxray.settings import load_settings
from explainmyxray.training import loss
from explainmyxray.training.batches import ReportDataset, truncate_reports
from explainmyxray.training.loss import ChunkedCrossEntropy, report_loss

SETTINGS = load_settings(ROOT / "params.yaml")
MODEL = SETTINGS.model.model_copy(update={"id": str(ROOT / "models/tiny-paligemma")})
REPORTS = [
    "No effusion.",
    "Findings: the heart is enlarged. Impression: cardiomegaly and an effusion.",
    "Mass.",
    "A nodule is seen.",
]


@pytest.fixture(scope="module")
def processor():
    return load_processor(MODEL)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    lora = SETTINGS.lora.model_copy(update={"dropout": 0.0})
    model = add_lora(load_base(MODEL, SETTINGS.quantization), lora)
    for name, weight in adapter_weights(model).items():
        if "lora_B" in name:  # zero at the start, which would hide lora_A's gradients
            torch.nn.init.normal_(weight, std=0.02)
    return model.train()


@pytest.fixture(scope="module")
def samples():
    images = [Image.new("RGB", (224, 224), (60 * shade, 40, 90)) for shade in range(4)]
    return list(zip(images, REPORTS))


def adapter_weights(model) -> dict[str, torch.Tensor]:
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}


def gradients(model) -> dict[str, torch.Tensor]:
    found = {name: weight.grad.clone() for name, weight in adapter_weights(model).items()}
    model.zero_grad()
    return found


def assert_same(first: dict, second: dict) -> None:
    for name, gradient in first.items():
        rounding = 3e-4 * gradient.abs().max().item()  # of a float32 sum, relative to its largest entries
        torch.testing.assert_close(
            gradient, second[name], rtol=1e-4, atol=rounding, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("checkpointing", [False, True])
def test_loss_and_gradients_are_the_plain_recipe_s(model, processor, samples, checkpointing):
    batch = processor.training_batch(samples)
    plain = model(**batch).loss
    plain.backward()
    expected = gradients(model)
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    found = report_loss(model, batch)
    found.backward()
    model.gradient_checkpointing_disable()
    torch.testing.assert_close(found, plain, rtol=1e-5, atol=1e-6)
    assert_same(gradients(model), expected)


@pytest.mark.parametrize("soft_cap", [None, 3.0])
def test_logits_of_a_few_tokens_at_a_time_give_the_same_loss_and_gradients(
    model, processor, samples, monkeypatch, soft_cap
):
    """With the soft cap on logits that PaliGemma 2 has, too."""
    text_config = model.get_base_model().config.get_text_config()
    monkeypatch.setattr(text_config, "final_logit_softcapping", soft_cap, raising=False)
    batch = processor.training_batch(samples)
    plain = model(**batch).loss
    plain.backward()
    expected = gradients(model)

    monkeypatch.setattr(loss, "MAX_CHUNK_LOGITS", 5 * text_config.vocab_size)
    sizes = []
    hook = model.get_base_model().lm_head.register_forward_hook(
        lambda head, args, logits: sizes.append(logits.numel())
    )
    found = report_loss(model, batch)
    found.backward()
    hook.remove()
    torch.testing.assert_close(found, plain, rtol=1e-5, atol=1e-6)
    assert_same(gradients(model), expected)
    assert len(sizes) > 3  # the four rows have more than 15 tokens
    assert max(sizes) == 5 * text_config.vocab_size


class TensorCoreHead(torch.nn.Module):
    """An output layer in fp16 as a GPU computes it: sums of products in float32, rounded at the end."""

    def __init__(self, weight: torch.Tensor):
        super().__init__()
        self.weight = torch.nn.Parameter(weight.half(), requires_grad=False)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return F.linear(hidden_states.float(), self.weight.float()).half()


def test_a_gradient_in_fp16_keeps_the_unlikely_tokens():
    """Of probability 0.99 in a vocabulary of 2^16: the others' gradients are near fp16's least, 6e-8."""
    vocabulary, loss_scale = 2**16, 65536 / 1500
    weight = torch.zeros(vocabulary, 2)
    weight[0, 0] = 1.0  # the target
    weight[1:, 1] = 1.0  # all others
    hidden_states = torch.tensor([[math.log(99 * (vocabulary - 1)), 0.0]]).half().requires_grad_()
    config = SimpleNamespace(vocab_size=vocabulary)
    head = TensorCoreHead(weight)
    base = SimpleNamespace(
        get_output_embeddings=lambda: head, config=SimpleNamespace(get_text_config=lambda: config)
    )
    total = ChunkedCrossEntropy.apply(hidden_states, torch.tensor([0]), base)
    (total * loss_scale).backward()

    in_float32 = hidden_states.detach().float().requires_grad_()
    F.cross_entropy(F.linear(in_float32, weight), torch.tensor([0]), reduction="sum").backward()
    assert in_float32.grad[0, 0].item() == pytest.approx(-0.01, rel=0.05)  # probability less one
    found = hidden_states.grad.float() / loss_scale
    torch.testing.assert_close(found, in_float32.grad, rtol=2e-3, atol=0)


def test_an_output_layer_that_is_trained_gets_its_gradient(processor, samples):
    lora = SETTINGS.lora.model_copy(update={"dropout": 0.0, "target_modules": ["q_proj", "lm_head"]})
    torch.manual_seed(0)
    model = add_lora(load_base(MODEL, SETTINGS.quantization), lora).train()
    batch = processor.training_batch(samples)
    model(**batch).loss.backward()
    expected = gradients(model)
    report_loss(model, batch).backward()
    assert_same(gradients(model), expected)
    assert any("lm_head" in name and gradient.any() for name, gradient in expected.items())


def test_accumulated_ragged_micro_batches_are_one_large_batch(model, processor, samples):
    collate = processor.training_batch
    whole = collate(samples)
    report_loss(model, whole).backward()
    expected = gradients(model)
    num_tokens = (whole["labels"] != IGNORE_INDEX).sum()
    for part in (samples[:1], samples[1:]):
        report_loss(model, collate(part), num_tokens).backward()
    assert_same(gradients(model), expected)


def test_only_the_adapter_is_trained_and_only_in_float32(model):
    weights = adapter_weights(model)
    assert weights
    assert all("lora_" in name for name in weights)
    assert {weight.dtype for weight in weights.values()} == {torch.float32}


def test_labels_hold_the_report_and_its_end(processor, samples):
    batch = processor.training_batch(samples)
    in_report = batch["labels"] != IGNORE_INDEX
    for row, mask, report in zip(batch["labels"], in_report, REPORTS):
        assert processor.tokenizer.decode(row[mask]) == report + "<eos>"
    longest = int(in_report.sum(1).max())
    assert batch["input_ids"].shape[1] == processor.prompt_length + longest


def test_a_report_too_long_is_counted_and_keeps_its_end(processor, samples):
    _, lengths = truncate_reports(REPORTS, processor, SETTINGS.model.max_length)
    max_report_length = max(lengths) - 2
    max_length = processor.prompt_length + max_report_length
    reports, lengths = truncate_reports(REPORTS, processor, max_length)
    assert [length > max_report_length for length in lengths] == [False, True, False, False]
    assert reports[0] == REPORTS[0]
    assert REPORTS[1].startswith(reports[1])
    image = samples[0][0]
    labels = processor.training_batch([(image, reports[1])])["labels"][0]
    assert labels[-1] == processor.tokenizer.eos_token_id
    assert len(labels) == max_length
    with pytest.raises(UserError, match="model.max_length"):
        truncate_reports(REPORTS, processor, processor.prompt_length)


def test_augmentation_depends_on_seed_epoch_and_row_alone(tmp_path, processor):
    Image.linear_gradient("L").resize((224, 224)).save(tmp_path / "a.png")
    rows = pd.DataFrame({"image": ["a.png"] * 2, "report": REPORTS[:2]})

    def pixels(row, epoch, seed=1, noise=0):
        torch.manual_seed(noise)
        dataset = ReportDataset(rows, tmp_path, processor, 384, SETTINGS.augment, seed)
        dataset.epoch = epoch
        return dataset[row][0].tobytes()

    assert pixels(0, 0) == pixels(0, 0, noise=5)
    assert len({pixels(0, 0), pixels(0, 1), pixels(1, 0), pixels(0, 0, seed=2)}) == 4
