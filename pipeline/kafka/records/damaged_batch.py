"""A record batch whose checksum is wrong: where it ends, and which other brokers may hold it whole.

No client can write one, since brokers look at the checksum on arrival: it is the work of a disk, or of the network.
``docs/decisions/0031-unreadable-batches.md`` says what follows.
"""

import asyncio
from typing import Final

from pipeline.kafka.records.batch import Partition, UnreadableRange
from pipeline.kafka.records.raw_fetch import READ_UNCOMMITTED, UNANSWERED, Connections, FetchUnanswered, Wanted
from pipeline.kafka.records.record_batches import RecordBatch, split_batches

DAMAGED: Final = "Damaged"
FETCHES: Final = 3
"""Times that a batch must be found damaged: once may be the network's fault."""
_OFFSET_BYTES: Final = 8
"""Bytes wanted of the batch behind another one."""
_REPLICA_S: Final = 5.0
"""Longest wait for a replica."""


class EndUnknown(RuntimeError):
    """Nothing tells where a damaged batch ends."""


async def examine(brokers: Connections, partition: Partition, start: int) -> UnreadableRange | None:
    """Examine a batch at which a reader found a wrong checksum.

    Its end is the first offset of the batch behind it: its own header may be damaged too. A fetch ends with its segment
    of the log; there the header must agree with its count of records.

    Args:
        brokers: Connections to the brokers.
        partition: Full topic name and number.
        start: An offset that the batch holds; the range begins there.

    Returns:
        The range from ``start`` to the batch's end, with the brokers that may hold it whole; None if the leader does.

    Raises:
        EndUnknown: Nothing tells where it ends.
        FetchUnanswered: The partition has no leader.
        KafkaError: A broker answers with an error, as aiokafka names it.
    """
    if (replicas := (await brokers.describe([partition[0]])).get(partition)) is None:
        raise FetchUnanswered("the partition has no leader")
    if (batch := await _damaged_batch(brokers, replicas.leader, partition, start, FETCHES)) is None:
        return None
    more = await brokers.fetch_from(
        replicas.leader, Wanted(partition, start, batch.size + _OFFSET_BYTES), READ_UNCOMMITTED
    )
    end = _end(batch, more.data[batch.size : batch.size + _OFFSET_BYTES])
    if not start < end <= more.high_watermark:
        raise EndUnknown(f"nothing tells where the damaged batch at offset {start} ends")
    others = [
        broker
        for broker in replicas.in_sync
        if broker != replicas.leader and await _may_hold_whole(brokers, broker, partition, start)
    ]
    return UnreadableRange(partition, start, end, DAMAGED, "its checksum is not that of its bytes", tuple(others))


async def _damaged_batch(
    brokers: Connections, broker: int, partition: Partition, start: int, times: int = 1
) -> RecordBatch | None:
    """Return the batch that holds an offset, if it is damaged each time that it is fetched."""
    batch = None
    for _ in range(times):
        batch = next(split_batches((await brokers.fetch_from(broker, Wanted(partition, start))).data), None)
        if batch is None or batch.is_intact:
            return None
    return batch


def _end(batch: RecordBatch, behind: bytes) -> int:
    """Return the end of a damaged batch, given the first bytes behind it; -1 if nothing tells it."""
    if behind:
        return int.from_bytes(behind, "big")
    return batch.end if batch.record_count == batch.last_offset_delta + 1 else -1


async def _may_hold_whole(brokers: Connections, broker: int, partition: Partition, offset: int) -> bool:
    """Return whether a replica holds the batch at ``offset`` whole, or does not answer."""
    try:
        async with asyncio.timeout(_REPLICA_S):
            return await _damaged_batch(brokers, broker, partition, offset) is None
    except (*UNANSWERED, KeyError):
        return True
