"""A stand-in for Kaggle on the port where its client looks with KAGGLE_API_ENVIRONMENT=TEST.

It answers the client's two calls, DownloadDataset (with a redirect to a signed address, as Kaggle does) and
IntrospectToken, and serves the files with resumption. `Kaggle` says how it misbehaves.
"""

import json
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

PORT = 7777
SIGNATURE = "X-Goog-Signature=signed-and-secret"
ETAG = '"the-one-version"'
MODIFIED = "Sun, 24 Mar 2024 00:00:00 GMT"


@dataclass
class Kaggle:
    """Files by name, what goes wrong, and what was asked."""

    files: dict[str, bytes] = field(default_factory=dict)
    status: int = 200  # answer to DownloadDataset
    silent: bool = False  # take DownloadDataset and never answer
    file_status: list[int] = field(default_factory=list)  # answers to requests for a file, in turn; then 200
    # Bytes until the connection breaks, in turn; then the whole file.
    cut_after: list[int] = field(default_factory=list)
    requests: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)  # method, path, headers

    def headers(self, method: str, path: str) -> list[dict[str, str]]:
        return [headers for m, p, headers in self.requests if m == method and p.startswith(path)]

    @contextmanager
    def serving(self):
        server = _Server(("127.0.0.1", PORT), _Handler)
        server.kaggle, server.closing = self, threading.Event()
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            server.closing.set()
            server.shutdown()
            server.server_close()
            thread.join()


class _Server(ThreadingHTTPServer):
    def handle_error(self, request, client_address):
        """Say nothing: connections break on purpose."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self._note()
        self._answer(200)

    def do_POST(self):
        kaggle = self._note()
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])) or b"{}")
        if self.path.endswith("/IntrospectToken"):
            self._answer(
                404 if body["token"].startswith("bad") else 200, {"active": True, "username": "somebody"}
            )
        elif kaggle.silent:
            self.server.closing.wait(10)
            self.close_connection = True
        elif kaggle.status != 200:
            self._answer(
                kaggle.status, {"code": kaggle.status, "message": f"see /?{SIGNATURE}"}, {"Retry-After": "7"}
            )
        else:
            address = (
                f"http://localhost:{PORT}/files/{body['ownerSlug']}/{body['datasetSlug']}.zip?{SIGNATURE}"
            )
            self._answer(302, headers={"Location": address})

    def do_GET(self):
        kaggle = self._note()
        status = kaggle.file_status.pop(0) if kaggle.file_status else 200
        if status != 200:
            return self._answer(status, {"error": "no"})
        whole = kaggle.files[urlsplit(self.path).path.rsplit("/", 1)[-1]]
        start = 0
        if "Range" in self.headers and self.headers.get("If-Range") == ETAG:
            start = int(self.headers["Range"].removeprefix("bytes=").rstrip("-"))
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(whole) - start))
        for name, value in {"Accept-Ranges": "bytes", "ETag": ETAG, "Last-Modified": MODIFIED}.items():
            self.send_header(name, value)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(whole) - 1}/{len(whole)}")
        self.end_headers()
        if kaggle.cut_after:
            self.wfile.write(whole[start : start + kaggle.cut_after.pop(0)])
            self.close_connection = True
        else:
            self.wfile.write(whole[start:])

    def _note(self) -> Kaggle:
        self.server.kaggle.requests.append((self.command, urlsplit(self.path).path, dict(self.headers)))
        return self.server.kaggle

    def _answer(
        self, status: int, content: dict | None = None, headers: dict[str, str] | None = None
    ) -> None:
        body = b"" if content is None else json.dumps(content).encode()
        self.send_response(status)
        usual = {"Content-Type": "application/json", "Content-Length": str(len(body))}
        for name, value in (usual | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(b"" if self.command == "HEAD" else body)

    def log_message(self, *_):
        """Say nothing."""
