"""The partitions of topics, and the offsets of their logs: first, last, by time, and up to what is committed.

Every question is asked again while its error may pass (`retries.retried`). librdkafka answers with
`OFFSET_INVALID`, and without an error, while leaders move: no begin and no end of a log is negative, and whoever took
one for an offset would read nothing, or believe that nothing is there.
"""

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, Final

from confluent_kafka import (
    OFFSET_END,
    OFFSET_INVALID,
    Consumer,
    IsolationLevel,
    KafkaError,
    KafkaException,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient, OffsetSpec

from pipeline.kafka.cluster.clients import ANSWER_S, METADATA_TIMEOUT_S, admin_client
from pipeline.kafka.cluster.errors import RIGHTS, TopicError
from pipeline.kafka.cluster.retries import retried
from pipeline.settings import Settings

STABLE_END_WAIT_S: Final = 2.0
"""Longest wait for the markers of a committed transaction; they take milliseconds."""
STABLE_END_POLL_S: Final = 0.005
APPEAR_S: Final = 3.0
"""Longest time for which a broker may not know a topic that another one has just created."""
Waiting = Callable[[], None] | None
"""Called while `pipeline.kafka.cluster.retries.retried` waits."""


def partition_numbers(
    client: Consumer | AdminClient, topic: str, waiting: Waiting = None, *, appear_s: float = APPEAR_S
) -> list[int]:
    """Partitions of a topic, sorted.

    Args:
        client: Asks the brokers.
        topic: Full name of the topic.
        waiting: Called before each attempt, and may raise; None: give up after `METADATA_TIMEOUT_S`. A caller that
            passes it had the topic before: a missing topic then counts as missing only after `METADATA_TIMEOUT_S`.
        appear_s: Longest wait in seconds for a topic that was just created, where ``waiting`` is None.

    Raises:
        TopicError: The topic does not exist.
    """
    # A worker, which is ``waiting``, had the topic when it started.
    appears_s = time.monotonic() + (appear_s if waiting is None else METADATA_TIMEOUT_S)

    def ask() -> list[int]:
        found = client.list_topics(topic, timeout=ANSWER_S).topics.get(topic)
        error = KafkaError(KafkaError.UNKNOWN_TOPIC_OR_PART) if found is None else found.error
        if error is None and found.partitions:
            return sorted(found.partitions)
        if error is not None and error.code() != KafkaError.UNKNOWN_TOPIC_OR_PART:
            raise KafkaException(error)
        if time.monotonic() > appears_s:
            raise missing_topic(topic)
        raise KafkaException(error or KafkaError(KafkaError.UNKNOWN_TOPIC_OR_PART))

    return retried(ask, waiting)


def missing_topic(topic: str) -> TopicError:
    """Return the error for a topic that does not exist."""
    return TopicError(
        f"there is no topic {topic}, or you may not see it: create it with `fraud-pipeline topics`, check the topic "
        f"prefix, or ask for the right ({RIGHTS})"
    )


def last_offsets(
    client: AdminClient,
    partitions: Sequence[tuple[str, int]],
    isolation: IsolationLevel = IsolationLevel.READ_COMMITTED,
    waiting: Waiting = None,
) -> dict[tuple[str, int], int]:
    """Return the end offset of each partition that can be reached now.

    Args:
        client: Asks the brokers.
        partitions: Full topic name and number of each partition.
        isolation: Of the reader: ``READ_COMMITTED`` ends before the first open transaction.
        waiting: Called before each attempt, and may raise; None: give up after `METADATA_TIMEOUT_S`.
    """
    return retried(lambda: _offsets(client, partitions, OffsetSpec.latest(), isolation), waiting)


def first_offsets(
    client: AdminClient, partitions: Sequence[tuple[str, int]], waiting: Waiting = None
) -> dict[tuple[str, int], int]:
    """The offset at which the log of each partition begins.

    Args:
        client: Asks the brokers.
        partitions: Full topic name and number of each partition.
        waiting: Called before each attempt, and may raise; None: give up after `METADATA_TIMEOUT_S`.
    """
    return retried(
        lambda: _offsets(client, partitions, OffsetSpec.earliest(), IsolationLevel.READ_UNCOMMITTED), waiting
    )


def _offsets(
    client: AdminClient, partitions: Sequence[tuple[str, int]], spec: OffsetSpec, isolation: IsolationLevel
) -> dict[tuple[str, int], int]:
    asked = {TopicPartition(topic, number): spec for topic, number in partitions}
    futures = client.list_offsets(asked, isolation_level=isolation, request_timeout=ANSWER_S)
    least = 0 if spec in (OffsetSpec.earliest(), OffsetSpec.latest()) else OFFSET_END
    return {(at.topic, at.partition): listed_offset(future, least) for at, future in futures.items()}


@contextmanager
def fresh_metadata(client: AdminClient) -> Iterator[None]:
    """Ask for metadata anew where what is asked within fails.

    librdkafka goes on asking the controller that it knew before: for minutes where that broker is away.
    """
    try:
        yield
    except KafkaException:
        client.list_topics(timeout=ANSWER_S)
        raise


def listed_offset(future: Future[Any], least: int = 0) -> int:
    """Return one answer of ``list_offsets``; raises an error that may pass where it is below ``least``."""
    return _known(future.result().offset, least)


def _known(offset: int, least: int = 0) -> int:
    if offset < least:
        raise KafkaException(KafkaError(KafkaError.OFFSET_NOT_AVAILABLE, f"no broker knows the offset yet ({offset})"))
    return offset


def log_range(consumer: Consumer, partition: tuple[str, int], timeout_s: float) -> range:
    """Return the offsets of a partition as a broker knows them, up to what ``consumer`` can reach.

    Args:
        consumer: Asks the leader; its ``isolation.level`` decides whether open transactions count.
        partition: Full topic name and number.
        timeout_s: Longest wait for an answer, in seconds.

    Raises:
        KafkaException: No broker knows them, or none answers in time.
    """
    start, end = consumer.get_watermark_offsets(TopicPartition(*partition), timeout=timeout_s)
    return range(_known(start), _known(end))


def committed_partitions(consumer: Consumer, partitions: Collection[tuple[str, int]]) -> list[TopicPartition]:
    """Return the committed offsets of a consumer's group; that of a partition without a commit is `OFFSET_INVALID`.

    Raises:
        KafkaException: They are not known (yet): the last holder's transaction may not have ended.
    """
    found: list[TopicPartition] = consumer.committed([TopicPartition(*at) for at in partitions], ANSWER_S)
    for at in found:
        if at.error is not None:
            raise KafkaException(at.error)
        if at.offset != OFFSET_INVALID:
            _known(at.offset)
    return found


def offsets_at(
    client: AdminClient, partitions: Sequence[tuple[str, int]], timestamp_ms: int
) -> dict[tuple[str, int], int]:
    """Return each partition's first offset whose record bears a timestamp or a later one.

    The end of the log where there is none.

    Args:
        client: Asks the brokers.
        partitions: Full topic name and number of each partition.
        timestamp_ms: Milliseconds since 1970, not negative.
    """
    spec = OffsetSpec.for_timestamp(timestamp_ms)
    found = retried(lambda: _offsets(client, partitions, spec, IsolationLevel.READ_UNCOMMITTED))
    ends = last_offsets(client, partitions, IsolationLevel.READ_UNCOMMITTED)
    return {at: ends[at] if offset == OFFSET_END else offset for at, offset in found.items()}


def starts_at(bootstrap: str, topic: str, timestamp_ms: int, *, settings: Settings | None = None) -> dict[int, int]:
    """Return `offsets_at` of every partition of a topic, by partition number.

    Args:
        topic: Full name of the topic.
        timestamp_ms: Milliseconds since 1970; before that: 0.
        settings: Settings of the client; None: no ``kafka_config``.

    Raises:
        TopicError: The topic does not exist.
        KafkaException: The brokers report an error that does not pass.
    """
    client = admin_client(bootstrap, settings=settings)
    partitions = [(topic, number) for number in partition_numbers(client, topic)]
    return {number: at for (_, number), at in offsets_at(client, partitions, max(timestamp_ms, 0)).items()}


def stable_ends(bootstrap: str, settings: Settings | None, topic: str, numbers: Sequence[int]) -> dict[int, int]:
    """Ends to read to, by partition number: behind everything that was committed before the call.

    A commit returns before the transaction's markers are in the log, and until then its records cannot be read. So this
    waits for the readable end to pass the log's end of now. It waits `STABLE_END_WAIT_S` at most: a transaction may
    stay open.

    Args:
        settings: Settings of the client; None: no ``kafka_config``.
        topic: Full name of the topic.
        numbers: Numbers of the partitions.
    """
    client = admin_client(bootstrap, settings=settings)
    # A client whose first request is for offsets waits up to three seconds in a tenth of the cases; else it never does.
    partition_numbers(client, topic)
    partitions = [(topic, number) for number in numbers]
    written = last_offsets(client, partitions, IsolationLevel.READ_UNCOMMITTED)
    deadline_s = time.monotonic() + STABLE_END_WAIT_S
    while True:
        readable = last_offsets(client, partitions, IsolationLevel.READ_COMMITTED)
        if time.monotonic() > deadline_s or all(readable[at] >= written[at] for at in partitions):
            return {number: readable[topic, number] for number in numbers}
        time.sleep(STABLE_END_POLL_S)


def log_ranges(
    bootstrap: str,
    settings: Settings,
    partitions: Sequence[tuple[str, int]],
    waiting: Waiting = None,
    isolation: IsolationLevel = IsolationLevel.READ_UNCOMMITTED,
) -> Mapping[tuple[str, int], range]:
    """First offset and end of partitions, asked for together.

    Args:
        partitions: Full topic name and number of each partition.
        waiting: Called again and again while no broker answers, and may raise; None: give up after
            `METADATA_TIMEOUT_S`.
        isolation: Of the ends; by default open transactions are included.

    Raises:
        TopicError: A topic does not exist.
        KafkaException: The brokers report an error that does not pass, or do not answer.
    """
    client = admin_client(bootstrap, settings=settings)
    for topic in sorted({topic for topic, _ in partitions}):
        # A client whose first request is for offsets may wait for seconds.
        partition_numbers(client, topic, waiting)
    starts = first_offsets(client, partitions, waiting)
    ends = last_offsets(client, partitions, isolation, waiting)
    return {at: range(starts[at], ends[at]) for at in partitions}


def readable_range(bootstrap: str, settings: Settings, topic: str, number: int, waiting: Waiting = None) -> range:
    """Return the offsets of a partition that a reader of committed records can read now.

    Args:
        topic: Full name of the topic.
        number: Number of the partition.
        waiting: Called again and again while no broker answers, and may raise; None: give up after
            `METADATA_TIMEOUT_S`.
    """
    at = (topic, number)
    return log_ranges(bootstrap, settings, [at], waiting, IsolationLevel.READ_COMMITTED)[at]
