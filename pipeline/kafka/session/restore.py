"""Restores the committed state of partitions: a snapshot each, and a replay without output of what came after it."""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing
from typing import NamedTuple

from pipeline.kafka.cluster.log_offsets import log_ranges
from pipeline.kafka.readers.replay_reader import RangeReader, in_recorded_order, read_markers, readable_ends
from pipeline.kafka.records.batch import Partition
from pipeline.kafka.records.carried import BATCH_BYTES
from pipeline.kafka.records.member import Member
from pipeline.kafka.session.state_handler import StateHandler
from schemas.messages import Progress
from schemas.topics import PROGRESS, has_order

log = logging.getLogger(__name__)


class Restoration(NamedTuple):
    """The restoration of a partition's state to the committed one."""

    records: int
    """Records that were replayed."""
    progress: int
    """Offset in ``progress`` behind the markers of all of them; 0 for an agent with one input."""
    positions: Mapping[Partition, int]
    """Offsets to read on from: behind what is committed, or the start of a log whose lost records are accepted."""


def restore_partitions(
    member: Member, committed: Mapping[Partition, int], handler: StateHandler, waiting: Callable[[], None]
) -> Iterator[tuple[int, Restoration]]:
    """Let ``handler`` start partitions and replay their logs up to the ``committed`` offsets; yield each by its number.

    Brokers are asked about all of them at once.

    Raises:
        TopicError: Records that the replay needs are gone, and the settings do not accept it.
    """
    bootstrap, settings = member.bootstrap, member.settings
    numbers = sorted({number for _, number in committed})
    marked = [(settings.topic(PROGRESS.name), number) for number in numbers] if has_order(member.reads) else []
    logs = log_ranges(bootstrap, settings, [*committed, *marked], waiting)
    ends = {number: end for (_, number), end in readable_ends(bootstrap, settings, marked, waiting).items()}
    for number in numbers:
        own = {topic: offset for (topic, n), offset in committed.items() if n == number}
        ranges = {topic: offsets for (topic, n), offsets in logs.items() if n == number}
        try:
            done = _restore_partition(member, number, own, ranges, ends.get(number, 0), handler, waiting)
        except BaseException:
            handler.forget(number)
            raise
        yield number, done


def _restore_partition(
    member: Member,
    number: int,
    committed: Mapping[str, int],
    logs: Mapping[str, range],
    progress: int,
    handler: StateHandler,
    waiting: Callable[[], None],
) -> Restoration:
    bootstrap, settings, on_refused = member.bootstrap, member.settings, member.on_refused
    first = {topic: logs[topic].start if settings.accept_lost_records else 0 for topic in committed}
    restored = handler.restore(number, committed, logs, waiting)
    positions = restored.positions if restored is not None else {}
    replayed = 0
    with ExitStack() as stack:

        def reader(topic: str, start: int) -> RangeReader:
            made = RangeReader(
                bootstrap, settings, topic, number, start, waiting, most_bytes=BATCH_BYTES, on_refused=on_refused
            )
            return stack.enter_context(closing(made))

        readers = [reader(topic, max(positions.get(topic, 0), first[topic])) for topic in committed]
        markers: Iterator[Progress] = iter(())
        if has_order(member.reads):
            progress_reader = reader(settings.topic(PROGRESS.name), restored.progress if restored is not None else 0)
            markers = read_markers(progress_reader, member.agent, progress, on_refused)
        bare = settings.topic_prefix
        for batch in in_recorded_order(readers, markers, committed, lambda name: name.removeprefix(bare)):
            waiting()
            handler.replay(number, batch.records, batch.config)
            replayed += len(batch.records)
    for topic, offset in committed.items():
        if offset < first[topic]:
            log.warning(
                "%s: %s partition %d: offsets %d to %d were deleted before they were read and are passed over, as "
                "FRAUD_PIPELINE_ACCEPT_LOST_RECORDS says; unset it for the next start",
                member.agent, topic, number, offset, first[topic] - 1,
            )  # fmt: skip
    goes_on = {(topic, number): max(offset, first[topic]) for topic, offset in committed.items()}
    return Restoration(replayed, progress, goes_on)
