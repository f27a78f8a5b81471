"""Write a report for each X-ray, with the findings that it
asserts and how often sampled reports assert each finding.

    python stages/explain.py film.png study.dcm folder/
    python stages/explain.py folder/ --csv > reports.csv

Reads PNG, JPEG and DICOM. A finding's figure is the share of sampled reports that assert it. Exit status
1 where a file could not be explained; the others are. For research only: this is no medical device.
"""

import argparse
import csv
import dataclasses
import io
import json
import os
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read once, when torch is loaded; docs/benchmarks.md

from tqdm import tqdm

from explainmyxray.errors import exit_on_user_error
from explainmyxray.explaining.arguments import add_model_arguments
from explainmyxray.explaining.explanation import NO_REPORT, NOTICE, Explanation
from explainmyxray.explaining.files import find_images, image_problem
from explainmyxray.images.decoding import MAX_FILE_BYTES
from explainmyxray.reports.findings import FINDINGS, SHOWN_SHARE


def main() -> None:
    options = parse_arguments()
    paths = find_images(options.images)
    results = explain(paths, options.adapter, options.samples)
    explanations = []
    for each in tqdm(results, total=len(paths), desc="explaining", unit="image", disable=len(paths) < 2):
        explanations.append(each)
        if not options.csv:
            tqdm.write(as_json(each) if options.json else as_text(each))
    if options.csv:
        print(as_csv(explanations), end="")
    print(NOTICE, file=sys.stderr if options.csv or options.json else sys.stdout)
    if any(each.problem for each in explanations):
        sys.exit(1)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "images", nargs="+", type=Path, metavar="IMAGE", help="a PNG, JPEG or DICOM file, or a folder of them"
    )
    add_model_arguments(parser)
    output = parser.add_mutually_exclusive_group()
    output.add_argument("--json", action="store_true", help="a JSON object a line")
    output.add_argument("--csv", action="store_true", help="a table with a column a finding")
    return parser.parse_args()


def explain(paths: list[Path], adapter: str, samples: int | None) -> Iterator[Explanation]:
    """An explanation for each file, in order; the model is loaded only where one of them is an image."""
    problems = []
    for path in paths:
        problem = image_problem(read(path))
        if not problem:
            break
        problems.append(Explanation(str(path), problem=problem))
    if len(problems) == len(paths):
        return iter(problems)
    # torch and transformers take seconds to import: only where there is something to explain.
    from explainmyxray.explaining.loading import load_explainer

    with redirect_stdout(sys.stderr):  # what loading says is no part of a table
        explainer = load_explainer(adapter, samples)
    return explainer.explain((str(path), read(path)) for path in paths)


def read(path: Path) -> bytes:
    """The file's content; of one too large to be a film only the beginning, which is refused as too large."""
    with path.open("rb") as file:
        return file.read(MAX_FILE_BYTES + 1)


def as_text(explanation: Explanation) -> str:
    """A paragraph for a person."""
    lines = [explanation.image]
    if explanation.problem:
        lines.append(f"  {explanation.problem}")
        return "\n".join(lines) + "\n"
    if explanation.warning:
        lines.append(f"  WARNING: {explanation.warning}")
    lines += [f"  REMARK: {remark}" for remark in explanation.remarks]
    lines.append(f"  {explanation.report}")
    lines.append(f"  findings in the report: {', '.join(explanation.findings) or 'none'}")
    if explanation.probabilities is not None:
        lines.append(f"  in sampled reports: {shares_as_text(explanation)}")
        if explanation.measured:
            lines.append("    (in brackets: of test findings with such a share, how many are there)")
        lines.append(f"    {explanation.calibration}")
        if NO_REPORT not in explanation.remarks:  # texts that name none agree in that
            lines.append(f"  sampled reports with the same findings: {explanation.agreement:.0%}")
    return "\n".join(lines) + "\n"


def shares_as_text(explanation: Explanation) -> str:
    """Findings with their shares, the largest first, and what such a share was worth on the test split."""
    shown = [(name, share) for name, share in explanation.probabilities.items() if share >= SHOWN_SHARE]
    shown.sort(key=lambda pair: -pair[1])
    texts = []
    for name, share in shown:
        like = (explanation.measured or {}).get(name)
        worth = f" ({like.present:.0%} of {like.findings})" if like else ""
        texts.append(f"{name} {share:.0%}{worth}")
    return ", ".join(texts) or "no finding"


def as_json(explanation: Explanation) -> str:
    return json.dumps(dataclasses.asdict(explanation))


def as_csv(explanations: list[Explanation]) -> str:
    """A row an image, with a column a finding; blank where nothing was sampled."""
    # What the shares are worth is the same for each film: it is in the text and in JSON.
    columns = ["image", "report", "findings", *FINDINGS, "agreement", "remarks", "warning", "problem"]
    table = io.StringIO()
    writer = csv.DictWriter(table, columns, lineterminator="\n")
    writer.writeheader()
    for each in explanations:
        row = dataclasses.asdict(each)
        row |= row.pop("probabilities") or {}
        del row["measured"], row["calibration"]
        row["findings"] = "|".join(each.findings)
        row["remarks"] = "; ".join(each.remarks)
        writer.writerow(row)
    return table.getvalue()


if __name__ == "__main__":
    exit_on_user_error(main)
