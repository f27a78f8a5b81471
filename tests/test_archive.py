"""Hostile and broken archives: every member is kept right or dropped with its reason, and nothing leaves the
target.
"""

import json
import stat
import struct
import tempfile
import time
import tracemalloc
import zipfile
import zlib
from contextlib import chdir
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import fetch
from explainmyxray.errors import UserError
from explainmyxray.images import decoding
from explainmyxray.sources.zip_archive import ZipArchive
from kaggle_archives import NIH, PNEUMONIA, audited, encoded, pixels, workspace, write_zip

GREY = pixels(5, 60, 80)
ROTATED = Image.Exif()
ROTATED[0x0112] = 6  # shown turned a quarter clockwise


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, bits: int, colour: int, rows: bytes) -> bytes:
    return (
        b"\x89PNG\r\n\x1a\n"
        + png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
        + png_chunk(b"IDAT", zlib.compress(rows))
        + png_chunk(b"IEND", b"")
    )


def with_alpha(mode: str) -> Image.Image:
    image = Image.fromarray(GREY).convert(mode)
    image.putalpha(Image.fromarray(pixels(6, 60, 80)))
    return image


def bilevel() -> np.ndarray:
    return np.where(GREY > 127, 255, 0).astype(np.uint8)


def palette() -> Image.Image:
    image = Image.fromarray(255 - GREY).convert("P")  # the palette turns the indices round
    image.putpalette(bytes(value for index in range(256) for value in (255 - index,) * 3))
    image.info["transparency"] = 0
    return image


@pytest.mark.parametrize(
    "data, expected",
    [
        (encoded(GREY), GREY),
        (encoded(Image.fromarray(GREY).convert("RGB")), GREY),
        (encoded(with_alpha("RGBA")), GREY),
        (encoded(with_alpha("LA")), GREY),
        (encoded(palette()), GREY),
        (encoded(GREY.astype(np.uint16) * 257), GREY),
        (png(2, 1, 16, 0, b"\x00" + struct.pack(">HH", 1000, 40000)), np.array([[4, 156]])),
        (encoded(Image.fromarray(bilevel()).convert("1")), bilevel()),
        (encoded(GREY, exif=ROTATED), np.rot90(GREY, -1)),
    ],
    ids=[
        "grey",
        "rgb",
        "rgba",
        "grey with alpha",
        "palette",
        "16 bits",
        "16 bits scaled",
        "1 bit",
        "rotated",
    ],
)
def test_every_kind_of_png_becomes_the_same_grey(data, expected):
    image = decoding.decode(data)
    assert image.mode == "L" and np.array_equal(image, expected)


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_every_kind_of_jpeg_becomes_the_same_grey(mode):
    smooth = np.tile(np.arange(0, 240, 3, dtype=np.uint8), (60, 1))
    stored = Image.fromarray(smooth).convert("RGB").convert(mode)
    image = decoding.decode(encoded(stored, "JPEG", quality=98, exif=ROTATED))
    assert image.mode == "L" and image.size == (60, 80)
    assert np.abs(np.asarray(image, int) - np.rot90(smooth, -1)).max() <= 4


JPEG = encoded(GREY, "JPEG")


