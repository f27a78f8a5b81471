"""What preparing films costs, and what it saves.

    python tests/benchmarks/data.py                      # minutes; 100,000 phantoms need 4 GB of disk in --folder
    python tests/benchmarks/data.py --counts 5000 20000

First, an epoch's reading of films: prepared once, as `fetch` does, against decoding each at full size every time. Then
`fetch` itself and DVC's hashing of its images, by number of films. The last line is JSON.
"""

import argparse
import io
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "stages"))
sys.path.append(str(ROOT / "tests"))

from conftest import write_params  # noqa: E402
from explainmyxray.images.decoding import decode  # noqa: E402
from explainmyxray.sources import phantom  # noqa: E402
from explainmyxray.training.batches import open_image  # noqa: E402

FILM = 1500  # pixels a side; the films of chest-xray-pneumonia have 400 to 2,916


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--counts", type=int, nargs="+", default=[5_000, 20_000, 100_000])
    parser.add_argument("--folder", help="where to work (default: the system's place for temporary files)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        figures = {"reading": reading(Path(folder))}
        rows = []
        print(
            f"{'films':>8}{'fetch s':>9}{'films/s':>9}{'peak MiB':>10}{'dvc add s':>11}{'dvc status s':>14}{'MB':>7}",
            flush=True,
        )
        for count in options.counts:
            rows.append(fetching(Path(folder) / str(count), count))
            print(
                "{films:>8}{fetch_s:>9.1f}{films_per_s:>9.1f}{peak_mib:>10.0f}{dvc_add_s:>11.1f}{dvc_status_s:>14.1f}{mb:>7.0f}".format(
                    **rows[-1]
                ),
                flush=True,
            )
    print(json.dumps(figures | {"fetching": rows}))


def reading(folder: Path, count: int = 40, rounds: int = 3) -> dict[str, float]:
    """Films a second of an epoch, prepared and decoded anew, in turns; and their ratio."""
    films = [film.read() for film in phantom.sample(phantom.PIPELINE, 0, count, FILM)]
    jpegs = []
    for place, film in enumerate(films):
        file = io.BytesIO()
        film.save(file, "JPEG", quality=90)
        jpegs.append(file.getvalue())
        decode(file.getvalue()).resize((224, 224), Image.Resampling.BICUBIC).save(folder / f"{place}.png")
    seconds = {"plain": [], "prepared": []}
    for _ in range(rounds):
        started = time.perf_counter()
        for jpeg in jpegs:
            decode(jpeg).resize((224, 224), Image.Resampling.BICUBIC)
        seconds["plain"].append(time.perf_counter() - started)
        started = time.perf_counter()
        for place in range(count):
            open_image(folder, f"{place}.png")
        seconds["prepared"].append(time.perf_counter() - started)
    rates = {name: count / min(each) for name, each in seconds.items()}
    ratio = rates["prepared"] / rates["plain"]
    print(
        f"one process reads {rates['prepared']:.0f} prepared films a second, or decodes {rates['plain']:.0f} of {FILM} x {FILM} "
        f"pixels: {ratio:.0f} times",
        flush=True,
    )
    return {
        "prepared_per_s": round(rates["prepared"], 1),
        "plain_per_s": round(rates["plain"], 1),
        "ratio": round(ratio, 1),
    }


def fetching(folder: Path, count: int) -> dict[str, float]:
    """`fetch` of `count` phantoms in a process of its own, then DVC's first look at the images, then its second."""
    folder.mkdir()
    write_params(folder, {"data": {"phantom": {"count": count}}})
    seconds, peak = run(folder, sys.executable, ROOT / "stages/fetch.py")
    row = {"films": count, "fetch_s": seconds, "films_per_s": count / seconds, "peak_mib": peak}
    run(folder, "git", "init", "-q")
    run(folder, sys.executable, "-m", "dvc", "init", "-q")
    row["dvc_add_s"] = run(folder, sys.executable, "-m", "dvc", "add", "-q", "data/images")[0]
    row["dvc_status_s"] = run(folder, sys.executable, "-m", "dvc", "status", "-q")[0]
    row["mb"] = sum(path.stat().st_size for path in (folder / "data/images").rglob("*.png")) / 1e6
    return row


MEASURED = """import resource, subprocess, sys
status = subprocess.call(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024)
sys.exit(status)"""


def run(folder: Path, *command) -> tuple[float, float]:
    """Seconds that a command takes, and the MiB of its largest process.

    Started from a small process: Linux counts what the parent held when it forked as the child's.
    """
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, *map(str, command)], cwd=folder, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))} failed in {folder}")
    return time.perf_counter() - started, float(done.stdout)


if __name__ == "__main__":
    main()
