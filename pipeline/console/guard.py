"""The checks that every request passes before its route: host, session, size, origin, CSRF and rate."""

import asyncio
import hmac
import json
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Collection
from typing import Any, Final, NamedTuple
from urllib.parse import parse_qsl, urlsplit

from starlette.datastructures import FormData, MutableHeaders
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipeline.console.accounts import Account, Accounts, SessionEnded

log = logging.getLogger(__name__)

MAX_BODY_BYTES: Final = 1024 * 1024
"""More than a page of the longest identifiers has, of the queue or of a case."""
MAX_FIELDS: Final = 2_000
BODY_TIMEOUT_S: Final = 10.0
RATE_PER_S: Final = 20.0
"""Unsafe requests a second that a session may make for long."""
BURST: Final = 60.0
"""Unsafe requests that it may make at once."""
_MOST_CLIENTS: Final = 10_000
"""Clients whose rates are kept; of more, those that were heard of last."""
_UNSAFE: Final = frozenset({"POST"})
_METHODS: Final = _UNSAFE | {"GET", "HEAD"}
_SIGN_IN: Final = ("/login", "/link/")
_FORM: Final = "application/x-www-form-urlencoded"
_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "worker-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
SECURITY_HEADERS: Final = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class HostPolicy(NamedTuple):
    """The names by which browsers reach the console, and how."""

    names: Collection[str]
    """Host names and addresses; ``*.`` before one stands for one more part."""
    secure: bool
    """True if pages come by TLS, from here or from a proxy."""
    port: int
    """Port that it listens on, which its cookie's name bears: cookies do not tell ports apart."""

    @property
    def cookie(self) -> str:
        """Name of the session's cookie."""
        return f"{'__Host-' if self.secure else ''}console-{self.port}"

    def knows(self, host: str) -> bool:
        """Return whether a Host header has one of the names; its port is not looked at."""
        try:
            name = (urlsplit(f"//{host}").hostname or "").rstrip(".")
        except ValueError:
            return False
        return name in self.names or f"*.{name.partition('.')[2]}" in self.names


class Refusal(NamedTuple):
    """A request that a check refuses."""

    status: int
    text: str
    """Sentence that says what to do."""
    headers: dict[str, str] | None = None


def audit(scope: Scope, event: str, level: int = logging.WARNING, **details: object) -> None:
    """Log who did what, or was refused, from where, in one line of JSON.

    Paths hold identifiers and tokens: the line has the route instead.
    """
    account = scope.get("state", {}).get("account")
    line = {
        "event": event,
        "account": account.name if account else None,
        "method": scope["method"],
        "route": _route_of(scope),
        "from": (scope.get("client") or ("unknown", 0))[0],
        **details,
    }
    log.log(level, "%s", json.dumps(line, ensure_ascii=False))


def _route_of(scope: Scope) -> str:
    routes: Collection[BaseRoute] = scope["app"].routes
    for wanted in (Match.FULL, Match.PARTIAL):
        for route in routes:
            if route.matches(scope)[0] is wanted:
                return str(getattr(route, "path", "unknown"))
    return "unknown"


