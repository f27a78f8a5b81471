"""What each choice of the recipe is worth: experiments in DVC's queue, then one table and one plot of them.

    python stages/ablation.py queue    # puts every variant of stages/ablation.yaml into the queue, with every seed
    dvc queue start                    # trains and evaluates them, one after the other
    python stages/ablation.py table    # writes metrics/ablation.csv and metrics/ablation.png

A difference is that of the seeds' mean, and its interval resamples test patients with all their seeds: what is left open is
the luck of training, which the seeds beside each other show.
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

from explainmyxray.comparing.comparison import compare
from explainmyxray.comparing.revisions import load_predictions
from explainmyxray.errors import exit_on_user_error
from explainmyxray.pictures.ablation_plot import plot_ablation
from explainmyxray.settings import load_settings
from explainmyxray.tables import write_table

PLAN, TABLE, PLOT = (
    Path(__file__).with_name("ablation.yaml"),
    Path("metrics/ablation.csv"),
    Path("metrics/ablation.png"),
)
FIGURES = {"findings.micro_f1": "micro-F1", "bleu": "BLEU"}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["queue", "table"])
    parser.add_argument(
        "--plan", type=Path, default=PLAN, help="variants and seeds (default: stages/ablation.yaml)"
    )
    parser.add_argument(
        "--samples", type=int, default=10_000, help="bootstrap resamples of patients (default: 10000)"
    )
    options = parser.parse_args()
    plan = YAML(typ="safe").load(options.plan)
    if options.what == "queue":
        queue(plan)
    else:
        table = summary(plan, options.samples)
        write_table(TABLE, table.round(4))
        plot_ablation(table, PLOT)
        print(table.round(3).to_string(index=False))


def queue(plan: dict) -> None:
    """An experiment for each seed and variant: all variants with the first seed come first, and can be looked at then."""
    for seed, (variant, changes) in product(plan["seeds"], plan["variants"].items()):
        values = plan["common"] | changes | {"train.seed": seed}
        sets = [part for key, value in values.items() for part in ("-S", f"{key}={value}")]
        subprocess.run(
            ["dvc", "exp", "run", "--queue", "--name", experiment(variant, seed), *sets], check=True
        )


def experiment(variant: str, seed: int) -> str:
    """The experiment's name: git takes no blanks in it."""
    return f"ablation-{variant.replace(' ', '-')}-{seed}"


def summary(plan: dict, samples: int) -> pd.DataFrame:
    """A row for each variant: its figures over all seeds, the least and the most of a seed, and the difference from the first."""
    tables = {
        variant: [load_predictions(experiment(variant, seed)) for seed in plan["seeds"]]
        for variant in plan["variants"]
    }
    first, *_ = tables
    rows = []
    for variant, of_seeds in tables.items():
        whole = compare(
            pd.concat(tables[first]), pd.concat(of_seeds), samples, load_settings().seed
        ).set_index("figure")
        each = [compare(table, table, 1, 0).set_index("figure")["after"] for table in of_seeds]
        for figure in FIGURES:
            seeds = [figures[figure] for figures in each]
            moved = whole.loc[figure]
            rows.append(
                {
                    "variant": variant,
                    "figure": FIGURES[figure],
                    "value": moved["after"],
                    "least": min(seeds),
                    "most": max(seeds),
                    "difference": moved["difference"],
                    "low": moved["low"],
                    "high": moved["high"],
                    "seeds": len(seeds),
                }
            )
    return pd.DataFrame(rows)


if __name__ == "__main__":
    exit_on_user_error(main)
