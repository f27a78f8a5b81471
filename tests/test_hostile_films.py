"""Hostile films through the one way in: each costs seconds at most, ends no process but its decoder's, and
has a reason.
"""

import io
import os
import signal
import struct
import subprocess
import sys
import threading
import time
import zlib
from itertools import islice
from pathlib import Path

import pytest
from PIL import Image

from conftest import ROOT
from explainmyxray.images import films
from explainmyxray.images.decoder_process import CPU_SECONDS
from explainmyxray.images.decoding import MAX_SCANS, BadImage
from explainmyxray.images.films import is_colour, open_film
from fuzz_films import exit_status, fuzz, mutation
from kaggle_archives import encoded, pixels

GOOD = encoded(pixels(1), "JPEG")
# A mutation by fuzz_films of a file of pydicom's, on which python-gdcm 3.2.6 throws an exception that nothing
# catches.
DEADLY = (0, "SC_rgb_dcmtk_+eb+cy+s2.dcm", 5)


def reason(data: bytes) -> str:
    with pytest.raises(BadImage) as caught:
        open_film(data)
    return caught.value.reason


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    rows = zlib.compress(bytes((width + 1) * height), 1)
    return (
        b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", rows) + png_chunk(b"IEND", b"")
    )


def progressive_jpeg(scans: int, side: int = 64) -> bytes:
    """A JPEG of `side` pixels square with its last scan as often as it takes to have so many scans."""
    whole = encoded(Image.new("L", (side, side), 7), "JPEG", progressive=True)
    last = whole[whole.rfind(b"\xff\xda") : -2]
    return whole[:-2] + last * (scans - whole.count(b"\xff\xda")) + b"\xff\xd9"


def padded_jpeg() -> bytes:
    """A JPEG with 60 MiB of fill bytes before its first segment, which Pillow skips one by one."""
    return GOOD[:2] + b"\xff" * (60 * 2**20) + GOOD[2:]


def test_a_film_that_ends_its_decoder_is_damaged_and_the_next_one_is_read():
    deadly = mutation(*DEADLY)
    assert open_film(GOOD).size == (48, 40)
    assert reason(deadly) == "damaged"
    assert open_film(GOOD).size == (48, 40)


def test_without_a_process_of_its_own_that_film_would_end_this_one():
    """Should a later python-gdcm survive it, DEADLY wants another one: tests/fuzz_films.py names some."""
    assert exit_status(mutation(*DEADLY)) == -signal.SIGABRT


def test_a_decoder_that_was_killed_is_replaced():
    open_film(GOOD)
    for decoder in films._idle:
        decoder.process.kill()
    assert open_film(GOOD).size == (48, 40)


@pytest.mark.slow
def test_mutated_films_are_decoded_or_refused():
    outcomes = list(islice(fuzz(seed=1), 400))
    assert {outcome.result for outcome in outcomes} >= {"decoded", "damaged", "not_an_image"}
    assert open_film(GOOD).size == (48, 40)


def test_many_scans_and_long_sides_are_refused_before_a_pixel_is_decoded():
    started = time.monotonic()
    assert open_film(progressive_jpeg(MAX_SCANS)).size == (64, 64)
    assert reason(progressive_jpeg(11_000, side=7000)) == "too_many_scans"
    assert reason(png(1, 50_000_000)) == "too_many_pixels"
    assert reason(png(50_000_000, 1)) == "too_many_pixels"
    assert time.monotonic() - started < 5


@pytest.mark.slow
def test_a_slow_film_costs_seconds_and_others_are_read_meanwhile():
    open_film(GOOD)
    results = []
    slow = threading.Thread(target=lambda: results.append(reason(padded_jpeg())))
    slow.start()
    while slow.is_alive():
        started = time.monotonic()
        assert open_film(GOOD).size == (48, 40)
        assert time.monotonic() - started < CPU_SECONDS - 1
        time.sleep(0.2)
    assert results == ["too_slow"]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_decoder_knows_no_secret(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_dontshow")
    monkeypatch.setenv("KAGGLE_KEY", "dontshow")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "dontshow")
    decoder = films.Decoder()
    try:
        assert b"dontshow" not in Path(f"/proc/{decoder.process.pid}/environ").read_bytes()
    finally:
        decoder.close()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_decoder_ends_with_the_process_that_started_it():
    code = """
import sys, time
from explainmyxray.images import films
films.open_film(sys.stdin.buffer.read())
print(films._idle[0].process.pid, flush=True)
time.sleep(60)
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "stages")}
    parent = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
    )
    parent.stdin.write(GOOD)
    parent.stdin.close()
    decoder = Path("/proc") / parent.stdout.readline().decode().strip()
    assert decoder.exists()
    parent.kill()
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 10
    while running(decoder) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not running(decoder)


def running(process: Path) -> bool:
    """Whether a process of /proc runs: gone, or ended and not yet asked for by who adopted it, is not."""
    try:
        return (process / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_file_of_another_kind_is_no_colour_picture_and_no_crash():
    file = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(file, "TIFF")
    with pytest.raises(BadImage):
        is_colour(file.getvalue())
    assert open_film(GOOD).size == (48, 40)
