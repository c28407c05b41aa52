"""Record batches that cannot be read: compressed beyond every bound, cut, or damaged on a broker's disk.

librdkafka reports most of them by an error, which proves nothing, and delivers nothing of some without a word. So the
batch itself is fetched: its checksum tells of a disk, its bytes of a cut stream, and its header where it ends.
``docs/decisions/0031-unreadable-batches.md`` has what was measured.
"""

import asyncio
import time
import zlib
from collections.abc import Callable, Mapping
from contextlib import closing
from typing import Any, Final, NamedTuple

from aiokafka.errors import KafkaError as BrokerError
from confluent_kafka import Consumer, KafkaError, KafkaException

from pipeline.kafka.records.batch import Partition, start_at
from pipeline.kafka.records.raw_fetch import READ_UNCOMMITTED, Connections, FetchRefused, FetchUnanswered, Wanted, ask
from pipeline.kafka.records.record_batches import GZIP, NONE, RecordBatch, split_batches, visible_batches

UNREADABLE: Final = frozenset(
    {
        KafkaError._BAD_COMPRESSION,  # a stream that is no such stream, or zstd beyond receive.message.max.bytes
        KafkaError._BAD_MSG,  # a checksum that does not match, or bytes left over behind an lz4 frame
        KafkaError._UNDERFLOW,  # a batch that says of itself that it is longer than it is
        KafkaError._NOT_IMPLEMENTED,  # an unknown format or codec
    }
)
"""Errors of the client itself about one batch, with its first offset; what brokers answer is none of them."""
FETCHES: Final = 3
"""Times that a batch must be found damaged, or that clients must fail: once may be the network's fault."""
ANSWER_S: Final = 120.0
"""Longest wait for a client's word on a batch: it may take seconds to decompress what 1 MiB can hold."""
DAMAGED: Final = "Damaged"
STALLED: Final = "Stalled"
_POLL_S: Final = 0.05
_WINDOW_BYTES: Final = 64 * 1024
_OFFSET_BYTES: Final = 8
"""What is wanted of the batch behind another one."""
_REPLICA_S: Final = 5.0
"""Longest wait for a replica."""
_CHUNK_BYTES: Final = 1024 * 1024


class Fault(NamedTuple):
    """Why a batch cannot be read, and its offsets."""

    start: int
    end: int
    """Offset behind its last one."""
    error: str
    """One word."""
    message: str
    others: tuple[int, ...] = ()
    """Ids of the other brokers in sync that hold it whole, or do not answer."""


class _StoredBatch(NamedTuple):
    """A batch as the leader has it."""

    batch: RecordBatch
    end: int
    others: tuple[int, ...]


