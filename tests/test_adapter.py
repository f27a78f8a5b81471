"""An adapter from elsewhere: plain LoRA whose weights are all
used, or one line; no code and no pattern of its own is run.
"""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from conftest import ROOT
from explainmyxray.errors import UserError
from explainmyxray.model.adapter import add_lora, load_adapter, save_adapter, tuned_base
from explainmyxray.model.base import load_base
from explainmyxray.settings import load_settings

SETTINGS = load_settings(ROOT / "params.yaml")
BASE = SETTINGS.model.model_copy(update={"id": str(ROOT / "models/tiny-paligemma")})
HOSTILE = r"(.*.*)*lm_headx"  # backtracks for as long as nobody ends it


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder with an adapter that changes what the base says."""
    folder = tmp_path_factory.mktemp("adapter")
    model = add_lora(load_base(BASE, SETTINGS.quantization), SETTINGS.lora)
    generator = torch.Generator().manual_seed(0)
    for name, weights in model.named_parameters():
        if "lora_B" in name:
            weights.data = torch.randn(weights.shape, generator=generator)
    save_adapter(model, folder)
    return folder


@pytest.fixture
def adapter(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "adapter")
    return tmp_path / "adapter"


def change_config(folder, **values):
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def change_weights(folder, change) -> None:
    file = folder / "adapter_model.safetensors"
    weights = load_file(file)
    change(weights)
    save_file(weights, file)


def load(folder):
    return load_adapter(load_base(BASE, SETTINGS.quantization), folder, "describe en")


def test_all_weights_of_an_adapter_are_used(adapter):
    stored = load_file(adapter / "adapter_model.safetensors")
    state = load(adapter).state_dict()
    assert len(stored) > 0
    for key, weights in stored.items():
        assert torch.equal(state[key.replace(".weight", ".default.weight")], weights)


@pytest.mark.parametrize(
    "values, says",
    [
        ({"peft_type": "BOFT"}, "no LoRA adapter .peft_type 'BOFT'"),
        ({"peft_type": "NEWER"}, "no LoRA adapter"),
        ({"peft_type": None}, "no LoRA adapter"),
        ({"use_dora": True}, "no plain LoRA adapter: use_dora"),
        ({"init_lora_weights": "pissa"}, "no plain LoRA adapter: init_lora_weights"),
        ({"rank_pattern": {HOSTILE: 4}}, "no plain LoRA adapter: rank_pattern"),
        ({"exclude_modules": HOSTILE}, "no plain LoRA adapter: exclude_modules"),
        ({"layers_pattern": HOSTILE, "layers_to_transform": [1]}, "no plain LoRA adapter: layers_"),
        ({"modules_to_save": ["lm_head"]}, "no plain LoRA adapter: modules_to_save"),
        ({"something_new": 3}, "no plain LoRA adapter: something_new"),
        ({"r": "16"}, "r is '16'"),
        ({"r": 8}, "does not fit"),
        ({"base_model_name_or_path": ["a"]}, "base_model_name_or_path is"),
    ],
)
def test_what_is_not_plain_lora_is_one_line(adapter, values, says):
    change_config(adapter, **values)
    with pytest.raises(UserError, match=says) as refused:
        load(adapter)
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 500


@pytest.mark.parametrize("content", ["", "[]", "[" * 100_000, '{"peft_type": "LORA"', "\x00"])
def test_a_configuration_that_cannot_be_read_is_one_line(adapter, content):
    (adapter / "adapter_config.json").write_text(content)
    with pytest.raises(UserError, match="holds no"):
        tuned_base(adapter, SETTINGS.model)


def test_a_hostile_pattern_of_modules_is_never_run(adapter):
    """The weights name their modules themselves."""
    change_config(adapter, target_modules=HOSTILE)
    assert load(adapter) is not None


def test_weights_that_are_not_loras_missing_ones_and_torn_ones_are_one_line(adapter):
    key = next(iter(load_file(adapter / "adapter_model.safetensors")))
    change_weights(
        adapter, lambda weights: weights.update({"base_model.model.lm_head.weight": torch.ones(2)})
    )
    with pytest.raises(UserError, match="is no weight of LoRA"):
        load(adapter)
    change_weights(adapter, lambda weights: weights.pop("base_model.model.lm_head.weight"))
    change_weights(adapter, lambda weights: weights.pop(key))
    with pytest.raises(UserError, match="lacks weights"):
        load(adapter)
    (adapter / "adapter_model.safetensors").write_bytes(b"torn")
    with pytest.raises(UserError, match="does not fit"):
        load(adapter)


def test_weights_of_a_module_that_the_base_lacks_are_one_line(adapter):
    def rename(weights):
        for key in list(weights):
            weights[key.replace("layers.0", "layers.77")] = weights.pop(key)

    change_weights(adapter, rename)
    with pytest.raises(UserError, match="does not fit the base"):
        load(adapter)


@pytest.mark.slow
def test_no_kernel_is_fetched_from_a_hub(tmp_path):
    """Where the package `kernels` is installed, bitsandbytes asks it for a CPU kernel when it is imported."""
    (tmp_path / "kernels.py").write_text("raise SystemExit('the package kernels was imported')")
    script = (
        "import importlib.util, explainmyxray.model.adapter, bitsandbytes, sys; "
        "sys.exit(importlib.util.find_spec('kernels') is not None)"
    )
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT / 'stages'}"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert "kernel" not in done.stderr