@pytest.mark.parametrize(
    "data, reason",
    [
        (b"", "empty"),
        (b"\x00\x05\x16\x07" * 30, "not_an_image"),
        (b"<html>", "not_an_image"),
        (encoded(GREY, "BMP"), "not_an_image"),
        (JPEG[: len(JPEG) // 2], "truncated"),
        (encoded(GREY)[:1000], "truncated"),
        (png(20_000, 20_000, 8, 0, b""), "too_many_pixels"),
        (png(8_000, 8_000, 8, 0, b""), "too_many_pixels"),
        (png(40, 40, 8, 0, b"\x00" * 100), "truncated"),
        (encoded(GREY).replace(b"IDAT", b"IDAT\xff", 1), "damaged"),
    ],
)
def test_what_is_no_usable_image_has_a_reason(data, reason):
    with pytest.raises(decoding.BadImage) as caught:
        decoding.decode(data)
    assert caught.value.reason == reason and reason in decoding.REASONS


def test_a_decompression_bomb_is_refused_before_it_is_decoded():
    bomb = png(30_000, 30_000, 1, 0, bytes(30_000 * 3751))
    tracemalloc.start()
    with pytest.raises(decoding.BadImage, match="too_many_pixels"):
        decoding.decode(bomb)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(bomb) < 300_000 and peak < 2**20


def test_a_member_larger_than_it_says_is_refused_in_little_memory(tmp_path):
    path = write_zip(tmp_path / "lies.zip", {"a.png": bytes(60 * 2**20)}, zipfile.ZIP_DEFLATED)
    path.write_bytes(path.read_bytes().replace(struct.pack("<I", 60 * 2**20), struct.pack("<I", 1000)))
    archive = ZipArchive(path)
    member = archive.members()[0]
    tracemalloc.start()
    with pytest.raises(decoding.BadImage, match="unreadable"):
        archive.read(member)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20


def hostile() -> list[tuple[zipfile.ZipInfo | str, bytes]]:
    """One member of each bad kind, all named as films of which the reason would otherwise be none."""
    tree = "chest_xray/train/NORMAL"
    link = zipfile.ZipInfo(f"{tree}/IM-0010-0001.jpeg")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    return [
        (f"../../{tree}/IM-0011-0001.jpeg", JPEG),
        (f"/{tree}/IM-0012-0001.jpeg", JPEG),
        (f"{tree}\\..\\IM-0013-0001.jpeg", JPEG),
        (f"C:/{tree}/IM-0014-0001.jpeg", JPEG),
        (link, b"/etc/passwd"),
        (f"{tree}/IM-0015-0001.jpeg", bytes(10 * 2**20)),
        (f"{tree}/IM-0016-0001.jpeg", bytes(65 * 2**20)),
        (f"{tree}/IM-0017-0001.jpeg", b""),
        (f"{tree}/IM-0018-0001.jpeg", JPEG[:-300]),
        (f"{tree}/IM-0019-0001.jpeg", png(20_000, 20_000, 8, 0, b"")),
        (f"{tree}/IM-0020-0001.jpeg", b"no image"),
        (f"{tree}/IM-0021-0001.JPEG", JPEG),
        (f"{tree}/IM-0022-0001.Png", encoded(pixels(9), "JPEG")),
        (f"{tree}/", b""),
        ("chest_xray/__MACOSX/train/NORMAL/._IM-0021-0001.jpeg", b"x"),
        (f"{tree}/.DS_Store", b"x"),
        (f"{tree}/Thumbs.db", b"x"),
    ]


def test_hostile_members_are_dropped_with_their_reason_and_stay_inside(tmp_path, monkeypatch):
    place = tmp_path / "deep/er"
    place.mkdir(parents=True)
    monkeypatch.chdir(workspace(place))
    path = write_zip(place / "data/archives" / PNEUMONIA, hostile(), zipfile.ZIP_DEFLATED)
    encrypted = zipfile.ZipInfo("chest_xray/train/NORMAL/IM-0023-0001.jpeg")
    packed = zipfile.ZipInfo("chest_xray/train/NORMAL/IM-0024-0001.jpeg")
    packed.compress_type = zipfile.ZIP_LZMA
    nameless = zipfile.ZipInfo()
    broken = zipfile.ZipInfo("chest_xray/train/NORMAL/IM-0025-0001.jpeg")
    with zipfile.ZipFile(path, "a") as opened:
        for info in (encrypted, packed, broken, nameless):
            opened.writestr(info, JPEG)
        encrypted.flag_bits |= 1  # written to the directory on closing
        broken.CRC ^= 1
        nameless.filename = ""
    before = {item for item in tmp_path.rglob("*") if "deep/er" not in str(item)}
    fetch.main()
    audit = json.loads(Path("metrics/fetch.json").read_text())["chest_xray_pneumonia"]
    assert {reason: count for reason, count in audit["bad_dropped"].items() if count} == {
        "unsafe_name": 4,
        "symlink": 1,
        "zip_bomb": 1,
        "too_large": 1,
        "empty": 1,
        "truncated": 1,
        "too_many_pixels": 1,
        "not_an_image": 1,
        "encrypted": 1,
        "unknown_compression": 1,
        "unreadable": 1,
    }
    assert (audit["images_kept"], audit["junk_dropped"]) == (2, 5)
    assert audited(audit) == audit["members"] == len(hostile()) + 4
    assert {item for item in tmp_path.rglob("*") if "deep/er" not in str(item)} == before
    assert sorted(p.name for p in place.iterdir()) == ["data", "metrics", "params.yaml"]
    images = {p.name for p in Path("data/images/chest_xray_pneumonia").iterdir()}
    assert images == {"IM-0021-0001.png", "IM-0022-0001.png"}


def test_a_large_archive_of_bombs_is_quick(tmp_path, monkeypatch):
    monkeypatch.chdir(workspace(tmp_path))
    bomb = zipfile.ZipInfo("chest_xray/train/NORMAL/IM-0001-0001.jpeg")
    path = tmp_path / "data/archives" / PNEUMONIA
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as opened:
        opened.writestr(bomb, bytes(2**20))
        bomb.file_size = 2**40  # a terabyte, says the directory
    start = time.monotonic()
    fetch.main()
    audit = json.loads(Path("metrics/fetch.json").read_text())["chest_xray_pneumonia"]
    assert audit["bad_dropped"]["too_large"] == 1 and time.monotonic() - start < 5


def small_archives() -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        archives = workspace(Path(folder)) / "data/archives"
        write_zip(
            archives / PNEUMONIA,
            {
                "chest_xray/train/NORMAL/IM-0001-0001.jpeg": encoded(pixels(1, 24, 24), "JPEG", exif=ROTATED),
                "chest_xray/chest_xray/train/NORMAL/IM-0001-0001.jpeg": encoded(
                    pixels(1, 24, 24), "JPEG", exif=ROTATED
                ),
                "chest_xray/train/PNEUMONIA/person1_virus_2.jpeg": encoded(
                    Image.fromarray(pixels(2, 24, 24)).convert("CMYK"), "JPEG"
                ),
            },
            zipfile.ZIP_DEFLATED,
        )
        return {name: (archives / name).read_bytes() for name in (PNEUMONIA, NIH)}


WHOLE = small_archives()
CHANGES = st.lists(
    st.tuples(st.integers(0, 2**16), st.binary(max_size=4), st.integers(0, 8)), min_size=1, max_size=6
)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(name=st.sampled_from([PNEUMONIA, NIH]), changes=CHANGES, from_the_end=st.booleans())
def test_a_changed_archive_is_fetched_or_refused_and_never_crashes(name, changes, from_the_end):
    """Bytes are replaced, added and cut anywhere, often in the central directory, which lies at the end."""
    data = bytearray(WHOLE[name])
    for where, new, cut in changes:
        where = where % len(data) if data else 0
        where = max(len(data) - where % 600 - 1, 0) if from_the_end else where
        data[where : where + cut] = new
    with tempfile.TemporaryDirectory() as outside, chdir(outside):
        Path("place").mkdir()
        with chdir(workspace(Path("place"), image_size=32)):
            for each, whole in WHOLE.items():
                Path("data/archives", each).write_bytes(data if each == name else whole)
            try:
                fetch.main()
            except UserError:
                assert not Path("data/images").exists() and not Path("data/studies.csv").exists()
            else:
                metrics = json.loads(Path("metrics/fetch.json").read_text())
                for audit in (metrics["chest_xray_pneumonia"], metrics["nih_sample"]):
                    assert audited(audit) == audit["members"]
                assert len(list(Path("data/images").rglob("*.png"))) == metrics["images"]
            assert {p.name for p in Path().iterdir()} <= {"data", "metrics", "params.yaml"}
            assert {p.name for p in Path("data").iterdir()} <= {"archives", "images", "studies.csv"}
        assert [p.name for p in Path().iterdir()] == ["place"]


@settings(max_examples=150, deadline=None)
@given(
    whole=st.sampled_from([JPEG, encoded(GREY), encoded(palette()), encoded(GREY, exif=ROTATED)]),
    changes=CHANGES,
)
def test_a_changed_image_is_decoded_or_refused_and_never_crashes(whole, changes):
    data = bytearray(whole)
    for where, new, cut in changes:
        where = where % 1000 % (len(data) + 1)  # headers more often than pixels
        data[where : where + cut] = new
    try:
        image = decoding.decode(bytes(data))
    except decoding.BadImage as bad:
        assert bad.reason in decoding.REASONS
    else:
        assert image.mode == "L" and len(image.tobytes()) == image.width * image.height
