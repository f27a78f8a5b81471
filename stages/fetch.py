"""Fetch: prepare every usable film of the source once, at `data.image_size`.

    python stages/fetch.py

Writes data/images/, data/studies.csv and metrics/fetch.json, which says what was dropped and why.
"""

import hashlib
import io
import multiprocessing
import os
import signal
import sys
import zlib
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pandas as pd
from PIL import Image
from tqdm import tqdm

from explainmyxray import sources, tables
from explainmyxray.child_process import end_with_parent
from explainmyxray.command import parse_no_arguments
from explainmyxray.errors import UserError, exit_on_user_error
from explainmyxray.images.decoding import BadImage
from explainmyxray.images.near_duplicates import first_of_group, perceptual_hash
from explainmyxray.outputs import replacing_folder
from explainmyxray.settings import load_settings

WINDOW = 2048  # films under way at once, which bounds memory
CHUNK = 8  # films that a process takes at a time


@dataclass(frozen=True)
class PreparedFilm:
    """What `prepare` makes of a film: an image, or why there is none."""

    problem: str = ""  # one of `images.decoding.REASONS`; then all else is blank
    sha256: str = ""  # of the film's size and its pixels at full size
    perceptual_hash: bytes = b""
    png: bytes = b""  # the file, `data.image_size` pixels square


def main() -> None:
    parse_no_arguments(__doc__)
    settings = load_settings()
    with replacing_folder("data/images") as folder:
        films, audits = sources.load_source(settings.data, settings.seed)
        for audit in audits.values():
            audit |= {"images_kept": 0, "pixel_copies_dropped": 0, "copies_with_other_labels": 0}
        table = write_images(films, settings.data.image_size, folder, audits)
        tables.write_table("data/studies.csv", table)
        figures = {
            "images": len(table),
            "patients": tables.count_patients(table),
            "near_duplicates": count_near_duplicates(table),
            **audits,
        }
        tables.write_metrics("metrics/fetch.json", figures)
    print(*summary(figures), sep="\n")


def write_images(films: list[sources.Film], size: int, folder: Path, audits: dict) -> pd.DataFrame:
    """Write the films that are usable and no copies to `folder`, count all in `audits`; returns the studies
    table.
    """
    films = sorted(films, key=lambda film: f"{film.name}.png")
    rows, hashes = [], []
    labels: dict[str, str] = {}  # of the images kept, by SHA-256
    seconds = 0.5 if sys.stderr.isatty() else 15  # between progress lines: a log file gets few
    prepared = prepare_all(films, size)
    for film, result in tqdm(prepared, total=len(films), desc="fetch", unit="image", mininterval=seconds):
        study = dict.fromkeys(tables.COLUMNS, "") | film.study
        audit = audits[study["source"]]
        if result.problem:
            audit["bad_dropped"][result.problem] += 1
            continue
        if result.sha256 in labels:
            audit["pixel_copies_dropped"] += 1
            audit["copies_with_other_labels"] += study["labels"] != labels[result.sha256]
            continue
        labels[result.sha256] = study["labels"]
        hashes.append(result.perceptual_hash)
        audit["images_kept"] += 1
        path = folder / f"{film.name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(result.png)
        rows.append({**study, "image": f"{film.name}.png", "sha256": result.sha256})
    if not rows:
        found = "; ".join(audit_lines(audits))
        raise UserError(f"no image: there is none that can be used; look at what was found: {found}")
    table = pd.DataFrame(rows, columns=tables.COLUMNS)
    table["near_duplicate_of"] = first_of_group(list(table["image"]), hashes)
    return table


def count_near_duplicates(table: pd.DataFrame) -> dict[str, int]:
    """How many images are near duplicates, of how many films, and of how many of these the labels differ."""
    groups = table[table["near_duplicate_of"] != ""].groupby("near_duplicate_of")
    return {
        "images": int(groups.size().sum()),
        "films": groups.ngroups,
        "films_with_other_labels": int((groups["labels"].nunique() > 1).sum()),
    }


def prepare_all(films: list[sources.Film], size: int) -> Iterator[tuple[sources.Film, PreparedFilm]]:
    """Each film, in order, with what `prepare` makes of it; on all cores, the same whatever their number."""
    work = partial(prepare, size=size)
    processes = min(os.cpu_count() or 1, len(films) // 64)
    if processes < 2:  # starting processes takes longer
        for film in films:
            yield film, work(film)
        return
    others = multiprocessing.active_children()
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(processes, mp_context=context, initializer=end_with_parent)
    try:
        for start in range(0, len(films), WINDOW):
            window = films[start : start + WINDOW]
            yield from zip(window, pool.map(work, window, chunksize=CHUNK), strict=True)
    except BrokenProcessPool:
        raise UserError(
            "a process that prepares films was killed, most likely for want of memory: "
            "close other programs and run again"
        ) from None
    finally:
        # All films are through, or nobody waits for those that are under way.
        for process in multiprocessing.active_children():
            if process not in others:
                process.terminate()
        pool.shutdown(cancel_futures=True)


def prepare(film: sources.Film, size: int) -> PreparedFilm:
    """The film at `size` pixels square, with its hashes; or why it is not usable."""
    try:
        # At full size, for the SHA-256 is over all pixels: decoding a JPEG at a reduced size is no help.
        image = film.read()
    except BadImage as bad:
        return PreparedFilm(problem=bad.reason)
    sha256 = hashlib.sha256(b"%dx%d " % image.size + image.tobytes()).hexdigest()
    small = image.resize((size, size), Image.Resampling.BICUBIC)  # bicubic, as SiglipImageProcessor resizes
    file = io.BytesIO()
    # Less than half the time of the default compression, and 2 % more bytes.
    small.save(file, "PNG", compress_type=zlib.Z_HUFFMAN_ONLY)
    return PreparedFilm("", sha256, perceptual_hash(small), file.getvalue())


def summary(figures: dict) -> Iterator[str]:
    """The figures for a person: a line a data set, with what was dropped and why."""
    audits = {
        name: part for name, part in figures.items() if isinstance(part, dict) and "images_kept" in part
    }
    yield from audit_lines(audits)
    near = figures["near_duplicates"]
    yield (
        f"data/studies.csv: {figures['images']} images of {figures['patients']} patients; "
        f"{near['images']} of them are near duplicates, of {near['films']} films"
    )


def audit_lines(audits: dict[str, dict]) -> Iterator[str]:
    """A line a data set: how many images are kept, what was dropped and why, and what is not known."""
    for name, audit in audits.items():
        reasons = {}
        for key, count in audit.items():
            if key in ("bad_dropped", "rows_dropped") and isinstance(count, dict):
                reasons |= count
            elif key.endswith("_dropped"):
                reasons[key.removesuffix("_dropped")] = count
        counts = [f"{count} {reason.replace('_', ' ')}" for reason, count in reasons.items() if count]
        line = f"{name}: {audit['images_kept']} images kept; dropped: {', '.join(counts) or 'none'}"
        blanked = audit.get("cells_blanked", {})
        unknown = {"rows without patient": audit.get("rows_without_patient", 0)}
        unknown |= {f"{column.replace('_', ' ')} blanked": count for column, count in blanked.items()}
        counts = [f"{count} {what}" for what, count in unknown.items() if count]
        yield f"{line}; {', '.join(counts)}" if counts else line


def end_on_sigterm(number: int, frame: object) -> None:
    """As Ctrl-C does: through the `finally` blocks, which clear away what is unfinished and end the pool."""
    sys.exit(128 + number)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, end_on_sigterm)
    exit_on_user_error(main)
