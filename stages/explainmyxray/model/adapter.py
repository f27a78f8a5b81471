"""The adapter: LoRA on a frozen base, saved as plain PEFT with a model card."""

import json
from pathlib import Path
from string import Template

from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model

from explainmyxray import settings
from explainmyxray.errors import UserError

CARD = Path(__file__).with_name("card.md")


def add_lora(base, lora: settings.Lora, revision: str | None = None) -> PeftModel:
    """`base` (of `revision`) with fresh LoRA weights in float32. Raises UserError where a target names no layer."""
    try:
        return get_peft_model(base, LoraConfig(
            r=lora.r, lora_alpha=lora.alpha, lora_dropout=lora.dropout, bias=lora.bias, task_type=lora.task_type,
            target_modules=list(lora.target_modules), revision=revision,
        ))
    except ValueError as error:
        raise UserError(f"lora.target_modules {lora.target_modules} do not fit this model: {error}") from None


def load_adapter(base, folder: str | Path) -> PeftModel:
    """`base` with the adapter in `folder`, frozen. Raises UserError where it does not fit."""
    try:
        return PeftModel.from_pretrained(base, str(folder)).eval()
    except RuntimeError:   # sizes that do not match
        raise UserError(f"{folder} was tuned on another base than model.id: run `dvc repro train_qlora`") from None


def tuned_base(adapter: str | Path, model: settings.Model) -> settings.Model:
    """`model` with the id and the commit of the base that the adapter in a folder, or with a hub id, was tuned on."""
    try:
        config = PeftConfig.from_pretrained(str(adapter))
    except (OSError, ValueError) as error:
        raise UserError(f"{adapter} holds no adapter: run `dvc repro train_qlora` ({str(error).splitlines()[0]})") from None
    return model.model_copy(update={"id": config.base_model_name_or_path, "revision": config.revision})


def save_adapter(model: PeftModel, folder: Path, facts: dict) -> None:
    """Weights, configuration and card; the same adapter gives the same bytes.

    PEFT keeps module names in a set, whose order changes from run to run, so the configuration is written again, sorted.
    """
    model.save_pretrained(folder, safe_serialization=True)
    config_file = folder / "adapter_config.json"
    config = {name: sorted(value) if isinstance(value, list) else value
              for name, value in json.loads(config_file.read_text()).items()}
    config_file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    (folder / "README.md").write_text(Template(CARD.read_text()).substitute(facts))


def trainable(model: PeftModel) -> tuple[int, float]:
    """Trainable parameters, and their share of all in percent."""
    count, total = model.get_nb_trainable_parameters()
    return count, 100 * count / total
