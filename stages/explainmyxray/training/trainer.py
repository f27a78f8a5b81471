"""Training the adapter: `transformers.Trainer` with the guide's settings, the report loss, and checkpoints that outlive a crash."""

import math
import warnings
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from torch.utils.data import DataLoader, Subset
from transformers import EarlyStoppingCallback, PrinterCallback, Trainer, TrainingArguments

from explainmyxray import settings
from explainmyxray.errors import UserError
from explainmyxray.model.base import gpu_memory
from explainmyxray.model.inputs import IGNORE_INDEX, TrainingCollator
from explainmyxray.training.batches import ReportDataset
from explainmyxray.training.callbacks import DVCLiveCallback, Progress, SaveBest, SetEpochCallback
from explainmyxray.training.checkpoints import find_resumable_checkpoint
from explainmyxray.training.loss import report_loss


class ReportTrainer(Trainer):
    """`Trainer` with the report loss, averaged over all report tokens of a step, and a stop where something is not finite."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.model_accepts_loss_kwargs = True  # report_loss divides by the tokens of the whole step itself

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss = report_loss(model, inputs, num_items_in_batch)
        self._stop_unless_finite("loss", loss)
        return (
            loss * self.accelerator.num_processes
        )  # whose gradients are averaged, and the tokens are those of all

    def _clip_grad_norm(self, model):
        norm = super()._clip_grad_norm(model)
        scaler = (
            self.accelerator.scaler
        )  # of fp16: it skips a step whose gradients overflow, and lowers its scale
        if scaler is None or scaler.get_scale() <= 1:
            self._stop_unless_finite("norm of the gradients", norm)
        return norm

    def _stop_unless_finite(self, what: str, value: torch.Tensor) -> None:
        if not torch.isfinite(value):
            raise UserError(
                f"the {what} is {value.item()} at step {self.state.global_step + 1}: try bfloat16 (train.bf16=true, "
                "train.fp16=false, quantization.bnb_4bit_compute_dtype=bfloat16) where the GPU has it, or a lower train.learning_rate"
            )

    @torch.inference_mode()
    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval") -> dict[str, float]:
        """The mean loss over all report tokens of the validation split; each process takes its share of the images."""
        rank, processes, rows = (
            self.accelerator.process_index,
            self.accelerator.num_processes,
            self.eval_dataset,
        )
        loader = DataLoader(
            Subset(rows, range(rank, len(rows), processes)),
            self.args.eval_batch_size,
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
        )
        self.model.eval()
        total = torch.zeros(2, dtype=torch.float64, device=self.args.device)
        for batch in map(self._prepare_inputs, loader):
            total += torch.stack(
                [report_loss(self.model, batch, tokens=1), (batch["labels"] != IGNORE_INDEX).sum()]
            )
        loss, tokens = self.accelerator.reduce(total)
        self._stop_unless_finite("validation loss", loss)
        metrics = {f"{metric_key_prefix}_loss": (loss / tokens).item()}
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


def datasets(
    processor, rows: dict, images: Path, s: settings.Settings
) -> tuple[ReportDataset, ReportDataset]:
    """What to train on, and what to validate on, without augmentation."""
    training = ReportDataset(rows["train"], images, processor, s.model.max_length, s.augment, s.train.seed)
    report_cut(training, s.model.max_length)
    return training, ReportDataset(rows["val"], images, processor, s.model.max_length)


def train(
    model,
    processor,
    training: ReportDataset,
    validation: ReportDataset,
    s: settings.Settings,
    checkpoints: Path,
    curves: Path,
) -> dict[str, float]:
    """Train `model`'s adapter on `training`, keep the best by `validation`, and return the figures of metrics/train.json.

    Goes on from the last whole checkpoint in `checkpoints`, if there is one. Leaves the best adapter in `model`.
    """
    trainer = ReportTrainer(
        model,
        arguments(s, checkpoints),
        data_collator=TrainingCollator(processor),
        train_dataset=training,
        eval_dataset=validation,
        callbacks=[
            EarlyStoppingCallback(s.train.early_stopping_patience, s.train.early_stopping_threshold),
            SaveBest(),
            SetEpochCallback(training),
            DVCLiveCallback(curves),
            Progress(),
        ],
    )
    trainer.remove_callback(PrinterCallback)  # Progress prints instead
    with gpu_memory():
        with trainer.accelerator.main_process_first():  # which puts torn ones away
            checkpoint = find_resumable_checkpoint(checkpoints, trainer.accelerator.num_processes)
        trainer.train(resume_from_checkpoint=checkpoint)
        trainer.remove_callback(DVCLiveCallback)  # the next validation is a check, not a point of the curve
        trainer.remove_callback(Progress)
        measured = trainer.evaluate()["eval_loss"]
    check_best(trainer, measured)
    percentiles = np.percentile(training.tokens, (50, 95), method="higher")
    return {
        "train_loss": train_loss(trainer),
        "eval_loss": measured,
        "best_step": best_step(trainer),
        "steps": trainer.state.global_step,
        "epochs": float(trainer.state.epoch),
        "longest_sequence": training.longest,
        "reports_cut": training.cut + validation.cut,
        "report_tokens": {name: int(count) for name, count in zip(("median", "p95"), percentiles)},
    }


def arguments(s: settings.Settings, checkpoints: Path) -> TrainingArguments:
    """The `train` section in Trainer's own names; precision as far as the device has it."""
    on_gpu = torch.cuda.is_available()
    warnings.filterwarnings(
        "ignore", "This DataLoader will create"
    )  # the guide's four workers on a two-core Colab
    chosen = s.train.model_dump(
        exclude={
            "num_processes",
            "gradient_checkpointing",
            "fp16",
            "bf16",
            "early_stopping_patience",
            "early_stopping_threshold",
        }
    )
    chosen["gradient_accumulation_steps"] = accumulation(s.train)
    if not on_gpu and (s.train.fp16 or s.train.bf16):
        print(
            "no GPU: training in float32 on the CPU (train.fp16 and train.bf16 have no meaning here)",
            flush=True,
        )
    return TrainingArguments(
        output_dir=str(checkpoints),
        **chosen,
        fp16=s.train.fp16 and on_gpu,
        bf16=s.train.bf16 and on_gpu,
        per_device_eval_batch_size=s.train.per_device_train_batch_size * 2,
        eval_strategy="steps",
        save_strategy="steps",
        logging_nan_inf_filter=False,
        use_cpu=not on_gpu,
        logging_steps=math.gcd(
            10, s.train.eval_steps
        ),  # so that a checkpoint never falls between two log entries
        restore_callback_states_from_checkpoint=True,  # the patience already spent
        remove_unused_columns=False,
        label_names=["labels"],
        data_seed=s.train.seed,
        report_to="none",
        disable_tqdm=True,
        log_level="error",
        dataloader_pin_memory=on_gpu,
        dataloader_prefetch_factor=2 if s.train.dataloader_num_workers else None,
    )


