"""A session's unreadable batches: fetches that fail are counted, and the end of what fails again is searched for."""

import logging
from collections.abc import Collection, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final, NamedTuple

from confluent_kafka import Consumer, KafkaError, KafkaException

from pipeline.kafka.batch import Partition, UnreadableRange
from pipeline.kafka.odd_offsets import EXPLANATION, ODD_OFFSET
from pipeline.kafka.standstill import Standstills, assigned, known_end
from pipeline.kafka.unreadable import FETCHES, NoAnswer, find_end

log = logging.getLogger(__name__)


_SEARCHES: Final = 8
"""Searches at a time: one of them may take minutes, and must not keep other partitions waiting."""
STALLED: Final = "Stalled"
_NOTHING_COMES: Final = "the client fetches this batch again and again, and delivers nothing of it and no error"


class _Failure(NamedTuple):
    start: int
    """First offset that cannot be read."""
    error: KafkaError
    times: int


class _Search(NamedTuple):
    start: int
    error: str
    message: str
    end: Future[int]


class UnreadableBatches:
    """Counts failed fetches of a session's partitions, and searches for the end of what fails again and again.

    A partition that stands still without an error is searched too.

    Each search runs on a thread of its own, so that other partitions go on meanwhile. All methods are called on the
    session's thread.
    """

    def __init__(self, config: Mapping[str, Any], agent: str) -> None:
        self._config, self._agent = config, agent
        self._failures: dict[Partition, _Failure] = {}
        self._searches: dict[Partition, _Search] = {}
        self._standstills = Standstills()
        self._threads = ThreadPoolExecutor(max_workers=_SEARCHES, thread_name_prefix=f"unreadable-{agent}")
        self._closed = False

    def failed(self, partition: Partition, start: int, error: KafkaError) -> bool:
        """Count a failed fetch; return whether a search for the end of what cannot be read has begun.

        Args:
            partition: The partition.
            start: The first offset that could not be read.
            error: One of `pipeline.kafka.unreadable.UNREADABLE`.
        """
        before = self._failures.get(partition)
        times = before.times + 1 if before is not None and before.start == start else 1
        self._failures[partition] = _Failure(start, error, times)
        log.warning(
            "%s: %s partition %d offset %d cannot be read (%d of %d times): %s",
            self._agent, *partition, start, times, FETCHES, error.str(),
        )  # fmt: skip
        if times < FETCHES or partition in self._searches:
            return False
        self._begin(partition, start, error.name(), error.str())
        return True

    def succeeded(self, ends: Mapping[Partition, int]) -> None:
        """Forget failures that were followed by a successful read: what fails there later is counted anew.

        Args:
            ends: Offsets behind what was read of each partition.
        """
        for partition in [
            partition for partition, failure in self._failures.items() if ends.get(partition, 0) > failure.start
        ]:
            if partition not in self._searches:
                del self._failures[partition]

    def look(self, consumer: Consumer, positions: Mapping[Partition, int]) -> None:
        """Search where a partition stands still without an error; to be called often, looks once a second.

        The partition is not paused meanwhile: what stands still may go on by itself.

        Args:
            consumer: The session's client.
            positions: Offsets behind what was read of each partition that is held whole.
        """
        if not self._standstills.due():
            return
        read = assigned(consumer, positions, but=self._searches)
        for partition in self._standstills.suspects(read, lambda partition: known_end(consumer, partition)):
            self._begin(partition, read[partition], STALLED, _NOTHING_COMES)

    def found(self, partition: Partition, start: int, end: int) -> None:
        """Let `pop_found` return a range whose records claim other offsets than they have."""
        known: Future[int] = Future()
        known.set_result(end)
        self._searches[partition] = _Search(start, ODD_OFFSET, EXPLANATION, known)

    def fails(self, partition: Partition) -> bool:
        """Return whether the last word on this partition was a failed fetch."""
        return partition in self._failures

    def pauses(self, partition: Partition) -> bool:
        """Return whether this partition is paused for a search; one that merely stands still is not."""
        return partition in self._searches and self._searches[partition].error != STALLED

    def pop_found(self) -> UnreadableRange | None:
        """Return the range of a search that has ended; one that found nothing, or failed, gives an empty range."""
        partition = next((partition for partition, search in self._searches.items() if search.end.done()), None)
        if partition is None:
            return None
        search = self._searches.pop(partition)
        self._failures.pop(partition, None)
        end = search.start
        try:
            end = search.end.result()
        except (KafkaException, NoAnswer) as error:
            log.warning("%s: the search for the end of a batch failed and is repeated: %s", self._agent, error)
        return UnreadableRange(partition, search.start, end, search.error, search.message)

    def forget(self, numbers: Collection[int]) -> None:
        """Forget partitions that are not held any more."""
        for partition in [partition for partition in self._failures if partition[1] in numbers]:
            del self._failures[partition]
        for partition in [partition for partition in self._searches if partition[1] in numbers]:
            self._searches.pop(partition).end.cancel()

    def close(self) -> None:
        """Give all searches up."""
        self._closed = True
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _begin(self, partition: Partition, start: int, error: str, message: str) -> None:
        self._searches[partition] = _Search(start, error, message, self._threads.submit(self._search, partition, start))

    def _search(self, partition: Partition, start: int) -> int:
        return find_end(self._config, partition, start, self._unless_closed)

    def _unless_closed(self) -> None:
        if self._closed:
            raise NoAnswer("the worker ends")
