"""The page on this machine: what is dropped on it is explained, stays in memory, and nothing else comes in or goes out."""

import base64
import gc
import io
import os
import re
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from html import unescape
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlsplit

import numpy as np
import psutil
import pytest
import requests
from PIL import Image, PngImagePlugin
from sklearn.datasets import load_sample_image

from conftest import run_stage
from explainmyxray.app import answer as answering
from explainmyxray.app import guard
from explainmyxray.app.examples import SHOWN, examples
from explainmyxray.app.page import launch, page
from explainmyxray.app.sheet import sheet
from explainmyxray.errors import UserError
from explainmyxray.explaining.attribution import Attribution
from explainmyxray.explaining.explainer import Explanation
from explainmyxray.explaining.loading import load
from explainmyxray.images import dicom as films
from explainmyxray.sources import phantom
from test_explain import PATIENT, dicom, png

from gradio_client import Client  # isort: skip  # after the page, which turns Gradio's reports off

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
SECRETS = (*PATIENT.split("^"), "Q4711", "19990101")


@pytest.fixture(scope="module")
def explainer(finished):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(finished)
        return load("models/adapter", 4)


@pytest.fixture(scope="module")
def served(explainer, tmp_path_factory):
    """The page's address, and an empty folder that is the temporary one as long as it is served."""
    temporary = tmp_path_factory.mktemp("temporary")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(temporary))
        patch.setenv("GRADIO_TEMP_DIR", str(temporary))
        patch.setattr(
            "logging.config.dictConfig", lambda config: None
        )  # uvicorn's closes handlers, and absl's its stream: pytest's
        blocks = page(lambda upload: answering.answer(explainer, upload))
        address = launch(blocks, "127.0.0.1", None)
        yield SimpleNamespace(address=address, temporary=temporary, blocks=blocks)
        blocks.close()


@pytest.fixture(scope="module")
def film() -> Image.Image:
    return next(iter(phantom.sample(phantom.PIPELINE, 5, 1, 224))).read()


def sent(data: bytes) -> str:
    return base64.b64encode(data).decode()


def ask(address: str, data: bytes) -> str:
    """The sheet that the page makes of a file."""
    return Client(address, verbose=False).predict(sent(data), api_name="/explain")[1]