def accumulation(train: settings.Train) -> int:
    """Micro-batches a process and step: the images of a step are the same, however many processes share them."""
    processes = PartialState().num_processes
    steps, left = divmod(train.gradient_accumulation_steps, processes)
    if left:
        raise UserError(
            f"train.gradient_accumulation_steps {train.gradient_accumulation_steps} is no multiple of the "
            f"{processes} processes that share a step"
        )
    return steps


def report_cut(dataset: ReportDataset, max_length: int) -> None:
    if dataset.cut:
        print(
            f"{dataset.cut} of {len(dataset)} reports are cut to model.max_length {max_length} (the longest takes "
            f"{dataset.longest} tokens with its image)",
            flush=True,
        )


def train_loss(trainer: Trainer) -> float:
    """Mean over all steps, those before a crash too, which Trainer's own figure leaves out."""
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return sum(losses) / len(losses)


def best_step(trainer: Trainer) -> int:
    """The step whose adapter is in the model at the end."""
    state = trainer.state
    return (
        state.best_global_step
        if trainer.args.load_best_model_at_end and state.best_global_step
        else state.global_step
    )


def check_best(trainer: Trainer, measured: float) -> None:
    """The adapter left in the model is the one that was best: its loss, measured again, is the recorded one."""
    recorded = trainer.state.best_metric
    if (
        trainer.args.load_best_model_at_end
        and recorded is not None
        and not math.isclose(measured, recorded, rel_tol=1e-3)
    ):
        raise RuntimeError(
            f"the best adapter's validation loss was {recorded:.6f} and is {measured:.6f} after loading it again"
        )
