"""The labeler on hand-written sentences and whole reports, its promises for any text, and its command."""

import csv
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from explainmyxray.reports.findings import FINDINGS
from explainmyxray.reports.labeler import VOCABULARY, label_report, positive_findings
from explainmyxray.tables import NO_FINDING

TESTS = Path(__file__).parent
COMMAND = TESTS.parent / "stages" / "label_reports.py"
SENTENCES = [
    pytest.param(text, expected, id=f"{group}: {text}")
    for group, rows in YAML(typ="safe").load(TESTS / "data" / "labeler_sentences.yaml").items()
    for text, expected in rows
]

# Each finding as a list names it, for the property tests.
NAMES = {
    "Atelectasis": "atelectasis",
    "Cardiomegaly": "cardiomegaly",
    "Consolidation": "focal consolidation",
    "Edema": "pulmonary edema",
    "Effusion": "pleural effusion",
    "Emphysema": "emphysema",
    "Fibrosis": "fibrosis",
    "Hernia": "hiatal hernia",
    "Infiltration": "infiltrate",
    "Mass": "mass",
    "Nodule": "nodule",
    "Pleural_Thickening": "pleural thickening",
    "Pneumonia": "pneumonia",
    "Pneumothorax": "pneumothorax",
}
unhurried = settings(deadline=None)  # a busy machine is no failure
SOME_FINDINGS = st.lists(st.sampled_from(FINDINGS), min_size=1, unique=True)
REPORT = "Small left effusion. No pneumothorax. Possible pneumonia. The heart is normal in size."
FRAGMENTS = """
no not without cannot exclude possible normal clear enlarged resolved small or and but with is are the size
effusion pneumothorax nodule heart lungs FINDINGS: HISTORY: XXXX 1. , . ; : ?
"""
WORDS = st.sampled_from([*FRAGMENTS.split(), "with\n"])


def findings_in(text: str) -> dict[str, str]:
    """What the labeler says, but for `No Finding`."""
    return {finding: status for finding, status in label_report(text).items() if finding != NO_FINDING}


def listed(findings: list[str], conjunction: str) -> str:
    """`a, b or c`."""
    names = [NAMES[finding] for finding in findings]
    return f" {conjunction} ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


@pytest.mark.parametrize(("text", "expected"), SENTENCES)
def test_reads_a_sentence(text, expected):
    assert findings_in(text) == expected


def test_sentences_show_each_finding_in_each_status():
    shown = {pair for case in SENTENCES for pair in case.values[1].items()}
    assert shown >= {
        (finding, status) for finding in FINDINGS for status in ("present", "absent", "uncertain")
    }
    assert len(SENTENCES) >= 120


def test_vocabulary_names_nihs_findings():
    assert tuple(VOCABULARY["findings"]) == FINDINGS
    assert {finding for entry in VOCABULARY["normal"] for finding in entry["absent"]} <= set(FINDINGS)


REPORTS = {
    "normal": (
        "PA and lateral views. The heart is normal in size. The mediastinum is unremarkable. The lungs "
        "are clear. No XXXX pneumothorax or pleural effusion. IMPRESSION: No acute disease.",
        [],
        [],
    ),
    "old hospital style": (
        "EXAM: CHEST\n\nCLINICAL HISTORY: 71 year old with pneumonia, rule out effusion.\n\nCOMPARISON: "
        "Film of last week with large pneumothorax.\n\nFINDINGS:\nThe cardiac silhouette is moderately "
        "enlarged.  There are small\nbilateral pleural effusions with adjacent atelectasis. No "
        "pneumothorax or\nfocal consolidation is seen.\n\nIMPRESSION:\n1.  Cardiomegaly with small "
        "effusions.\n2.  An early pneumonia cannot be excluded.",
        ["Atelectasis", "Cardiomegaly", "Effusion"],
        ["Pneumonia"],
    ),
    "UK style": (
        "Clinical details: cough, ?pneumonia\n\nReport: Heart is not enlarged. Dense consolidation in "
        "the right lower zone with a small parapneumonic effusion. No collapse. A hiatus hernia is "
        "noted. Follow up film in six weeks to ensure clearing of the consolidation.",
        ["Consolidation", "Effusion", "Hernia"],
        [],
    ),
    "one line": (
        "INDICATION: Chest pain, emphysema. FINDINGS: Stable 8 mm nodule in the right upper lobe, "
        "biapical pleural thickening; the lungs are otherwise clear. Heart size and pulmonary "
        "vascularity are normal. No effusion.",
        ["Nodule", "Pleural_Thickening"],
        [],
    ),
    "follow-up": (
        "Interval removal of the right chest tube. No residual pneumothorax. The left effusion has "
        "resolved. No change in the right infiltrate. Edema has improved but persists. Right hilar mass "
        "as before, with fibrosis near.",
        ["Edema", "Fibrosis", "Infiltration", "Mass"],
        [],
    ),
    "structured": (
        "LUNGS: Emphysematous change. No consolidation.\nPLEURA: No effusion. Small left apical "
        "pneumothorax.\nHEART: Normal size.\nMEDIASTINUM: Unremarkable.\nBONES: Intact.",
        ["Emphysema", "Pneumothorax"],
        [],
    ),
    "doubt throughout": (
        "Bibasilar opacities, atelectasis versus pneumonia. Heart size borderline. Cannot exclude a "
        "small effusion.",
        [],
        ["Atelectasis", "Cardiomegaly", "Effusion", "Infiltration", "Pneumonia"],
    ),
}


