"""Tune the base model with QLoRA to write the reports of the training split.

    python stages/train_qlora.py

Reads data/splits, data/images and the base model; writes models/adapter (plain PEFT, a model card, and what
its images looked like), metrics/train.json and the training curves.

A run that was cut off goes on from its last checkpoint under models/checkpoints, or under the folder that the
environment variable EXPLAINMYXRAY_CHECKPOINTS names, which may lie on a disk that outlives the machine.
"""

import os

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # the loader's processes are the parallelism
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read once, when torch is loaded; docs/benchmarks.md

from explainmyxray.command import parse_no_arguments
from explainmyxray.errors import exit_on_user_error
from explainmyxray.gpu import require_usable_gpu
from explainmyxray.settings import load_settings
from explainmyxray.training.processes import count_processes, run_in_processes


def main() -> None:
    parse_no_arguments(__doc__)
    settings = load_settings()
    require_usable_gpu()
    run_in_processes(tune, count_processes(settings.train))


def tune() -> None:
    """What each process does, which alone imports transformers and PEFT: seconds and half a GB."""
    from explainmyxray import tuning

    tuning.tune()


if __name__ == "__main__":
    exit_on_user_error(
        main, interrupted="interrupted: the next run goes on from the last checkpoint, if there is one"
    )
