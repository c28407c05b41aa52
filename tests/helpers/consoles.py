"""Consoles on a real server in a thread, and a client that keeps cookies as browsers do."""

import contextlib
import http.client
import re
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple
from urllib.parse import urlencode

from pipeline.commands.console import ConsoleServer, server_config
from pipeline.console.accounts import Accounts
from pipeline.console.app import Changes, Parts
from pipeline.console.options import ConsoleOptions
from pipeline.console.roles import Role
from pipeline.settings import Settings
from tests.helpers.waiting import TIMEOUT_S, eventually

AGENT = "Chromium of the test"
PASSWORD = "correct horse battery"


class Answer(NamedTuple):
    status: int
    headers: http.client.HTTPMessage
    text: str


class Client:
    """One browser: its cookies, its name, and the CSRF secret of the page that it loaded last."""

    def __init__(self, port: int, agent: str = AGENT, context: ssl.SSLContext | None = None) -> None:
        self.port, self.agent, self.context = port, agent, context
        self.cookies: dict[str, str] = {}
        self.csrf = ""

    def connection(self) -> http.client.HTTPConnection:
        if self.context is not None:
            return http.client.HTTPSConnection("localhost", self.port, timeout=TIMEOUT_S, context=self.context)
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=TIMEOUT_S)

    def headers(self, **more: str | None) -> dict[str, str]:
        cookie = "; ".join(f"{name}={value}" for name, value in self.cookies.items())
        named = {"User-Agent": self.agent, "Cookie": cookie or None}
        given = named | {name.replace("_", "-"): value for name, value in more.items()}
        return {name: value for name, value in given.items() if value is not None}

    def request(self, method: str, path: str, body: str | bytes | None = None, **headers: str | None) -> Answer:
        connection = self.connection()
        try:
            connection.request(method, path, body, self.headers(**headers))
            response = connection.getresponse()
            text = response.read().decode()
        finally:
            connection.close()
        for cookie in response.headers.get_all("set-cookie", []):
            name, _, value = cookie.partition(";")[0].partition("=")
            self.cookies[name] = value.strip('"')
        if found := re.search('<meta name="csrf" content="([^"]+)">', text):
            self.csrf = found[1]
        return Answer(response.status, response.headers, text)

    def get(self, path: str, **headers: str | None) -> Answer:
        return self.request("GET", path, **headers)

    def post(self, path: str, fields: dict[str, str] | None = None, **headers: str | None) -> Answer:
        form = urlencode({"csrf": self.csrf} | (fields or {}))
        defaults = {"Content_Type": "application/x-www-form-urlencoded", "Sec_Fetch_Site": "same-origin"}
        return self.request("POST", path, form, **{**defaults, **headers})


class RunningConsole(NamedTuple):
    port: int
    parts: Parts
    options: ConsoleOptions

    @property
    def accounts(self) -> Accounts:
        return self.parts.accounts

    def client(self, agent: str = AGENT, context: ssl.SSLContext | None = None) -> Client:
        return Client(self.port, agent, context)

    def signed_in(self, role: Role, name: str | None = None) -> Client:
        """Return a browser that has signed in, by a link."""
        client = self.client()
        answer = client.post(f"/link/{self.accounts.link(role, name or role)}")
        assert answer.status == 303, answer.text
        client.get("/account")
        return client


class _ThreadServer(ConsoleServer):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def stand_in_parts(directory: Path, **changes: Any) -> Parts:
    """Return parts whose accounts and changes are real."""
    status = SimpleNamespace(figures=lambda: SimpleNamespace(failure=None))
    own = {"accounts": Accounts(directory / "accounts.sqlite"), "changes": Changes(), "status": status}
    others = dict.fromkeys(("store", "actions", "explainer"))
    return Parts(**{"settings": Settings(data_dir=directory), **others, **own, **changes})


@contextmanager
def served(parts: Parts, options: ConsoleOptions | None = None, **more: Any) -> Iterator[RunningConsole]:
    """Serve a console on a free port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        options = (options or ConsoleOptions())._replace(port=port)
        server = _ThreadServer(server_config(parts, options, **more), parts.changes)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="console")
        thread.start()
        try:
            eventually(lambda: server.started or not thread.is_alive())
            assert server.started
            yield RunningConsole(port, parts, options)
        finally:
            server.should_exit = True
            thread.join(TIMEOUT_S)
            assert not thread.is_alive()
            with contextlib.suppress(Exception):
                parts.accounts.close()
