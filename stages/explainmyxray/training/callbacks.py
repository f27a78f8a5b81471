"""What happens beside the training loop: saving the best, curves, and a line of progress."""

import time
from pathlib import Path

from dvclive import Live
from transformers import TrainerCallback


class SaveBest(TrainerCallback):
    """Save a checkpoint whenever validation is the best so far: Trainer can only reload at the end what was saved."""

    def on_evaluate(self, args, state, control, metrics, **kwargs):
        if state.best_metric is None or metrics["eval_loss"] < state.best_metric:
            control.should_save = True


class SetEpochCallback(TrainerCallback):
    """Tell the data set which epoch it is in, on which its augmentation depends; also after resuming in the middle of one."""

    def __init__(self, dataset):
        self.dataset = dataset

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.dataset.epoch = int(state.epoch or 0)


class DVCLiveCallback(TrainerCallback):
    """Losses and learning rate through DVCLive, for `dvc plots show` during the run and after it."""

    CURVES = {"loss": "train_loss", "eval_loss": "eval_loss", "learning_rate": "learning_rate"}

    def __init__(self, folder: Path):
        self.folder = folder

    def on_train_begin(self, args, state, control, **kwargs):
        self.live = (
            Live(str(self.folder), report=None, save_dvc_exp=False, dvcyaml=None)
            if state.is_world_process_zero
            else None
        )
        for entry in state.log_history:  # of the run that this one goes on from
            self._log(entry)

    def on_log(self, args, state, control, logs, **kwargs):
        self._log({**logs, "step": state.global_step})

    def _log(self, entry: dict) -> None:
        found = {name: entry[key] for key, name in self.CURVES.items() if key in entry}
        if self.live and found:
            self.live.step = entry["step"]
            for name, value in found.items():
                self.live.log_metric(name, round(value, 6), timestamp=False)


class Progress(TrainerCallback):
    """A line for each log entry: step, loss, learning rate, speed and time left; as readable in a file as in a terminal."""

    def on_train_begin(self, args, state, control, **kwargs):
        self.start, self.first_step = time.monotonic(), state.global_step

    def on_log(self, args, state, control, logs, **kwargs):
        if (
            not state.is_world_process_zero
            or not hasattr(self, "start")
            or state.global_step == self.first_step
        ):
            return
        if "eval_loss" in logs:
            print(
                f"step {state.global_step:>5}/{state.max_steps}  validation loss {logs['eval_loss']:.4f}",
                flush=True,
            )
        elif "loss" in logs:
            per_step = (time.monotonic() - self.start) / (state.global_step - self.first_step)
            batch = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
            left = per_step * (state.max_steps - state.global_step)
            print(
                f"step {state.global_step:>5}/{state.max_steps}  loss {logs['loss']:.4f}  lr {logs['learning_rate']:.2e}  "
                f"{batch / per_step:.1f} images/s  {int(left // 60)}:{int(left % 60):02d} left",
                flush=True,
            )
