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
    """Partitions of ``topic``, sorted; raises ``TopicError`` when it does not exist, or not within ``appear_s``."""
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
    client: AdminClient, partitions: Sequence[tuple[str, int]], isolation: IsolationLevel, waiting: Waiting = None
) -> dict[tuple[str, int], int]:
    """Return the end offset of each partition (topic, number) that a reader with ``isolation`` can reach now."""
    return retried(lambda: _offsets(client, partitions, OffsetSpec.latest(), isolation), waiting)


def first_offsets(
    client: AdminClient, partitions: Sequence[tuple[str, int]], waiting: Waiting = None
) -> dict[tuple[str, int], int]:
    """The offset at which the log of each partition (topic, number) begins."""
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
    """Return the offsets of a partition (topic, number) as a broker knows them, up to what ``consumer`` can reach.

    Raises:
        KafkaException: No broker knows them, or none answers within ``timeout_s``.
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
    """Return each partition's (topic, number) first offset whose record bears ``timestamp_ms`` or a later one.

    The end of the log where there is none. Timestamps are milliseconds since 1970.
    """
    spec = OffsetSpec.for_timestamp(timestamp_ms)
    found = retried(lambda: _offsets(client, partitions, spec, IsolationLevel.READ_UNCOMMITTED))
    ends = last_offsets(client, partitions, IsolationLevel.READ_UNCOMMITTED)
    return {at: ends[at] if offset == OFFSET_END else offset for at, offset in found.items()}


def starts_at(bootstrap: str, topic: str, timestamp_ms: int, *, settings: Settings | None = None) -> dict[int, int]:
    """Return `offsets_at` of every partition of a topic, by partition number.

    Raises:
        TopicError: The topic does not exist.
        KafkaException: The brokers report an error that does not pass.
    """
    client = admin_client(bootstrap, settings=settings)
    partitions = [(topic, number) for number in partition_numbers(client, topic)]
    return {number: at for (_, number), at in offsets_at(client, partitions, max(timestamp_ms, 0)).items()}


def stable_ends(bootstrap: str, settings: Settings | None, topic: str, numbers: Sequence[int]) -> dict[int, int]:
    """Ends to read to: behind everything that was committed before the call.

    A commit returns before the transaction's markers are in the log, and until then its records cannot be read. So
    this waits for the readable end to pass the log's end of now, but not for long: a transaction may stay open.
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
    topics: Sequence[str],
    number: int,
    waiting: Waiting = None,
    isolation: IsolationLevel = IsolationLevel.READ_UNCOMMITTED,
) -> Mapping[str, range]:
    """First offset and end of partition ``number`` of each topic (full names), open transactions included.

    Where no broker answers, ``waiting`` is called again and again, and may raise; without it this gives up.

    Raises:
        TopicError: A topic does not exist.
        KafkaException: The brokers report an error that does not pass, or do not answer.
    """
    client = admin_client(bootstrap, settings=settings)
    for topic in topics:
        # A client whose first request is for offsets may wait for seconds.
        partition_numbers(client, topic, waiting)
    partitions = [(topic, number) for topic in topics]
    starts = first_offsets(client, partitions, waiting)
    ends = last_offsets(client, partitions, isolation, waiting)
    return {partition[0]: range(starts[partition], ends[partition]) for partition in partitions}


def readable_range(bootstrap: str, settings: Settings, topic: str, number: int, waiting: Waiting = None) -> range:
    """Return the offsets of a partition (topic: full name) that a reader of committed records can read now."""
    return log_ranges(bootstrap, settings, [topic], number, waiting, IsolationLevel.READ_COMMITTED)[topic]
