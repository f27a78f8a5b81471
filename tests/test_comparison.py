"""Two revisions: what differs by more than chance, and only that."""

import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from conftest import ROOT, run_stage, write_params
from explainmyxray.comparing.comparison import common_images, compare
from explainmyxray.comparing.gate import broken_guards, worse_figures
from explainmyxray.comparing.revisions import changed_parameters
from explainmyxray.errors import UserError
from explainmyxray.reports import writer
from explainmyxray.reports.templates import load_templates
from explainmyxray.scoring import evaluation
from explainmyxray.settings import Gate
from explainmyxray.tables import join_labels, write_metrics, write_table

GATE = Gate(max_drop=0.0, max_same_text=0.2, max_malformed=0.01)
WELL_FORMED = {"n": 120, "malformed_reports": {"any": 1}}
NO_LEAK = {"shared": {"patients": 0, "images": 0}}
NAMES = ["Cardiomegaly", "Effusion", "Mass", "Nodule"]


def predictions(right: float, seed: int, images: int = 120) -> pd.DataFrame:
    """One test set, two images a patient; the model's reports name the labels with probability `right`."""
    facts, luck, templates = np.random.default_rng(0), np.random.default_rng(seed), load_templates()
    rows = []
    for row in range(images):
        labels = set(facts.choice(NAMES, size=facts.integers(0, 3), replace=False))
        named = labels if luck.random() < right else set(luck.choice(NAMES, size=1))
        wording = random.Random(row)
        texts = {
            column: writer.render_report(findings, templates, wording, 1)
            for column, findings in (("report", labels), (evaluation.MODEL, named))
        }
        rows.append(
            dict.fromkeys(evaluation.COLUMNS, "")
            | texts
            | {
                "image": f"{row}.png",
                "source": "phantom",
                "patient": f"p{row // 2}",
                "labels": join_labels(labels),
            }
        )
    return pd.DataFrame(rows)


def test_a_model_that_is_better_is_told_from_one_that_is_not():
    before, same, better = predictions(0.6, 1), predictions(0.6, 2), predictions(0.95, 3)
    moved = compare(before, better, 2000, 0).set_index("figure")
    row = moved.loc["findings.micro_f1"]
    assert not row["within_noise"] and row["low"] > 0 and row["low"] < row["difference"] < row["high"]
    assert np.isclose(row["after"] - row["before"], row["difference"])
    assert compare(before, same, 2000, 0).set_index("figure").loc["findings.micro_f1", "within_noise"]
    worse = compare(better, before, 2000, 0).set_index("figure").loc["findings.micro_f1"]
    assert not worse["within_noise"] and worse["high"] < 0


@pytest.mark.slow
def test_chance_alone_is_seldom_called_a_difference():
    """A 95 % interval leaves out the truth in about one of twenty pairs of equal models."""
    pairs = [(predictions(0.7, 100 + seed), predictions(0.7, 200 + seed)) for seed in range(40)]
    called = [
        not compare(*pair, 200, seed).set_index("figure").loc["findings.micro_f1", "within_noise"]
        for seed, pair in enumerate(pairs)
    ]
    assert sum(called) <= 7  # binomial(40, 0.05): more in one of 1,000


def test_the_comparison_is_paired_and_seeded():
    before = predictions(0.7, 1)
    after = before.copy()
    after.loc[:9, evaluation.MODEL] = after.loc[:9, "report"]  # ten reports better, all others the same
    table = compare(before, after, 2000, 0)
    width = table.set_index("figure").loc["findings.micro_f1"]
    alone = compare(before, predictions(0.7, 2), 2000, 0).set_index("figure").loc["findings.micro_f1"]
    assert width["high"] - width["low"] < 0.6 * (alone["high"] - alone["low"])
    assert compare(before, before, 100, 0)["within_noise"].all()
    pd.testing.assert_frame_equal(table, compare(before, after, 2000, 0))
    assert not table["figure"].str.contains("Hernia").any()  # no test image has it


