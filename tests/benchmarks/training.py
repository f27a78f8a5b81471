"""A training step of this repository against the plain recipe, on the same model, data, batch and precision.

    python tests/benchmarks/training.py                                   # the tiny base on a CPU, minutes
    python tests/benchmarks/training.py --shape 3b --precision fp16       # a GPU, PaliGemma-3B's shape, random weights (6 GB of disk)
    python tests/benchmarks/training.py --profile                         # and where the time goes

The plain recipe is Hugging Face's for PaliGemma: `Trainer`, the processor in the collator, `model(**batch).loss` with
logits over the whole sequence, films opened from their files; it is run on prepared images too. The ways take turns in one
process. Speed and memory do not depend on the weights' values. The last line is JSON.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")
ROOT = Path(__file__).resolve().parents[2]
sys.path += [str(ROOT / "stages"), str(ROOT / "tests")]

import pandas as pd  # noqa: E402
import torch  # noqa: E402
from PIL import Image  # noqa: E402
from torch.profiler import profile  # noqa: E402
from torch.utils.data import Dataset  # noqa: E402
from transformers import (  # noqa: E402
    AutoConfig,
    PaliGemmaForConditionalGeneration,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from transformers.utils import logging  # noqa: E402

import paligemma_3b  # noqa: E402
from explainmyxray.model.adapter import add_lora  # noqa: E402
from explainmyxray.model.base import compute_dtype, device, load_base, load_processor  # noqa: E402
from explainmyxray.model.inputs import (  # noqa: E402
    TrainingCollator,
    prompt_text,
)
from explainmyxray.settings import Settings, load_settings  # noqa: E402
from explainmyxray.sources import phantom  # noqa: E402
from explainmyxray.training import memory  # noqa: E402
from explainmyxray.training.batches import ReportDataset  # noqa: E402
from explainmyxray.training.trainer import ReportTrainer  # noqa: E402
from measure import held, peak  # noqa: E402

TINY = ROOT / "models/tiny-paligemma"
FILM = 1024  # pixels a side of NIH's films
FILMS, ROUNDS = 64, 3
SENTENCE = "The heart is enlarged and there is a small effusion. "


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=["tiny", "3b"], default="tiny")
    parser.add_argument(
        "--precision",
        choices=["fp32", "fp16", "bf16"],
        default="fp16" if torch.cuda.is_available() else "fp32",
    )
    parser.add_argument("--steps", type=int, default=4, help="timed optimizer steps a round")
    parser.add_argument("--profile", action="store_true")
    options = parser.parse_args()
    logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as folder:
        run(Path(folder), options)


def run(folder: Path, options) -> None:
    settings = settings_for(folder, options)
    processor = load_processor(settings.model)
    rows = films(folder, processor, settings)
    model = add_lora(load_base(settings.model, settings.quantization), settings.lora)
    ours = ReportDataset(rows, folder / "prepared", processor, settings.model.max_length)
    estimate = memory.estimate_step(settings, ours.prompt_length, max(ours.report_lengths))
    stored, fewest = (estimate.num_stored(how, memory.free_memory()) for how in ("auto", True))
    mine = {"data_collator": TrainingCollator(processor), "train_dataset": ours}
    plain = {
        name: {"data_collator": PlainCollator(processor), "train_dataset": Films(folder / name, rows)}
        for name in ("films", "prepared")
    }
    ways = {
        "plain, films": lambda steps: train(
            Trainer, model, settings, steps, options, num_stored=None, **plain["films"]
        ),
        "plain, prepared": lambda steps: train(
            Trainer, model, settings, steps, options, num_stored=None, **plain["prepared"]
        ),
        "this repository": lambda steps: train(
            ReportTrainer, model, settings, steps, options, num_stored=fewest, **mine
        ),
        "with auto": lambda steps: train(
            ReportTrainer, model, settings, steps, options, num_stored=stored, **mine
        ),
    }
    measured = {name: [way(options.steps) for _ in range(1)] for name, way in ways.items()}  # warms up
    for _ in range(ROUNDS):
        for name, way in ways.items():
            measured[name].append(way(options.steps))
    peaks = {name: memory_of(model, way) for name, way in ways.items()}
    rates = {name: 1 / min(seconds for seconds, _ in each[1:]) for name, each in measured.items()}
    print(f"{'':<17}{'images/s':>9}{'ratio':>7}{'peak MiB':>10}")
    for name, rate in rates.items():
        print(f"{name:<17}{rate:>9.1f}{rate / rates['plain, films']:>7.2f}{peaks[name] / 2**20:>10.0f}")
    flops, speed = (
        operations(settings, ours),
        throughput(compute_dtype(settings.quantization), 8192 if torch.cuda.is_available() else 2048),
    )
    print(
        f"arithmetic: {flops / 1e9:.2f} GFLOP an image, recomputation included; one product of matrices reaches {speed / 1e9:.0f} "
        f"GFLOP/s here, so at most {speed / flops:.0f} images/s"
    )
    print(
        f"estimated peak: {estimate.peak(fewest) / 2**20:.0f} MiB, with auto {estimate.peak(stored) / 2**20:.0f} MiB"
    )
    if options.profile:
        with profile() as profiler:
            ways["this repository"](1)
        print(
            profiler.key_averages().table(
                sort_by=f"self_{device().type}_time_total", row_limit=20, max_name_column_width=50
            )
        )
    print(
        json.dumps(
            {
                "ratio": round(rates["this repository"] / rates["plain, films"], 3),
                "ratio_prepared": round(rates["this repository"] / rates["plain, prepared"], 3),
                "ratio_auto": round(rates["with auto"] / rates["plain, films"], 3),
                "peak_gib": round(peaks["this repository"] / 2**30, 3),
                "peak_gib_plain": round(peaks["plain, films"] / 2**30, 3),
                "estimated_gib": round(estimate.peak(fewest) / 2**30, 3),
                "images_per_s": round(rates["this repository"], 2),
                "floor_images_per_s": round(speed / flops, 1),
                "shape": options.shape,
                "precision": options.precision,
                "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
            }
        )
    )


class Films(Dataset):
    """The files as they are, decoded each time."""

    def __init__(self, folder: Path, rows: pd.DataFrame):
        self.paths, self.reports = [folder / name for name in rows["image"]], list(rows["report"])

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, row):
        return Image.open(self.paths[row]).convert("RGB"), self.reports[row]


class PlainCollator:
    def __init__(self, processor):
        self.processor = processor

    def __call__(self, samples):
        images, reports = zip(*samples)
        return dict(
            self.processor(
                images=list(images),
                text=[prompt_text()] * len(images),
                suffix=list(reports),
                padding="longest",
                return_tensors="pt",
            )
        )


class Clock(TrainerCallback):
    """Times from the end of the first step, after the loader has started, to the end of the last."""

    def on_step_end(self, args, state, control, **kwargs):
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.times = getattr(self, "times", []) + [time.perf_counter()]


def train(
    kind, model, settings: Settings, steps: int, options, num_stored: int | None, **data
) -> tuple[float, int]:
    """Seconds an image, and the peak of the GPU's memory in bytes (0 on a CPU), of `steps` optimizer steps."""
    if num_stored is None:
        model.activation_checkpointing_enable(
            activation_checkpointing_kwargs={"use_reentrant": False}
        )  # as Trainer does
    else:
        memory.enable_gradient_checkpointing(model, num_stored)
    t = settings.train
    clock, images = Clock(), t.per_device_train_batch_size * t.gradient_accumulation_steps
    with tempfile.TemporaryDirectory() as folder:
        trainer = kind(
            model,
            TrainingArguments(
                folder,
                max_steps=steps + 1,
                per_device_train_batch_size=t.per_device_train_batch_size,
                gradient_accumulation_steps=t.gradient_accumulation_steps,
                learning_rate=t.learning_rate,
                optim=t.optim,
                fp16=t.fp16,
                bf16=t.bf16,
                dataloader_num_workers=t.dataloader_num_workers,
                remove_unused_columns=False,
                label_names=["labels"],
                report_to="none",
                save_strategy="no",
                logging_strategy="no",
                disable_tqdm=True,
                use_cpu=not torch.cuda.is_available(),
            ),
            callbacks=[clock],
            **data,
        )
        trainer.remove_callback(PrinterCallback)
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        trainer.train()
    return (clock.times[-1] - clock.times[0]) / (
        steps * images
    ), torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0


