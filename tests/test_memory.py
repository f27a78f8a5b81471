"""What a step needs of memory: the estimate against what a step takes, and what is said and done with it."""

import pytest
import torch
from PIL import Image

import paligemma_3b
from conftest import ROOT
from explainmyxray.errors import UserError
from explainmyxray.model.adapter import add_lora
from explainmyxray.model.base import load_base, load_processor
from explainmyxray.model.free_memory import GIB
from explainmyxray.settings import load_settings
from explainmyxray.training import memory, memory_plan
from explainmyxray.training.loss import report_loss
from explainmyxray.training.memory_plan import MemoryPlan
from measure import held, peak
from tiny_bases import NAMES, save_tiny_base

SETTINGS = load_settings(ROOT / "params.yaml")
TINY = SETTINGS.model_copy(
    update={"model": SETTINGS.model.model_copy(update={"id": str(ROOT / "models/tiny-paligemma")})}
)
REPORT = (
    "Findings: the heart is enlarged, and there is an effusion. The lungs are clear. "
    "Impression: cardiomegaly and an effusion. "
)
LANGUAGE_MODEL = r".*language_model.*\.(q|k|v|o)_proj"


def changed(settings, section: str, **values):
    return settings.model_copy(update={section: getattr(settings, section).model_copy(update=values)})


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """Settings for the 3B model."""
    folder = tmp_path_factory.mktemp("3b")
    paligemma_3b.shape().save_pretrained(folder)
    return changed(SETTINGS, "model", id=str(folder))


@pytest.fixture
def fp16(monkeypatch):
    """As on a GPU."""
    monkeypatch.setattr(memory, "compute_dtype", lambda quantization: torch.float16)


def free(monkeypatch, gib: float) -> None:
    monkeypatch.setattr(memory_plan, "free_memory", lambda: gib * GIB)


ALL = frozenset(range(9))  # the tiny base's layers, and the rest
PLANS = {
    "all recomputed": (1, frozenset()),
    "all stored": (8, frozenset()),
    "all recomputed, decoded": (1, ALL),
    "all stored, decoded": (8, ALL),
    "some stored, some decoded": (4, frozenset({0, 1, 2, 6})),
}


def estimated_and_taken(settings, plan_of, report: str = REPORT) -> tuple[int, int]:
    """Bytes of a step by the plan that `plan_of` makes of its estimate, and as they are measured."""
    size, batch_size = settings.data.image_size, settings.train.per_device_train_batch_size
    processor = load_processor(settings.model, size)
    images = [Image.new("L", (size, size), shade) for shade in range(batch_size)]
    inputs = processor.training_batch([(image, report) for image in images])
    before = processor.prompt_length
    plan = plan_of(memory.estimate_step(settings, before, inputs["labels"].shape[1] - before))
    model = add_lora(load_base(settings.model, settings.quantization), settings.lora).train()
    memory_plan.apply_plan(model, plan)
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, fused=True)

    def step():
        report_loss(model, inputs).backward()
        optimizer.step()
        optimizer.zero_grad()

    step()  # after which the optimizer has its two moments
    moments = 0
    for state in optimizer.state.values():
        moments += sum(value.nbytes for value in state.values())
    return plan.peak, held(model) + moments + peak(step)


@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("batch_size", [4, 16])
def test_the_estimate_is_within_15_percent_of_what_a_step_takes(batch_size, name):
    settings = changed(TINY, "train", per_device_train_batch_size=batch_size)
    estimated, taken = estimated_and_taken(
        settings, lambda estimate: MemoryPlan(estimate, float("inf"), *PLANS[name])
    )
    assert estimated == pytest.approx(taken, rel=0.15)


@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_the_estimate_is_within_20_percent_for_a_tiny_base_of_each_family(name, stored, tmp_path):
    settings = changed(SETTINGS, "model", id=str(save_tiny_base(name, tmp_path)))
    settings = changed(settings, "train", per_device_train_batch_size=16)
    if name == "paligemma-448":
        settings = changed(settings, "data", image_size=448)
    estimated, taken = estimated_and_taken(
        settings,
        lambda estimate: MemoryPlan(estimate, float("inf"), len(estimate.layers) if stored else 1),
        report=4 * REPORT,
    )
    assert estimated == pytest.approx(taken, rel=0.2)


