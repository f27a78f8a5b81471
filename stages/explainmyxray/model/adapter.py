"""The adapter: LoRA on a frozen base, saved as plain PEFT."""

import hashlib
import json
import re
import warnings
from pathlib import Path

from huggingface_hub import snapshot_download
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from safetensors import safe_open
from torch import nn

from explainmyxray import settings
from explainmyxray.errors import UserError
from explainmyxray.hub import hub_errors
from explainmyxray.model.families import family_of
from explainmyxray.model.lora_linear import use_fused_lora
from explainmyxray.model.tuned_on import check_prompt

# PEFT 0.21 warns of what transformers 6 will remove; both are pinned.
warnings.filterwarnings("ignore", ".*deprecated and will be removed in v6", FutureWarning)

# What plain LoRA is made of, with the types that each may
# have. All other settings have to be at their defaults.
PLAIN_LORA = {
    "r": (int,),
    "lora_alpha": (int, float),
    "lora_dropout": (int, float),
    "bias": (str,),
    "use_rslora": (bool,),
    "task_type": (str,),
    "base_model_name_or_path": (str,),
    "revision": (str,),
}
# Settings that say nothing of what the weights do once they are
# trained, and the modules, which the weights name themselves.
WITHOUT_EFFECT = {
    "peft_type",
    "peft_version",
    "auto_mapping",
    "inference_mode",
    "megatron_core",
    "target_modules",
}
LORA_A, LORA_B = "base_model.model.{}.lora_A.weight", "base_model.model.{}.lora_B.weight"
LORA_WEIGHT = re.compile(r"base_model\.model\.(.+)\.lora_[AB]\.weight")


def add_lora(base, lora: settings.Lora, revision: str | None = None) -> PeftModel:
    """`base` (of `revision`) with fresh LoRA weights in
    float32. Raises UserError where a target names no layer.
    """
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
        model = get_peft_model(base, config)
    except ValueError as error:
        hint = ""
        if isinstance(lora.target_modules, str):
            hint = " (a text is a pattern of whole module names; a list wants brackets: [q_proj,v_proj])"
        raise UserError(
            f"lora.target_modules {lora.target_modules} do not fit this model: {error}{hint}"
        ) from None
    use_fused_lora(model)
    return model


def adapter_folder(adapter: str) -> str:
    """`adapter` where it is a folder, else the folder of its copy from the hub, safetensors alone.

    Raises UserError where it is neither.
    """
    if Path(adapter).is_dir():
        return adapter
    with hub_errors(adapter, "--adapter"):
        return snapshot_download(adapter, allow_patterns=["*.json", "*.safetensors"])


def load_adapter(base, folder: str | Path, prompt: str) -> PeftModel:
    """`base` with the adapter in `folder`, frozen, to be asked `prompt`.

    Raises UserError where there are no safetensors, where they do not fit, or know another prompt.
    """
    if not (Path(folder) / SAFETENSORS_WEIGHTS_NAME).is_file():  # PEFT would go on to a pickle
        raise UserError(f"{folder} has no {SAFETENSORS_WEIGHTS_NAME}: run `dvc repro train_qlora`")
    check_prompt(folder, prompt)
    config = _read_config(folder)
    try:
        modules = _modules_with_weights(Path(folder) / SAFETENSORS_WEIGHTS_NAME)
        for name in modules:
            base.get_submodule(name)  # AttributeError; PEFT would leave its weights out
        config.target_modules = modules
        model = PeftModel.from_pretrained(base, str(folder), config=config)
    except UserError:
        raise
    except (
        Exception
    ) as error:  # PEFT and torch raise many kinds for sizes, names and layers that do not match
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"{folder} does not fit the base that it names: run `dvc repro train_qlora` ({reason[:200]})"
        ) from None
    use_fused_lora(model)
    return model.eval()


