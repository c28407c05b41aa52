"""Decisions about records that fail: retry, quarantine, or end the worker."""

import logging
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Final, NamedTuple

import msgspec

from pipeline.engine.encoding.blocks import KernelMismatch, row_count
from pipeline.engine.partition_state.state import StoreError
from pipeline.engine.records.results import Result, merged
from pipeline.kafka.cluster.errors import Aborted, OutputTooLarge, SessionError
from pipeline.kafka.records.batch import Batch, UnreadableRange
from pipeline.kafka.session.quarantine import THE_RECORDS_OWN, ProcessDied, Quarantines
from pipeline.observability.health import Health
from pipeline.scoring.errors import ModelError
from pipeline.settings import Settings
from schemas.records import Record

log = logging.getLogger(__name__)

RETRY_PAUSE_S: Final = 0.5
NOT_THE_RECORD: Final = (ModelError, StoreError, OSError, MemoryError, SessionError)
"""Errors that no record is to blame for: quarantining records would lose all of them, one by one."""


class Process(NamedTuple):
    """Processes a record as the agent does, without the rows that it says are to be skipped."""

    kept: Callable[[Record], Result]
    """Leaves it in the agent's state."""
    tried: Callable[[Record], Exception | None]
    """Takes it back, and returns why it fails, if it does."""


class TooManyFailures(RuntimeError):
    """So many records failed that the fault must lie elsewhere; the text says what to do."""


class Failures:
    """Counts the failures of an agent's records, and quarantines those that fail too often.

    Args:
        agent: Name of the agent.
        settings: Say how often a record may fail, and how many quarantines within a day stop the worker.
        quarantines: The agent's; refreshed before the limit of a day is checked.
        health: The worker's; notes that the agent works while quarantines are read.
    """

    def __init__(self, agent: str, settings: Settings, quarantines: Quarantines, health: Health) -> None:
        self._agent, self._settings = agent, settings
        self._quarantines, self._health = quarantines, health
        self._failures: Counter[tuple[str, int, int]] = Counter()

    def unprocessed(self, batch: Batch) -> tuple[Batch, Result] | None:
        """Return what to commit in place of processing the batch; None for a batch that is to be processed.

        A record that processes died of and a range that cannot be read are quarantined unprocessed.

        Raises:
            TooManyFailures: Too many records were quarantined before.
        """
        if batch.deaths >= self._settings.quarantine_after:
            died = f"{batch.deaths} processes died while they worked on this record alone"
            return self._quarantine(batch, ProcessDied(died))
        if batch.unreadable is not None:
            return self._quarantine_range(batch, batch.unreadable)
        return None

    def failed(self, batch: Batch, error: Exception, process: Process) -> tuple[Batch, Result]:
        """Return what to commit for a batch of one record that failed: its quarantine.

        Of a block the rows are quarantined that it fails for, together with the results of the others.

        Args:
            batch: The batch.
            error: Why it failed.
            process: Processes a record as the agent does.

        Raises:
            Aborted: The record has not failed often enough; it is to be read again.
            TooManyFailures: Too many records were quarantined before.
        """
        (record,) = batch.records
        if isinstance(error, KernelMismatch):
            return self._quarantine(batch, error)  # no other try would compute it
        position = (record.topic, record.partition, record.offset)
        self._failures[position] += 1
        times, most = self._failures[position], self._settings.quarantine_after
        log.critical(
            "%s: %s partition %d offset %d fails (%d of %d times) of %s; nothing of it is committed\n%s",
            self._agent, *position, times, most, described(error), "".join(traceback.format_tb(error.__traceback__)),
        )  # fmt: skip
        if times < most:
            time.sleep(RETRY_PAUSE_S)  # on the agent's own thread, which has nothing else to do
            raise Aborted(
                f"{record.topic} partition {record.partition} offset {record.offset} fails of {described(error)}"
            )
        found = [] if isinstance(error, OutputTooLarge) else failing_rows(record, process.tried)
        quarantined = self._quarantine_rows(batch, found, process) if found else self._quarantine(batch, error)
        del self._failures[position]
        return quarantined

    def _quarantine(self, batch: Batch, error: Exception) -> tuple[Batch, Result]:
        (record,) = batch.records
        now = datetime.now(UTC)
        self._check_limit(now, record, error)
        log.error(
            "%s: %s partition %d offset %d is quarantined: %s",
            self._agent, record.topic, record.partition, record.offset, described(error),
        )  # fmt: skip
        marked = replace(batch, quarantined=[self._quarantines.position(record)])
        return marked, self._quarantines.outputs(record, error, now)

    def _quarantine_rows(
        self, batch: Batch, found: Sequence[tuple[int, Exception]], process: Process
    ) -> tuple[Batch, Result]:
        """Return the results of a block's other rows, with the quarantines of those that were found."""
        (record,) = batch.records
        now = datetime.now(UTC)
        rows = tuple(row for row, _ in found)
        result = process.kept(msgspec.structs.replace(record, skipped_rows=rows))
        for row, error in found:
            self._check_limit(now, record, error)
            log.error(
                "%s: %s partition %d offset %d row %d is quarantined: %s",
                self._agent, record.topic, record.partition, record.offset, row, described(error),
            )  # fmt: skip
            result = merged([result, self._quarantines.outputs(record, error, now, row)])
        return replace(batch, quarantined=[self._quarantines.position(record, row) for row in rows]), result

    def _quarantine_range(self, batch: Batch, unreadable: UnreadableRange) -> tuple[Batch, Result]:
        topic, number = unreadable.partition
        log.error(
            "%s: %s partition %d offsets %d to %d cannot be read and are quarantined: %s",
            self._agent, topic, number, unreadable.start, unreadable.end - 1, unreadable.message,
        )  # fmt: skip
        marked = replace(batch, quarantined=[self._quarantines.range_position(unreadable)])
        return marked, self._quarantines.range_outputs(unreadable, datetime.now(UTC))

    def _check_limit(self, now: datetime, record: Record, error: Exception) -> None:
        """Raise `TooManyFailures` where so many records failed today that the fault may be the program's.

        What others can bring about at will does not count: a range that cannot be read, an output too large, a block
        of another kernel that is not the card agent's.
        """
        if isinstance(error, THE_RECORDS_OWN):
            return
        self._quarantines.refresh(lambda: self._health.working(self._agent))
        quarantined = self._quarantines.within_a_day(now)
        if quarantined >= self._settings.quarantine_limit:
            raise TooManyFailures(
                f"agent {self._agent}: {quarantined} records were quarantined within a day, by this worker or others, "
                f"and {record.topic} partition {record.partition} offset {record.offset} fails too: the fault is "
                "hardly theirs. Read the errors above; FRAUD_PIPELINE_QUARANTINE_LIMIT raises the limit"
            ) from None


