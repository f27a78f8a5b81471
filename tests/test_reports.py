"""The reports: what the writer says, what the templates refuses, and that the labeler reads back what went in."""

import csv
import io
import random
import re
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import pandas as pd
import pytest
from ruamel.yaml import YAML

from explainmyxray.errors import UserError
from explainmyxray.reports.findings import FINDINGS
from explainmyxray.reports.labeler import positive_findings
from explainmyxray.reports.templates import CLAIMED, TEMPLATES, load_templates
from explainmyxray.reports.writer import render_report
from explainmyxray.tables import COLUMNS, NO_FINDING, read_table, split_labels, write_table

ROOT = Path(__file__).parents[1]
NIH = ROOT.parent / "shared" / "real" / "nih_sample" / "sample_labels.csv"
THE_BANK = load_templates()
LONGEST_WORDS = 80  # the longest report of seven findings has about 105 Gemma tokens


def real_combinations() -> list[frozenset[str]]:
    if not NIH.exists():
        return every_small_combination()[-60:]
    with NIH.open() as file:
        return sorted({split_labels(row["Finding Labels"]) for row in csv.DictReader(file)}, key=sorted)


def every_small_combination() -> list[frozenset[str]]:
    return [frozenset(names) for n in range(4) for names in combinations(FINDINGS, n)]


def a_report(labels, seed=0, negatives=2) -> str:
    return render_report(labels, THE_BANK, random.Random(f"{seed}:{sorted(labels)}"), negatives)


# What the writer says


def test_one_seed_one_text():
    for labels in every_small_combination()[:120]:
        assert a_report(labels) == a_report(labels) == a_report(sorted(labels, reverse=True))
    assert len({a_report({"Effusion"}, seed) for seed in range(200)}) > 50
    assert render_report([], THE_BANK, random.Random(1), 2) == render_report(
        [NO_FINDING], THE_BANK, random.Random(1), 2
    )


def test_form():
    for labels in every_small_combination():
        text = a_report(labels)
        assert re.fullmatch(r"Findings: [A-Z].*\. Impression: [A-Z].*\.", text), text
        assert "  " not in text and "\n" not in text and "{" not in text
        assert not [kind for kind, words in CLAIMED.items() if words.search(text)], text


def test_normal_report():
    text = a_report([])
    assert re.search(r"lung.* clear\. The .* normal", text) and "Impression: No acute cardiopulmonary" in text


def sentences(text: str) -> list[str]:
    return re.split(r"(?<=\.) ", text.replace("Findings: ", "").replace("Impression: ", ""))


def contradictions(text: str, labels) -> list[str]:
    """Sentences that deny, or call normal, what `labels` hold or hint at. Spelled out here, apart from the templates."""
    outside = {"Cardiomegaly", "Effusion", "Hernia", "Pleural_Thickening", "Pneumothorax"}
    never = {
        "heart": {"Cardiomegaly"},
        "cardiac": {"Cardiomegaly"},
        "clear": set(FINDINGS) - outside,
        "consolidation": {"Consolidation", "Infiltration", "Pneumonia"},
        "edema": {"Edema"},
        "effusion": {"Effusion"},
        "pneumothorax": {"Pneumothorax"},
        "acute": set(FINDINGS),
    }
    soothing = [each for each in sentences(text) if re.search(r"\b(no|normal|clear)\b", each, re.I)]
    broken = [word for word, findings in never.items() if findings & set(labels)]
    return [each for each in soothing for word in broken if word in each.lower()]


def test_never_a_contradiction():
    for labels in {*every_small_combination(), *real_combinations()}:
        for seed in range(6):
            text = a_report(labels, seed, negatives=4)
            assert not contradictions(text, labels), (sorted(labels), text)


@pytest.mark.parametrize("most", [0, 1, 2, 14])
def test_at_most_so_many_negatives(most):
    denials = [
        each
        for labels in every_small_combination()
        for each in sentences(a_report(labels, 0, most))
        if re.match("(There is no|No|No evidence of) ", each) and "acute" not in each
    ]
    assert bool(denials) == (most > 0)
    assert all(len(re.split(", or |, | or ", each)) <= max(most, 1) for each in denials)


