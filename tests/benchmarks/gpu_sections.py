"""The sections of `tests/gpu_report.py`: each yields rows of its table as they
are measured, and begins nothing new after its deadline (of `time.monotonic`)."""

import gc
import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from importlib.metadata import version
from io import StringIO
from pathlib import Path

sys.path += [str(Path(__file__).resolve().parents[2] / "stages"), str(Path(__file__).resolve().parents[1])]

import psutil
import torch
from accelerate.utils import set_seed
from safetensors.torch import load_file

import paligemma_3b
from benchmarks.recipes import (
    DTYPES,
    GUIDE,
    Recipe,
    make_plans,
    make_settings,
    our_recipe,
    peak_of_step,
    plain_recipe,
    run_steps,
    write_films,
)
from conftest import ROOT, SMALL, run_stage, write_params
from explainmyxray.errors import UserError
from explainmyxray.generation import generate_texts
from explainmyxray.gpu import find_driver
from explainmyxray.model.adapter import add_lora
from explainmyxray.model.base import device, load_base, load_processor
from explainmyxray.model.free_memory import GIB, free_memory
from explainmyxray.model.inputs import open_image
from explainmyxray.settings import Settings
from explainmyxray.training.batches import ReportDataset

BATCH_SIZES = (1, 32, 128)
ADAPTER = "models/adapter/adapter_model.safetensors"
PLAIN = "plain recipe"
POLL_SECONDS = 0.02


@dataclass(frozen=True)
class Row:
    """A line of the table: what was measured, and what stands beside it."""

    section: str
    what: str
    value: float | int | str = ""
    unit: str = ""
    note: str = ""


@dataclass(frozen=True)
class Effort:
    """How much is measured."""

    films: int
    timed_steps: int  # optimizer steps of each recipe
    accumulation: int  # micro-batches a step
    workers: int
    finite_steps: int
    new_tokens: int  # of a generated report
    run_steps: int  # of a whole run of the stage
    save_steps: int


FULL = Effort(
    films=64,
    timed_steps=2,
    accumulation=8,
    workers=4,
    finite_steps=200,
    new_tokens=64,
    run_steps=20,
    save_steps=5,
)
SHORT = Effort(
    films=8,
    timed_steps=1,
    accumulation=1,
    workers=0,
    finite_steps=4,
    new_tokens=4,
    run_steps=8,
    save_steps=2,
)


@dataclass
class Bench:
    """What is measured on: a base by its folder or hub id (None:
    PaliGemma-3B's shape, yet to be made) and its model.
    """

    folder: Path
    base: str | None
    precision: str
    effort: Effort
    model: torch.nn.Module | None = None  # the base with a fresh adapter
    processor: object = None
    recipes: dict[str, Recipe] | None = None

    @property
    def settings(self) -> Settings:
        accumulation, workers = self.effort.accumulation, self.effort.workers
        return make_settings(
            self.base,
            self.precision,
            gradient_accumulation_steps=accumulation,
            dataloader_num_workers=workers,
        )

    def check_is_prepared(self) -> None:
        if self.model is None:
            raise UserError("not run: the base could not be prepared")

    def release(self) -> None:
        """Free the model's memory for other processes."""
        self.model = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def describe_machine(bench: Bench, deadline: float) -> Iterator[Row]:
    """Devices, driver and libraries that the figures are of."""
    if torch.cuda.is_available():
        driver = find_driver()
        major, minor = torch.cuda.get_device_capability()
        total = torch.cuda.get_device_properties(0).total_memory / GIB
        name = f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
        note = (
            f"{total:.1f} GiB, capability {major}.{minor}, driver {driver.version if driver else 'unknown'}"
        )
        yield Row("machine", "GPU", name, note=note)
    else:
        yield Row("machine", "GPU", "none", note="all figures are a CPU's, of a shortened run")
    memory_size = psutil.virtual_memory().total / GIB
    yield Row("machine", "CPU", f"{os.cpu_count()} cores", note=f"{memory_size:.1f} GiB of memory")
    libraries = ", ".join(f"{name} {version(name)}" for name in ("transformers", "peft", "bitsandbytes"))
    note = f"{libraries}, Python {platform.python_version()}"
    yield Row("machine", "torch", str(torch.__version__), note=note)


def prepare_base(bench: Bench, deadline: float) -> Iterator[Row]:
    """Make the base where it has to be made, plan its training as the stage does, and load it."""
    name = bench.base
    if bench.base is None:
        name = "PaliGemma-3B's shape with random weights"
        dtype = getattr(torch, DTYPES[bench.precision])
        bench.base = str(paligemma_3b.write_random_base(bench.folder / "base", dtype, device()))
    settings = bench.settings
    bench.processor = load_processor(settings.model)
    rows = write_films(bench.folder, bench.processor, settings, bench.effort.films)
    dataset = ReportDataset(rows, bench.folder / "prepared", bench.processor, settings.model.max_length)

    # As the stage does, what is free is asked before any weight is loaded.
    gc.collect()  # of the weights as they were made
    free = free_memory()
    plans = make_plans(settings, dataset, free)
    bench.recipes = {PLAIN: plain_recipe(bench.folder, rows, bench.processor)}
    for plan_name, plan in plans.items():
        bench.recipes[plan_name] = our_recipe(dataset, bench.processor, plan)

    started = time.monotonic()
    set_seed(settings.train.seed)
    bench.model = add_lora(load_base(settings.model, settings.quantization), settings.lora)
    seconds = round(time.monotonic() - started, 1)
    longest = min(dataset.longest_sequence, settings.model.max_length)
    note = f"{name}; {computed_precision(bench)}; sequences of {longest} tokens"
    yield Row("base", "loading", seconds, "s", note)
    yield Row("base", "memory free before it", round(free / GIB, 2), "GiB")
    for plan_name, plan in plans.items():
        yield Row("base", f"{plan_name}, plan", note=str(plan))


