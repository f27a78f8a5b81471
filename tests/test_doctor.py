"""`make doctor`: what is there and what is missing, each with what to do, and no secret."""

import json
import os
import re
import subprocess
import sys
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants

import paligemma_3b
from conftest import ROOT, run_stage, write_params
from explainmyxray import gpu
from explainmyxray.errors import UserError
from local_server import serving

GIB = 2**30
COMMIT = "c" * 40
PALIGEMMA = "google/paligemma-3b-pt-224"


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as tells of PaliGemma: its config.json, and the sizes of its files."""

    SHARDS = {"main": [5.0, 5.0, 0.9], "float16": [4.9, 0.5]}  # GiB

    def do_HEAD(self):
        self.answer(with_body=False)

    def do_GET(self):
        self.answer(with_body=True)

    def answer(self, with_body: bool) -> None:
        path = self.path.partition("?")[0]
        body = json.dumps(paligemma_3b.shape().to_dict()).encode()
        if path.startswith("/api/models/"):
            body = json.dumps(self.describe_model()).encode()
        elif not path.endswith("/config.json"):
            self.send_error(404)
            return
        self.send_response(200)
        # The client takes the commit that it is told; so that the revision can be told from it, it begins so.
        self.send_header("X-Repo-Commit", self.commit_of(path))
        self.send_header("ETag", '"1"')
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def commit_of(self, path: str) -> str:
        return "f" * 40 if "/float16/" in path or "f" * 40 in path else COMMIT

    def describe_model(self) -> dict:
        sizes = self.SHARDS["float16" if "f" * 40 in self.path else "main"]
        shards = [
            {"rfilename": f"model-{place + 1:05}-of-{len(sizes):05}.safetensors", "size": int(size * GIB)}
            for place, size in enumerate(sizes)
        ]
        return {"id": PALIGEMMA, "siblings": [*shards, {"rfilename": "README.md", "size": 1}]}

    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def hub():
    with serving(Hub) as address:
        yield address


@pytest.fixture
def examine(tmp_path, monkeypatch, capsys):
    """Run the doctor in this process on a machine that the
    test has faked: its exit status and all that it prints.
    """
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    write_params(tmp_path)

    def run(*arguments: str) -> tuple[int, str]:
        with pytest.raises(SystemExit) as ended:
            run_stage("doctor", *arguments)
        said = capsys.readouterr()
        return int(ended.value.code), said.out + said.err

    return run


@pytest.fixture
def online(examine, monkeypatch, hub):
    """The same with the stand-in hub."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", hub)
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub + template.removeprefix("https://huggingface.co")
    )
    return examine


