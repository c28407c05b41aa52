"""What the topics hold after a run, read as any program outside would, and what the producer says that it sent."""

import base64
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, TopicPartition

from tests.reference.blocks import read_block, read_features

INPUTS = ("transactions", "labels")
NUMBER_HEADER = "chaos-number"
"""Header of every input that is sent: its number in the ledger."""
HOSTILE_HEADER = "chaos-hostile"
"""Header of every record that is written where only agents write: its number in the ledger. Readers go by no header."""
ORIGINS = {"rerouted": "rerouted-", "accepted-labels": "label-"}
"""By topic of forwarded records: what the names of the headers that tell where a record lay begin with."""
BLOCKS: Mapping[str, Callable[[bytes], list[dict[str, Any]]]] = {"profiled": read_block, "features": read_features}
"""Readers of the topics whose records hold many rows, by topic."""
QUIET_READS = 100
POLL_S = 0.2
TOPIC_NAMES = (
    "transactions",
    "labels",
    "rerouted",
    "accepted-labels",
    "profiled",
    "decisions",
    "features",
    "alerts",
    "examples",
    "models",
    "control",
    "dead-letters",
    "progress",
)

UNREADABLE = (
    KafkaError._BAD_COMPRESSION,
    KafkaError._BAD_MSG,
    KafkaError._UNDERFLOW,
    KafkaError._NOT_IMPLEMENTED,
)
"""What a client says of a record batch that it cannot read."""

Place = tuple[str, int, int]
"""Topic without prefix, partition, offset."""
Key = tuple[str, str]
"""Card and transaction."""


class Entry(NamedTuple):
    """A record as a reader of committed records sees it."""

    topic: str
    partition: int
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...] = ()
    row: int = 0
    """Number of a row of a block on ``profiled`` or ``features``, whose value is that of the row alone."""

    @property
    def log(self) -> tuple[int, int, int]:
        """Partition, offset and row, as a decision's ``log`` names those of ``profiled``."""
        return self.partition, self.offset, self.row

    @property
    def place(self) -> Place:
        """Where it stands."""
        return self.topic, self.partition, self.offset

    def header(self, name: str) -> bytes | None:
        """The last header of that name."""
        return dict(self.headers).get(name)

    @property
    def hostile(self) -> bool:
        """Whether this run wrote it in the agents' place, so that it must change nothing."""
        return any(name == HOSTILE_HEADER for name, _ in self.headers)


class Sent(NamedTuple):
    """An input in the producer's ledger, with what must become of it."""

    number: int
    topic: str
    partition: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    kind: str
    """What the load meant by it: ``plain``, ``late``, ``repeat``, ``garbage`` and so on."""
    dead: str | None
    """The code of the dead letter that it must become; None for a transaction or label that must be accepted."""
    card: str = ""
    transaction: str = ""
    hostile: bool = False
    """Whether it is no input: a record in the agents' place, or a record batch that nobody can read."""
    agents: tuple[str, ...] = ()
    """Agents that must write a dead letter of something hostile, each with the code ``dead``."""
    offset: int = -1
    """Where something hostile was written: its offset, or that of the first record of a batch."""
    end: int = -1
    """Offset behind the last record of a batch that nobody can read."""


@dataclass(frozen=True)
class Logs:
    """All committed records by topic, in the order (partition, offset); equal contents are decoded once."""

    topics: Mapping[str, Sequence[Entry]]
    _decoded: dict[str, list[tuple[Entry, Any]]] = field(default_factory=dict, compare=False, repr=False)

    def entries(self, topic: str) -> Sequence[Entry]:
        """Records of one topic."""
        return self.topics.get(topic, ())

    def decoded(self, topic: str) -> list[tuple[Entry, Any]]:
        """Records of one topic that only agents write to, with their JSON values; hostile ones are left out."""
        if topic not in self._decoded:
            self._decoded[topic] = [
                (entry, json.loads(entry.value or b"null")) for entry in self.entries(topic) if not entry.hostile
            ]
        return self._decoded[topic]

    def changed(self, topic: str, change: Callable[[list[Entry]], Iterable[Entry]]) -> "Logs":
        """The same logs but for one topic."""
        return Logs({**self.topics, topic: tuple(change(list(self.entries(topic))))})

    @cached_property
    def size(self) -> int:
        """Number of records."""
        return sum(map(len, self.topics.values()))


