"""The fetch stage: what it keeps of the data sets, what it says it dropped, and that it leaves whole things
only.
"""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import fetch
from conftest import REAL
from explainmyxray import tables
from explainmyxray.errors import UserError
from explainmyxray.reports.findings import FINDINGS
from explainmyxray.sources import chest_xray_pneumonia, nih_sample
from explainmyxray.sources.ages import age_years
from explainmyxray.sources.archive_files import read_yaml
from explainmyxray.sources.zip_archive import ZipArchive
from kaggle_archives import (
    HEADER,
    NIH,
    PNEUMONIA,
    ROOT,
    audited,
    encoded,
    nih_members,
    pixels,
    stage_command,
    stage_environment,
    workspace,
    write_zip,
)

real = pytest.mark.skipif(not REAL.exists(), reason="the real films are not beside this checkout")


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return workspace(tmp_path)


def run() -> tuple[pd.DataFrame, dict]:
    fetch.main()
    return tables.read_table("data/studies.csv"), json.loads(Path("metrics/fetch.json").read_text())


def everything(folder: Path = Path(".")) -> dict[str, bytes]:
    found = [
        *(folder / "data/images").rglob("*.png"),
        folder / "data/studies.csv",
        folder / "metrics/fetch.json",
    ]
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def pneumonia(members: dict[str, bytes]) -> None:
    write_zip(
        Path("data/archives") / PNEUMONIA,
        {f"chest_xray/train/{name}": data for name, data in members.items()},
    )


def test_rows_and_images(place):
    table, metrics = run()
    assert list(table.columns) == list(tables.COLUMNS)
    files = Path("data/images").rglob("*.png")
    assert table["image"].tolist() == sorted(path.relative_to("data/images").as_posix() for path in files)
    kermany = "chest_xray_pneumonia"
    known = table.drop(columns=["report", "sha256", "near_duplicate_of", "indexed_labels"])
    assert known.to_dict("split")["data"] == [
        [f"{kermany}/IM-0001-0001.png", kermany, f"{kermany}-IM-0001", "No Finding", "", "", "", ""],
        [f"{kermany}/person1_virus_2.png", kermany, f"{kermany}-virus-1", "Pneumonia", "virus", "", "", ""],
        [
            "nih_sample/00000001_000.png",
            "nih_sample",
            "nih_sample-00000001",
            "No Finding",
            "",
            "PA",
            "60",
            "M",
        ],
        [
            "nih_sample/00000002_000.png",
            "nih_sample",
            "nih_sample-00000002",
            "Edema|Mass",
            "",
            "AP",
            "1",
            "F",
        ],
    ]
    for path in table["image"]:
        with Image.open(f"data/images/{path}") as image:
            assert (image.mode, image.size, image.format) == ("L", (224, 224), "PNG")
    assert metrics["images"] == metrics["patients"] == 4


def test_prepared_pixels_are_the_bicubic_square_of_the_film(place):
    run()
    expected = Image.fromarray(pixels(1000)).resize((224, 224), Image.Resampling.BICUBIC)
    assert np.array_equal(Image.open("data/images/nih_sample/00000001_000.png"), expected)


def test_the_sum_is_of_the_full_size_pixels(place):
    first, _ = run()
    workspace(place, image_size=64)
    second, _ = run()
    assert first.equals(second)
    assert Image.open("data/images/nih_sample/00000001_000.png").size == (64, 64)


def test_a_film_stored_in_colour_is_a_copy_of_the_grey_one(place):
    grey = Image.fromarray(pixels(7))
    pneumonia(
        {
            "PNEUMONIA/person1_bacteria_1.jpeg": encoded(grey),
            "PNEUMONIA/person2_bacteria_2.jpeg": encoded(grey.convert("RGB")),
            "PNEUMONIA/person3_bacteria_3.jpeg": encoded(grey.rotate(180)),
        }
    )
    table, metrics = run()
    audit = metrics["chest_xray_pneumonia"]
    assert (audit["images_kept"], audit["pixel_copies_dropped"], audit["copies_with_other_labels"]) == (
        2,
        1,
        0,
    )
    assert not table["image"].str.contains("person2").any() and table["sha256"].is_unique


def test_same_pixels_in_another_shape_are_no_copy(place):
    pneumonia(
        {
            "NORMAL/IM-0001-0001.jpeg": encoded(pixels(1, 40, 48)),
            "NORMAL/IM-0002-0001.jpeg": encoded(pixels(1, 48, 40)),
        }
    )
    assert run()[1]["chest_xray_pneumonia"]["images_kept"] == 2


