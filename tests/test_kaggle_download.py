"""Downloads with the real Kaggle client from a stand-in server: whole, resumed, or one line that says what to
do.
"""

import base64
import io
import json
import subprocess
import time
import zipfile

import pytest

from explainmyxray.errors import UserError
from explainmyxray.sources import kaggle_download
from kaggle_archives import NIH, PNEUMONIA, encoded, pixels, stage_command, stage_environment, workspace
from kaggle_server import SIGNATURE, Kaggle

NOWHERE = "http://127.0.0.1:9"  # so that no request of a test can reach the real Kaggle


def film_archive() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for number in range(60):
            archive.writestr(
                f"chest_xray/train/NORMAL/IM-{number:04}-0001.jpeg", encoded(pixels(number, 256, 256))
            )
    return file.getvalue()


WHOLE = film_archive()  # about 4 MB: the client reads 1 MiB at a time


@pytest.fixture(autouse=True)
def alone(tmp_path, monkeypatch):
    """No credentials, no way out, no waiting between attempts."""
    environment = {
        "KAGGLE_API_ENVIRONMENT": "TEST",
        "HOME": str(tmp_path / "home"),
        "KAGGLE_CONFIG_DIR": str(tmp_path / "config"),
        "HTTPS_PROXY": NOWHERE,
        "NO_PROXY": "localhost,127.0.0.1",
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    for name in ("KAGGLE_API_TOKEN", "KAGGLE_USERNAME", "KAGGLE_KEY", "https_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    from kaggle.api import kaggle_api_extended as client

    monkeypatch.setattr(client.KaggleApi, "config", str(tmp_path / "config/kaggle.json"))
    monkeypatch.setattr(client.time, "sleep", lambda seconds: None)


@pytest.fixture
def kaggle():
    with Kaggle({"chest-xray-pneumonia.zip": WHOLE}).serving() as server:
        yield server


def download(folder):
    return kaggle_download.get_data_set("chest-xray-pneumonia", folder).path


def failure(folder) -> str:
    with pytest.raises(UserError) as caught:
        download(folder)
    message = str(caught.value)
    assert not (folder / PNEUMONIA).exists(), "a broken download is in place"
    assert SIGNATURE not in message and "\n" not in message
    assert "https://www.kaggle.com/datasets/paultimothymooney/chest-xray-pneumonia" in message
    assert f"put it at {folder / PNEUMONIA}" in message
    return message


def test_a_download_is_whole_anonymous_and_made_once(tmp_path, kaggle):
    path = download(tmp_path)
    assert path == tmp_path / PNEUMONIA and path.read_bytes() == WHOLE
    assert [p.name for p in tmp_path.iterdir() if p.name not in ("home", "config")] == [PNEUMONIA]
    assert not any("Authorization" in headers for _, _, headers in kaggle.requests)
    asked = len(kaggle.requests)
    assert download(tmp_path) == path and len(kaggle.requests) == asked


def test_a_cut_connection_is_resumed_in_the_same_run(tmp_path, kaggle):
    kaggle.cut_after = [2_500_000]
    assert download(tmp_path).read_bytes() == WHOLE
    first, second = kaggle.headers("GET", "/files/")
    assert "Range" not in first and int(second["Range"].removeprefix("bytes=").rstrip("-")) >= 2**21


def test_a_download_that_broke_off_is_resumed_by_the_next_run(tmp_path, kaggle):
    kaggle.cut_after = [1_200_000, *[0] * 5]
    message = failure(tmp_path)
    kept = (tmp_path / "incomplete" / PNEUMONIA).stat().st_size
    assert kept >= 2**20 and f"{kept:,} bytes" in message and "run again to go on" in message
    kaggle.requests.clear()
    assert download(tmp_path).read_bytes() == WHOLE
    assert kaggle.headers("GET", "/files/")[-1]["Range"] == f"bytes={kept}-"
    assert not (tmp_path / "incomplete").exists()


def test_an_error_page_in_the_middle_does_not_spoil_the_next_run(tmp_path, kaggle):
    kaggle.cut_after, kaggle.file_status = [1_200_000], [200, 403, 403]
    assert "discarded" in failure(tmp_path)
    assert download(tmp_path).read_bytes() == WHOLE


@pytest.mark.parametrize(
    "status, advice",
    [
        (401, "put it into the environment as KAGGLE_API_TOKEN or into ~/.kaggle/access_token"),
        (403, "accept the terms at https://www.kaggle.com/datasets/paultimothymooney/chest-xray-pneumonia"),
        (404, "not there any more"),
        (429, "wait 7 seconds and run again"),
        (500, "run again later"),
    ],
)
def test_each_refusal_says_what_to_do(tmp_path, kaggle, status, advice):
    kaggle.status = status
    message = failure(tmp_path)
    assert f"Kaggle answered {status} for chest-xray-pneumonia" in message and advice in message


@pytest.mark.parametrize(
    "served, words",
    [
        (WHOLE[: len(WHOLE) // 2], "no whole zip archive"),
        (b"<html>Sign in</html>", "no whole zip archive"),
        (b"", "no whole zip archive"),
        (WHOLE[:9000] + b"x" * 100 + WHOLE[9100:], "IM-0000-0001.jpeg' is damaged"),
    ],
    ids=["half", "html", "nothing", "damaged"],
)
def test_what_is_no_whole_archive_is_discarded(tmp_path, kaggle, served, words):
    kaggle.files[PNEUMONIA] = served
    message = failure(tmp_path)
    assert words in message and f"{len(served):,} bytes" in message and not (tmp_path / "incomplete").exists()
    kaggle.files[PNEUMONIA] = WHOLE
    assert download(tmp_path).read_bytes() == WHOLE


def test_without_network_the_error_is_quick(tmp_path):
    start = time.monotonic()
    assert "no connection to Kaggle" in failure(tmp_path)
    assert time.monotonic() - start < 3


def test_a_server_that_falls_silent_does_not_hold_the_run_forever(tmp_path, kaggle, monkeypatch):
    monkeypatch.setattr(kaggle_download, "TIMEOUTS", (0.5, 0.5))
    kaggle.silent = True
    start = time.monotonic()
    assert "no connection to Kaggle" in failure(tmp_path)
    assert time.monotonic() - start < 3


def test_a_legacy_key_is_used(tmp_path, kaggle):
    (tmp_path / "config").mkdir()
    (tmp_path / "config/kaggle.json").write_text(json.dumps({"username": "somebody", "key": "the-old-key"}))
    download(tmp_path)
    sent = kaggle.headers("POST", "/api/v1/datasets.DatasetApiService")[0]["Authorization"]
    assert base64.b64decode(sent.removeprefix("Basic ")) == b"somebody:the-old-key"


@pytest.mark.parametrize("token", ["good-and-secret", "bad-and-secret"])
def test_the_stage_uses_the_token_and_never_shows_it(tmp_path, kaggle, token):
    workspace(tmp_path)
    (tmp_path / "data/archives" / NIH).unlink()
    kaggle.status = 403 if token.startswith("good") else 401
    done = subprocess.run(
        stage_command(),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=stage_environment(KAGGLE_API_TOKEN=token, VERBOSE="true"),
    )
    assert (
        kaggle.headers("POST", "/api/v1/datasets.DatasetApiService")[0]["Authorization"] == f"Bearer {token}"
    )
    assert done.returncode == 1 and f"Kaggle answered {kaggle.status} for sample" in done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert token not in done.stdout + done.stderr and SIGNATURE not in done.stdout + done.stderr


def test_the_stage_downloads_what_is_missing(tmp_path, kaggle):
    workspace(tmp_path)
    path = tmp_path / "data/archives" / NIH
    kaggle.files[NIH] = path.read_bytes()
    path.unlink()
    done = subprocess.run(
        stage_command(), cwd=tmp_path, capture_output=True, text=True, env=stage_environment()
    )
    assert done.returncode == 0, done.stderr
    assert "Authentication required" not in done.stdout, (
        "the client's page of help is shown to who needs no key"
    )
    assert path.read_bytes() == kaggle.files[NIH] and (tmp_path / "data/studies.csv").exists()
    assert len(kaggle.headers("GET", "/files/nih-chest-xrays/sample.zip")) == 1
