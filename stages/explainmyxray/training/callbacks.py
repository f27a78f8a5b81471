"""What happens beside the training loop: saving the best, a last log entry, curves, a line of progress."""

import time
from pathlib import Path

from dvclive import Live
from transformers import TrainerCallback


class SaveBestCallback(TrainerCallback):
    """Save a checkpoint at each best validation so far: Trainer can only reload at the end what was saved."""

    def on_evaluate(self, args, state, control, metrics, **kwargs):
        if state.best_metric is None or metrics["eval_loss"] < state.best_metric:
            control.should_save = True


class LogLastStepCallback(TrainerCallback):
    """Log at the last step, too: a run of fewer than `logging_steps` would have no training loss."""

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step >= state.max_steps:
            control.should_log = True


class SetEpochCallback(TrainerCallback):
    """Tell the dataset its epoch, on which its augmentation depends; also after resuming within one."""

    def __init__(self, dataset):
        self.dataset = dataset

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.dataset.epoch = int(state.epoch or 0)


class DVCLiveCallback(TrainerCallback):
    """Losses, F1 and learning rate through DVCLive, for `dvc plots show` during the run and after it."""

    CURVES = {
        "loss": "train_loss",
        "eval_loss": "eval_loss",
        "eval_findings_f1": "findings_f1",
        "eval_majority_f1": "majority_f1",
        "learning_rate": "learning_rate",
    }

    def __init__(self, folder: Path):
        self.folder = folder
        self.live = None

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            self.live = Live(str(self.folder), report=None, save_dvc_exp=False, dvcyaml=None)
        for entry in state.log_history:  # of the run that this one goes on from
            self._log(entry)

    def on_log(self, args, state, control, logs, **kwargs):
        self._log({**logs, "step": state.global_step})

    def _log(self, entry: dict) -> None:
        metrics = {name: entry[key] for key, name in self.CURVES.items() if key in entry}
        if self.live and metrics:
            self.live.step = entry["step"]
            for name, value in metrics.items():
                self.live.log_metric(name, round(value, 6), timestamp=False)


class ProgressCallback(TrainerCallback):
    """A line for each log entry, for a terminal and a file: step, loss, learning rate, speed, time left."""

    def __init__(self):
        self.started = None
        self.first_step = 0

    def on_train_begin(self, args, state, control, **kwargs):
        self.started = time.monotonic()
        self.first_step = state.global_step
        if state.is_world_process_zero and state.max_steps <= args.warmup_steps:
            print(
                f"the run ends within its warm-up, at step {state.max_steps} of train.warmup_steps "
                f"{args.warmup_steps}: the learning rate never reaches its full value",
                flush=True,
            )

    def on_log(self, args, state, control, logs, **kwargs):
        steps = state.global_step - self.first_step
        if not state.is_world_process_zero or self.started is None or steps == 0:
            return
        progress = f"step {state.global_step:>5}/{state.max_steps}"
        if "eval_loss" in logs:
            line = f"{progress}  validation loss {logs['eval_loss']:.4f}"
            if "eval_findings_f1" in logs:
                line += (
                    f"  findings F1 {logs['eval_findings_f1']:.3f}"
                    f" (one report for all: {logs['eval_majority_f1']:.3f})"
                )
            print(line, flush=True)
        elif "loss" in logs:
            seconds_per_step = (time.monotonic() - self.started) / steps
            images_per_step = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
            seconds_left = int(seconds_per_step * (state.max_steps - state.global_step))
            print(
                f"{progress}  loss {logs['loss']:.4f}  lr {logs['learning_rate']:.2e}  "
                f"{images_per_step / seconds_per_step:.1f} images/s  "
                f"{seconds_left // 60}:{seconds_left % 60:02d} left",
                flush=True,
            )
