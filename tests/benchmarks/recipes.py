"""Training steps that can be measured: this repository's,
and Hugging Face's plain recipe, on the same model and data.

The plain recipe is the one of PaliGemma's own examples: `Trainer`, the processor in the collator,
`model(**batch).loss` with logits over the whole sequence, gradient checkpointing of every layer, films opened
from their files.
"""

import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

sys.path += [str(Path(__file__).resolve().parents[2] / "stages"), str(Path(__file__).resolve().parents[1])]

import pandas as pd
import torch
from PIL import Image
from torch.utils.data import Dataset
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from explainmyxray.model.decoded_weights import forget_decoded_weights
from explainmyxray.model.lora_linear import FusedLora, use_fused_lora
from explainmyxray.settings import Settings, load_settings
from explainmyxray.sources import phantom
from explainmyxray.training.batches import ReportDataset, truncate_reports
from explainmyxray.training.memory import estimate_step
from explainmyxray.training.memory_plan import MemoryPlan, apply_plan, choose_plan
from explainmyxray.training.trainer import ReportTrainer, accumulation_per_process
from measure import held, peak

ROOT = Path(__file__).resolve().parents[2]
DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
GUIDE, FOUR_BIT, AUTO = "all recomputed", "auto, 4 bits", "auto"
FILM_SIZE = 1024  # pixels a side of NIH's films
SENTENCE = "The heart is enlarged and there is a small effusion. "


def make_settings(base: str | Path, precision: str, **train) -> Settings:
    """params.yaml as committed, with another base and
    precision, and the `train` parameters that are given.
    """
    settings = load_settings(ROOT / "params.yaml")
    precision_flags = {"fp16": precision == "fp16", "bf16": precision == "bf16"}
    quantization = {"bnb_4bit_compute_dtype": DTYPES[precision]}
    return settings.model_copy(
        update={
            "model": settings.model.model_copy(update={"id": str(base)}),
            "quantization": settings.quantization.model_copy(update=quantization),
            "train": settings.train.model_copy(update=precision_flags | train),
        }
    )


def write_films(folder: Path, processor, settings: Settings, count: int) -> pd.DataFrame:
    """Phantoms in `folder`/films, in `folder`/prepared as
    `fetch` prepares them, and a table of them with reports.

    The reports are of a usual length for the tiny base, and for
    PaliGemma's 256 image tokens as long as max_length allows.
    """
    size = settings.data.image_size
    for name in ("films", "prepared"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    names = []
    for number, film in enumerate(phantom.sample(phantom.PIPELINE, 0, count, FILM_SIZE)):
        image = film.read()
        names.append(f"{number}.png")
        image.save(folder / "films" / names[-1])
        image.resize((size, size), Image.Resampling.BICUBIC).save(folder / "prepared" / names[-1])
    sentences = 4 if processor.prompt_length < 256 else 40
    reports, _ = truncate_reports([SENTENCE * sentences] * count, processor, settings.model.max_length)
    return pd.DataFrame({"image": names, "report": reports})


class PlainFilms(Dataset):
    """The files as they are, decoded each time."""

    def __init__(self, folder: Path, rows: pd.DataFrame):
        self.paths = [folder / name for name in rows["image"]]
        self.reports = list(rows["report"])

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, row: int) -> tuple[Image.Image, str]:
        return Image.open(self.paths[row]).convert("RGB"), self.reports[row]


class PlainCollator:
    """Image and report through the processor, as the examples do it."""

    def __init__(self, processor):
        self.processor = processor

    def __call__(self, samples: list[tuple[Image.Image, str]]) -> dict[str, torch.Tensor]:
        images, reports = zip(*samples)
        batch = self.processor.processor(
            images=list(images),
            text=[self.processor.prompt_text] * len(images),
            suffix=list(reports),
            padding="longest",
            return_tensors="pt",
        )
        return dict(batch)


@dataclass(frozen=True)
class Recipe:
    """A way to train: with which Trainer, on which samples, and by which plan.

    Without a plan all layers are recomputed, as `Trainer` itself enables it, and LoRA is PEFT's own.
    """

    trainer: type[Trainer]
    collator: Callable
    dataset: Dataset
    plan: MemoryPlan | None = None


def plain_recipe(folder: Path, rows: pd.DataFrame, processor, images: str = "films") -> Recipe:
    """Hugging Face's recipe on `folder`/`images`."""
    return Recipe(Trainer, PlainCollator(processor), PlainFilms(folder / images, rows))


def our_recipe(dataset: ReportDataset, processor, plan: MemoryPlan) -> Recipe:
    """This repository's, with what the `plan` stores and decodes."""
    return Recipe(ReportTrainer, processor.training_batch, dataset, plan)


