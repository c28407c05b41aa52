"""Pages for signing in and out, for the own password, and for the accounts of others."""

import logging
from typing import Final

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from pipeline.console.accounts import AccountError, AccountRow, Accounts, TooManyAttempts
from pipeline.console.guard import HostPolicy, audit, local_path
from pipeline.console.responses import render
from pipeline.console.roles import ROLES, Action, requires

SEE_OTHER: Final = 303


def _accounts(request: Request) -> Accounts:
    accounts: Accounts = request.app.state.parts.accounts
    return accounts


def _field(request: Request, name: str) -> str:
    return str(request.state.form.get(name, ""))


@requires(Action.PUBLIC)
def login(request: Request) -> Response:
    """Show the form of names and passwords."""
    return _login_page(request, local_path(request.query_params.get("next")))


@requires(Action.PUBLIC)
def sign_in(request: Request) -> Response:
    """Begin a session for a name and a password."""
    after, name = local_path(_field(request, "next")), _field(request, "name")
    client = request.client.host if request.client else ""
    try:
        row = _accounts(request).verified(name, _field(request, "password"), client)
    except TooManyAttempts as error:
        audit(request.scope, "refused", status=429, reason="too many attempts to sign in")
        return _login_page(request, after, str(error), 429)
    if row is None:
        audit(request.scope, "refused", status=403, reason="wrong name or password")
        return _login_page(request, after, "Name or password is wrong: try again, or ask for a link.", 403)
    return _signed_in(request, row, after)


def _login_page(request: Request, after: str, error: str = "", status: int = 200) -> Response:
    return render(request, "login.html.jinja", {"next": after, "error": error, "link": None}, status)


def _signed_in(request: Request, row: AccountRow, after: str) -> Response:
    """Begin a session with a token of its own, whatever cookie the browser had before."""
    accounts, hosts = _accounts(request), request.app.state.hosts
    if request.state.token is not None:
        accounts.end_session(request.state.token)
    token = accounts.begin_session(row.name, request.headers.get("user-agent", ""))
    audit(request.scope, "signed in", logging.INFO, name=row.name, role=row.role)
    response = RedirectResponse(after, SEE_OTHER)
    _set_cookie(response, hosts, token)
    return response


def _set_cookie(response: Response, hosts: HostPolicy, token: str | None) -> None:
    """Set the cookie of a session; None for its end."""
    response.set_cookie(
        hosts.cookie, token or "", 0 if token is None else None, secure=hosts.secure, httponly=True, samesite="strict"
    )


@requires(Action.PUBLIC)
def show_link(request: Request) -> Response:
    """Show what a one-time link does; programs that look at links do not use it up."""
    token = request.path_params["token"]
    if (link := _accounts(request).find_link(token)) is None:
        return _refused_link(request)
    return render(request, "login.html.jinja", {"next": "/", "error": "", "link": link})


@requires(Action.PUBLIC)
def use_link(request: Request) -> Response:
    """Begin a session by a one-time link, which it uses up."""
    if (row := _accounts(request).use_link(request.path_params["token"])) is None:
        return _refused_link(request)
    return _signed_in(request, row, "/")


def _refused_link(request: Request) -> Response:
    audit(request.scope, "refused", status=403, reason="the link does not work")
    text = "This link has been used, or is too old: ask for another one (`fraud-pipeline console link`)."
    return _login_page(request, "/", text, 403)


@requires(Action.SESSION)
def sign_out(request: Request) -> Response:
    """End the session."""
    _accounts(request).end_session(request.state.token)
    audit(request.scope, "signed out", logging.INFO)
    response = RedirectResponse("/login", SEE_OTHER)
    _set_cookie(response, request.app.state.hosts, None)
    return response


@requires(Action.SESSION)
def own_account(request: Request) -> Response:
    """Show the form of the own password."""
    return _accounts_page(request, own=True)


@requires(Action.SESSION)
def change_password(request: Request) -> Response:
    """Change the own password; every session of the account ends, and this browser gets another one."""
    accounts, name = _accounts(request), request.state.account.name
    if _field(request, "password") != _field(request, "again"):
        return _accounts_page(request, own=True, error="The two passwords differ: type them again.", status=400)
    row = accounts.account(name)
    # What others try from this address keeps nobody who has signed in from a change.
    subject = f"session of {name}"
    try:
        if row is None or (row.has_password and accounts.verified(name, _field(request, "current"), subject) is None):
            audit(request.scope, "refused", status=403, reason="wrong password")
            return _accounts_page(request, own=True, error="Your present password is wrong: type it again.", status=403)
        accounts.set_password(name, _field(request, "password"))
    except AccountError as error:
        return _accounts_page(request, own=True, error=str(error), status=400)
    audit(request.scope, "password changed", logging.INFO)
    return _signed_in(request, row, "/")


@requires(Action.ACCOUNTS)
def list_accounts(request: Request) -> Response:
    """Show all accounts."""
    return _accounts_page(request)


@requires(Action.ACCOUNTS)
def change_account(request: Request) -> Response:
    """Make a link for an account, give it another role, disable or enable it."""
    accounts, token = _accounts(request), None
    step, name, role = (_field(request, field) for field in ("step", "name", "role"))
    if role not in ROLES or step not in ("link", "role", "disable", "enable"):
        raise HTTPException(400, f"Choose a change, and a role of {', '.join(ROLES)}.")
    if name == request.state.account.name:
        return _accounts_page(request, error="Somebody else changes your own account: ask them.", status=400)
    try:
        if step == "link":
            token = accounts.link(role, name)
        elif step == "role":
            accounts.set_role(name, role)
        else:
            accounts.set_disabled(name, step == "disable")
    except AccountError as error:
        return _accounts_page(request, error=str(error), status=400)
    audit(request.scope, "account changed", logging.INFO, step=step, name=name, role=role)
    return _accounts_page(request, link=None if token is None else str(request.url_for("link", token=token)))


def _accounts_page(
    request: Request, own: bool = False, error: str = "", link: str | None = None, status: int = 200
) -> Response:
    account, rows = request.state.account, _accounts(request).rows()
    context = {
        "rows": None if own else rows,
        "roles": ROLES,
        "has_password": any(row.has_password for row in rows if row.name == account.name),
        "error": error,
        "link": link,
    }
    return render(request, "accounts.html.jinja", context, status)


ROUTES: Final = [
    Route("/login", login, methods=["GET"]),
    Route("/login", sign_in, methods=["POST"]),
    Route("/link/{token}", show_link, methods=["GET"], name="link"),
    Route("/link/{token}", use_link, methods=["POST"]),
    Route("/logout", sign_out, methods=["POST"]),
    Route("/account", own_account, methods=["GET"]),
    Route("/account", change_password, methods=["POST"]),
    Route("/accounts", list_accounts, methods=["GET"]),
    Route("/accounts", change_account, methods=["POST"]),
]
