"""Bringing a partition's state up to what is committed: a snapshot, and a silent fold of what came after it."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing

from pipeline.kafka.batch import Place
from pipeline.kafka.fold import RangeReader, in_recorded_order, read_markers, settled_end
from pipeline.kafka.handler import PartitionHandler
from pipeline.settings import Settings
from schemas.messages import Progress
from schemas.topics import PROGRESS


def restore_partition(
    bootstrap: str,
    settings: Settings,
    agent: str,
    number: int,
    committed: Mapping[Place, int],
    handler: PartitionHandler,
    waiting: Callable[[], None],
    first: Mapping[str, int] | None = None,
) -> int:
    """Let ``handler`` start partition ``number`` and fold it up to ``committed``; returns how many records were folded.

    ``committed`` has the agent's topics in the order in which a batch holds them. ``waiting`` is called while nothing
    comes, and may raise. Records below ``first``, an offset by topic, may be missing. Raises `TopicError` where others
    that the fold needs are gone.
    """
    ends = {topic: offset for (topic, _), offset in committed.items()}
    restored = handler.restore(number, ends)
    positions = restored.positions if restored is not None else {}
    folded = 0
    with ExitStack() as stack:

        def reader(topic: str, start: int) -> RangeReader:
            return stack.enter_context(closing(RangeReader(bootstrap, settings, topic, number, start, waiting)))

        readers = [reader(topic, max(positions.get(topic, 0), (first or {}).get(topic, 0))) for topic in ends]
        markers: Iterator[Progress] = iter(())
        if len(ends) > 1:
            told = reader(settings.topic(PROGRESS.name), restored.progress if restored is not None else 0)
            markers = read_markers(told, agent, settled_end(bootstrap, settings, told.topic, number, waiting))
        for records in in_recorded_order(readers, markers, ends, lambda name: name.removeprefix(settings.topic_prefix)):
            waiting()
            handler.fold(number, records)
            folded += len(records)
    return folded
