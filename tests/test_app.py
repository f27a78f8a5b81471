"""The page on this machine: a film is explained in memory, and nothing else comes in or goes out."""

import base64
import io
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from html import unescape
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import numpy as np
import psutil
import pytest
import requests
from PIL import Image, PngImagePlugin
from sklearn.datasets import load_sample_image

from conftest import ROOT, run_stage
from explainmyxray.app import explain_upload
from explainmyxray.app.examples import LABELS, draw_examples
from explainmyxray.app.explain_upload import build_result, handle_upload
from explainmyxray.app.limits import MIB, Limits
from explainmyxray.app.result import Result
from explainmyxray.app.server import launch, listen, render_result
from explainmyxray.errors import UserError
from explainmyxray.explaining.attribution import Attribution
from explainmyxray.explaining.explanation import NOT_MEASURED, Explanation, LikeFindings
from explainmyxray.explaining.loading import load_explainer
from explainmyxray.sources import phantom
from test_explain import PATIENT, dicom, png

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
SECRETS = (*PATIENT.split("^"), "Q4711", "19990101")
OCTETS = {"content-type": "application/octet-stream"}
ROUTES = ("", "page.css", "page.js", *(f"example/{number}" for number in range(len(LABELS))))
UNKNOWN = (
    *("explain/", "explain/x", "example/", "example/6", "example/-1", "example/" + 5000 * "9"),
    *("page.html", "index.html", "favicon.ico", "static/page.css", "docs", "openapi.json"),
    *("../stages/app.py", "..%2f..%2fetc/passwd", "%00"),
    *("upload", "gradio_api/upload", "gradio_api/process_recording", "gradio_api/deep_link"),  # as they were
)


@contextmanager
def serving(handle, **limits):
    """A page on a free port of this machine, with limits of its own."""
    served = launch(handle, "127.0.0.1", listen("127.0.0.1", 0), Limits(**limits))
    try:
        yield served
    finally:
        ended = served.stop() or served.ended.wait(30)
    assert ended


def echo(data: bytes) -> Result:
    """Stands for the model: the answer holds the upload."""
    return Result(problem=f"got {data.decode('latin-1')}")


class Gate:
    """Stands for a slow model: holds each film until it is opened."""

    def __init__(self):
        self.opened = threading.Event()
        self.entered = threading.Semaphore(0)
        self.running = 0
        self.most_running = 0
        self.seen = []

    def __call__(self, data: bytes) -> Result:
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        self.seen.append(data)
        self.entered.release()
        assert self.opened.wait(30)
        self.running -= 1
        return echo(data)


@pytest.fixture(scope="module")
def explainer(finished):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(finished)
        return load_explainer("models/adapter", 4)


@pytest.fixture(scope="module")
def served(explainer):
    """The page with a real adapter behind it."""
    with serving(lambda data: handle_upload(explainer, data)) as page:
        yield page


@pytest.fixture(scope="module")
def plain():
    """The page with `echo` behind it."""
    with serving(echo, linger_seconds=0.5) as page:
        yield page


@pytest.fixture(scope="module")
def film() -> Image.Image:
    return next(iter(phantom.sample(phantom.PIPELINE, 5, 1, 224))).read()


def upload(served, data: bytes, **headers: str) -> requests.Response:
    return requests.post(f"{served.address}explain", data=data, headers=OCTETS | headers, timeout=300)


def exchange(served, request: bytes, seconds: float = 20) -> bytes:
    """All that comes back on a connection of one's own until the server closes it."""
    target = urlsplit(served.address)
    with socket.create_connection((target.hostname, target.port), timeout=seconds) as connection:
        connection.sendall(request)
        received = b""
        while chunk := connection.recv(65536):
            received += chunk
    return received


def post(served, headers: dict[str, str], body: bytes = b"") -> bytes:
    """A request to explain, word for word."""
    own = {"host": urlsplit(served.address).netloc} | OCTETS
    lines = [f"{name}: {value}" for name, value in (own | headers).items()]
    return "\r\n".join(["POST /explain HTTP/1.1", *lines, "", ""]).encode() + body


