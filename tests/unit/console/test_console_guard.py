"""The checks of each request: everything that is refused changes nothing, and is logged without secrets."""

import json
import logging
import re
import socket
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import quote, urlencode

import pytest

from pipeline.commands import console as console_command
from pipeline.console import guard
from pipeline.console.guard import BURST, MAX_BODY_BYTES, MAX_FIELDS, local_path
from pipeline.console.queries import ALERTS_SHOWN, TIMELINE
from pipeline.console.queue_pages import PAGE_ROWS
from tests.helpers.consoles import PASSWORD, Client, RunningConsole, served, stand_in_parts
from tests.helpers.waiting import TIMEOUT_S, eventually


@pytest.fixture(autouse=True)
def _logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "pipeline.console")


@pytest.fixture(autouse=True, scope="module")
def _ida(console: RunningConsole) -> None:
    console.accounts.add("ida", "analyst", PASSWORD)


def lines(caplog: pytest.LogCaptureFixture) -> list[dict[str, object]]:
    return [json.loads(record.getMessage()) for record in caplog.records if record.name == guard.log.name]


def refused(caplog: pytest.LogCaptureFixture) -> list[tuple[object, object, object]]:
    return [(line["status"], line["account"], line["route"]) for line in lines(caplog) if line["event"] == "refused"]


def raw(console: RunningConsole, text: str | bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", console.port)) as connection:
        connection.sendall(text if isinstance(text, bytes) else text.encode())
        parts = []
        while part := connection.recv(65_536):
            parts.append(part)
    return b"".join(parts)


def test_pages_bear_the_headers_of_security(console: RunningConsole) -> None:
    client = console.signed_in("analyst")
    for path in ("/", "/login", "/nothing", "/stand-in/CLOSE", "/stand-in/CASE?fail"):
        headers = client.get(path).headers
        policy = headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:;")
        assert "unsafe" not in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["cross-origin-opener-policy"] == "same-origin"
        assert headers["cache-control"] == "no-store"
        assert "server" not in headers
        assert "strict-transport-security" not in headers


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "localhost@evil.example:80", "0.0.0.0", "[::1", "a b", "xn--a"]
)
def test_a_foreign_host_name_gets_nothing(console: RunningConsole, caplog: pytest.LogCaptureFixture, host: str) -> None:
    client = console.signed_in("analyst")
    answer = client.get("/", Host=host)
    assert (answer.status, "Start" in answer.text) == (421, False)
    assert host not in answer.text
    assert refused(caplog) == [(421, None, "/")]


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1:9", "[::1]:8400", "localhost."])
def test_names_of_this_machine_are_known(console: RunningConsole, host: str) -> None:
    assert console.client().get("/login", Host=host).status == 200


def test_a_request_names_one_host(console: RunningConsole) -> None:
    assert raw(console, "GET /login HTTP/1.1\r\nConnection: close\r\n\r\n").startswith(b"HTTP/1.1 400")
    assert raw(console, "GET /login HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.1 400")
    two = "GET /login HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\nConnection: close\r\n\r\n"
    assert raw(console, two).startswith(b"HTTP/1.1 400")


def test_health_is_asked_by_address(console: RunningConsole) -> None:
    answer = console.client().get("/healthz", Host="10.1.2.3:8400")
    assert (answer.status, answer.text) == (200, "ok\n")


@pytest.mark.parametrize(
    "changes",
    [
        {"csrf": ""},
        {"csrf": "wrong"},
        {"csrf": "ü"},
    ],
)
def test_a_form_needs_the_secret_of_its_session(
    console: RunningConsole, caplog: pytest.LogCaptureFixture, changes: dict[str, str]
) -> None:
    client = console.signed_in("analyst")
    answer = client.post("/stand-in/LABEL", changes)
    assert (answer.status, answer.headers["hx-refresh"]) == (403, "true")
    assert refused(caplog) == [(403, "analyst", "/stand-in/LABEL")]
    assert client.post("/stand-in/LABEL").status == 200
    assert client.post("/stand-in/LABEL", {"csrf": ""}, X_CSRF_Token=client.csrf).status == 200


def test_the_secret_of_another_session_does_not_count(console: RunningConsole) -> None:
    client, other = console.signed_in("analyst", "ana"), console.signed_in("analyst", "bob")
    assert client.csrf != other.csrf
    assert client.post("/stand-in/LABEL", {"csrf": other.csrf}).status == 403


