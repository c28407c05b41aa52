"""The offsets that a partition number's logs hold now, asked for until a broker answers."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final, TypeVar

from confluent_kafka import IsolationLevel, KafkaException
from confluent_kafka.admin import AdminClient

from pipeline.kafka.clients import admin_client
from pipeline.kafka.log_offsets import first_offsets, last_offsets
from pipeline.kafka.retries import PASSING_ERRORS
from pipeline.settings import Settings

_RETRY_S: Final = 0.2
_REQUEST_TIMEOUT_S: Final = 10.0
T = TypeVar("T")


def answered(client: AdminClient, topic: str, ask: Callable[[], T], waiting: Callable[[], None]) -> T:
    """Ask for offsets of ``topic`` (full name) and others until a broker answers, and return the answer of ``ask``.

    ``waiting`` is called before each attempt, and may raise. Raises ``KafkaException`` for errors that do not pass.
    """
    while True:
        waiting()
        try:
            # A client whose first request is for offsets may wait for seconds.
            client.list_topics(topic, timeout=_REQUEST_TIMEOUT_S)
            return ask()
        except KafkaException as error:
            if error.args[0].code() not in PASSING_ERRORS:
                raise
            time.sleep(_RETRY_S)


def log_ranges(
    bootstrap: str,
    settings: Settings,
    topics: Sequence[str],
    number: int,
    waiting: Callable[[], None],
    isolation: IsolationLevel = IsolationLevel.READ_UNCOMMITTED,
) -> Mapping[str, range]:
    """First offset and end of partition ``number`` of each topic (full names), open transactions included.

    Waits for as long as no broker answers; ``waiting`` is called meanwhile, and may raise. Raises ``KafkaException``.
    """
    client = admin_client(bootstrap, settings=settings)
    partitions = [(topic, number) for topic in topics]

    def ask() -> Mapping[str, range]:
        starts = first_offsets(client, partitions)
        ends = last_offsets(client, partitions, isolation)
        return {partition[0]: range(starts[partition], ends[partition]) for partition in partitions}

    return answered(client, topics[0], ask, waiting)


def readable_range(bootstrap: str, settings: Settings, topic: str, number: int, waiting: Callable[[], None]) -> range:
    """Return the offsets of a partition (topic: full name) that a reader of committed records can read now."""
    return log_ranges(bootstrap, settings, [topic], number, waiting, IsolationLevel.READ_COMMITTED)[topic]