class SlowUpload:
    """An upload that sends its head, and its body when told to; `accepted`: whether it was asked for one."""

    def __init__(self, served, size: int):
        target = urlsplit(served.address)
        self.connection = socket.create_connection((target.hostname, target.port), timeout=30)
        self.connection.sendall(post(served, {"content-length": str(size), "expect": "100-continue"}))
        self.answered = self.connection.recv(65536)
        self.accepted = self.answered.startswith(b"HTTP/1.1 100")

    def send(self, body: bytes) -> None:
        self.connection.sendall(body)

    def status(self) -> int:
        """Of the answer, when it has come whole."""
        answered = b""
        while chunk := self.connection.recv(65536):
            answered += chunk
        return int(answered.split()[1])

    def close(self) -> None:
        self.connection.close()


def is_full(served, size: int = 1) -> bool:
    """Whether an upload of `size` bytes is told to come back."""
    probe = SlowUpload(served, size)
    probe.close()
    return probe.answered.startswith(b"HTTP/1.1 503")


def waiting(served, body: bytes) -> SlowUpload:
    """An upload that has got a place and has sent all of its body."""
    sent = SlowUpload(served, len(body))
    assert sent.accepted
    sent.send(body)
    return sent


def wait_until(condition, seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.02)


def is_one_line(response: requests.Response) -> bool:
    return (
        response.headers["content-type"].startswith("text/plain")
        and len(response.text.strip().splitlines()) == 1
    )


# What is shown of a film


def test_a_film_gets_its_report(served, explainer, film):
    answered = upload(served, png(film))
    explanation = next(explainer.explain([("", png(film))]))
    sections = re.findall(r'<p class="report">(.*?)</p>', answered.text)
    shown = unescape(re.sub("<[^>]+>", "", "".join(sections)))
    assert answered.status_code == 200
    assert shown.replace(" ", "") == explanation.report.replace(" ", "")
    assert "not a medical device" in answered.text
    assert ("Where it looked for" in answered.text) == bool(explanation.findings)
    assert ("names no finding" in answered.text) == (not explanation.findings)


def test_a_patients_name_reaches_neither_page_nor_log(served, film, capfd, caplog):
    named = dicom(np.asarray(film), 8)
    assert any(secret.encode() in named for secret in SECRETS)
    remark = PngImagePlugin.PngInfo()
    remark.add_text("patient", PATIENT)
    remarked = io.BytesIO()
    film.save(remarked, "PNG", pnginfo=remark)
    shown = ""
    for data in (named, named[:-3000], remarked.getvalue()):
        shown += upload(served, data).text
    pictures = b"".join(base64.b64decode(each) for each in re.findall(r"base64,([A-Za-z0-9+/=]+)", shown))
    said = shown.encode() + pictures + "".join(capfd.readouterr()).encode() + caplog.text.encode()
    assert b"Report" in said
    assert not any(secret.encode() in said for secret in SECRETS)


@pytest.mark.parametrize(
    "raised", [ValueError(PATIENT), MemoryError(PATIENT), RuntimeError(f"shape {PATIENT}")]
)
def test_an_error_of_the_program_is_one_line_without_its_message(
    explainer, film, raised, monkeypatch, caplog, capfd
):
    def fail(data):
        raise raised

    monkeypatch.setattr(explain_upload, "open_film", fail)
    with serving(lambda data: handle_upload(explainer, data)) as served:
        answered = upload(served, png(film))
    said = answered.text + caplog.text + "".join(capfd.readouterr())
    assert answered.status_code == 422
    assert type(raised).__name__ in answered.text
    assert "a film was not explained" in caplog.text
    assert not any(secret in said for secret in SECRETS)


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
    answered = upload(served, data)
    assert answered.status_code == 422
    assert "not an image that can be used" in answered.text and says in answered.text
    assert 'role="alert"' in answered.text and "<article" not in answered.text


def test_what_is_no_x_ray_gets_a_warning_above_its_report_and_no_overlay(served):
    shown = upload(served, png(Image.fromarray(load_sample_image("china.jpg")))).text
    assert "Do not trust this report" in shown
    assert shown.index("colour picture") < shown.index("<h2>Report")
    assert (
        "Where it looked for" not in shown and "data-overlay" not in shown and 'class="heatmap"' not in shown
    )
    assert "not shown for a film with a warning" in shown


def test_no_figure_claims_to_say_how_sure_the_model_is(served, film):
    shown = upload(served, png(film)).text
    assert "ertain" not in shown and not re.search(r"\bsure\b", shown)
    assert "how many of the sampled reports name it" in shown or "The report names none." in shown


