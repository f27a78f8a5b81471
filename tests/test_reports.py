"""The reports: what the writer writes, which templates are refused, and that the labeler reads them back."""

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

from conftest import ROOT
from explainmyxray.errors import UserError
from explainmyxray.reports.findings import FINDINGS
from explainmyxray.reports.labeler import positive_findings
from explainmyxray.reports.templates import TEMPLATES, load_templates
from explainmyxray.reports.wordings import CLAIM_PATTERNS
from explainmyxray.reports.writer import render_report
from explainmyxray.tables import COLUMNS, NO_FINDING, read_table, split_labels, write_table

NIH = ROOT.parent / "shared" / "real" / "nih_sample" / "sample_labels.csv"
TEMPLATES_AS_COMMITTED = load_templates()
LONGEST_WORDS = 80  # the longest report of seven findings has about 105 Gemma tokens


def nih_combinations() -> list[frozenset[str]]:
    if not NIH.exists():
        pytest.skip(f"{NIH} is not here")
    with NIH.open() as file:
        return sorted({split_labels(row["Finding Labels"]) for row in csv.DictReader(file)}, key=sorted)


def every_small_combination() -> list[frozenset[str]]:
    return [frozenset(names) for n in range(4) for names in combinations(FINDINGS, n)]


def pairs_and_all() -> list[frozenset[str]]:
    return [labels for labels in every_small_combination() if len(labels) < 3] + [frozenset(FINDINGS)]


def a_report(labels, seed=0, negatives=2) -> str:
    return render_report(labels, TEMPLATES_AS_COMMITTED, random.Random(f"{seed}:{sorted(labels)}"), negatives)


# What the writer says


def test_one_seed_one_text():
    for labels in every_small_combination()[:120]:
        assert a_report(labels) == a_report(labels) == a_report(sorted(labels, reverse=True))
    assert len({a_report({"Effusion"}, seed) for seed in range(200)}) > 50
    assert a_report([]) == render_report([NO_FINDING], TEMPLATES_AS_COMMITTED, random.Random("0:[]"), 2)


def test_form():
    for labels in every_small_combination():
        text = a_report(labels)
        assert re.fullmatch(r"Findings: [A-Z].*\. Impression: [A-Z].*\.", text), text
        assert "  " not in text and "\n" not in text and "{" not in text
        for claim, pattern in CLAIM_PATTERNS.items():
            assert not pattern.search(text), (claim, text)


def test_normal_report():
    text = a_report([])
    assert re.search(r"lung.* clear\. The .* normal", text) and "Impression: No acute cardiopulmonary" in text


def sentences(text: str) -> list[str]:
    return re.split(r"(?<=\.) ", text.replace("Findings: ", "").replace("Impression: ", ""))


def contradictions(text: str, labels) -> list[str]:
    """Sentences that deny, or call normal, what `labels` hold or hint at, as told without the templates."""
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
    forbidden = [word for word, findings in never.items() if findings & set(labels)]
    found = []
    for sentence in sentences(text):
        reassuring = re.search(r"\b(no|normal|clear)\b", sentence, re.IGNORECASE)
        if reassuring and any(word in sentence.lower() for word in forbidden):
            found.append(sentence)
    return found


@pytest.mark.parametrize("combinations_of", [every_small_combination, nih_combinations])
def test_never_a_contradiction(combinations_of):
    for labels in combinations_of():
        for seed in range(6):
            text = a_report(labels, seed, negatives=4)
            assert not contradictions(text, labels), (sorted(labels), text)


@pytest.mark.parametrize("most", [0, 1, 2, 14])
def test_at_most_so_many_negatives(most):
    denials = []
    for labels in every_small_combination():
        for sentence in sentences(a_report(labels, 0, most)):
            if re.match("(There is no|No|No evidence of) ", sentence) and "acute" not in sentence:
                denials.append(sentence)
    assert bool(denials) == (most > 0)
    assert all(len(re.split(", or |, | or ", sentence)) <= max(most, 1) for sentence in denials)


