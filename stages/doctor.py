"""Before a long run: what is there, what is missing, and what to do about it, on one page.

    python stages/doctor.py    # or: make doctor

Looks at what params.yaml asks for; loads no weights and downloads nothing but the model's config.json. Ends with status 1
where the run would not go through.
"""

import contextlib
import io
import os
import platform
import re
import shutil
import sys
from collections.abc import Iterator
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import requests
import torch
from huggingface_hub import get_token, try_to_load_from_cache
from kagglesdk.kaggle_env import get_endpoint, get_env
from transformers import AutoConfig
from transformers.utils import logging

from explainmyxray.errors import UserError, exit_on_user_error
from explainmyxray.model.base import check_base, compute_dtype
from explainmyxray.settings import Model, Settings, load_settings
from explainmyxray.sources.kaggle_download import DATA_SETS, KEY, page
from explainmyxray.training import memory

LOCK = Path(__file__).parents[1] / "requirements.lock"
GOOD, NOTE, MISSING = "ok", "note", "MISSING"
PROMPT = 8  # tokens of <bos>, prompt and line break, at most
DISK = {"phantom": 1, "kaggle": 20}  # GiB for archives, prepared images and checkpoints
BASE_DISK = 6  # GiB of PaliGemma-3B's weights in 16 bits

Line = tuple[str, str]


def main() -> None:
    settings = load_settings()
    logging.set_verbosity_error()
    lines = [line for check in (python, libraries, gpu, base, step, disk, data) for line in check(settings)]
    for state, text in lines:
        print(f"{state:<8} {text}")
    missing = sum(state == MISSING for state, _ in lines)
    print(f"\n{missing} missing: see above" if missing else "\nnothing is missing: `dvc repro` can run")
    sys.exit(bool(missing))


def python(settings: Settings) -> Iterator[Line]:
    """The interpreter, and the machine under it."""
    machine = f"Python {platform.python_version()}, {os.cpu_count()} cores"
    if (3, 11) <= sys.version_info[:2] <= (3, 14):
        yield GOOD, machine
    else:
        yield MISSING, f"{machine}: 3.11, 3.12, 3.13 or 3.14 is needed"


def libraries(settings: Settings) -> Iterator[Line]:
    """Each library in the version that requirements.lock names; one with a condition (`; ...`) may be absent."""
    locked = re.findall(r"^(\S+)==(\S+)( ;)?", LOCK.read_text(), re.MULTILINE)
    differing = []
    count = 0
    for name, wanted, condition in locked:
        found = installed(name)
        if found is None and condition:
            continue
        count += 1
        if found != wanted:
            differing.append(f"{name} {found or 'is not installed'} (locked: {wanted})")
    if differing:
        text = f"libraries: {', '.join(differing)}; figures may differ: rm .venv/installed, then make .venv/installed"
        yield NOTE, text
    else:
        yield GOOD, f"libraries: all {count} in their locked versions"


def installed(name: str) -> str | None:
    try:
        return version(name).partition("+")[0]  # torch adds its build: 2.14.1+cu130
    except PackageNotFoundError:
        return None


def gpu(settings: Settings) -> Iterator[Line]:
    """What computes, and in which type."""
    if not torch.cuda.is_available():
        yield NOTE, "GPU: none; a CPU trains in float32, which suits the tiny base and not the 3B model"
        return
    major, minor = torch.cuda.get_device_capability()
    name = f"GPU: {torch.cuda.device_count()} x {torch.cuda.get_device_name()}, capability {major}.{minor}"
    try:
        yield GOOD, f"{name}, computing in {str(compute_dtype(settings.quantization)).removeprefix('torch.')}"
    except UserError as error:
        yield MISSING, f"{name}: {error}"


def base(settings: Settings) -> Iterator[Line]:
    """The base model: a folder, or the hub's, its licence accepted."""
    found = checked(settings.model)
    if isinstance(found, UserError):
        yield MISSING, f"base: {found}"
        return
    if found.revision is None:
        yield GOOD, f"base: the folder {found.id}"
        return
    cached = isinstance(
        try_to_load_from_cache(found.id, "model.safetensors.index.json", revision=found.revision), str
    )
    yield (
        GOOD,
        (
            f"base: {found.id} at {found.revision[:8]}, {'in the cache' if cached else 'to be downloaded'}, "
            f"{'with' if get_token() else 'without'} a token"
        ),
    )


@cache
def checked(model: Model) -> Model | UserError:
    """The base with its revision, or what keeps it from being used; asked once, for a missing network takes half a minute."""
    try:
        return check_base(model)
    except UserError as error:
        return error


def step(settings: Settings) -> Iterator[Line]:
    """Memory of a training step with the longest report that model.max_length allows, against what is free."""
    found = checked(settings.model)
    if isinstance(found, UserError):
        yield NOTE, "memory: not known without the base"
        return
    vision = AutoConfig.from_pretrained(found.id, revision=found.revision).vision_config
    said = io.StringIO()
    try:
        before = (vision.image_size // vision.patch_size) ** 2 + PROMPT
        with contextlib.redirect_stdout(said):
            memory.plan_checkpointing(settings, before, max(settings.model.max_length - before, 1))
    except UserError as error:
        yield MISSING, f"memory: {error}"
    else:
        yield GOOD, f"memory: {said.getvalue().strip()}"


def disk(settings: Settings) -> Iterator[Line]:
    """Room for archives, images, checkpoints and a downloaded base."""
    free = shutil.disk_usage(".").free / memory.GIB
    needed = DISK[settings.data.source] + (0 if Path(settings.model.id).is_dir() else BASE_DISK)
    yield (GOOD if free > needed else MISSING), f"disk: {free:.0f} GiB free here, about {needed} needed"


def data(settings: Settings) -> Iterator[Line]:
    """The phantoms need nothing; Kaggle's archives lie there, or can be fetched."""
    if settings.data.source == "phantom":
        yield GOOD, f"data: {settings.data.phantom.count} phantoms, drawn here"
        return
    absent = [name for name in DATA_SETS if not (Path(settings.data.archives) / f"{name}.zip").is_file()]
    for name in DATA_SETS:
        if name not in absent:
            yield GOOD, f"data: {settings.data.archives}/{name}.zip"
    if absent:
        by_hand = "; ".join(f"{page(name)} goes to {settings.data.archives}/{name}.zip" for name in absent)
        yield (
            (
                NOTE,
                f"data: {', '.join(absent)} will be downloaded, {'with your key' if has_key() else 'without a key'}",
            )
            if kaggle_answers()
            else (MISSING, f"data: no connection to Kaggle; by hand: {by_hand}")
        )
        if not has_key():
            yield NOTE, f"Kaggle key: none, public data sets need none; should Kaggle ask for one, {KEY}"


def has_key() -> bool:
    home = Path(os.environ.get("KAGGLE_CONFIG_DIR", Path.home() / ".kaggle"))
    return bool({"KAGGLE_API_TOKEN", "KAGGLE_KEY"} & os.environ.keys()) or any(
        (home / name).is_file() for name in ("access_token", "kaggle.json")
    )


def kaggle_answers() -> bool:
    try:
        return requests.head(get_endpoint(get_env()), timeout=10).ok
    except requests.RequestException:
        return False


if __name__ == "__main__":
    exit_on_user_error(main)