def test_no_markup_of_a_report_is_taken_for_the_pages_own():
    explanation = Explanation(
        "",
        "<script>alert(1)</script> Impression: <img src=x>",
        remarks=("odd <b>A B</b>",),
        warning="<b>odd</b>",
    )
    nowhere = Attribution(("<script>a mass</script>",), np.zeros((2, 2)), np.ones((2, 2)))
    shown = render_result(build_result(Image.new("L", (2000, 1000)), explanation, {"Mass": nowhere}))
    assert "<script" not in shown and "<img src=x" not in shown and "<b>odd" not in shown
    assert "Odd &lt;b&gt;A B&lt;/b&gt;." in shown and "<b>A" not in shown
    assert "No single place counts" in shown and 'class="box"' not in shown


def test_the_overlays_box_is_where_the_patch_counts_most():
    occlusion = np.zeros((8, 8))
    occlusion[2, 5] = np.log(20)
    overlay = Attribution(("A mass is seen",), occlusion, np.ones((8, 8)))
    explanation = Explanation("", "A mass is seen.", ("Mass",), {"Mass": 0.5, "Nodule": 0.04, "Edema": 0.25})
    shown = render_result(build_result(Image.new("L", (224, 224)), explanation, {"Mass": overlay}))
    assert 'class="box" x="5" y="2" width="1" height="1"' in shown and "20 times less likely" in shown
    assert "50%" in shown and "25%" in shown and "nodule" not in shown
    heatmap = re.search(r'class="heatmap" href="data:image/png;base64,([^"]+)"', shown)[1]
    opacity = np.asarray(Image.open(io.BytesIO(base64.b64decode(heatmap))))[..., 3]
    assert opacity[2, 5] == 200 and np.count_nonzero(opacity) == 1


def test_a_percentage_stands_beside_what_such_ones_were_worth():
    explanation = Explanation(
        "",
        "A mass is seen.",
        ("Mass",),
        {"Mass": 0.81, "Nodule": 0.25},
        measured={"Mass": LikeFindings(39, 0.974)},
        calibration="measured on 128 test images",
    )
    shown = render_result(build_result(Image.new("L", (224, 224)), explanation, {}))
    assert "there: 97% of 39" in shown and shown.count("there: ") == 1
    assert "Measured on 128 test images." in shown
    unknown = replace(explanation, measured=None, calibration=NOT_MEASURED)
    shown = render_result(build_result(Image.new("L", (224, 224)), unknown, {}))
    assert "there: " not in shown and "was not measured for this adapter" in shown


def test_the_phantoms_to_click_are_of_no_training():
    examples = draw_examples()
    drawn = [Image.open(io.BytesIO(example.png)) for example in examples]
    assert len(drawn) == len(LABELS) and drawn[0].size == (224, 224)
    trained = {each.read().tobytes() for each in phantom.sample(phantom.PIPELINE, 42, 20, 224)}
    assert not trained & {image.tobytes() for image in drawn}


# Many at once


@pytest.mark.slow
def test_twenty_at_once_each_get_their_own_answer(served, explainer):
    films = [each.read() for each in phantom.sample(phantom.PIPELINE, 6, 20, 224)]
    with ThreadPoolExecutor(20) as pool:
        shown = list(pool.map(lambda image: upload(served, png(image)).text, films))
    own = [re.search(r'class="xray"[^>]*base64,([^"]+)', each)[1] for each in shown]
    assert own == [base64.b64encode(png(image)).decode() for image in films]
    for each, explanation in zip(
        shown, explainer.explain(("", png(image)) for image in films[:3]), strict=False
    ):
        for section in re.split("(?:Findings|Impression): ", explanation.report):
            assert section.strip() in unescape(each)


def test_films_are_explained_one_at_a_time_while_the_page_answers():
    gate = Gate()
    with serving(gate) as served, ThreadPoolExecutor(8) as pool:
        answers = [pool.submit(upload, served, f"film {number}".encode()) for number in range(8)]
        assert gate.entered.acquire(timeout=10)
        assert requests.get(served.address, timeout=30).status_code == 200
        gate.opened.set()
        shown = [answer.result().text for answer in answers]
    assert gate.most_running == 1
    assert all(f"got film {number}" in text for number, text in enumerate(shown))


def test_beyond_the_number_that_may_wait_the_next_is_told_to_come_back():
    gate = Gate()
    with serving(gate, waiting_uploads=3) as served:
        sent = [waiting(served, f"film {number}".encode()) for number in range(3)]
        refused = upload(served, bytes(5 * MIB))  # the line arrives although none of this is kept
        assert refused.status_code == 503 and is_one_line(refused) and "try again" in refused.text
        assert int(refused.headers["retry-after"]) > 0
        gate.opened.set()
        assert [each.status() for each in sent] == [422, 422, 422]
        assert upload(served, b"now").status_code == 422
    assert gate.seen == [b"film 0", b"film 1", b"film 2", b"now"]


