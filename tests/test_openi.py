"""Open-i: the archive as Kaggle serves it or mounts it, real reports, the labeler's reading of them."""

import csv
import io
import json
import zipfile
from pathlib import Path

import pandas as pd
import pytest

import fetch
import openi_reports
import split
import synthesize_reports
from benchmarks.labeler import ABSENT, figures, measure, pooled, select_indexed
from conftest import ROOT, write_params
from explainmyxray import tables
from explainmyxray.errors import UserError
from explainmyxray.scoring.references import labeler_validity
from explainmyxray.sources.openi import findings_of_mesh
from explainmyxray.tables import rounded
from kaggle_archives import audited, encoded, pixels, write_zip

ARCHIVE = "chest-xrays-indiana-university.zip"
REPORTS = ("uid", "MeSH", "Problems", "image", "indication", "comparison", "findings", "impression")
PROJECTIONS = ("uid", "filename", "projection")


def csv_bytes(header: tuple[str, ...], rows: list[dict[str, str]]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, header, restval="")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def study_members(
    studies: list[dict[str, str]], image=lambda number: encoded(pixels(number))
) -> dict[str, bytes]:
    """An archive's members: both tables, and for each study a frontal and a lateral film."""
    members, projections = {}, []
    for number, study in enumerate(studies):
        for view, end in (("Frontal", 1001), ("Lateral", 2001)):
            name = f"{study['uid']}_IM-{number:04}-{end}.dcm.png"
            projections.append({"uid": study["uid"], "filename": name, "projection": view})
            members[f"images/images_normalized/{name}"] = image(
                number if view == "Frontal" else 5000 + number
            )
    members["indiana_reports.csv"] = csv_bytes(REPORTS, studies)
    members["indiana_projections.csv"] = csv_bytes(PROJECTIONS, projections)
    return members


STUDIES = [
    {
        "uid": "1",
        "MeSH": "Pleural Effusion/right/small;Opacity/lung/base/left",
        "findings": "There is a small  right pleural effusion.\nXXXX sternotomy.",
        "impression": "Right effusion.",
    },
    {"uid": "2", "MeSH": "normal", "findings": "", "impression": "No acute disease."},
    {"uid": "3", "MeSH": "No Indexing", "findings": " ", "impression": ""},
    {"uid": "4", "MeSH": "No Indexing", "findings": "The lungs are clear.", "impression": ""},
]


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_params(tmp_path, {"data": {"source": "openi"}})
    write_zip(tmp_path / "data/archives" / ARCHIVE, study_members(STUDIES))
    return tmp_path


def run() -> tuple[pd.DataFrame, dict]:
    fetch.main()
    studies = tables.read_table("data/studies.csv").set_index("image", drop=False)
    return studies, json.loads(Path("metrics/fetch.json").read_text())["openi"]


def test_frontal_films_with_findings_and_impression_word_for_word(place):
    studies, audit = run()
    assert list(studies["image"]) == [f"openi/{n}_IM-000{n - 1}-1001.png" for n in (1, 2, 4)]
    assert studies["report"].tolist() == [
        "Findings: There is a small right pleural effusion. XXXX sternotomy. Impression: Right effusion.",
        "Impression: No acute disease.",
        "Findings: The lungs are clear.",
    ]
    assert studies["patient"].tolist() == ["openi-1", "openi-2", "openi-4"]
    assert set(studies["view"]) == {"frontal"} and set(studies["labels"]) == {""}
    assert studies["indexed_labels"].tolist() == ["Effusion", "No Finding", ""]
    assert audit["lateral_dropped"] == 4 and audit["empty_report_dropped"] == 1
    explained = audited(audit) + audit["lateral_dropped"] + audit["empty_report_dropped"]
    assert explained == audit["members"] == 10


