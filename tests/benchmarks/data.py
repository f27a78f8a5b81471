"""What preparing films costs, and what it saves.

    python tests/benchmarks/data.py     # minutes; 100,000 phantoms need 4 GB of disk in --folder
    python tests/benchmarks/data.py --counts 5000 20000

First, an epoch's reading of films: prepared once, as `fetch` does, against decoding each at full size
every time. Then `fetch` itself and DVC's hashing of its images, by number of films. The last line is JSON.
"""

import argparse
import io
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

sys.path += [str(Path(__file__).resolve().parents[2] / "stages"), str(Path(__file__).resolve().parents[1])]

from PIL import Image

from conftest import ROOT, write_params
from explainmyxray.images.decoding import decode
from explainmyxray.model.inputs import open_image
from explainmyxray.sources import phantom

FILM_SIZE = 1500  # pixels a side; the films of chest-xray-pneumonia have 400 to 2,916
PREPARED_SIZE = (224, 224)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--counts", type=int, nargs="+", default=[5_000, 20_000, 100_000])
    parser.add_argument("--folder", help="where to work (default: the system's place for temporary files)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        figures = {"reading": measure_reading(Path(folder)), "fetching": []}
        print(
            f"{'films':>8}{'fetch s':>9}{'films/s':>9}{'peak MiB':>10}"
            f"{'dvc add s':>11}{'dvc status s':>14}{'MB':>7}",
            flush=True,
        )
        for count in options.counts:
            row = measure_fetching(Path(folder) / str(count), count)
            figures["fetching"].append(row)
            print(
                f"{row['films']:>8}{row['fetch_s']:>9.1f}{row['films_per_s']:>9.1f}{row['peak_mib']:>10.0f}"
                f"{row['dvc_add_s']:>11.1f}{row['dvc_status_s']:>14.1f}{row['mb']:>7.0f}",
                flush=True,
            )
    print(json.dumps(figures))


def measure_reading(folder: Path, count: int = 40, rounds: int = 3) -> dict[str, float]:
    """Films a second of an epoch, prepared and decoded anew, in turns; and their ratio."""
    jpegs = []
    for number, film in enumerate(phantom.sample(phantom.PIPELINE, 0, count, FILM_SIZE)):
        file = io.BytesIO()
        film.read().save(file, "JPEG", quality=90)
        jpegs.append(file.getvalue())
        prepare(file.getvalue()).save(folder / f"{number}.png")
    plain = prepared = float("inf")
    for _ in range(rounds):
        started = time.perf_counter()
        for jpeg in jpegs:
            prepare(jpeg)
        plain = min(plain, time.perf_counter() - started)
        started = time.perf_counter()
        for number in range(count):
            open_image(folder, f"{number}.png")
        prepared = min(prepared, time.perf_counter() - started)
    print(
        f"one process reads {count / prepared:.0f} prepared films a second, or decodes "
        f"{count / plain:.0f} of "
        f"{FILM_SIZE} x {FILM_SIZE} pixels: {plain / prepared:.0f} times",
        flush=True,
    )
    return {
        "prepared_per_s": round(count / prepared, 1),
        "plain_per_s": round(count / plain, 1),
        "ratio": round(plain / prepared, 1),
    }


def prepare(jpeg: bytes) -> Image.Image:
    return decode(jpeg).resize(PREPARED_SIZE, Image.Resampling.BICUBIC)


def measure_fetching(folder: Path, count: int) -> dict[str, float]:
    """`fetch` of `count` phantoms in a process of its own,
    then DVC's first look at the images, then its second.
    """
    folder.mkdir()
    write_params(folder, {"data": {"phantom": {"count": count}}})
    fetched = run(folder, sys.executable, ROOT / "stages/fetch.py")
    run(folder, "git", "init", "-q")
    run(folder, sys.executable, "-m", "dvc", "init", "-q")
    added = run(folder, sys.executable, "-m", "dvc", "add", "-q", "data/images")
    looked = run(folder, sys.executable, "-m", "dvc", "status", "-q")
    return {
        "films": count,
        "fetch_s": fetched.seconds,
        "films_per_s": count / fetched.seconds,
        "peak_mib": fetched.peak_mib,
        "dvc_add_s": added.seconds,
        "dvc_status_s": looked.seconds,
        "mb": sum(path.stat().st_size for path in (folder / "data/images").rglob("*.png")) / 1e6,
    }


@dataclass(frozen=True)
class Cost:
    """What a command took."""

    seconds: float
    cpu_seconds: float  # of all its processes together: hardly more on a busy machine
    peak_mib: float  # of its largest process


# Runs a command; prints its seconds, the processor's, and the MiB of the largest of its processes. It is a
# subreaper (prctl 36): of a process whose parent has ended, as the one that decodes, only who waits for it
# gets to know.
MEASURED = """import ctypes, os, resource, subprocess, sys, time
ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)
started = time.perf_counter()
status = subprocess.call(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
seconds = time.perf_counter() - started
try:
    while True:
        os.wait()
except ChildProcessError:
    pass
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(seconds, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024)
sys.exit(status)"""


def run(folder: Path, *command) -> Cost:
    """Run a command in `folder`.

    Started from a small process: Linux counts what the parent held when it forked as the child's.
    """
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, *map(str, command)], cwd=folder, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))} failed in {folder}")
    return Cost(*map(float, done.stdout.split()))


if __name__ == "__main__":
    main()