def test_beyond_the_bytes_that_may_wait_the_next_is_told_to_come_back():
    gate = Gate()
    with serving(gate, waiting_bytes=10 * MIB) as served:
        large = waiting(served, bytes(8 * MIB))
        assert is_full(served, 3 * MIB) and not is_full(served, 2 * MIB)
        announced = SlowUpload(served, 2 * MIB)  # which holds what it announces, before it is sent
        assert announced.accepted and is_full(served)
        announced.close()
        wait_until(lambda: not is_full(served, 2 * MIB))
        gate.opened.set()
        assert large.status() == 422
        assert upload(served, bytes(9 * MIB)).status_code == 422


def test_who_goes_away_frees_the_place():
    gate = Gate()
    with serving(gate, waiting_uploads=3) as served:
        first = waiting(served, b"first")
        assert gate.entered.acquire(timeout=10)
        in_line = waiting(served, b"gone")
        sending = SlowUpload(served, 1000)
        sending.send(b"gone")
        assert is_full(served)
        later = []
        for gone in (in_line, sending):
            gone.close()
            wait_until(lambda: not is_full(served))
            later.append(waiting(served, b"later"))
            assert is_full(served)
        gate.opened.set()
        assert [each.status() for each in (first, *later)] == [422, 422, 422]
    assert gate.seen == [b"first", b"later", b"later"]


def test_answered_uploads_leave_the_memory():
    process = psutil.Process()
    data = os.urandom(MIB) * 40
    with serving(lambda data: Result(problem=str(len(data)))) as served:
        upload(served, data)
        before = process.memory_info().rss
        for _ in range(15):
            assert str(len(data)) in upload(served, data).text
        assert process.memory_info().rss - before < 5 * len(data)


# Who and what is refused


def test_a_file_too_large_is_refused_before_it_is_sent(plain):
    answered = exchange(
        plain, post(plain, {"content-length": str(64 * MIB + 1), "expect": "100-continue"}) + b"x"
    )
    assert answered.startswith(b"HTTP/1.1 413") and b"64 MiB at most" in answered
    digits = exchange(plain, post(plain, {"content-length": "1" + 18 * "0"}) + b"x")
    assert digits.startswith(b"HTTP/1.1 413")


def test_a_file_as_large_as_may_be_is_read(plain):
    with serving(lambda data: Result(problem=str(len(data)))) as served:
        assert str(64 * MIB) in upload(served, bytes(64 * MIB)).text


@pytest.mark.parametrize(
    "headers, body, status",
    [
        ({"transfer-encoding": "chunked"}, b"4\r\nfilm\r\n0\r\n\r\n", b"411"),
        ({"transfer-encoding": "chunked", "content-length": "1"}, b"4\r\nfilm\r\n0\r\n\r\n", b"411"),
        ({}, b"", b"411"),
        ({"content-length": "-4"}, b"film", b"400"),
        ({"content-length": "four"}, b"film", b"400"),
        ({"content-length": "9" * 5000}, b"film", b"4"),
        ({"content-type": "multipart/form-data; boundary=x", "content-length": "4"}, b"film", b"415"),
        ({"content-type": "application/json", "content-length": "4"}, b"film", b"415"),
        ({"content-type": "text/plain", "content-length": "4"}, b"film", b"415"),
        ({"host": "127.0.0.1\r\nHost: localhost", "content-length": "4"}, b"film", b"400"),
    ],
)
def test_a_malformed_request_is_one_line_without_its_content(plain, headers, body, status, caplog, capfd):
    answered = exchange(plain, post(plain, headers, body))
    head, _, line = answered.partition(b"\r\n\r\n")
    said = answered + caplog.text.encode() + "".join(capfd.readouterr()).encode()
    assert head.startswith(b"HTTP/1.1 " + status)
    assert len(line.strip().splitlines()) == 1 and b"film" not in said.replace(b"the file", b"")
    assert requests.get(plain.address, timeout=30).status_code == 200


@pytest.mark.parametrize(
    "no_request",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc",  # of TLS
        b"secret\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nHost: x\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ],
)
def test_what_is_no_no_requestis_refused_in_silence(plain, no_request, caplog, capfd):
    answered = exchange(plain, no_request)
    assert answered.startswith((b"HTTP/1.1 400", b"HTTP/1.1 403")) and b"secret" not in answered
    assert not caplog.text and not "".join(capfd.readouterr())


