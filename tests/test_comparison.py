"""Two revisions: what differs by more than chance, and only that."""

import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from explainmyxray.errors import UserError
from explainmyxray.reports import writer
from explainmyxray.scoring import card
from explainmyxray.scoring.comparison import compare, shared
from explainmyxray.studies import join_labels, write_table

ROOT = Path(__file__).resolve().parents[1]
NAMES = ["Cardiomegaly", "Effusion", "Mass", "Nodule"]


def predictions(right: float, seed: int, images: int = 120) -> pd.DataFrame:
    """A test set of two images a patient, always the same, and a model whose reports name the labels with probability `right`."""
    facts, luck, bank = np.random.default_rng(0), np.random.default_rng(seed), writer.load_bank()
    rows = []
    for row in range(images):
        labels = set(facts.choice(NAMES, size=facts.integers(0, 3), replace=False))
        said = labels if luck.random() < right else set(luck.choice(NAMES, size=1))
        wording = random.Random(row)
        texts = {name: writer.write(each, bank, wording, 1) for name, each in (("report", labels), (card.MODEL, said))}
        rows.append({name: "" for name in card.COLUMNS} | texts | {
            "image": f"{row}.png", "source": "phantom", "patient": f"p{row // 2}", "labels": join_labels(labels)})
    return pd.DataFrame(rows)


def test_a_model_that_is_better_is_told_from_one_that_is_not():
    before, same, better = predictions(0.6, 1), predictions(0.6, 2), predictions(0.95, 3)
    moved = compare(before, better, 2000, 0).set_index("figure")
    row = moved.loc["findings.micro_f1"]
    assert not row["noise"] and row["low"] > 0 and row["low"] < row["difference"] < row["high"]
    assert np.isclose(row["after"] - row["before"], row["difference"])
    assert compare(before, same, 2000, 0).set_index("figure").loc["findings.micro_f1", "noise"]
    worse = compare(better, before, 2000, 0).set_index("figure").loc["findings.micro_f1"]
    assert not worse["noise"] and worse["high"] < 0


def test_chance_alone_is_seldom_called_a_difference():
    """A 95 % interval leaves out the truth in about one of twenty pairs of equal models."""
    pairs = [(predictions(0.7, 100 + seed), predictions(0.7, 200 + seed)) for seed in range(40)]
    called = [not compare(*pair, 200, seed).set_index("figure").loc["findings.micro_f1", "noise"] for seed, pair in enumerate(pairs)]
    assert sum(called) <= 7   # binomial(40, 0.05): more in one of 1,000


def test_the_comparison_is_paired_and_seeded():
    before = predictions(0.7, 1)
    after = before.copy()
    after.loc[:9, card.MODEL] = after.loc[:9, "report"]   # ten reports better, all others the same
    table = compare(before, after, 2000, 0)
    width = table.set_index("figure").loc["findings.micro_f1"]
    alone = compare(before, predictions(0.7, 2), 2000, 0).set_index("figure").loc["findings.micro_f1"]
    assert width["high"] - width["low"] < 0.6 * (alone["high"] - alone["low"])
    assert compare(before, before, 100, 0)["noise"].all()
    pd.testing.assert_frame_equal(table, compare(before, after, 2000, 0))
    assert not table["figure"].str.contains("Hernia").any()   # no test image has it


def test_only_images_that_both_have_are_compared():
    before, after = predictions(0.6, 1), predictions(0.6, 2).sample(frac=1, random_state=0)
    left, right = shared(before.iloc[:100], after)
    assert len(left) == 100 and list(left["image"]) == list(right["image"])
    other = after.assign(patient="q" + after["patient"])   # the same names, another seed's phantoms
    with pytest.raises(UserError, match="cannot be compared"):
        shared(before, other)


def test_two_revisions_on_the_command_line(tmp_path):
    def run(*command):
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)

    def commit(table, tag):
        write_table(tmp_path / "metrics/predictions.csv", table)
        run("git", "add", "."), run("git", "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", tag), run("git", "tag", tag)

    run("git", "init", "-q"), run(sys.executable, "-m", "dvc", "init", "-q")
    (tmp_path / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    commit(predictions(0.5, 1), "weak")
    commit(predictions(0.95, 2), "strong")
    command = (sys.executable, str(ROOT / "stages/compare.py"))
    found = run(*command, "weak", "strong", "--samples", "500")
    assert found.returncode == 0, found.stderr
    assert "| findings.micro_f1 |" in found.stdout and "**better**" in found.stdout and "120 test images of 60 patients" in found.stdout
    missing = run(*command, "nosuch")
    assert missing.returncode == 1 and len(missing.stderr.strip().splitlines()) == 1 and "nosuch" in missing.stderr