def memory_of(model, way) -> int:
    """The peak of a way in bytes; on a CPU by torch's own account of its tensors."""
    if torch.cuda.is_available():
        return way(1)[1]
    return held(model) + peak(lambda: way(1))


def settings_for(folder: Path, options) -> Settings:
    settings = load_settings(ROOT / "params.yaml")
    dtype = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}[options.precision]
    base = TINY if options.shape == "tiny" else shape_3b(folder / "base", getattr(torch, dtype))
    return settings.model_copy(
        update={
            "model": settings.model.model_copy(update={"id": str(base)}),
            "quantization": settings.quantization.model_copy(update={"bnb_4bit_compute_dtype": dtype}),
            "train": settings.train.model_copy(
                update={"fp16": options.precision == "fp16", "bf16": options.precision == "bf16"}
            ),
        }
    )


def shape_3b(folder: Path, dtype: torch.dtype) -> Path:
    """PaliGemma-3B with random weights, and the tiny base's tokenizer, whose ids it embeds as well as any."""
    config = paligemma_3b.shape(image_token=AutoConfig.from_pretrained(TINY).image_token_index)
    with device():
        PaliGemmaForConditionalGeneration(config).to(dtype).save_pretrained(folder)
    for path in TINY.glob("*token*.json"):
        shutil.copy(path, folder)
    processor = json.loads((TINY / "processor_config.json").read_text())
    processor["image_processor"]["image_seq_length"] = 256
    (folder / "processor_config.json").write_text(json.dumps(processor))
    return folder