def test_a_head_without_an_end_is_cut_off(plain):
    sent = 0
    with suppress(ConnectionResetError, BrokenPipeError):
        exchange(plain, post(plain, {"x-long": "y" * 32 * MIB}))
        sent = 32 * MIB
    assert not sent
    assert requests.get(plain.address, timeout=30).status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        *("evil.example", "evil.example:{port}", "127.0.0.1", "localhost:1", "0.0.0.0:{port}", ""),
        *("127.0.0.1:{port}.evil.example", "localhost.evil.example:{port}", "user@127.0.0.1:{port}"),
    ],
)
def test_another_name_for_this_machine_is_refused(plain, host):
    host = host.format(port=urlsplit(plain.address).port)
    asked = requests.get(plain.address, headers={"host": host}, timeout=30)
    sent = upload(plain, b"film", host=host, origin=f"http://{host}")
    for answered in (asked, sent):
        assert answered.status_code == 403 and is_one_line(answered)
        assert "film" not in answered.text and "evil" not in answered.text


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "LocalHost", "[::1]"])
def test_this_machines_own_names_are_let_through(plain, host):
    own = f"{host}:{urlsplit(plain.address).port}"
    assert requests.get(plain.address, headers={"host": own}, timeout=30).status_code == 200
    assert upload(plain, b"film", host=own, origin=f"http://{own}").status_code == 422


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "http://127.0.0.1", "http://localhost:1", "file://", ""]
)
def test_another_sites_page_is_refused(plain, origin):
    for answered in (
        upload(plain, b"film", origin=origin),
        requests.get(plain.address, headers={"origin": origin}, timeout=30),
    ):
        assert answered.status_code == 403 and is_one_line(answered)
        assert "access-control-allow-origin" not in answered.headers
    preflight = requests.options(f"{plain.address}explain", headers={"origin": origin}, timeout=30)
    assert preflight.status_code == 403 and not any("allow" in name.lower() for name in preflight.headers)


def test_forwarding_headers_are_not_looked_at(plain):
    forwarded = {
        "x-forwarded-host": "evil.example",
        "x-forwarded-proto": "https",
        "x-forwarded-for": "1.2.3.4",
        "forwarded": "host=evil.example",
        "x-original-url": "/explain",
    }
    answered = requests.get(plain.address, headers=forwarded, timeout=30)
    assert answered.status_code == 200 and answered.text == requests.get(plain.address, timeout=30).text
    assert "evil.example" not in answered.text + str(answered.headers)
    assert (
        requests.get(plain.address, headers=forwarded | {"host": "evil.example"}, timeout=30).status_code
        == 403
    )


@pytest.mark.parametrize("path", UNKNOWN)
def test_nothing_but_the_known_routes_is_there(plain, path):
    target = urlsplit(plain.address).netloc
    for method in ("GET", "POST", "PUT", "DELETE"):
        head = f"{method} /{path} HTTP/1.1\r\nHost: {target}\r\nContent-Length: 4\r\n\r\nfilm"
        assert exchange(plain, head.encode()).startswith(b"HTTP/1.1 404")


def test_a_known_route_takes_its_own_method_alone(plain):
    assert requests.get(f"{plain.address}explain", timeout=30).status_code == 405
    for path in ROUTES:
        assert requests.post(f"{plain.address}{path}", data=b"film", timeout=30).status_code == 405
        assert requests.get(f"{plain.address}{path}", timeout=30).status_code == 200


def test_an_upgrade_to_a_websocket_is_not_made(plain):
    upgrade = {"connection": "Upgrade", "upgrade": "websocket", "sec-websocket-version": "13"}
    upgrade["sec-websocket-key"] = "AAAAAAAAAAAAAAAAAAAAAA=="
    assert requests.get(plain.address, headers=upgrade, timeout=30).status_code == 200


# Slow clients


def test_who_is_slow_to_ask_is_cut_off():
    with serving(echo, head_seconds=0.5) as served:
        assert exchange(served, b"") == b""
        assert exchange(served, b"GET / HTTP/1.1\r\nHost:") == b""


def test_who_is_slow_to_send_is_cut_off_and_frees_the_place():
    with serving(echo, upload_seconds=0.5, linger_seconds=0.5, waiting_uploads=1) as served:
        answered = exchange(served, post(served, {"content-length": "1000"}, b"some"))
        assert answered.startswith(b"HTTP/1.1 408") and b"did not arrive" in answered
        assert upload(served, b"film").status_code == 422


