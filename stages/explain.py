"""Write a report for each X-ray, with the findings that it names and how sure the model is.

    python stages/explain.py film.png study.dcm folder/
    python stages/explain.py folder/ --csv > reports.csv

Reads PNG, JPEG and DICOM. `sure` is the mean probability of the report's tokens; a finding's figure is the share of
sampled reports that name it. For research only: this is no medical device.
"""

import argparse
import dataclasses
import json
import os
import sys
from contextlib import redirect_stdout
from pathlib import Path

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pandas as pd
from tqdm import tqdm

from explainmyxray.errors import exit_on_user_error
from explainmyxray.explaining.explainer import NOTICE, Explanation
from explainmyxray.explaining.files import find_images
from explainmyxray.explaining.loading import ADAPTER, load
from explainmyxray.images.decoding import MAX_FILE_BYTES
from explainmyxray.reports.findings import FINDINGS


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "images", nargs="+", type=Path, metavar="IMAGE", help="a PNG, JPEG or DICOM file, or a folder of them"
    )
    parser.add_argument("--adapter", default=ADAPTER, help=f"a folder or a hub id (default: {ADAPTER})")
    parser.add_argument(
        "--samples",
        type=int,
        default=32,
        help="sampled reports behind each probability (default: 32; 0: none)",
    )
    output = parser.add_mutually_exclusive_group()
    output.add_argument("--json", action="store_true", help="a JSON object a line")
    output.add_argument("--csv", action="store_true", help="a table with a column a finding")
    options = parser.parse_args()
    paths = find_images(options.images)
    with redirect_stdout(sys.stderr):  # what loading says is no part of a table
        explainer = load(options.adapter, max(options.samples, 0))
    results = explainer.explain((str(path), read(path)) for path in paths)
    explanations = []
    for each in tqdm(results, total=len(paths), desc="explaining", unit="image", disable=len(paths) < 2):
        explanations.append(each)
        if not options.csv:
            tqdm.write(as_json(each) if options.json else as_text(each))
    if options.csv:
        print(as_csv(explanations))
    print(NOTICE, file=sys.stderr if options.csv or options.json else sys.stdout)
    if all(each.problem for each in explanations):
        sys.exit(1)


def read(path: Path) -> bytes:
    """The file's bytes, of one too large to be a film only the first, which is refused as too large."""
    with path.open("rb") as file:
        return file.read(MAX_FILE_BYTES + 1)


def as_text(each: Explanation) -> str:
    """A paragraph for a person."""
    if each.problem:
        return f"{each.image}\n  {each.problem}\n"
    likely = sorted((each.probabilities or {}).items(), key=lambda pair: -pair[1])
    lines = [
        each.image,
        *([f"  WARNING: {each.warning}"] if each.warning else []),
        f"  {each.report}",
        f"  sure: {each.certainty:.0%} a token; named in the report: {', '.join(each.findings) or 'no finding'}",
        "  " + ", ".join(f"{name} {share:.0%}" for name, share in likely if share >= 0.05),
    ]
    return "\n".join(line for line in lines if line.strip()) + "\n"


def as_json(each: Explanation) -> str:
    return json.dumps(dataclasses.asdict(each))


def as_csv(explained: list[Explanation]) -> str:
    rows = [
        {
            "image": each.image,
            "report": each.report,
            "findings": "|".join(each.findings),
            "certainty": each.certainty,
            **{name: (each.probabilities or {}).get(name) for name in FINDINGS},
            "warning": each.warning,
            "problem": each.problem,
        }
        for each in explained
    ]
    return pd.DataFrame(rows).to_csv(index=False, lineterminator="\n").rstrip("\n")


if __name__ == "__main__":
    exit_on_user_error(main)
