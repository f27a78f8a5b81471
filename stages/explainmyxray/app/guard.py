"""What stands before the page's server: bounded requests, nothing uploaded to disk, nothing fetched from elsewhere."""

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from explainmyxray.images.decoding import MAX_FILE_BYTES

MAX_BODY_BYTES = MAX_FILE_BYTES * 4 // 3 + 2**16  # a file in base64, and what Gradio says beside it
TO_DISK = "/upload"  # Gradio's own way for files; the page sends them in its requests instead
HEADERS = {
    "content-security-policy": "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
    "x-dns-prefetch-control": "off",
    "cache-control": "no-store",  # no answer stays in the browser's cache
}


class Guard:
    """ASGI middleware around Gradio's app."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        if refused := refusal(scope["method"], scope["path"], Headers(scope=scope)):
            return await refused(scope, receive, send)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        await self.app(scope, receive, send_with_headers)


def refusal(method: str, path: str, headers: Headers) -> PlainTextResponse | None:
    """The answer to a request that is not let through; None for any other."""
    if method in ("GET", "HEAD", "OPTIONS"):
        return None
    if path.rstrip("/").endswith(TO_DISK):
        return PlainTextResponse("files are sent with the request, and never written to disk", 403)
    length = headers.get("content-length", "")
    if (
        not length.isdigit()
    ):  # a body of unknown length has no bound; the server itself holds one to the length that it says
        return PlainTextResponse("a request must say how long it is", 411)
    if int(length) > MAX_BODY_BYTES:
        return PlainTextResponse(f"a file may have {MAX_FILE_BYTES // 2**20} MiB at most", 413)
    return None