def test_who_is_slow_to_send_what_is_refused_is_cut_off():
    with serving(echo, linger_seconds=0.5) as served:
        assert exchange(
            served, post(served, {"content-length": "1000", "origin": "null"}, b"some")
        ).startswith(b"HTTP/1.1 403")


def test_who_is_slow_to_read_is_cut_off():
    answer = "x" * (16 * MIB)
    with serving(lambda data: Result(problem=answer), response_seconds=0.5) as served:
        slow = waiting(served, b"film")
        time.sleep(3)
        received = 0
        with suppress(ConnectionResetError):
            while chunk := slow.connection.recv(MIB):
                received += len(chunk)
        assert 0 < received < len(answer)


# What leaves the machine, and what stays on it


class Audit:
    """Files that this process opens for writing, while `opened` is a list: a hook can't be taken away."""

    opened: list[str] | None = None

    def __call__(self, event: str, arguments: tuple) -> None:
        if event != "open" or self.opened is None:
            return
        path, _, flags = arguments
        if isinstance(path, int):  # a descriptor that is open already, as of a pipe to the decoder's process
            return
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) and path != os.devnull:
            self.opened.append(str(path))


AUDIT = Audit()


def opened_for_writing(monkeypatch) -> list[str]:
    if AUDIT.opened is None:
        sys.addaudithook(AUDIT)
    opened = []
    monkeypatch.setattr(AUDIT, "opened", opened)
    return opened


def test_no_route_writes_to_the_disk(explainer, film, tmp_path, monkeypatch):
    here, temporary, home = tmp_path / "here", tmp_path / "temporary", tmp_path / "home"
    for folder in (here, temporary, home):
        folder.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setenv("HOME", str(home))
    opened = opened_for_writing(monkeypatch)
    with serving(lambda data: handle_upload(explainer, data)) as served:
        address = served.address
        for path in (*ROUTES, *UNKNOWN):
            requests.get(address + path, timeout=10)
            requests.post(address + path, data=png(film), headers=OCTETS, timeout=10)
            requests.post(address + path, files={"files": ("film.png", png(film))}, timeout=10)
            requests.put(address + path, data=png(film), timeout=10)
        assert upload(served, png(film)).status_code == 200
        assert upload(served, dicom(np.asarray(film), 8)).status_code == 200
        assert upload(served, b"film").status_code == 422
        assert upload(served, bytes(20 * MIB)).status_code == 422  # far over what servers spool to disk
        requests.post(f"{address}explain", files={"file": ("film.png", bytes(5 * MIB))}, timeout=10)
        requests.post(f"{address}explain", json={"data": ["film"]}, timeout=10)
    assert not [*here.rglob("*"), *temporary.rglob("*"), *home.rglob("*")]
    assert not opened


def test_every_answer_forbids_what_the_page_does_not_need(plain):
    answers = [requests.get(plain.address + path, timeout=30) for path in (*ROUTES, "unknown", "explain")]
    answers += [upload(plain, b"film"), upload(plain, b"film", origin="null")]
    for answered in answers:
        policy = answered.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; ") and "unsafe" not in policy and "http" not in policy
        assert answered.headers["cache-control"] == "no-store"
        assert answered.headers["x-content-type-options"] == "nosniff"
        assert "set-cookie" not in answered.headers and "server" not in answered.headers


def test_the_page_refers_to_its_own_routes_alone(plain):
    page, css, js = (
        requests.get(plain.address + path, timeout=30).text for path in ("", "page.css", "page.js")
    )
    referred = re.findall(r'(?:src|href|action|data-film)="([^"]+)"', page)
    assert referred and {each.lstrip("/") for each in referred if not each.startswith("data:")} <= set(ROUTES)
    assert "://" not in page + css + js and "url(" not in css and "@import" not in css
    assert "style=" not in page and "<script>" not in page and not re.search(r"\son[a-z]+=", page)


def test_it_listens_on_this_machine_alone(plain):
    port = urlsplit(plain.address).port
    open_ports = [each for each in psutil.Process().net_connections() if each.status == "LISTEN"]
    assert {each.laddr.ip for each in open_ports if each.laddr.port == port} == {"127.0.0.1"}


