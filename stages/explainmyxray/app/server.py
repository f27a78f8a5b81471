"""The page's server: a few routes on Starlette and uvicorn; nothing is fetched or written to disk."""

import errno
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import anyio
import anyio.to_thread
import uvicorn
from anyio.abc import TaskGroup
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route
from starlette.types import Receive
from uvicorn.protocols.http.h11_impl import H11Protocol

from explainmyxray.app.examples import draw_examples
from explainmyxray.app.guard import Guard, Refusal, bracketed, loopback_hosts
from explainmyxray.app.limits import MIB, Limits
from explainmyxray.app.result import Result
from explainmyxray.app.uploads import UploadQueue, check_upload, read_upload

HERE = Path(__file__).parent
FIRST_PORT, NUM_PORTS = 7860, 100
SHUTDOWN_SECONDS = 2

templates = Environment(
    loader=FileSystemLoader(HERE / "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    auto_reload=False,
    trim_blocks=True,
    lstrip_blocks=True,
)
result_template = templates.get_template("result.html")


def render_result(result: Result) -> str:
    """The HTML fragment of a result, without a reference to anything outside it."""
    return result_template.render(result=result)


def create_app(handle: Callable[[bytes], Result], hosts: frozenset[str], limits: Limits) -> Starlette:
    """The page; `handle` makes the result of a file's bytes, in a worker thread, one file at a time.

    `hosts` are the Host headers that are let through; empty: all of them.
    """
    queue = UploadQueue(limits)
    one_at_a_time = anyio.CapacityLimiter(1)

    def explain_and_render(data: bytes) -> Response:
        result = handle(data)
        return HTMLResponse(render_result(result), 422 if result.problem else 200)

    async def explain(request: Request) -> Response:
        size = check_upload(request, limits)
        try:
            with queue.reserve(size):
                data = await read_upload(request, size, limits)
                return await run_while_connected(request.receive, explain_and_render, data, one_at_a_time)
        except ClientDisconnect:
            return Response()  # nobody is there to read it

    def refuse(request: Request, error: HTTPException) -> Response:
        headers = dict(error.headers or {})
        return Refusal(error.status_code, error.detail, limits.linger_seconds, headers)

    examples = draw_examples()
    page = templates.get_template("page.html").render(examples=examples, max_mib=limits.upload_bytes // MIB)
    routes = [
        Route("/explain", explain, methods=["POST"]),
        _fixed("/", page.encode(), "text/html"),
        _fixed("/page.css", (HERE / "assets/page.css").read_bytes(), "text/css"),
        _fixed("/page.js", (HERE / "assets/page.js").read_bytes(), "text/javascript"),
    ]
    for number, example in enumerate(examples):
        routes.append(_fixed(f"/example/{number}", example.png, "image/png"))
    app = Starlette(
        routes=routes,
        middleware=[Middleware(Guard, hosts=hosts, linger_seconds=limits.linger_seconds)],
        exception_handlers={HTTPException: refuse},
    )
    app.router.redirect_slashes = False
    return app


def _fixed(path: str, content: bytes, media_type: str) -> Route:
    """A route with one answer, held in memory."""

    async def respond(request: Request) -> Response:
        return Response(content, media_type=media_type)

    return Route(path, respond, methods=["GET"])


async def run_while_connected(
    receive: Receive, function: Callable[[bytes], Response], data: bytes, limiter: anyio.CapacityLimiter
) -> Response:
    """`function(data)` in a worker thread, when `limiter` has room.

    Raises ClientDisconnect where the client goes away. One that goes away while it waits leaves the line at
    once. A function that is running can't be stopped, and keeps its place until it has ended.
    """

    async def cancel_when_disconnected(tasks: TaskGroup) -> None:
        message = await receive()
        while message["type"] != "http.disconnect":
            message = await receive()
        tasks.cancel_scope.cancel()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(cancel_when_disconnected, tasks)
        response = await anyio.to_thread.run_sync(function, data, limiter=limiter)
        if not tasks.cancel_scope.cancel_called:
            tasks.cancel_scope.cancel()  # the other task
            return response
    raise ClientDisconnect


class TimedProtocol(H11Protocol):
    """HTTP/1.1, where a client that is slow to ask or slow to read is cut off. uvicorn bounds neither."""

    limits = Limits()

    def connection_made(self, transport) -> None:
        super().connection_made(transport)
        self.loop.call_later(self.limits.head_seconds, self._abort_without_request)

    def _abort_without_request(self) -> None:
        if self.cycle is None:
            self.transport.abort()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        # Closing waits until all is read; aborting what is closed by then does nothing.
        self.loop.call_later(self.limits.response_seconds, self.transport.abort)


@dataclass(frozen=True)
class PageServer:
    """A page that is being served, in a thread of its own."""

    address: str
    loopback: bool  # whether this machine alone can reach it
    server: uvicorn.Server
    ended: threading.Event  # and not Thread.join: Ctrl+C amid it makes Python 3.11 take the thread for dead

    def wait(self) -> None:
        """Until the server has ended."""
        self.ended.wait()

    def stop(self) -> bool:
        """Whether it has ended: a film that is being explained can't be stopped, and is not waited for."""
        self.server.should_exit = True
        return self.ended.wait(SHUTDOWN_SECONDS)


def launch(
    handle: Callable[[bytes], Result], host: str, listener: socket.socket, limits: Limits | None = None
) -> PageServer:
    """Serve the page where `listener` listens, which a person reaches as `host` (IPv6 without brackets).

    Raises OSError where the server ends at once.
    """
    limits = limits or Limits()
    address, port = listener.getsockname()[:2]
    protocol = type("Protocol", (TimedProtocol,), {"limits": limits})
    hosts = loopback_hosts(address, host, port)
    config = uvicorn.Config(
        create_app(handle, hosts, limits),
        http=protocol,
        ws="none",
        loop="asyncio",
        lifespan="off",
        log_config=None,
        log_level="error",  # not what a request holds
        access_log=False,
        proxy_headers=False,
        server_header=False,
        limit_concurrency=limits.connections,
    )
    server = uvicorn.Server(config)
    ended = threading.Event()

    def run() -> None:
        try:
            server.run([listener])
        finally:
            ended.set()

    threading.Thread(target=run, daemon=True).start()
    while not server.started and not ended.wait(0.01):
        pass
    if not server.started:
        raise OSError("the server ended at once")
    shown = socket.gethostname() if address in ("0.0.0.0", "::") else host
    return PageServer(f"http://{bracketed(shown)}:{port}/", bool(hosts), server, ended)


def listen(host: str, port: int | None) -> socket.socket:
    """A socket that listens on `port`, or on the first free one from 7860.

    Raises OSError where there is none, or where `host` is no address of this machine; OverflowError for a
    port over 65535.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    if port is not None:
        return socket.create_server((host, port), family=family)
    last = FIRST_PORT + NUM_PORTS - 1
    for each in range(FIRST_PORT, last):
        try:
            return socket.create_server((host, each), family=family)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
    return socket.create_server((host, last), family=family)
