"""Mutated films, thrown at the one way in: each is decoded or refused with a reason, and this process goes
on.

    python tests/fuzz_films.py --seconds 600      # by hand: a line for each file that would end the process

The seeds are the DICOM files that pydicom ships, in all their transfer syntaxes, and a JPEG and PNG file of a
phantom.
"""

import argparse
import faulthandler
import io
import itertools
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pydicom

ROOT = Path(__file__).resolve().parents[1]
PYDICOM_FILES = Path(pydicom.__file__).parent / "data/test_files"

sys.path.append(str(ROOT / "stages"))

from explainmyxray.images import films  # noqa: E402
from explainmyxray.images.decoding import REASONS, BadImage  # noqa: E402
from explainmyxray.images.dicom import decode_dicom, is_dicom  # noqa: E402
from explainmyxray.sources import phantom  # noqa: E402

MAX_SEED_BYTES = 400_000  # smaller files make more mutations a second


@dataclass(frozen=True)
class Outcome:
    """What became of a mutated file."""

    name: str  # of the file that it was made from
    number: int  # of the mutation: with the seed it makes the file again
    result: str  # "decoded", or the reason why not


@cache
def seed_files() -> dict[str, bytes]:
    """Whole films by name."""
    found = {}
    for path in PYDICOM_FILES.glob("*.dcm"):
        data = path.read_bytes()
        if len(data) <= MAX_SEED_BYTES and holds_pixels(data):
            found[path.name] = data
    film = next(phantom.sample(phantom.PIPELINE, 0, 1, 128)).read()
    for form in ("JPEG", "PNG"):
        file = io.BytesIO()
        film.save(file, form, progressive=True)
        found[f"phantom.{form.lower()}"] = file.getvalue()
    return dict(sorted(found.items()))


def holds_pixels(data: bytes) -> bool:
    try:
        return "PixelData" in pydicom.dcmread(io.BytesIO(data))
    except Exception:  # some of pydicom's files are broken on purpose
        return False


def mutated(data: bytes, rng: random.Random) -> bytes:
    """`data` with up to eight changes: bytes replaced, cut out or put in, in the pixels more often than in
    the header.
    """
    changed = bytearray(data)
    for _ in range(rng.randint(1, 8)):
        first = len(changed) * rng.choice((0, 0.25, 0.5)) if changed else 0
        where = rng.randint(int(first), len(changed))
        length = rng.choice((1, 1, 1, 2, 4, 16))
        kind = rng.random()
        if kind < 0.7:
            changed[where : where + length] = rng.randbytes(length)
        elif kind < 0.85:
            del changed[where : where + length]
        else:
            changed[where:where] = rng.choice((b"\x00", b"\xff", b"\xff\xff\xff\xff")) * length
    return bytes(changed)


def mutation(seed: int, name: str, number: int) -> bytes:
    return mutated(seed_files()[name], random.Random(f"{seed} {name} {number}"))


def fuzz(seed: int = 0) -> Iterator[Outcome]:
    """Mutations without end, of each file in turn; the same seed gives the same."""
    seeds = seed_files()
    for number in itertools.count():
        for name, whole in seeds.items():
            data = mutated(whole, random.Random(f"{seed} {name} {number}"))
            yield Outcome(name, number, open_or_reason(data))


def open_or_reason(data: bytes) -> str:
    """What `open_film` makes of a file."""
    try:
        films.open_film(data)
    except BadImage as bad:
        assert bad.reason in REASONS
        return bad.reason
    return "decoded"


def exit_status(data: bytes) -> int:
    """Of a process that decodes a DICOM file without protection: 0, or negative the signal that ended it."""
    pid = os.fork()
    if pid == 0:
        faulthandler.disable()  # pytest's: it would write pages about the death that is looked for
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        try:
            decode_dicom(data)
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    end = time.monotonic() + options.seconds
    results, deadly = Counter(), Counter()
    slowest = 0.0
    started = time.monotonic()
    for outcome in fuzz(options.seed):
        slowest = max(slowest, time.monotonic() - started)
        results[outcome.result] += 1
        if outcome.result == "damaged":
            data = mutation(options.seed, outcome.name, outcome.number)
            status = exit_status(data) if is_dicom(data) else 0
            if status:
                deadly[outcome.name] += 1
                print(outcome, f"exit status {status}", flush=True)
        started = time.monotonic()
        if started > end:
            break
    print(f"{results.total()} files: {dict(results)}; the slowest took {slowest:.1f} s")
    print(f"{deadly.total()} of them would have ended this process: {dict(deadly)}")


if __name__ == "__main__":
    main()
