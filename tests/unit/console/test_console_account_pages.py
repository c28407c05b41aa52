"""The pages of accounts: signing in and out, the own password, and what a supervisor changes."""

import re

import pytest

from tests.helpers.consoles import PASSWORD, Client, RunningConsole


@pytest.fixture
def supervisor(console: RunningConsole) -> Client:
    return console.signed_in("supervisor")


def test_a_link_is_shown_before_it_is_used(console: RunningConsole) -> None:
    client, path = console.client(), f"/link/{console.accounts.link('auditor', 'aud')}"
    for _ in range(3):
        page = client.get(path)
        assert page.status == 200
        assert "Sign in as aud" in page.text
        assert "set-cookie" not in page.headers
    assert client.request("HEAD", path).status == 200
    answer = client.post(path)
    assert (answer.status, answer.headers["location"]) == (303, "/")
    (cookie,) = answer.headers.get_all("set-cookie")
    assert {"HttpOnly", "Path=/", "SameSite=strict"} <= set(cookie.split("; "))
    assert "Domain" not in cookie
    assert "aud (auditor)" in client.get("/").text


def test_a_link_does_not_work_again(console: RunningConsole) -> None:
    path = f"/link/{console.accounts.link('auditor', 'aud')}"
    assert console.client().post(path).status == 303
    replayed = console.client()
    for answer in (replayed.post(path), replayed.get(path), replayed.get("/link/unknown")):
        assert answer.status == 403
        assert "ask for another one" in answer.text
    assert replayed.cookies == {}


def test_name_and_password_sign_in(console: RunningConsole) -> None:
    console.accounts.add("ina", "analyst", PASSWORD)
    client = console.client()
    wrong = client.post("/login", {"name": "ina", "password": "wrong"})
    assert (wrong.status, client.cookies) == (403, {})
    assert "Name or password is wrong" in wrong.text
    unknown = client.post("/login", {"name": "nobody", "password": "wrong"})
    assert (unknown.status, unknown.text) == (wrong.status, wrong.text)
    assert client.post("/login", {"name": "ina", "password": PASSWORD}).status == 303
    assert "ina (analyst)" in client.get("/").text


def test_too_many_attempts_are_answered_so(console: RunningConsole) -> None:
    client = console.client()
    answers = [client.post("/login", {"name": "guessed", "password": str(n)}).status for n in range(11)]
    assert answers == [403] * 10 + [429]


def test_signing_in_begins_another_session(console: RunningConsole) -> None:
    """A cookie that somebody planted does not become a session."""
    console.accounts.add("isa", "analyst", PASSWORD)
    client, name = console.client(), f"console-{console.port}"
    client.cookies[name] = "planted"
    assert client.post("/login", {"name": "isa", "password": PASSWORD}).status == 303
    first = client.cookies[name]
    assert first != "planted"
    assert client.post("/login", {"name": "isa", "password": PASSWORD}).status == 303
    earlier = console.client()
    earlier.cookies[name] = first
    assert earlier.get("/account").status == 303
    assert client.get("/account").status == 200


def test_signing_out_ends_the_session(console: RunningConsole, supervisor: Client) -> None:
    stolen = dict(supervisor.cookies)
    assert supervisor.get("/logout").status == 405
    answer = supervisor.post("/logout")
    assert (answer.status, answer.headers["location"]) == (303, "/login")
    assert "Max-Age=0" in answer.headers["set-cookie"]
    supervisor.cookies = stolen
    assert supervisor.get("/").status == 303


def test_a_password_is_set_and_changed(console: RunningConsole) -> None:
    client, other = console.signed_in("analyst", "uma"), console.signed_in("analyst", "uma")
    assert 'name="current"' not in client.get("/account").text
    new = {"password": PASSWORD, "again": PASSWORD}
    assert client.post("/account", new | {"again": "other"}).status == 400
    short = client.post("/account", {"password": "short", "again": "short"})
    assert (short.status, "12 to 1024 characters" in short.text) == (400, True)
    assert client.post("/account", new).status == 303
    assert other.get("/account").status == 303
    assert 'name="current"' in client.get("/account").text
    newer = {"password": PASSWORD + "2", "again": PASSWORD + "2"}
    assert client.post("/account", newer | {"current": "wrong"}).status == 403
    assert client.post("/account", newer | {"current": PASSWORD}).status == 303
    assert console.accounts.verified("uma", PASSWORD + "2", "::1") is not None


def test_what_others_guess_keeps_nobody_who_has_signed_in_from_a_new_password(console: RunningConsole) -> None:
    console.accounts.add("zoe", "analyst", PASSWORD)
    client = console.client()
    assert client.post("/login", {"name": "zoe", "password": PASSWORD}).status == 303
    client.get("/account")
    guessing = [console.client().post("/login", {"name": "zoe", "password": str(n)}).status for n in range(11)]
    assert guessing[-1] == 429
    newer = {"current": PASSWORD, "password": PASSWORD + "2", "again": PASSWORD + "2"}
    assert client.post("/account", newer).status == 303


def test_a_supervisor_changes_accounts(console: RunningConsole, supervisor: Client) -> None:
    page = supervisor.post("/accounts", {"step": "link", "name": "new", "role": "analyst"})
    (address,) = re.findall(r'value="http://127\.0\.0\.1:\d+(/link/[^"]+)"', page.text)
    client = console.client()
    assert client.post(address).status == 303
    assert supervisor.post("/accounts", {"step": "role", "name": "new", "role": "operator"}).status == 200
    assert "new (operator)" in client.get("/account").text
    assert supervisor.post("/accounts", {"step": "disable", "name": "new", "role": "operator"}).status == 200
    assert client.get("/account").status == 303
    assert "operator, disabled" in supervisor.get("/accounts").text
    assert supervisor.post("/accounts", {"step": "enable", "name": "new", "role": "operator"}).status == 200


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"step": "role", "name": "nobody", "role": "analyst"}, "no account nobody"),
        ({"step": "link", "name": "<b>", "role": "analyst"}, "the name of an account"),
        ({"step": "link", "name": "x", "role": "root"}, "Choose a change"),
        ({"step": "delete", "name": "x", "role": "analyst"}, "Choose a change"),
        ({"step": "disable", "name": "supervisor", "role": "analyst"}, "Somebody else changes your own account"),
    ],
)
def test_changes_that_cannot_be_made_are_explained(supervisor: Client, fields: dict[str, str], text: str) -> None:
    answer = supervisor.post("/accounts", fields)
    assert (answer.status, text in answer.text) == (400, True)
