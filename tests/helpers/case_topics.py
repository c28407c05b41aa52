"""Cases of the console, as the topics tell of them: decisions, alerts, labels and events, and who follows them."""

import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

from pipeline.console.reader import TopicsReader
from pipeline.console.store import CaseStore
from pipeline.settings import Settings
from schemas.codec import encode
from schemas.messages import Alert, CaseEvent, Decision, Label, LogPosition, RecordPosition
from schemas.records import Record
from schemas.topics import ALERTS, CASE_EVENTS, DECISIONS, LABELS, Topic
from tests.helpers.logs import golden, microseconds
from tests.helpers.topics import shared_producer
from tests.helpers.waiting import TIMEOUT_S, eventually

KEY = b"0123456789abcdef0123456789abcdef"
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


def alert_of(number: int, case: int | None = None, at: datetime = NOON, **changes: Any) -> Alert:
    """Alert of a case, each of which has a card of its own."""
    case = number if case is None else case
    fields: dict[str, Any] = {
        "alert_id": f"alert-{number}",
        "case_id": f"case-{case}",
        "card_id": f"card-{case}",
        "transaction_id": f"t{number}",
        "merchant_id": f"shop-{number % 7}",
        "event_time": at + timedelta(seconds=number),
        "raised_at": at + timedelta(seconds=number + 1),
        "amount": Decimal("100.00"),
        "amount_base": 100.0,
        "severity": float(number % 100),
        "source": RecordPosition(topic="transactions", partition=0, offset=number),
        "log": LogPosition(partition=0, offset=-1),
    }
    return golden("alert", Alert, **fields | changes)


def decision_of(alert: Alert, **changes: Any) -> Decision:
    """Decision behind an alert; without ``selection`` that of a transaction that raised none."""
    same = {name: getattr(alert, name) for name in Decision.__struct_fields__ if hasattr(alert, name)}
    return golden("decision", Decision, **same | changes)


def event_of(alert: Alert, kind: str, by: str = "ann", **changes: Any) -> CaseEvent:
    fields = {"event_id": uuid.uuid4().hex, "case_id": alert.case_id, "card_id": alert.card_id, "at": NOON}
    return CaseEvent(kind=kind, by=by, **fields | changes)


def label_of(alert: Alert, label: str = "fraud", **changes: Any) -> Label:
    fields = {
        "transaction_id": alert.transaction_id,
        "card_id": alert.card_id,
        "source": "analyst",
        "labelled_at": NOON,
    }
    return Label(label=label, **fields | changes)


def topic_of(message: Any) -> Topic:
    return {Alert: ALERTS, Decision: DECISIONS, CaseEvent: CASE_EVENTS, Label: LABELS}[type(message)]


class Fed:
    """A store that is fed without brokers: each message is the next record of its topic."""

    def __init__(self, path: Path, settings: Settings | None = None, key: bytes = KEY) -> None:
        self.settings = settings or Settings(data_dir=path.parent)
        self.store = CaseStore(path, self.settings, key)
        self.store.begin({"cluster": "c"})
        self._ends: dict[tuple[str, int], int] = {}

    def record(self, message: Any, at: datetime = NOON, partition: int = 0, topic: Topic | None = None) -> Record:
        topic = topic or topic_of(message)
        offset = self._ends.get((topic.name, partition), 0)
        self._ends[topic.name, partition] = offset + 1
        value = message if isinstance(message, bytes) else encode(message)
        return Record(self.settings.topic(topic.name), partition, offset, microseconds(at) // 1_000, b"key", value)

    def feed(self, *messages: Any, at: datetime = NOON, partition: int = 0) -> frozenset[str]:
        return self.apply([self.record(message, at, partition) for message in messages])

    def apply(self, records: list[Record]) -> frozenset[str]:
        return self.store.apply(records, dict(self._ends), caught_up=True)


def table_rows(store: CaseStore) -> dict[str, list[tuple[Any, ...]]]:
    """All rows of all tables but what says how the file came to be."""
    from pipeline.console.tables import TABLES, open_for_reading

    connection = open_for_reading(store.path)
    try:
        return {
            name: sorted((tuple(row) for row in connection.execute(f"SELECT * FROM {name}")), key=repr)
            for name in TABLES
            if name != "positions"
        }
    finally:
        connection.close()


@contextmanager
def console(
    settings: Settings, path: Path, key: bytes = KEY, on_change: Callable[[frozenset[str]], None] = lambda _: None
) -> Iterator[tuple[CaseStore, TopicsReader]]:
    """A store with a reader that follows the topics of the settings, and has caught up."""
    assert settings.kafka_bootstrap_servers is not None
    store = CaseStore(path, settings, key)
    reader = TopicsReader(settings.kafka_bootstrap_servers, settings, store, on_change)
    reader.start()
    try:
        eventually(reader.caught_up.is_set)
        yield store, reader
    finally:
        reader.stop()
        store.close()


def publish(settings: Settings, *messages: Any, at: datetime = NOON) -> None:
    """Write messages to their topics, keyed as their writers key them."""
    assert settings.kafka_bootstrap_servers is not None
    producer = shared_producer(settings.kafka_bootstrap_servers)
    for message in messages:
        key = message.case_id if isinstance(message, CaseEvent) else message.card_id
        topic = settings.topic(topic_of(message).name)
        producer.produce(topic, encode(message), key.encode(), timestamp=microseconds(at) // 1_000)
    assert producer.flush(TIMEOUT_S) == 0
