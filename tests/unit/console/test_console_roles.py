"""Roles: every route of the console with every role, and without a session."""

from collections.abc import Iterator
from pathlib import Path
from typing import Final, get_args

import pytest
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route

from pipeline.console import app
from pipeline.console.app import make_app
from pipeline.console.options import ConsoleError, ConsoleOptions
from pipeline.console.roles import ACTIONS_OF_ROLES, ROLES, Action, Role, allowed
from tests.helpers.consoles import Client, RunningConsole, stand_in_parts

EVERYBODY: Final = frozenset(ROLES)
READERS: Final = frozenset({"analyst", "supervisor", "auditor"})
WORKERS: Final = frozenset({"analyst", "supervisor"})
SUPERVISOR: Final = frozenset({"supervisor"})
ACTIONS: Final = {
    Action.SESSION: EVERYBODY,
    Action.STATUS: EVERYBODY,
    Action.QUEUE: READERS,
    Action.CASE: READERS,
    Action.EXPORT: READERS,
    Action.CLAIM: WORKERS,
    Action.LABEL: WORKERS,
    Action.SNOOZE: WORKERS,
    Action.NOTE: WORKERS,
    Action.WITHDRAW: WORKERS,
    Action.WITHDRAW_OTHERS: SUPERVISOR,
    Action.REOPEN: SUPERVISOR,
    Action.CLOSE: SUPERVISOR,
    Action.ACCOUNTS: SUPERVISOR,
}
"""The roles that may do an action."""
ROUTES: Final = {
    "GET /": READERS,
    "GET /queue": READERS,
    "GET /queue.csv": READERS,
    "POST /next": WORKERS,
    "POST /close": SUPERVISOR,
    "GET /cases/{case_id:identifier}": READERS,
    "GET /cases/{case_id:identifier}/export.html": READERS,
    "GET /cases/{case_id:identifier}/learned": READERS,
    "POST /cases/{case_id:identifier}/claim": WORKERS,
    "POST /cases/{case_id:identifier}/label": WORKERS,
    "POST /cases/{case_id:identifier}/snooze": WORKERS,
    "POST /cases/{case_id:identifier}/note": WORKERS,
    "POST /cases/{case_id:identifier}/undo": WORKERS,
    "POST /cases/{case_id:identifier}/reopen": SUPERVISOR,
    "GET /status": EVERYBODY,
    "GET /events": EVERYBODY,
    "GET /account": EVERYBODY,
    "POST /account": EVERYBODY,
    "GET /accounts": SUPERVISOR,
    "POST /accounts": SUPERVISOR,
    "POST /logout": EVERYBODY,
    "GET /login": None,
    "POST /login": None,
    "GET /link/{token}": None,
    "POST /link/{token}": None,
    "GET /healthz": None,
}
"""The roles that a route answers; None for all, and without a session."""


@pytest.fixture(scope="module")
def clients(console: RunningConsole) -> dict[Role, Client]:
    return {role: console.signed_in(role) for role in ROLES}


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("action", ACTIONS)
def test_a_role_may_do_what_the_contract_says(clients: dict[Role, Client], action: Action, role: Role) -> None:
    path = f"/stand-in/{action.name}"
    expected = 200 if role in ACTIONS[action] else 403
    assert [clients[role].get(path).status, clients[role].post(path).status] == [expected] * 2
    assert allowed(role, action) == (role in ACTIONS[action])


@pytest.mark.parametrize("action", ACTIONS)
def test_without_a_session_nothing_is_done(console: RunningConsole, action: Action) -> None:
    client, path = console.client(), f"/stand-in/{action.name}"
    assert [client.get(path).status, client.post(path).status] == [303, 303]
    assert client.get("/stand-in/PUBLIC").status == 200


def test_every_action_and_role_is_declared() -> None:
    assert ACTIONS.keys() | {Action.PUBLIC} == set(Action)
    assert tuple(ACTIONS_OF_ROLES) == ROLES == get_args(Role)


def own_routes() -> Iterator[tuple[str, Action]]:
    """Yield each route of the console, without stand-ins."""
    for route in app.page_routes():
        assert isinstance(route, Route)
        for method in (route.methods or set()) - {"HEAD"}:
            yield f"{method} {route.path}", route.endpoint.action


@pytest.mark.parametrize(("route", "action"), list(own_routes()))
def test_a_route_answers_the_roles_of_the_contract(route: str, action: Action) -> None:
    expected = ROUTES[route]
    if expected is None:
        assert action is Action.PUBLIC
    else:
        assert action is not Action.PUBLIC
        assert {role for role in ROLES if allowed(role, action)} == expected


def test_every_route_of_the_contract_exists() -> None:
    assert dict(own_routes()).keys() == ROUTES.keys()


def test_a_route_without_an_action_is_an_error_at_the_start(tmp_path: Path) -> None:
    def open_to_all(request: Request) -> PlainTextResponse:
        return PlainTextResponse("secret")

    parts = stand_in_parts(tmp_path)
    for route in (Route("/open", open_to_all), Mount("/more", routes=[Route("/open", open_to_all)])):
        with pytest.raises(ConsoleError, match="declares no action"):
            make_app(parts, ConsoleOptions(), [route])
    parts.accounts.close()
