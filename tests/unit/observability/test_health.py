"""What a worker says of itself: when it is live, when it is ready, and that it answers over HTTP."""

import json
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.client import HTTPConnection
from typing import Any

import pytest

from pipeline.observability.health import AGENT_STATES, Health, HealthReport
from pipeline.observability.metrics import WorkerMetrics
from tests.helpers.clocks import SetClock
from tests.helpers.waiting import TIMEOUT_S


@pytest.fixture
def clock() -> SetClock:
    return SetClock()


@pytest.fixture
def health(clock: SetClock) -> Health:
    return Health(("card", "score"), liveness_timeout_s=300, clock=clock)


def failing(report: HealthReport) -> list[str]:
    return [check.name for check in report.checks if not check.ok]


def run_all(health: Health) -> None:
    for agent in ("card", "score"):
        health.state(agent, "running")


def test_a_worker_is_ready_when_every_agent_runs_and_a_broker_answers(health: Health) -> None:
    assert failing(health.ready()) == ["broker", "agent card", "agent score"]
    health.broker_answered()
    health.state("card", "running")
    assert failing(health.ready()) == ["agent score"]
    health.state("score", "running")
    assert health.ready().ok


@pytest.mark.parametrize("state", [state for state in AGENT_STATES if state != "running"])
def test_an_agent_in_any_other_state_is_not_ready_but_live(health: Health, state: Any) -> None:
    health.broker_answered()
    run_all(health)
    health.state("score", state)
    assert failing(health.ready()) == ["agent score"]
    assert state in next(check.detail for check in health.ready().checks if check.name == "agent score")
    assert health.live().ok


def test_a_short_silence_of_the_broker_is_reported_and_a_long_one_ends_readiness(
    health: Health, clock: SetClock
) -> None:
    health.broker_answered()
    run_all(health)
    assert health.unreachable_s() == 0
    clock.now_s += 9
    health.broker_silent("no route")
    assert health.ready().ok
    assert health.unreachable_s() == 9
    clock.now_s += 2
    assert failing(health.ready()) == ["broker"]
    assert "no route" in health.ready().checks[0].detail
    assert health.unreachable_s() == 11
    health.broker_answered()
    assert health.ready().ok
    assert health.unreachable_s() == 0


def test_a_broker_that_never_answered_is_not_waited_for(health: Health) -> None:
    run_all(health)
    health.broker_silent("refused")
    assert failing(health.ready()) == ["broker"]


def test_a_watch_that_no_longer_asks_proves_nothing(health: Health, clock: SetClock) -> None:
    health.broker_answered()
    run_all(health)
    clock.now_s += 11
    assert failing(health.ready()) == ["broker"]
    assert health.unreachable_s() == 11
    clock.now_s += 300
    assert "broker watch" in failing(health.live())


def test_a_thread_that_does_not_come_round_is_not_live(health: Health, clock: SetClock) -> None:
    health.broker_answered()
    run_all(health)
    clock.now_s += 200
    health.working("card")
    health.broker_answered()
    assert health.live().ok
    clock.now_s += 101
    assert failing(health.live()) == ["agent score"]
    health.working("score")
    assert health.live().ok


def test_a_broker_that_is_away_kills_no_worker(health: Health, clock: SetClock) -> None:
    health.broker_answered()
    run_all(health)
    for _ in range(1_000):
        clock.now_s += 2
        health.broker_silent("gone")
    assert health.live().ok
    # The agents' threads have been waiting for it, and get their time from its return on.
    health.broker_answered()
    assert health.live().ok
    clock.now_s += 299
    health.broker_answered()
    assert health.live().ok
    clock.now_s += 2
    health.broker_answered()
    assert failing(health.live()) == ["agent card", "agent score"]


def test_a_start_says_what_it_waits_for_and_stays_live_while_it_comes_round(health: Health, clock: SetClock) -> None:
    health.broker_answered()
    health.state("card", "running")
    for _ in range(3):
        clock.now_s += 200
        health.starting("reads the rate tables")
        health.working("card")
        health.broker_answered()
        assert health.live().ok
    details = {check.name: check.detail for check in health.ready().checks}
    assert details == {"broker": "answers", "agent card": "running", "agent score": "starting: reads the rate tables"}
    clock.now_s += 301
    health.broker_answered()
    assert failing(health.live()) == ["agent card", "agent score"]


@pytest.fixture
def served(health: Health) -> Iterator[int]:
    metrics = WorkerMetrics(health=health)
    yield metrics.start()
    metrics.stop()


def get(port: int, path: str) -> tuple[int, bytes]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=TIMEOUT_S) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def test_probes_answer_with_a_line_for_each_check(health: Health, clock: SetClock, served: int) -> None:
    status, body = get(served, "/readyz")
    assert status == 503
    report = json.loads(body)
    assert report["status"] == "failing"
    assert [(check["name"], check["ok"]) for check in report["checks"]] == [
        ("broker", False),
        ("agent card", False),
        ("agent score", False),
    ]
    assert len([line for line in body.decode().splitlines() if '"name"' in line]) == 3
    health.broker_answered()
    run_all(health)
    assert get(served, "/readyz")[0] == 200
    assert get(served, "/livez")[0] == 200
    clock.now_s += 301
    health.broker_answered()
    assert get(served, "/livez")[0] == 503
    assert get(served, "/readyz")[0] == 200


def test_health_is_among_the_metrics(health: Health, clock: SetClock, served: int) -> None:
    health.broker_answered()
    health.state("card", "restoring")
    clock.now_s += 4
    health.broker_silent("gone")
    lines = get(served, "/metrics")[1].decode().splitlines()
    assert "fraud_pipeline_broker_unreachable_seconds 4.0" in lines
    assert "fraud_pipeline_ready 0.0" in lines
    assert 'fraud_pipeline_agent_state{agent="card",state="restoring"} 1.0' in lines
    assert 'fraud_pipeline_agent_state{agent="card",state="starting"} 0.0' in lines
    assert 'fraud_pipeline_agent_state{agent="score",state="starting"} 1.0' in lines


def test_an_unknown_path_is_not_found_and_head_has_no_body(served: int) -> None:
    assert get(served, "/health")[0] == 404
    connection = HTTPConnection("127.0.0.1", served, timeout=TIMEOUT_S)
    connection.request("HEAD", "/livez")
    response = connection.getresponse()
    assert (response.status, response.read()) == (200, b"")
    connection.close()


def test_a_client_that_says_nothing_delays_neither_others_nor_the_end(health: Health) -> None:
    metrics = WorkerMetrics(health=health)
    port = metrics.start()
    with socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_S):
        assert get(port, "/livez")[0] == 200
        stopping = threading.Thread(target=metrics.stop)
        stopping.start()
        stopping.join(TIMEOUT_S)
        assert not stopping.is_alive()