def test_both_views_of_a_study_are_one_patient_s(place):
    write_params(place, {"data": {"source": "openi", "openi": {"views": "all"}}})
    studies, audit = run()
    assert len(studies) == 6 and audit["lateral_dropped"] == 0 and audit["empty_report_dropped"] == 2
    assert set(studies.groupby("patient")["view"].agg("|".join)) == {"frontal|lateral"}


@pytest.mark.parametrize(
    "folder", ["chest-xrays-indiana-university", "datasets/raddar/chest-xrays-indiana-university"]
)
def test_a_mounted_folder_gives_the_same(place, folder):
    studies, _ = run()
    archive = place / "data/archives" / ARCHIVE
    with zipfile.ZipFile(archive) as opened:
        opened.extractall(place / "data/archives" / folder)
    archive.unlink()
    assert run()[0].equals(studies)


def test_a_missing_table_is_one_line(place):
    members = study_members(STUDIES)
    del members["indiana_reports.csv"]
    write_zip(place / "data/archives" / ARCHIVE, members)
    with pytest.raises(
        UserError, match="has no indiana_reports.csv: get the whole data set from https://www"
    ):
        fetch.main()


def test_labels_are_read_in_the_text_and_the_index_is_held_against_them(place):
    studies = [{**STUDIES[n % 2], "uid": str(n)} for n in range(1, 41)]
    for study in studies[::8]:  # indexed by what its report does not say
        study["MeSH"] = "Cardiomegaly"
    write_zip(place / "data/archives" / ARCHIVE, study_members(studies))
    run()
    synthesize_reports.main()
    split.main()
    reports = tables.read_table("data/reports.csv", tables.REPORT_COLUMNS)
    assert set(reports["labels"]) == {"Effusion", "No Finding"}
    assert set(reports["labels_origin"]) == {"labeler"} and set(reports["report_origin"]) == {"source"}
    check = json.loads(Path("metrics/split.json").read_text())["labels_against_index"]
    assert check["images"] == 40 and check["same_labels"] == 35
    assert check["per_finding"]["Cardiomegaly"] == {"both": 0, "labeler_alone": 0, "index_alone": 5}
    assert check["per_finding"]["Effusion"]["both"] == 20


@pytest.mark.parametrize(
    "headings, labels",
    [
        (["normal"], "No Finding"),
        (["Thickening/pleura/apex/left"], "Pleural_Thickening"),
        (["Thickening/bronchi"], "No Finding"),
        (["Subcutaneous Emphysema", "Cardiac Shadow/enlarged/mild"], "Cardiomegaly"),
        (["Hydropneumothorax/right"], "Effusion|Pneumothorax"),
        (["No Indexing"], ""),
        ([""], ""),
    ],
)
def test_mesh_headings_are_findings_by_name_and_qualifier(headings, labels):
    assert findings_of_mesh(headings) == labels


@pytest.fixture(scope="module")
def real_reports() -> list[openi_reports.OpeniReport]:
    try:
        return openi_reports.load(openi_reports.download())
    except OSError as error:
        pytest.skip(f"Open-i's reports cannot be fetched: {error}")


@pytest.mark.network
def test_the_labeler_agrees_with_the_index_of_real_reports(real_reports):
    """The figures of docs/labeler.md, and those that evaluation puts beside F1."""
    indexed = select_indexed(real_reports)
    agreements = measure(indexed)
    total = pooled(agreements)
    assert total.scores()["f1"] > 0.92
    assert labeler_validity() == rounded({"reports": len(indexed), **figures(agreements)})
    page = (ROOT / "docs/labeler.md").read_text()
    for name, agreement in [*agreements.items(), ("all", total)]:
        scores = agreement.scores()
        shown = [f"{scores[figure]:.3f}" for figure in ("precision", "recall", "f1")]
        counted = [str(agreement.uncertain), str(agreement.uncertain_indexed)]
        as_scored = f"{agreement.scores(ABSENT)['f1']:.3f}"
        row = " | ".join([*shown, *counted, as_scored])
        assert any(name in line and row in line for line in page.splitlines()), f"{name}: {row}"