def test_only_images_that_both_have_are_compared():
    before, after = predictions(0.6, 1), predictions(0.6, 2).sample(frac=1, random_state=0)
    left, right = common_images(before.iloc[:100], after)
    assert len(left) == 100 and list(left["image"]) == list(right["image"])
    other = after.assign(patient="q" + after["patient"])  # the same names, another seed's phantoms
    with pytest.raises(UserError, match="cannot be compared"):
        common_images(before, other)


@pytest.fixture
def repository(tmp_path):
    """A repository with a weak model in the commit `weak`; a better one, of another rank, in the tree."""

    def run(*command):
        environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment)

    def put(table, rank):
        write_table(tmp_path / "metrics/predictions.csv", table)
        write_metrics(tmp_path / "metrics/headline.json", {"bleu": rank / 2})
        write_metrics(tmp_path / "metrics/eval.json", {"rouge1": rank / 20} | WELL_FORMED)
        write_metrics(tmp_path / "metrics/split.json", NO_LEAK)
        write_params(tmp_path, {"lora": {"r": rank}})

    run("git", "init", "-q")
    run("dvc", "init", "-q")
    (tmp_path / "dvc.yaml").write_text("params: [params.yaml]\nmetrics: [metrics/headline.json]\n")
    put(predictions(0.5, 1), 16)
    run("git", "add", ".")
    run("git", "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "weak")
    run("git", "tag", "weak")
    put(predictions(0.95, 2), 32)
    return run


@pytest.mark.slow
def test_the_review_says_what_changed_and_what_is_more_than_chance(repository):
    """The text of the comment that a pull request gets."""
    review = repository(str(ROOT / ".ci/review"), "weak", "main")
    assert review.returncode == 0, review.stderr
    words = " ".join(review.stdout.split())
    assert "**Gate: passed**" in words
    assert words.startswith("## Against main **More than chance: bleu +")
    assert "(working tree against main, 120 test images of 60 patients)" in words
    assert "| figure | main | working tree | difference | 95 % interval | |" in words
    assert words.count("**better**") >= 4 and "**worse**" not in words
    assert "| lora.r | 16 | 32 |" in words
    assert "| metrics/headline.json | bleu | 8.0 | 16.0 | 8.0 |" in words
    assert "| metrics/eval.json | rouge1 | 0.8 | 1.6 | 0.8 |" in words
    assert words.index("lora.r") < words.index("| figure | main |")
    assert words.count("lora.r") == 1
    assert "Malformed reports: 1 of 120 (main), 1 of 120 (working tree)." in words


def test_a_reader_that_ends_early_gets_no_traceback(repository, tmp_path):
    """As in `compare.py main | head -1`."""
    command = f"{sys.executable} {ROOT}/stages/compare.py weak | true"
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True)
    assert done.stderr == ""


def test_a_revision_that_is_not_there_is_one_line(repository, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="^nosuch is no revision here and no experiment") as error:
        run_stage("compare", "nosuch")
    assert len(str(error.value).splitlines()) == 1
    # As while a run is going on, or after one that was cut off.
    (tmp_path / "metrics/predictions.csv").unlink()
    with pytest.raises(UserError, match="^metrics/predictions.csv is missing: DVC removes it until"):
        run_stage("compare", "weak")


def test_figures_of_other_parameters_than_those_in_the_file_are_named(
    repository, tmp_path, monkeypatch, capsys
):
    lock = "stages: {train_qlora: {params: {params.yaml: {lora: {r: 16, alpha: 32}}}}}\n"
    (tmp_path / "dvc.lock").write_text(lock)
    monkeypatch.chdir(tmp_path)
    run_stage("compare", "weak", "--samples", "100")
    out = capsys.readouterr().out
    assert "NOTE: the figures of working tree were made with lora.r 16, not 32." in out
    assert out.count("NOTE") == 1


