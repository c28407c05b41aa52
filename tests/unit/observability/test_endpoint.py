"""What clients can hold of a worker: connections, threads and descriptors, and for how long."""

import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack

import psutil
import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from pipeline.observability import endpoint
from pipeline.observability.endpoint import MAX_CONNECTIONS, Endpoint
from pipeline.observability.health import Health
from tests.helpers.waiting import TIMEOUT_S, eventually

LARGE_BYTES = 20_000_000
"""More than the buffers of two sockets take."""


class Large(Collector):
    def collect(self) -> Iterator[GaugeMetricFamily]:
        family = GaugeMetricFamily("large", "A long label.", labels=["text"])
        family.add_metric(["x" * LARGE_BYTES], 1.0)
        yield family


@pytest.fixture
def port() -> Iterator[int]:
    registry = CollectorRegistry()
    registry.register(Large())
    served = Endpoint("127.0.0.1", 0, registry, Health())
    yield served.start()
    served.stop()
    eventually(lambda: not handlers())


def handlers() -> list[threading.Thread]:
    """Threads that answer requests."""
    return [thread for thread in threading.enumerate() if "process_request" in thread.name]


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_S)


def probe(port: int, path: str) -> int:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=TIMEOUT_S) as response:
        return int(response.status)


def test_slow_clients_hold_few_places_and_a_probe_is_answered_meanwhile(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What makes room for the probe is not that anybody's time is over.
    monkeypatch.setattr(endpoint, "REQUEST_DEADLINE_S", 3_600.0)
    monkeypatch.setattr(endpoint, "_DISPLACE_TIMEOUT_S", TIMEOUT_S)
    before = psutil.Process().num_fds()
    with ExitStack() as open_clients:
        clients = [open_clients.enter_context(connect(port)) for _ in range(100)]
        for client in clients[-MAX_CONNECTIONS:]:
            client.sendall(b"GET /livez HTTP/1.1\r\nX-Slow: ")
        assert probe(port, "/livez") == 200
        # A thread ends a moment behind its connection.
        eventually(lambda: len(handlers()) <= MAX_CONNECTIONS)
        eventually(lambda: psutil.Process().num_fds() - before - len(clients) <= MAX_CONNECTIONS)
        assert clients[0].recv(1) == b"", "the oldest made room"


def test_a_client_that_sends_a_byte_now_and_then_is_cut_off(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "REQUEST_DEADLINE_S", 0.3)
    with connect(port) as client:
        client.sendall(b"GET /livez HTTP/1.1\r\nX-Slow: ")

        def is_cut_off() -> bool:
            try:
                client.sendall(b"x")
            except OSError:
                return True
            return False

        eventually(is_cut_off)
        eventually(lambda: not handlers())


def test_a_client_that_reads_slowly_is_cut_off(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "REQUEST_DEADLINE_S", 0.3)
    with connect(port) as client:
        client.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
        # Its answer has begun, or was cut off before: the thread may come and go while nobody looks.
        client.recv(1)

        def is_given_up() -> bool:
            client.recv(1)
            return not handlers()

        eventually(is_given_up)
        received = 0
        while chunk := client.recv(1 << 20):
            received += len(chunk)
        # How much came before the deadline is the machine's affair.
        assert received < LARGE_BYTES


def test_the_end_cuts_off_whoever_is_connected() -> None:
    served = Endpoint("127.0.0.1", 0, CollectorRegistry(), Health())
    with connect(served.start()) as client:
        eventually(lambda: len(handlers()) == 1)
        served.stop()
        assert client.recv(1) == b""
    eventually(lambda: not handlers())


def test_metrics_answer_as_prometheus_s_own_application_does(port: int) -> None:
    request = urllib.request.Request(f"http://127.0.0.1:{port}/metrics", headers={"Accept-Encoding": "gzip"})
    with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:
        assert response.headers["Content-Encoding"] == "gzip"
        assert response.headers["Server"] == "fraud-pipeline"
        assert len(response.read()) < LARGE_BYTES // 10


def test_a_request_that_the_exporter_cannot_read_is_answered_without_a_traceback(
    port: int, capsys: pytest.CaptureFixture[str]
) -> None:
    accept = "application/openmetrics-text;version=xx;escaping=evil"
    request = urllib.request.Request(f"http://127.0.0.1:{port}/metrics", headers={"Accept": accept})
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=TIMEOUT_S)
    assert refused.value.code == 400
    assert b"without its Accept header" in refused.value.read()
    refused.value.close()
    assert "Traceback" not in capsys.readouterr().err