def test_length():
    for labels in real_combinations():
        assert max(len(a_report(labels, seed).split()) for seed in range(10)) <= LONGEST_WORDS


def test_unknown_label():
    with pytest.raises(UserError, match="Fracture: no finding"):
        a_report(["Fracture"])


# The labeler reads back what went in


def test_every_wording_reads_back():
    templates, wrong = THE_BANK, []
    for name, finding in templates.findings.items():
        texts = [*finding.sentences, *(f"Impression: {each}." for each in finding.impression)]
        wrong += [
            (name, text, sorted(positive_findings(text)))
            for text in texts
            if positive_findings(text) != {name}
        ]
    silent = [each for normal in templates.normal.values() for each in normal.sentences]
    silent += [f"Impression: {each}." for each in templates.no_finding.impression]
    denied = [each.phrase for each in templates.negatives.phrases.values()]
    silent += [frame.replace("{negatives}", each) for frame in templates.negatives.frames for each in denied]
    wrong += [("none", text, sorted(positive_findings(text))) for text in silent if positive_findings(text)]
    assert not wrong


def test_every_combination_reads_back():
    wrong = []
    pairs = [labels for labels in every_small_combination() if len(labels) < 3]
    for labels in {*pairs, *real_combinations(), frozenset(FINDINGS)}:
        texts = [a_report(labels, seed, negatives=2 + 2 * (seed % 2)) for seed in range(4)]
        wrong += [
            (sorted(labels), text, sorted(positive_findings(text)))
            for text in texts
            if positive_findings(text) != labels
        ]
    assert not wrong[:5]


# What the templates refuses


def bank_file(folder: Path, change) -> Path:
    """The template file with `change` done to its content."""
    yaml = YAML()
    content = yaml.load(TEMPLATES)
    change(content)
    out = io.StringIO()
    yaml.dump(content, out)
    (folder / "templates.yaml").write_text(out.getvalue())
    return folder / "templates.yaml"


@pytest.mark.parametrize("wording, problem", [
    ("", "is empty"),
    ("   ", "is empty"),
    ("There is a left pleural effusion.", "claims a side: 'left'"),
    ("There are bilateral pleural effusions.", "claims a side: 'bilateral'"),
    ("There is a lateral pleural effusion.", "claims a side"),
    ("A basilar pleural effusion is seen.", "claims a place"),
    ("There is a small pleural effusion.", "claims a severity or size: 'small'"),
    ("There is a massive effusion.", "claims a severity or size"),
    ("There is an effusion of 3 cm.", "claims a number: '3'"),
    ("There is an effusion at T2.", "claims a number"),
    ("There are two effusions.", "claims a number: 'two'"),
    ("There is a new pleural effusion.", "claims a date: 'new'"),
    ("There is an effusion, unchanged since Monday.", "claims a date"),
    ("There is an acute effusion.", "claims a date: 'acute'"),
    ("There is an effusion due to heart failure.", "claims a cause"),
    ("There is an infectious effusion.", "claims a cause"),
    ("There may be a pleural effusion.", "claims a doubt: 'may'"),
    ("There is no pleural effusion.", "denies: 'no'"),
    ("There is an effusion with atelectasis.", "names another finding: Atelectasis"),
    ("There is an abnormality.", "names none of its finding's terms"),
    ("A pleural effusion is present.  ", "has stray spaces"),
    ("A pleural effusion is present", "is a sentence and ends with a full stop"),
    ("A {size} effusion is there.", "has a stray placeholder"),
    ("An effusion of <size> is there.", "has a stray placeholder"),
    ("A pleural effusion is seen.", "stands at findings.Effusion.sentences too"),
    ("a Pleural Effusion is seen.", "stands at findings.Effusion.sentences too"),
])  # fmt: skip
def test_bad_wording_is_refused_by_name(tmp_path, wording, problem):
    path = bank_file(
        tmp_path, lambda templates: templates["findings"]["Effusion"]["sentences"].append(wording)
    )
    with pytest.raises(UserError) as refused:
        load_templates(path)
    assert str(path) in str(refused.value) and f"findings.Effusion.sentences {wording!r}" in str(
        refused.value
    )
    assert problem in str(refused.value)


