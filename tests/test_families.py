"""What holds for every base: five tiny ones with random weights, each of a true configuration's kind."""

import json
import re
import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from dvc.utils.cli_parse import to_path_overrides
from dvc.utils.hydra import apply_overrides
from peft import PeftModel
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, LlamaConfig

from conftest import ROOT, SMALL, run_stage, write_params
from explainmyxray.errors import UserError
from explainmyxray.explaining.attribution import attribute
from explainmyxray.generation import GREEDY, generate_texts
from explainmyxray.model.adapter import add_lora, load_adapter, save_adapter, trainable_by_part
from explainmyxray.model.base import check_base, load_base, load_processor
from explainmyxray.model.families import family_of
from explainmyxray.model.families.family import IGNORE_INDEX, ReportProcessor
from explainmyxray.model.shared_prompt import SharedPromptDecoding
from explainmyxray.model.tuned_on import save_tuned_on
from explainmyxray.settings import Lora, load_settings
from explainmyxray.training.loss import report_loss, token_losses
from explainmyxray.training.memory_plan import enable_gradient_checkpointing
from explainmyxray.training.trainer import ReportTrainer
from tiny_bases import NAMES, save_tiny_base

SETTINGS = load_settings(ROOT / "params.yaml")
IMAGE_SIZES = dict.fromkeys(NAMES, 224) | {"paligemma-448": 448}
REPORTS = ("No effusion.", "Findings: There is a pleural effusion. Impression: Pleural effusion.", "A mass.")

# What ends a report, and what an earlier position sees of a later one, as each model's authors have it.
ENDS = {"gemma3": "<end_of_turn>", "qwen3-vl": "<|im_end|>"}
SEES_LATER = {
    "paligemma-224": {"image", "prompt"},
    "paligemma-448": {"image", "prompt"},
    "paligemma2": {"image", "prompt"},
    "gemma3": {"image"},
    "qwen3-vl": set(),
}


@dataclass(frozen=True)
class Bench:
    """A tiny base with fresh LoRA weights, and three films of noise with their reports."""

    name: str
    folder: str
    model: PeftModel
    processor: ReportProcessor
    images: list[Image.Image]

    @property
    def samples(self) -> list[tuple[Image.Image, str]]:
        return list(zip(self.images, REPORTS))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The folder of each base."""
    folder = tmp_path_factory.mktemp("bases")
    return {name: str(save_tiny_base(name, folder / name)) for name in NAMES}


@pytest.fixture(scope="module", params=NAMES)
def bench(request, saved) -> Bench:
    name = request.param
    size = IMAGE_SIZES[name]
    base = check_base(SETTINGS.model.model_copy(update={"id": saved[name]}), size)
    torch.manual_seed(0)
    lora = SETTINGS.lora.model_copy(update={"dropout": 0.0})
    model = add_lora(load_base(base, SETTINGS.quantization), lora)
    for weight_name, weight in model.named_parameters():
        if "lora_B" in weight_name:  # zero at the start, which would hide lora_A's gradients
            torch.nn.init.normal_(weight, std=0.2)
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 255, (size, size), np.uint8)) for _ in REPORTS]
    return Bench(name, saved[name], model.eval(), load_processor(base, size), images)


def gradients(model) -> dict[str, torch.Tensor]:
    found = {name: weight.grad for name, weight in model.named_parameters() if weight.requires_grad}
    model.zero_grad()
    return found


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_loss_and_gradients_are_the_model_s_own(bench, mode):
    model = bench.model.train(mode == "train")
    batch = bench.processor.training_batch(bench.samples)
    own = model(**batch).loss
    own.backward()
    expected = gradients(model)
    found = report_loss(model, batch)
    found.backward()
    model.eval()
    torch.testing.assert_close(found, own, rtol=1e-5, atol=1e-6)
    for name, gradient in gradients(model).items():
        assert gradient is not None and expected[name].any(), name
        rounding = 1e-4 * expected[name].abs().max().item()
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=rounding)


def test_labels_are_the_report_and_its_end(bench):
    batch = bench.processor.training_batch(bench.samples)
    for row, tokens, report in zip(batch["labels"], batch["input_ids"], REPORTS):
        positions = (row != IGNORE_INDEX).nonzero().flatten()
        assert positions[0] == bench.processor.prompt_length
        assert positions.tolist() == list(range(int(positions[0]), int(positions[-1]) + 1))
        assert torch.equal(row[positions], tokens[positions])
        assert bench.processor.tokenizer.decode(row[positions]) == report + ENDS.get(bench.name, "<eos>")


def test_the_prompt_is_what_the_processor_s_own_template_makes_of_it(bench):
    found = bench.processor.prompt_batch(bench.images[:1])["input_ids"]
    processor, prompt = bench.processor.processor, bench.processor.prompt
    if bench.name in ENDS:
        question = [
            {"type": "image", "image": bench.images[0].convert("RGB")},
            {"type": "text", "text": prompt},
        ]
        expected = processor.apply_chat_template(
            [{"role": "user", "content": question}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )["input_ids"]
    else:
        size = IMAGE_SIZES[bench.name]
        assert processor.image_seq_length == (size // family_of(bench.model).patch_size) ** 2
        text = f"{'<image>' * processor.image_seq_length}<bos>{prompt}\n"
        expected = processor.tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
    assert found.tolist() == expected.tolist()
    assert found.shape[1] == bench.processor.prompt_length
    training = bench.processor.training_batch(bench.samples)["input_ids"]
    assert all(torch.equal(row[: found.shape[1]], found[0]) for row in training)


@torch.no_grad()
def hidden_states(model, batch: dict, changed: int | None = None) -> torch.Tensor:
    """(length, hidden) of a batch of one row; the language model's input is moved at position `changed`."""

    def change(module, args, kwargs):
        embeddings = kwargs["inputs_embeds"].clone()
        if changed is not None:
            embeddings[:, changed] += 1.0
        return args, kwargs | {"inputs_embeds": embeddings}

    base = model.get_base_model().base_model
    hook = base.language_model.register_forward_pre_hook(change, with_kwargs=True)
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    try:
        return base(**inputs, use_cache=False).last_hidden_state[0]
    finally:
        hook.remove()


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_attention_is_the_family_s(bench, mode):
    model = bench.model.train(mode == "train")
    batch = bench.processor.training_batch(bench.samples[1:2])
    config = family_of(model).config
    image_token = getattr(config, "image_token_id", None) or config.image_token_index
    image = (batch["input_ids"][0] == image_token).nonzero().flatten().tolist()
    first_of_report = bench.processor.prompt_length
    before = hidden_states(model, batch)

    def moved(changed: int) -> set[int]:
        """Positions whose hidden state depends on what stands at `changed`."""
        difference = (hidden_states(model, batch, changed) - before).abs().amax(-1)
        return set((difference > 1e-6).nonzero().flatten().tolist())

    seen = {
        "image": image[0] in moved(image[-1]),
        "prompt": image[0] in moved(first_of_report - 1),
        "report": bool(moved(first_of_report + 2) & set(range(first_of_report + 2))),
    }
    model.eval()
    assert {name for name, sees in seen.items() if sees} == SEES_LATER[bench.name]
    last = batch["input_ids"].shape[1] - 1
    assert last in moved(image[0]) and last in moved(first_of_report)


