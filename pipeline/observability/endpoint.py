"""The worker's HTTP endpoint: ``/metrics`` for Prometheus, ``/livez`` and ``/readyz`` for whoever runs the worker.

One small WSGI application on the standard library's server, which answers one request a connection. The server bounds
what clients can hold: `MAX_CONNECTIONS` at a time, each for `REQUEST_DEADLINE_S` in all. One more connection displaces
the oldest, so that a probe is answered at once while slow clients hold all places.
"""

import contextlib
import errno
import logging
import socket
import sys
import threading
import time
from collections.abc import Iterable
from http import HTTPStatus
from socketserver import ThreadingMixIn
from typing import Any, Final
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from prometheus_client import CollectorRegistry, disable_created_metrics, make_wsgi_app

from pipeline.observability.health import Health

log = logging.getLogger(__name__)

MAX_CONNECTIONS: Final = 16
"""Connections, and so threads and descriptors, at a time; a scrape and two probes are three."""
REQUEST_DEADLINE_S: Final = 10.0
"""Seconds from a connection's start to the end of its answer, however busy it is; it is cut off then."""
_DISPLACE_TIMEOUT_S: Final = 1.0
_POLL_INTERVAL_S: Final = 0.1


class EndpointError(RuntimeError):
    """The endpoint cannot be served; the text says what to change."""


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    # A scrape that hangs must not keep the worker from ending.
    block_on_close = False
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], application: WSGIApplication) -> None:
        self.address_family = socket.getaddrinfo(*address, type=socket.SOCK_STREAM)[0][0]
        self._deadlines_s: dict[socket.socket, float] = {}
        """Open connections, the oldest first."""
        self._closed = threading.Condition()
        super().__init__(address, _Handler)
        self.set_app(application)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Give the connection a thread, and make room for it first."""
        with self._closed:
            if len(self._deadlines_s) >= MAX_CONNECTIONS:
                _hang_up(next(iter(self._deadlines_s)))
            if not self._closed.wait_for(lambda: len(self._deadlines_s) < MAX_CONNECTIONS, _DISPLACE_TIMEOUT_S):
                # The oldest waits for something else than its client.
                return super().shutdown_request(request)
            self._deadlines_s[request] = time.monotonic() + REQUEST_DEADLINE_S
        return super().process_request(request, client_address)

    def service_actions(self) -> None:
        """Cut off what is past its deadline; the server calls this between connections and every poll interval."""
        with self._closed:
            for connection, deadline_s in self._deadlines_s.items():
                if deadline_s <= time.monotonic():
                    _hang_up(connection)

    def shutdown_request(self, request: Any) -> None:
        """Close a connection; its thread calls this last."""
        with self._closed:
            self._deadlines_s.pop(request, None)
            super().shutdown_request(request)
            self._closed.notify_all()

    def server_close(self) -> None:
        """Stop listening, and cut off every connection."""
        super().server_close()
        with self._closed:
            for connection in self._deadlines_s:
                _hang_up(connection)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log an error of ours; a client that has gone is none."""
        del request
        if not isinstance(sys.exception(), OSError):
            log.exception("the endpoint could not answer %s", client_address)


def _hang_up(connection: socket.socket) -> None:
    """End reading and writing, so that the connection's thread comes to its end and closes it."""
    # Where the client has closed it already, the thread ends as well.
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


class _Handler(WSGIRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Nothing: a probe every few seconds would fill the log."""


def application(registry: CollectorRegistry, health: Health) -> WSGIApplication:
    """Return the WSGI application that serves a registry's metrics and answers probes from ``health``."""
    # A series beside every counter and histogram, which nothing here asks for.
    disable_created_metrics()  # type: ignore[no-untyped-call]
    metrics = make_wsgi_app(registry)

    def route(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        if environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
            status, content_type, body = HTTPStatus.METHOD_NOT_ALLOWED, _TEXT, b"Use GET or HEAD.\n"
        elif path in ("/metrics", "/"):
            metrics_body: Iterable[bytes] = metrics({**environ, "REQUEST_METHOD": "GET"}, start_response)
            return metrics_body
        elif path in ("/livez", "/readyz"):
            report = health.live() if path == "/livez" else health.ready()
            status = HTTPStatus.OK if report.ok else HTTPStatus.SERVICE_UNAVAILABLE
            content_type, body = "application/json", report.json()
        else:
            status, content_type, body = HTTPStatus.NOT_FOUND, _TEXT, b"There are /metrics, /livez and /readyz.\n"
        start_response(f"{status.value} {status.phrase}", [("Content-Type", content_type)])
        return [body]

    def answer(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        def start(status: str, headers: list[tuple[str, str]], *error: Any) -> Any:
            common = [("Cache-Control", "no-store"), ("Server", "fraud-pipeline")]
            return start_response(status, [*headers, *common], *error)

        try:
            body = b"".join(route(environ, start))
        except (TypeError, ValueError, LookupError):
            # Of what a client sent: the exporter reads some headers without a doubt.
            start("400 Bad Request", [("Content-Type", _TEXT)])
            body = b"This request cannot be understood; ask without its Accept header.\n"
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [body]

    return answer


_TEXT: Final = "text/plain; charset=utf-8"


class Endpoint:
    """Serves metrics and answers to probes, from threads of its own.

    Args:
        host: Address to listen on.
        port: Port to listen on; 0: any free one.
        registry: The metrics that ``/metrics`` shows.
        health: Answers ``/livez`` and ``/readyz``.
    """

    def __init__(self, host: str, port: int, registry: CollectorRegistry, health: Health) -> None:
        self._host, self._port = host, port
        self._registry, self._health = registry, health
        self._serving: tuple[_Server, threading.Thread] | None = None

    def start(self) -> int:
        """Serve; returns the port.

        Raises:
            EndpointError: it is served already, or its address cannot be bound.
        """
        if self._serving is not None:
            raise EndpointError("The endpoint is served already; stop it before you start it again.")
        try:
            server = _Server((self._host, self._port), application(self._registry, self._health))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise EndpointError(
                    f"Port {self._port} of {self._host} is in use, so metrics cannot be served there. "
                    "Set FRAUD_PIPELINE_METRICS_PORT to a free port, or to 0 for any; "
                    "each worker of a machine needs its own."
                ) from error
            raise EndpointError(
                f"Metrics cannot be served at {self._host}:{self._port} ({error}). "
                "Set FRAUD_PIPELINE_METRICS_HOST to an address of this machine, such as 127.0.0.1."
            ) from error
        thread = threading.Thread(target=server.serve_forever, args=(_POLL_INTERVAL_S,), name="endpoint", daemon=True)
        thread.start()
        self._serving = (server, thread)
        return int(server.server_port)

    def stop(self) -> None:
        """Stop serving and free the port; does nothing if nothing is served."""
        if self._serving is None:
            return
        server, thread = self._serving
        self._serving = None
        server.shutdown()
        server.server_close()
        thread.join()