def test_copies_that_disagree_are_counted_and_the_first_is_kept(place):
    same = encoded(pixels(1000))  # also NIH's first film
    write_zip(
        Path("data/archives") / PNEUMONIA,
        {  # first by name, though last in the archive
            "chest_xray/test/PNEUMONIA/person1_virus_2.jpeg": same,
            "chest_xray/train/NORMAL/IM-0001-0001.jpeg": same,
        },
    )
    table, metrics = run()
    counts = {
        name: (audit["pixel_copies_dropped"], audit["copies_with_other_labels"])
        for name, audit in metrics.items()
        if name in ("chest_xray_pneumonia", "nih_sample")
    }
    assert counts == {"chest_xray_pneumonia": (1, 1), "nih_sample": (1, 0)}
    assert table["image"].tolist() == ["chest_xray_pneumonia/IM-0001-0001.png", "nih_sample/00000002_000.png"]


def test_another_film_under_a_taken_name_is_dropped_and_said(place):
    write_zip(
        Path("data/archives") / PNEUMONIA,
        {
            "chest_xray/train/NORMAL/IM-0001-0001.jpeg": encoded(pixels(1)),
            "chest_xray/chest_xray/train/NORMAL/IM-0001-0001.jpeg": encoded(pixels(2)),
            "chest_xray/chest_xray/test/NORMAL/IM-0001-0001.jpeg": encoded(pixels(1)),
            "chest_xray/train/NORMAL/someone.jpeg": encoded(pixels(3)),
            "chest_xray/train/NORMAL/person9_virus_9.jpeg": encoded(pixels(4)),
        },
    )
    audit = run()[1]["chest_xray_pneumonia"]
    assert audit["tree_copies_dropped"] == audit["bad_dropped"]["name_taken"] == audit["images_kept"] == 1
    assert audit["bad_dropped"]["unknown_name"] == 2 and audited(audit) == audit["members"] == 5


def test_rows_and_images_that_miss_each_other_are_counted(place):
    members = nih_members(
        "00000001_000.png,Mass,000,00000001,060Y,M,PA", "00000002_000.png,Edema,000,00000002,060Y,M,PA"
    )
    members["sample/images/00000009_000.PNG"] = members.pop("sample/images/00000002_000.png")
    write_zip(Path("data/archives") / NIH, members)
    audit = run()[1]["nih_sample"]
    keys = ("rows", "rows_without_image", "images_without_row", "images_kept")
    assert [audit[key] for key in keys] == [2, 1, 1, 1]
    assert audited(audit) == audit["members"]


def test_a_comma_too_many_shifts_no_column(place):
    write_zip(Path("data/archives") / NIH, nih_members("00000001_000.png,Mass,000,00000001,060Y,M,PA,"))
    row = run()[0].iloc[-1]
    assert (row["patient"], row["labels"], row["view"]) == ("nih_sample-00000001", "Mass", "PA")


def test_phantoms(tmp_path, monkeypatch):
    monkeypatch.chdir(workspace(tmp_path, "phantom", image_size=64, count=12))
    table, metrics = run()
    assert len(table) == metrics["images"] == metrics["phantom"]["images_kept"] == 12
    assert set(table["source"]) == {"phantom"}


@pytest.mark.parametrize(
    "label_file, words",
    [
        (None, "no sample_labels.csv"),
        (HEADER.replace(",Patient ID,Patient Age", "") + "\n", "lacks the columns Patient ID, Patient Age"),
        ("", "is no table"),
        (
            f"{HEADER}\n00000001_000.png,Broken Leg,000,00000001,060Y,M,PA\n",
            "00000001_000 has the labels 'Broken Leg'",
        ),
        (f"{HEADER}\n00000001_000.png,No Finding|Mass,000,00000001,060Y,M,PA\n", "'No Finding|Mass'"),
        (f"{HEADER}\n00000001_000.png,Mass,000,,060Y,M,PA\n", "00000001_000 has no patient"),
        (f"{HEADER}\n" + "00000001_000.png,Mass,000,00000001,060Y,M,PA\n" * 2, "00000001_000 has two rows"),
    ],
)
def test_a_label_file_that_cannot_be_used_is_named(place, label_file, words):
    members = nih_members("00000001_000.png,Mass,000,00000001,060Y,M,PA")
    del members["sample_labels.csv"]
    if label_file is not None:
        members["sample_labels.csv"] = label_file.encode()
    write_zip(Path("data/archives") / NIH, members)
    with pytest.raises(UserError, match="sample.zip") as caught:
        fetch.main()
    assert words in str(caught.value)