def read_logs(bootstrap: str, prefix: str, topics: Sequence[str] = TOPIC_NAMES) -> Logs:
    """Everything that is committed now; a topic that does not exist is empty.

    A record batch that cannot be read is passed over where ``control`` names its offsets. Raises ``KafkaException``
    where it does not, or where a topic cannot be read for another reason.
    """
    skipped: dict[Place, int] = {}
    found = _read(bootstrap, prefix, [name for name in topics if name == "control"], skipped)
    for entry in found.get("control", ()):
        item = _control(entry)
        if item.get("kind") == "quarantine" and "end" in item["position"]:
            at = item["position"]
            skipped[at["topic"], at["partition"], at["offset"]] = at["end"]
    found |= _read(bootstrap, prefix, [name for name in topics if name != "control"], skipped)
    for name in BLOCKS.keys() & found.keys():
        found[name] = [row for entry in found[name] for row in rows_of(entry)]
    return Logs({name: tuple(sorted(entries, key=lambda e: e.log)) for name, entries in found.items()})


def rows_of(entry: Entry) -> list[Entry]:
    """The rows of a block, each as JSON; what this run wrote in the agents' place stays as it is."""
    if entry.hostile:
        return [entry]
    rows = BLOCKS[entry.topic](entry.value or b"")
    return [entry._replace(value=json.dumps(item).encode(), row=row) for row, item in enumerate(rows)]


def _control(entry: Entry) -> dict[str, Any]:
    return {} if entry.hostile else dict(json.loads(entry.value or b"{}"))


def _read(bootstrap: str, prefix: str, topics: Sequence[str], skipped: Mapping[Place, int]) -> dict[str, list[Entry]]:
    """All records of ``topics``; of what cannot be read, ``skipped`` says by its first place where reading goes on."""
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": "chaos-checker",
            "isolation.level": "read_committed",
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            "auto.offset.reset": "error",
            "fetch.message.max.bytes": 32 * 1024 * 1024,
            "check.crcs": True,
        }
    )
    found: dict[str, list[Entry]] = {name: [] for name in topics}
    try:
        existing = consumer.list_topics(timeout=30.0).topics
        waiting: set[tuple[str, int]] = set()
        for name in topics:
            if (metadata := existing.get(prefix + name)) is not None:
                waiting |= {(prefix + name, number) for number in metadata.partitions}
        consumer.assign([TopicPartition(name, number, OFFSET_BEGINNING) for name, number in sorted(waiting)])
        behind: dict[tuple[str, int], int] = {}
        silent = 0
        while waiting:
            message = consumer.poll(POLL_S)
            if message is None:
                silent += 1
                if silent > QUIET_READS:
                    raise RuntimeError(f"the ends of {sorted(waiting)} are not reached; is the broker there?")
                continue
            silent = 0
            at, name = (message.topic(), message.partition()), message.topic().removeprefix(prefix)
            if (error := message.error()) is not None:
                end = skipped.get((name, at[1], message.offset()))
                if error.code() == KafkaError._PARTITION_EOF:
                    waiting.discard(at)
                elif error.code() in UNREADABLE and end is not None:
                    behind[at] = end
                    _go_on(consumer, TopicPartition(*at, end))
                elif error.code() == KafkaError._AUTO_OFFSET_RESET and at in behind:
                    # The client had gone on somewhere behind a damaged batch.
                    _go_on(consumer, TopicPartition(*at, behind[at]))
                else:
                    raise KafkaException(error)
                continue
            if message.offset() < behind.get(at, 0):
                continue
            found[name].append(
                Entry(
                    name,
                    message.partition(),
                    message.offset(),
                    message.timestamp()[1],
                    message.key(),
                    message.value(),
                    tuple(message.headers() or ()),
                )
            )
    finally:
        consumer.close()
    return found


def _go_on(consumer: Consumer, place: TopicPartition) -> None:
    """Read a partition from another offset; assign it anew where the client has given it up behind a damaged batch."""
    try:
        consumer.seek(place)
    except KafkaException as error:
        if error.args[0].code() != KafkaError._STATE:
            raise
        others = [
            record
            for record in consumer.assignment()
            if (record.topic, record.partition) != (place.topic, place.partition)
        ]
        at = [record for record in consumer.position(others) if record.offset >= 0]
        known = {(record.topic, record.partition) for record in at}
        fresh = [TopicPartition(record.topic, record.partition, OFFSET_BEGINNING) for record in others
                 if (record.topic, record.partition) not in known]  # fmt: skip
        consumer.assign([*at, *fresh, place])


def origin_of(entry: Entry, prefix: str) -> Place | None:
    """Where a forwarded record was sent to, by its headers."""
    topic, partition, offset = (entry.header(ORIGINS[entry.topic] + name) for name in ("topic", "partition", "offset"))
    if topic is None or partition is None or offset is None:
        return None
    return topic.decode().removeprefix(prefix), int(partition), int(offset)


def save(path: Path, rows: Iterable[Entry | Sent]) -> None:
    """Write records as JSON lines, for a look afterwards."""
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row._asdict(), default=_text) + "\n")


def exact(value: bytes) -> Any:
    """JSON with every number as it is written."""
    return json.loads(value, parse_float=Decimal)


def _text(value: bytes) -> dict[str, str]:
    return {"base64": base64.b64encode(value).decode()}
