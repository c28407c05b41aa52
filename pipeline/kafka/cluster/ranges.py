"""The offsets that a partition number's logs hold now."""

from collections.abc import Mapping, Sequence

from confluent_kafka import IsolationLevel

from pipeline.kafka.cluster.clients import admin_client
from pipeline.kafka.cluster.log_offsets import Waiting, first_offsets, last_offsets, partition_numbers
from pipeline.settings import Settings


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