@pytest.mark.slow
def test_a_review_of_a_worse_model_fails_and_says_why(repository):
    repository("git", "add", ".")
    repository("git", "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "strong")
    repository("git", "checkout", "-q", "weak", "--", ".")
    review = repository(str(ROOT / ".ci/review"), "HEAD", "main")
    assert review.returncode == 1
    assert "**Gate: failed**\n\n- bleu is worse by more than chance:" in review.stdout
    assert "### Headline figures that changed" in review.stdout  # the comment is whole


def test_the_gate_lets_pass_what_is_better_or_within_chance():
    before, same, better = predictions(0.6, 1), predictions(0.6, 2), predictions(0.95, 3)
    assert worse_figures(compare(before, better, 1000, 0), GATE) == []
    assert worse_figures(compare(before, same, 1000, 0), GATE) == []
    worse = compare(better, before, 1000, 0)
    assert any("findings.micro_f1 is worse" in line for line in worse_figures(worse, GATE))
    assert worse_figures(worse, GATE.model_copy(update={"max_drop": 0.9})) == []
    assert not any(line.startswith("F1 ") for line in worse_figures(worse, GATE))  # no headline figures


def test_guards_hold_for_a_model_that_looks_at_its_images():
    good = predictions(0.9, 1).assign(blind=predictions(0.0, 2)[evaluation.MODEL])
    assert broken_guards(good, WELL_FORMED, NO_LEAK, GATE, 500, 0) == []


def test_each_broken_guard_is_named():
    good = predictions(0.9, 1).assign(blind=predictions(0.0, 2)[evaluation.MODEL])
    blind = good.assign(blind=good[evaluation.MODEL])
    (line,) = broken_guards(blind, WELL_FORMED, NO_LEAK, GATE, 500, 0)
    assert line.startswith("blind is as good as the model")

    one_text = good.copy()
    one_text.loc[:99, evaluation.MODEL] = "The lungs are clear."
    lines = broken_guards(one_text, WELL_FORMED, NO_LEAK, GATE, 500, 0)
    assert any(line.startswith("83% of the reports are the same text") for line in lines)

    malformed = {"n": 120, "malformed_reports": {"any": 2}}
    lines = broken_guards(good, malformed, NO_LEAK, GATE, 500, 0)
    assert lines == ["2 of 120 reports are malformed, over 1.0%"]

    leak = {"shared": {"patients": 3, "images": 0}}
    assert broken_guards(good, WELL_FORMED, leak, GATE, 500, 0) == [
        "the splits leak: 3 patients in two of them"
    ]


def test_outside_the_root_of_the_repository_is_one_line(repository, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path / "metrics")
    with pytest.raises(UserError, match="^params.yaml is missing: run from the root of the repository$"):
        run_stage("compare", "weak")


def test_parameters_that_differ_are_named_with_both_values():
    before = {"lora.r": "16", "train.seed": "42", "evaluate.old": "1"}
    after = {"lora.r": "32", "train.seed": "42", "evaluate.new": "2"}
    changed = changed_parameters(before, after)
    assert changed.to_numpy().tolist() == [
        ["evaluate.new", "–", "2"],
        ["evaluate.old", "1", "–"],
        ["lora.r", "16", "32"],
    ]
    assert changed_parameters(before, before).empty


@pytest.mark.parametrize(
    "script, arguments", [("evaluate", []), ("compare", ["main"]), ("ablation", ["table"])]
)
def test_help_runs_nothing_and_an_unknown_argument_is_refused(
    script, arguments, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    for given, status in (["--help"], 0), ([*arguments, "--nosuch"], 2):
        with pytest.raises(SystemExit) as ended:
            run_stage(script, *given)
        assert ended.value.code == status
    written = capsys.readouterr()
    assert "usage:" in written.out and "unrecognized arguments: --nosuch" in written.err
    assert list(tmp_path.iterdir()) == []
