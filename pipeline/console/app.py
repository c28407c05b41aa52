"""The console as an ASGI application: its parts, its routes, its errors, and the events that its pages hear."""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from functools import cache
from http import HTTPStatus
from itertools import islice
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import quote, urlsplit

from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.templating import Jinja2Templates

from pipeline.console import account_pages, case_pages, queue_pages
from pipeline.console.accounts import Accounts, SessionEnded
from pipeline.console.actions import CaseActions
from pipeline.console.explanation import Explainer
from pipeline.console.guard import SECURITY_HEADERS, Guard, Refusal, audit, local_path
from pipeline.console.options import ConsoleError, ConsoleOptions
from pipeline.console.reader import TopicsReader
from pipeline.console.responses import render
from pipeline.console.roles import Action, allowed, requires
from pipeline.console.status import ClusterView
from pipeline.console.store import CaseStore
from pipeline.observability.error_text import explained
from pipeline.settings import Settings

STATIC: Final = Path(__file__).with_name("static")
CHANGES_INTERVAL_S: Final = 0.25
"""Seconds between two messages of changed cases to a page."""
STATUS_INTERVAL_S: Final = 1.0
IDS_A_MESSAGE: Final = 1_000
_RETRY: Final = "retry: 2000\n\n"


class Changes:
    """Tells any number of pages which cases have changed; a slow one hears of all of them, later."""

    def __init__(self) -> None:
        self._listeners: dict[asyncio.Event, dict[str, None]] = {}
        """Cases that a page has not heard of yet, by the event that wakes it."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self.closed = False

    def begin(self) -> None:
        """Take the running loop, in which pages listen."""
        self._loop = asyncio.get_running_loop()

    def publish(self, case_ids: Iterable[str]) -> None:
        """Report changed cases, from any thread; nobody listens before the server has begun."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._wake, dict.fromkeys(case_ids))

    def _wake(self, case_ids: dict[str, None]) -> None:
        for woken, pending in self._listeners.items():
            pending.update(case_ids)
            woken.set()

    def close(self) -> None:
        """End all streams of events, which a server that stops would wait for; called in the loop."""
        self.closed = True
        self._wake({})

    async def events(self, with_cases: bool, is_valid: Callable[[], bool]) -> AsyncIterator[str]:
        """Yield server-sent events until closed.

        Args:
            with_cases: Whether the page may know of cases; if not, it only gets the events of the status line.
            is_valid: Returns whether the page's session lasts; the events end with it.
        """
        woken, pending, status_s = asyncio.Event(), dict[str, None](), float("-inf")
        self._listeners[woken] = pending
        try:
            yield _RETRY
            while not self.closed and is_valid():
                changed = list(islice(pending, IDS_A_MESSAGE))
                for case_id in changed:
                    del pending[case_id]
                if not pending:
                    woken.clear()
                if changed and with_cases:
                    yield f"event: cases\ndata: {json.dumps(changed)}\n\n"
                now_s = asyncio.get_running_loop().time()
                if now_s - status_s >= STATUS_INTERVAL_S:
                    status_s = now_s
                    yield "event: status\ndata: {}\n\n"
                # Changes of this time come together.
                await asyncio.sleep(CHANGES_INTERVAL_S)
                with suppress(TimeoutError):
                    async with asyncio.timeout_at(status_s + STATUS_INTERVAL_S):
                        await woken.wait()
        finally:
            del self._listeners[woken]


class Parts(NamedTuple):
    """Everything that pages need; a route finds it as ``request.app.state.parts``."""

    settings: Settings
    store: CaseStore
    actions: CaseActions
    explainer: Explainer
    status: ClusterView
    accounts: Accounts
    changes: Changes
    reader: TopicsReader | None = None


@requires(Action.PUBLIC)
def healthz(request: Request) -> Response:
    """Answer whether the topics are followed."""
    parts: Parts = request.app.state.parts
    fails = parts.status.figures().failure or (parts.reader is not None and parts.reader.failure_text)
    return PlainTextResponse("the topics cannot be followed\n" if fails else "ok\n", 503 if fails else 200)


@requires(Action.SESSION)
async def events(request: Request) -> Response:
    """Stream what changes, as server-sent events."""
    parts: Parts = request.app.state.parts

    def is_valid() -> bool:
        try:
            return parts.accounts.session(request.state.token, None, active=False) is not None
        except SessionEnded as ended:
            audit(request.scope, "session ended", reason=str(ended))
            return False

    stream = parts.changes.events(allowed(request.state.account.role, Action.QUEUE), is_valid)
    return StreamingResponse(stream, media_type="text/event-stream")


def page_routes() -> list[BaseRoute]:
    """Return the routes of all pages."""
    own = [Route("/healthz", healthz), Route("/events", events)]
    return [*own, *account_pages.ROUTES, *queue_pages.ROUTES, *case_pages.ROUTES]


