"""Before a long run: what is there, what is missing, and what to do about it, on one page.

    python stages/doctor.py    # or: make doctor
    python stages/doctor.py -S data.source=kaggle -S model.id=google/paligemma-3b-pt-224

Looks at what params.yaml asks for, with the parameters of -S laid over it as `dvc exp run -S` does. Loads no
weights and downloads nothing but the model's config.json. Ends with status 1 where the run would not go
through.
"""

import argparse
import contextlib
import io
import os
import platform
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import requests
import torch
from huggingface_hub import HfApi, constants, get_token, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import httpx
from kagglesdk.kaggle_env import get_endpoint, get_env
from transformers.utils import logging

from explainmyxray.errors import UserError, exit_on_user_error
from explainmyxray.gpu import cpu_is_wanted, find_driver, find_problem
from explainmyxray.model.base import check_base, compute_dtype, load_family
from explainmyxray.model.families import Family
from explainmyxray.model.free_memory import ALLOCATOR_OVERHEAD, GIB
from explainmyxray.registry import SOURCES, KaggleDataSet
from explainmyxray.settings import Model, Settings, load_settings
from explainmyxray.sources import table
from explainmyxray.sources.kaggle_download import KEY, find_data_set, page
from explainmyxray.training.memory import estimate_step
from explainmyxray.training.memory_plan import plan_memory
from explainmyxray.training.processes import count_processes

LOCK = Path(__file__).parents[1] / "requirements.lock"
GOOD, NOTE, MISSING = "ok", "note", "MISSING"

# GiB of prepared images, DVC's copy of them and checkpoints: both data sets of Kaggle take
# some 0.4, twice, and three checkpoints of PaliGemma-3B's adapter with its optimizer 0.25
WORK_DISK = 2

CARD = 14.5 * GIB  # of a T4's 16 GB, what is left to torch
LANGUAGE_MODEL = r".*language_model.*\.(q|k|v|o)_proj"
SMALL_IMAGE = 224  # pixels

# google/paligemma-3b-*: `main` holds float32 shards, `float16` and `bfloat16` half of that
PALIGEMMA_3B = "google/paligemma-3b"
PALIGEMMA_3B_DISK = 10.9  # GiB
HALF_PRECISION = ("float16", "bfloat16")
WEIGHTS = re.compile(r"model(-\d+-of-\d+)?\.safetensors")

Line = tuple[str, str]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "-S",
        "--set-param",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a parameter that the run will change, as in -S lora.r=32; may be given again",
    )
    options = parser.parse_args()
    settings = load_settings(overrides=options.set_param)
    logging.set_verbosity_error()
    missing = 0
    for check in (python, libraries, gpu, base, step, disk, data):
        for state, text in check(settings):
            print(f"{state:<8} {text}", flush=True)
            missing += state == MISSING
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
    """Each library in the version that requirements.lock
    names; one with a condition (`; ...`) may be absent.
    """
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
        mend = "rm .venv/installed, then make .venv/installed"
        text = f"libraries: {', '.join(differing)}; figures may differ: {mend}"
        yield NOTE, text
    else:
        yield GOOD, f"libraries: all {count} in their locked versions"


def installed(name: str) -> str | None:
    try:
        return version(name).partition("+")[0]  # torch adds its build: 2.14.1+cu130
    except PackageNotFoundError:
        return None


def gpu(settings: Settings) -> Iterator[Line]:
    """What computes, with which driver, and in which type."""
    problem = find_problem()
    if problem:
        yield (MISSING if problem.has_gpu else NOTE), f"GPU: {problem.message}"
        return
    if not torch.cuda.is_available():
        found = "hidden by CUDA_VISIBLE_DEVICES" if cpu_is_wanted() else "none"
        yield NOTE, f"GPU: {found}; a CPU trains in float32, which suits the tiny base and not the 3B model"
        return
    major, minor = torch.cuda.get_device_capability()
    count = torch.cuda.device_count()
    driver = find_driver()
    name = f"GPU: {count} x {torch.cuda.get_device_name()}, capability {major}.{minor}"
    if driver:
        name += f", driver {driver.version}"
    try:
        dtype = compute_dtype(settings.quantization)
    except UserError as error:
        yield MISSING, f"{name}: {error}"
        return
    yield GOOD, f"{name}, computing in {str(dtype).removeprefix('torch.')}"
    used = count_processes(settings.train)
    if count > used:
        yield NOTE, f"GPU: training uses {used} of {count}: -S train.num_processes={count} uses all"