@torch.inference_mode()
def test_reports_of_a_batch_are_those_of_one_by_one(bench):
    """One by one by transformers' own decoding, without the shared prompt."""
    decoding = {"max_new_tokens": 12, **GREEDY}
    single = []
    for image in bench.images:
        single += generate_texts(bench.model, bench.processor, [image], **decoding)
    batched = generate_texts(
        bench.model, bench.processor, bench.images, custom_generate=SharedPromptDecoding(), **decoding
    )
    assert batched == single
    assert len(set(single)) > 1


@torch.inference_mode()
def test_generation_sees_the_prompt_as_training_does(bench):
    """The first token's probabilities after the prompt alone, and in a training batch of other lengths."""
    prompt = bench.processor.prompt_batch(bench.images)
    first = bench.model(**prompt, use_cache=True).logits[:, -1]
    batch = bench.processor.training_batch(bench.samples)
    position = bench.processor.prompt_length - 1
    losses = token_losses(bench.model, batch)
    expected = first.log_softmax(-1).gather(1, batch["labels"][:, position + 1 : position + 2]).flatten()
    torch.testing.assert_close(-torch.stack([row[0] for row in losses]), expected, rtol=1e-4, atol=1e-5)


def test_the_model_card_s_example_makes_the_same_batch(bench):
    plain = AutoProcessor.from_pretrained(bench.folder)
    quoting = type(bench.processor)(plain, 'What is "new"?', bench.processor.image_size)
    for processor in (bench.processor, quoting):
        made = eval(processor.example, {"processor": plain, "film": bench.images[0]})
        for name, value in processor.prompt_batch(bench.images[:1]).items():
            assert torch.equal(made[name], value), name


@torch.inference_mode()
def test_image_features_are_the_tower_s_own(bench):
    """As the tower gives them when the model itself sees the images, neither scaled nor mixed up."""
    family, base = family_of(bench.model), bench.model.get_base_model()
    caught = []
    hook = family.vision_tower(base).register_forward_hook(
        lambda module, args, output: caught.append(output.last_hidden_state)
    )
    bench.model(**bench.processor.prompt_batch(bench.images))
    hook.remove()
    found = family.patch_features(base, bench.processor.pixel_batch(bench.images))
    assert len(found) == len(bench.images)
    torch.testing.assert_close(found, caught[0].reshape(found.shape))
    assert not torch.allclose(found[0], found[1])


