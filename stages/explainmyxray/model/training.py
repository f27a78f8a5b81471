"""Training the adapter: `transformers.Trainer` with the guide's settings, the report loss, and checkpoints that outlive a crash."""

import math
import os
import warnings
from pathlib import Path

import torch
from transformers import EarlyStoppingCallback, PrinterCallback, Trainer, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from explainmyxray import settings
from explainmyxray.errors import UserError
from explainmyxray.model.base import gpu_memory
from explainmyxray.model.batches import ReportDataset, TrainingCollator
from explainmyxray.model.callbacks import Curves, EpochOfDataset, Progress, SaveBest
from explainmyxray.model.loss import report_loss


class ReportTrainer(Trainer):
    """`Trainer` with the report loss, averaged over all report tokens of a step, and a stop where it is not finite."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.model_accepts_loss_kwargs = True   # report_loss divides by the tokens of the whole step itself
        self.can_return_loss = True

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss = report_loss(model, inputs, num_items_in_batch)
        if not torch.isfinite(loss):
            raise UserError(
                f"the loss is {loss.item()} at step {self.state.global_step + 1}: try bfloat16 (train.bf16=true, train.fp16=false, "
                "quantization.bnb_4bit_compute_dtype=bfloat16) where the GPU has it, or a lower train.learning_rate"
            )
        return (loss, {}) if return_outputs else loss

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        inputs = self._prepare_inputs(inputs)
        with torch.inference_mode(), self.compute_loss_context_manager():
            return self.compute_loss(model, inputs).detach(), None, None   # validation needs no logits


def train(model, processor, rows: dict, images: Path, s: settings.Settings, checkpoints: Path, curves: Path) -> dict[str, float]:
    """Train `model`'s adapter on `rows["train"]`, keep the best by `rows["val"]`, and return the figures of metrics/train.json.

    Goes on from the last whole checkpoint in `checkpoints`, if there is one. Leaves the best adapter in `model`.
    """
    training = ReportDataset(rows["train"], images, processor, s.model.max_length, s.augment, s.seed)
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
        result = trainer.train(resume_from_checkpoint=last_whole_checkpoint(checkpoints))
        best = trainer.evaluate()["eval_loss"]
    check_best(trainer, best)
    return {
        "train_loss": result.training_loss, "eval_loss": best, "best_step": best_step(trainer), "steps": trainer.state.global_step,
        "epochs": float(trainer.state.epoch), "longest_sequence": training.longest, "reports_cut": training.cut + validation.cut,
    }


def arguments(s: settings.Settings, checkpoints: Path) -> TrainingArguments:
    """The `train` section in Trainer's own names; precision as far as the device has it."""
    on_gpu = torch.cuda.is_available()
    warnings.filterwarnings("ignore", "This DataLoader will create")   # the guide's four workers on a two-core Colab
    chosen = s.train.model_dump(exclude={"early_stopping_patience", "early_stopping_threshold", "fp16", "bf16"})
    if not on_gpu and (s.train.fp16 or s.train.bf16):
        print("no GPU: training in float32 on the CPU (train.fp16 and train.bf16 have no meaning here)", flush=True)
    return TrainingArguments(
        output_dir=str(checkpoints), **chosen, fp16=s.train.fp16 and on_gpu, bf16=s.train.bf16 and on_gpu,
        per_device_eval_batch_size=s.train.per_device_train_batch_size * 2, prediction_loss_only=True,
        eval_strategy="steps", save_strategy="steps", logging_steps=10, logging_nan_inf_filter=False,
        gradient_checkpointing_kwargs={"use_reentrant": False}, remove_unused_columns=False, label_names=["labels"],
        seed=s.seed, data_seed=s.seed, report_to="none", disable_tqdm=True, log_level="error", dataloader_pin_memory=on_gpu,
        dataloader_prefetch_factor=2 if s.train.dataloader_num_workers else None,
    )


def report_cut(dataset: ReportDataset, max_length: int) -> None:
    if dataset.cut:
        print(f"{dataset.cut} of {len(dataset)} reports are cut to model.max_length {max_length} (the longest takes "
              f"{dataset.longest} tokens with its image)", flush=True)


def last_whole_checkpoint(checkpoints: Path) -> str | None:
    """The last checkpoint that was written to its end; a torn one is put aside with a line that says so."""
    while checkpoints.is_dir() and (last := get_last_checkpoint(str(checkpoints))):
        if is_whole(Path(last)):
            print(f"going on from {last}", flush=True)
            return last
        print(f"{last} is torn: skipped", flush=True)
        os.rename(last, f"{last}.torn")
    return None


def is_whole(checkpoint: Path) -> bool:
    """Whether all that resuming reads can be read. `trainer_state.json` is written last of all."""
    try:
        for name in ("optimizer.pt", "scheduler.pt"):
            torch.load(checkpoint / name, weights_only=True, map_location="cpu")
        return all((checkpoint / name).stat().st_size for name in ("adapter_model.safetensors", "trainer_state.json", "rng_state.pth"))
    except (OSError, RuntimeError, EOFError, ValueError):
        return False


def best_step(trainer: Trainer) -> int:
    return trainer.state.best_global_step or trainer.state.global_step


def check_best(trainer: Trainer, measured: float) -> None:
    """The adapter left in the model is the one that was best: its loss, measured again, is the recorded one."""
    recorded = trainer.state.best_metric
    if trainer.args.load_best_model_at_end and recorded is not None and not math.isclose(measured, recorded, rel_tol=1e-3):
        raise RuntimeError(f"the best adapter's validation loss was {recorded:.6f} and is {measured:.6f} after loading it again")