def make_app(parts: Parts, options: ConsoleOptions, routes: Sequence[BaseRoute] = ()) -> Starlette:
    """Return the application.

    Args:
        parts: Everything that pages need.
        options: Its options; the port is the one that it listens on.
        routes: Routes of further pages.

    Raises:
        ConsoleError: A route declares no action, or options are unsafe.
    """
    hosts = options.hosts()
    routes = [*routes, *page_routes()]
    for route in routes:
        if not isinstance(getattr(getattr(route, "endpoint", None), "action", None), Action):
            raise ConsoleError(f"the route {getattr(route, 'path', route)} declares no action: decorate its endpoint")
    app = Starlette(
        routes=[*routes, Mount("/static", StaticFiles(directory=STATIC, check_dir=False))],
        middleware=[Middleware(Guard, accounts=parts.accounts, hosts=hosts, refused=_error_page)],
        exception_handlers={HTTPException: _http_error, Exception: _unexpected_error},
        lifespan=_lifespan,
    )
    app.router.redirect_slashes = False
    app.state.parts, app.state.hosts, app.state.templates = parts, hosts, _templates()
    return app


@asynccontextmanager
async def _lifespan(app: Starlette) -> AsyncIterator[None]:
    app.state.parts.changes.begin()
    yield


def _templates() -> Jinja2Templates:
    environment = Environment(
        loader=PackageLoader("pipeline.console", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["static"] = _static_address
    return Jinja2Templates(env=environment, context_processors=[_context])


@cache
def _static_address(name: str) -> str:
    """Return the address of a static file, which changes with its content."""
    return f"/static/{name}?v={hashlib.sha256((STATIC / name).read_bytes()).hexdigest()[:12]}"


def _context(request: Request) -> dict[str, Any]:
    """Return what all templates know: the account (None without a session), and what it may do."""
    account = request.state.account
    return {"account": account, "can": lambda action: account is not None and allowed(account.role, Action[action])}


# --- Errors ----------------------------------------------------------------------------------------------------------


async def _http_error(request: Request, error: Any) -> Response:
    """Answer an error that a route raises; without a session, with the way to the page for signing in."""
    if error.status_code in (401, 403):
        audit(request.scope, "refused", status=error.status_code, reason=error.detail)
    if error.status_code == 401:
        return _to_login(request)
    # Of the framework's own errors the text is but the name of their status.
    is_named = error.detail == HTTPStatus(error.status_code).phrase
    text = "There is no such page: go to the start." if is_named else error.detail
    return _error_page(request, Refusal(error.status_code, text, dict(error.headers or {})))


def _to_login(request: Request) -> Response:
    """Lead to the page for signing in, and back to where the form or the link was."""
    if request.headers.get("accept", "").startswith("text/event-stream"):
        return PlainTextResponse("Sign in first.\n", 401)
    if "hx-request" in request.headers:
        current = urlsplit(request.headers.get("hx-current-url", ""))
        wanted = current.path + (f"?{current.query}" if current.query else "")
        return PlainTextResponse("Sign in first.\n", 401, {"HX-Redirect": _login_address(wanted)})
    if (
        request.headers.get("sec-fetch-site") == "cross-site"
        and request.method == "GET"
        and request.state.token is None
    ):
        # Browsers hold the cookie back where another site has the link: once more from here, they send it.
        return _error_page(request, Refusal(200, "One moment.", {"Refresh": f"0; url={_page_address(request)}"}))
    return RedirectResponse(_login_address(_page_address(request)), 303)


def _login_address(wanted: str) -> str:
    return f"/login?next={quote(local_path(wanted), safe='/')}"


def _page_address(request: Request) -> str:
    """Return path and query of a page; of a form, those of the page that it stands on."""
    path = request.scope["raw_path"].decode("ascii")
    if request.method == "POST":
        return path.rpartition("/")[0] if path.startswith("/cases/") else "/"
    query = request.scope["query_string"].decode("ascii", "replace")
    return f"{path}?{query}" if query else path


def _error_page(request: Request, refusal: Refusal) -> Response:
    """Return the page of an error; for a request of a script on a page, its sentence alone."""
    if "hx-request" in request.headers:
        return PlainTextResponse(refusal.text, refusal.status, refusal.headers)
    return render(request, "error.html.jinja", {"text": refusal.text}, refusal.status, refusal.headers)


async def _unexpected_error(request: Request, error: Exception) -> Response:
    """Answer an error in one sentence; its traceback is in the log."""
    sentence = explained(error)
    text = f"{sentence}." if sentence else "This is an error of the console: please report it with what its log says."
    response = _error_page(request, Refusal(503 if sentence else 500, text))
    response.headers.update(SECURITY_HEADERS)
    return response
