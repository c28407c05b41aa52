"""What an agent's results tell of how far it had read: it shows lost offsets and topics made anew."""

from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import msgspec
from confluent_kafka import IsolationLevel

from pipeline.kafka.clients import (
    admin_client,
    first_offsets,
    last_offsets,
    partition_numbers,
    patiently,
    read_batches,
)
from pipeline.settings import Settings
from schemas.messages import Progress
from schemas.records import Record
from schemas.topics import DECISIONS, PROFILED, PROGRESS, Topic

TRACE_RECORDS: Final = 2_000
"""Records at either end of a partition in which a trace is looked for."""
NEWEST_RECORDS: Final = 200
"""Records at the end of a partition in which the newest trace is looked for at every assignment."""

Partition = tuple[str, int]


class _Log(msgspec.Struct, frozen=True):
    partition: int
    offset: int


class _Decided(msgspec.Struct, frozen=True):
    """As much of a decision as tells which record of `profiled` it is of."""

    log: _Log | None = None


_decode_progress = msgspec.json.Decoder(Progress).decode
_decode_decided = msgspec.json.Decoder(_Decided).decode


@dataclass(slots=True)
class Traces:
    """How far an agent had read, as the ends of its results tell; offsets by topic (full name) and partition number."""

    ends: dict[Partition, int] = field(default_factory=dict)
    """Offset behind the last record of which a result was found."""
    newest: dict[Partition, int] = field(default_factory=dict)
    """The same of the newest result alone, which may be of a topic that was made anew since."""
    numbers: set[int] = field(default_factory=set)
    """Partition numbers of ``progress`` that tell anything of the agent."""


def any_record(bootstrap: str, topic: Topic, settings: Settings) -> bool:
    """Whether ``topic`` holds a committed record; what aborted transactions left is none."""
    with closing(read_batches(bootstrap, settings.topic(topic.name), settings=settings)) as batches:
        return next(batches, None) is not None


def decided(bootstrap: str, settings: Settings, *, newest_only: bool = False) -> Traces:
    """How far the score agent had read `profiled`, as decisions tell; what only the middle of a log tells is missed."""
    traces = Traces()
    numbers = partition_numbers(admin_client(bootstrap, settings=settings), settings.topic(DECISIONS.name))
    newest, oldest = _both_ends(bootstrap, DECISIONS, numbers, settings, newest_only=newest_only)
    # Each partition of decisions tells in its own order; what was read last is the furthest of what they tell last.
    last: dict[tuple[int, Partition], int] = {}
    for number, at, end in _of_decisions(newest, settings):
        last[number, at] = end
        traces.ends[at] = max(traces.ends.get(at, 0), end)
    for (_, at), end in last.items():
        traces.newest[at] = max(traces.newest.get(at, 0), end)
    for _, at, end in _of_decisions(oldest, settings):
        traces.ends[at] = max(traces.ends.get(at, 0), end)
    return traces


def progressed(
    bootstrap: str, agent: str, numbers: Collection[int], settings: Settings, *, newest_only: bool = False
) -> Traces:
    """How far an agent of several inputs had read; what only the middle of `progress` tells is missed."""
    traces = Traces()
    # A topic whose partitions are too few is told by another check.
    there = partition_numbers(admin_client(bootstrap, settings=settings), settings.topic(PROGRESS.name))
    asked = sorted({*numbers} & {*there})
    newest, oldest = _both_ends(bootstrap, PROGRESS, asked, settings, newest_only=newest_only)
    for at, end in _of_progress(newest, agent, settings):
        traces.newest[at] = end
        traces.ends[at] = max(traces.ends.get(at, 0), end)
    for at, end in _of_progress(oldest, agent, settings):
        traces.ends[at] = max(traces.ends.get(at, 0), end)
    traces.numbers = {number for _, number in traces.ends}
    return traces


def traces_of(
    bootstrap: str,
    agent: str,
    reads: Collection[Topic],
    numbers: Collection[int],
    settings: Settings,
    *,
    newest_only: bool = False,
) -> Traces:
    """What the results of an agent that ``reads`` these topics tell; nothing where they do not say what they are of.

    ``newest_only`` looks at a few results, and no further than those.
    """
    if len(reads) > 1:
        return progressed(bootstrap, agent, numbers, settings, newest_only=newest_only)
    return decided(bootstrap, settings, newest_only=newest_only) if PROFILED in reads else Traces()


def _of_decisions(records: Iterable[Record], settings: Settings) -> Iterator[tuple[int, Partition, int]]:
    profiled = settings.topic(PROFILED.name)
    for record in records:
        if record.value is not None and (log := _decode_decided(record.value).log) is not None:
            yield record.partition, (profiled, log.partition), log.offset + 1


def _of_progress(records: Iterable[Record], agent: str, settings: Settings) -> Iterator[tuple[Partition, int]]:
    key = agent.encode()
    for record in records:
        if record.key == key and record.value is not None:
            for name, end in _decode_progress(record.value).ends.items():
                yield (settings.topic(name), record.partition), end


def _both_ends(
    bootstrap: str, topic: Topic, numbers: Sequence[int], settings: Settings, *, newest_only: bool
) -> tuple[list[Record], list[Record]]:
    """The newest records of partitions of ``topic``, and the oldest where those are not among the newest."""
    name = settings.topic(topic.name)
    client = admin_client(bootstrap, settings=settings)
    places = [(name, number) for number in numbers]
    first = patiently(partial(first_offsets, client, places))
    end = patiently(partial(last_offsets, client, places, IsolationLevel.READ_COMMITTED))
    # On topics that are empty no reader need be made.
    places = [place for place in places if end[place] > first[place]]
    if not places:
        return [], []
    firsts = {place[1]: first[place] for place in places}
    far = NEWEST_RECORDS if newest_only else TRACE_RECORDS
    tails = {place[1]: max(first[place], end[place] - far) for place in places}
    newest: list[Record] = []
    with closing(read_batches(bootstrap, name, settings=settings, partitions=list(tails), start=tails)) as batches:
        for records in batches:
            newest += records
    # From their beginning as it is then: retention may move it meanwhile.
    left = {number for number in tails if tails[number] > firsts[number] and not newest_only}
    oldest: list[Record] = []
    if left:
        with closing(read_batches(bootstrap, name, settings=settings, partitions=sorted(left))) as batches:
            for records in batches:
                oldest += records
                left -= {
                    record.partition for record in records if record.offset >= firsts[record.partition] + TRACE_RECORDS
                }
                if not left:
                    break
    return newest, oldest
