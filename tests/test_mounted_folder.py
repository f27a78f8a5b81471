"""Data sets read where they lie: a folder, as Kaggle mounts it, gives the same table and audit as the zip
file of it.
"""

import json
import os
import shutil
import stat
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import doctor
import fetch
from conftest import REAL
from explainmyxray.errors import UserError
from explainmyxray.settings import load_settings
from explainmyxray.sources.folder import Folder
from kaggle_archives import (
    NIH,
    PNEUMONIA,
    ROOT,
    encoded,
    nih_members,
    pixels,
    stage_command,
    stage_environment,
    workspace,
    write_zip,
)

LAYOUTS = {  # of a data set's folder below data.archives
    "slug": {PNEUMONIA: "chest-xray-pneumonia", NIH: "sample"},
    "owner and slug": {
        PNEUMONIA: "datasets/paultimothymooney/chest-xray-pneumonia",
        NIH: "datasets/nih-chest-xrays/sample",
    },
}


def unpack(archives: Path, mounted: Path, layout: dict[str, str]) -> None:
    for name, folder in layout.items():
        with zipfile.ZipFile(archives / name) as archive:
            archive.extractall(mounted / folder)


def outputs(place: Path) -> tuple[dict[str, bytes], dict]:
    """Table and images by path, and the figures without the bytes that the data take on disk."""
    figures = json.loads((place / "metrics/fetch.json").read_text())
    for name in ("chest_xray_pneumonia", "nih_sample"):
        assert figures[name].pop("archive_bytes") > 0
    files = [place / "data/studies.csv", *(place / "data/images").rglob("*.png")]
    return {str(file.relative_to(place)): file.read_bytes() for file in files}, figures


def snapshot(folder: Path) -> dict[str, tuple]:
    """All that lies in a folder, with its kind, size and time of change."""
    return {
        str(path.relative_to(folder)): (path.lstat().st_mode, path.lstat().st_size, path.lstat().st_mtime_ns)
        for path in folder.rglob("*")
    }


def odd_archives(archives: Path) -> None:
    """Both data sets with copies of the tree, taken names, junk and files that are no images."""
    write_zip(
        archives / PNEUMONIA,
        {
            "chest_xray/train/NORMAL/IM-0001-0001.jpeg": encoded(pixels(1), "JPEG"),
            "chest_xray/chest_xray/train/NORMAL/IM-0001-0001.jpeg": encoded(pixels(1), "JPEG"),
            "chest_xray/__MACOSX/train/NORMAL/._IM-0001-0001.jpeg": b"x",
            "chest_xray/train/NORMAL/IM-0002-0001.jpeg": encoded(pixels(2)),
            "chest_xray/test/NORMAL/IM-0002-0001.jpeg": encoded(pixels(3)),
            "chest_xray/train/NORMAL/IM-0003-0001.jpeg": b"no image",
            "chest_xray/train/NORMAL/IM-0004-0001.jpeg": bytes(65 * 2**20),
            "chest_xray/train/NORMAL/IM-0005-0001.jpeg": b"",
            "chest_xray/train/NORMAL/.DS_Store": b"x",
            "chest_xray/train/NORMAL/someone.jpeg": encoded(pixels(5)),
            "chest_xray/train/PNEUMONIA/person1_virus_2.jpeg": encoded(pixels(6), "JPEG")[:-300],
            "chest_xray/train/PNEUMONIA/person2_virus_3.jpeg": encoded(pixels(7), "JPEG"),
        },
    )
    rows = ["00000001_000.png,Mass,000,00000001,060Y,M,PA", "00000002_000.png,Edema,000,2,411Y,X,PA"]
    members = nih_members(*rows)
    write_zip(archives / NIH, members | {f"sample/{name}": data for name, data in members.items()})


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_folder_gives_what_its_zip_file_gives(tmp_path, monkeypatch, layout):
    for name in ("zip", "folder"):
        (tmp_path / name).mkdir()
    mounted = tmp_path / "input"
    workspace(tmp_path / "zip")
    odd_archives(tmp_path / "zip/data/archives")
    monkeypatch.chdir(tmp_path / "zip")
    fetch.main()
    unpack(tmp_path / "zip/data/archives", mounted, LAYOUTS[layout])
    before = snapshot(mounted)
    workspace(tmp_path / "folder", archives=str(mounted))
    shutil.rmtree(tmp_path / "folder/data/archives")
    monkeypatch.chdir(tmp_path / "folder")
    fetch.main()
    assert outputs(tmp_path / "folder") == outputs(tmp_path / "zip")
    assert snapshot(mounted) == before, "something was written into the mounted folder"
    figures = outputs(tmp_path / "folder")[1]["chest_xray_pneumonia"]
    dropped = {reason: count for reason, count in figures["bad_dropped"].items() if count}
    assert dropped == {
        "too_large": 1,
        "empty": 1,
        "not_an_image": 1,
        "truncated": 1,
        "unknown_name": 1,
        "name_taken": 1,
    }


