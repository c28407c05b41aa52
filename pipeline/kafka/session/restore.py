"""Restores a partition's committed state: a snapshot, and a replay without output of what came after it."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing
from typing import NamedTuple

from pipeline.kafka.cluster.log_offsets import log_ranges
from pipeline.kafka.readers.replay_reader import RangeReader, in_recorded_order, read_markers, stable_end
from pipeline.kafka.records.batch import Partition
from pipeline.kafka.records.carried import BATCH_BYTES
from pipeline.kafka.records.internal import OnRefused, not_counted
from pipeline.kafka.session.state_handler import StateHandler
from pipeline.settings import Settings
from schemas.messages import Progress
from schemas.topics import PROGRESS


class Restoration(NamedTuple):
    """The restoration of a partition's state to the committed one."""

    records: int
    """Records that were replayed."""
    progress: int
    """Offset in ``progress`` behind the markers of all of them; 0 for an agent with one input."""
    first: Mapping[str, int]
    """Begin of each topic's log if lost records are accepted, else 0: below it nothing was asked for."""


def restore_partition(
    bootstrap: str,
    settings: Settings,
    agent: str,
    number: int,
    committed: Mapping[Partition, int],
    handler: StateHandler,
    waiting: Callable[[], None],
    on_refused: OnRefused = not_counted,
) -> Restoration:
    """Let ``handler`` start a partition and replay its log up to what is committed.

    Args:
        bootstrap: Addresses of brokers.
        settings: The worker's settings.
        agent: Name of the agent.
        number: The partition.
        committed: Offsets by the agent's topics, in the order in which a batch holds these.
        handler: Holds the state.
        waiting: Called while nothing comes; may raise.
        on_refused: Counts records that cannot be read.

    Raises:
        TopicError: Records that the replay needs are gone, and the settings do not accept it.
    """
    ends = {topic: offset for (topic, _), offset in committed.items()}
    needed = [*ends, settings.topic(PROGRESS.name)] if len(ends) > 1 else list(ends)
    logs = log_ranges(bootstrap, settings, needed, number, waiting)
    first = {topic: logs[topic].start if settings.accept_lost_records else 0 for topic in ends}
    restored = handler.restore(number, ends, logs, waiting)
    positions = restored.positions if restored is not None else {}
    replayed, progress = 0, 0
    with ExitStack() as stack:

        def reader(topic: str, start: int) -> RangeReader:
            made = RangeReader(
                bootstrap, settings, topic, number, start, waiting, most_bytes=BATCH_BYTES, on_refused=on_refused
            )
            return stack.enter_context(closing(made))

        readers = [reader(topic, max(positions.get(topic, 0), first[topic])) for topic in ends]
        markers: Iterator[Progress] = iter(())
        if len(ends) > 1:
            progress_reader = reader(settings.topic(PROGRESS.name), restored.progress if restored is not None else 0)
            progress = stable_end(bootstrap, settings, progress_reader.topic, number, waiting)
            markers = read_markers(progress_reader, agent, progress, on_refused)
        for batch in in_recorded_order(readers, markers, ends, lambda name: name.removeprefix(settings.topic_prefix)):
            waiting()
            handler.replay(number, batch.records, batch.config)
            replayed += len(batch.records)
    return Restoration(replayed, progress, first)
