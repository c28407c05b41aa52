"""The evidence that an agent's results give of what it has read.

Markers on ``progress`` and decisions say how far that is, and whoever may write there can say anything. A worker
refuses to go on only where a second topic bears them out: with results of records that the group's offsets leave out.
"""

from collections.abc import Generator, Iterator, Mapping, Sequence, Set
from contextlib import closing
from functools import partial
from typing import Final, NamedTuple

import msgspec
from confluent_kafka.admin import AdminClient

from pipeline.engine.encoding import blocks
from pipeline.engine.encoding.blocks import Block, Sources, parse_block
from pipeline.engine.encoding.row_columns import INPUT_OFFSET, INPUT_PARTITION, LOG_ROW
from pipeline.engine.records.forwarding import origin
from pipeline.engine.records.partitioner import partition_of
from pipeline.engine.scores.feature_blocks import read_features
from pipeline.kafka.cluster.clients import admin_client
from pipeline.kafka.cluster.log_offsets import first_offsets, offsets_at, partition_numbers
from pipeline.kafka.readers import topic_reader
from pipeline.kafka.records.batch import Partition
from pipeline.kafka.records.internal import OnRefused, not_counted, refuse
from pipeline.kafka.records.member import Member
from pipeline.settings import Settings
from schemas.codec import timestamp_us
from schemas.errors import UNREADABLE
from schemas.messages import Alert, Decision, Example, Label
from schemas.records import LATEST_STAMP_MS, Record
from schemas.topics import (
    ACCEPTED_LABELS,
    ALERTS,
    DEAD_LETTERS,
    DECISION_FEATURES,
    DECISIONS,
    EXAMPLES,
    PROFILED,
    REROUTED,
    TRANSACTIONS,
    Topic,
)

CHECKED_RECORDS: Final = 2_000
"""Most records of a partition that are looked at in one place."""
_AROUND_MS: Final = 10_000
"""The results of a batch are written at most so long before its marker, or behind it."""
_NO_RESULT: Final = (*UNREADABLE, ValueError)
_DECODERS: Final = {
    DECISIONS: msgspec.json.Decoder(Decision).decode,
    ALERTS: msgspec.json.Decoder(Alert).decode,
}
_decode_example: Final = msgspec.json.Decoder(Example).decode
_decode_label: Final = msgspec.json.Decoder(Label).decode

read_batches = partial(topic_reader.read_batches, skip_unreadable=True)
"""These checks decide nothing, and an unreadable batch must not keep the agent from starting that quarantines it."""

_Name = tuple[str | int, ...]
"""What results call a record: a position, a decision's on ``profiled``, or a label by card, transaction and time."""


class Claim(NamedTuple):
    """The records of a partition of which a marker or a decision says that they were read."""

    offsets: range
    """Begins where the group would go on."""
    timestamp_ms: int
    """Of the marker or decision."""
    committed: bool = True
    """False if the group has no offset of the partition."""


def records_within(
    bootstrap: str, name: str, settings: Settings, windows: Mapping[int, range], on_refused: OnRefused = not_counted
) -> Generator[Record, None, None]:
    """Yield the committed records within a range of offsets of each partition of a topic (full name)."""
    windows = {number: window for number, window in windows.items() if window}
    left = set(windows)
    if not left:
        return
    starts = {number: window.start for number, window in windows.items()}
    reading = read_batches(
        bootstrap, name, settings=settings, partitions=sorted(left), start=starts, on_refused=on_refused
    )
    with closing(reading) as batches:
        for records in batches:
            yield from (record for record in records if record.offset < windows[record.partition].stop)
            left -= {record.partition for record in records if record.offset + 1 >= windows[record.partition].stop}
            if not left:
                return


def any_result(member: Member, topic: Topic) -> bool:
    """Return whether ``topic`` holds a committed result of an agent; a record that can be none is refused."""
    traces = _Traces(member)
    name = member.settings.topic(topic.name)
    reading = read_batches(member.bootstrap, name, settings=member.settings, on_refused=member.on_refused)
    with closing(reading) as batches:
        return any(traces.take(record, topic) for records in batches for record in records)


def borne_out(member: Member, claims: Mapping[Partition, Claim]) -> set[Partition]:
    """Return the partitions (topics: full names) whose claims a second topic bears out.

    Raises:
        TopicError: A topic is missing.
        KafkaException: No broker answers.
    """
    if not claims:
        return set()
    client, reads = admin_client(member.bootstrap, settings=member.settings), member.reads
    second = PROFILED if TRANSACTIONS in reads else DECISION_FEATURES if PROFILED in reads else EXAMPLES
    traces = _Traces(member)
    found = set()
    for partition, claim in sorted(claims.items()):
        names = _names_in_results(client, member, partition, claim)
        for topic in (None, second, DEAD_LETTERS):
            if topic is not None:
                for record in _at_about(client, member, topic, claim.timestamp_ms):
                    traces.take(record, topic)
            if traces.show(partition, claim, names):
                found.add(partition)
                break
    return found


def _at_about(client: AdminClient, member: Member, topic: Topic, timestamp_ms: int) -> Iterator[Record]:
    """Yield the records of ``topic`` that were written with a marker of this time, and the last ones before it."""
    name = member.settings.topic(topic.name)
    partitions = [(name, number) for number in partition_numbers(client, name)]
    at_ms = min(max(timestamp_ms, _AROUND_MS), LATEST_STAMP_MS)
    starts = offsets_at(client, partitions, at_ms - _AROUND_MS)
    ends = offsets_at(client, partitions, at_ms + _AROUND_MS)
    windows = {at[1]: range(max(starts[at], ends[at] - CHECKED_RECORDS), ends[at]) for at in partitions}
    return records_within(member.bootstrap, name, member.settings, windows)