@pytest.mark.parametrize("name", REPORTS)
def test_reads_a_report(name):
    text, there, doubted = REPORTS[name]
    assert sorted(positive_findings(text)) == there
    assert [finding for finding, status in findings_in(text).items() if status == "uncertain"] == doubted


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("No acute cardiopulmonary abnormality.", "present"),
        ("Normal chest.", "present"),
        ("No effusion. Old rib fracture.", "present"),
        ("The lungs are clear. Possible nodule.", "uncertain"),
        ("Small effusion.", "absent"),
        ("No pneumothorax. Small effusion. Possible nodule.", "absent"),
        ("", None),
        (" \n\n", None),
        ("Portable view.", None),
        ("HISTORY: No cough, emphysema", None),
    ],
)
def test_no_finding_follows_from_the_others(text, expected):
    assert label_report(text).get(NO_FINDING) == expected
    assert NO_FINDING not in positive_findings(text)


@unhurried
@given(st.one_of(st.text(), st.lists(WORDS).map(" ".join)))
def test_any_text_has_labels_in_the_promised_form(text):
    labels = label_report(text)
    assert set(labels) <= {*FINDINGS, NO_FINDING}
    assert set(labels.values()) <= {"present", "absent", "uncertain"}
    assert positive_findings(text) == {finding for finding in FINDINGS if labels.get(finding) == "present"}
    if set(labels) - {NO_FINDING}:
        assert (labels[NO_FINDING] == "absent") == bool(positive_findings(text))


@unhurried
@given(
    SOME_FINDINGS, st.sampled_from(["No {}.", "No evidence of {}.", "Lungs free of {}.", "No {} is seen."])
)
def test_a_negation_covers_any_list(findings, frame):
    assert findings_in(frame.format(listed(findings, "or"))) == dict.fromkeys(findings, "absent")


@unhurried
@given(SOME_FINDINGS)
def test_a_doubt_covers_any_list(findings):
    assert findings_in(f"This may represent {listed(findings, 'or')}.") == dict.fromkeys(
        findings, "uncertain"
    )


@unhurried
@given(SOME_FINDINGS)
def test_an_affirmed_list_is_present(findings):
    assert findings_in(f"There is {listed(findings, 'and')}.") == dict.fromkeys(findings, "present")


@unhurried
@given(
    SOME_FINDINGS,
    st.sampled_from(["HISTORY", "INDICATION", "Clinical history", "REASON FOR EXAM", "COMPARISON"]),
)
def test_a_section_on_history_changes_nothing(findings, header):
    history = f"{header}: {listed(findings, 'and')}, no fever.\n\n"
    assert label_report(history + REPORT) == label_report(REPORT)
    assert label_report(f"{history}FINDINGS: {REPORT}") == label_report(REPORT)


@unhurried
@given(st.permutations(REPORT.removesuffix(".").split(". ")))
def test_the_order_of_sentences_changes_nothing(sentences):
    assert label_report(". ".join(sentences) + ".") == label_report(REPORT)


@pytest.mark.parametrize("change", [str.upper, str.lower, lambda text: text.replace(". ", ".\n")])
def test_case_and_line_breaks_change_nothing(change):
    assert label_report(change(REPORT)) == label_report(REPORT)


def run(*arguments) -> subprocess.CompletedProcess:
    """Run the command as a person does."""
    command = [sys.executable, str(COMMAND), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_command_adds_a_column_a_finding(tmp_path):
    source, out = tmp_path / "in.csv", tmp_path / "out.csv"
    rows = [["007", REPORT], ["8", ""], ["9", 'No nodule,\n"or" mass']]
    with source.open("w", newline="") as file:
        csv.writer(file).writerows([["id", "text"], *rows])
    done = run(source, "--column", "text", "--out", out)
    assert done.returncode == 0, done.stderr
    with out.open(newline="") as file:
        header, *written = csv.reader(file)
    assert header == ["id", "text", *FINDINGS, NO_FINDING]
    assert [row[:2] for row in written] == rows
    for row in written:
        assert {name: cell for name, cell in zip(header[2:], row[2:], strict=True) if cell} == label_report(
            row[1]
        )


@pytest.mark.parametrize(
    ("content", "column", "out", "complaint"),
    [
        (None, "text", "out.csv", "in.csv is missing"),
        (b"id,report\n1,Clear lungs\n", "text", "out.csv", "no column text; it has id, report"),
        (b"", "text", "out.csv", "in.csv is empty: it needs a header and a row for each report"),
        (b"\xff\xfe\xff", "text", "out.csv", "no CSV table"),
        (b"Mass,text\n1,Clear lungs\n", "text", "out.csv", "has a column Mass already"),
        (b"text\nClear lungs\n", "text", ".", "is a folder"),
        (b"text\nClear lungs\n", "text", "in.csv", "in.csv is the table that is read"),
    ],
)
def test_command_tells_a_mistake_in_one_line(tmp_path, content, column, out, complaint):
    source = tmp_path / "in.csv"
    if content is not None:
        source.write_bytes(content)
    done = run(source, "--column", column, "--out", tmp_path / out)
    assert done.returncode == 1
    assert content is None or source.read_bytes() == content
    assert done.stderr.startswith("error: ") and complaint in done.stderr and done.stderr.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.csv"] * (content is not None)
