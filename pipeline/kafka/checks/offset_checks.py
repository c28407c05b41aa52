"""The progress of an agent by its results: it shows lost offsets and topics made anew."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec
from confluent_kafka import IsolationLevel
from confluent_kafka.admin import AdminClient

from pipeline.kafka.checks.evidence import CHECKED_RECORDS, Claim, read_batches, records_within
from pipeline.kafka.cluster.clients import admin_client
from pipeline.kafka.cluster.log_offsets import first_offsets, last_offsets, partition_numbers
from pipeline.kafka.readers.replay_reader import decode_progress
from pipeline.kafka.records.batch import Partition
from pipeline.kafka.records.internal import readable
from pipeline.kafka.records.member import Member
from schemas.messages import Offset
from schemas.records import Record
from schemas.topics import DECISIONS, PROFILED, PROGRESS, has_order


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
    """The offsets up to which an agent has read by its results, by topic (full name) and partition number."""

    furthest: dict[Partition, ResultBatch] = field(default_factory=dict)
    """The batch with the largest end."""
    newest: dict[Partition, int] = field(default_factory=dict)
    """End of the newest one alone, which may be of a topic that was made anew since."""

    def claims(self, starts: Mapping[Partition, int]) -> dict[Partition, Claim]:
        """Return what results claim of partitions without a committed offset: that they were read behind ``starts``."""
        return {
            at: Claim(range(start, known.end), known.timestamp_ms, committed=False)
            for at, start in starts.items()
            if (known := self.furthest.get(at)) is not None and known.end > start
        }


def result_offsets(member: Member, numbers: Collection[int]) -> ResultOffsets:
    """Find an agent's offsets by its results, of its partitions with these ``numbers``; none if they name no input.

    The middle of the logs of results is not read.
    """
    results = ResultOffsets()
    client, partitions = _partitions_of_results(member, numbers)
    newest, oldest = _both_ends(client, member, partitions)
    for records in (newest, oldest):
        for at, batch in _batches_in(member, records):
            if records is newest:
                results.newest[at] = batch.end
            known = results.furthest.get(at)
            if batch.end > (known.end if known is not None else 0):
                results.furthest[at] = batch
    return results


def newest_batches(member: Member, numbers: Collection[int]) -> dict[Partition, ResultBatch]:
    """Return the newest batch that an agent's results show, by input partition.

    Its end may be ahead of the group's offsets for good: a worker that delivers at least once can die between its
    results and their offsets. A partition of which the last ``CHECKED_RECORDS`` results show nothing is absent.
    """
    client, partitions = _partitions_of_results(member, numbers)
    ends = last_offsets(client, partitions, IsolationLevel.READ_COMMITTED) if partitions else {}
    tails = {number: max(0, end - CHECKED_RECORDS) for (_, number), end in ends.items() if end}
    if not tails:
        return {}
    found: dict[Partition, ResultBatch] = {}
    reading = read_batches(
        member.bootstrap, partitions[0][0], settings=member.settings, partitions=list(tails), start=tails,
        on_refused=member.on_refused,
    )  # fmt: skip
    with closing(reading) as batches:
        for at, batch in _batches_in(member, (record for records in batches for record in records)):
            # Markers come in the order of the batches.
            found[at] = batch if has_order(member.reads) else _newer(found.get(at), batch)
    return found


def _newer(known: ResultBatch | None, batch: ResultBatch) -> ResultBatch:
    """The newer batch of two: decisions of one batch bear one time, and lie in several partitions."""
    if known is not None and known.decided_at == batch.decided_at:
        return known._replace(start=min(known.start, batch.start), end=max(known.end, batch.end))
    if known is not None and known.timestamp_ms > batch.timestamp_ms:
        return known
    return batch


def _partitions_of_results(member: Member, numbers: Collection[int]) -> tuple[AdminClient, list[Partition]]:
    """Return where an agent's results are that name its input: markers of ``numbers``, or all decisions."""
    client = admin_client(member.bootstrap, settings=member.settings)
    is_marked = has_order(member.reads)
    if not is_marked and PROFILED not in member.reads:
        return client, []
    name = member.settings.topic((PROGRESS if is_marked else DECISIONS).name)
    # A topic whose partitions are too few is reported by another check.
    there = partition_numbers(client, name)
    return client, [(name, number) for number in there if not is_marked or number in numbers]


def _batches_in(member: Member, records: Iterable[Record]) -> Iterator[tuple[Partition, ResultBatch]]:
    """Yield what an agent's results say that it has read, with the partition; what cannot be read is refused."""
    topic, on_refused = member.settings.topic, member.on_refused
    if has_order(member.reads):
        own = (record for record in records if record.key == member.agent.encode())
        for record, marker in readable(own, decode_progress, on_refused):
            for name, end in marker.ends.items():
                batch = ResultBatch(marker.starts.get(name, end), end, record.timestamp_ms)
                yield (topic(name), record.partition), batch
        return
    for record, decision in readable(records, _decode_decided, on_refused):
        if (log := decision.log) is not None:
            batch = ResultBatch(log.offset, log.offset + 1, record.timestamp_ms, decision.decided_at)
            yield (topic(PROFILED.name), log.partition), batch


def _both_ends(
    client: AdminClient, member: Member, partitions: Sequence[Partition]
) -> tuple[list[Record], list[Record]]:
    """The newest records of partitions of a topic, and the oldest where those are not among the newest."""
    if not partitions:
        return [], []
    first = first_offsets(client, partitions)
    end = last_offsets(client, partitions, IsolationLevel.READ_COMMITTED)
    tails = {at: range(max(first[at], end[at] - CHECKED_RECORDS), end[at]) for at in partitions}
    # From their beginning as it is then: retention may move it meanwhile.
    heads = {at[1]: range(first[at] + CHECKED_RECORDS) for at in partitions if tails[at].start > first[at]}
    asked = (member.bootstrap, partitions[0][0], member.settings)
    newest = records_within(*asked, {number: tail for (_, number), tail in tails.items()}, member.on_refused)
    return [*newest], [*records_within(*asked, heads, member.on_refused)]
