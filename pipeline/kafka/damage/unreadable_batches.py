"""A session's unreadable batches: what its client fails at is examined; damaged ones may wait for a replica."""

import logging
import time
from collections.abc import Collection, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final, NamedTuple

from confluent_kafka import Consumer, KafkaException

from pipeline.kafka.damage.standstill import Standstills, assigned, known_end
from pipeline.kafka.damage.unreadable import Fault, find_fault
from pipeline.kafka.records.batch import Partition, UnreadableRange
from pipeline.kafka.records.raw_fetch import FetchRefused, FetchUnanswered

log = logging.getLogger(__name__)

_SEARCHES: Final = 8
"""Batches examined at a time: a client may take seconds for one, and must not keep other partitions waiting."""
AGAIN_S: Final = 5.0
"""Time after which a batch is examined again whose partition waits for another replica."""


class _Search(NamedTuple):
    start: int
    fault: Future[Fault | None]
    is_silent: bool
    since_s: float
    is_damaged: bool = False
    """The batch was found damaged, and its partition waits for another replica."""
    again_s: float = 0.0
    """Then: when the batch is examined again."""


class UnreadableBatches:
    """Examines the batches of a session's partitions that its client fails at, or stands still at without an error.

    Each is examined on a thread of its own, so that other partitions go on meanwhile. All methods are called on the
    session's thread.

    Args:
        config: Configuration of the session's client.
        agent: Its agent.
        replica_wait_s: How long a damaged batch that another broker may hold whole waits for that one to lead.
    """

    def __init__(self, config: Mapping[str, Any], agent: str, replica_wait_s: float) -> None:
        self._config, self._agent, self._replica_wait_s = config, agent, replica_wait_s
        self._searches: dict[Partition, _Search] = {}
        self._standstills = Standstills()
        self._threads = ThreadPoolExecutor(max_workers=_SEARCHES, thread_name_prefix=f"unreadable-{agent}")
        self._closed = False

    def failed(self, partition: Partition, start: int, message: str) -> None:
        """Examine the batch at ``start``, which the client cannot read; the caller pauses the partition meanwhile."""
        if self.pauses(partition):
            return
        log.warning("%s: %s partition %d offset %d cannot be read: %s", self._agent, *partition, start, message)
        self._searches[partition] = _Search(start, self._examine(partition, start), False, time.monotonic())

    def look(self, consumer: Consumer, positions: Mapping[Partition, int]) -> None:
        """Examine a batch where a partition stands still without an error; to be called often, looks once a second.

        The partition is not paused meanwhile: what stands still may go on by itself.

        Args:
            consumer: The session's client.
            positions: Offsets behind what was read of each partition that is held whole.
        """
        if not self._standstills.due():
            return
        read = assigned(consumer, positions, but=self._searches)
        for partition in self._standstills.suspects(read, lambda partition: known_end(consumer, partition)):
            examined = self._examine(partition, read[partition], is_silent=True)
            self._searches[partition] = _Search(read[partition], examined, True, time.monotonic())

    def found(self, partition: Partition, start: int, end: int, error: str, message: str) -> None:
        """Let `pop_found` return a range that its finder has examined."""
        known: Future[Fault | None] = Future()
        known.set_result(Fault(start, end, error, message))
        self._searches[partition] = _Search(start, known, is_silent=False, since_s=time.monotonic())

    def pauses(self, partition: Partition) -> bool:
        """Return whether this partition is paused for a search; one that merely stands still is not."""
        return partition in self._searches and not self._searches[partition].is_silent

    @property
    def damaged(self) -> list[Partition]:
        """Partitions that wait for another replica to lead them, because their batch is damaged."""
        return [partition for partition, search in self._searches.items() if search.is_damaged]

    def pop_found(self) -> UnreadableRange | None:
        """Return the range of a batch that was examined, empty where it can be read after all; None without one."""
        now_s = time.monotonic()
        for partition, search in list(self._searches.items()):
            if not search.fault.done() or search.again_s > now_s:
                continue
            if search.again_s > 0:
                self._searches[partition] = search._replace(fault=self._examine(partition, search.start), again_s=0)
                continue
            fault = self._examined(search)
            if fault is not None and fault.others and now_s < search.since_s + self._replica_wait_s:
                self._wait(partition, search, fault)
                continue
            del self._searches[partition]
            if fault is not None or not search.is_silent:
                return UnreadableRange(partition, *(fault or Fault(search.start, search.start, "", ""))[:4])
        return None

    def forget(self, numbers: Collection[int]) -> None:
        """Forget partitions that are not held any more."""
        for partition in [partition for partition in self._searches if partition[1] in numbers]:
            self._searches.pop(partition).fault.cancel()

    def close(self) -> None:
        """Give all searches up."""
        self._closed = True
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _examine(self, partition: Partition, start: int, *, is_silent: bool = False) -> Future[Fault | None]:
        return self._threads.submit(
            find_fault, self._config, partition, start, self._unless_closed, is_silent=is_silent
        )

    def _examined(self, search: _Search) -> Fault | None:
        try:
            return search.fault.result()
        except (KafkaException, FetchUnanswered, FetchRefused) as error:
            log.warning("%s: an unreadable batch cannot be examined yet: %s", self._agent, error)
            return None

    def _wait(self, partition: Partition, search: _Search, fault: Fault) -> None:
        """Let a partition wait until another replica leads it."""
        if not search.is_damaged:
            log.error(
                "%s: %s partition %d: the disk of its leader has damaged offsets %d to %d. Let a broker lead it that "
                "may hold them whole, %s (docs/operating.md): else they are quarantined in %.0f s",
                self._agent, *partition, fault.start, fault.end - 1, " or ".join(map(str, fault.others)),
                self._replica_wait_s,
            )  # fmt: skip
        self._searches[partition] = search._replace(is_damaged=True, again_s=time.monotonic() + AGAIN_S)

    def _unless_closed(self) -> None:
        if self._closed:
            raise FetchUnanswered("the worker ends")
