"""Offsets up to which a group has read."""

from collections.abc import Sequence
from contextlib import closing

from pipeline.kafka.cluster.admin import committed_by_group, end_offsets, group_consumer
from pipeline.settings import Settings


def committed_offsets(
    bootstrap: str, group: str, topics: Sequence[str], *, settings: Settings | None = None
) -> dict[tuple[str, int], int]:
    """Next offset that ``group`` would read, by topic and partition; partitions without a commit are absent."""
    ends = end_offsets(bootstrap, topics, settings=settings)
    with closing(group_consumer(bootstrap, group, settings=settings)) as consumer:
        return committed_by_group(consumer, list(ends))


def group_lag(
    bootstrap: str, group: str, topics: Sequence[str], *, settings: Settings | None = None
) -> dict[tuple[str, int], int]:
    """Offsets that ``group`` has before it, by topic and partition; one without a commit counts from offset 0."""
    committed = committed_offsets(bootstrap, group, topics, settings=settings)
    ends = end_offsets(bootstrap, topics, settings=settings)
    return {at: max(end - committed.get(at, 0), 0) for at, end in ends.items()}
