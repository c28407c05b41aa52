"""The progress of an agent by its results: it shows lost offsets and topics made anew."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec
from confluent_kafka import IsolationLevel

from pipeline.kafka.checks.evidence import CHECKED_RECORDS, Claim, read_batches, records_below
from pipeline.kafka.cluster.clients import admin_client
from pipeline.kafka.cluster.log_offsets import first_offsets, last_offsets, partition_numbers
from pipeline.kafka.readers.replay_reader import decode_progress
from pipeline.kafka.records.batch import Partition
from pipeline.kafka.records.internal import OnRefused, not_counted, readable
from pipeline.settings import Settings
from schemas.messages import Offset
from schemas.records import Record
from schemas.topics import DECISIONS, PROFILED, PROGRESS, Topic, has_order


class ResultBatch(NamedTuple):
    """A batch as its results show it."""

    start: int
    end: int
    """Offset behind its last record."""
    timestamp_ms: int
    """When the results were written."""
    decided_at: str = ""


class _LogPosition(msgspec.Struct, frozen=True):
    partition: int
    offset: Offset


class _Decided(msgspec.Struct, frozen=True):
    """The part of a decision that names its record of `profiled`."""

    log: _LogPosition | None = None
    decided_at: str = ""


_decode_decided = msgspec.json.Decoder(_Decided).decode


@dataclass(slots=True)
class ResultOffsets:
    """The ends of an agent's results; offsets by topic (full name) and partition number."""

    ends: dict[Partition, int] = field(default_factory=dict)
    """Offset behind the last record that a result names."""
    times_ms: dict[Partition, int] = field(default_factory=dict)
    """Timestamp of that result."""
    newest: dict[Partition, int] = field(default_factory=dict)
    """The same of the newest result alone, which may be of a topic that was made anew since."""
    numbers: set[int] = field(default_factory=set)
    """Partition numbers of ``progress`` that have a record of the agent."""

    def add(self, at: Partition, end: int, record: Record) -> None:
        """Take in that the result ``record`` names what lies below ``end``."""
        if end > self.ends.get(at, 0):
            self.ends[at], self.times_ms[at] = end, record.timestamp_ms

    def claims(self, starts: Mapping[Partition, int]) -> dict[Partition, Claim]:
        """Return what results claim of partitions without a committed offset: that they were read behind ``starts``."""
        return {
            at: Claim(range(start, self.ends[at]), self.times_ms[at], committed=False)
            for at, start in starts.items()
            if self.ends.get(at, 0) > start
        }


def decided(bootstrap: str, settings: Settings, on_refused: OnRefused = not_counted) -> ResultOffsets:
    """Find the score agent's offsets in `profiled` by its decisions; the middle of a log is not read."""
    results = ResultOffsets()
    numbers = partition_numbers(admin_client(bootstrap, settings=settings), settings.topic(DECISIONS.name))
    profiled = settings.topic(PROFILED.name)
    for records in _both_ends(bootstrap, DECISIONS, numbers, settings, on_refused):
        for record, decision in readable(records, _decode_decided, on_refused):
            if (log := decision.log) is not None:
                results.add((profiled, log.partition), log.offset + 1, record)
    return results


def progressed(
    bootstrap: str,
    agent: str,
    numbers: Collection[int],
    settings: Settings,
    on_refused: OnRefused = not_counted,
) -> ResultOffsets:
    """Find the offsets of an agent of several inputs; the middle of `progress` is not read."""
    results = ResultOffsets()
    # A topic whose partitions are too few is reported by another check.
    there = partition_numbers(admin_client(bootstrap, settings=settings), settings.topic(PROGRESS.name))
    asked = sorted({*numbers} & {*there})
    newest, oldest = _both_ends(bootstrap, PROGRESS, asked, settings, on_refused)
    for at, end, record in _of_progress(newest, agent, settings, on_refused):
        results.newest[at] = end
        results.add(at, end, record)
    for at, end, record in _of_progress(oldest, agent, settings, on_refused):
        results.add(at, end, record)
    results.numbers = {number for _, number in results.ends}
    return results


def result_offsets(
    bootstrap: str,
    agent: str,
    reads: Collection[Topic],
    numbers: Collection[int],
    settings: Settings,
    on_refused: OnRefused = not_counted,
) -> ResultOffsets:
    """Find the offsets of an agent that ``reads`` these topics by its results; empty where they name no input."""
    if has_order(reads):
        return progressed(bootstrap, agent, numbers, settings, on_refused)
    return decided(bootstrap, settings, on_refused) if PROFILED in reads else ResultOffsets()


