"""Undecided blocks of ``profiled`` whose features another kernel version computed."""

from collections.abc import Mapping
from contextlib import closing
from typing import Final, NamedTuple

from pipeline.engine.blocks import BlockError, parse_block
from pipeline.features.catalogue import KERNEL_VERSION
from pipeline.kafka.topic_reader import read_batches
from pipeline.settings import Settings
from schemas.records import Record
from schemas.topics import PROFILED

LAST_OFFSETS: Final = 100
"""So many offsets before a partition's end are looked at."""


class OfOtherKernel(NamedTuple):
    """A block with transactions of another kernel version."""

    offset: int
    kernel: str


def newest_of_other_kernels(
    bootstrap: str, settings: Settings, positions: Mapping[int, int], ends: Mapping[int, int]
) -> dict[int, list[OfOtherKernel]]:
    """Find the undecided blocks of other kernels that no block of this kernel follows; those of labels alone aside.

    Args:
        bootstrap: Addresses of brokers.
        settings: The worker's settings.
        positions: The offset by partition that the score agent goes on from.
        ends: The end of what can be read, by partition.

    Returns:
        Those among the last ``LAST_OFFSETS`` of each partition, in order of offsets.

    Raises:
        KafkaException: no broker answers.
    """
    found: dict[int, list[OfOtherKernel]] = {}
    starts = {
        number: max(position, ends[number] - LAST_OFFSETS)
        for number, position in positions.items()
        if ends[number] > position
    }
    if not starts:
        return found
    name = settings.topic(PROFILED.name)
    reading = read_batches(
        bootstrap, name, settings=settings, partitions=list(starts), start=starts, skip_unreadable=True
    )
    with closing(reading) as batches:
        for record in (record for records in batches for record in records):
            match _kernel_of(record):
                case None:
                    pass
                case kernel if kernel == KERNEL_VERSION:
                    found.pop(record.partition, None)
                case kernel:
                    found.setdefault(record.partition, []).append(OfOtherKernel(record.offset, kernel))
    return found


def _kernel_of(record: Record) -> str | None:
    try:
        block = parse_block(record.value)
    except BlockError:  # the agent quarantines it
        return None
    return block.kernel if len(block.features) else None
