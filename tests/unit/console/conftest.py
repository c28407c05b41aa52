"""Fixtures of the console: a running one with stand-in pages, and static files of its own."""

from collections.abc import Iterator
from functools import partial

import pytest
from argon2 import PasswordHasher
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from pipeline.console import accounts, app
from pipeline.console.roles import Action, requires
from tests.helpers.consoles import RunningConsole, served, stand_in_parts


def stand_in(action: Action) -> Route:
    """Return a route that takes GET and POST, and answers with what it was sent."""

    @requires(action)
    def endpoint(request: Request) -> Response:
        if "fail" in request.query_params:
            raise LookupError("4111111111111111")
        form = request.state.form
        return PlainTextResponse(f"{action.name} {sorted(form.multi_items())}")

    return Route(f"/stand-in/{action.name}", endpoint, methods=["GET", "POST"])


@requires(Action.QUEUE)
async def start_page(request: Request) -> Response:
    page: Response = request.app.state.templates.TemplateResponse(request, "error.html.jinja", {"text": "Start"})
    return page


@requires(Action.CASE)
async def case_page(request: Request) -> Response:
    text = f"Case {request.path_params['case_id']}"
    page: Response = request.app.state.templates.TemplateResponse(request, "error.html.jinja", {"text": text})
    return page


@requires(Action.NOTE)
async def note(request: Request) -> Response:
    return PlainTextResponse(str(request.state.form["text"]))


STAND_INS = [
    Route("/", start_page),
    Route("/queue", start_page),
    Route("/cases/{case_id:path}/note", note, methods=["POST"]),
    Route("/cases/{case_id:path}", case_page),
    *map(stand_in, Action),
]


@pytest.fixture(autouse=True, scope="session")
def _cheap_hashes() -> Iterator[None]:
    """Let passwords be hashed at once; one test looks at what a hash costs otherwise."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(accounts, "PasswordHasher", partial(PasswordHasher, time_cost=1, memory_cost=8, parallelism=1))
        yield


@pytest.fixture(scope="module")
def console(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningConsole]:
    """A console whose static files lie beside a file that is none."""
    directory = tmp_path_factory.mktemp("console")
    (directory / "secret.txt").write_text("secret")
    static = directory / "static"
    static.mkdir()
    for name in ("console.css", "console.js", "events.js", "htmx.min.js"):
        (static / name).write_text(f"/* {name} */")
    (static / "link.txt").symlink_to(directory / "secret.txt")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(app, "STATIC", static)
        with served(stand_in_parts(directory), routes=STAND_INS) as running:
            yield running
