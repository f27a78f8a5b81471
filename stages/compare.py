"""Say which figures moved by more than chance between two revisions, as a Markdown table.

    python stages/compare.py main              # main against the working tree
    python stages/compare.py main lora-32      # two of: a commit, a branch, a tag, the name of an experiment

Reads metrics/predictions.csv of both; needs no model. The interval covers the choice of test patients. It does not cover
the luck of one training run: for that, train again with another `train.seed` and see how far the two differ.
"""

import argparse
import sys

# This folder last: `import evaluate` means Hugging Face's library, not stages/evaluate.py.
sys.path.append(sys.path.pop(0))

import pandas as pd

from explainmyxray.comparing.comparison import common_images, compare
from explainmyxray.comparing.revisions import load_predictions
from explainmyxray.errors import exit_on_user_error
from explainmyxray.settings import load_settings


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("before", metavar="REV_A", help="the revision to compare with")
    parser.add_argument(
        "after", metavar="REV_B", nargs="?", help="the revision to judge (default: the working tree)"
    )
    parser.add_argument(
        "--samples", type=int, default=10_000, help="bootstrap resamples of patients (default: 10000)"
    )
    parser.add_argument("--name", help="what to call REV_A in the table (default: REV_A)")
    options = parser.parse_args()
    if options.samples < 1:
        parser.error("--samples: at least 1")
    left, right = load_predictions(options.before), load_predictions(options.after)
    before, after = common_images(left, right)
    table = compare(before, after, options.samples, load_settings().seed)
    names = options.name or options.before, options.after or "working tree"
    images = f"{len(before)} test images of {before['patient'].nunique()} patients"
    print(markdown(table, *names, images))
    if len(before) < max(everything := (len(left), len(right))):
        print(f"\nThe test sets differ: of {everything[0]} and {everything[1]} images these are in both.")
    if not before["report"].equals(after["report"]):
        print("\nThe reference reports differ: BLEU and ROUGE compare their wordings as well as the models.")


def markdown(table: pd.DataFrame, before: str, after: str, images: str) -> str:
    """The table as Markdown, a line that sums it up above it and what it cannot say below."""
    moved = table[~table["within_noise"]]
    said = ", ".join(f"{row.figure} {row.difference:+.3g}" for row in moved.itertuples()) or "nothing"
    lines = [
        f"**More than chance: {said}** ({after} against {before}, {images})",
        "",
        f"| figure | {before} | {after} | difference | 95 % interval | |",
        "|---|---:|---:|---:|---:|---|",
    ]
    for row in table.itertuples():
        verdict = "within chance" if row.within_noise else "**better**" if row.difference > 0 else "**worse**"
        lines.append(
            f"| {row.figure} | {row.before:.3f} | {row.after:.3f} | {row.difference:+.3f} | "
            f"{row.low:+.3f} to {row.high:+.3f} | {verdict} |"
        )
    return "\n".join(
        [
            *lines,
            "",
            f"Of {len(table)} figures that did not change, about {len(table) / 20:.0f} would look as if they "
            "had. The interval covers the choice of test patients, not the luck of a training run.",
        ]
    )


if __name__ == "__main__":
    exit_on_user_error(main)
