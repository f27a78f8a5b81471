"""An upload's way into memory: refused by its length before a byte is read, counted while it is read."""

import io
from collections.abc import Iterator
from contextlib import contextmanager

import anyio
from starlette.exceptions import HTTPException
from starlette.requests import Request

from explainmyxray.app.limits import MIB, Limits

CONTENT_TYPE = "application/octet-stream"  # no form can send it, so that other sites' pages need a preflight
RETRY_AFTER = "10"  # seconds


class UploadQueue:
    """Places for uploads that are received, waiting or being explained. Used by the event loop alone."""

    def __init__(self, limits: Limits):
        self._limits = limits
        self._count = 0
        self._bytes = 0

    @contextmanager
    def reserve(self, size: int) -> Iterator[None]:
        """Hold a place for an upload of `size` bytes. Raises HTTPException (503) where none is left."""
        full = self._count >= self._limits.waiting_uploads
        if full or self._bytes + size > self._limits.waiting_bytes:
            raise HTTPException(
                503,
                "Too many X-rays are waiting: try again in a moment.",
                {"retry-after": RETRY_AFTER},
            )
        self._count += 1
        self._bytes += size
        try:
            yield
        finally:
            self._count -= 1
            self._bytes -= size


def check_upload(request: Request, limits: Limits) -> int:
    """The body's length in bytes, as declared. Raises HTTPException where the body is not to be read."""
    if request.headers.getlist("content-type") != [CONTENT_TYPE]:
        raise HTTPException(415, f"Send the file's bytes as the request's body, as {CONTENT_TYPE}.")
    length = request.headers.get("content-length", "")
    if "transfer-encoding" in request.headers or not length.isdecimal():
        raise HTTPException(411, "Send the body's length as Content-Length.")
    # The number of digits first: int() refuses thousands of them.
    if len(length) > 20 or int(length) > limits.upload_bytes:
        raise HTTPException(413, f"A file may have {limits.upload_bytes // MIB} MiB at most.")
    return int(length)


async def read_upload(request: Request, size: int, limits: Limits) -> bytes:
    """The body, of `size` bytes at most. Raises HTTPException; ClientDisconnect if the client goes away."""
    body = io.BytesIO()
    seconds = limits.upload_seconds + size / limits.upload_rate
    try:
        with anyio.fail_after(seconds):
            async for chunk in request.stream():
                if body.tell() + len(chunk) > size:
                    raise HTTPException(400, "The body is longer than its Content-Length.")
                body.write(chunk)
    except TimeoutError:
        raise HTTPException(408, f"The file did not arrive within {seconds:.0f} seconds.") from None
    return body.getvalue()
