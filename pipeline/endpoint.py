"""The worker's HTTP endpoint: ``/metrics`` for Prometheus, ``/livez`` and ``/readyz`` for whoever runs the worker."""

import errno
import socket
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Final
from urllib.parse import parse_qs, urlsplit

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from pipeline.health import Health, Report

REQUEST_TIMEOUT_S: Final = 10.0
"""A connection that says nothing for longer is closed, and its thread with it."""


class EndpointError(RuntimeError):
    """The endpoint cannot be served; the text says what to change."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    # A scrape that hangs must not keep the worker from ending.
    block_on_close = False

    def __init__(self, address: tuple[str, int], registry: CollectorRegistry, health: Health) -> None:
        self.address_family = socket.getaddrinfo(*address, type=socket.SOCK_STREAM)[0][0]
        self.registry, self.health = registry, health
        super().__init__(address, _Handler)


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    server_version = "fraud-pipeline"
    sys_version = ""
    timeout = REQUEST_TIMEOUT_S

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: a probe every few seconds would fill the log."""

    def _answer(self, *, with_body: bool) -> None:
        address = urlsplit(self.path)
        match address.path:
            case "/metrics" | "/":
                status, content_type, body = self._metrics(parse_qs(address.query).get("name[]", []))
            case "/livez":
                status, content_type, body = _report(self.server.health.live())
            case "/readyz":
                status, content_type, body = _report(self.server.health.ready())
            case _:
                text = b"There are /metrics, /livez and /readyz.\n"
                status, content_type, body = HTTPStatus.NOT_FOUND, "text/plain; charset=utf-8", text
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def _metrics(self, names: list[str]) -> tuple[HTTPStatus, str, bytes]:
        encoder, content_type = choose_encoder(self.headers.get("Accept", ""))
        registry = self.server.registry.restricted_registry(names) if names else self.server.registry
        return HTTPStatus.OK, content_type, encoder(registry)


def _report(report: Report) -> tuple[HTTPStatus, str, bytes]:
    status = HTTPStatus.OK if report.ok else HTTPStatus.SERVICE_UNAVAILABLE
    return status, "application/json", report.json()


class Endpoint:
    """Serves a registry and a ``Health`` at ``host``:``port`` (0: any free one), from threads of its own."""

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
            server = _Server((self._host, self._port), self._registry, self._health)
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
        thread = threading.Thread(target=server.serve_forever, args=(0.1,), name="endpoint", daemon=True)
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
