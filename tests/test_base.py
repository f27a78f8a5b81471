"""What stands behind `model.id`, before anything is loaded; and PaliGemma-3B's shape without weights."""

import os
import subprocess
import sys
from http.server import BaseHTTPRequestHandler

import pytest
import torch
from transformers import AutoModelForImageTextToText

import paligemma_3b
from conftest import ROOT
from explainmyxray.model.adapter import add_lora, count_trainable
from explainmyxray.settings import load_settings
from local_server import serving

ANSWERS = {  # what the hub answers for each id: status, its own error code
    "google/paligemma-3b-pt-224": (403, "GatedRepo"),
    "google/paligema-3b": (401, "RepoNotFound"),
}


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as answers for a file that may not be had."""

    def do_HEAD(self):
        status, code = next(
            (answer for name, answer in ANSWERS.items() if name in self.path), (404, "RepoNotFound")
        )
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_HEAD

    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def hub():
    with serving(Hub) as address:
        yield address


PROGRAM = """
from explainmyxray.errors import exit_on_user_error
from explainmyxray.model.base import check_base
from explainmyxray.settings import load_settings
exit_on_user_error(lambda: check_base(load_settings().model))
"""


def check(
    tmp_path, model_id: str, endpoint: str, program=("-c", PROGRAM), **more
) -> subprocess.CompletedProcess:
    """Ask for `model_id` in a process of its own: the hub's client reads its address when imported."""
    text = (ROOT / "params.yaml").read_text().replace("id: models/tiny-paligemma ", f"id: {model_id} ")
    (tmp_path / "params.yaml").write_text(text)
    env = {
        **os.environ,
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(tmp_path / "hub"),
        "HF_TOKEN": "hf_secretsecretsecret",
        "PYTHONPATH": str(ROOT / "stages"),
        **more,
    }
    return subprocess.run([sys.executable, *program], cwd=tmp_path, env=env, capture_output=True, text=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    "model_id, says",
    [
        (
            "google/paligemma-3b-pt-224",
            "asks for its licence to be accepted: do so on https://huggingface.co/google/paligemma-3b-pt-224",
        ),
        ("google/paligema-3b", "there is no model google/paligema-3b"),
        ("not a model", "is neither a folder here nor the id of a model on the hub"),
    ],
)
def test_what_the_hub_refuses_is_one_line(tmp_path, hub, model_id, says):
    done = check(tmp_path, model_id, hub)
    assert done.returncode == 1
    assert says in done.stderr and "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert "secret" not in done.stderr + done.stdout


@pytest.mark.slow
def test_the_training_stage_ends_before_it_looks_at_any_data(tmp_path, hub):
    done = check(tmp_path, "google/paligemma-3b-pt-224", hub, program=(str(ROOT / "stages/train_qlora.py"),))
    assert done.returncode == 1
    assert done.stderr.startswith("error: model.id") and len(done.stderr.strip().splitlines()) == 1


@pytest.mark.slow
@pytest.mark.parametrize("more", [{}, {"HF_HUB_OFFLINE": "1"}])
def test_no_network_is_one_line(tmp_path, more):
    done = check(tmp_path, "google/paligemma-3b-pt-224", "http://127.0.0.1:9", **more)  # nobody listens there
    assert done.returncode == 1
    assert "the hub cannot be reached" in done.stderr and "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.slow
def test_a_folder_without_a_model_is_one_line(tmp_path):
    (tmp_path / "empty").mkdir()
    done = check(tmp_path, "empty", "http://127.0.0.1:9")
    assert done.returncode == 1 and "holds no model" in done.stderr


def test_paligemma_3b_has_the_parameters_that_the_guide_says():
    """On the meta device: LoRA r 16 on attention trains 0.2277 % of google/paligemma-3b-pt-224."""
    with torch.device("meta"):
        model = add_lora(
            AutoModelForImageTextToText.from_config(paligemma_3b.shape()),
            load_settings(ROOT / "params.yaml").lora,
        )
    count, percent = count_trainable(model)
    assert count == 6_672_384
    assert round(percent, 4) == 0.2277