def base(settings: Settings) -> Iterator[Line]:
    """The base model: a folder, or the hub's, its licence
    accepted; and how much of it is to be downloaded.
    """
    found = check_once(settings.model, settings.data.image_size)
    if found.problem:
        yield MISSING, f"base: {found.problem}"
    elif found.model.revision is None:
        yield GOOD, f"base: the folder {found.model.id}"
    else:
        weights = ask_for_weights(found.model)
        where = "in the cache" if weights and not weights.missing else "to be downloaded"
        size = f"{weights.total / GIB:.1f} GiB " if weights else ""
        token = "with" if get_token() else "without"
        yield GOOD, f"base: {found.model.id} at {found.model.revision[:8]}, {size}{where}, {token} a token"
    if settings.model.id.startswith(PALIGEMMA_3B) and settings.model.revision not in HALF_PRECISION:
        yield (
            NOTE,
            f"base: model.revision=float16 is half of main's {PALIGEMMA_3B_DISK} GiB, and nothing is "
            "lost: weights are "
            "cast to 16 bits before they are quantised",
        )


@dataclass(frozen=True)
class CheckedBase:
    """The base with its revision pinned, or what keeps it from being used."""

    model: Model
    problem: str = ""


@cache
def check_once(model: Model, image_size: int) -> CheckedBase:
    """Find the base; asked once, for a missing network takes half a minute."""
    try:
        return CheckedBase(check_base(model, image_size))
    except UserError as error:
        return CheckedBase(model, problem=str(error))


@dataclass(frozen=True)
class Weights:
    """Bytes of a model's safetensors on the hub, and of those that are not in the cache yet."""

    total: int
    missing: int


@cache
def ask_for_weights(model: Model) -> Weights | None:
    """Sizes as the hub tells them for a revision that `check_once` has pinned; None where it does not."""
    try:
        info = HfApi().model_info(model.id, revision=model.revision, files_metadata=True, timeout=10)
    except (HfHubHTTPError, httpx.HTTPError, OSError):
        return None
    total = missing = 0
    for file in info.siblings or ():
        if not WEIGHTS.fullmatch(file.rfilename):
            continue
        total += file.size or 0
        # A path where it is cached; else None, or an object that says that there is no such file.
        if not isinstance(try_to_load_from_cache(model.id, file.rfilename, revision=model.revision), str):
            missing += file.size or 0
    return Weights(total, missing) if total else None


def step(settings: Settings) -> Iterator[Line]:
    """Memory of a training step with the longest report that model.max_length allows, against what is free
    here, and against a card of 16 GB.
    """
    found = check_once(settings.model, settings.data.image_size)
    if found.problem:
        yield NOTE, "memory: not known without the base"
        return
    settings = settings.model_copy(update={"model": found.model})
    family = load_family(found.model)
    said = io.StringIO()
    # On a GPU each process has a memory of its own.
    processes = 1 if torch.cuda.is_available() else count_processes(settings.train)
    try:
        with contextlib.redirect_stdout(said):
            plan_memory(settings, *longest_sequence(settings, family), processes)
    except UserError as error:
        yield MISSING, f"memory: {error}"
    else:
        yield GOOD, f"memory: {said.getvalue().strip()}, with reports up to model.max_length"
    yield card_line(settings, family)