@pytest.mark.skipif(not REAL.exists(), reason="the real films are not beside this checkout")
def test_real_films_give_the_same_from_a_folder(tmp_path):
    places = {name: tmp_path / name for name in ("zip", "folder")}
    mounted = tmp_path / "input"
    for place in places.values():
        place.mkdir()
    workspace(places["zip"])
    workspace(places["folder"], archives=str(mounted))
    archives = places["zip"] / "data/archives"
    make = [sys.executable, ROOT.parent / "shared/make_kaggle_archives", archives, "--limit", "40"]
    subprocess.run(make, check=True, capture_output=True)
    unpack(archives, mounted, LAYOUTS["slug"])
    for path in [*mounted.rglob("*"), mounted]:  # read-only, as Kaggle mounts it
        path.chmod(path.stat().st_mode & ~(stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH))
    try:
        for place in places.values():
            done = subprocess.run(
                stage_command(), cwd=place, env=stage_environment(), capture_output=True, text=True
            )
            assert done.returncode == 0, done.stderr
    finally:
        for path in [mounted, *mounted.rglob("*")]:
            path.chmod(path.stat().st_mode | stat.S_IWUSR)
    assert outputs(places["folder"]) == outputs(places["zip"])


def mount(place: Path) -> Path:
    """A workspace whose two data sets lie in folders; the folder of chest-xray-pneumonia."""
    workspace(place)
    archives = place / "data/archives"
    unpack(archives, archives, LAYOUTS["slug"])
    for name in (PNEUMONIA, NIH):
        (archives / name).unlink()
    return archives / "chest-xray-pneumonia"


def test_no_link_is_followed_and_no_pipe_waited_for(tmp_path, monkeypatch):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "IM-0009-0001.jpeg").write_bytes(encoded(pixels(9)))
    place = tmp_path / "place"
    place.mkdir()
    normal = mount(place) / "chest_xray/train/NORMAL"
    (normal / "IM-0010-0001.jpeg").symlink_to(outside / "IM-0009-0001.jpeg")
    (normal / "IM-0011-0001.jpeg").symlink_to(normal / "IM-0001-0001.jpeg")
    (normal / "folder").symlink_to(outside)
    (normal / "round").symlink_to(normal)
    os.mkfifo(normal / "IM-0012-0001.jpeg")
    (normal / "IM-0013-0001.jpeg").write_bytes(b"")
    os.truncate(normal / "IM-0013-0001.jpeg", 2**40)  # a terabyte of zeros that takes no room
    (normal / "IM-0014\x1b[2J.jpeg").write_bytes(encoded(pixels(14)))
    (Path(os.fsdecode(os.fsencode(normal) + b"/IM-0015\xff.jpeg"))).write_bytes(encoded(pixels(15)))
    monkeypatch.chdir(place)
    fetch.main()
    figures = json.loads(Path("metrics/fetch.json").read_text())["chest_xray_pneumonia"]
    dropped = {reason: count for reason, count in figures["bad_dropped"].items() if count}
    assert dropped == {"symlink": 2, "unreadable": 1, "too_large": 1, "unsafe_name": 2}
    assert (figures["images_kept"], figures["junk_dropped"]) == (2, 2)
    assert "outside" not in Path("data/studies.csv").read_text()


def test_a_file_that_becomes_a_link_after_it_was_listed_is_not_followed(tmp_path):
    folder = tmp_path / "data set"
    folder.mkdir()
    (tmp_path / "secret").write_bytes(b"secret")
    (folder / "a.png").write_bytes(b"film")
    container = Folder(folder)
    member = container.members()[0]
    assert container.read(member) == b"film"
    (folder / "a.png").unlink()
    (folder / "a.png").symlink_to(tmp_path / "secret")
    with pytest.raises(Exception, match="unreadable"):
        container.read(member)


def test_each_file_is_read_at_most_twice(tmp_path, monkeypatch):
    """Once for the checksum, where another has its name and size, and once to be decoded."""
    tmp_path = tmp_path / "place"
    tmp_path.mkdir()
    folder = mount(tmp_path)
    for copy in ("a", "b", "c"):
        shutil.copytree(folder / "chest_xray/train", folder / f"chest_xray/{copy}/train")
    reads = []
    read = Folder.read
    monkeypatch.setattr(
        Folder, "read", lambda self, member: reads.append((self.path, member.name)) or read(self, member)
    )
    monkeypatch.chdir(tmp_path)
    fetch.main()
    counts = {name: reads.count(name) for name in reads}
    assert max(counts.values()) == 2
    assert (
        sum(counts.values()) == 2 + 4 * 2 + 3
    )  # pneumonia decoded, all checksums, NIH's films and label file


def test_an_empty_folder_is_no_data_set_and_nothing_is_downloaded_into_a_read_only_one(tmp_path, monkeypatch):
    workspace(tmp_path)
    archives = tmp_path / "data/archives"
    (archives / NIH).unlink()
    (archives / "sample").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Path, "mkdir", read_only(Path.mkdir))
    with pytest.raises(
        UserError, match="sample is not in data/archives.*Read-only file system.*data.archives"
    ):
        fetch.main()


def read_only(mkdir):
    def refuse(path, *arguments, **options):
        if path.name == "incomplete":
            raise OSError(30, "Read-only file system", str(path))
        return mkdir(path, *arguments, **options)

    return refuse


def test_doctor_says_where_the_data_lie_and_what_a_download_needs(tmp_path, monkeypatch):
    pneumonia = mount(tmp_path)
    shutil.rmtree(pneumonia.parent / "sample")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(doctor, "kaggle_answers", lambda: True)
    lines = list(doctor.data(load_settings()))
    assert ("ok", "data: data/archives/chest-xray-pneumonia, a folder, read where it lies") in lines
    assert any(
        state == "note" and "sample will be downloaded to data/archives, about 4.5 GB of" in text
        for state, text in lines
    )
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 0, 10**9))
    state, text = next(line for line in doctor.data(load_settings()) if "downloaded" in line[1])
    assert state == "MISSING" and "set data.archives to a folder on a larger disk" in text