def files_under(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_a_film_gets_its_report_and_nothing_of_it_reaches_the_disk(served, explainer, film):
    shown = ask(served.address, png(film))
    told = next(explainer.explain([("", png(film))]))
    read = unescape(re.sub("<[^>]+>", "", "".join(re.findall(r'<p class="report">(.*?)</p>', shown))))
    assert read.replace(" ", "") == told.report.replace(" ", "")
    assert f"<b>{told.certainty:.0%}</b>" in shown and "not a medical device" in shown
    assert "Where it looked for" in shown if told.findings else "names no finding" in shown
    assert not files_under(served.temporary)


def test_a_patients_name_reaches_neither_page_nor_log(served, film, capfd, caplog):
    data = dicom(np.asarray(film), 8)
    assert any(secret.encode() in data for secret in SECRETS)
    shown = ask(served.address, data) + ask(served.address, data[:-3000])
    remark = PngImagePlugin.PngInfo()
    remark.add_text("patient", PATIENT)
    file = io.BytesIO()
    film.save(file, "PNG", pnginfo=remark)
    shown += ask(served.address, file.getvalue())
    pictures = b"".join(base64.b64decode(each) for each in re.findall(r"base64,([A-Za-z0-9+/=]+)", shown))
    said = shown.encode() + pictures + "".join(capfd.readouterr()).encode() + caplog.text.encode()
    assert b"certainty" in said.lower() and not any(secret.encode() in said for secret in SECRETS)


@pytest.mark.parametrize(
    "data, says",
    [
        (b"", "empty"),
        (b"no image at all", "not an image"),
        (png(Image.new("L", (300, 200)))[:60], "truncated"),
        (bytes(128) + b"DICM" + b"\xff" * 64, "not an image"),
    ],
)
def test_a_bad_file_gets_a_message(served, data, says):
    shown = ask(served.address, data)
    assert (
        "not an image that can be used" in shown
        and says in shown
        and 'role="alert"' in shown
        and "sheet" not in shown
    )


def test_what_is_no_base64_gets_a_message(served):
    assert (
        "choose it again" in Client(served.address, verbose=False).predict("<b>*</b>", api_name="/explain")[1]
    )


def test_what_is_no_x_ray_gets_a_warning_above_its_report(served):
    shown = ask(served.address, png(Image.fromarray(load_sample_image("china.jpg"))))
    assert "Do not trust this report" in shown and shown.index("colour picture") < shown.index("<h2>Report")


def test_a_file_too_large_is_refused_before_it_is_read(served, explainer, monkeypatch):
    for path in ("gradio_api/queue/join", "gradio_api/call/explain"):
        refused = requests.post(
            f"{served.address}{path}", headers={"content-length": str(guard.MAX_BODY_BYTES + 1)}, timeout=10
        )
        assert refused.status_code == 413 and "64 MiB" in refused.text
        assert (
            requests.post(f"{served.address}{path}", data=iter([b"{}"]), timeout=10).status_code == 411
        )  # chunked: no length
    monkeypatch.setattr(films, "MAX_FILE_BYTES", 1000)
    assert "too large" in answering.answer(explainer, sent(bytes(1001)))


def test_gradios_own_upload_to_disk_is_shut(served, film):
    for path in ("gradio_api/upload", "gradio_api/upload/", "upload"):
        refused = requests.post(
            f"{served.address}{path}", files={"files": ("film.png", png(film))}, timeout=10
        )
        assert refused.status_code == 403
    assert not files_under(served.temporary)


def test_twenty_at_once_each_get_their_own_answer(served, explainer):
    several = [each.read() for each in phantom.sample(phantom.PIPELINE, 6, 20, 224)]
    with ThreadPoolExecutor(20) as pool:
        shown = list(pool.map(lambda image: ask(served.address, png(image)), several))
    own = [re.search(r'class="xray"[^>]*base64,([^"]+)', each)[1] for each in shown]
    assert own == [sent(png(image)) for image in several]
    for each, told in zip(shown[:3], explainer.explain(("", png(image)) for image in several[:3])):
        assert f"<b>{told.certainty:.0%}</b>" in each
    assert not files_under(served.temporary)


def test_of_the_files_that_were_answered_two_are_in_memory_at_most(served):
    """Gradio's queue holds its latest request or two until later ones take their place; no session holds any."""
    uploads = [
        sent(png(Image.new("L", (61, 67), grey)) + bytes(7)) for grey in range(6)
    ]  # not the bytes that a sheet shows
    for upload in uploads:
        Client(served.address, verbose=False).predict(upload, api_name="/explain")
    sessions = "".join(
        repr(session.config_values) for session in served.blocks.app.state_holder.session_data.values()
    )
    assert not any(upload in sessions for upload in uploads)
    gc.collect()
    bodies = [
        each["data"]
        for each in gc.get_objects()
        if type(each) is dict and type(each.get("data")) is list and "fn_index" in each
    ]
    assert len({body[0] for body in bodies if body and body[0] in uploads}) <= 2


def test_it_listens_on_this_machine_alone_and_links_to_no_other(served):
    port = urlsplit(served.address).port
    listening = {
        each.laddr.ip
        for each in psutil.Process().net_connections()
        if each.status == "LISTEN" and each.laddr.port == port
    }
    assert listening == {"127.0.0.1"}
    answered = requests.get(served.address, timeout=10)
    assert (
        "default-src 'self'" in answered.headers["content-security-policy"]
        and answered.headers["cache-control"] == "no-store"
    )
    loaded = re.findall(r'(?:src|href)="(https?:[^"]+)"', answered.text)
    assert (
        not loaded
        and served.blocks.config["run_history"] is False
        and served.blocks.analytics_enabled is False
    )


def test_the_sheet_takes_no_markup_from_a_report():
    told = Explanation("", "<script>alert(1)</script> <img src=x>", ("Mass",), 0.5, None, "<b>odd</b>")
    looks = {"Mass": Attribution(("<script>a mass</script>",), np.zeros((2, 2)), np.ones((2, 2)))}
    shown = sheet(Image.new("L", (2000, 1000)), told, looks)
    assert "<script" not in shown and "<img src=x" not in shown and "<b>odd" not in shown
    assert "No single place counts" in shown and 'class="box"' not in shown


def test_the_phantoms_to_click_are_of_no_training(tmp_path):
    drawn = examples()
    assert len(drawn) == len(SHOWN) and drawn[0][1].size == (224, 224)
    trained = {each.read().tobytes() for each in phantom.sample(phantom.PIPELINE, 42, 20, 224)}
    assert not trained & {image.tobytes() for _, image in drawn}


def test_a_port_that_is_taken_and_a_missing_adapter_are_one_line(served, finished, monkeypatch):
    monkeypatch.chdir(finished)
    monkeypatch.setattr(
        "sys.argv", ["app.py", "--port", str(urlsplit(served.address).port), "--samples", "0"]
    )
    with pytest.raises(UserError, match="cannot listen on 127.0.0.1"):
        run_stage("app")
    monkeypatch.chdir(finished.parent)
    with pytest.raises(UserError):
        run_stage("app")


@pytest.fixture(scope="module")
def browser():
    if not CHROMIUM:
        pytest.skip("no Chromium on this machine: the page is not looked at")
    from playwright.sync_api import sync_playwright

    quiet = [
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
    ]
    with sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=quiet)
        yield chromium
        chromium.close()