def card_line(settings: Settings, family: Family) -> Line:
    """Whether a card of 16 GB holds a step in 16 bits, with all layers recomputed; if not, what to change."""
    needed = card_bytes(settings, family)
    if needed <= CARD:
        return GOOD, f"memory: a card of 16 GB holds a step: about {needed / GIB:.1f} of {CARD / GIB} GiB"
    changes = []
    for change, smaller in smaller_steps(settings, family):
        changes.append(change)
        less = card_bytes(smaller, family)
        if less <= CARD:
            return NOTE, (
                f"memory: a card of 16 GB does not hold a step, about {needed / GIB:.1f} of {CARD / GIB} "
                f"GiB; about {less / GIB:.1f} with {' '.join(changes)}"
            )
    return NOTE, (
        f"memory: no card of 16 GB holds a step, about {needed / GIB:.1f} of {CARD / GIB} GiB: a "
        "smaller model.id"
    )


def card_bytes(settings: Settings, family: Family) -> float:
    """What a step asks of a GPU that computes in 16 bits."""
    estimate = estimate_step(settings, *longest_sequence(settings, family), torch.float16)
    return ALLOCATOR_OVERHEAD * estimate.peak(num_stored=1)


def longest_sequence(settings: Settings, family: Family) -> tuple[int, int]:
    """Tokens of image and prompt, and those that `model.max_length` leaves for the report."""
    prompt_length = family.num_image_tokens(settings.data.image_size) + family.prompt_tokens
    return prompt_length, max(settings.model.max_length - prompt_length, 1)


def smaller_steps(settings: Settings, family: Family) -> Iterator[tuple[str, Settings]]:
    """Changes that ask for less memory, each with the settings after it and those before it."""
    images = settings.train.per_device_train_batch_size * settings.train.gradient_accumulation_steps
    batch = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": images}
    settings = settings.model_copy(update={"train": settings.train.model_copy(update=batch)})
    yield " ".join(f"-S train.{name}={value}" for name, value in batch.items()), settings

    lora = settings.lora.model_copy(update={"target_modules": LANGUAGE_MODEL})
    settings = settings.model_copy(update={"lora": lora})
    yield f"-S 'lora.target_modules=\"{LANGUAGE_MODEL}\"'", settings

    if family.image_size is None and settings.data.image_size > SMALL_IMAGE:
        data = settings.data.model_copy(update={"image_size": SMALL_IMAGE})
        yield f"-S data.image_size={SMALL_IMAGE}", settings.model_copy(update={"data": data})


def disk(settings: Settings) -> Iterator[Line]:
    """Room for images and checkpoints here (`data` has the archives),
    and for the base in the hub's cache, often another disk.
    """
    here = Path.cwd()
    if Path(settings.model.id).is_dir():
        yield disk_line("here", here, WORK_DISK)
        return
    cache_folder = Path(constants.HF_HUB_CACHE)
    cache_name = f"in the hub's cache, {cache_folder} (HF_HOME names another)"
    known_size = download_size(settings)
    size = known_size or 0
    if nearest_folder(cache_folder).stat().st_dev == here.stat().st_dev:
        yield disk_line(
            f"here and {cache_name}", here, WORK_DISK + size, f", {size:.1f} of them for the base"
        )
    else:
        yield disk_line("here", here, WORK_DISK)
        yield disk_line(cache_name, cache_folder, size)
    if known_size is None:
        yield NOTE, f"disk: what {settings.model.id} takes in the cache is not known without the hub"


def disk_line(name: str, folder: Path, needed: float, more: str = "") -> Line:
    free = shutil.disk_usage(nearest_folder(folder)).free / GIB
    state = GOOD if free > needed else MISSING
    return state, f"disk: {free:.1f} GiB free {name}, about {needed:.1f} needed{more}"


def nearest_folder(path: Path) -> Path:
    """`path`, or the nearest folder above it that is there."""
    return next(folder for folder in (path, *path.parents) if folder.is_dir())