def test_the_adapter_opens_with_plain_peft(bench, tmp_path):
    save_adapter(bench.model, tmp_path)
    base = AutoModelForImageTextToText.from_pretrained(bench.folder, dtype=torch.float32)
    batch = bench.processor.training_batch(bench.samples)
    opened = PeftModel.from_pretrained(base, tmp_path)
    weights = dict(opened.named_parameters())
    with torch.no_grad():
        assert opened(**batch).loss.isfinite()
    for name, weight in bench.model.named_parameters():
        if "lora_" in name:
            assert torch.equal(weight, weights[name]), name


def test_pixels_can_be_changed_and_put_back(bench):
    """What attribution does: the image as a batch has it, and each changed image beside the same report."""
    family = family_of(bench.model)
    batch = bench.processor.training_batch(bench.samples[:1])
    pixels = family.pixels(batch)
    side = IMAGE_SIZES[bench.name]
    assert pixels.shape == (1, 3, side, side)
    grey = torch.from_numpy(np.asarray(bench.images[0]) / 127.5 - 1).float()
    torch.testing.assert_close(pixels[0, 0], grey, rtol=0, atol=1e-2)
    same = family.with_pixels(batch, pixels.expand(2, -1, -1, -1))
    assert len(same["input_ids"]) == 2
    twice = torch.cat([batch["pixel_values"]] * 2)
    torch.testing.assert_close(same["pixel_values"], twice)


def test_a_finding_is_attributed(bench):
    found = attribute(bench.model, bench.processor, bench.images[1], REPORTS[1], batch_size=16)
    assert set(found) == {"Effusion"}
    rows, columns = found["Effusion"].heatmap.shape
    assert rows == columns <= 16
    assert np.isfinite(found["Effusion"].occlusion).all() and found["Effusion"].saliency.any()


# --- where LoRA goes ---


def lora_of(command: str, folder: Path) -> Lora:
    """The `lora` section of params.yaml after a command of the page, as a shell and DVC read it."""
    params = shutil.copy(ROOT / "params.yaml", folder)
    overrides = shlex.split(command)[4:]  # dvc exp run -S
    apply_overrides(params, to_path_overrides(overrides)["params.yaml"])
    return load_settings(params).lora


@pytest.mark.parametrize("name", NAMES)
def test_lora_goes_where_the_page_says(saved, name, tmp_path):
    section = (ROOT / "docs/bases.md").read_text().split("## Where LoRA goes")[1]
    everywhere, language_model = re.findall("^    (dvc exp run -S .+)$", section, re.MULTILINE)[:2]
    model = SETTINGS.model.model_copy(update={"id": saved[name]})

    def trained(lora: Lora) -> tuple[PeftModel, dict[str, int]]:
        tuned = add_lora(load_base(model, SETTINGS.quantization), lora)
        return tuned, trainable_by_part(tuned)

    _, guide = trained(SETTINGS.lora)
    _, all_linear = trained(lora_of(everywhere, tmp_path))
    tuned, alone = trained(lora_of(language_model, tmp_path))
    assert (guide["vision_tower"] > 0) == (name != "qwen3-vl")  # whose tower has other names
    assert all_linear["vision_tower"] > guide["vision_tower"]
    assert all_linear["language_model"] > guide["language_model"]
    assert alone == {"vision_tower": 0, "language_model": guide["language_model"], "projector": 0}

    # A frozen tower runs without gradient.
    features = []
    family_of(tuned).vision_tower(tuned.get_base_model()).register_forward_hook(
        lambda module, args, output: features.append(output.last_hidden_state)
    )
    size = IMAGE_SIZES[name]
    batch = load_processor(model, size).training_batch([(Image.new("L", (size, size), 90), REPORTS[0])])
    enable_gradient_checkpointing(tuned.train(), num_stored=1)
    report_loss(tuned, batch).backward()
    assert not features[0].requires_grad
    assert all(weight.grad is not None for weight in tuned.parameters() if weight.requires_grad)


# --- bases and adapters that do not go together, each in one line ---


def one_line(saved, name: str, change, tmp_path) -> str:
    """What is said of a copy of a base that `change` has changed, as the stage asks for it."""
    folder = shutil.copytree(saved[name], tmp_path / name)
    change(folder)
    model = SETTINGS.model.model_copy(update={"id": str(folder)})
    with pytest.raises(UserError) as refused:
        load_processor(check_base(model, 224), 224)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def without_template(folder: Path) -> None:
    for path in [*folder.glob("chat_template*"), *folder.glob("*.json")]:
        if path.name.startswith("chat_template"):
            path.unlink()
            continue
        values = json.loads(path.read_text())
        if values.pop("chat_template", None) is not None:
            path.write_text(json.dumps(values))