@pytest.mark.parametrize(
    "headers",
    [
        {"Sec_Fetch_Site": "cross-site"},
        {"Sec_Fetch_Site": "same-site"},
        {"Sec_Fetch_Site": None, "Origin": "https://evil.example"},
        {"Sec_Fetch_Site": None, "Origin": "null"},
        {"Sec_Fetch_Site": None, "Origin": "http://127.0.0.1:1"},
    ],
)
def test_a_form_of_another_site_is_refused(console: RunningConsole, headers: dict[str, str | None]) -> None:
    client = console.signed_in("analyst")
    assert client.post("/stand-in/LABEL", None, **headers).status == 403
    token = console.accounts.link("analyst", "eve")
    assert console.client().post(f"/link/{token}", None, **headers).status == 403
    assert console.accounts.find_link(token) is not None


def test_a_form_of_ones_own_needs_no_header_of_newer_browsers(console: RunningConsole) -> None:
    client = console.signed_in("analyst")
    own = f"http://127.0.0.1:{console.port}"
    assert client.post("/stand-in/LABEL", None, Sec_Fetch_Site=None, Origin=own).status == 200
    assert client.post("/stand-in/LABEL", None, Sec_Fetch_Site=None).status == 200


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "get"])
def test_other_methods_are_refused(console: RunningConsole, method: str) -> None:
    assert console.signed_in("supervisor").request(method, "/stand-in/CLOSE").status == 405


def test_a_stolen_cookie_ends_its_session(console: RunningConsole, caplog: pytest.LogCaptureFixture) -> None:
    client, thief = console.signed_in("supervisor"), console.client("another browser")
    thief.cookies = dict(client.cookies)
    answer = thief.get("/")
    assert (answer.status, answer.headers["location"]) == (303, "/login?next=/")
    assert client.get("/").status == 303
    (ended,) = [line for line in lines(caplog) if line["event"] == "session ended"]
    assert ended["reason"] == "the session of supervisor was used by another browser"
    assert ended["from"] == "127.0.0.1"


def test_the_log_has_no_cookie_token_or_identifier(console: RunningConsole, caplog: pytest.LogCaptureFixture) -> None:
    client = console.signed_in("auditor")
    client.post(f"/cases/{quote('4111111111111111', safe='')}/note", {"text": "secret note"})
    client.get("/?q=4111111111111111")
    token = console.accounts.link("analyst", "ana")
    for _ in range(2):
        console.client().post(f"/link/{token}")
    (session,) = client.cookies.values()
    assert refused(caplog) == [(403, "auditor", "/cases/{case_id:path}/note"), (403, None, "/link/{token}")]
    assert [
        secret for secret in (session, client.csrf, token, "4111111111111111", "secret note") if secret in caplog.text
    ] == []


