"""Training the adapter: `transformers.Trainer` with the guide's settings, the report loss, and resumption."""

import math
import os
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from accelerate import PartialState
from torch.utils.data import DataLoader, Subset
from transformers import EarlyStoppingCallback, PrinterCallback, Trainer, TrainerState, TrainingArguments

from explainmyxray.errors import UserError
from explainmyxray.gpu import gpu_memory_errors
from explainmyxray.model.families.family import IGNORE_INDEX, ReportProcessor
from explainmyxray.settings import Settings, Train
from explainmyxray.training.batches import ReportDataset
from explainmyxray.training.callbacks import (
    DVCLiveCallback,
    LogLastStepCallback,
    ProgressCallback,
    SaveBestCallback,
    SetEpochCallback,
)
from explainmyxray.training.checkpoints import agree_on_checkpoint, full_disk_errors
from explainmyxray.training.loss import report_loss
from explainmyxray.training.report_validation import ReportValidation, wording_alone

# What `train` holds for others than TrainingArguments, or under another name there.
NOT_TRAINER_S = {
    "num_processes",
    "gradient_accumulation_steps",
    "dataloader_num_workers",
    "gradient_checkpointing",
    "max_steps",
    "findings_f1_images",
    "fp16",
    "bf16",
    "early_stopping_patience",
    "early_stopping_threshold",
}


class ReportTrainer(Trainer):
    """`Trainer` with the report loss, a mean over a step's report tokens; stops at what is not finite."""

    def __init__(self, *args, report_validation: ReportValidation | None = None, **kwargs):
        super().__init__(*args, **kwargs)
        self.report_validation = report_validation
        # Have Trainer count the tokens of the whole step: report_loss divides by them.
        self.model_accepts_loss_kwargs = True

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss = report_loss(model, inputs, num_items_in_batch)
        self._stop_unless_finite("loss", loss)
        # DistributedDataParallel averages gradients over the processes, but the tokens are those of all of
        # them.
        return loss * self.accelerator.num_processes

    def _clip_grad_norm(self, model):
        norm = super()._clip_grad_norm(model)
        # fp16's scaler skips a step whose gradients overflow, and lowers its scale: only at scale 1 is that
        # the end.
        scaler = self.accelerator.scaler
        if scaler is None or scaler.get_scale() <= 1:
            self._stop_unless_finite("norm of the gradients", norm)
        return norm

    def _stop_unless_finite(self, what: str, value: torch.Tensor) -> None:
        if not torch.isfinite(value):
            raise UserError(
                f"the {what} is {value.item()} at step {self.state.global_step + 1}: try bfloat16 "
                "(train.bf16=true, train.fp16=false, quantization.bnb_4bit_compute_dtype=bfloat16) "
                "where the GPU has it, or a lower train.learning_rate"
            )

    @torch.inference_mode()
    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval") -> dict[str, float]:
        """Mean loss over all report tokens of `eval_dataset`, by default the trainer's; processes share it.
        And the findings F1 of reports on the images of `report_validation`, where there is one.

        Trainer's own method would average over batches. `ignore_keys` names outputs not to gather: none is
        gathered here.
        """
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        share = range(self.accelerator.process_index, len(dataset), self.accelerator.num_processes)
        loader = DataLoader(
            Subset(dataset, share),
            self.args.eval_batch_size,
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
        )
        self.model.eval()
        sums = torch.zeros(2, dtype=torch.float64, device=self.args.device)  # of losses, and of tokens
        for batch in map(self._prepare_inputs, loader):
            num_tokens = (batch["labels"] != IGNORE_INDEX).sum()
            sums += torch.stack([report_loss(self.model, batch, num_tokens=1), num_tokens])
        loss, num_tokens = self.accelerator.reduce(sums)
        self._stop_unless_finite("validation loss", loss)
        metrics = {f"{metric_key_prefix}_loss": (loss / num_tokens).item()}
        if self.report_validation is not None:
            metrics[f"{metric_key_prefix}_findings_f1"] = self.report_validation.findings_f1(
                self.model, self.accelerator
            )
            metrics[f"{metric_key_prefix}_majority_f1"] = self.report_validation.majority_f1
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


def make_datasets(
    processor: ReportProcessor, rows: dict[str, pd.DataFrame], images: Path, settings: Settings
) -> tuple[ReportDataset, ReportDataset]:
    """What to train on, and what to validate on, without augmentation; prints how long the reports are, and
    how many are cut.
    """
    max_length = settings.model.max_length
    training = ReportDataset(
        rows["train"], images, processor, max_length, settings.augment, settings.train.seed
    )
    validation = ReportDataset(rows["val"], images, processor, max_length)
    median, p95 = report_tokens(training)
    print(
        f"reports of {median} tokens in the middle, {p95} at the 95th percentile; "
        f"{training.num_truncated} of {len(training)} are cut to model.max_length {max_length} "
        f"(the longest takes {training.longest_sequence} tokens with its image)",
        flush=True,
    )
    return training, validation


def report_tokens(dataset: ReportDataset) -> tuple[int, int]:
    """Median and 95th percentile of the reports' lengths, before any cut."""
    median, p95 = np.percentile(dataset.report_lengths, (50, 95), method="higher")
    return int(median), int(p95)


