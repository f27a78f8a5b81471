"""Say which figures moved by more than chance between two revisions, as a Markdown table.

    python stages/compare.py main              # main against the working tree
    python stages/compare.py main lora-32      # two of: a commit, a branch, a tag, the name of an experiment
    python stages/compare.py main --fail-if-worse    # exit 1: a headline figure is worse, or a guard broken

Reads params.yaml, metrics/predictions.csv, metrics/eval.json and, where there are any, metrics/samples.csv of
both, the gate metrics/split.json, too; needs no model. The interval covers the choice of test
patients. It does not cover the luck of one training run: for that, train again with another `train.seed` and
see how far the two differ.
"""

import argparse
import sys

# This folder last: `import evaluate` means Hugging Face's library, not stages/evaluate.py.
sys.path.append(sys.path.pop(0))

import pandas as pd

from explainmyxray.comparing.comparison import common_images, compare, compare_calibration, is_better
from explainmyxray.comparing.gate import broken_guards, worse_figures
from explainmyxray.comparing.revisions import (
    changed_parameters,
    load_metrics,
    load_parameters,
    load_predictions,
    load_samples,
    stale_parameters,
)
from explainmyxray.errors import UserError, exit_on_user_error
from explainmyxray.settings import load_settings

EVALUATION = "metrics/eval.json"


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
    parser.add_argument(
        "--fail-if-worse",
        action="store_true",
        help="exit with 1 where a headline figure or the calibration is worse by more than chance, the model "
        "does no better than blind, most reports are the same text, too many are malformed, or the splits "
        "leak (thresholds: gate in params.yaml)",
    )
    options = parser.parse_args()
    if options.samples < 1:
        parser.error("--samples: at least 1")
    # The settings first: outside the repository's root they are what is missing, and the message says so.
    settings = load_settings()
    all_before, all_after = load_predictions(options.before), load_predictions(options.after)
    parameters_before, parameters_after = load_parameters(options.before), load_parameters(options.after)
    before, after = common_images(all_before, all_after)
    if sys.stderr.isatty():  # it takes half a minute, and .ci/review keeps what is written to a file
        print(f"comparing {len(before)} test images, {options.samples:,} resamples ...", file=sys.stderr)
    figures = compare(before, after, options.samples, settings.seed)
    samples_before, samples_after = load_samples(options.before), load_samples(options.after)
    if samples_before is not None and samples_after is not None:
        calibration = compare_calibration(samples_before, samples_after, options.samples, settings.seed)
        figures = pd.concat([figures, calibration], ignore_index=True)

    names = options.name or options.before, options.after or "working tree"
    malformed_before, malformed_after = malformed_reports(options.before), malformed_reports(options.after)
    images = f"{len(before)} test images of {before['patient'].nunique()} patients"
    print(summary_line(figures, *names, images))
    print()
    failures = []
    if options.fail_if_worse:
        failures = worse_figures(figures, settings.gate)
        failures += broken_guards(
            all_after,
            load_metrics(EVALUATION, options.after),
            load_metrics("metrics/split.json", options.after),
            settings.gate,
            options.samples,
            settings.seed,
        )
        print(gate_verdict(failures))
        print()
    stale = (
        stale_parameters(options.before, parameters_before),
        stale_parameters(options.after, parameters_after),
    )
    for name, changes in zip(names, stale):
        for row in changes.itertuples():
            made_with = f"{row.parameter} {row.before}, not {row.after}"
            print(f"NOTE: the figures of {name} were made with {made_with}.\n")
    print(parameter_table(changed_parameters(parameters_before, parameters_after), *names))
    print()
    print(figure_table(figures, *names))
    print(f"\nMalformed reports: {malformed_before} ({names[0]}), {malformed_after} ({names[1]}).")
    print(
        f"\nOf {len(figures)} figures that did not change, about {len(figures) / 20:.0f} would look as if "
        "they had. The interval covers the choice of test patients, not the luck of a training run."
    )
    if len(before) < max(len(all_before), len(all_after)):
        print(f"\nThe test sets differ: of {len(all_before)} and {len(all_after)} images these are in both.")
    if not before["report"].equals(after["report"]):
        print("\nThe reference reports differ: BLEU and ROUGE compare their wordings as well as the models.")
    if failures:
        sys.exit(1)


def summary_line(figures: pd.DataFrame, before: str, after: str, images: str) -> str:
    """The figures that moved by more than chance, in one line."""
    moved = figures[~figures["within_noise"]]
    differences = [f"{row.figure} {row.difference:+.3g}" for row in moved.itertuples()]
    return f"**More than chance: {', '.join(differences) or 'nothing'}** ({after} against {before}, {images})"


def malformed_reports(revision: str | None) -> str:
    """How many of a revision's reports are malformed, where its `metrics/eval.json` has it."""
    try:
        evaluation = load_metrics(EVALUATION, revision)
    except UserError:  # a revision without
        evaluation = {}
    if "malformed_reports" not in evaluation:
        return "not counted"
    return f"{evaluation['malformed_reports']['any']} of {evaluation['n']}"


def gate_verdict(failures: list[str]) -> str:
    """Whether the revision may be merged, and each reason why not."""
    if not failures:
        return "**Gate: passed**"
    return "\n".join(["**Gate: failed**", "", *(f"- {failure}" for failure in failures)])


def parameter_table(parameters: pd.DataFrame, before: str, after: str) -> str:
    """The parameters that differ, as a Markdown table: a figure moves for a reason."""
    if parameters.empty:
        return "No parameter differs."
    lines = [f"| parameter | {before} | {after} |", "|---|---|---|"]
    for row in parameters.itertuples():
        lines.append(f"| {row.parameter} | {row.before} | {row.after} |")
    return "\n".join(lines)


def figure_table(figures: pd.DataFrame, before: str, after: str) -> str:
    """The figures as a Markdown table, with a verdict on each."""
    lines = [
        f"| figure | {before} | {after} | difference | 95 % interval | |",
        "|---|---:|---:|---:|---:|---|",
    ]
    for row in figures.itertuples():
        if row.within_noise:
            verdict = "within chance"
        else:
            verdict = "**better**" if is_better(row.figure, row.difference) else "**worse**"
        lines.append(
            f"| {row.figure} | {row.before:.3f} | {row.after:.3f} | {row.difference:+.3f} | "
            f"{row.low:+.3f} to {row.high:+.3f} | {verdict} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    exit_on_user_error(main)
