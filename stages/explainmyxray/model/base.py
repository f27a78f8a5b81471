"""The base model: found, checked and loaded, quantised as `params.yaml` says, on the device that is there.

One path for a folder in the repository and for a hub id; weights come from safetensors only and no remote code runs.
"""

from contextlib import contextmanager
from pathlib import Path

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import httpx, logging
from transformers import (
    AutoConfig,
    AutoProcessor,
    BitsAndBytesConfig,
    PaliGemmaForConditionalGeneration,
    PaliGemmaProcessor,
)

from explainmyxray import settings
from explainmyxray.errors import UserError
from explainmyxray.model.four_bit import exact_on_cpu


def device() -> torch.device:
    """The GPU of this process where there is one, else the CPU."""
    return (
        torch.device("cuda", torch.cuda.current_device())
        if torch.cuda.is_available()
        else torch.device("cpu")
    )


def compute_dtype(quantization: settings.Quantization) -> torch.dtype:
    """The type that products are computed in: the parameter's on a GPU, float32 on a CPU, where float16 has no meaning.

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


def check_base(model: settings.Model) -> settings.Model:
    """`model` with its revision pinned to the hub's commit (None for a folder), before anything is loaded.

    Raises UserError where `model.id` is neither, where its licence has not been accepted, or without network.
    """
    if Path(model.id).is_dir():
        if not (Path(model.id) / "config.json").is_file():
            raise UserError(f"model.id: the folder {model.id} holds no model (no config.json)")
        _is_paligemma(model)
        return model.model_copy(update={"revision": None})
    print(f"asking the hub for {model.id}", flush=True)  # without network the client tries for half a minute
    logging.set_verbosity_error()
    with hub_errors(model.id, revision=model.revision):
        config = hf_hub_download(model.id, "config.json", revision=model.revision)
    _is_paligemma(model)
    return model.model_copy(
        update={"revision": Path(config).parent.name}
    )  # the hub's cache names snapshots by commit


def _is_paligemma(model: settings.Model) -> None:
    with hub_errors(model.id, revision=model.revision):
        found = AutoConfig.from_pretrained(model.id, revision=model.revision).model_type
    if found != "paligemma":
        raise UserError(f"model.id: {model.id} is a {found} model; this pipeline tunes PaliGemma")


def load_processor(model: settings.Model) -> PaliGemmaProcessor:
    """Tokenizer and image processor that belong to the base."""
    with hub_errors(model.id, revision=model.revision):
        return AutoProcessor.from_pretrained(model.id, revision=model.revision)


def load_base(
    model: settings.Model, quantization: settings.Quantization
) -> PaliGemmaForConditionalGeneration:
    """The base on its device, frozen, its linear layers in 4 bits where `quantization.load_in_4bit` says so."""
    dtype = compute_dtype(quantization)
    four_bit = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=quantization.bnb_4bit_quant_type,
        bnb_4bit_use_double_quant=quantization.bnb_4bit_use_double_quant,
        bnb_4bit_compute_dtype=dtype,
    )
    with hub_errors(model.id, revision=model.revision), gpu_memory():
        base = PaliGemmaForConditionalGeneration.from_pretrained(
            model.id,
            revision=model.revision,
            dtype=dtype,
            use_safetensors=True,
            device_map={"": device()},
            quantization_config=four_bit if quantization.load_in_4bit else None,
        )
    base.requires_grad_(False)
    exact_on_cpu(base)
    return base.eval()


@contextmanager
def hub_errors(name: str, setting: str = "model.id", revision: str | None = None):
    """Turn what the hub's client raises about the repository `name`, which `setting` asked for, into one line that says what to do."""
    page = f"https://huggingface.co/{name}"
    try:
        yield
    except GatedRepoError:
        raise UserError(
            f"{setting}: {name} asks for its licence to be accepted: do so on {page}, then run "
            "`hf auth login` or set HF_TOKEN to a token of the same account"
        ) from None
    except RevisionNotFoundError:
        raise UserError(f"model.revision: {name} has no revision {revision}") from None
    except RepositoryNotFoundError:
        raise UserError(
            f"{setting}: there is no model {name}, neither a folder here nor on the hub: check its spelling "
            "(a private one needs HF_TOKEN)"
        ) from None
    except HFValidationError:
        raise UserError(
            f"{setting}: {name} is neither a folder here nor the id of a model on the hub"
        ) from None
    except LocalEntryNotFoundError:
        raise UserError(
            f"{setting}: {name} is no folder here, is not in the local cache, and the hub cannot be reached: "
            "check the network (and HF_HUB_OFFLINE), or the spelling"
        ) from None
    except EntryNotFoundError as error:
        raise UserError(f"{setting}: {name} lacks a file: {_first_line(error)}") from None
    except HfHubHTTPError as error:
        raise UserError(f"{setting}: the hub did not give {name}: {_first_line(error)}") from None
    except (OSError, ValueError, httpx.HTTPError) as error:
        if isinstance(error.__cause__, (HfHubHTTPError, LocalEntryNotFoundError)):
            with hub_errors(name, setting, revision):  # transformers wraps the client's errors
                raise error.__cause__ from None
        raise UserError(f"{setting}: {name} cannot be loaded: {_first_line(error)}") from None


@contextmanager
def gpu_memory():
    """Turn CUDA's out-of-memory error into one line that says what to try."""
    try:
        yield
    except torch.cuda.OutOfMemoryError:
        total = torch.cuda.get_device_properties(device()).total_memory / 2**30
        raise UserError(
            f"the GPU's {total:.0f} GiB are too few: halve train.per_device_train_batch_size and double "
            "train.gradient_accumulation_steps (or lower evaluate.batch_size), and keep quantization.load_in_4bit and "
            "train.gradient_checkpointing true"
        ) from None


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