def train(
    model,
    processor: ReportProcessor,
    training: ReportDataset,
    validation: ReportDataset,
    settings: Settings,
    checkpoints: Path,
    curves: Path,
    report_validation: ReportValidation | None = None,
) -> dict:
    """Train `model`'s adapter, keep the best by `validation`, and return the figures of metrics/train.json.

    Goes on from the latest resumable checkpoint in `checkpoints`, if there is one. Leaves the best adapter in
    `model`.
    """
    trainer = ReportTrainer(
        model,
        training_arguments(settings.train, checkpoints),
        data_collator=processor.training_batch,
        train_dataset=training,
        eval_dataset=validation,
        callbacks=[
            EarlyStoppingCallback(
                settings.train.early_stopping_patience, settings.train.early_stopping_threshold
            ),
            SaveBestCallback(),
            LogLastStepCallback(),
            SetEpochCallback(training),
            DVCLiveCallback(curves),
            ProgressCallback(),
        ],
        report_validation=report_validation,
    )
    trainer.remove_callback(PrinterCallback)  # ProgressCallback prints instead
    with gpu_memory_errors(), full_disk_errors(checkpoints):
        checkpoint = agree_on_checkpoint(checkpoints, trainer.accelerator)
        trainer.train(resume_from_checkpoint=checkpoint)
        # The next validation is a check of what was loaded, not a point of the curve.
        trainer.remove_callback(DVCLiveCallback)
        trainer.remove_callback(ProgressCallback)
        best = trainer.evaluate()
    eval_loss = best["eval_loss"]
    check_best(trainer, eval_loss)
    median, p95 = report_tokens(training)
    figures = {
        "train_loss": mean_train_loss(trainer.state),
        "eval_loss": eval_loss,
        "best_step": best_step(trainer),
        "steps": trainer.state.global_step,
        "epochs": float(trainer.state.epoch),
        "longest_sequence": training.longest_sequence,
        "reports_cut": training.num_truncated + validation.num_truncated,
        "report_tokens": {"median": median, "p95": p95},
    }
    if report_validation is not None:
        findings_f1, majority_f1 = best["eval_findings_f1"], best["eval_majority_f1"]
        figures |= {
            "findings_f1": findings_f1,
            "majority_f1": majority_f1,
            "wording_alone": wording_alone(trainer.state.log_history, findings_f1, majority_f1),
        }
    return figures


def training_arguments(train: Train, checkpoints: Path) -> TrainingArguments:
    """The `train` section in Trainer's names; precision as far as the device has it; one GPU a process."""
    on_gpu = torch.cuda.is_available()
    if not on_gpu and (train.fp16 or train.bf16):
        print(
            "no GPU: training in float32 on the CPU (train.fp16 and train.bf16 have no meaning here)",
            flush=True,
        )
    # torch warns where the guide's four workers are more than the cores, as on Colab.
    warnings.filterwarnings("ignore", "This DataLoader will create")
    sharing_this_machine = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    num_workers = math.ceil(train.dataloader_num_workers / sharing_this_machine)
    arguments = TrainingArguments(
        output_dir=str(checkpoints),
        **train.model_dump(exclude=NOT_TRAINER_S),
        max_steps=train.max_steps or -1,
        gradient_accumulation_steps=accumulation_per_process(train),
        fp16=train.fp16 and on_gpu,
        bf16=train.bf16 and on_gpu,
        use_cpu=not on_gpu,
        per_device_eval_batch_size=train.per_device_train_batch_size * 2,
        eval_strategy="steps",
        save_strategy="steps",
        # A divisor of eval_steps, so that no checkpoint falls between two log entries.
        logging_steps=math.gcd(10, train.eval_steps),
        logging_nan_inf_filter=False,
        restore_callback_states_from_checkpoint=True,  # the patience already spent
        remove_unused_columns=False,
        label_names=["labels"],
        data_seed=train.seed,
        report_to="none",
        disable_tqdm=True,
        log_level="error",
        dataloader_pin_memory=on_gpu,
        dataloader_num_workers=num_workers,
        dataloader_prefetch_factor=2 if num_workers else None,
        # Every adapter weight has a part in the loss: no search for those without, step by step.
        ddp_find_unused_parameters=False,
    )
    # With several GPUs in sight of one process, Trainer would spread each batch over them by DataParallel,
    # which the report loss does not support. CUDA_VISIBLE_DEVICES cannot hide them here: bitsandbytes' import
    # has started CUDA.
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1
    return arguments


def accumulation_per_process(train: Train) -> int:
    """Micro-batches a process and step: a step is of as many images, however many processes share it."""
    num_processes = PartialState().num_processes
    steps, rest = divmod(train.gradient_accumulation_steps, num_processes)
    if rest:
        raise UserError(
            f"train.gradient_accumulation_steps {train.gradient_accumulation_steps} is no multiple of the "
            f"{num_processes} processes that share a step"
        )
    return steps


def mean_train_loss(state: TrainerState) -> float:
    """Mean over all steps, those before a crash too, which Trainer's own figure leaves out."""
    total, last_step = 0.0, 0
    for entry in state.log_history:
        if "loss" in entry:  # the mean of the steps since the entry before
            total += entry["loss"] * (entry["step"] - last_step)
            last_step = entry["step"]
    return total / last_step


def best_step(trainer: Trainer) -> int:
    """The step whose adapter is in the model at the end."""
    best = trainer.state.best_global_step
    return best if best and trainer.args.load_best_model_at_end else trainer.state.global_step


def check_best(trainer: Trainer, eval_loss: float) -> None:
    """Raise RuntimeError unless the loss of the adapter left in the model is the best that was recorded."""
    best = trainer.state.best_metric
    if best is None or not trainer.args.load_best_model_at_end:
        return
    if not math.isclose(eval_loss, best, rel_tol=1e-3):
        raise RuntimeError(
            f"the best adapter's validation loss was {best:.6f} and is {eval_loss:.6f} after loading it again"
        )