def films(folder: Path, processor, settings: Settings) -> pd.DataFrame:
    """Phantoms as films and as prepared images, with reports: of a usual length, or for the 3B shape up to max_length."""
    reports = SENTENCE * (4 if processor.image_seq_length < 256 else 40)
    rows = []
    for place, film in enumerate(phantom.sample(phantom.PIPELINE, 0, FILMS, FILM)):
        for name, image in (
            ("films", film.read()),
            ("prepared", film.read().resize((224, 224), Image.Resampling.BICUBIC)),
        ):
            (folder / name).mkdir(exist_ok=True)
            image.save(folder / name / f"{place}.png")
        rows.append({"image": f"{place}.png", "report": reports})
    fitted = ReportDataset(
        pd.DataFrame(rows), folder / "prepared", processor, settings.model.max_length
    ).reports
    return pd.DataFrame(rows).assign(report=fitted)


def operations(settings: Settings, data: ReportDataset) -> float:
    """Floating-point operations of an image's products of matrices, at the least that checkpointing allows.

    A frozen layer asks for one product forward, one when it is recomputed and one backward, each of 2 operations a weight and
    token; attention for two products of tokens with tokens, those again, and four backward. Adapters are left out.
    """
    config = AutoConfig.from_pretrained(settings.model.id)
    with torch.device("meta"):
        model = PaliGemmaForConditionalGeneration(config)
    vision, text, report = config.vision_config, config.text_config, max(data.report_lengths)
    patches, tokens = (vision.image_size // vision.patch_size) ** 2, data.prompt_length + report
    tower, language = (
        sum(module.weight.numel() for module in part.modules() if isinstance(module, torch.nn.Linear))
        for part in (model.model.vision_tower, model.model.language_model)
    )
    attention = (
        2
        * 8
        * (
            vision.num_hidden_layers * patches**2 * vision.hidden_size
            + text.num_hidden_layers * tokens**2 * text.num_attention_heads * text.head_dim
        )
    )
    head = 2 * 2 * text.vocab_size * text.hidden_size * report
    return 3 * 2 * (tower * patches + language * tokens) + attention + head


def throughput(dtype: torch.dtype, size: int = 2048) -> float:
    """Operations a second of a large product of matrices."""
    one = torch.ones(size, size, dtype=dtype, device=device())
    seconds = []
    for _ in range(6):
        started = time.perf_counter()
        (one @ one)[0, 0].item()  # waits for a GPU
        seconds.append(time.perf_counter() - started)
    return 2 * size**3 / min(seconds)


if __name__ == "__main__":
    main()