def newest_batches(
    bootstrap: str,
    agent: str,
    reads: Collection[Topic],
    numbers: Collection[int],
    settings: Settings,
    on_refused: OnRefused = not_counted,
) -> dict[Partition, ResultBatch]:
    """Return the newest batch that an agent's results show, by input partition.

    Its end may be ahead of the group's offsets for good: a worker that delivers at least once can die between its
    results and their offsets. A partition of which the last ``CHECKED_RECORDS`` results show nothing is absent.
    """
    topic, key = (PROGRESS, agent.encode()) if has_order(reads) else (DECISIONS, None)
    if key is None and PROFILED not in reads:
        return {}
    name, profiled = settings.topic(topic.name), settings.topic(PROFILED.name)
    client = admin_client(bootstrap, settings=settings)
    asked = partition_numbers(client, name)
    partitions = [(name, number) for number in asked if key is None or number in numbers]
    ends = last_offsets(client, partitions, IsolationLevel.READ_COMMITTED)
    tails = {number: max(0, ends[name, number] - CHECKED_RECORDS) for _, number in partitions if ends[name, number]}
    if not tails:
        return {}
    found: dict[Partition, ResultBatch] = {}
    reading = read_batches(
        bootstrap, name, settings=settings, partitions=list(tails), start=tails, on_refused=on_refused
    )
    with closing(reading) as batches:
        every = (record for records in batches for record in records)
        if key is not None:
            own = (record for record in every if record.key == key)
            for record, marker in readable(own, decode_progress, on_refused):
                for name, end in marker.ends.items():
                    # In the order of the log, which is that of the batches.
                    start = marker.starts.get(name, end)
                    found[settings.topic(name), record.partition] = ResultBatch(start, end, record.timestamp_ms)
        else:
            for record, decision in readable(every, _decode_decided, on_refused):
                if decision.log is not None:
                    at = (profiled, decision.log.partition)
                    found[at] = _newer(found.get(at), decision.log.offset, decision.decided_at, record.timestamp_ms)
    return found


def _newer(known: ResultBatch | None, offset: int, decided_at: str, timestamp_ms: int) -> ResultBatch:
    """The newer batch of two: decisions of one batch bear one time, and lie in several partitions."""
    if known is not None and known.decided_at == decided_at:
        return known._replace(start=min(known.start, offset), end=max(known.end, offset + 1))
    if known is not None and known.timestamp_ms > timestamp_ms:
        return known
    return ResultBatch(offset, offset + 1, timestamp_ms, decided_at)


def _of_progress(
    records: Iterable[Record], agent: str, settings: Settings, on_refused: OnRefused
) -> Iterator[tuple[Partition, int, Record]]:
    key = agent.encode()
    own = (record for record in records if record.key == key)
    for record, marker in readable(own, decode_progress, on_refused):
        for name, end in marker.ends.items():
            yield (settings.topic(name), record.partition), end, record


def _both_ends(
    bootstrap: str, topic: Topic, numbers: Sequence[int], settings: Settings, on_refused: OnRefused
) -> tuple[list[Record], list[Record]]:
    """The newest records of partitions of ``topic``, and the oldest where those are not among the newest."""
    name = settings.topic(topic.name)
    client = admin_client(bootstrap, settings=settings)
    partitions = [(name, number) for number in numbers]
    first = first_offsets(client, partitions)
    end = last_offsets(client, partitions, IsolationLevel.READ_COMMITTED)
    # On topics that are empty no reader need be made.
    partitions = [partition for partition in partitions if end[partition] > first[partition]]
    if not partitions:
        return [], []
    firsts = {partition[1]: first[partition] for partition in partitions}
    tails = {partition[1]: max(first[partition], end[partition] - CHECKED_RECORDS) for partition in partitions}
    # From their beginning as it is then: retention may move it meanwhile.
    left = {number: first + CHECKED_RECORDS for number, first in firsts.items() if tails[number] > first}
    ends = {number: end[name, number] for number in tails}
    newest = records_below(bootstrap, name, settings, ends, tails, on_refused)
    return [*newest], [*records_below(bootstrap, name, settings, left, on_refused=on_refused)]