def computed_precision(bench: Bench) -> str:
    return bench.precision if torch.cuda.is_available() else "fp32, as a CPU computes"


def measure_training(bench: Bench, deadline: float) -> Iterator[Row]:
    """Images a second and peak memory of each recipe, the
    estimate beside it; a recipe that fails says why.
    """
    bench.check_is_prepared()
    settings = bench.settings
    train = settings.train
    images = f"{train.per_device_train_batch_size} x {train.gradient_accumulation_steps} images a step"
    plain_rate = None
    for place, (name, recipe) in enumerate(bench.recipes.items()):
        now = time.monotonic()
        end = now + (deadline - now) / (len(bench.recipes) - place)
        try:
            steps = run_steps(bench.model, recipe, settings, bench.effort.timed_steps, end)
            peak_bytes = steps.peak_bytes or peak_of_step(bench.model, recipe, settings)
        except (UserError, torch.cuda.OutOfMemoryError) as error:
            note = f"{type(error).__name__}: {str(error).partition('. ')[0]}"
            yield Row("training", name, "failed", note=note)
            continue
        rate = 1 / steps.seconds_per_image
        note = images
        if name == PLAIN:
            plain_rate = rate
        elif plain_rate:
            note = f"{rate / plain_rate:.2f} times the plain recipe"
        yield Row("training", name, round(rate, 2), "images/s", note)
        note = ""
        if recipe.plan is not None:
            estimated = recipe.plan.peak
            note = f"estimated {estimated / GIB:.3f}: {100 * (estimated / peak_bytes - 1):+.0f} %"
        yield Row("training", f"{name}, peak memory", round(peak_bytes / GIB, 3), "GiB", note)


def measure_generation(bench: Bench, deadline: float) -> Iterator[Row]:
    """Reports a second, all of one length, in batches of several sizes."""
    bench.check_is_prepared()
    bench.model.eval()
    paths = sorted((bench.folder / "prepared").iterdir())
    images = [open_image(path.parent, path.name) for path in paths]
    length = bench.effort.new_tokens
    fixed_length = {"max_new_tokens": length, "min_new_tokens": length, "do_sample": False}
    generate_texts(bench.model, bench.processor, images[:1], max_new_tokens=2, do_sample=False)  # warms up
    for size in BATCH_SIZES:
        if time.monotonic() > deadline:
            yield Row("generation", f"batch of {size}", "not run", note="no time left")
            continue
        batch = [images[number % len(images)] for number in range(size)]
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        started = time.monotonic()
        try:
            generate_texts(bench.model, bench.processor, batch, **fixed_length)
        except torch.cuda.OutOfMemoryError:
            yield Row("generation", f"batch of {size}", "failed", note="out of memory")
            continue
        rate = size / (time.monotonic() - started)
        note = f"{length} tokens each"
        if torch.cuda.is_available():
            note += f", peak {torch.cuda.max_memory_allocated() / GIB:.2f} GiB"
        yield Row("generation", f"batch of {size}", round(rate, 2), "reports/s", note)


def measure_finiteness(bench: Bench, deadline: float) -> Iterator[Row]:
    """Steps of one image in the report's precision: is each loss finite, and each norm of the gradients?

    A norm that is not finite is no fault while fp16's loss
    scale is being found: the step is skipped, the scale halved.
    """
    bench.check_is_prepared()
    settings = make_settings(
        bench.base,
        bench.precision,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=1,
        dataloader_num_workers=bench.effort.workers,
    )
    set_seed(settings.train.seed)
    steps = run_steps(
        bench.model, bench.recipes[GUIDE], settings, bench.effort.finite_steps - 1, deadline, log=True
    )
    losses = [entry["loss"] for entry in steps.log if "loss" in entry]
    norms = [entry["grad_norm"] for entry in steps.log if "grad_norm" in entry]
    bad_norms = [step for step, norm in enumerate(norms, start=1) if not is_finite(norm)]
    note = (
        f"of {bench.effort.finite_steps} asked for, one image each, {computed_precision(bench)}; "
        f"last loss {losses[-1]:.4f}"
    )
    yield Row("finite", "steps", len(losses), note=note)
    yield Row("finite", "losses that are not finite", sum(not is_finite(loss) for loss in losses))
    note = f"steps {', '.join(map(str, bad_norms))}: skipped, and the loss scale halved" if bad_norms else ""
    yield Row("finite", "gradient norms that are not finite", len(bad_norms), note=note)