def test_length():
    for labels in nih_combinations():
        assert max(len(a_report(labels, seed).split()) for seed in range(10)) <= LONGEST_WORDS


def test_unknown_label():
    with pytest.raises(UserError, match="Fracture: no finding"):
        a_report(["Fracture"])


# The labeler reads back what went in


def test_every_wording_reads_back():
    templates = TEMPLATES_AS_COMMITTED
    for name, finding in templates.findings.items():
        for text in [*finding.sentences, *impressions(finding)]:
            assert positive_findings(text) == {name}, text
    normal_texts = impressions(templates.no_finding)
    for normal in templates.normal.values():
        normal_texts += normal.sentences
    for frame in templates.negatives.frames:
        for negative in templates.negatives.phrases.values():
            normal_texts.append(frame.replace("{negatives}", negative.phrase))
    for text in normal_texts:
        assert not positive_findings(text), text


def impressions(entry) -> list[str]:
    return [f"Impression: {phrase}." for phrase in entry.impression]


@pytest.mark.parametrize("combinations_of", [pairs_and_all, nih_combinations])
def test_every_combination_reads_back(combinations_of):
    for labels in combinations_of():
        for seed in range(4):
            text = a_report(labels, seed, negatives=2 + 2 * (seed % 2))
            assert positive_findings(text) == labels, text


# What the templates refuse


def templates_file(folder: Path, change) -> Path:
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
    path = templates_file(
        tmp_path, lambda templates: templates["findings"]["Effusion"]["sentences"].append(wording)
    )
    with pytest.raises(UserError) as refused:
        load_templates(path)
    message = str(refused.value)
    assert message.startswith(f"{path}: findings.Effusion.sentences") and message.count("\n") == 0
    assert f": {wording!r} " in message and problem in message


@pytest.mark.parametrize("change, problem", [
    (lambda t: t["findings"].pop("Hernia"), "findings.Hernia is missing"),
    (lambda t: t["findings"].update(Fracture=t["findings"]["Mass"]), "findings.Fracture is no finding"),
    (lambda t: t["findings"]["Mass"].update(impresion=["x"]), "findings.Mass.impresion"),
    (lambda t: t["findings"]["Mass"]["sentences"].pop(), "Mass.sentences: List should have at least 4"),
    (lambda t: t["findings"]["Mass"]["impression"].__setitem__(0, 7), "findings.Mass.impression.0"),
    (lambda t: t["findings"]["Mass"]["impression"].append("lung mass."), "is a phrase without a full stop"),
    (lambda t: t["findings"]["Mass"]["pertinent"].append("Hernia"), "findings.Mass.pertinent names Hernia"),
    (lambda t: t["normal"]["heart"]["unless"].append("Heart"), "normal.heart.unless names Heart"),
    (lambda t: t["normal"]["heart"]["unless"].remove("Cardiomegaly"), "names another finding: Cardiomegaly"),
    (lambda t: t["negatives"]["phrases"]["Edema"].update(phrase="pleural effusion"), "finding: Effusion"),
    (lambda t: t["negatives"]["frames"].append("Nothing is seen."), "'Nothing is seen.' holds one {neg"),
    (lambda t: t["urgency"].remove("Mass"), "urgency does not name each finding once"),
    (lambda t: t["no_finding"]["impression"].append("no pneumothorax"), "another finding: Pneumothorax"),
    (lambda t: t.pop("normal"), "normal: Field required"),
])  # fmt: skip
def test_bad_entry_is_refused_by_name(tmp_path, change, problem):
    path = templates_file(tmp_path, change)
    with pytest.raises(UserError) as refused:
        load_templates(path)
    assert str(path) in str(refused.value) and problem in str(refused.value)


def test_a_new_wording_is_enough(tmp_path):
    path = templates_file(
        tmp_path,
        lambda templates: templates["findings"]["Effusion"]["sentences"].append("Pleural fluid is noted."),
    )
    templates = load_templates(path)
    assert any(
        "Pleural fluid is noted." in render_report({"Effusion"}, templates, random.Random(seed), 2)
        for seed in range(50)
    )


def test_a_file_without_templates(tmp_path):
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
