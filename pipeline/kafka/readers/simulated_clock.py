"""The time on the topics' own clock, where that is a simulated one."""

from datetime import UTC, datetime, timedelta
from typing import Final

from pipeline.kafka.cluster.admin import end_offsets
from pipeline.kafka.cluster.cluster import require_producer_timestamps
from pipeline.kafka.cluster.errors import TopicError
from pipeline.kafka.readers.topic_reader import read_topic
from pipeline.settings import Settings
from schemas.topics import TRANSACTIONS

SIMULATED_AFTER: Final = timedelta(days=30)
"""Distance of the newest transaction from now beyond which the clock of a topic that producers stamp is simulated."""
NEWEST_RECORDS: Final = 20
"""Offsets looked at behind the end of a partition: the last ones may be the markers of Kafka transactions."""


def has_own_clock(bootstrap: str, settings: Settings) -> bool:
    """Return whether producers stamp transactions, so that the clock may be a simulated one."""
    try:
        require_producer_timestamps(bootstrap, settings, [settings.topic(TRANSACTIONS.name)])
    except TopicError:
        # The broker stamps records on arrival (or there is no such topic): a clock like ours.
        return False
    return True


def if_simulated(newest: datetime, now: datetime) -> datetime | None:
    """Return the newest time of a topic that producers stamp, where its clock is a simulated one; else None."""
    return newest if abs(now - newest) > SIMULATED_AFTER else None


def simulated_now(bootstrap: str, settings: Settings, now: datetime) -> datetime | None:
    """The time on the topics' own clock, where that is a simulated one (a run, a replay); None where it is ``now``."""
    if not has_own_clock(bootstrap, settings):
        return None
    topic = settings.topic(TRANSACTIONS.name)
    start = {
        partition: max(0, end - NEWEST_RECORDS)
        for (_, partition), end in end_offsets(bootstrap, [topic], settings=settings).items()
    }
    newest_ms = max(
        (record.timestamp_ms for record in read_topic(bootstrap, topic, settings=settings, start=start)), default=None
    )
    return None if newest_ms is None else if_simulated(datetime.fromtimestamp(newest_ms / 1_000, UTC), now)