def test_the_guide_s_step_fits_a_card_of_8_gib(large, fp16):
    """256 image tokens, 128 of prompt and report, batch 4, NF4: an estimate, for want of a GPU."""
    estimate = memory.estimate_step(large, prompt_length=260, report_length=124)
    assert estimate.weights < 2.2 * GIB
    assert MemoryPlan(estimate, 0, num_stored=1).required < 7.5 * GIB
    assert MemoryPlan(estimate, 0, num_stored=45).required > 7.5 * GIB


def test_too_little_memory_is_one_line_with_what_fits(large, fp16, monkeypatch):
    free(monkeypatch, 3.2)
    message = (
        r"needs about 3\.\d GiB and 3\.2 are free: train.per_device_train_batch_size=\d, "
        r"train.gradient_accumulation_steps=\d+,"
    )
    with pytest.raises(UserError, match=message):
        memory_plan.plan_memory(large, 260, 124)


@pytest.mark.slow
def test_a_card_that_is_too_small_for_any_setting_is_one_line(large, fp16, monkeypatch):
    free(monkeypatch, 1.0)
    with pytest.raises(UserError, match="no setting makes this model fit"):
        memory_plan.plan_memory(large, 260, 124)


@pytest.mark.parametrize(
    "num_processes, says",
    [("auto", "num_processes=1 has 2 times"), (4, "num_processes=1 has 4 times"), (1, "")],
)
def test_processes_that_share_memory_are_part_of_what_fits(num_processes, says, monkeypatch):
    free(monkeypatch, 0.001)
    settings = changed(TINY, "train", num_processes=num_processes)
    with pytest.raises(UserError, match="no setting makes this model fit") as raised:
        memory_plan.plan_memory(settings, 80, 40)
    assert says in str(raised.value)
    assert ("num_processes" in str(raised.value)) == bool(says)


def test_auto_takes_what_memory_allows_and_no_more(large, fp16, monkeypatch, capsys):
    """Of the 3B model's step, stored activations save more time a byte than decoded weights."""
    auto = changed(large, "train", gradient_checkpointing="auto")
    free(monkeypatch, 3.6)
    plans = [memory_plan.plan_memory(auto, 260, 124)]
    assert str(plans[0]) in capsys.readouterr().out
    for gib in (8, 12, 40):
        plans.append(memory_plan.choose_plan(plans[0].estimate, "auto", gib * GIB))
    for plan in plans[:3]:  # no room is left for what a layer's weights take, decoded
        assert 0 < plan.free - plan.required < 0.35 * GIB
    assert 1 <= plans[0].num_stored < plans[1].num_stored < 45
    assert plans[1].decoded_bytes < 0.1 * GIB < GIB < plans[2].decoded_bytes
    assert (plans[2].num_recomputed, plans[3].num_recomputed) == (0, 0)
    assert len(plans[3].decoded) == 46


def test_the_tiny_base_s_weights_are_decoded_first_on_a_cpu():
    estimate = memory.estimate_step(TINY, 70, 40)
    least = MemoryPlan(estimate, 0, num_stored=1).required
    plan = memory_plan.choose_plan(estimate, "auto", least + 3e6)
    assert plan.num_stored == 1
    assert 0 < plan.decoded_bytes < 3e6


def test_true_is_the_guide_s_whatever_is_free(large, fp16, monkeypatch):
    free(monkeypatch, 40)
    guide = changed(large, "train", gradient_checkpointing=True)
    plan = memory_plan.plan_memory(guide, 260, 124)
    assert (plan.num_stored, plan.decoded_bytes) == (1, 0)


def test_layers_that_are_stored_are_not_recomputed():
    model = add_lora(load_base(TINY.model, TINY.quantization), TINY.lora)
    memory_plan.enable_gradient_checkpointing(model, num_stored=3)
    recomputed = [layer.gradient_checkpointing for layer in memory.checkpointable_layers(model)]
    assert recomputed == [True] * 5 + [False] * 3


def test_a_frozen_tower_has_no_part_in_the_backward():
    settings = changed(TINY, "lora", target_modules=LANGUAGE_MODEL)
    tower = memory.estimate_step(settings, 70, 40).layers[:4]
    assert [layer.saved for layer in tower] == [0] * 4
    model = add_lora(load_base(settings.model, settings.quantization), settings.lora).train()
    memory_plan.enable_gradient_checkpointing(model, num_stored=0)
    features = []
    model.get_base_model().model.vision_tower.register_forward_hook(
        lambda module, args, output: features.append(output.last_hidden_state)
    )
    inputs = load_processor(settings.model).training_batch([(Image.new("L", (224, 224)), REPORT)])
    report_loss(model, inputs).backward()
    assert not features[0].requires_grad
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    assert all(weight.grad is not None for weight in trained)