def test_a_body_is_bounded_while_it_is_read(console: RunningConsole, caplog: pytest.LogCaptureFixture) -> None:
    client = console.signed_in("analyst")
    room = MAX_BODY_BYTES - len(f"csrf={client.csrf}&text=")
    assert client.post("/cases/c/note", {"text": "x" * room}).status == 200
    assert client.post("/cases/c/note", {"text": "x" * (room + 1)}).status == 413
    head = f"POST /cases/c/note HTTP/1.1\r\nHost: localhost\r\nCookie: {client.headers()['Cookie']}\r\n"
    head += f"User-Agent: {client.agent}\r\nTransfer-Encoding: chunked\r\n\r\n"
    # Without its end: who sends for ever is cut off.
    chunks = b"".join(b"8000\r\n" + b"x" * 0x8000 + b"\r\n" for _ in range(MAX_BODY_BYTES // 0x8000 + 1))
    assert raw(console, head.encode() + chunks).startswith(b"HTTP/1.1 413")
    assert [status for status, *_ in refused(caplog)] == [413, 413]


def test_a_slow_body_is_cut_off(console: RunningConsole, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "BODY_TIMEOUT_S", 0.2)
    head = "POST /login HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\nname="
    assert raw(console, head).startswith(b"HTTP/1.1 408")


@pytest.mark.parametrize(
    ("kind", "body", "status"),
    [
        ("multipart/form-data; boundary=x", b"--x--", 415),
        ("application/json", b"{}", 415),
        ("text/plain", b"csrf=x", 415),
        ("application/x-www-form-urlencoded", b"name=%FF", 400),
        ("application/x-www-form-urlencoded", b"name=\xff", 400),
        ("application/x-www-form-urlencoded", b"a=&" * 3_000, 400),
    ],
)
def test_only_forms_are_taken(console: RunningConsole, kind: str, body: bytes, status: int) -> None:
    assert console.client().request("POST", "/login", body, Content_Type=kind).status == status


def test_actions_are_limited_a_session(console: RunningConsole, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "RATE_PER_S", 0.0)
    client, other = console.signed_in("analyst", "ana"), console.signed_in("analyst", "bob")
    statuses = [client.post("/stand-in/LABEL").status for _ in range(int(BURST) + 2)]
    assert statuses == [200] * int(BURST) + [429] * 2
    assert client.get("/").status == 200
    assert other.post("/stand-in/LABEL").status == 200
    monkeypatch.setattr(guard, "RATE_PER_S", 1e6)
    assert client.post("/stand-in/LABEL").status == 200


def test_an_endpoint_reads_the_form_either_way(console: RunningConsole) -> None:
    client = console.signed_in("analyst")
    assert client.post("/cases/a%2Fb/note", {"text": "<b>ü</b>"}).text == "<b>ü</b>"
    assert (
        "('ticked', '1'), ('ticked', '2')"
        in client.request(
            "POST",
            "/stand-in/LABEL",
            f"csrf={client.csrf}&ticked=1&ticked=2",
            Content_Type="application/x-www-form-urlencoded",
        ).text
    )


MARKUP = "<script>alert(1)</script>\"'&{{ 7*7 }}"


def test_markup_in_an_address_is_text(console: RunningConsole) -> None:
    client = console.signed_in("analyst")
    for path in (f"/cases/{quote(MARKUP, safe='')}", f"/login?next={quote('/' + MARKUP, safe='')}"):
        text = client.get(path).text
        assert "<script>alert" not in text
        assert "49" not in text
    page = client.get(f"/cases/{quote(MARKUP, safe='')}").text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;&#34;&#39;&amp;{{ 7*7 }}" in page
    sent = {"name": MARKUP, "password": MARKUP, "next": MARKUP}
    assert "<script>alert" not in console.client().post("/login", sent).text


@pytest.mark.parametrize(
    "wanted",
    [
        "https://evil.example/",
        "//evil.example/",
        "/\\evil.example/",
        "\\\\evil.example/",
        "/\t/evil.example/",
        "/ /evil.example",
        "javascript:alert(1)",
        "evil.example",
        "/\r\nSet-Cookie: console=x",
        "/\x00",
        "",
    ],
)
def test_signing_in_leads_to_no_other_site(console: RunningConsole, wanted: str) -> None:
    assert local_path(wanted) == "/"
    client = console.client()
    assert f'name="next" value="{"/"}"' in client.get(f"/login?next={quote(wanted)}").text
    answer = client.post("/login", {"name": "ida", "password": PASSWORD, "next": wanted})
    assert (answer.status, answer.headers["location"]) == (303, "/")
    assert len(answer.headers.get_all("set-cookie")) == 1


def test_signing_in_leads_back(console: RunningConsole) -> None:
    client = console.client()
    wanted = "/cases/a%2Fb%20%3Cb%3E?x=1&y=2"
    login = client.get(wanted).headers["location"]
    form = client.get(login).text
    (after,) = re.findall('name="next" value="([^"]+)"', form)
    answer = client.post("/login", {"name": "ida", "password": PASSWORD, "next": after.replace("&amp;", "&")})
    assert (answer.status, answer.headers["location"]) == (303, wanted)


def test_a_script_of_a_page_is_led_to_sign_in_and_back(console: RunningConsole) -> None:
    client = console.client()
    current = "http://127.0.0.1:8400/cases/a%2Fb?x=1"
    answer = client.post("/cases/a%2Fb/note", None, HX_Request="true", HX_Current_URL=current)
    assert (answer.status, answer.headers["hx-redirect"]) == (401, "/login?next=/cases/a%252Fb%3Fx%3D1")
    foreign = client.get("/", HX_Request="true", HX_Current_URL="https://evil.example//evil.example/")
    assert foreign.headers["hx-redirect"] == "/login?next=/"
    assert client.post("/cases/a%2Fb/note").headers["location"] == "/login?next=/cases/a%252Fb"
    assert client.post("/stand-in/NOTE").headers["location"] == "/login?next=/"
    assert client.get("/events", Accept="text/event-stream").status == 401


def test_a_link_of_another_site_is_followed_once_more_from_here(console: RunningConsole) -> None:
    client = console.client()
    answer = client.get("/cases/a%20b?x=1", Sec_Fetch_Site="cross-site")
    assert (answer.status, answer.headers["refresh"]) == (200, "0; url=/cases/a%20b?x=1")
    assert client.get("/cases/a%20b?x=1", Sec_Fetch_Site="same-origin").status == 303


@pytest.mark.parametrize(
    "path",
    [
        "/static/../secret.txt",
        "/static/%2e%2e/secret.txt",
        "/static/..%2fsecret.txt",
        "/static/..%5csecret.txt",
        "/static//etc/passwd",
        "/static/%2fetc/passwd",
        "/static/link.txt",
        "/static/",
        "/static",
        "/static/.",
        "/static/console.css%00",
        "//evil.example/static/console.css",
    ],
)
def test_static_files_are_all_that_is_served(console: RunningConsole, path: str) -> None:
    answer = console.signed_in("supervisor").get(path)
    assert answer.status in (404, 405), answer.text
    assert "secret" not in answer.text
    assert "root:" not in answer.text


def test_a_static_file_is_kept_as_long_as_its_address(console: RunningConsole) -> None:
    page = console.signed_in("analyst").get("/").text
    (address,) = re.findall(r'href="(/static/console\.css\?v=[0-9a-f]{12})"', page)
    answer = console.client().get(address)
    assert (answer.status, answer.text) == (200, "/* console.css */")
    assert answer.headers["cache-control"] == "public, max-age=31536000, immutable"


def test_an_error_of_the_program_is_a_sentence(console: RunningConsole, caplog: pytest.LogCaptureFixture) -> None:
    answer = console.signed_in("analyst").get("/stand-in/CASE?fail")
    assert answer.status == 500
    assert "error of the console" in answer.text
    assert "Traceback" not in answer.text
    assert "4111111111111111" not in answer.text
    eventually(lambda: "Traceback" in caplog.text)


def test_the_session_of_a_server_does_not_reach_another(console: RunningConsole) -> None:
    client = console.signed_in("analyst")
    assert list(client.cookies) == [f"console-{console.port}"]
    other = Client(console.port)
    other.cookies = {"console-1": next(iter(client.cookies.values()))}
    assert other.get("/").status == 303


def test_a_form_of_too_many_fields_says_so_and_those_of_the_largest_pages_have_room(console: RunningConsole) -> None:
    client = console.signed_in("analyst")
    answer = client.post("/stand-in/LABEL", {f"field{number}": "" for number in range(MAX_FIELDS)})
    assert (answer.status, f"more than {MAX_FIELDS:,} fields" in answer.text) == (400, True)
    queue = [("case", "\U0001f4b3" * 75), ("shown", f"10 {2**53} " + "\U0001f4b3" * 75)] * PAGE_ROWS
    case = [("alert", "x" * 256), ("transaction", "x" * 256)] * ALERTS_SHOWN + [("transaction", "x" * 256)] * TIMELINE
    for fields in (queue, case):
        form = urlencode([("csrf", client.csrf), ("event_id", "0" * 32), ("reason", "r" * 1_000), *fields])
        answer = client.request("POST", "/stand-in/LABEL", form, Content_Type="application/x-www-form-urlencoded")
        assert answer.status == 200


def test_connections_that_send_no_request_end_and_leave_room_for_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console_command, "HEAD_S", 2.0)
    monkeypatch.setattr(console_command, "MOST_CONNECTIONS", 20)
    with served(stand_in_parts(tmp_path)) as other, ExitStack() as stack:
        silent = []
        for number in range(20):
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", other.port)))
            if number % 2:
                connection.sendall(b"GET /login HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Slow: ")
            silent.append(connection)
        eventually(lambda: other.client().get("/login").status == 200)
        for connection in silent:
            connection.settimeout(TIMEOUT_S)
            assert connection.recv(1) == b""
        # A page that hears of changes stays, and so does one whose answer takes its time.
        client = other.client()
        assert client.post(f"/link/{other.accounts.link('analyst', 'ana')}").status == 303
        listening = client.connection()
        listening.request("GET", "/events", None, client.headers())
        response = listening.getresponse()
        assert [response.readline() for _ in range(12)][-1]
        listening.close()