def is_finite(value: float) -> bool:
    return abs(value) < float("inf")


def measure_runs(bench: Bench, deadline: float) -> Iterator[Row]:
    """Runs of the stage train_qlora with the tiny base: two
    alike, and one that is killed and started again.
    """
    data = bench.folder / "runs/data"
    data.mkdir(parents=True)
    changes = {
        "train": {
            "max_steps": bench.effort.run_steps,
            "eval_steps": bench.effort.save_steps,
            "save_steps": bench.effort.save_steps,
        }
    }
    write_params(data.parent, SMALL, changes)
    here = Path.cwd()
    os.chdir(data.parent)
    try:
        with redirect_stdout(StringIO()):
            for stage in ("fetch", "synthesize_reports", "split"):
                run_stage(stage)
    finally:
        os.chdir(here)

    # The first run of each at once: they are too small to fill a GPU. Then the killed one's second.
    folders = {}
    for name in ("first", "second", "killed"):
        folders[name] = data.parent / name
        folders[name].mkdir()
        (folders[name] / "data").symlink_to(data)
        write_params(folders[name], SMALL, changes)
    runs = {name: StageRun(folder) for name, folder in folders.items()}
    try:
        was_killed = runs["killed"].kill_at_first_checkpoint(deadline)
        resumed = StageRun(folders["killed"])
        runs["resumed"] = resumed
        for name in ("first", "second", "resumed"):
            runs[name].wait(deadline)
    finally:
        for run in runs.values():
            run.kill()

    base = f"tiny base, {bench.effort.run_steps} steps"
    yield Row("two runs", "adapters", *compare_adapters(folders["first"], folders["second"], base))
    note = base
    if not was_killed:
        note += "; it ended before it could be killed"
    elif "going on from" not in resumed.output():
        note += "; it began anew, for want of a whole checkpoint"
    yield Row("kill", "adapter after it", *compare_adapters(folders["first"], folders["killed"], note))


class StageRun:
    """`python stages/train_qlora.py` in a folder, in processes of its own."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.log = folder / f"log.{time.monotonic_ns()}"
        environment = {
            name: value for name, value in os.environ.items() if name != "EXPLAINMYXRAY_CHECKPOINTS"
        }
        with self.log.open("w") as file:
            self.process = subprocess.Popen(
                [sys.executable, ROOT / "stages/train_qlora.py"],
                cwd=folder,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )

    def output(self) -> str:
        return self.log.read_text()

    def kill_at_first_checkpoint(self, deadline: float) -> bool:
        """Kill it as soon as it has saved a checkpoint; whether it was still running."""
        while self.process.poll() is None and time.monotonic() < deadline:
            if any(self.folder.glob("models/checkpoints/*/checkpoint-*/trainer_state.json")):
                break
            time.sleep(POLL_SECONDS)
        was_running = self.process.poll() is None
        self.kill()
        return was_running

    def wait(self, deadline: float) -> None:
        """Wait for its end. Raises UserError with its last line where it failed, or did not end in time."""
        try:
            status = self.process.wait(max(deadline - time.monotonic(), 0))
        except subprocess.TimeoutExpired:
            raise UserError("a run of the stage did not end in time") from None
        if status:
            raise UserError(f"a run of the stage failed: {self.output().strip().splitlines()[-1]}")

    def kill(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


def compare_adapters(one: Path, other: Path, note: str) -> tuple[str, str, str]:
    """Value, unit and note of a row: whether the bytes are equal, else the largest difference of a weight."""
    if (one / ADAPTER).read_bytes() == (other / ADAPTER).read_bytes():
        return "equal in every byte", "", note
    weights, others = load_file(one / ADAPTER), load_file(other / ADAPTER)
    difference = max((weight - others[name]).abs().max().item() for name, weight in weights.items())
    largest = max(weight.abs().max().item() for weight in weights.values())
    return "different", "", f"{note}; largest difference {difference:.2e}, largest weight {largest:.2e}"


def measure_two_gpus(bench: Bench, deadline: float) -> Iterator[Row]:
    """Images a second of a step that two processes share, one a GPU."""
    if torch.cuda.device_count() < 2:
        yield Row("two GPUs", "not run", note=f"{torch.cuda.device_count()} GPUs here")
        return
    bench.check_is_prepared()
    bench.release()
    seconds = deadline - time.monotonic()
    command = [sys.executable, ROOT / "tests/benchmarks/processes.py", "--processes", "2"]
    command += [
        "--base",
        bench.base,
        "--precision",
        bench.precision,
        "--steps",
        str(bench.effort.timed_steps),
    ]
    command += ["--seconds", str(seconds)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        output, errors = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        raise UserError(f"two processes did not end in {seconds:.0f} s") from None
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    if process.returncode:
        raise UserError(f"two processes failed: {(errors or output).strip().splitlines()[-1]}")
    figures = json.loads(output.strip().splitlines()[-1])
    note = f"guide's values, peak {figures['peak_gib']:.2f} GiB on the first"
    yield Row("two GPUs", "both", figures["images_per_s"], "images/s", note)
