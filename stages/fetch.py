"""Fetch: prepare every usable film of the source once, at `data.image_size`.

    python stages/fetch.py

Writes data/images/, data/studies.csv and metrics/fetch.json, which says what was dropped and why.
"""

import hashlib
import io
import os
import sys
import zlib
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import pandas as pd
from PIL import Image
from tqdm import tqdm

from explainmyxray import sources, tables
from explainmyxray.errors import UserError, exit_on_user_error
from explainmyxray.images.decoding import BadImage
from explainmyxray.images.near_duplicates import first_of_group, perceptual_hash
from explainmyxray.outputs import replacing
from explainmyxray.settings import load_settings
from explainmyxray.tables import write_metrics

WINDOW, CHUNK = 2048, 8  # films under way at once, which bounds memory; films a process takes at a time


def main() -> None:
    settings = load_settings()
    films, accounts = sources.load_source(settings.data, settings.seed)
    for account in accounts.values():
        account |= {"images_kept": 0, "pixel_copies_dropped": 0, "copies_with_other_labels": 0}
    with replacing("data/images") as folder:
        table = keep(films, settings.data.image_size, folder, accounts)
        tables.write_table("data/studies.csv", table)
        figures = {
            "images": len(table),
            "patients": table["patient"].nunique(),
            "near_duplicates": near_duplicates(table),
            **accounts,
        }
        write_metrics("metrics/fetch.json", figures)
    print(*summary(figures), sep="\n")


def keep(films: list[sources.Film], size: int, folder: Path, accounts: dict) -> pd.DataFrame:
    """Write the films that are neither bad nor copies to `folder` and count all in `accounts`; returns the studies."""
    films = sorted(films, key=lambda film: f"{film.name}.png")
    rows, labels, hashes = [], {}, []
    every = 0.5 if sys.stderr.isatty() else 15  # seconds between progress lines: a log file gets few
    for film, done in tqdm(
        prepared(films, size), total=len(films), desc="fetch", unit="image", mininterval=every
    ):
        account = accounts[film.study["source"]]
        if isinstance(done, str):
            account["bad_dropped"][done] += 1
            continue
        sha256, looks, png = done
        if sha256 in labels:
            account["pixel_copies_dropped"] += 1
            account["copies_with_other_labels"] += film.study["labels"] != labels[sha256]
            continue
        labels[sha256] = film.study["labels"]
        hashes.append(looks)
        account["images_kept"] += 1
        path = folder / f"{film.name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png)
        rows.append({**film.study, "image": f"{film.name}.png", "sha256": sha256})
    if not rows:
        raise UserError(
            "no image: the source offers none that can be used; look at the archives in data.archives"
        )
    table = pd.DataFrame(rows, columns=tables.COLUMNS)
    table["near_duplicate_of"] = first_of_group(list(table["image"]), hashes)
    return table


def near_duplicates(table: pd.DataFrame) -> dict[str, int]:
    """How many images are near copies of another, of how many films, and how many films have copies with other labels."""
    copies = table[table["near_duplicate_of"] != ""].groupby("near_duplicate_of")
    return {
        "images": int(copies.size().sum()),
        "films": copies.ngroups,
        "films_with_other_labels": int((copies["labels"].nunique() > 1).sum()),
    }


def prepared(
    films: list[sources.Film], size: int
) -> Iterator[tuple[sources.Film, tuple[str, bytes, bytes] | str]]:
    """Each film, in order, with what `prepare` makes of it; on all cores, and the same whatever their number."""
    work = partial(prepare, size=size)
    processes = min(os.cpu_count() or 1, len(films) // 64)
    if processes < 2:  # starting processes takes longer
        yield from ((film, work(film)) for film in films)
        return
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        for start in range(0, len(films), WINDOW):
            window = films[start : start + WINDOW]
            yield from zip(window, pool.map(work, window, chunksize=CHUNK), strict=True)


def prepare(film: sources.Film, size: int) -> tuple[str, bytes, bytes] | str:
    """SHA-256 of the film's pixels, perceptual hash, and the PNG file at `size` pixels square; or why it is not usable."""
    try:
        image = (
            film.read()
        )  # at full size, for the sum is over all pixels: JPEG's reduced-size decoding is no help
    except BadImage as bad:
        return bad.reason
    sha256 = hashlib.sha256(b"%dx%d " % image.size + image.tobytes()).hexdigest()
    file = io.BytesIO()
    small = image.resize((size, size), Image.Resampling.BICUBIC)  # bicubic, as SiglipImageProcessor resizes
    small.save(
        file, "PNG", compress_type=zlib.Z_HUFFMAN_ONLY
    )  # less than half the default's time, 2 % more bytes
    return sha256, perceptual_hash(small), file.getvalue()


def summary(figures: dict) -> Iterator[str]:
    """The figures for a person: a line a data set, with what was dropped and why."""
    for name, account in figures.items():
        if isinstance(account, dict) and "images_kept" in account:
            reasons = {
                key.removesuffix("_dropped"): value for key, value in account.items() if "_dropped" in key
            }
            reasons |= reasons.pop("bad", {})
            dropped = ", ".join(
                f"{count} {reason.replace('_', ' ')}" for reason, count in reasons.items() if count
            )
            yield f"{name}: {account['images_kept']} images kept; dropped: {dropped or 'none'}"
    near = figures["near_duplicates"]
    yield (
        f"data/studies.csv: {figures['images']} images of {figures['patients']} patients; {near['images']} of them are near "
        f"copies, of {near['films']} films"
    )


if __name__ == "__main__":
    exit_on_user_error(main)