@pytest.mark.parametrize("change, problem", [
    (lambda b: b["findings"].pop("Hernia"), "findings.Hernia is missing"),
    (lambda b: b["findings"].update(Fracture=b["findings"]["Mass"]), "findings.Fracture is no finding"),
    (lambda b: b["findings"]["Mass"].update(impresion=["x"]), "findings.Mass.impresion"),
    (lambda b: b["findings"]["Mass"]["sentences"].pop(), "findings.Mass.sentences: List should have at least 4 items"),
    (lambda b: b["findings"]["Mass"]["impression"].__setitem__(0, 7), "findings.Mass.impression.0"),
    (lambda b: b["findings"]["Mass"]["impression"].append("lung mass."), "is a phrase without a full stop"),
    (lambda b: b["findings"]["Mass"]["pertinent"].append("Hernia"), "findings.Mass.pertinent names Hernia"),
    (lambda b: b["normal"]["heart"]["unless"].append("Heart"), "normal.heart.unless names Heart"),
    (lambda b: b["normal"]["heart"]["unless"].remove("Cardiomegaly"), "names another finding: Cardiomegaly"),
    (lambda b: b["negatives"]["phrases"]["Edema"].update(phrase="pleural effusion"), "names another finding: Effusion"),
    (lambda b: b["negatives"]["frames"].append("Nothing is seen."), "'Nothing is seen.' holds one {negatives}"),
    (lambda b: b["urgency"].remove("Mass"), "urgency does not name each finding once"),
    (lambda b: b["no_finding"]["impression"].append("no pneumothorax"), "names another finding: Pneumothorax"),
    (lambda b: b.pop("normal"), "normal: Field required"),
])  # fmt: skip
def test_bad_entry_is_refused_by_name(tmp_path, change, problem):
    path = bank_file(tmp_path, change)
    with pytest.raises(UserError) as refused:
        load_templates(path)
    assert str(path) in str(refused.value) and problem in str(refused.value)


def test_a_new_wording_is_enough(tmp_path):
    path = bank_file(
        tmp_path,
        lambda templates: templates["findings"]["Effusion"]["sentences"].append("Pleural fluid is noted."),
    )
    templates = load_templates(path)
    assert any(
        "Pleural fluid is noted." in render_report({"Effusion"}, templates, random.Random(seed), 2)
        for seed in range(50)
    )


def test_a_file_that_is_no_bank(tmp_path):
    for content, problem in [
        ("a: [", "is no YAML"),
        ("", "valid dictionary"),
        ("a: b", "findings: Field required"),
    ]:
        (tmp_path / "templates.yaml").write_text(content)
        with pytest.raises(UserError, match=problem):
            load_templates(tmp_path / "templates.yaml")
    with pytest.raises(UserError, match="missing"):
        load_templates(tmp_path / "nothing.yaml")


# The stage


def run(folder: Path, labels: list[str]) -> subprocess.CompletedProcess:
    rows = [{"image": f"{i}.png", "labels": each} for i, each in enumerate(labels)]
    write_table(folder / "data" / "studies.csv", pd.DataFrame(rows).reindex(columns=COLUMNS, fill_value=""))
    (folder / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    command = [sys.executable, str(ROOT / "stages" / "synthesize_reports.py")]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


def test_stage(tmp_path):
    labels = ["No Finding", "Mass", "Effusion|Mass"] * 20
    done = run(tmp_path, labels)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("60 reports, ")
    before = read_table(tmp_path / "data" / "reports.csv")
    assert [positive_findings(text) for text in before["report"]] == [split_labels(each) for each in labels]
    run(tmp_path, [*labels, "Hernia"])
    after = read_table(tmp_path / "data" / "reports.csv")
    assert list(after["report"][:60]) == list(before["report"]), "another image changes no text"


def test_stage_refuses_an_unknown_label(tmp_path):
    failed = run(tmp_path, ["Mass", "Fracture"])
    assert failed.returncode == 1 and "Traceback" not in failed.stderr
    assert "data/studies.csv: 1.png has the label 'Fracture'" in failed.stderr
    assert not (tmp_path / "data" / "reports.csv").exists()