def _names_in_results(client: AdminClient, member: Member, partition: Partition, claim: Claim) -> set[_Name]:
    """Return what results call the newest records of a claim, where they do not name their position."""
    name, number = partition
    settings, found = member.settings, set[_Name]()
    bare = name.removeprefix(settings.topic_prefix)
    first = first_offsets(client, [partition])[partition]
    start = max(claim.offsets.start, claim.offsets.stop - CHECKED_RECORDS, first)
    if bare not in (ACCEPTED_LABELS.name, DECISION_FEATURES.name) or start >= claim.offsets.stop:
        return found
    for record in records_within(member.bootstrap, name, settings, {number: range(start, claim.offsets.stop)}):
        try:
            if bare == DECISION_FEATURES.name:
                rows = read_features(record).block
                logs = zip(rows.sources.partition.tolist(), rows.sources.offset.tolist(), strict=True)
                found |= {(*log, row) for log, row in zip(logs, rows.whole(LOG_ROW).tolist(), strict=True)}
                continue
            forwarded = origin(record, ACCEPTED_LABELS, settings.topic_prefix)
            label = _decode_label(record.value or b"")
        except _NO_RESULT:
            # The agents that read it refuse it.
            continue
        source = forwarded.record
        found |= {
            (source.topic.removeprefix(settings.topic_prefix), source.partition, source.offset),
            (label.card_id, label.transaction_id, label.source, forwarded.known_at_us or 0),
        }
    return found


class _Traces:
    """The evidence in an agent's results of the records that they were made of."""

    def __init__(self, member: Member) -> None:
        self._agent, self._settings, self._on_refused = member.agent, member.settings, member.on_refused
        self._names: set[_Name] = set()
        self._last: dict[tuple[str, int], int] = {}
        """Largest offset of which there is a result, by topic (without prefix) and partition."""
        self._read: set[tuple[str, int]] = set()
        """Partitions of which some record was read."""

    def show(self, partition: Partition, claim: Claim, names: Set[_Name]) -> bool:
        """Return whether anything that ``claim`` names was read."""
        at = (partition[0].removeprefix(self._settings.topic_prefix), partition[1])
        return (
            self._last.get(at, -1) >= claim.offsets.start
            or (not claim.committed and at in self._read)
            or not self._names.isdisjoint(names)
        )

    def take(self, record: Record, topic: Topic) -> bool:
        """Take a record of ``topic`` in; return whether it is a result of the agent."""
        try:
            return self._take(record, topic)
        except _NO_RESULT as error:
            refuse(record, error, self._on_refused)
            return False

    def _take(self, record: Record, topic: Topic) -> bool:
        value = record.value or b""
        if topic is PROFILED:
            self._profiled(parse_block(value))
        elif topic is DECISION_FEATURES:
            block = read_features(record).block
            self._positions(block.names, block.sources)
        elif topic is DEAD_LETTERS:
            return self._dead_letter(record)
        elif topic in (ACCEPTED_LABELS, REROUTED):
            origin(record, topic, self._settings.topic_prefix)
        elif topic is EXAMPLES:
            self._example(_decode_example(value))
        else:
            _DECODERS[topic](value)
        return True

    def _positions(self, names: Sequence[bytes], sources: Sources) -> None:
        columns = (sources.topic, sources.partition, sources.offset)
        for topic, number, offset in zip(*(column.tolist() for column in columns), strict=True):
            at = (names[topic].decode(), number)
            self._last[at] = max(self._last.get(at, -1), offset)

    def _profiled(self, block: Block) -> None:
        self._positions(block.names, block.sources)
        is_label = block.codes[blocks.KIND] == blocks.LABEL
        inputs = (
            block.whole(INPUT_OFFSET),
            block.whole(INPUT_PARTITION),
            block.codes[blocks.INPUT_NAME],
        )
        self._positions(block.names, Sources(*(column[~is_label] for column in inputs)))
        labels = (block.sources.topic, block.sources.partition, block.sources.offset)
        for topic, number, offset in zip(*(column[is_label].tolist() for column in labels), strict=True):
            self._names.add((block.names[topic].decode(), number, offset))

    def _example(self, example: Example) -> None:
        number = partition_of(example.card_id, self._settings.card_partitions)
        self._read |= {(DECISION_FEATURES.name, number)}
        self._names.add((example.log.partition, example.log.offset, example.log.row))
        if example.label_source is not None:
            self._read.add((ACCEPTED_LABELS.name, number))
            known_at_us = timestamp_us(example.known_at)
            self._names.add((example.card_id, example.transaction_id, example.label_source, known_at_us))

    def _dead_letter(self, record: Record) -> bool:
        own = dict(record.headers)
        if own.get("dead-letter-stage") != self._agent.encode():
            return False
        topic = (own.get("dead-letter-topic") or b"").decode().removeprefix(self._settings.topic_prefix)
        number, offset = (int(own.get(f"dead-letter-{what}") or b"") for what in ("partition", "offset"))
        self._last[topic, number] = max(self._last.get((topic, number), -1), offset)
        self._names.add((topic, number, offset))
        return True
