"""Generation with weights that are held decoded: as many as fit, and the same texts."""

import pytest
from PIL import Image

from conftest import ROOT
from explainmyxray.generation import generate_batch, hold_decoded_for
from explainmyxray.model import free_memory, inference_memory
from explainmyxray.model.adapter import add_lora
from explainmyxray.model.base import load_base, load_processor
from explainmyxray.model.decoded_weights import DecodedLinear4bit, four_bit_layers
from explainmyxray.settings import load_settings

SETTINGS = load_settings(ROOT / "params.yaml")
BASE = SETTINGS.model.model_copy(update={"id": str(ROOT / "models/tiny-paligemma")})
GENERATION = SETTINGS.evaluate.model_copy(update={"batch_size": 2, "max_new_tokens": 12})


@pytest.fixture
def loaded():
    return add_lora(load_base(BASE, SETTINGS.quantization), SETTINGS.lora).eval(), load_processor(BASE)


def num_decoded(model) -> int:
    return sum(isinstance(layer, DecodedLinear4bit) for layer in four_bit_layers(model))


def test_weights_are_decoded_as_far_as_memory_goes_and_texts_stay(loaded, monkeypatch, capsys):
    model, processor = loaded
    images = [Image.new("L", (224, 224), shade) for shade in (60, 160)]
    texts, counts = [], []
    for share in (0.0, 0.4, 1.0):
        working = inference_memory.working_memory(model, processor, 2, 8, 12)
        free = 1.1 * (working + share * 6_500_000)
        monkeypatch.setattr(inference_memory, "free_memory", lambda free=free: free)
        plan = hold_decoded_for(model, processor, GENERATION)
        assert (
            f"{plan.decoded / plan.decodable:.0%} of the 4-bit weights are held decoded"
            in capsys.readouterr().out
        )
        assert plan.decoded <= share * 6_500_000
        counts.append(num_decoded(model))
        texts.append(generate_batch(model, processor, images, GENERATION))
    assert counts[0] == 0 < counts[1] < counts[2] == len(four_bit_layers(model))
    assert texts[0] == texts[1] == texts[2]
    assert all(texts[0])


def test_as_many_processes_generate_as_memory_has_room_for(loaded, monkeypatch, capsys):
    model, processor = loaded
    working = inference_memory.working_memory(model, processor, 2, 8, 12)
    for room, processes in [(0.5, 1), (2.5, 2), (40, 4)]:
        monkeypatch.setattr(inference_memory, "free_memory", lambda room=room: 1.1 * room * working)
        plan = hold_decoded_for(model, processor, GENERATION, max_processes=4)
        assert plan.num_processes == plan.figures()["processes"] == processes
        assert ("in 2 processes" in capsys.readouterr().out) == (processes == 2)
        assert plan.working == processes * working


def test_processes_share_memory_and_a_container_s_limit_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(free_memory.torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(free_memory, "CGROUP", tmp_path)
    alone = free_memory.free_memory()
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert free_memory.free_memory() == pytest.approx(alone / 4, rel=0.1)
    monkeypatch.delenv("LOCAL_WORLD_SIZE")
    files = {
        "memory.max": "80000000",
        "memory.current": "50000000",
        "memory.stat": "inactive_file 10000000\n",
    }
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    assert free_memory.free_memory() == 40_000_000
    (tmp_path / "memory.max").write_text("max\n")
    assert free_memory.free_memory() > 40_000_000