class Guard:
    """ASGI middleware between a server and the routes of the console.

    A route finds ``account`` (None without a session), ``token`` and ``form`` in the state of its request, whose body
    has been read.

    Args:
        app: The routes.
        accounts: Knows the sessions.
        hosts: The names of the console.
        refused: Makes the page of a refusal.
    """

    def __init__(
        self, app: ASGIApp, accounts: Accounts, hosts: HostPolicy, refused: Callable[[Request, Refusal], Response]
    ) -> None:
        self._app, self._accounts, self._hosts, self._refused = app, accounts, hosts, refused
        self._rates = _Rates()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or hand it over to the routes."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = Request(scope, receive)
        scope["state"] = dict(scope.get("state", {}), account=None, token=None, form=FormData())
        answer = self._with_headers(scope, send)
        refusal = self._refusal_of_host(request)
        if refusal is None:
            self._find_session(request)
            if request.method not in _METHODS:
                refusal = Refusal(405, "The console has no such method.", {"Allow": "GET, HEAD, POST"})
            elif request.method in _UNSAFE:
                refusal = self._refusal_of_origin(request) or self._refusal_of_rate(request)
                if refusal is None:
                    body, refusal = await _read_body(request)
                    refusal = refusal or self._refusal_of_form(request, body)
        if refusal is None:
            await self._app(scope, receive, answer)
            return
        audit(scope, "refused", status=refusal.status, reason=refusal.text)
        await self._refused(request, refusal)(scope, receive, answer)

    def _with_headers(self, scope: Scope, send: Send) -> Send:
        async def sent(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(raw=message.setdefault("headers", []))
                for name, value in SECURITY_HEADERS.items():
                    headers.setdefault(name, value)
                if self._hosts.secure:
                    headers["Strict-Transport-Security"] = "max-age=31536000"
                if scope["path"].startswith("/static/") and message["status"] in (200, 304):
                    # The address of a static file has the digest of its content.
                    headers["Cache-Control"] = "public, max-age=31536000, immutable"
            await send(message)

        return sent

    def _refusal_of_host(self, request: Request) -> Refusal | None:
        if request.scope["path"] == "/healthz":
            # Asked by address, from whoever runs the process.
            return None
        hosts = request.headers.getlist("host")
        if len(hosts) != 1 or not hosts[0]:
            return Refusal(400, "The request names no host, or several.")
        if not self._hosts.knows(hosts[0]):
            return Refusal(421, "The console is not known by this host name: open it by its own address.")
        if self._hosts.secure and request.scope["scheme"] != "https":
            return Refusal(421, "The console is only to be had by https: open its address with https.")
        return None

    def _find_session(self, request: Request) -> None:
        token = request.cookies.get(self._hosts.cookie)
        if token is None:
            return
        # The shared worker of some browsers has another name than their pages; it hears which cases have changed.
        agent = None if request.scope["path"] == "/events" else request.headers.get("user-agent", "")
        # A page that lies open asks for what is new: that keeps no session.
        by_page = request.scope["path"] == "/events" or (request.method == "GET" and "hx-request" in request.headers)
        request.state.token = token
        try:
            request.state.account = self._accounts.session(token, agent, active=not by_page)
        except SessionEnded as ended:
            audit(request.scope, "session ended", reason=str(ended))

    def _refusal_of_origin(self, request: Request) -> Refusal | None:
        """Refuse what another site lets a browser send; what is no browser sends neither header."""
        site, origin = request.headers.get("sec-fetch-site"), request.headers.get("origin")
        own = f"{request.scope['scheme']}://{request.headers['host']}" if "host" in request.headers else ""
        foreign = origin not in (None, own) if site is None else site not in ("same-origin", "none")
        return Refusal(403, "Another site has sent this form: use the console's own pages.") if foreign else None

    def _refusal_of_rate(self, request: Request) -> Refusal | None:
        account, client = request.state.account, request.client
        subject = f"session {request.state.token}" if account else f"address {client.host if client else ''}"
        if self._rates.take(subject):
            return None
        return Refusal(429, "These are too many actions at a time: wait a second.", {"Retry-After": "1"})

    def _refusal_of_form(self, request: Request, body: bytes) -> Refusal | None:
        kind = request.headers.get("content-type", _FORM).partition(";")[0].strip().lower()
        if kind != _FORM:
            return Refusal(415, "The console takes forms of its own pages only.")
        if body.count(b"&") >= MAX_FIELDS:
            return Refusal(400, f"The form has more than {MAX_FIELDS:,} fields: tick less, and send it in parts.")
        try:
            fields = parse_qsl(body.decode(), keep_blank_values=True, errors="strict")
        except ValueError:
            return Refusal(400, "The form cannot be read: send it anew from its page.")
        request.state.form = FormData(list(fields))
        account: Account | None = request.state.account
        if account is None or request.scope["path"].startswith(_SIGN_IN):
            # Routes that need a session refuse it; signing in begins another one.
            return None
        given = request.headers.get("x-csrf-token") or request.state.form.get("csrf", "")
        if hmac.compare_digest(str(given).encode(), account.csrf.encode()):
            return None
        # A page of a session that has ended loads anew, and brings its draft back.
        return Refusal(403, "The form is of another session: load its page anew.", {"HX-Refresh": "true"})


async def _read_body(request: Request) -> tuple[bytes, Refusal | None]:
    """Return a body, or why it is refused: it is too large, or takes too long."""
    text = f"The form is larger than {MAX_BODY_BYTES // 1024} KiB: shorten it."
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            async for part in request.stream():
                body += part
                if len(body) > MAX_BODY_BYTES:
                    return b"", Refusal(413, text, {"Connection": "close"})
    except TimeoutError:
        return b"", Refusal(408, "The form took too long: send it anew.", {"Connection": "close"})
    return bytes(body), None


class _Rates:
    """A bucket of requests a client, which fills by `RATE_PER_S` up to `BURST`."""

    def __init__(self) -> None:
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()
        """Requests left, and when, by client; the one that was heard of last stands last."""

    def take(self, client: str) -> bool:
        """Take a request out of the bucket of a client; False where it is empty."""
        now_s = time.monotonic()
        left, at_s = self._buckets.pop(client, (BURST, now_s))
        left = min(BURST, left + (now_s - at_s) * RATE_PER_S)
        self._buckets[client] = (max(left - 1, left if left < 1 else 0.0), now_s)
        if len(self._buckets) > _MOST_CLIENTS:
            self._buckets.popitem(last=False)
        return left >= 1


def local_path(address: Any) -> str:
    """Return a path of the console, for where to go after signing in; ``/`` for anything else.

    >>> local_path("/cases/a%20b?x=1"), local_path("//other.example/"), local_path("https://other.example/")
    ('/cases/a%20b?x=1', '/', '/')
    """
    text = str(address or "")
    local = text.startswith("/") and not text.startswith("//") and "\\" not in text
    return text if local and text.isascii() and text.isprintable() and " " not in text else "/"