def without_processor(folder: Path) -> None:
    for name in ("processor_config.json", "preprocessor_config.json"):
        (folder / name).unlink(missing_ok=True)


def without_vision(folder: Path) -> None:
    LlamaConfig().save_pretrained(folder)


def of_no_known_type(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "brandnew"}')


@pytest.mark.parametrize("name", ["gemma3", "qwen3-vl"])
def test_a_chat_model_without_template_is_one_line(saved, tmp_path, name):
    assert "has no chat template" in one_line(saved, name, without_template, tmp_path)


@pytest.mark.parametrize("name", ["paligemma-224", "gemma3", "qwen3-vl"])
def test_a_missing_processor_is_one_line(saved, tmp_path, name):
    assert "model.id: " in one_line(saved, name, without_processor, tmp_path)


def test_a_model_that_no_family_fits_is_one_line(saved, tmp_path):
    assert "is a llama model: take" in one_line(saved, "gemma3", without_vision, tmp_path)
    said = one_line(saved, "qwen3-vl", of_no_known_type, tmp_path)
    assert "model.id: " in said and "brandnew" in said


def test_a_base_of_another_image_size_is_one_line(saved):
    model = SETTINGS.model.model_copy(update={"id": saved["paligemma-448"]})
    with pytest.raises(UserError, match=r"takes images of 448 pixels, .* set data.image_size=448"):
        check_base(model, 224)
    any_size = SETTINGS.model.model_copy(update={"id": saved["qwen3-vl"]})
    assert check_base(any_size, 448).id == any_size.id


def test_an_adapter_of_another_base_or_prompt_is_one_line(bench, tmp_path):
    save_adapter(bench.model, tmp_path)
    save_tuned_on(tmp_path, "caption en", ["phantom"])
    with pytest.raises(UserError, match=r"was tuned with the prompt 'caption en', and is asked"):
        load_adapter(bench.model.get_base_model(), tmp_path, bench.processor.prompt)
    other = SETTINGS.model.model_copy(update={"id": str(ROOT / "models/tiny-paligemma")})
    base = load_base(other, SETTINGS.quantization)
    with pytest.raises(UserError, match=r"does not fit the base that it names: run") as refused:
        load_adapter(base, tmp_path, "caption en")
    assert "\n" not in str(refused.value)


# --- the stages, by changing `model.id` alone ---

SHORT = {
    "train": {
        "max_steps": 4,
        "warmup_steps": 1,
        "eval_steps": 2,
        "save_steps": 2,
        "findings_f1_images": 2,
    },
    "evaluate": {
        "max_new_tokens": 8,
        "samples": 2,
        "sampled_images": 2,
        "bootstrap_samples": 10,
        "gallery": 1,
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_stages_run_and_a_killed_run_ends_with_the_same_adapter(
    name, saved, workspace, monkeypatch, capsys
):
    changes = [SMALL, SHORT, {"model": {"id": saved[name]}}]
    if IMAGE_SIZES[name] != 224:
        changes.append({"data": {"image_size": IMAGE_SIZES[name]}})
        (workspace / "data").unlink()
    write_params(workspace, *changes)
    if IMAGE_SIZES[name] != 224:
        for stage in ("fetch", "synthesize_reports", "split"):
            run_stage(stage)
    run_stage("train_qlora")
    adapter = workspace / "models/adapter/adapter_model.safetensors"
    uninterrupted = adapter.read_bytes()
    adapter.unlink()

    step = ReportTrainer.compute_loss

    def killed(trainer, *args, **kwargs):
        if trainer.state.global_step == 3:
            raise KeyboardInterrupt
        return step(trainer, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(ReportTrainer, "compute_loss", killed)
        with pytest.raises(KeyboardInterrupt):
            run_stage("train_qlora")
    run_stage("train_qlora")
    assert "going on from models/checkpoints" in capsys.readouterr().out
    assert adapter.read_bytes() == uninterrupted

    run_stage("evaluate")
    image = next((workspace / "data/images").rglob("*.png"))
    run_stage("explain", str(image), "--samples", "2")
    assert "findings in the report:" in capsys.readouterr().out

    shutil.copy(image, workspace / "film.png")
    card = (workspace / "models/adapter/README.md").read_text()
    (example,) = re.findall("```python\n(.*?)```", card, re.DOTALL)
    exec(example, {})  # whatever such a base writes: it loads, is asked, and is decoded
    assert capsys.readouterr().out.endswith("\n")