def _read_config(folder: str | Path) -> LoraConfig:
    """What the adapter in `folder` says of itself. Raises UserError where that is not plain LoRA.

    Built anew from the few settings that plain LoRA has. Any other that is not at its default changes what
    the weights do (DoRA, ranks by pattern, initialisations that rewrite the base), or is a pattern that PEFT
    would search names with.
    """
    again = "run `dvc repro train_qlora`"
    try:
        values = json.loads((Path(folder) / CONFIG_NAME).read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{folder} holds no adapter: {again} ({type(error).__name__}: {CONFIG_NAME})"
        ) from None
    if not isinstance(values, dict) or values.get("peft_type") != "LORA":
        kind = values.get("peft_type") if isinstance(values, dict) else None
        raise UserError(f"{folder} holds no LoRA adapter (peft_type {str(kind)[:40]!r}): {again}")

    defaults = LoraConfig().to_dict()
    for name, value in values.items():
        if name in PLAIN_LORA or name in WITHOUT_EFFECT:
            continue
        if value != defaults.get(name) and value not in (None, False, [], {}):
            raise UserError(f"{folder} is no plain LoRA adapter: {name[:60]} is {str(value)[:60]!r}")

    plain = {name: values[name] for name in PLAIN_LORA if values.get(name) is not None}
    for name, value in plain.items():
        if type(value) not in PLAIN_LORA[name]:
            raise UserError(f"{folder}: {name} is {str(value)[:60]!r}, which no LoRA adapter has: {again}")
    return LoraConfig(**plain, inference_mode=True)


def _modules_with_weights(weights: Path) -> list[str]:
    """Whole names of the modules that the file has LoRA weights
    for; the configuration's own patterns are never run.

    Raises UserError where a weight is not LoRA's, or where one
    of a pair is missing: PEFT would leave out either in silence.
    """
    with safe_open(weights, "pt") as file:
        keys = set(file.keys())
    modules = set()
    for key in sorted(keys):
        found = LORA_WEIGHT.fullmatch(key)
        if found is None:
            raise UserError(f"{weights} holds {key[:80]!r}, which is no weight of LoRA")
        modules.add(found.group(1))
    lacking = [name for name in sorted(modules) if not {LORA_A.format(name), LORA_B.format(name)} <= keys]
    if lacking or not modules:
        raise UserError(f"{weights} lacks weights: of {lacking[0][:80] if lacking else 'all modules'}")
    return sorted(modules)


def tuned_base(folder: str | Path, model: settings.Model) -> settings.Model:
    """`model` with the id and the commit of the base that the adapter in `folder` was tuned on.

    Raises UserError where `folder` holds no adapter, or one that names no base.
    """
    if not Path(folder).is_dir():  # PEFT would ask the hub for it
        raise UserError(
            f"{folder} is missing: run `dvc repro train_qlora` (minutes on a CPU), or `dvc exp apply NAME` "
            "for the adapter of an experiment"
        )
    config = _read_config(folder)
    if not config.base_model_name_or_path:
        raise UserError(
            f"{folder} does not say which base it was tuned on "
            "(base_model_name_or_path in its adapter_config.json)"
        )
    return model.model_copy(update={"id": config.base_model_name_or_path, "revision": config.revision})


def save_adapter(model: PeftModel, folder: Path) -> None:
    """Weights and configuration; the same adapter gives the same bytes.

    PEFT keeps module names in a set, whose order changes from
    run to run, so the configuration is written again, sorted.
    """
    model.save_pretrained(folder, safe_serialization=True)
    config_file = folder / "adapter_config.json"
    config = json.loads(config_file.read_text())
    for name, value in config.items():
        if isinstance(value, list):
            config[name] = sorted(value)
    config_file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def weights_digest(folder: str | Path) -> str:
    """16 hexadecimal digits that name an adapter's weights, so that no figure is taken for another's."""
    return hashlib.sha256((Path(folder) / SAFETENSORS_WEIGHTS_NAME).read_bytes()).hexdigest()[:16]


def count_trainable(model: PeftModel) -> tuple[int, float]:
    """Trainable parameters, and their share of all in percent."""
    count, total = model.get_nb_trainable_parameters()
    return count, 100 * count / total


def trainable_by_part(model: PeftModel) -> dict[str, int]:
    """Trainable parameters of the `vision_tower`, the `language_model` and the `projector` between them."""
    base = model.get_base_model()
    tower, language_model = family_of(base).vision_tower(base), base.get_decoder()
    count, total = model.get_nb_trainable_parameters()
    parts = {"vision_tower": _num_trainable(tower), "language_model": _num_trainable(language_model)}
    return parts | {"projector": count - sum(parts.values())}


def _num_trainable(module: nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters() if weight.requires_grad)
