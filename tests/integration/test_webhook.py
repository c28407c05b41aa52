"""The webhook with a real broker and a real HTTP server: at least once, in order, signed."""

import base64
import hashlib
import hmac
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
from confluent_kafka.admin import AdminClient
from prometheus_client.registry import CollectorRegistry

from pipeline.models.publish import ControlWriter
from pipeline.observability.metric_declarations import WEBHOOK_METRICS
from pipeline.observability.metrics import DeclaredMetrics
from pipeline.protection.signing import KeyFileError
from pipeline.settings import Settings
from pipeline.webhooks.sender import Sender, read_secret
from pipeline.webhooks.service import MOST_REFUSALS, Webhook
from schemas.messages import Activation
from schemas.topics import ALERTS, DEAD_LETTERS
from tests.helpers.case_topics import alert_of
from tests.helpers.receivers import Receiver, Request, receiver
from tests.helpers.topics import Cluster, Starter
from tests.helpers.waiting import eventually

pytestmark = pytest.mark.broker

SECRET = b"a secret of thirty-two bytes, ok"
ROOT = Path(__file__).parents[2]
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
WEBHOOK = ("-m", "pipeline.cli", "webhook", "--port", "0")


def raise_alert(cluster: Cluster, number: int, case: int, partition: int = 0) -> None:
    value = msgspec.json.encode(alert_of(number, alert_id=f"a{number}", case_id=f"case-{case}"))
    cluster.write(ALERTS, value, b"card", NOON, partition=partition)
    cluster.flush()


def ids(requests: list[Request]) -> list[str]:
    return [request.headers["webhook-id"] for request in requests]


def _count(registry: CollectorRegistry, outcome: str) -> float | None:
    return registry.get_sample_value("fraud_pipeline_webhook_events_total", {"outcome": outcome})


def refuse_forged(requests: list[Request]) -> None:
    names: dict[str, Any] = {}
    exec((ROOT / "docs/webhook.md").read_text(encoding="utf-8").split("```python\n")[1].split("```")[0], names)
    secret = f"whsec_{base64.b64encode(SECRET).decode()}"
    for request in requests:
        assert names["is_ours"](dict(request.headers), request.body, secret), "as the page checks it"
        assert not names["is_ours"](dict(request.headers), request.body + b" ", secret)
        signed = f"{request.headers['webhook-id']}.{request.headers['webhook-timestamp']}.".encode() + request.body
        expected = base64.b64encode(hmac.digest(SECRET, signed, hashlib.sha256)).decode()
        assert request.headers["webhook-signature"] == f"v1,{expected}"
        assert abs(int(request.headers["webhook-timestamp"]) - time.time()) < 600
        assert request.headers["content-type"] == "application/json"


def with_webhook(cluster: Cluster, tmp_path: Path, url: str) -> Settings:
    secret = tmp_path / "secret"
    secret.write_text(f"whsec_{base64.b64encode(SECRET).decode()}\n")
    secret.chmod(0o600)
    return cluster.settings.model_copy(update={"webhook_url": url, "webhook_secret_file": secret})


@contextmanager
def running(cluster: Cluster, hook: Receiver) -> Iterator[CollectorRegistry]:
    """A webhook in this process that repeats at once."""
    metrics, stop = DeclaredMetrics(WEBHOOK_METRICS), threading.Event()
    sender = Sender(hook.url, SECRET, stop)
    webhook = Webhook(cluster.bootstrap, cluster.settings, sender, metrics, stop, first_wait_s=0.0)
    thread = threading.Thread(target=webhook.run)
    thread.start()
    try:
        eventually(lambda: len(cluster.committed("webhook", ALERTS)) == 3)
        yield metrics.registry
    finally:
        stop.set()
        thread.join()
        webhook.close()


