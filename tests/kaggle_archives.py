"""Small archives laid out as Kaggle serves them, for tests."""

import io
import os
import re
import sys
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

from conftest import ROOT

HEADER = "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position"
PNEUMONIA, NIH = "chest-xray-pneumonia.zip", "sample.zip"


def pixels(seed: int, height: int = 40, width: int = 48) -> np.ndarray:
    """A picture of random grey values that no other seed gives."""
    return np.random.default_rng(seed).integers(0, 256, (height, width), dtype=np.uint8)


def encoded(image: Image.Image | np.ndarray, format: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(file, format, **options)
    return file.getvalue()


def write_zip(path: Path, members: dict[str, bytes] | list, method: int = zipfile.ZIP_STORED) -> Path:
    """Members by name, or pairs of name (or ZipInfo) and bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in members.items() if isinstance(members, dict) else members:
            archive.writestr(name, data)
    return path


def nih_members(*rows: str, image: bytes | None = None) -> dict[str, bytes]:
    """The label file with `rows`, and an image for each."""
    members = {"sample_labels.csv": "\n".join((HEADER, *rows, "")).encode()}
    for number, row in enumerate(rows):
        members[f"sample/images/{row.split(',')[0]}"] = image or encoded(pixels(1000 + number))
    return members


def workspace(folder: Path, source: str = "kaggle", **data) -> Path:
    """`folder` with a params.yaml for that source, and for Kaggle two archives of two films each."""
    text = (ROOT / "params.yaml").read_text()
    for key, value in {"source": source, **data}.items():
        text = re.sub(rf"(?m)^( +{key}:) \S+", rf"\1 {value}", text, count=1)
    (folder / "params.yaml").write_text(text)
    if source == "kaggle":
        write_zip(
            folder / "data/archives" / PNEUMONIA,
            {
                "chest_xray/train/NORMAL/IM-0001-0001.jpeg": encoded(pixels(1), "JPEG"),
                "chest_xray/train/PNEUMONIA/person1_virus_2.jpeg": encoded(pixels(2), "JPEG"),
            },
        )
        write_zip(
            folder / "data/archives" / NIH,
            nih_members(
                "00000001_000.png,No Finding,000,00000001,060Y,M,PA",
                "00000002_000.png,Mass|Edema,000,00000002,013M,F,AP",
            ),
        )
    return folder


def stage_command() -> list[str]:
    return [sys.executable, str(ROOT / "stages/fetch.py")]


def stage_environment(**changes: str) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", **changes}


def audited(audit: dict) -> int:
    """How many archive members an audit of metrics/fetch.json explains."""
    once = ("label_files", "junk_dropped", "tree_copies_dropped", "images_kept", "pixel_copies_dropped")
    without_row = audit.get("images_without_row", 0)
    return sum(audit[key] for key in once) + without_row + sum(audit["bad_dropped"].values())