def download_size(settings: Settings) -> float | None:
    """GiB of the base that are not in the cache; where the
    hub does not tell, what PaliGemma-3B is known to take.
    """
    found = check_once(settings.model, settings.data.image_size)
    weights = None if found.problem else ask_for_weights(found.model)
    if weights:
        return weights.missing / GIB
    if settings.model.id.startswith(PALIGEMMA_3B):
        return PALIGEMMA_3B_DISK / (2 if settings.model.revision in HALF_PRECISION else 1)
    return None


def data(settings: Settings) -> Iterator[Line]:
    """The phantoms need nothing; Kaggle's data sets lie there,
    as zip files or mounted folders, or can be downloaded.
    """
    archives = Path(settings.data.archives)
    absent = []
    has_reports = any(SOURCES[name].reports for name in settings.data.source)
    for name in settings.data.source:
        data_set = SOURCES[name].kaggle
        if name == "phantom":
            yield GOOD, f"data: {settings.data.phantom.count} phantoms, drawn here"
        if name == "table":
            found = check_table(settings)
            yield from found.lines
            has_reports = has_reports or found.has_reports
        if data_set is None:
            continue
        found = find_data_set(data_set.name, archives)
        if found is None:
            absent.append(data_set)
        elif found.path.is_dir():
            yield GOOD, f"data: {found.path}, a folder, read where it lies"
        else:
            yield GOOD, f"data: {found.path}, a zip file of {found.stored_bytes() / 1e9:.1f} GB"
    if absent:
        yield download(absent, archives)
    if absent and not has_key():
        yield NOTE, f"Kaggle key: none, public data sets need none; should Kaggle ask for one, {KEY}"
    if has_reports and settings.augment.horizontal_flip:
        yield (
            NOTE,
            "data: real reports name sides, and training stops where a mirrored film would belie them: "
            "-S augment.horizontal_flip=0.0",
        )


@dataclass(frozen=True)
class CheckedTable:
    """What there is to say of the table of one's own films, and whether it brings reports."""

    lines: list[Line]
    has_reports: bool = False


def check_table(settings: Settings) -> CheckedTable:
    """How many rows can be used, as far as the table alone tells: no film is opened."""
    try:
        films, audit = table.films(settings.data, settings.seed)
    except UserError as error:
        return CheckedTable([(MISSING, f"data: {error}")])
    dropped = [
        f"{count} {reason.replace('_', ' ')}" for reason, count in audit["rows_dropped"].items() if count
    ]
    text = f"data: {settings.data.table}, {len(films)} of {audit['rows']} rows can be used"
    if dropped:
        text += f" (dropped: {', '.join(dropped)})"
    lines = [(GOOD if films else MISSING, text)]
    nameless = audit["rows_without_patient"]
    if nameless:
        text = f"data: {nameless} rows name no patient: nobody can see one person's films in two splits"
        lines.append((NOTE, text))
    return CheckedTable(lines, any(film.study["report"] for film in films))


def download(data_sets: list[KaggleDataSet], archives: Path) -> Line:
    """Whether the data sets that are missing can be downloaded to the folder `archives`."""
    names = [data_set.name for data_set in data_sets]
    size = sum(data_set.download_gb for data_set in data_sets)
    place = nearest_folder(archives.absolute())
    free = shutil.disk_usage(place).free / 1e9
    if not kaggle_answers():
        by_hand = "; ".join(f"{page(name)} goes to {archives}/{name}.zip" for name in names)
        return MISSING, f"data: no connection to Kaggle; by hand: {by_hand}"
    if not os.access(place, os.W_OK):
        return MISSING, f"data: {', '.join(names)} cannot be downloaded to {archives}, which is read-only"
    room = f"about {size:g} GB of {free:.0f} free there"
    text = f"data: {', '.join(names)} will be downloaded to {archives}, {room}"
    if free < size:
        return MISSING, f"{text}: set data.archives to a folder on a larger disk"
    return NOTE, f"{text}, {'with your key' if has_key() else 'without a key'}"


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