def described(error: Exception) -> str:
    """Return an error of a record for a log: without its text, which may hold a card's number, unless that is ours."""
    return str(error) if isinstance(error, THE_RECORDS_OWN) else f"{type(error).__name__} (see topic control)"


def spans(records: Sequence[Record]) -> str:
    """Return where the records of a batch lie, as text for error messages."""
    found: dict[tuple[str, int], tuple[int, int]] = {}
    for record in records:
        first, _ = found.get((record.topic, record.partition), (record.offset, 0))
        found[record.topic, record.partition] = (first, record.offset)
    return ", ".join(
        f"{topic} partition {partition} offsets {first} to {last}"
        for (topic, partition), (first, last) in sorted(found.items())
    )


def failing_rows(record: Record, try_record: Callable[[Record], Exception | None]) -> list[tuple[int, Exception]]:
    """Find the rows that a block fails for.

    Args:
        record: A record that fails.
        try_record: Processes a record, and takes that back; returns why it fails, if it does.

    Returns:
        Rows and their errors, ascending. Nothing where each row fails, or where no row does so by itself: then the
        record as a whole is to blame.
    """
    count = row_count(record.value)
    if count < 2:
        return []
    every = frozenset(range(count))

    def search(rows: Sequence[int]) -> list[tuple[int, Exception]]:
        error = try_record(msgspec.structs.replace(record, skipped_rows=tuple(sorted(every.difference(rows)))))
        if error is None:
            return []
        if len(rows) == 1:
            return [(rows[0], error)]
        middle = len(rows) // 2
        return search(rows[:middle]) + search(rows[middle:])

    found = search(range(count))
    if len(found) == count:
        return []
    blamed = tuple(row for row, _ in found)
    return [] if try_record(msgspec.structs.replace(record, skipped_rows=blamed)) is not None else found
