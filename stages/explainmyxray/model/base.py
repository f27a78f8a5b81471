"""The base model: found, checked and loaded, quantised as `params.yaml` says, on the device that is there.

One path for a folder in the repository and for a hub id; weights come from safetensors only and no remote
code runs.
"""

from pathlib import Path

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.utils import logging
from transformers import (
    AutoConfig,
    AutoProcessor,
    BitsAndBytesConfig,
    PreTrainedModel,
)

from explainmyxray import settings
from explainmyxray.errors import UserError
from explainmyxray.gpu import gpu_memory_errors
from explainmyxray.hub import hub_errors
from explainmyxray.model.families import Family, choose_family
from explainmyxray.model.families.family import ReportProcessor
from explainmyxray.model.float32_stream import keep_float32_stream
from explainmyxray.model.four_bit import fix_cpu_kernels


def device() -> torch.device:
    """The GPU of this process where there is one, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def compute_dtype(quantization: settings.Quantization) -> torch.dtype:
    """The type of products: the parameter's on a GPU, float32 on a CPU, where float16 has no meaning.

    Raises UserError for bfloat16 on a GPU before compute capability 8.0, which only emulates it.
    """
    if device().type == "cpu":
        return torch.float32
    name = quantization.bnb_4bit_compute_dtype
    if name == "bfloat16" and torch.cuda.get_device_capability() < (8, 0):
        raise UserError(
            f"{torch.cuda.get_device_name()} has no bfloat16 units: set "
            "quantization.bnb_4bit_compute_dtype=float16, train.fp16=true and train.bf16=false"
        )
    return getattr(torch, name)


def check_base(model: settings.Model, image_size: int | None = None) -> settings.Model:
    """`model` with its revision pinned to the hub's commit (None for a folder), before anything is loaded.

    Raises UserError where `model.id` is neither, where its licence has not been accepted, or without network;
    where no family fits it; and where it takes images of another size than `image_size`.
    """
    if Path(model.id).is_dir():
        if not (Path(model.id) / "config.json").is_file():
            raise UserError(f"model.id: the folder {model.id} holds no model (no config.json)")
        _check_image_size(model, image_size)
        return model.model_copy(update={"revision": None})

    # Without a network the client tries for half a minute: say what is being waited for.
    print(f"asking the hub for {model.id}", flush=True)
    logging.set_verbosity_error()
    with hub_errors(model.id, revision=model.revision):
        config = hf_hub_download(model.id, "config.json", revision=model.revision)
    _check_image_size(model, image_size)
    commit = Path(config).parent.name  # the hub's cache names the folders of its snapshots by commit
    return model.model_copy(update={"revision": commit})


def load_family(model: settings.Model) -> Family:
    """The family of a base, by its configuration. Raises UserError where none fits."""
    with hub_errors(model.id, revision=model.revision):
        config = AutoConfig.from_pretrained(model.id, revision=model.revision)
    return choose_family(config, model.id)


def _check_image_size(model: settings.Model, image_size: int | None) -> None:
    family = load_family(model)
    if image_size and family.image_size and image_size != family.image_size:
        raise UserError(
            f"model.id: {model.id} takes images of {family.image_size} pixels, and data.image_size is "
            f"{image_size}: set data.image_size={family.image_size}"
        )


def load_processor(model: settings.Model, image_size: int | None = None) -> ReportProcessor:
    """Tokenizer and image processor that belong to the base, with the prompt.

    `image_size` is that of the images to come; only a base that takes any size needs to know it.
    """
    family = load_family(model)
    with hub_errors(model.id, revision=model.revision):
        processor = AutoProcessor.from_pretrained(model.id, revision=model.revision)
    if not hasattr(processor, "image_processor"):
        raise UserError(f"model.id: {model.id} has no processor for images (preprocessor_config.json)")
    prompt = model.prompt or family.prompt
    return family.processor_class(processor, prompt, family.image_size or image_size)


def load_base(model: settings.Model, quantization: settings.Quantization) -> PreTrainedModel:
    """The base on its device, frozen; with `quantization.load_in_4bit` its linear layers are in 4 bits."""
    dtype = compute_dtype(quantization)
    family = load_family(model)
    four_bit = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=quantization.bnb_4bit_quant_type,
        bnb_4bit_use_double_quant=quantization.bnb_4bit_use_double_quant,
        bnb_4bit_compute_dtype=dtype,
    )
    with hub_errors(model.id, revision=model.revision), gpu_memory_errors():
        base = family.model_class.from_pretrained(
            model.id,
            revision=model.revision,
            dtype=dtype,
            use_safetensors=True,
            device_map={"": device()},
            quantization_config=four_bit if quantization.load_in_4bit else None,
        )
    base.requires_grad_(False)
    fix_cpu_kernels(base)
    if dtype == torch.float16 and family.needs_float32_stream:
        keep_float32_stream(base)
    return base.eval()
