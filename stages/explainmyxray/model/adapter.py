"""The adapter: LoRA on a frozen base, saved as plain PEFT."""

import json
import warnings
from pathlib import Path

from huggingface_hub import snapshot_download
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from peft.utils import SAFETENSORS_WEIGHTS_NAME

from explainmyxray import settings
from explainmyxray.errors import UserError
from explainmyxray.hub import hub_errors
from explainmyxray.model.inputs import PROMPT
from explainmyxray.model.tuned_on import check_prompt

# PEFT 0.21 warns of what transformers 6 will remove; both are pinned.
warnings.filterwarnings("ignore", ".*deprecated and will be removed in v6", FutureWarning)


def add_lora(base, lora: settings.Lora, revision: str | None = None) -> PeftModel:
    """`base` (of `revision`) with fresh LoRA weights in float32. Raises UserError where a target names no layer."""
    config = LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        bias=lora.bias,
        task_type=lora.task_type,
        target_modules=lora.target_modules,
        revision=revision,
    )
    try:
        return get_peft_model(base, config)
    except ValueError as error:
        raise UserError(f"lora.target_modules {lora.target_modules} do not fit this model: {error}") from None


def adapter_folder(adapter: str) -> str:
    """`adapter` where it is a folder, else the folder of its copy from the hub, safetensors alone.

    Raises UserError where it is neither.
    """
    if Path(adapter).is_dir():
        return adapter
    with hub_errors(adapter, "--adapter"):
        return snapshot_download(adapter, allow_patterns=["*.json", "*.safetensors"])


def load_adapter(base, folder: str | Path) -> PeftModel:
    """`base` with the adapter in `folder`, frozen.

    Raises UserError where there are no safetensors, or where they do not fit.
    """
    if not (Path(folder) / SAFETENSORS_WEIGHTS_NAME).is_file():  # PEFT would go on to a pickle
        raise UserError(f"{folder} has no {SAFETENSORS_WEIGHTS_NAME}: run `dvc repro train_qlora`")
    check_prompt(folder, PROMPT)
    try:
        return PeftModel.from_pretrained(base, str(folder)).eval()
    except RuntimeError:  # sizes that do not match
        raise UserError(
            f"{folder} does not fit the base that it names: run `dvc repro train_qlora`"
        ) from None


def tuned_base(folder: str | Path, model: settings.Model) -> settings.Model:
    """`model` with the id and the commit of the base that the adapter in `folder` was tuned on.

    Raises UserError where `folder` holds no adapter, or one that names no base.
    """
    if not Path(folder).is_dir():  # PEFT would ask the hub for it
        raise UserError(f"{folder} is missing: run `dvc repro train_qlora`")
    try:
        config = PeftConfig.from_pretrained(str(folder))
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{folder} holds no adapter: run `dvc repro train_qlora` ({reason})") from None
    if not config.base_model_name_or_path:
        raise UserError(
            f"{folder} does not say which base it was tuned on "
            "(base_model_name_or_path in its adapter_config.json)"
        )
    return model.model_copy(update={"id": config.base_model_name_or_path, "revision": config.revision})


def save_adapter(model: PeftModel, folder: Path) -> None:
    """Weights and configuration; the same adapter gives the same bytes.

    PEFT keeps module names in a set, whose order changes from run to run, so the configuration is written again, sorted.
    """
    model.save_pretrained(folder, safe_serialization=True)
    config_file = folder / "adapter_config.json"
    config = json.loads(config_file.read_text())
    for name, value in config.items():
        if isinstance(value, list):
            config[name] = sorted(value)
    config_file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def count_trainable(model: PeftModel) -> tuple[int, float]:
    """Trainable parameters, and their share of all in percent."""
    count, total = model.get_nb_trainable_parameters()
    return count, 100 * count / total
