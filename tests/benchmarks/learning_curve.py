"""What more films are worth: the recipe tuned on parts of the training split, scored on the same test films.

    python tests/benchmarks/learning_curve.py    # after `dvc repro`: reads data/splits and metrics/eval.json
    python tests/benchmarks/learning_curve.py --parts 2 4 8

Patients are drawn once, so that each part holds the smaller ones. The number of epochs stays, so that fewer
films are fewer steps as well. Prints a table, its last line as JSON; writes docs/pictures/learning_curve.png.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path += [str(Path(__file__).resolve().parents[2] / "stages"), str(Path(__file__).resolve().parents[1])]

import pandas as pd
from ruamel.yaml import YAML

from conftest import ROOT
from explainmyxray.pictures.style import BLUE, GREY, GRID, INK, ORANGE, VERMILION, png_figure
from explainmyxray.tables import patient_or_image, read_table, write_table

PICTURE = ROOT / "docs/pictures/learning_curve.png"
CONSENSUS, GREEDY = "tuned, consensus", "tuned, greedy"
BASELINES = ("classifier", "nearest", "majority", "untuned")
COLOURS = {CONSENSUS: BLUE, GREEDY: ORANGE, "classifier": INK, "nearest": VERMILION, "majority": GREY}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", type=int, nargs="+", default=[8, 4, 2], help="a half is 2")
    options = parser.parse_args()
    train = read_table(ROOT / "data/splits/train.csv")
    patients = patient_or_image(train)
    order = patients.drop_duplicates().sample(frac=1, random_state=0)
    rows = []
    for part in sorted(options.parts, reverse=True):
        some = train[patients.isin(order[: len(order) // part])]
        with tempfile.TemporaryDirectory() as folder:
            rows.append({"films": len(some), **figures(run(Path(folder), some))})
        print(rows[-1], flush=True)
    rows.append({"films": len(train), **figures(json.loads((ROOT / "metrics/eval.json").read_text()))})
    table = pd.DataFrame(rows)
    print(table.to_string(index=False, float_format="{:.3f}".format))
    draw(table)
    print(json.dumps(rows))


def run(folder: Path, train: pd.DataFrame) -> dict:
    """Train and evaluate on `train` with the repository's parameters and its other splits; eval.json."""
    write_table(folder / "data/splits/train.csv", train)
    for name in ("data/images", "data/splits/val.csv", "data/splits/test.csv", "metrics/labels.csv"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).symlink_to(ROOT / name)
    yaml = YAML(typ="safe")
    params = yaml.load(ROOT / "params.yaml")
    if (ROOT / params["model"]["id"]).is_dir():
        params["model"]["id"] = str(ROOT / params["model"]["id"])
    yaml.dump(params, folder / "params.yaml")
    for stage in ("train_qlora", "evaluate"):
        subprocess.run([sys.executable, ROOT / f"stages/{stage}.py"], cwd=folder, env=os.environ, check=True)
    return json.loads((folder / "metrics/eval.json").read_text())


def figures(evaluation: dict) -> dict[str, float]:
    """Micro-F1 of the tuned model in both decodings, and of what it is measured against."""
    both = evaluation["decodings"]["test"]
    f1 = {
        CONSENSUS: both["consensus"]["findings"]["micro_f1"],
        GREEDY: both["greedy"]["findings"]["micro_f1"],
    }
    for name in BASELINES:
        f1[name] = evaluation["baselines"][name]["findings"]["micro_f1"]
    return f1


def draw(table: pd.DataFrame) -> None:
    with png_figure(PICTURE, 760, 420) as figure:
        axes = figure.add_axes((0.09, 0.13, 0.66, 0.76))
        for name, colour in COLOURS.items():
            axes.plot(table["films"], table[name], color=colour, marker="o", label=name)
        axes.set_xscale("log", base=2)
        axes.set_xticks(table["films"], [f"{count:,}" for count in table["films"]])
        axes.set_ylim(0, 1)
        axes.set_title("Micro-F1 of the findings on the same test films", loc="left", fontsize=11)
        axes.set_xlabel("training films")
        axes.grid(color=GRID, linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1), fontsize=9)


if __name__ == "__main__":
    main()
