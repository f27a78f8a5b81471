"""What the data stages cost on a table of one's own films, by number of rows.

    python tests/benchmarks/table.py    # 5,000, 20,000 and 100,000 rows; 4 GB of disk in --folder
    python tests/benchmarks/table.py --counts 5000

Stand-in films (JPEG, 256 pixels, no two alike) with reports of template wording, two films a patient. For
each stage: seconds, seconds of processor time over all its processes (which a busy machine hardly changes),
and the MiB of its largest process. The last line is JSON.
"""

import argparse
import csv
import io
import json
import random
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

sys.path += [str(Path(__file__).resolve().parents[2] / "stages"), str(Path(__file__).resolve().parents[1])]

import numpy as np
from PIL import Image

from benchmarks.data import run
from conftest import ROOT, write_params
from explainmyxray.reports.findings import FINDINGS
from explainmyxray.reports.templates import load_templates
from explainmyxray.reports.writer import render_report

FILM_SIZE = 256  # pixels a side
STAGES = ("fetch", "synthesize_reports", "split")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--counts", type=int, nargs="+", default=[5_000, 20_000, 100_000])
    parser.add_argument(
        "--stages", nargs="+", default=STAGES, choices=STAGES, help="the first ones of the three"
    )
    parser.add_argument("--folder", help="where to work (default: the system's place for temporary files)")
    options = parser.parse_args()
    rows = []
    columns = "".join(f"{f'{stage} s':>21}{'CPU s':>8}{'MiB':>6}" for stage in options.stages)
    print(f"{'rows':>8}{columns}", flush=True)
    for count in options.counts:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            make_films(Path(folder), count)
            row = {"rows": count}
            cells = f"{count:>8}"
            for stage in options.stages:
                cost = run(Path(folder), sys.executable, ROOT / f"stages/{stage}.py")
                row[stage] = asdict(cost)
                cells += f"{cost.seconds:>21.1f}{cost.cpu_seconds:>8.1f}{cost.peak_mib:>6.0f}"
        rows.append(row)
        print(cells, flush=True)
    print(json.dumps(rows))


def make_films(folder: Path, count: int) -> None:
    """The films, their table, and params.yaml that names it."""
    write_params(folder, {"data": {"source": "table", "table": "films.csv"}})
    templates = load_templates()
    with (folder / "films.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "patient", "report"])
        for number in range(count):
            rng = random.Random(number)
            name = f"{number // 1000:03}/{number:06}.jpg"
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(stand_in(number))
            labels = rng.sample(FINDINGS, rng.choice((0, 0, 1, 2)))
            writer.writerow([name, f"p{number // 2}", render_report(labels, templates, rng, 2)])


def stand_in(number: int) -> bytes:
    """A film of grey clouds that no other number gives."""
    clouds = np.random.default_rng(number).integers(0, 256, (24, 24), np.uint8)
    image = Image.fromarray(clouds).resize((FILM_SIZE, FILM_SIZE), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=85)
    return file.getvalue()


if __name__ == "__main__":
    main()
