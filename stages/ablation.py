"""What each choice of the recipe is worth: experiments in DVC's queue, then one table and one plot of them.

    python stages/ablation.py queue    # puts every variant and seed of stages/ablation.yaml into the queue
    dvc queue start                    # trains and evaluates them, one after the other
    python stages/ablation.py table    # writes metrics/ablation.csv and metrics/ablation.png

A difference is that of the seeds' mean, and its interval resamples test patients with all their seeds: what
is left open is the luck of training, which the seeds beside each other show. The last row is the base without
an adapter.
"""

import argparse
import subprocess
import sys
from itertools import product
from pathlib import Path

# This folder last: `import evaluate` means Hugging Face's library, not stages/evaluate.py.
sys.path.append(sys.path.pop(0))

import pandas as pd
from ruamel.yaml import YAML

from explainmyxray.comparing.comparison import compare, compared_figures
from explainmyxray.comparing.revisions import load_predictions
from explainmyxray.errors import UserError, exit_on_user_error
from explainmyxray.pictures.ablation_plot import plot_ablation
from explainmyxray.scoring.evaluation import MODEL
from explainmyxray.settings import load_settings
from explainmyxray.tables import write_table

PLAN = Path(__file__).with_name("ablation.yaml")
TABLE, PLOT = Path("metrics/ablation.csv"), Path("metrics/ablation.png")
FIGURES = {"findings.micro_f1": "micro-F1", "bleu": "BLEU"}
UNTUNED = "untuned base"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "action", choices=["queue", "table"], help="queue the experiments, or sum up those that have run"
    )
    parser.add_argument(
        "--plan", type=Path, default=PLAN, help="variants and seeds (default: stages/ablation.yaml)"
    )
    parser.add_argument(
        "--samples", type=int, default=10_000, help="bootstrap resamples of patients (default: 10000)"
    )
    options = parser.parse_args()
    if options.samples < 1:
        parser.error("--samples: at least 1")
    if not options.plan.is_file():
        parser.error(f"--plan: {options.plan} is no file")
    plan = YAML(typ="safe").load(options.plan)
    if options.action == "queue":
        queue(plan)
    else:
        table = summarize(plan, options.samples)
        write_table(TABLE, table.round(4))
        plot_ablation(table, PLOT)
        print(table.round(3).to_string(index=False))


def queue(plan: dict) -> None:
    """An experiment for each seed and variant; all variants with the first seed come first."""
    for seed, (variant, changes) in product(plan["seeds"], plan["variants"].items()):
        name = experiment(variant, seed)
        command = [sys.executable, "-m", "dvc", "exp", "run", "--queue", "--name", name]
        for parameter, value in (plan["common"] | changes | {"train.seed": seed}).items():
            command += ["-S", f"{parameter}={value}"]
        if subprocess.run(command).returncode != 0:
            raise UserError(f"{name} was not queued, for the reason above; those before it are in the queue")


def experiment(variant: str, seed: int) -> str:
    """The experiment's name: git takes no blanks in it."""
    return f"ablation-{variant.replace(' ', '-')}-{seed}"


def summarize(plan: dict, samples: int) -> pd.DataFrame:
    """A row for each figure of each variant, and of the base without an adapter.

    Its value over all seeds, the least and the most of one seed, and the difference from the first variant.
    """
    # 1) The predictions of every run.
    runs = {}
    for variant in plan["variants"]:
        runs[variant] = [load_predictions(experiment(variant, seed)) for seed in plan["seeds"]]
    # 2) Every run wrote the untuned base's reports as well: the first variant's stand for it.
    reference = next(iter(runs.values()))
    runs[UNTUNED] = [predictions.assign(**{MODEL: predictions["untuned"]}) for predictions in reference]
    # 3) Each against the first variant, all seeds pooled.
    rows = []
    for variant, of_seeds in runs.items():
        compared = compare(pd.concat(reference), pd.concat(of_seeds), samples, load_settings().seed)
        compared = compared.set_index("figure")
        figures_of_seeds = [compared_figures(predictions) for predictions in of_seeds]
        for figure, name in FIGURES.items():
            values = [figures[figure] for figures in figures_of_seeds]
            row = compared.loc[figure]
            rows.append(
                {
                    "variant": variant,
                    "figure": name,
                    "value": row["after"],
                    "least": min(values),
                    "most": max(values),
                    "difference": row["difference"],
                    "low": row["low"],
                    "high": row["high"],
                    "seeds": len(values),
                }
            )
    return pd.DataFrame(rows)


if __name__ == "__main__":
    exit_on_user_error(main)
