"""The service that reports to an URL new cases and stopped rules, at least once, in the order of each partition."""

import logging
import threading
import time
from collections.abc import Iterator
from datetime import datetime
from typing import Final, NamedTuple

import msgspec

from agents.permissions import WEBHOOK
from pipeline.engine.records.results import Result, redacted
from pipeline.kafka.readers.committed_follower import CommittedFollower
from pipeline.kafka.records.internal import TrustedRecords, not_counted, readable
from pipeline.kafka.session.quarantine import decode_control
from pipeline.kafka.writers.producer import RecordProducer
from pipeline.models.rule_records import rule_figures
from pipeline.models.version_history import BREAKER
from pipeline.observability.metrics import DeclaredMetrics
from pipeline.settings import Settings
from pipeline.webhooks.sender import Sender
from schemas.messages import Activation
from schemas.records import Record
from schemas.topics import ALERTS, CONTROL

log = logging.getLogger(__name__)

MOST_REFUSALS: Final = 5
"""Permanent refusals of one event, behind which it is a dead letter."""
KNOWN_ALERTS: Final = 10_000
"""Alerts of a partition among which the first one of a case is looked for."""
LONGEST_WAIT_S: Final = 60.0
_POLL_S: Final = 0.5


class _AlertFields(msgspec.Struct, gc=False):
    alert_id: str
    case_id: str
    raised_at: datetime


class Event(NamedTuple):
    """An event to be sent."""

    id: str
    type: str
    at: datetime
    data: msgspec.Raw

    def body(self) -> bytes:
        """Return the body of its request."""
        return _encode({"type": self.type, "timestamp": self.at, "data": self.data})


_decode_alert: Final = msgspec.json.Decoder(_AlertFields).decode
_encode: Final = msgspec.json.Encoder().encode


class Webhook:
    """Follows ``alerts`` and ``control``, sends what is new, and commits behind each event; used from one thread.

    Args:
        sender: Sends one event once.
        stop: Set where the service is to end.
        first_wait_s: Seconds before the first repetition; each further one waits twice as long, `LONGEST_WAIT_S` at
            most.
    """

    def __init__(
        self,
        bootstrap: str,
        settings: Settings,
        sender: Sender,
        metrics: DeclaredMetrics,
        stop: threading.Event,
        first_wait_s: float = 1.0,
    ) -> None:
        self._settings, self._sender, self._metrics, self._stop = settings, sender, metrics, stop
        self._first_wait_s = first_wait_s
        self._follower = CommittedFollower(bootstrap, settings, [ALERTS, CONTROL], WEBHOOK, KNOWN_ALERTS)
        self._producer = RecordProducer(bootstrap, settings)
        self._trusted = TrustedRecords(settings, not_counted)
        self._control = settings.topic(CONTROL.name)
        self._cases: dict[tuple[int, str], int] = {}
        """Offset of the last alert of each case, by partition; the oldest first."""

    def run(self) -> None:
        """Send events until the service is to stop; raises `ClusterUnreachable` and `DeliveryFailed`."""
        self._follower.start()
        while not self._stop.is_set():
            for record in self._follower.poll(_POLL_S):
                events, at = list(self._events(record)), (record.topic, record.partition)
                if record.offset < self._follower.done[at]:
                    continue  # read again, to know its case
                if not all(self._deliver(event, record) for event in events):
                    return
                self._follower.done[at] = record.offset + 1
                if events:
                    self._follower.commit()
            self._follower.commit()

    def close(self) -> None:
        """Stop following."""
        self._follower.close()

    def _events(self, record: Record) -> Iterator[Event]:
        if record.topic != self._control:
            for _, alert in readable([record], _decode_alert, not_counted):
                if self._is_first(record, alert.case_id):
                    yield Event(alert.alert_id, "alert.created", alert.raised_at, msgspec.Raw(record.value or b""))
            return
        for _, item in self._trusted.readable([record], decode_control):
            if isinstance(item, Activation) and item.by == BREAKER:
                for trip in rule_figures(item).trips:
                    data = msgspec.Raw(_encode({**msgspec.to_builtins(trip), "reason": item.reason}))
                    event_id = f"control-{record.offset}-{trip.code}"
                    yield Event(event_id, "rule.stopped", item.activated_at, data)

    def _is_first(self, record: Record, case_id: str) -> bool:
        """Return whether an alert is the first one of its case, among those just before it in its partition."""
        last = self._cases.pop((record.partition, case_id), None)
        self._cases[record.partition, case_id] = record.offset
        if len(self._cases) > 2 * KNOWN_ALERTS * len(self._follower.done):
            del self._cases[next(iter(self._cases))]
        return last is None or record.offset - last > KNOWN_ALERTS

    def _deliver(self, event: Event, record: Record) -> bool:
        """Send an event until it is delivered, or refused for good; return False where the service has to end."""
        body, refusals, wait_s = event.body(), 0, self._first_wait_s
        while True:
            self._metrics.show("webhook_waiting_seconds", time.time() - event.at.timestamp())
            outcome = self._sender.send(event.id, body)
            if outcome.delivered:
                self._metrics.show("webhook_waiting_seconds", 0)
                self._metrics.count("webhook_events", "delivered")
                return True
            refusals += outcome.permanent
            if refusals == MOST_REFUSALS:
                self._give_up(event, record, outcome.text)
                return True
            self._metrics.count("webhook_events", "failed")
            log.warning(
                "%s %s is not delivered, and is sent again in %g s: %s", event.type, event.id, wait_s, outcome.text
            )
            self._follower.commit()  # Brokers forget a group that is silent, however long a receiver is down.
            if self._stop.wait(wait_s):
                return False
            wait_s = min(2 * wait_s, LONGEST_WAIT_S)

    def _give_up(self, event: Event, record: Record, reason: str) -> None:
        log.error(
            "%s %s is skipped: the receiver has refused it %d times: %s", event.type, event.id, MOST_REFUSALS, reason
        )
        result = Result()
        result.dead_letter(record, WEBHOOK, "webhook_refused", f"{event.type} {event.id}: {reason}")
        (letter,) = result.outputs
        if self._settings.dead_letters == "redacted":
            letter = redacted(letter)
        topic = self._settings.topic(letter.topic.name)
        now_ms = round(time.time() * 1_000)
        self._producer.produce(topic, letter.key, letter.value or b"", now_ms, list(letter.headers))
        self._producer.flush()
        self._metrics.show("webhook_waiting_seconds", 0)
        self._metrics.count("webhook_events", "skipped")