def reader_config(config: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``config`` for a consumer that joins no group, with ``own`` over it."""
    # Classic, because it only assigns and never joins; the group's name appears nowhere on the cluster.
    alone = {"group.id": "fraud-pipeline-reader", "group.protocol": "classic"}
    return {**{name: value for name, value in config.items() if name != "group.remote.assignor"}, **alone, **own}


def find_fault(
    config: Mapping[str, Any], partition: Partition, start: int, waiting: Callable[[], None], *, is_silent: bool = False
) -> Fault | None:
    """Examine the batch that holds an offset at which a client gets no further.

    Args:
        config: Configuration of a consumer.
        partition: The partition.
        start: The offset.
        waiting: Called while nothing comes; may raise.
        is_silent: The client reports no error. Then marks and aborted transactions may come first.

    Returns:
        What is wrong with it; None if it can be read, or nobody can tell.

    Raises:
        FetchUnanswered: No broker answers.
        FetchRefused: A broker answers with an error that does not pass.
        KafkaException: The client cannot read the partition, for a reason that is not the batch.
    """
    if is_silent:
        batch = ask(config, lambda brokers: _first_visible(brokers, partition, start), waiting)
        if batch is None or batch.codec != GZIP or not batch.is_intact or not has_more_members(batch.payload, waiting):
            return None
        return Fault(start, batch.end, STALLED, "it is compressed in parts, of which clients read one")
    found = ask(config, lambda brokers: _batch_at(brokers, partition, start), waiting)
    if found is None:
        return None
    batch = found.batch
    if not batch.is_intact:
        return Fault(start, found.end, DAMAGED, "its checksum is not that of its bytes", found.others)
    if batch.codec == NONE:
        return None
    # The caller's own client has failed before.
    words = [_client_error(config, partition, start, waiting) for _ in range(FETCHES - 1)]
    failures = [word for word in words if word is not None]
    return Fault(start, batch.end, *failures[-1]) if len(failures) == len(words) else None


def has_more_members(payload: memoryview, waiting: Callable[[], None] = lambda: None) -> bool:
    """Return whether a gzip stream goes on behind its first member, which is all that librdkafka reads."""
    member = zlib.decompressobj(wbits=31)
    rest: bytes | memoryview = payload
    while rest and not member.eof:
        waiting()
        member.decompress(rest, _CHUNK_BYTES)
        rest = member.unconsumed_tail
    return member.eof and bool(member.unused_data)


async def _batch_at(brokers: Connections, partition: Partition, start: int) -> _StoredBatch | None:
    """Return the batch that holds ``start``; of a damaged one, its end as the batch behind it says."""
    damaged: list[RecordBatch] = []
    while len(damaged) < FETCHES:
        fetched = await brokers.fetch(Wanted(partition, start))
        batch = next(split_batches(fetched.data), None)
        if batch is None:
            return None
        if batch.is_intact:
            return _StoredBatch(batch, batch.end, ())
        damaged.append(batch)
    batch = damaged[-1]
    more = await brokers.fetch(Wanted(partition, start, batch.size + _OFFSET_BYTES), READ_UNCOMMITTED)
    behind = more.data[batch.size : batch.size + _OFFSET_BYTES]
    # A fetch ends with its segment of the log; then the header must do.
    end = int.from_bytes(behind, "big") if behind else batch.end
    is_plausible = bool(behind) or batch.record_count == batch.last_offset_delta + 1
    if not is_plausible or not start < end <= more.high_watermark:
        raise FetchRefused(f"nothing tells where the damaged batch at offset {start} ends")
    return _StoredBatch(batch, end, await _held_whole_by(brokers, partition, start))


async def _held_whole_by(brokers: Connections, partition: Partition, offset: int) -> tuple[int, ...]:
    """Return the brokers in sync, without the leader, that hold the batch at ``offset`` whole, or do not answer."""
    replicas = (await brokers.describe(partition[0])).replicas[partition]
    found = []
    for broker in replicas.in_sync:
        if broker == replicas.leader:
            continue
        try:
            async with asyncio.timeout(_REPLICA_S):
                data = (await brokers.fetch(Wanted(partition, offset), broker=broker)).data
        except (BrokerError, OSError, TimeoutError, KeyError):
            found.append(broker)
            continue
        if (batch := next(split_batches(data), None)) is None or batch.is_intact:
            found.append(broker)
    return tuple(found)


async def _first_visible(brokers: Connections, partition: Partition, start: int) -> RecordBatch | None:
    """Return the first batch from ``start`` on that holds records for readers of committed ones."""
    position = start
    while True:
        fetched = await brokers.fetch(Wanted(partition, position, _WINDOW_BYTES))
        batches = list(split_batches(fetched.data))
        for batch in visible_batches(batches, fetched.aborted):
            if batch.end > start:
                return batch
        if not batches or batches[-1].end <= position:
            return None
        position = batches[-1].end


def _client_error(
    config: Mapping[str, Any], partition: Partition, start: int, waiting: Callable[[], None]
) -> tuple[str, str] | None:
    """Return name and text of the error of a new client that reads from ``start``; None if it can."""
    own = {"enable.partition.eof": True, "auto.offset.reset": "error", "fetch.error.backoff.ms": 5}
    with closing(Consumer(reader_config(config, own))) as consumer:
        consumer.assign([start_at(partition, start)])
        deadline_s = time.monotonic() + ANSWER_S
        while time.monotonic() < deadline_s:
            waiting()
            message = consumer.poll(_POLL_S)
            if message is None:
                continue
            error: KafkaError | None = message.error()
            if error is None or error.code() == KafkaError._PARTITION_EOF:
                return None
            if error.code() in UNREADABLE:
                return error.name(), error.str()
            if error.code() == KafkaError._AUTO_OFFSET_RESET:
                raise KafkaException(error)
    topic, number = partition
    raise FetchUnanswered(f"{topic} partition {number} offset {start}: no answer in {ANSWER_S:.0f} s")
