"""A receiver of webhooks on loopback: a real HTTP server, which answers as a test says."""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

import msgspec


class Request(NamedTuple):
    """A request as it came, and how it was answered."""

    headers: Mapping[str, str]
    body: bytes
    status: int

    @property
    def json(self) -> dict[str, Any]:
        found: dict[str, Any] = msgspec.json.decode(self.body)
        return found


class Receiver:
    """Keeps all requests; ``statuses`` are the next answers, ``status`` all further ones."""

    def __init__(self, port: int = 0) -> None:
        self.requests: list[Request] = []
        self.statuses: list[int] = []
        self.status = 204
        self.released = threading.Event()
        """While it is clear, no request that comes is answered."""
        self.released.set()
        self.drips = False
        """While it is true, no answer ends: a byte of its header comes now and then."""
        self._closed = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                status = outer.statuses.pop(0) if outer.statuses else outer.status
                # Said before anybody sees the request: whoever sees it may hold back those behind it alone.
                waits = not outer.released.is_set()
                outer.requests.append(
                    Request({name.lower(): text for name, text in self.headers.items()}, body, status)
                )
                if waits:
                    outer.released.wait()
                if outer.drips:
                    with suppress(OSError):
                        self.wfile.write(b"HTTP/1.1 204 No Content\r\nX: ")
                        while not outer._closed.wait(0.1):
                            self.wfile.write(b"x")
                    return
                self.send_response(status)
                if status in range(300, 400):
                    self.send_header("Location", "/elsewhere")
                self.end_headers()

            def do_GET(self) -> None:
                raise AssertionError("a redirection was followed")

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._server.daemon_threads = True
        self.port = int(self._server.server_address[1])
        self.url = f"http://127.0.0.1:{self.port}/hook"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def delivered(self) -> list[Request]:
        return [request for request in self.requests if 200 <= request.status < 300]

    def close(self) -> None:
        self.released.set()
        self._closed.set()
        self._server.shutdown()
        self._server.server_close()


@contextmanager
def receiver(port: int = 0) -> Iterator[Receiver]:
    """A receiver that is there within the block, and whose port is free behind it."""
    made = Receiver(port)
    try:
        yield made
    finally:
        made.close()
