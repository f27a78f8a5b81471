"""Films of one's own, listed in a CSV: what is kept, what is counted, what is refused in one line."""

import csv
import io
import json
import os
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

import doctor
import fetch
import synthesize_reports
from conftest import ROOT, write_params
from explainmyxray import tables
from explainmyxray.errors import UserError
from kaggle_archives import encoded, pixels
from test_explain import dicom

HEADER = ("image", "patient", "report", "labels", "view", "age_years", "sex")


@pytest.fixture
def films(tmp_path, monkeypatch) -> Path:
    """The folder of the films and their table; params.yaml names it."""
    monkeypatch.chdir(tmp_path)
    write_params(tmp_path, {"data": {"source": "table", "table": "my/films.csv"}})
    (tmp_path / "my").mkdir()
    return tmp_path / "my"


def write_rows(folder: Path, *rows: tuple[str, ...], header: tuple[str, ...] = HEADER) -> None:
    """The table; a row that is shorter than the header ends in blanks."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(header)
    for row in rows:
        writer.writerow([*row, *[""] * (len(header) - len(row))])
    (folder / "films.csv").write_text(text.getvalue())


def add_film(folder: Path, name: str, seed: int, format: str = "PNG") -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded(pixels(seed), format))


def say_of_data(monkeypatch, capsys) -> list[str]:
    """What the doctor says of the data."""
    monkeypatch.setattr("sys.argv", ["doctor.py"])
    with pytest.raises(SystemExit):
        doctor.main()
    return [line for line in capsys.readouterr().out.splitlines() if " data: " in line]


def run() -> tuple[pd.DataFrame, dict]:
    """The studies table by image, and the audit."""
    fetch.main()
    studies = tables.read_table("data/studies.csv").set_index("image", drop=False)
    return studies, json.loads(Path("metrics/fetch.json").read_text())["table"]


def test_png_jpeg_and_dicom_with_what_is_known_of_them(films):
    add_film(films, "a/1.png", 1)
    add_film(films, "a/2.JPG", 2, "JPEG")
    (films / "3").write_bytes(dicom(pixels(3), 8))
    write_rows(
        films,
        ("a/1.png", "p1", "Small  left effusion.\nHeart normal.", "", "pa", "63.0", "female"),
        ("a/2.JPG", "p1", "", "Mass | Effusion", "AP", "063Y", "M"),
        ("3", "p2", "", "No Finding"),
    )
    studies, audit = run()
    assert set(studies["image"]) == {"table/a/1.png", "table/a/2.png", "table/3.png"}
    row = studies.loc["table/a/1.png"]
    assert row["report"] == "Small left effusion. Heart normal." and row["labels"] == ""
    assert (row["patient"], row["view"], row["age_years"], row["sex"]) == ("table-p1", "PA", "63", "F")
    assert studies.loc["table/a/2.png", "labels"] == "Effusion|Mass"
    assert studies.loc["table/a/2.png", "age_years"] == "63"
    assert audit["images_kept"] == audit["rows"] == 3 and set(audit["cells_blanked"].values()) == {0}
    with Image.open("data/images/table/3.png") as image:
        assert (image.mode, image.size) == ("L", (224, 224))


def test_reports_are_kept_and_labels_read_where_there_are_none(films):
    for number in range(4):
        add_film(films, f"{number}.png", number)
    write_rows(
        films,
        ("0.png", "p", "There is a small left pleural effusion. No pneumothorax."),
        ("1.png", "p", "Looks fine to me.", "Mass"),
        ("2.png", "p", "", "Mass"),
        ("3.png", "p", "Possible pneumonia."),
    )
    run()
    synthesize_reports.main()
    reports = tables.read_table("data/reports.csv", tables.REPORT_COLUMNS).set_index("image")
    told = reports[["labels", "report", "report_origin", "labels_origin"]]
    assert told.loc["table/0.png"].tolist() == [
        "Effusion",
        "There is a small left pleural effusion. No pneumothorax.",
        "source",
        "labeler",
    ]
    assert told.loc["table/1.png"].tolist() == ["Mass", "Looks fine to me.", "source", "source"]
    assert told.loc["table/2.png", "report"].startswith("Findings: ")
    assert told.loc["table/2.png", ["report_origin", "labels_origin"]].tolist() == ["templates", "source"]
    assert told.loc["table/3.png", "labels"] == "No Finding"  # doubt is no finding: docs/results.md


def test_a_row_that_cannot_be_used_is_counted_with_its_reason(films, tmp_path):
    add_film(films, "good.png", 1)
    add_film(films, "copy.png", 1)
    add_film(tmp_path, "outside.png", 2)
    add_film(films, "huge.png", 3)
    (films / "link.png").symlink_to(tmp_path / "outside.png")
    (films / "text.png").write_text("no image")
    (films / "folder.png").mkdir()
    os.mkfifo(films / "pipe.png")
    report = "Lungs are clear."
    unusable = {
        ("", "p", report): "no_image",
        ("good.png", "q", "Another report."): "image_named_twice",
        ("huge.png", "p", " \n "): "no_report_and_no_labels",
        ("huge.png", "p", "x" * 20_001): "report_too_long",
        ("../outside.png", "p", report): "outside_the_folder",
        (str(tmp_path / "outside.png"), "p", report): "outside_the_folder",
        ("link.png", "p", report): "outside_the_folder",
        ("nowhere.png", "p", report): "missing",
        ("text.png", "p", report): "not_an_image",
        ("folder.png", "p", report): "unreadable",
        ("pipe.png", "p", report): "empty",
    }
    write_rows(films, ("good.png", "p", report), ("copy.png", "p", report), *unusable)
    studies, audit = run()
    assert list(studies["image"]) == ["table/copy.png"] and audit["pixel_copies_dropped"] == 1
    counted = {reason: n for reason, n in {**audit["rows_dropped"], **audit["bad_dropped"]}.items() if n}
    assert counted == {reason: list(unusable.values()).count(reason) for reason in unusable.values()}


def test_names_that_no_disk_takes_and_names_alike_are_told_apart(films):
    names = ["x.png", "x.jpg", "X.dcm", "sub.png/x.png", "Ü (1).png", "a" * 120 + ".png", ".hidden.png"]
    for number, name in enumerate(names):
        add_film(films, name, number, "JPEG" if name.endswith("jpg") else "PNG")
    write_rows(films, *[(name, "p", "Clear.") for name in names])
    studies, audit = run()
    assert audit["images_kept"] == studies["image"].nunique() == len(names)
    assert all(path.isascii() and len(path) < 110 for path in studies["image"])


def test_patients_left_blank_are_counted_and_names_become_a_hash(films, capsys):
    for number in range(4):
        add_film(films, f"{number}.png", number)
    write_rows(
        films,
        ("0.png", "", "Clear."),
        ("1.png", " ", "Clear."),
        ("2.png", "Doe, Jane", "Clear.", "", "", "unknown"),
        ("3.png", "Doe, Jane", "Clear."),
    )
    studies, audit = run()
    assert audit["rows_without_patient"] == 2
    assert "dropped: none; 2 rows without patient, 1 age years blanked" in capsys.readouterr().out
    assert (studies["patient"] == "").sum() == 2 and studies["patient"].nunique() == 2
    assert not studies["patient"].str.contains("Doe").any()


@pytest.mark.parametrize(
    "text, message",
    [
        ("image,report\n1.png,x\n", "lacks the column patient; it has 'image', 'report'"),
        ("image,patient\n1.png,p\n", "lacks the column report or labels"),
        ("image;patient;report\n1.png;p;x\n", "it has 'image;patient;report'"),
        ("image,patient,report\n1.png,p,No effusion, no mass.\n", "rows have more cells than the header"),
        ("image,patient,report\n1.png,p,Clear.\n2.png,p,a,b\n", "Expected 3 fields in line 3, saw 4; a cell"),
        ("image,patient,report\n", "has no rows"),
        ("", "is no CSV in UTF-8"),
        ("image,patient,report\n1.png,p,\xff\n", "is no CSV in UTF-8"),
        ("image,patient,labels\n1.png,p,Pleural Thickening\n", "row 2: the label 'Pleural Thickening' is"),
        (
            'image,patient,labels\n1.png,p,"Effusion, Mass"\n',
            "did you mean Effusion? Several are joined by |",
        ),
        ("image,patient,labels\n1.png,p,Mass|No Finding\n", "No Finding stands beside other labels"),
    ],
)
def test_a_table_that_cannot_be_used_is_one_line(films, text, message):
    (films / "films.csv").write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError) as caught:
        fetch.main()
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert not Path("data/studies.csv").exists()


def test_no_usable_film_at_all_is_one_line_that_counts_why(films):
    write_rows(films, ("1.png", "p", "Clear."), ("2.png", "p", "Clear."))
    with pytest.raises(UserError, match="table: 0 images kept; dropped: 2 missing"):
        fetch.main()


def test_doctor_reads_the_table(films, monkeypatch, capsys):
    monkeypatch.setattr("doctor.base", lambda settings: ())  # the slow ones, which do not look at data
    monkeypatch.setattr("doctor.step", lambda settings: ())
    (line,) = say_of_data(monkeypatch, capsys)
    assert line.startswith("MISSING  data: data.table: there is no my/films.csv")
    write_rows(films, ("1.png", "p", "", "effusion"))
    (line,) = say_of_data(monkeypatch, capsys)
    assert line.startswith("MISSING  data: my/films.csv, row 2: the label 'effusion'")
    write_rows(films, ("1.png", "p", "Clear."), ("2.png", "", "Small left effusion."), ("3.png", "p"))
    lines = say_of_data(monkeypatch, capsys)
    assert (
        lines[0]
        == "ok       data: my/films.csv, 2 of 3 rows can be used (dropped: 1 no report and no labels)"
    )
    assert lines[1].startswith("note     data: 1 rows name no patient")
    assert "augment.horizontal_flip=0.0" in lines[2] and len(lines) == 3
    write_rows(films, ("1.png", "p", "", "Mass"))
    assert say_of_data(monkeypatch, capsys) == ["ok       data: my/films.csv, 1 of 1 rows can be used"]


def test_the_page_begins_with_a_table_that_can_be_used(films):
    """The four rows of docs/own-data.md, written as the CSV that they stand for."""
    lines = [line for line in (ROOT / "docs/own-data.md").read_text().splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[:6]]
    write_rows(films, *rows[2:], header=tuple(rows[0]))
    for number, row in enumerate(rows[2:]):
        if row[0].endswith(".dcm"):
            (films / row[0]).parent.mkdir(exist_ok=True)
            (films / row[0]).write_bytes(dicom(pixels(number), 8))
        else:
            add_film(films, row[0], number, "JPEG" if row[0].endswith("jpg") else "PNG")
    studies, audit = run()
    assert audit["images_kept"] == 4 and studies["patient"].nunique() == 3
    assert studies["report"].tolist() == [row[2] for row in rows[2:]]