def make_plans(settings: Settings, dataset: ReportDataset, free: float) -> dict[str, MemoryPlan]:
    """What `free` bytes may be spent on: the guide's values; `auto` with weights in 4 bits; and `auto`."""
    report_length = min(max(dataset.report_lengths), dataset.max_report_length)
    estimate = estimate_step(settings, dataset.prompt_length, report_length)
    layers = tuple(replace(layer, num_decodable=0) for layer in estimate.layers)
    four_bit = replace(estimate, layers=layers, rest=replace(estimate.rest, num_decodable=0))
    return {
        GUIDE: choose_plan(estimate, True, free),
        FOUR_BIT: choose_plan(four_bit, "auto", free),
        AUTO: choose_plan(estimate, "auto", free),
    }


def use_peft_lora(model) -> None:
    """Have the LoRA layers of `model` compute as PEFT has them."""
    for module in model.modules():
        if isinstance(module, FusedLora):
            module.__class__ = type(module).__bases__[1]


@dataclass(frozen=True)
class Steps:
    """What `run_steps` has measured; `peak_bytes` of the GPU's memory, 0 on a CPU."""

    seconds_per_image: float
    peak_bytes: int
    log: list[dict] = field(repr=False)


class StepTimer(TrainerCallback):
    """The end of each step; no step is begun after `deadline`
    (of `time.monotonic`), but for the first two.
    """

    def __init__(self, deadline: float):
        self.deadline = deadline
        self.ends: list[float] = []

    def on_step_end(self, args, state, control, **kwargs):
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.ends.append(time.monotonic())
        if len(self.ends) > 1 and self.ends[-1] > self.deadline:
            control.should_training_stop = True


def run_steps(
    model,
    recipe: Recipe,
    settings: Settings,
    num_steps: int,
    deadline: float = float("inf"),
    log: bool = False,
) -> Steps:
    """Train `model` for a step and then for `num_steps` that
    are timed; with `log`, each step's loss and gradient norm.

    The first step is not timed: it starts the processes that
    read images. After `deadline` no further step is begun.
    """
    if recipe.plan is None:
        forget_decoded_weights(model)
        use_peft_lora(model)
        model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    else:
        apply_plan(model, recipe.plan)
        use_fused_lora(model)
    timer = StepTimer(deadline)
    with tempfile.TemporaryDirectory() as folder:
        trainer = recipe.trainer(
            model,
            step_arguments(settings, folder, num_steps + 1, log),
            data_collator=recipe.collator,
            train_dataset=recipe.dataset,
            callbacks=[timer],
        )
        trainer.remove_callback(PrinterCallback)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        trainer.train()
    images = settings.train.per_device_train_batch_size * settings.train.gradient_accumulation_steps
    seconds = timer.ends[-1] - timer.ends[0]
    return Steps(
        seconds_per_image=seconds / (images * (len(timer.ends) - 1)),
        peak_bytes=torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0,
        log=trainer.state.log_history,
    )


def step_arguments(settings: Settings, folder: str, max_steps: int, log: bool) -> TrainingArguments:
    """The parameters of params.yaml that a step's time and
    memory depend on; nothing is validated or saved.
    """
    train = settings.train
    on_gpu = torch.cuda.is_available()
    arguments = TrainingArguments(
        folder,
        max_steps=max_steps,
        per_device_train_batch_size=train.per_device_train_batch_size,
        gradient_accumulation_steps=accumulation_per_process(train),
        learning_rate=train.learning_rate,
        warmup_steps=train.warmup_steps,
        max_grad_norm=train.max_grad_norm,
        optim=train.optim,
        fp16=train.fp16 and on_gpu,
        bf16=train.bf16 and on_gpu,
        use_cpu=not on_gpu,
        dataloader_num_workers=train.dataloader_num_workers,
        dataloader_pin_memory=on_gpu,
        remove_unused_columns=False,
        label_names=["labels"],
        logging_strategy="steps" if log else "no",
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        log_level="error",
        ddp_find_unused_parameters=False,
    )
    # One GPU a process: Trainer would spread a batch over
    # all that it sees. `n_gpu` is set when it is first read.
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1
    return arguments


def peak_of_step(model, recipe: Recipe, settings: Settings) -> int:
    """The most bytes that are held at once; on a CPU by torch's own account of its tensors."""
    if torch.cuda.is_available():
        return run_steps(model, recipe, settings, num_steps=1).peak_bytes
    return held(model) + peak(lambda: run_steps(model, recipe, settings, num_steps=1))
