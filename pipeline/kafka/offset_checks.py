"""The progress of an agent by its results: it shows lost offsets and topics made anew."""

from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from typing import Final, NamedTuple

import msgspec
from confluent_kafka import IsolationLevel

from pipeline.kafka import topic_reader
from pipeline.kafka.batch import Partition
from pipeline.kafka.clients import admin_client
from pipeline.kafka.internal import OnRefused, not_counted, readable
from pipeline.kafka.log_offsets import first_offsets, last_offsets, partition_numbers
from pipeline.kafka.replay_reader import decode_progress
from pipeline.kafka.retries import retried
from pipeline.settings import Settings
from schemas.records import Record
from schemas.topics import DEAD_LETTERS, DECISIONS, PROFILED, PROGRESS, Topic, has_order

CHECKED_RECORDS: Final = 2_000
"""Records at either end of a partition in which a trace is looked for."""


read_batches = partial(topic_reader.read_batches, skip_unreadable=True)
"""These checks decide nothing, and an unreadable batch must not keep the agent from starting that quarantines it."""


class _LogPosition(msgspec.Struct, frozen=True):
    partition: int
    offset: int


class _Decided(msgspec.Struct, frozen=True):
    """The part of a decision that names its record of `profiled`."""

    log: _LogPosition | None = None
    decided_at: str = ""


_decode_decided = msgspec.json.Decoder(_Decided).decode


@dataclass(slots=True)
class ResultOffsets:
    """The ends of an agent's results; offsets by topic (full name) and partition number."""

    ends: dict[Partition, int] = field(default_factory=dict)
    """Offset behind the last record of which a result was found."""
    newest: dict[Partition, int] = field(default_factory=dict)
    """The same of the newest result alone, which may be of a topic that was made anew since."""
    numbers: set[int] = field(default_factory=set)
    """Partition numbers of ``progress`` that have a record of the agent."""


def any_record(bootstrap: str, topic: Topic, settings: Settings, agent: str) -> bool:
    """Return whether ``topic`` holds a committed record of ``agent``; what aborted transactions left is none."""
    with closing(read_batches(bootstrap, settings.topic(topic.name), settings=settings)) as batches:
        if topic is not DEAD_LETTERS:
            return next(batches, None) is not None
        own = ("dead-letter-stage", agent.encode())
        return any(own in record.headers for records in batches for record in records)


def decided(bootstrap: str, settings: Settings, on_refused: OnRefused = not_counted) -> ResultOffsets:
    """Find the score agent's offsets in `profiled` by its decisions; the middle of a log is not read."""
    results = ResultOffsets()
    numbers = partition_numbers(admin_client(bootstrap, settings=settings), settings.topic(DECISIONS.name))
    profiled = settings.topic(PROFILED.name)
    for records in _both_ends(bootstrap, DECISIONS, numbers, settings):
        for _, decision in readable(records, _decode_decided, on_refused):
            if (log := decision.log) is not None:
                at = (profiled, log.partition)
                results.ends[at] = max(results.ends.get(at, 0), log.offset + 1)
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
    newest, oldest = _both_ends(bootstrap, PROGRESS, asked, settings)
    for at, end in _of_progress(newest, agent, settings, on_refused):
        results.newest[at] = end
        results.ends[at] = max(results.ends.get(at, 0), end)
    for at, end in _of_progress(oldest, agent, settings, on_refused):
        results.ends[at] = max(results.ends.get(at, 0), end)
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
) -> dict[Partition, int]:
    """Return the begin of the newest batch that an agent's results show, by input partition.

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
    ends = retried(partial(last_offsets, client, partitions, IsolationLevel.READ_COMMITTED))
    tails = {number: max(0, ends[name, number] - CHECKED_RECORDS) for _, number in partitions if ends[name, number]}
    if not tails:
        return {}
    found: dict[Partition, _ResultBatch] = {}
    with closing(read_batches(bootstrap, name, settings=settings, partitions=list(tails), start=tails)) as batches:
        every = (record for records in batches for record in records)
        if key is not None:
            own = (record for record in every if record.key == key)
            for record, marker in readable(own, decode_progress, on_refused):
                for name, end in marker.ends.items():
                    # In the order of the log, which is that of the batches.
                    found[settings.topic(name), record.partition] = _ResultBatch(marker.starts.get(name, end), "", 0)
        else:
            for record, decision in readable(every, _decode_decided, on_refused):
                if decision.log is not None:
                    at = (profiled, decision.log.partition)
                    found[at] = _newer(found.get(at), decision.log.offset, decision.decided_at, record.timestamp_ms)
    return {at: batch.start for at, batch in found.items()}


class _ResultBatch(NamedTuple):
    start: int
    decided_at: str
    timestamp_ms: int


def _newer(known: _ResultBatch | None, offset: int, decided_at: str, timestamp_ms: int) -> _ResultBatch:
    """The newer batch of two: decisions of one batch bear one time, and lie in several partitions."""
    if known is not None and known.decided_at == decided_at:
        return known._replace(start=min(known.start, offset))
    if known is not None and known.timestamp_ms > timestamp_ms:
        return known
    return _ResultBatch(offset, decided_at, timestamp_ms)


def _of_progress(
    records: Iterable[Record], agent: str, settings: Settings, on_refused: OnRefused
) -> Iterator[tuple[Partition, int]]:
    key = agent.encode()
    own = (record for record in records if record.key == key)
    for record, marker in readable(own, decode_progress, on_refused):
        for name, end in marker.ends.items():
            yield (settings.topic(name), record.partition), end


def _both_ends(
    bootstrap: str, topic: Topic, numbers: Sequence[int], settings: Settings
) -> tuple[list[Record], list[Record]]:
    """The newest records of partitions of ``topic``, and the oldest where those are not among the newest."""
    name = settings.topic(topic.name)
    client = admin_client(bootstrap, settings=settings)
    partitions = [(name, number) for number in numbers]
    first = retried(partial(first_offsets, client, partitions))
    end = retried(partial(last_offsets, client, partitions, IsolationLevel.READ_COMMITTED))
    # On topics that are empty no reader need be made.
    partitions = [partition for partition in partitions if end[partition] > first[partition]]
    if not partitions:
        return [], []
    firsts = {partition[1]: first[partition] for partition in partitions}
    tails = {partition[1]: max(first[partition], end[partition] - CHECKED_RECORDS) for partition in partitions}
    newest: list[Record] = []
    with closing(read_batches(bootstrap, name, settings=settings, partitions=list(tails), start=tails)) as batches:
        for records in batches:
            newest += records
    # From their beginning as it is then: retention may move it meanwhile.
    left = {number for number in tails if tails[number] > firsts[number]}
    oldest: list[Record] = []
    if left:
        with closing(read_batches(bootstrap, name, settings=settings, partitions=sorted(left))) as batches:
            for records in batches:
                oldest += records
                left -= {
                    record.partition
                    for record in records
                    if record.offset >= firsts[record.partition] + CHECKED_RECORDS
                }
                if not left:
                    break
    return newest, oldest
