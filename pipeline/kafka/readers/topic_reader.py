"""Reading of a topic without a group: up to its end, or as records come."""

import time
from collections.abc import Generator, Iterator, Mapping
from typing import Any, Final

from confluent_kafka import KafkaError, KafkaException

from pipeline.kafka.cluster.clients import admin_client
from pipeline.kafka.cluster.errors import ClusterUnreachable, TopicError
from pipeline.kafka.cluster.log_offsets import partition_numbers, stable_ends
from pipeline.kafka.cluster.retries import may_pass
from pipeline.kafka.readers.log_consumer import LogConsumer
from pipeline.kafka.records.batch import ReadError
from pipeline.kafka.records.internal import OnRefused, not_counted
from pipeline.settings import Settings
from schemas.records import Record

READ_BATCH: Final = 10_000
"""Records taken at a time."""
QUEUE_OF_BLOCKS: Final = {"queued.max.messages.kbytes": 4 * 1024}
"""Tuning of a reader of blocks, which are large and expand to many rows: it reads less far ahead."""
READ_POLL_S: Final = 0.1
EARLY_END_S: Final = 60.0
"""Longest time without a record below the end that is read to."""
PRESENCE_S: Final = 2.0
"""Time between two questions whether a broker is there, and the longest wait for the answer."""


def read_batches(
    bootstrap: str,
    topic: str,
    *,
    settings: Settings,
    partitions: list[int] | None = None,
    start: Mapping[int, int] | None = None,
    skip_unreadable: bool = False,
    tuning: Mapping[str, Any] | None = None,
    on_refused: OnRefused = not_counted,
) -> Generator[list[Record], None, None]:
    """Yield committed records of ``topic`` from the beginning up to the end at the time of the call, in lists.

    Order holds within a partition only.

    Args:
        bootstrap: Addresses of brokers.
        topic: Full name of the topic.
        settings: Settings of the client.
        partitions: Numbers of partitions; all of them by default.
        start: First offsets, by partition number.
        skip_unreadable: Skip unreadable batches that nobody has quarantined too: for readers that only look.
        tuning: Configuration of the client, over that of every reader.
        on_refused: Counts unreadable batches of topics that no agent reads.

    Raises:
        TopicError: The topic is missing, or a part of it cannot be read.
        KafkaException: The brokers report an error that does not pass.
    """
    reader = LogConsumer(bootstrap, settings, tuning, skip_unreadable=skip_unreadable, on_refused=on_refused)
    try:
        numbers = partitions
        if numbers is None:
            numbers = partition_numbers(admin_client(bootstrap, settings=settings), topic)
        found = stable_ends(bootstrap, settings, topic, numbers)
        ends = {number: end for number, end in found.items() if (start or {}).get(number, 0) < end}
        reader.assign({(topic, number): (start or {}).get(number, 0) for number in ends})
        early: dict[int, int] = {}
        stood: list[int] | None = None
        while ends:
            records, is_early = _take_below(reader, topic, ends, early)
            if records:
                yield records
            positions = [reader.position(topic, number) for number in ends]
            if is_early or positions != stood:
                stood, deadline_s = positions, time.monotonic() + EARLY_END_S
            elif time.monotonic() > deadline_s:
                number = min(early or ends)
                raise ends_early(topic, number, early.get(number, reader.position(topic, number)), ends[number])
    finally:
        reader.close()


def _take_below(
    reader: LogConsumer, topic: str, ends: dict[int, int], early: dict[int, int]
) -> tuple[list[Record], bool]:
    """Take records below ``ends``, from which partitions that are read to their end are removed.

    Returns:
        The records, and whether an earlier end was met, which is then in ``early``.
    """
    records, is_early = [], False
    for item in reader.take(READ_POLL_S, READ_BATCH):
        number = item.partition[1] if isinstance(item, ReadError) else item.partition
        if number not in ends:
            continue
        if isinstance(item, ReadError):
            raise_unless_passing(item.error)
            if item.error.code() != KafkaError._PARTITION_EOF:
                continue
            if item.offset < ends[number]:
                # A new leader may not know yet how much is committed: the rest is still to come.
                early[number], is_early = item.offset, True
                continue
        elif item.offset < ends[number]:
            records.append(item)
            if item.offset + 1 < ends[number]:
                continue
        # The partition's end: its last offset, one past it, or, behind transaction markers, the reader's own word.
        del ends[number]
        early.pop(number, None)
        reader.drop((topic, number))
    return records, is_early


def ends_early(topic: str, number: int, log_end: int, end: int) -> TopicError:
    """Return the error for a partition whose readers get no further than ``log_end``, below the ``end`` committed."""
    return TopicError(
        f"topic {topic} partition {number} ends at offset {log_end} for its readers, and records up to {end} were "
        "committed: no broker answers, its leader lacks them, or a transaction is open; see the brokers' log"
    )


def read_topic(
    bootstrap: str,
    topic: str,
    *,
    settings: Settings,
    partitions: list[int] | None = None,
    start: Mapping[int, int] | None = None,
) -> Iterator[Record]:
    """Yield the records of `read_batches` one by one.

    Args:
        topic: Full name of the topic.
        partitions: Numbers of partitions; None: all of them.
        start: First offsets, by partition number; others are read from their beginning.
    """
    for batch in read_batches(bootstrap, topic, settings=settings, partitions=partitions, start=start):
        yield from batch


def tail_topic(
    bootstrap: str, topic: str, *, settings: Settings, start: Mapping[int, int], lost_after_s: float
) -> Generator[Record, None, None]:
    """Yield committed records of ``topic`` as they come, until the generator is closed.

    Args:
        bootstrap: Addresses of brokers.
        topic: Full name of the topic.
        settings: Settings of the client.
        start: First offsets, by partition number; 0 of others.
        lost_after_s: Give up once no broker has answered for so long.

    Raises:
        TopicError: The topic is missing, or a part of it cannot be read.
        ClusterUnreachable: No broker answers any more.
        KafkaException: The brokers report an error that does not pass.
    """
    reader = LogConsumer(bootstrap, settings)
    try:
        client = admin_client(bootstrap, settings=settings)
        reader.assign({(topic, number): start.get(number, 0) for number in partition_numbers(client, topic)})
        asked_s = answered_s = time.monotonic()
        while True:
            # A reader does not notice when the last broker ends.
            if time.monotonic() - asked_s >= PRESENCE_S:
                try:
                    client.list_topics(topic, timeout=PRESENCE_S)
                    answered_s = time.monotonic()
                except KafkaException as error:
                    if time.monotonic() - answered_s >= lost_after_s:
                        raise ClusterUnreachable(
                            f"no broker answers at {bootstrap} any more: it has ended, or the network is cut"
                        ) from error
                asked_s = time.monotonic()
            for item in reader.take(READ_POLL_S, READ_BATCH):
                if isinstance(item, Record):
                    yield item
                else:
                    raise_unless_passing(item.error)
    finally:
        reader.close()


def raise_unless_passing(error: KafkaError) -> None:
    """Raise a reader's error, but for the end of a partition and what may pass."""
    if error.code() != KafkaError._PARTITION_EOF and not may_pass(error):
        raise KafkaException(error)
