"""Partitions that stand still: their log goes on, and the client delivers neither a record nor an error."""

import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Final

from confluent_kafka import Consumer, TopicPartition

from pipeline.kafka.records.batch import Partition

STALL_S: Final = 5.0
"""A partition is suspected once nothing has come of it for so long, and again after twice that time, and so on."""
LOOK_S: Final = 1.0
MOST_STALL_S: Final = 120.0


@dataclass(slots=True)
class _Stand:
    position: int
    stood_s: float
    wait_s: float


class Standstills:
    """Suspects partitions whose position does not move although their log goes on.

    A suspicion proves nothing: an open transaction, a broker that is away or a busy client look the same. Whoever gets
    one asks the partition itself (`pipeline.kafka.damage.unreadable.find_fault`).
    """

    def __init__(self) -> None:
        self._stands: dict[Partition, _Stand] = {}
        self._looked_s = time.monotonic()

    def due(self) -> bool:
        """Return whether it is time to look; cheap."""
        return time.monotonic() - self._looked_s >= LOOK_S

    def suspects(
        self, positions: Mapping[Partition, int], end: Callable[[Partition], tuple[int, int]]
    ) -> list[Partition]:
        """Return the partitions that have stood still for long.

        Args:
            positions: Where each partition that is read has been read up to.
            end: Asks the client for the position of a partition, behind marks of transactions too, and for the end of
                its log, without a request; -1 and less where it does not know.
        """
        now_s = time.monotonic()
        # Who was busy elsewhere, or was not called, has not seen a partition stand still.
        seen_s = min(now_s - self._looked_s, 2 * LOOK_S)
        self._looked_s = now_s
        self._stands = {partition: stand for partition, stand in self._stands.items() if partition in positions}
        found = []
        for partition, position in positions.items():
            stand = self._stands.get(partition)
            if stand is None or stand.position != position:
                self._stands[partition] = _Stand(position, 0.0, STALL_S)
                continue
            behind, log_end = end(partition)
            if log_end <= max(position, behind):
                stand.stood_s = 0.0
                continue
            stand.stood_s += seen_s
            if stand.stood_s >= stand.wait_s:
                stand.stood_s, stand.wait_s = 0.0, min(2 * stand.wait_s, MOST_STALL_S)
                found.append(partition)
        return found


def known_end(consumer: Consumer, partition: Partition) -> tuple[int, int]:
    """Return a partition's position and the end of its log as ``consumer`` knows them, for `Standstills.suspects`."""
    (position,) = consumer.position([TopicPartition(*partition)])
    _, end = consumer.get_watermark_offsets(TopicPartition(*partition), cached=True)
    return int(position.offset), int(end)


def assigned(
    consumer: Consumer, positions: Mapping[Partition, int], but: Collection[Partition] = ()
) -> dict[Partition, int]:
    """Return the positions of partitions that ``consumer`` reads now, without those in ``but``."""
    held = {(at.topic, at.partition) for at in consumer.assignment()}
    return {partition: at for partition, at in positions.items() if partition in held and partition not in but}
