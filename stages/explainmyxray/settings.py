"""`params.yaml` as typed settings; a misspelt name, a wrong type or an impossible pair stops before any work.

Read with `ruamel.yaml`, for PyYAML takes `1e-05` for text,
which is what `dvc exp run -S train.learning_rate=1e-5` writes.
"""

import difflib
import reprlib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from explainmyxray.errors import UserError
from explainmyxray.registry import resolve_sources

Count = Annotated[int, Field(ge=1, lt=2**31)]
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Dtype = Literal["float16", "bfloat16", "float32"]


class Section(BaseModel):
    """Strict: no unknown name, no `32.0` for 32, no `two`; frozen: settings are read, never changed."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, allow_inf_nan=False, protected_namespaces=()
    )


class Phantom(Section):
    count: Count


class Openi(Section):
    views: Literal["frontal", "all"]


def _sources(value: object) -> tuple[str, ...]:
    """One name or a list of them, as the sources that they mean."""
    names = value if isinstance(value, list) else [value]
    if not names or not all(isinstance(name, str) for name in names):
        raise ValueError("should be a source's name or a list of names, as in [nih_sample, openi]")
    return resolve_sources(names)


class Data(Section):
    source: Annotated[tuple[str, ...], BeforeValidator(_sources)]
    archives: str
    table: str | None
    image_size: Annotated[int, Field(ge=32, le=4096)]
    phantom: Phantom
    openi: Openi

    @model_validator(mode="after")
    def _table_is_named(self):
        if "table" in self.source and not self.table:
            raise ValueError("source table wants data.table, the CSV that lists your films")
        return self


class Reports(Section):
    pertinent_negatives: Annotated[int, Field(ge=0, le=14)]


class Split(Section):
    train: Share
    val: Share
    test: Share
    min_samples_per_class: Count
    max_samples: Count
    stratify_by: Literal["labels", "none"]
    group_by: Literal["patient", "none"]

    @model_validator(mode="after")
    def _shares(self):
        if abs(self.train + self.val + self.test - 1) > 1e-9:
            raise ValueError(f"train, val and test add up to {self.train + self.val + self.test:g}, not to 1")
        if min(self.train, self.val, self.test) == 0:
            raise ValueError("train, val and test must each be above 0")
        return self


class Model(Section):
    id: Annotated[str, Field(min_length=1)]
    revision: str | None
    prompt: Annotated[str, Field(min_length=1)] | None
    max_length: Count


class Quantization(Section):
    load_in_4bit: bool
    bnb_4bit_quant_type: Literal["nf4", "fp4"]
    bnb_4bit_use_double_quant: bool
    bnb_4bit_compute_dtype: Dtype


class Lora(Section):
    r: Count
    alpha: Count
    dropout: Annotated[float, Field(ge=0, lt=1)]
    bias: Literal["none"]
    task_type: Literal["CAUSAL_LM"]
    target_modules: Annotated[list[str] | str, Field(min_length=1)]


class Augment(Section):
    horizontal_flip: Share
    rotation: Annotated[float, Field(ge=0, le=180)]
    color_jitter: Share


class Train(Section):
    seed: Annotated[int, Field(ge=0, lt=2**32)]
    num_processes: Count | Literal["auto"]
    per_device_train_batch_size: Count
    gradient_accumulation_steps: Count
    learning_rate: Positive
    lr_scheduler_type: Literal[
        "cosine", "linear", "constant", "constant_with_warmup", "polynomial", "cosine_with_restarts"
    ]
    warmup_steps: Annotated[int, Field(ge=0)]
    weight_decay: NotNegative
    max_grad_norm: Positive
    num_train_epochs: Positive
    max_steps: Count | None
    optim: Literal["adamw_torch_fused", "adamw_torch", "adamw_8bit", "sgd"]
    fp16: bool
    bf16: bool
    gradient_checkpointing: bool | Literal["auto"]
    dataloader_num_workers: Annotated[int, Field(ge=0)]
    eval_steps: Count
    findings_f1_images: Annotated[int, Field(ge=0)]
    save_steps: Count
    save_total_limit: Count
    load_best_model_at_end: bool
    metric_for_best_model: Literal["eval_loss"]
    early_stopping_patience: Count
    early_stopping_threshold: NotNegative

    @model_validator(mode="after")
    def _pairs(self):
        if self.save_steps % self.eval_steps:
            raise ValueError(
                f"save_steps ({self.save_steps}) is no multiple of eval_steps ({self.eval_steps})"
            )
        if self.fp16 and self.bf16:
            raise ValueError("fp16 and bf16 exclude each other: set one to false")
        if self.num_processes != "auto" and self.gradient_accumulation_steps % self.num_processes:
            raise ValueError(
                f"gradient_accumulation_steps ({self.gradient_accumulation_steps}) is no multiple of "
                "num_processes "
                f"({self.num_processes}), which share the micro-batches of a step"
            )
        return self


class Evaluate(Section):
    batch_size: Count
    max_new_tokens: Count
    decoding: Literal["greedy", "beam", "consensus"]
    samples: Annotated[int, Field(ge=2)]
    epsilon_cutoff: Annotated[float, Field(ge=0, lt=1)]
    sampled_images: Count
    num_beams: Annotated[int, Field(ge=2)]
    bootstrap_samples: Count
    gallery: Count


class Gate(Section):
    max_drop: NotNegative
    max_same_text: Share
    max_malformed: Share


class Settings(Section):
    seed: Annotated[int, Field(ge=0, lt=2**32)]
    data: Data
    reports: Reports
    split: Split
    model: Model
    quantization: Quantization
    lora: Lora
    augment: Augment
    train: Train
    evaluate: Evaluate
    gate: Gate

    @model_validator(mode="after")
    def _precision(self):
        needed = "float16" if self.train.fp16 else "bfloat16" if self.train.bf16 else "float32"
        given = self.quantization.bnb_4bit_compute_dtype
        if given != needed:
            raise ValueError(
                f"train.fp16 {self.train.fp16} and train.bf16 {self.train.bf16} go with "
                f"quantization.bnb_4bit_compute_dtype {needed}, not {given}"
            )
        return self


def load_settings(path: str | Path = "params.yaml", overrides: Sequence[str] = ()) -> Settings:
    """The parameters in the file at `path`, with `overrides` such as "lora.r=32" laid over them.

    Raises UserError with one line that names the key and what it should be.
    """
    values = _read_yaml(path)
    for override in overrides:
        _apply_override(values, override)
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        problems = [_problem(each) for each in error.errors()]
        raise UserError(f"{path}: {'; '.join(problems)}") from None


def _read_yaml(path: str | Path):
    try:
        return YAML(typ="safe").load(Path(path))
    except FileNotFoundError:
        raise UserError(f"{path} is missing: run from the root of the repository") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f" in line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = error.problem or error.context
        raise UserError(f"{path} is no YAML: {problem}{where}") from None
    except (YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is no YAML: {str(error).splitlines()[0]}") from None
    except RecursionError:
        raise UserError(f"{path} is nested too deeply") from None
    except ValueError as error:  # Python refuses to read an integer of thousands of digits
        raise UserError(f"{path} holds a value that cannot be read: {str(error).split(';')[0]}") from None


def _apply_override(values: dict, override: str) -> None:
    """Set one parameter, as `dvc exp run -S` does; whether it exists is checked with all others."""
    name, equals, text = override.partition("=")
    if not equals:
        raise UserError(f"-S {override}: write a parameter and its value, as in lora.r=32")
    *sections, last = name.split(".")
    place = values
    for section in sections:
        place = place.setdefault(section, {})
        if not isinstance(place, dict):
            raise UserError(f"-S {override}: {section} is no section")
    try:
        place[last] = YAML(typ="safe").load(text)
    except YAMLError:
        raise UserError(f"-S {override}: the value is no YAML") from None


def _problem(error: dict) -> str:
    """What is wrong with one parameter, in a few words that name it."""
    key = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        return f"{key} is no parameter{_suggestion(error['loc'])}"
    if error["type"] == "missing":
        return f"{key} is missing"
    message = error["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    given = "" if isinstance(error["input"], dict) else f", got {reprlib.repr(error['input'])}"
    return f"{key}: {message}{given}" if key else message


def _suggestion(loc: tuple) -> str:
    """The most similar parameter of the same section, or all of them."""
    section = Settings
    for part in loc[:-1]:
        section = section.model_fields[part].annotation
    similar = difflib.get_close_matches(str(loc[-1]), section.model_fields, n=1)
    if similar:
        return f": did you mean {similar[0]}?"
    return f"; there are {', '.join(section.model_fields)}"