def test_the_first_alert_of_each_case_is_sent_at_least_once_across_a_kill(
    cluster: Cluster, start: Starter, tmp_path: Path
) -> None:
    raise_alert(cluster, 0, case=0)
    with receiver() as hook:
        settings = with_webhook(cluster, tmp_path, hook.url)
        first = start(settings, *WEBHOOK)
        first.until(lambda: len(cluster.committed("webhook", ALERTS)) == 3)
        # One that was raised before is known, and its case is no news.
        for number, case in enumerate((1, 1, 2, 0, 2, 3), 1):
            raise_alert(cluster, number, case)
        first.until(lambda: len(hook.requests) == 3)
        hook.released.clear()
        raise_alert(cluster, 7, case=4)
        raise_alert(cluster, 8, case=5)
        first.until(lambda: len(hook.requests) == 4)
        first.end()
        hook.released.set()
        second = start(settings, *WEBHOOK)
        second.until(lambda: len(hook.requests) == 6)
        raise_alert(cluster, 9, case=4)
        raise_alert(cluster, 10, case=6, partition=2)
        second.until(lambda: len(hook.requests) == 7)
        assert second.stop() == 0, second.output
    assert ids(hook.requests) == ["a1", "a3", "a6", "a7", "a7", "a8", "a10"]
    refuse_forged(hook.requests)
    assert hook.requests[3].body == hook.requests[4].body
    sent = hook.requests[0].json
    assert (sent["type"], sent["timestamp"], sent["data"]["case_id"]) == (
        "alert.created", sent["data"]["raised_at"], "case-1",
    )  # fmt: skip
    assert SECRET.decode() not in first.output + second.output


def test_a_receiver_that_is_down_gets_all_in_order_once_it_is_up(
    cluster: Cluster, start: Starter, tmp_path: Path
) -> None:
    with receiver() as gone:
        settings = with_webhook(cluster, tmp_path, gone.url)
    process = start(settings, *WEBHOOK)
    process.until(lambda: len(cluster.committed("webhook", ALERTS)) == 3)
    for number in range(1, 7):
        raise_alert(cluster, number, case=number, partition=number % 2)
    process.until_it_says("is not delivered, and is sent again in 2 s")
    with receiver(gone.port) as hook:
        process.until(lambda: len(hook.delivered) == 6)
        found = [int(event[1:]) for event in ids(hook.delivered)]
        assert [number for number in found if number % 2] == [1, 3, 5]
        assert [number for number in found if not number % 2] == [2, 4, 6]
        assert process.stop() == 0, process.output


def test_what_passes_is_sent_again_and_what_does_not_is_a_dead_letter(cluster: Cluster) -> None:
    with receiver() as hook, running(cluster, hook) as registry:
        hook.statuses = [500, 429, 407, 302, 101, 200, *[400] * MOST_REFUSALS]
        for number in range(1, 4):
            raise_alert(cluster, number, case=number)
        eventually(lambda: len(hook.delivered) == 2)
        assert ids(hook.requests) == ["a1"] * 6 + ["a2"] * MOST_REFUSALS + ["a3"]
        eventually(lambda: _count(registry, "delivered") == 2)
        assert (_count(registry, "failed"), _count(registry, "skipped")) == (5 + MOST_REFUSALS - 1, 1)
        (letter,) = cluster.read(DEAD_LETTERS)
        headers = dict(letter.headers)
        assert headers["dead-letter-error"] == b"webhook_refused"
        assert headers["dead-letter-offset"] == b"1"
        assert (headers["dead-letter-message"] or b"").endswith(b"status 400")
        listed = cluster.command("dead-letters", "list", code=0).output
        assert "webhook_refused" in listed
        sent = cluster.command("dead-letters", "resend", "--code", "webhook_refused", "--yes").output
        assert "are not resent" in sent


