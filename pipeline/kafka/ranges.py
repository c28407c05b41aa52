"""Which offsets the logs of a partition number hold now."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from confluent_kafka import IsolationLevel, KafkaException

from pipeline.kafka.clients import PASSING_ERRORS, admin_client, first_offsets, last_offsets
from pipeline.settings import Settings

_RETRY_S: Final = 0.2
_REQUEST_TIMEOUT_S: Final = 10.0


def log_ranges(
    bootstrap: str, settings: Settings, topics: Sequence[str], number: int, waiting: Callable[[], None]
) -> Mapping[str, range]:
    """First offset and end of partition ``number`` of each topic (full names), open transactions included.

    Waits for as long as no broker answers; ``waiting`` is called meanwhile, and may raise. Raises ``KafkaException``.
    """
    client = admin_client(bootstrap, settings=settings)
    places = [(topic, number) for topic in topics]
    while True:
        waiting()
        try:
            # A client whose first request is for offsets may wait for seconds.
            client.list_topics(topics[0], timeout=_REQUEST_TIMEOUT_S)
            starts = first_offsets(client, places)
            ends = last_offsets(client, places, IsolationLevel.READ_UNCOMMITTED)
        except KafkaException as error:
            if error.args[0].code() not in PASSING_ERRORS:
                raise
            time.sleep(_RETRY_S)
        else:
            return {place[0]: range(starts[place], ends[place]) for place in places}