@pytest.mark.parametrize("damage", [lambda whole: whole[:-200], lambda whole: b"<html>", lambda whole: b""])
def test_a_broken_archive_is_named(place, damage):
    path = Path("data/archives") / NIH
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match="sample.zip is no whole zip archive"):
        fetch.main()


def test_a_mistake_is_one_line_and_leaves_earlier_outputs(place):
    run()
    before = everything()
    (Path("data/archives") / NIH).write_bytes(b"<html>")
    done = subprocess.run(stage_command(), env=stage_environment(), capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and done.stderr.startswith("error: ")
    assert "sample.zip is no whole zip archive" in done.stderr and "delete it" in done.stderr
    assert everything() == before


def test_a_fetch_that_fails_midway_leaves_earlier_outputs_and_no_remnant(place, monkeypatch):
    run()
    before, names = everything(), sorted(p.name for p in Path("data").iterdir())
    pneumonia({"NORMAL/IM-0009-0001.jpeg": encoded(pixels(99))})
    write = Path.write_bytes

    def full(path, data):
        if path.name.startswith("00000002"):  # the last of four
            raise OSError(28, "No space left on device")
        return write(path, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError):
        fetch.main()
    assert everything() == before and sorted(path.name for path in Path("data").iterdir()) == names


def test_nothing_usable_is_an_error(place):
    pneumonia({"NORMAL/IM-0001-0001.jpeg": b"no image"})
    members = nih_members("00000001_000.png,Mass,000,00000001,060Y,M,PA", image=b"no image")
    write_zip(Path("data/archives") / NIH, members)
    with pytest.raises(UserError, match="no image"):
        fetch.main()


def test_what_a_new_fetch_does_not_keep_is_gone(place):
    run()
    pneumonia({"NORMAL/IM-0009-0001.jpeg": encoded(pixels(99))})
    run()
    assert sorted(p.name for p in Path("data/images/chest_xray_pneumonia").iterdir()) == ["IM-0009-0001.png"]


@pytest.mark.parametrize(
    "text, years",
    [
        ("060Y", "60"),
        ("013M", "1"),
        ("012M", "1"),
        ("001D", "0"),
        ("011M", "0"),
        ("060W", "1"),
        ("100Y", "100"),
        ("411Y", ""),
        ("", ""),
        ("Y", ""),
        ("60", ""),
    ],
)
def test_ages(text, years):
    assert age_years(text) == years


def test_every_name_that_a_source_gives_is_a_known_finding():
    known = set(read_yaml("nih_sample.yaml")["labels"].values())
    assert known == {*FINDINGS, tables.NO_FINDING}
    assert {folder["label"] for folder in read_yaml("chest_xray_pneumonia.yaml").values()} <= known


@real
def test_patients_of_all_pneumonia_names(tmp_path):
    names = (REAL / "chest_xray_pneumonia/names.txt").read_text().split()
    path = write_zip(tmp_path / PNEUMONIA, {f"chest_xray/{name}": b"" for name in names})
    films, audit = chest_xray_pneumonia.films_in(ZipArchive(path))
    assert len(films) == len({film.name for film in films}) == len(names) == 5856
    assert not any(audit["bad_dropped"].values())
    assert len({film.study["patient"] for film in films}) == 4097
    assert Counter(film.study["subtype"] for film in films) == {"bacteria": 2780, "virus": 1493, "": 1583}
    odd = next(film for film in films if "447_virus_921_1" in film.name)
    assert odd.study["patient"] == "chest_xray_pneumonia-virus-447"


@real
def test_all_rows_of_the_nih_sample(tmp_path):
    text = (REAL / "nih_sample/sample_labels.csv").read_bytes()
    images = {f"sample/images/{line.split(',')[0]}": b"" for line in text.decode().splitlines()[1:]}
    path = write_zip(tmp_path / NIH, {"sample_labels.csv": text, **images})
    films, audit = nih_sample.films_in(ZipArchive(path))
    combinations = Counter(film.study["labels"] for film in films)
    common = [count for count in combinations.values() if count >= 10]
    assert (len(films), audit["rows"], len({film.study["patient"] for film in films})) == (5606, 5606, 4230)
    assert (len(combinations), len(common), sum(common)) == (244, 38, 5185)
    assert sum(film.study["age_years"] == "" for film in films) == 1


@real
def test_real_films_on_all_cores_and_on_one(tmp_path, monkeypatch):
    folders = {name: tmp_path / name for name in ("all", "one")}
    for folder in folders.values():
        folder.mkdir()
        workspace(folder)
    archives = folders["all"] / "data/archives"
    make = [sys.executable, ROOT.parent / "shared/make_kaggle_archives", archives, "--limit", "70"]
    subprocess.run(make, check=True, capture_output=True)
    done = subprocess.run(
        stage_command(), cwd=folders["all"], env=stage_environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    for path in archives.iterdir():
        (folders["one"] / "data/archives" / path.name).write_bytes(path.read_bytes())
    monkeypatch.chdir(folders["one"])
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    table, metrics = run()
    assert everything(folders["one"]) == everything(folders["all"])
    pneumonia, nih = metrics["chest_xray_pneumonia"], metrics["nih_sample"]
    assert audited(pneumonia) == pneumonia["members"] == 426 and audited(nih) == nih["members"] == 14
    assert (
        pneumonia["tree_copies_dropped"] == 140
        and pneumonia["junk_dropped"] == 146
        and nih["images_kept"] == 6
    )
    assert len(table) == 146 and table["sha256"].is_unique
    assert "146 junk, 140 tree copies" in done.stdout


def test_names_that_no_disk_takes_are_dropped_and_counted(place):
    """Also names in other scripts, of which a digit is one for a pattern, and names that a spreadsheet takes
    for a formula.
    """
    pneumonia(
        {
            f"PNEUMONIA/person{'1' * 290}_virus_2.jpeg": encoded(pixels(1)),
            "PNEUMONIA/person\u0661\u0662_virus_2.jpeg": encoded(pixels(2)),
            "PNEUMONIA/=cmd.jpeg": encoded(pixels(3)),
            "PNEUMONIA/person3_virus_2.jpeg": encoded(pixels(4)),
        }
    )
    table, metrics = run()
    audit = metrics["chest_xray_pneumonia"]
    assert (audit["images_kept"], audit["bad_dropped"]["unknown_name"]) == (1, 3)
    assert audited(audit) == audit["members"] == 4


@pytest.mark.parametrize("digits", [4, 400, 5000])
def test_cells_that_make_no_sense_are_left_blank_and_counted(place, digits):
    write_zip(
        Path("data/archives") / NIH,
        nih_members(
            f"00000001_000.png,Mass,000,00000001,{'9' * digits}Y,=1+1,@SUM",
            "00000002_000.png,Mass,000,00000002,060Y,F,PA",
            "00000003_000.png,Mass,000,00000003,,,",
            f"00000004_000.png,Mass,000,{'7' * 300},060Y,F,PA",
            "00000005_000.png,Mass,000,=HYPERLINK(1),060Y,F,PA",
        ),
    )
    table, metrics = run()
    audit = metrics["nih_sample"]
    nih = table[table["source"] == "nih_sample"]
    assert nih[["age_years", "sex", "view"]].to_numpy().tolist() == [
        ["", "", ""],
        ["60", "F", "PA"],
        ["", "", ""],
    ]
    assert audit["cells_blanked"] == {"age_years": 1, "sex": 1, "view": 1}
    assert (audit["rows"], audit["rows_dropped"], audit["images_without_row"]) == (3, 2, 2)
    assert not table.map(lambda cell: cell.startswith(("=", "+", "-", "@"))).any(axis=None)


def test_a_long_label_is_quoted_short(place):
    write_zip(
        Path("data/archives") / NIH, nih_members(f"00000001_000.png,{'x' * 5000},000,00000001,060Y,M,PA")
    )
    with pytest.raises(UserError) as caught:
        fetch.main()
    assert "has the labels 'xxx" in str(caught.value) and len(str(caught.value)) < 500


@pytest.mark.slow
def test_a_slow_member_costs_seconds_and_is_counted(place):
    padded = encoded(pixels(1), "JPEG")
    pneumonia(
        {
            "NORMAL/IM-0001-0001.jpeg": padded[:2] + b"\xff" * (60 * 2**20) + padded[2:],
            "NORMAL/IM-0002-0001.jpeg": encoded(pixels(2), "JPEG"),
        }
    )
    audit = run()[1]["chest_xray_pneumonia"]
    assert (audit["bad_dropped"]["too_slow"], audit["images_kept"]) == (1, 1)


def test_a_link_in_the_place_of_the_images_is_one_line(place, tmp_path):
    Path("data/images").symlink_to(tmp_path)
    done = subprocess.run(stage_command(), env=stage_environment(), capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert "error: data/images is a symbolic link, and a folder is to be written there" in done.stderr