def test_on_all_addresses_the_name_is_free_and_the_origin_is_not():
    served = launch(echo, "0.0.0.0", listen("0.0.0.0", 0))
    try:
        assert not served.loopback
        address = f"http://127.0.0.1:{urlsplit(served.address).port}/"
        named = {"host": "ward-7.hospital.example"}
        assert requests.get(address, headers=named, timeout=30).status_code == 200
        foreign = OCTETS | named | {"origin": "http://evil.example"}
        answered = requests.post(f"{address}explain", data=b"film", headers=foreign, timeout=30)
        assert answered.status_code == 403
        own = OCTETS | named | {"origin": "http://ward-7.hospital.example"}
        answered = requests.post(f"{address}explain", data=b"film", headers=own, timeout=30)
        assert answered.status_code == 422
    finally:
        served.stop()


# The command


def test_without_a_port_the_first_free_one_is_taken():
    first, second = (launch(echo, "127.0.0.1", listen("127.0.0.1", None)) for _ in range(2))
    try:
        ports = [urlsplit(each.address).port for each in (first, second)]
        assert 7860 <= ports[0] < ports[1] < 7960
    finally:
        assert first.stop() and second.stop()


def test_a_port_that_is_taken_is_one_line_before_the_adapter_is_looked_for(plain, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    taken = str(urlsplit(plain.address).port)
    for port, reason in {taken: "another program does", "70000": "port must be 0-65535"}.items():
        with pytest.raises(UserError, match=f"cannot listen on 127.0.0.1, port {port}: .*{reason}"):
            run_stage("app", "--port", port)
    with pytest.raises(UserError, match="params.yaml"):
        run_stage("app")


@pytest.mark.slow
@pytest.mark.parametrize("busy", [False, True])
def test_ctrl_c_ends_it_without_a_traceback(finished, film, busy):
    command = [
        sys.executable,
        str(ROOT / "stages/app.py"),
        "--port",
        "0",
        "--samples",
        "20000" if busy else "0",
    ]
    with subprocess.Popen(
        command, cwd=finished, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        address = next(line.split()[1] for line in process.stdout if line.startswith("open "))
        if busy:
            target = urlsplit(address)
            connection = socket.create_connection((target.hostname, target.port))
            head = f"POST /explain HTTP/1.1\r\nHost: {target.netloc}\r\nContent-Length: {len(png(film))}\r\n"
            connection.sendall(f"{head}Content-Type: application/octet-stream\r\n\r\n".encode() + png(film))
            time.sleep(2)  # until the model is at work
        process.send_signal(signal.SIGINT)
        out, errors = process.communicate(timeout=20)
    assert process.returncode == 0, errors
    assert out.endswith("the page has ended\n")
    assert "Traceback" not in out + errors and "rror" not in out + errors


# In a browser


@pytest.fixture(scope="module")
def browser():
    if not CHROMIUM:
        pytest.skip("no Chromium on this machine: the page is not looked at")
    from playwright.sync_api import sync_playwright

    quiet = [
        *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
        *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
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
    # An unusable file is answered with 422, which Chromium reports.
    assert not [line for line in tab.complaints if "422" not in line]
    assert all(url.startswith((served.address, "data:", "blob:")) for url in tab.asked)
    tab.close()


def choose(tab, name: str, data: bytes) -> None:
    tab.set_input_files("#file", {"name": name, "mimeType": "application/octet-stream", "buffer": data})


def test_in_a_browser_a_file_is_chosen_and_its_report_read(tab, film, explainer, tmp_path):
    explanation = next(explainer.explain([("", png(film))]))
    choose(tab, "Doe_Jane.png", png(film))
    tab.wait_for_selector(".explanation", timeout=60_000)
    assert tab.inner_text(".report >> nth=0") in explanation.report
    assert "not a medical device" in tab.inner_text("header") and "not a medical device" in tab.inner_text(
        ".notice"
    )
    assert "Doe_Jane" not in tab.content()
    assert tab.get_attribute("#result", "aria-busy") == "false"
    assert tab.evaluate("document.documentElement.scrollWidth") <= 1280
    assert tab.locator(".xray").bounding_box()["width"] > 350
    stored = tab.evaluate(
        "async () => [localStorage.length, (await indexedDB.databases()).length, document.cookie]"
    )
    assert stored == [0, 0, ""]


def test_in_a_browser_a_file_is_dropped_and_its_report_read(tab, film):
    drop = """async (bytes) => {
        const transfer = new DataTransfer();
        transfer.items.add(new File([new Uint8Array(bytes)], "film.png"));
        const drop = new DragEvent("drop", {dataTransfer: transfer, bubbles: true});
        document.querySelector("#result").dispatchEvent(drop);
    }"""
    tab.evaluate(drop, list(png(film)))
    tab.wait_for_selector(".explanation", timeout=60_000)


def test_in_a_browser_a_phantom_is_clicked_and_its_overlay_chosen_without_the_server(tab, served):
    looked = False
    for number in range(len(LABELS)):
        tab.evaluate("document.querySelector('#result').replaceChildren()")
        tab.click(f".example >> nth={number}")
        tab.wait_for_selector(".explanation", timeout=60_000)
        assert tab.get_attribute(f".example >> nth={number}", "aria-pressed") == "true"
        if not tab.locator(".choice").count():
            continue
        looked = True
        asked = len(tab.asked)
        layer, legend = tab.locator("[data-overlay='0'].layer"), tab.locator("[data-overlay='0'].legend")
        assert layer.is_visible() and legend.is_visible()
        frame, heatmap = tab.locator(".frame").bounding_box(), layer.locator("image").bounding_box()
        assert heatmap == pytest.approx(frame, abs=1)
        tab.click("text=film alone")
        assert not layer.is_visible() and not legend.is_visible()
        tab.click(".choice label >> nth=0")
        assert layer.is_visible() and len(tab.asked) == asked
    assert looked


def test_in_a_browser_a_bad_file_and_one_too_large_get_a_message_and_the_next_one_its_report(
    tab, film, tmp_path
):
    choose(tab, "torn.jpg", b"torn")
    tab.wait_for_selector("#result .warning", timeout=60_000)
    assert "not an image that can be used" in tab.inner_text("#result .warning")
    large = tmp_path / "large.dcm"
    with large.open("wb") as file:
        os.truncate(file.fileno(), 64 * MIB + 1)
    tab.set_input_files("#file", large)
    tab.wait_for_function(
        "document.querySelector('#note').textContent.includes('64 are the most')", timeout=30_000
    )
    choose(tab, "film.dcm", dicom(np.asarray(film), 8))
    tab.wait_for_selector(".explanation", timeout=60_000)
    assert tab.inner_text("#note") == ""


def test_in_a_browser_who_has_to_come_back_is_told_so(browser):
    gate = Gate()
    with serving(gate, waiting_uploads=1) as served, ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(upload, served, b"film")
        assert gate.entered.acquire(timeout=10)
        tab = browser.new_page()
        tab.goto(served.address)
        choose(tab, "film.png", bytes(3 * MIB))
        tab.wait_for_function(
            "document.querySelector('#note').textContent.includes('try again')", timeout=30_000
        )
        gate.opened.set()
        assert waiting.result().status_code == 422
        tab.close()


def test_in_a_browser_another_sites_page_is_refused(browser):
    class Elsewhere(BaseHTTPRequestHandler):
        """Another site, without a policy that would stop its own page."""

        def do_GET(self):
            self.send_response(200)
            self.send_header("content-type", "text/html")
            self.end_headers()

        def log_message(self, *line):
            pass

    gate = Gate()
    gate.opened.set()
    elsewhere = ThreadingHTTPServer(("127.0.0.1", 0), Elsewhere)
    threading.Thread(target=elsewhere.serve_forever, daemon=True).start()
    try:
        with serving(gate) as served:
            tab = browser.new_page()
            statuses = []
            tab.on("response", lambda response: statuses.append((response.request.method, response.status)))
            tab.goto(f"http://localhost:{elsewhere.server_port}/")
            # What needs no preflight, what needs one, and a form, which takes the tab there.
            for options in (
                "{method: 'POST', body: 'film', mode: 'no-cors'}",
                "{method: 'POST', body: 'film', headers: {'content-type': 'application/octet-stream'}}",
            ):
                fetch = f"url => fetch(url, {options}).then(() => 'answered', () => 'blocked')"
                assert tab.evaluate(fetch, f"{served.address}explain") == "blocked"
            form = """url => {
                const form = Object.assign(document.createElement("form"), {method: "post", action: url});
                form.enctype = "multipart/form-data";
                document.body.append(form);
                form.submit();
            }"""
            with tab.expect_navigation():
                tab.evaluate(form, f"{served.address}explain")
            assert {status for method, status in statuses if method == "POST"} == {403}
            assert tab.inner_text("body").strip() == "Another site's page may not ask here."
            tab.close()
    finally:
        elsewhere.shutdown()
        elsewhere.server_close()
    assert gate.seen == []
