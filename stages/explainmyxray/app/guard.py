"""Who may ask, and what every answer says to the browser."""

import ipaddress

import anyio
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

SECURITY_HEADERS = {
    # Scripts, styles and requests of the page's own origin alone; pictures also as data: URIs,
    # which fetch nothing.
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "same-origin",
    "x-content-type-options": "nosniff",
    "x-dns-prefetch-control": "off",
    "cache-control": "no-store",  # no answer stays in the browser's cache
    "connection": "close",  # one request a connection: no idle ones to bound, nothing smuggled behind a body
}


class Refusal(PlainTextResponse):
    """One line instead of an answer.

    The rest of the request's body is read and thrown away, for a while: a connection that is closed with
    bytes left to read is reset, and the client may lose the line that says why.
    """

    def __init__(self, status: int, line: str, linger_seconds: float, headers: dict[str, str] | None = None):
        super().__init__(line + "\n", status, headers)
        self._linger_seconds = linger_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        # All that Content-Length promises: the client has its answer, while the exchange goes on.
        await send({"type": "http.response.body", "body": self.body, "more_body": True})
        with anyio.move_on_after(self._linger_seconds):
            message = await receive()
            while message["type"] == "http.request" and message.get("more_body", False):
                message = await receive()
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def loopback_hosts(address: str, name: str, port: int) -> frozenset[str]:
    """The Host headers of a page that listens on `address`, which was given as `name`.

    Empty where it is no loopback address: any name may lead there.
    """
    if not ipaddress.ip_address(address).is_loopback:
        return frozenset()
    names = {bracketed(address), bracketed(name).lower(), "127.0.0.1", "localhost", "[::1]"}
    hosts = {f"{each}:{port}" for each in names}
    if port == 80:  # which browsers leave out
        hosts |= names
    return frozenset(hosts)


def bracketed(host: str) -> str:
    """A host as it stands in an address: IPv6 in brackets."""
    return f"[{host}]" if ":" in host else host


class Guard:
    """ASGI middleware: Host and Origin are checked, and every response carries `SECURITY_HEADERS`.

    With a set of `hosts`, the Host header has to be one of them: a name that another site points at this
    machine (DNS rebinding) is none. Origin, which browsers send along with every POST, has to be the page's
    own. X-Forwarded-* headers are not looked at.
    """

    def __init__(self, app: ASGIApp, hosts: frozenset[str], linger_seconds: float):
        self._app = app
        self._hosts = hosts
        self._linger_seconds = linger_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(SECURITY_HEADERS)
            await send(message)

        reason = self._refuse(Headers(scope=scope))
        app = Refusal(403, reason, self._linger_seconds) if reason else self._app
        await app(scope, receive, send_with_headers)

    def _refuse(self, headers: Headers) -> str:
        """Why a request is refused; blank where it is not."""
        host = headers.get("host", "").lower()
        if self._hosts and host not in self._hosts:
            return "Open the page at the address that it printed when it was started."
        for origin in headers.getlist("origin"):
            if origin.lower() not in (f"http://{host}", f"https://{host}"):
                return "Another site's page may not ask here."
        return ""
