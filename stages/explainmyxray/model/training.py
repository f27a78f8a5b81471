"""Training the adapter: `transformers.Trainer` with the guide's settings, the report loss, and checkpoints that outlive a crash."""

import math
import warnings
from pathlib import Path

import numpy as np
import torch
from transformers import EarlyStoppingCallback, PrinterCallback, Trainer, TrainingArguments

from explainmyxray import settings
from explainmyxray.errors import UserError
from explainmyxray.model.base import gpu_memory
from explainmyxray.model.batches import ReportDataset, TrainingCollator
from explainmyxray.model.callbacks import Curves, EpochOfDataset, Progress, SaveBest
from explainmyxray.model.checkpoints import to_go_on_from
from explainmyxray.model.loss import report_loss


class ReportTrainer(Trainer):
    """`Trainer` with the report loss, averaged over all report tokens of a step, and a stop where it is not finite."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.model_accepts_loss_kwargs = True   # report_loss divides by the tokens of the whole step itself

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss = report_loss(model, inputs, num_items_in_batch)
        if not torch.isfinite(loss):
            step = f"step {self.state.global_step + 1}" if model.training else f"the validation after step {self.state.global_step}"
            raise UserError(
                f"the loss is {loss.item()} at {step}: try bfloat16 (train.bf16=true, train.fp16=false, "
                "quantization.bnb_4bit_compute_dtype=bfloat16) where the GPU has it, or a lower train.learning_rate"
            )
        return loss

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """Loss of a validation batch, without logits, weighted so that Trainer's mean over images is one over tokens."""
        inputs = self._prepare_inputs(inputs)
        with torch.inference_mode(), self.compute_loss_context_manager():
            tokens = len(inputs["labels"]) * self.eval_dataset.tokens_per_report
            return self.compute_loss(model, inputs, num_items_in_batch=tokens).detach(), None, None


def train(model, processor, rows: dict, images: Path, s: settings.Settings, checkpoints: Path, curves: Path) -> dict[str, float]:
    """Train `model`'s adapter on `rows["train"]`, keep the best by `rows["val"]`, and return the figures of metrics/train.json.

    Goes on from the last whole checkpoint in `checkpoints`, if there is one. Leaves the best adapter in `model`.
    """
    training = ReportDataset(rows["train"], images, processor, s.model.max_length, s.augment, s.train.seed)
    validation = ReportDataset(rows["val"], images, processor, s.model.max_length)
    report_cut(training, s.model.max_length)
    trainer = ReportTrainer(
        model, arguments(s, checkpoints), data_collator=TrainingCollator(processor), train_dataset=training, eval_dataset=validation,
        callbacks=[
            EarlyStoppingCallback(s.train.early_stopping_patience, s.train.early_stopping_threshold),
            SaveBest(), EpochOfDataset(training), Curves(curves), Progress(),
        ],
    )
    trainer.remove_callback(PrinterCallback)   # Progress prints instead
    with gpu_memory():
        trainer.train(resume_from_checkpoint=to_go_on_from(checkpoints))
        trainer.remove_callback(Curves)   # the next validation is a check, not a point of the curve
        trainer.remove_callback(Progress)
        measured = trainer.evaluate()["eval_loss"]
    check_best(trainer, measured)
    percentiles = np.percentile(training.tokens, (50, 95), method="higher")
    return {
        "train_loss": train_loss(trainer), "eval_loss": measured, "best_step": best_step(trainer), "steps": trainer.state.global_step,
        "epochs": float(trainer.state.epoch), "longest_sequence": training.longest, "reports_cut": training.cut + validation.cut,
        "report_tokens": {name: int(count) for name, count in zip(("median", "p95"), percentiles)},
    }


def arguments(s: settings.Settings, checkpoints: Path) -> TrainingArguments:
    """The `train` section in Trainer's own names; precision as far as the device has it."""
    on_gpu = torch.cuda.is_available()
    warnings.filterwarnings("ignore", ".*deprecated and will be removed in v6", FutureWarning)   # the version is pinned
    warnings.filterwarnings("ignore", "This DataLoader will create")   # the guide's four workers on a two-core Colab
    chosen = s.train.model_dump(exclude={"early_stopping_patience", "early_stopping_threshold", "fp16", "bf16"})
    if not on_gpu and (s.train.fp16 or s.train.bf16):
        print("no GPU: training in float32 on the CPU (train.fp16 and train.bf16 have no meaning here)", flush=True)
    return TrainingArguments(
        output_dir=str(checkpoints), **chosen, fp16=s.train.fp16 and on_gpu, bf16=s.train.bf16 and on_gpu,
        per_device_eval_batch_size=s.train.per_device_train_batch_size * 2, prediction_loss_only=True,
        eval_strategy="steps", save_strategy="steps", logging_nan_inf_filter=False, use_cpu=not on_gpu,
        logging_steps=math.gcd(10, s.train.eval_steps),   # so that a checkpoint never falls between two log entries
        restore_callback_states_from_checkpoint=True,     # the patience already spent
        gradient_checkpointing_kwargs={"use_reentrant": False}, remove_unused_columns=False, label_names=["labels"],
        data_seed=s.train.seed, report_to="none", disable_tqdm=True, log_level="error", dataloader_pin_memory=on_gpu,
        dataloader_prefetch_factor=2 if s.train.dataloader_num_workers else None,
    )


def report_cut(dataset: ReportDataset, max_length: int) -> None:
    if dataset.cut:
        print(f"{dataset.cut} of {len(dataset)} reports are cut to model.max_length {max_length} (the longest takes "
              f"{dataset.longest} tokens with its image)", flush=True)


def train_loss(trainer: Trainer) -> float:
    """Mean over all steps, those before a crash too, which Trainer's own figure leaves out."""
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return sum(losses) / len(losses)


def best_step(trainer: Trainer) -> int:
    """The step whose adapter is in the model at the end."""
    state = trainer.state
    return state.best_global_step if trainer.args.load_best_model_at_end and state.best_global_step else state.global_step


def check_best(trainer: Trainer, measured: float) -> None:
    """The adapter left in the model is the one that was best: its loss, measured again, is the recorded one."""
    recorded = trainer.state.best_metric
    if trainer.args.load_best_model_at_end and recorded is not None and not math.isclose(measured, recorded, rel_tol=1e-3):
        raise RuntimeError(f"the best adapter's validation loss was {recorded:.6f} and is {measured:.6f} after loading it again")
