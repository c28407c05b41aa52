"""The partitions of topics, and the offsets of their logs: first, last, by time, and up to what is committed."""

import time
from collections.abc import Sequence
from typing import Final

from confluent_kafka import Consumer, IsolationLevel, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec

from pipeline.kafka.clients import METADATA_TIMEOUT_S, admin_client
from pipeline.kafka.errors import TopicError
from pipeline.kafka.retries import retried
from pipeline.settings import Settings

STABLE_END_WAIT_S: Final = 2.0
"""Longest wait for the markers of a committed transaction; they take milliseconds."""
STABLE_END_POLL_S: Final = 0.005


def partition_numbers(client: Consumer | AdminClient, topic: str) -> list[int]:
    """Partitions of ``topic``, sorted; raises ``TopicError`` when it does not exist."""
    metadata = client.list_topics(topic, timeout=METADATA_TIMEOUT_S).topics.get(topic)
    if metadata is None or metadata.error is not None or not metadata.partitions:
        raise TopicError(
            f"there is no topic {topic}: create it with `fraud-pipeline topics`, or check the topic prefix"
        )
    return sorted(metadata.partitions)


def last_offsets(
    client: AdminClient, partitions: Sequence[tuple[str, int]], isolation: IsolationLevel
) -> dict[tuple[str, int], int]:
    """Return the end offset of each partition (topic, number) that a reader with ``isolation`` can reach now."""
    return _offsets(client, partitions, OffsetSpec.latest(), isolation)


def first_offsets(client: AdminClient, partitions: Sequence[tuple[str, int]]) -> dict[tuple[str, int], int]:
    """The offset at which the log of each partition (topic, number) begins."""
    return _offsets(client, partitions, OffsetSpec.earliest(), IsolationLevel.READ_UNCOMMITTED)


def _offsets(
    client: AdminClient, partitions: Sequence[tuple[str, int]], spec: OffsetSpec, isolation: IsolationLevel
) -> dict[tuple[str, int], int]:
    asked = {TopicPartition(topic, number): spec for topic, number in partitions}
    futures = client.list_offsets(asked, isolation_level=isolation, request_timeout=METADATA_TIMEOUT_S)
    try:
        return {(at.topic, at.partition): future.result().offset for at, future in futures.items()}
    except KafkaException as error:
        if error.args[0].code() == KafkaError.FENCED_LEADER_EPOCH:
            # librdkafka goes on asking with the leader epoch that it knew before the broker's restart.
            client.list_topics(timeout=METADATA_TIMEOUT_S)
        raise


def offsets_at(
    client: AdminClient, partitions: Sequence[tuple[str, int]], timestamp_ms: int
) -> dict[tuple[str, int], int]:
    """Return each partition's (topic, number) first offset whose record bears ``timestamp_ms`` or a later one.

    The end of the log where there is none. Timestamps are milliseconds since 1970.
    """
    found = _offsets(client, partitions, OffsetSpec.for_timestamp(timestamp_ms), IsolationLevel.READ_UNCOMMITTED)
    ends = last_offsets(client, partitions, IsolationLevel.READ_UNCOMMITTED)
    return {at: ends[at] if offset < 0 else offset for at, offset in found.items()}


def starts_at(bootstrap: str, topic: str, timestamp_ms: int, *, settings: Settings | None = None) -> dict[int, int]:
    """Return `offsets_at` of every partition of a topic, by partition number.

    Raises:
        TopicError: The topic does not exist.
        KafkaException: The brokers report an error that does not pass.
    """
    client = admin_client(bootstrap, settings=settings)
    partitions = [(topic, number) for number in partition_numbers(client, topic)]
    found = retried(lambda: offsets_at(client, partitions, max(timestamp_ms, 0)))
    return {number: offset for (_, number), offset in found.items()}


def stable_ends(bootstrap: str, settings: Settings | None, topic: str, numbers: Sequence[int]) -> dict[int, int]:
    """Ends to read to: behind everything that was committed before the call.

    A commit returns before the transaction's markers are in the log, and until then its records cannot be read. So
    this waits for the readable end to pass the log's end of now, but not for long: a transaction may stay open.
    """
    client = admin_client(bootstrap, settings=settings)
    # A client whose first request is for offsets waits up to three seconds in a tenth of the cases; else it never does.
    retried(lambda: client.list_topics(topic, timeout=METADATA_TIMEOUT_S))
    partitions = [(topic, number) for number in numbers]
    written = retried(lambda: last_offsets(client, partitions, IsolationLevel.READ_UNCOMMITTED))
    deadline_s = time.monotonic() + STABLE_END_WAIT_S
    while True:
        readable = retried(lambda: last_offsets(client, partitions, IsolationLevel.READ_COMMITTED))
        if time.monotonic() > deadline_s or all(readable[at] >= written[at] for at in partitions):
            return {number: readable[topic, number] for number in numbers}
        time.sleep(STABLE_END_POLL_S)
