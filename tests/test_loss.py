"""The loss at the report's positions is the plain recipe's loss: same value, same gradients."""

from pathlib import Path

import pandas as pd
import pytest
import torch
from PIL import Image

from explainmyxray.errors import UserError
from explainmyxray.model import inputs
from explainmyxray.model.adapter import add_lora
from explainmyxray.model.base import load_base, load_processor
from explainmyxray.model.inputs import TrainingCollator, prompt_length
from explainmyxray.settings import load_settings
from explainmyxray.training import loss
from explainmyxray.training.batches import ReportDataset, truncate_reports
from explainmyxray.training.loss import report_loss

ROOT = Path(__file__).resolve().parents[1]
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
    model = add_lora(
        load_base(MODEL, SETTINGS.quantization), SETTINGS.lora.model_copy(update={"dropout": 0.0})
    )
    for name, weight in adapter_weights(model).items():
        if "lora_B" in name:  # zero at the start, which would hide lora_A's gradients
            torch.nn.init.normal_(weight, std=0.02)
    return model.train()


@pytest.fixture(scope="module")
def samples():
    shades = torch.arange(4).tolist()
    return [
        (Image.new("RGB", (224, 224), (60 * shade, 40, 90)), report) for shade, report in zip(shades, REPORTS)
    ]


def adapter_weights(model) -> dict[str, torch.Tensor]:
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}


def gradients(model) -> dict[str, torch.Tensor]:
    found = {name: weight.grad.clone() for name, weight in adapter_weights(model).items()}
    model.zero_grad()
    return found


def same(first: dict, second: dict) -> None:
    for name, gradient in first.items():
        rounding = 3e-4 * gradient.abs().max().item()  # of a float32 sum, relative to its largest entries
        torch.testing.assert_close(
            gradient, second[name], rtol=1e-4, atol=rounding, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("checkpointing", [False, True])
def test_loss_and_gradients_are_the_plain_recipe_s(model, processor, samples, checkpointing):
    batch = TrainingCollator(processor)(samples)
    plain = model(**batch).loss
    plain.backward()
    expected = gradients(model)
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    found = report_loss(model, batch)
    found.backward()
    model.gradient_checkpointing_disable()
    torch.testing.assert_close(found, plain, rtol=1e-5, atol=1e-6)
    same(gradients(model), expected)


@pytest.mark.parametrize("cap", [None, 3.0])
def test_logits_of_a_few_tokens_at_a_time_give_the_same_loss_and_gradients(
    model, processor, samples, monkeypatch, cap
):
    """With the cap on logits that PaliGemma 2 has, too."""
    text, most = model.get_base_model().config.get_text_config(), []
    monkeypatch.setattr(text, "final_logit_softcapping", cap, raising=False)
    batch = TrainingCollator(processor)(samples)
    plain = model(**batch).loss
    plain.backward()
    expected = gradients(model)
    monkeypatch.setattr(loss, "MAX_CHUNK_LOGITS", 5 * text.vocab_size)
    hook = model.get_base_model().lm_head.register_forward_hook(
        lambda head, args, logits: most.append(logits.numel())
    )
    found = report_loss(model, batch)
    found.backward()
    hook.remove()
    torch.testing.assert_close(found, plain, rtol=1e-5, atol=1e-6)
    same(gradients(model), expected)
    assert len(most) > 3 and max(most) == 5 * text.vocab_size  # of four rows' 26 tokens and more


def test_an_output_layer_that_is_trained_gets_its_gradient(processor, samples):
    lora = SETTINGS.lora.model_copy(update={"dropout": 0.0, "target_modules": ["q_proj", "lm_head"]})
    torch.manual_seed(0)
    model = add_lora(load_base(MODEL, SETTINGS.quantization), lora).train()
    batch = TrainingCollator(processor)(samples)
    model(**batch).loss.backward()
    expected = gradients(model)
    report_loss(model, batch).backward()
    same(gradients(model), expected)
    assert any("lm_head" in name and gradient.any() for name, gradient in expected.items())


def test_accumulated_ragged_micro_batches_are_one_large_batch(model, processor, samples):
    collate = TrainingCollator(processor)
    whole = collate(samples)
    report_loss(model, whole).backward()
    expected = gradients(model)
    tokens = (whole["labels"] != inputs.IGNORE_INDEX).sum()
    for part in (samples[:1], samples[1:]):
        report_loss(model, collate(part), tokens).backward()
    same(gradients(model), expected)


def test_only_the_adapter_is_trained_and_only_in_float32(model):
    assert adapter_weights(model)
    assert all(
        "lora_" in name and weight.dtype == torch.float32 for name, weight in adapter_weights(model).items()
    )


def test_labels_hold_the_report_and_its_end(processor, samples):
    batch = TrainingCollator(processor)(samples)
    for row, report in zip(batch["labels"], REPORTS):
        assert processor.tokenizer.decode(row[row != inputs.IGNORE_INDEX]) == report + "<eos>"
    assert batch["input_ids"].shape[1] == prompt_length(processor) + int(
        (batch["labels"] != inputs.IGNORE_INDEX).sum(1).max()
    )


def test_a_report_too_long_is_counted_and_keeps_its_end(processor, samples):
    room = 12
    length = prompt_length(processor) + room + 1
    fitted, tokens = truncate_reports(REPORTS, processor, length)
    assert [each > room + 1 for each in tokens] == [False, True, False, False] and fitted[0] == REPORTS[0]
    labels = TrainingCollator(processor)([(samples[0][0], fitted[1])])["labels"][0]
    assert labels[-1] == processor.tokenizer.eos_token_id and REPORTS[1].startswith(fitted[1])
    with pytest.raises(UserError, match="model.max_length"):
        truncate_reports(REPORTS, processor, prompt_length(processor))


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