@pytest.fixture
def tab(browser, served):
    """The page in a tab, with all that it asks for and complains about."""
    tab = browser.new_page(viewport={"width": 1280, "height": 800})
    tab.asked, tab.complaints = [], []
    tab.on("request", lambda request: tab.asked.append(request.url))
    tab.on("pageerror", lambda error: tab.complaints.append(str(error)))
    tab.on("console", lambda line: tab.complaints.append(line.text) if line.type == "error" else None)
    tab.goto(served.address)
    tab.wait_for_selector(".example")
    yield tab
    assert not tab.complaints
    assert all(url.startswith((served.address, "data:", "blob:")) for url in tab.asked)
    tab.close()


def choose(tab, name: str, data: bytes) -> None:
    tab.set_input_files("#file", {"name": name, "mimeType": "application/octet-stream", "buffer": data})


def test_in_a_browser_a_file_is_chosen_and_its_report_read(tab, served, film, explainer, tmp_path):
    told = next(explainer.explain([("", png(film))]))
    choose(tab, "Doe_Jane.png", png(film))
    tab.wait_for_selector(".sheet", timeout=60_000)
    assert tab.inner_text(".report >> nth=0") in told.report
    assert "not a medical device" in tab.inner_text("header") and "not a medical device" in tab.inner_text(
        ".notice"
    )
    assert "Doe_Jane" not in tab.content()
    assert tab.evaluate("document.documentElement.scrollWidth") <= 1280
    assert tab.locator(".xray").bounding_box()["width"] > 350
    tab.screenshot(path=tmp_path / "page.png")
    assert Image.open(tmp_path / "page.png").size == (1280, 800)
    kept = tab.evaluate(
        "async () => [localStorage.length, (await indexedDB.databases()).length, document.cookie]"
    )
    assert kept[1] == 0 and not any(secret in str(kept) for secret in SECRETS)
    assert not files_under(served.temporary)


def test_in_a_browser_a_phantom_is_clicked_and_its_finding_pointed_at(tab):
    looked = False
    for number in range(len(SHOWN)):
        tab.click(f".example >> nth={number}")
        tab.wait_for_function(
            "number => document.querySelector('.sheet') && document.querySelector('.xray').src.endsWith("
            "document.querySelectorAll('.example')[number].dataset.film)",
            arg=number,
            timeout=60_000,
        )
        if tab.locator(".choice").count():
            assert tab.locator(".layer-0 .heat").is_visible() and tab.locator(".words-0").is_visible()
            tab.click("text=film alone")
            assert not tab.locator(".layer-0 .heat").is_visible() and not tab.locator(".words-0").is_visible()
            looked = True
    assert looked


def test_in_a_browser_a_bad_file_and_one_too_large_get_a_message_and_the_next_one_its_report(
    tab, film, tmp_path
):
    choose(tab, "torn.jpg", b"torn")
    tab.wait_for_selector("#shown .warning", timeout=60_000)
    assert "not an image that can be used" in tab.inner_text("#shown .warning")
    large = tmp_path / "large.dcm"
    with large.open("wb") as file:
        os.truncate(file.fileno(), films.MAX_FILE_BYTES + 1)
    tab.set_input_files("#file", large)
    tab.wait_for_function(
        "document.querySelector('.note').textContent.includes('64 are the most')", timeout=30_000
    )
    choose(tab, "film.dcm", dicom(np.asarray(film), 8))
    tab.wait_for_selector(".sheet", timeout=60_000)
    assert tab.inner_text(".note") == ""