def test_its_place_is_kept_however_long_a_receiver_is_down(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.kafka.readers.committed_follower.RENEWED_S", 0.0)
    with receiver() as hook, running(cluster, hook):
        hook.status = 503
        raise_alert(cluster, 1, case=1)
        eventually(lambda: len(hook.requests) > 0)
        # As brokers forget it, days later.
        admin, group = AdminClient({"bootstrap.servers": cluster.bootstrap}), cluster.settings.topic("webhook")
        admin.delete_consumer_groups([group])[group].result()
        eventually(lambda: len(cluster.committed("webhook", ALERTS)) == 3)
        assert not hook.delivered


@pytest.mark.parametrize(
    ("beginning", "text"),
    [(b"no such ", "ClientResponseError"), (b"HTTP/1.1 200 no such ", "ServerDisconnectedError")],
)
def test_what_a_receiver_writes_in_place_of_an_answer_is_not_logged(beginning: bytes, text: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def echo() -> None:
            connection, _ = server.accept()
            with connection:
                connection.sendall(beginning + connection.recv(65_536).split(b"\r\n")[0] + b"\r\nX-Cut: off")

        threading.Thread(target=echo, daemon=True).start()
        url = f"http://127.0.0.1:{server.getsockname()[1]}/hook?key=hidden"
        outcome = Sender(url, SECRET, threading.Event()).send("e1", b"{}")
    assert (outcome.delivered, outcome.permanent) == (False, False)
    assert outcome.text == text


@pytest.mark.parametrize("proxy", ["user:hidden@proxy.example:3128", "http://[hidden"])
def test_a_proxy_that_cannot_be_used_is_not_logged(proxy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", proxy)
    outcome = Sender("http://receiver.example/hook", SECRET, threading.Event()).send("e1", b"{}")
    assert (outcome.delivered, outcome.permanent) == (False, False)
    assert "hidden" not in outcome.text


@pytest.mark.parametrize("timeout_s", [0.5, 3_600.0])
def test_an_answer_that_drips_neither_holds_the_next_request_nor_the_end(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, timeout_s: float
) -> None:
    monkeypatch.setattr("pipeline.webhooks.sender.TIMEOUT_S", timeout_s)
    with receiver() as hook, running(cluster, hook) as registry:
        hook.drips = True
        raise_alert(cluster, 1, case=1)
        eventually(lambda: len(hook.requests) == 1)
        assert (registry.get_sample_value("fraud_pipeline_webhook_waiting_seconds") or 0) > 0
        if timeout_s < 1:
            eventually(lambda: (_count(registry, "failed") or 0) > 1)
            hook.drips = False
            eventually(lambda: _count(registry, "delivered") == 1)


def test_stopped_rules_are_sent_and_other_changes_are_not(cluster: Cluster) -> None:
    with receiver() as hook, running(cluster, hook):
        writer = ControlWriter(cluster.bootstrap, cluster.settings)
        trip = {"code": "flöd\n", "event_hour": 500_000, "hits": 101, "alerts": 101, "transactions": 2_210}
        unreadable: list[dict[str, Any]] = [{"trips": [trip, {}]}, {"trips": None}, {"trips": [{**trip, "code": 5}]}]
        of_breaker = [("breaker", figures) for figures in (*unreadable, {}, {"trips": [trip]})]
        for by, figures in (("dana", {"trips": [trip]}), *of_breaker):
            writer.control(
                Activation(
                    versions=[], step="rules", by=by, reason="flood: too many", figures=figures, activated_at=NOON
                )
            )
        eventually(lambda: len(hook.requests) == 1)
    (request,) = hook.requests
    assert request.headers["webhook-id"].endswith("-fl%C3%B6d%0A")
    assert request.json == {
        "type": "rule.stopped", "timestamp": "2026-03-01T12:00:00Z", "data": {**trip, "reason": "flood: too many"},
    }  # fmt: skip


def test_it_is_off_by_default_and_wants_a_secret_that_nobody_else_can_read(cluster: Cluster, tmp_path: Path) -> None:
    assert "set FRAUD_PIPELINE_WEBHOOK_URL" in cluster.command("webhook", code=2).output
    secret = with_webhook(cluster, tmp_path, "http://localhost/").webhook_secret_file
    assert secret is not None
    assert read_secret(secret) == SECRET
    for text, mode in (("whsec_dG9vIHNob3J0", 0o600), (base64.b64encode(SECRET).decode(), 0o600), ("", 0o644)):
        secret.write_text(text or secret.read_text())
        secret.chmod(mode)
        with pytest.raises(KeyFileError):
            read_secret(secret)