@pytest.mark.slow
def test_the_embedded_default_lacks_nothing(tmp_path):
    write_params(tmp_path)
    done = subprocess.run(
        [sys.executable, ROOT / "stages/doctor.py"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "MISSING" not in done.stdout
    for subject in (
        "Python 3.",
        "libraries: all",
        "GPU: ",
        "base: the folder",
        "memory: a step needs",
        "memory: a card of 16 GB holds a step: about",
        "disk: ",
        "data: 2000 phantoms",
    ):
        assert subject in done.stdout


def test_what_is_missing_is_named_with_what_to_do_and_no_secret(examine, monkeypatch, tmp_path):
    (tmp_path / "data/archives").mkdir(parents=True)
    (tmp_path / "data/archives/sample.zip").touch()
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("KAGGLE_API_TOKEN", "KGAT_secret")
    monkeypatch.setenv("KAGGLE_API_ENVIRONMENT", "TEST")  # localhost:7777, where nobody listens
    status, said = examine("-S", "data.source=kaggle", "-S", f"model.id={PALIGEMMA}")
    assert status == 1
    assert f"MISSING  base: model.id: {PALIGEMMA}" in said and "check the network" in said
    assert "ok       data: data/archives/sample.zip" in said
    assert "paultimothymooney/chest-xray-pneumonia goes to data/archives/chest-xray-pneumonia.zip" in said
    assert "secret" not in said


def test_a_step_that_does_not_fit_is_missing_memory(examine):
    status, said = examine(
        "-S", "train.per_device_train_batch_size=65536", "-S", "train.gradient_accumulation_steps=1"
    )
    assert status == 1
    assert "MISSING  memory: a training step needs about" in said
    assert "train.per_device_train_batch_size=" in said
    assert "memory: a card of 16 GB does not hold a step" in said
    fits = "-S train.per_device_train_batch_size=1 -S train.gradient_accumulation_steps=65536\n"
    assert said.split("GiB; about")[1].split("with ")[1].startswith(fits)


def test_the_run_to_come_is_looked_at_and_half_the_download_is_recommended(online):
    _, said = online("-S", f"model.id={PALIGEMMA}")
    assert f"base: {PALIGEMMA} at cccccccc, 10.9 GiB to be downloaded" in said
    assert re.search(r"note +base: model.revision=float16 is half of main's 10.9 GiB", said)
    assert "12.9 needed, 10.9 of them for the base" in said

    _, said = online("-S", f"model.id={PALIGEMMA}", "-S", "model.revision=float16")
    assert f"base: {PALIGEMMA} at ffffffff, 5.4 GiB to be downloaded" in said
    assert "model.revision=float16 is half" not in said
    assert "7.4 needed, 5.4 of them for the base" in said


def test_shards_in_the_cache_are_not_downloaded_again(online, tmp_path):
    snapshot = tmp_path / "cache/models--google--paligemma-3b-pt-224/snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    for name in ("model-00001-of-00003.safetensors", "model-00002-of-00003.safetensors"):
        (snapshot / name).touch()
    _, said = online("-S", f"model.id={PALIGEMMA}")
    assert "2.9 needed, 0.9 of them for the base" in said


@pytest.mark.parametrize("arguments, status", [(["--help"], 0), (["--nonsense"], 2)])
def test_arguments_are_explained_or_refused(examine, arguments, status):
    assert examine(*arguments)[0] == status


def test_a_parameter_that_there_is_not_is_one_line(examine):
    with pytest.raises(UserError, match="lora.rr is no parameter: did you mean r?"):
        examine("-S", "lora.rr=32")


def set_free_disk(monkeypatch, gib_of_folder: dict[Path, float]) -> None:
    """Free space by folder; the longest that holds the path counts."""

    def disk_usage(path):
        holders = [folder for folder in gib_of_folder if Path(path).is_relative_to(folder)]
        free = gib_of_folder[max(holders, key=lambda folder: len(folder.parts))] * GIB
        return type("Usage", (), {"free": free})

    monkeypatch.setattr("shutil.disk_usage", disk_usage)


def test_a_full_disk_is_missing(examine, monkeypatch, tmp_path):
    set_free_disk(monkeypatch, {tmp_path: 0.4})
    status, said = examine()
    assert status == 1
    assert "MISSING  disk: 0.4 GiB free here, about 2.0 needed" in said


@pytest.mark.parametrize("revision, needed", [("null", 10.9), ("float16", 5.5)])
def test_a_base_that_the_hub_does_not_tell_of_takes_what_is_known_of_it(
    examine, monkeypatch, revision, needed
):
    set_free_disk(monkeypatch, {Path("/"): 8})
    _, said = examine("-S", f"model.id={PALIGEMMA}", "-S", f"model.revision={revision}")
    state = "MISSING" if needed + 2 > 8 else "ok     "
    assert f"{state}  disk: 8.0 GiB free here and in the hub's cache" in said
    assert f"about {needed + 2:.1f} needed, {needed} of them for the base" in said


def test_the_hub_s_cache_on_another_disk_has_a_line_of_its_own(examine, monkeypatch, tmp_path):
    other = Path("/dev/shm")
    if not other.is_dir() or other.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("/dev/shm is no disk of its own here")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(other / "explainmyxray/hub"))
    set_free_disk(monkeypatch, {tmp_path: 30, other: 7})
    status, said = examine("-S", f"model.id={PALIGEMMA}")
    assert "ok       disk: 30.0 GiB free here, about 2.0 needed\n" in said
    assert "MISSING  disk: 7.0 GiB free in the hub's cache, /dev/shm/explainmyxray/hub" in said
    assert "about 10.9 needed" in said


def test_a_driver_that_torch_cannot_use_is_missing(examine, monkeypatch, tmp_path):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    (tmp_path / "version").write_text(
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.183.01  Sun May 12\n"
    )
    (tmp_path / "nvidia0").touch()
    monkeypatch.setattr(gpu, "VERSION_FILE", tmp_path / "version")
    monkeypatch.setattr(gpu, "DEVICE_FOLDER", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    status, said = examine()
    assert status == 1
    assert re.search("MISSING  GPU: NVIDIA driver 535.183.01 is here, .* needs 580 or newer", said)

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    status, said = examine()
    assert status == 0
    assert "note     GPU: hidden by CUDA_VISIBLE_DEVICES" in said


def test_gpus_are_named_with_their_driver_and_those_that_would_idle(examine, monkeypatch, tmp_path):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho 580.82.07\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    for name, value in {
        "is_available": True,
        "device_count": 2,
        "current_device": 0,
        "get_device_name": "Tesla T4",
        "get_device_capability": (7, 5),
        "get_arch_list": ["sm_75", "sm_80"],
        "mem_get_info": (15 * GIB, 16 * GIB),
    }.items():
        monkeypatch.setattr(torch.cuda, name, lambda *args, value=value: value)
    status, said = examine()
    assert status == 0
    assert "ok       GPU: 2 x Tesla T4, capability 7.5, driver 580.82.07, computing in float16" in said
    assert "note     GPU: training uses 1 of 2: -S train.num_processes=2 uses all" in said

    status, said = examine(
        "-S",
        "quantization.bnb_4bit_compute_dtype=bfloat16",
        "-S",
        "train.bf16=true",
        "-S",
        "train.fp16=false",
    )
    assert status == 1
    assert "MISSING  GPU: 2 x Tesla T4" in said and "has no bfloat16 units" in said
