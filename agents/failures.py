"""Decisions about records that fail: retry, quarantine, or end the worker."""

import logging
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Final

from pipeline.engine.results import Result
from pipeline.engine.score import KernelChanged
from pipeline.engine.state import StoreError
from pipeline.health import Health
from pipeline.kafka.batch import Batch, UnreadableRange
from pipeline.kafka.quarantine import THE_RECORDS_OWN, ProcessDied, Quarantines
from pipeline.kafka.transactions import Aborted, SessionError
from pipeline.scoring.errors import ModelError
from pipeline.settings import Settings
from schemas.records import Record

log = logging.getLogger(__name__)

RETRY_PAUSE_S: Final = 0.5
NOT_THE_RECORD: Final = (KernelChanged, ModelError, StoreError, OSError, MemoryError, SessionError)
"""Errors that no record is to blame for: quarantining records would lose all of them, one by one."""


class TooManyFailures(RuntimeError):
    """So many records failed that the fault must lie elsewhere; the text says what to do."""


class Failures:
    """Counts the failures of an agent's records, and quarantines those that fail too often."""

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
        if batch.deaths >= self._settings.set_aside_after:
            died = f"{batch.deaths} processes died while they worked on this record alone"
            return self._quarantine(batch, ProcessDied(died))
        if batch.unreadable is not None:
            return self._quarantine_range(batch, batch.unreadable)
        return None

    def failed(self, batch: Batch, error: Exception) -> tuple[Batch, Result]:
        """Return what to commit for a batch of one record that failed: its quarantine.

        Raises:
            Aborted: The record has not failed often enough; it is to be read again.
            TooManyFailures: Too many records were quarantined before.
        """
        (record,) = batch.records
        position = (record.topic, record.partition, record.offset)
        self._failures[position] += 1
        times, most = self._failures[position], self._settings.set_aside_after
        log.critical(
            "%s: %s partition %d offset %d fails (%d of %d times); nothing of it is committed",
            self._agent, *position, times, most, exc_info=error,
        )  # fmt: skip
        if times < most:
            time.sleep(RETRY_PAUSE_S)  # on the agent's own thread, which has nothing else to do
            raise Aborted(f"{record.topic} partition {record.partition} offset {record.offset} fails: {error}")
        quarantined = self._quarantine(batch, error)
        del self._failures[position]
        return quarantined

    def _quarantine(self, batch: Batch, error: Exception) -> tuple[Batch, Result]:
        (record,) = batch.records
        now = datetime.now(UTC)
        self._check_limit(now, record, error)
        log.error(
            "%s: %s partition %d offset %d is quarantined: %s",
            self._agent, record.topic, record.partition, record.offset, error,
        )  # fmt: skip
        marked = replace(batch, quarantined=[self._quarantines.position(record)])
        return marked, self._quarantines.outputs(record, error, now)

    def _quarantine_range(self, batch: Batch, unreadable: UnreadableRange) -> tuple[Batch, Result]:
        topic, number = unreadable.place
        log.error(
            "%s: %s partition %d offsets %d to %d cannot be read and are quarantined: %s",
            self._agent, topic, number, unreadable.start, unreadable.end - 1, unreadable.message,
        )  # fmt: skip
        marked = replace(batch, quarantined=[self._quarantines.range_position(unreadable)])
        return marked, self._quarantines.range_outputs(unreadable, datetime.now(UTC))

    def _check_limit(self, now: datetime, record: Record, error: Exception) -> None:
        """Raise `TooManyFailures` where so many records failed today that the fault may be the program's.

        What a producer can bring about at will (a range that cannot be read, an output too large) does not count.
        """
        if isinstance(error, THE_RECORDS_OWN):
            return
        self._quarantines.refresh(lambda: self._health.working(self._agent))
        quarantined = self._quarantines.within_a_day(now)
        if quarantined >= self._settings.set_aside_limit:
            raise TooManyFailures(
                f"agent {self._agent}: {quarantined} records were quarantined within a day, by this worker or others, "
                f"and {record.topic} partition {record.partition} offset {record.offset} fails too: the fault is "
                "hardly theirs. Read the errors above; FRAUD_PIPELINE_SET_ASIDE_LIMIT raises the limit"
            ) from error


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
