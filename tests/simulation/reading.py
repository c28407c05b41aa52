"""What a simulated cluster's logs say, decoded once for all checks."""

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import msgspec

from pipeline.engine.encoding.blocks import BlockError
from pipeline.engine.records.forwarding import NotForwarded, origin
from pipeline.engine.scores.block_messages import read_messages
from pipeline.engine.scores.decision_records import read_feature_messages
from schemas.errors import UNREADABLE
from schemas.messages import (
    Alert,
    Control,
    Decision,
    DecisionFeatures,
    Example,
    ModelVersion,
    Profiled,
    ProfiledTransaction,
    Progress,
    RecordPosition,
)
from schemas.records import Record
from schemas.topics import ACCEPTED_LABELS, REROUTED
from tests.simulation.model_kafka import Cluster, Committed
from tests.simulation.names import PREFIX

T = TypeVar("T")
FORWARDED = {topic.name: topic for topic in (REROUTED, ACCEPTED_LABELS)}
"""Topics of forwarded records."""
At = tuple[str, int, int]
"""Topic without prefix, partition, offset."""

decode_decision = msgspec.json.Decoder(Decision).decode
decode_alert = msgspec.json.Decoder(Alert).decode
decode_example = msgspec.json.Decoder(Example).decode
decode_control = msgspec.json.Decoder(Control).decode
decode_version = msgspec.json.Decoder(ModelVersion).decode
decode_progress = msgspec.json.Decoder(Progress).decode


class DeadLetter(NamedTuple):
    """The position that a dead letter names, who wrote it and why."""

    at: At
    end: int
    stage: str
    code: str
    row: int | None = None


def at_of(position: RecordPosition) -> At:
    return position.topic, position.partition, position.offset


def place_of(record: Record) -> At:
    return bare(record.topic), record.partition, record.offset


def bare(topic: str) -> str:
    return topic.removeprefix(PREFIX)


def dead_letter(record: Record) -> DeadLetter:
    own = {name.removeprefix("dead-letter-"): (value or b"").decode() for name, value in record.headers}
    offset = int(own["offset"])
    at = (bare(own["topic"]), int(own["partition"]), offset)
    row = int(own["row"]) if "row" in own else None
    return DeadLetter(at, int(own.get("end", offset + 1)), own["stage"], own["error"], row)


def messages(records: list[Record], topic: str, decode: Callable[[bytes], T]) -> Iterator[tuple[Record, T]]:
    """Yield the records of a topic (without prefix) that can be decoded, with their messages."""
    for record in records:
        if record.topic == PREFIX + topic:
            try:
                yield record, decode(record.value or b"")
            except UNREADABLE:
                continue


def written(record: Record) -> bytes:
    """Return what producers wrote of a record: of a block, of all rows that are not to be skipped."""
    rows: dict[int, bytes] = {
        row: bytes(message.transaction if isinstance(message, ProfiledTransaction) else message.label)
        for _, row, message in profiled_rows([record])
    }
    rows |= {row: msgspec.json.encode(message) for _, row, message in feature_rows([record])}
    left = [value for row, value in rows.items() if row not in record.skipped_rows]
    return b"\n".join(left) if left else record.value or b""


def feature_rows(records: list[Record]) -> Iterator[tuple[Record, int, DecisionFeatures]]:
    """Yield the rows of the blocks on ``features`` that can be read, with their records and numbers."""
    return _block_rows(records, "features", read_feature_messages)


def profiled_rows(records: list[Record]) -> Iterator[tuple[Record, int, Profiled]]:
    """Yield the rows of the blocks on ``profiled`` that can be read, with their records and numbers."""
    return _block_rows(records, "profiled", read_messages)


def _block_rows(
    records: list[Record], topic: str, read: Callable[[bytes | None], list[T]]
) -> Iterator[tuple[Record, int, T]]:
    for record in records:
        if record.topic == PREFIX + topic:
            try:
                rows = read(record.value)
            except BlockError:
                continue
            yield from ((record, row, message) for row, message in enumerate(rows))


def accepted_in_order(records: list[Record]) -> list[ProfiledTransaction]:
    """Return the transactions on ``profiled`` in the order in which one batch of the card agent read them."""
    found = [message for _, _, message in profiled_rows(records) if isinstance(message, ProfiledTransaction)]

    def position(message: ProfiledTransaction) -> tuple[int, int, int]:
        at = message.read or message.source
        return at.partition, ("transactions", "rerouted").index(at.topic), at.offset

    return sorted(found, key=position)


@dataclass
class Logs:
    """All that lies on a cluster; what agents committed, and what the simulation wrote in between."""

    cluster: Cluster
    records: dict[str, list[Record]] = field(default_factory=lambda: defaultdict(list))
    """By topic without prefix, partition by partition."""
    dead: list[DeadLetter] = field(default_factory=list)

    def __post_init__(self) -> None:
        for (topic, _), log in sorted(self.cluster.logs.items()):
            self.records[bare(topic)] += [entry for entry in log.entries if isinstance(entry, Record)]
        self.dead = [dead_letter(record) for record in self.records["dead-letters"]]

    def messages_of(self, topic: str, decode: Callable[[bytes], T]) -> list[tuple[Record, T]]:
        return list(messages(self.records[topic], topic, decode))

    def transactions(self, agent: str) -> list[Committed]:
        """Return the transactions of an agent, but for those that only put marks beside offsets."""
        mine = [transaction for transaction in self.cluster.transactions if transaction.group == PREFIX + agent]
        return [item for item in mine if any(len(offsets) for offsets in item.offsets.values())]

    def original(self, record: Record) -> Record:
        """Return the record as it lay with its producer; as it is, where nobody can tell."""
        topic = FORWARDED.get(bare(record.topic))
        if topic is None:
            return record
        try:
            return origin(record, topic, PREFIX).record
        except NotForwarded:
            return record

    def at(self, position: At) -> Record:
        topic, number, offset = position
        entry = self.cluster.logs[PREFIX + topic, number].at(offset)
        assert isinstance(entry, Record)
        assert entry.offset == offset
        return entry


def fields(record: Record) -> dict[str, Any]:
    """Return the fields of what a producer wrote, none of what is no JSON object."""
    try:
        found = msgspec.json.decode(record.value or b"")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
