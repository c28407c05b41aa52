"""Careful reading: marks are committed before what they name is read, and steps are read by a client of their own."""

import logging
import threading
import uuid
from collections.abc import Callable, Mapping
from contextlib import closing
from itertools import count
from typing import Any, Final

from confluent_kafka import IsolationLevel, KafkaException

from pipeline.kafka.cluster.clients import admin_client
from pipeline.kafka.cluster.errors import TopicError
from pipeline.kafka.cluster.log_offsets import last_offsets, partition_numbers
from pipeline.kafka.cluster.retries import Retries
from pipeline.kafka.readers.replay_reader import RangeReader
from pipeline.kafka.records.batch import Batch, Partition
from pipeline.kafka.records.member import Member
from pipeline.kafka.session.attempts import Attempt, Attempts, CarefulStep, Committed, Mark
from schemas.records import Record

log = logging.getLogger(__name__)

ONE_RECORD_BATCH: Final = {
    "max.partition.fetch.bytes": 1,  # a broker returns a whole record batch all the same, and no second one
    "queued.max.messages.kbytes": 1,
    "fetch.wait.max.ms": 10,  # behind the last record a step waits for the end
}
"""Lets a client hold one record batch, so that a record far ahead kills nobody before its own step."""

_ALONE: Final = threading.Lock()
"""Held for a step: what another agent of this process dies of must not count for it."""

WriteMarks = Callable[[Mapping[Partition, tuple[int, Mark]]], None]


class CarefulReading:
    """Careful reading of one session; used from its thread."""

    def __init__(self, member: Member, retries: Retries) -> None:
        self._bootstrap, self._settings, self._agent = member.bootstrap, member.settings, member.agent
        self._retries = retries
        self.plan = Attempts(self._settings.batch_max_records)
        self._alone = False
        self.session = f"{self._settings.instance}/{uuid.uuid4().hex}/"
        """Begin of the names of its transactions."""
        self._numbers = count()

    def new_name(self) -> str:
        """Return a name for a transaction that no other has, of this session or of another."""
        return f"{self.session}{next(self._numbers)}"

    def assigned(self, committed: Mapping[Partition, Committed]) -> None:
        """Take partitions in, with the offsets that they go on from; what this session did itself is no death."""
        others = {
            partition: at
            for partition, at in committed.items()
            if not (at.known and at.mark is not None and at.mark.commit.startswith(self.session))
        }
        asked = {
            partition: at
            for partition, at in others.items()
            if not at.known or (at.mark is not None and not at.mark.released)
        }
        for partition in sorted(others.keys() - asked.keys()):
            self.plan.assigned(partition, others[partition], 0)
        if not asked:
            return
        client = admin_client(self._bootstrap, settings=self._settings)
        # A client whose first request is for offsets may wait for seconds.
        partition_numbers(client, min(asked)[0], self._retries.wait)
        ends = last_offsets(client, sorted(asked), IsolationLevel.READ_COMMITTED, self._retries.wait)
        for partition, at in asked.items():
            attempt = self.plan.assigned(partition, at, ends[partition])
            if attempt is not None and at.known:
                log.warning(
                    "%s: %s partition %d: the last holder died behind offset %d; up to %d records are worked on at a "
                    "time up to offset %d%s",
                    self._agent, *partition, at.offset, attempt.size or self._settings.batch_max_records, attempt.end,
                    f", where {attempt.deaths} died of one alone" if attempt.deaths else "",
                )  # fmt: skip

    def poll(
        self,
        positions: dict[Partition, int],
        group_metadata: Any,
        write: WriteMarks,
        timeout_s: float,
    ) -> Batch | None:
        """Name the next step by a mark, and read it.

        Args:
            positions: Next offset of each partition that is held; moved on behind the step.
            group_metadata: The consumer's, as librdkafka has it; handed on with the batch.
            write: Commits marks. What it raises leaves the step for the next call.
            timeout_s: Longest wait in seconds for another agent's step to end.

        Returns:
            None where nothing is to be worked on now; `Attempts.active` then says whether anything is left.
        """
        self.end_step()
        if self.plan.unmarked:
            self._name(self.plan.unmarked, write)
            self.plan.begin_usual()
        step = self.plan.next_step(positions)
        if step is None or not _ALONE.acquire(timeout=timeout_s):
            return None
        self._alone = True
        partition, start, attempt = step
        self._name({partition: (start, attempt)}, write)
        self.plan.begin(step)
        if attempt.size == 1:
            log.log(
                logging.WARNING if attempt.deaths else logging.DEBUG,
                "%s: %s partition %d offset %d is worked on alone; %d processes died of it before",
                self._agent, *partition, start, attempt.deaths,
            )  # fmt: skip
        records = self._read(step)
        if records is None:
            self.end_step()
            return None
        # Without records there are marks of transactions alone. They are committed too, or a later death would count
        # for their step.
        ends = {partition: records[-1].offset + 1 if records else attempt.end}
        positions.update(ends)
        return Batch(records, group_metadata, {partition: start}, ends, deaths=attempt.deaths if records else 0)

    def _name(self, attempts: Mapping[Partition, tuple[int, Attempt | None]], write: WriteMarks) -> None:
        name = self.new_name()
        write({partition: (offset, Mark(name, attempt=attempt)) for partition, (offset, attempt) in attempts.items()})

    def end_step(self) -> None:
        """End the last step, whether or not it was completed."""
        if self._alone:
            self._alone = False
            _ALONE.release()

    def _read(self, step: CarefulStep) -> list[Record] | None:
        at = (*step.partition, step.start)
        wait = self._retries.wait
        # Usual reading quarantines what this one refuses.
        reader = RangeReader(self._bootstrap, self._settings, *at, wait, ONE_RECORD_BATCH, skip_refused=False)
        try:
            # Closed before the records are worked on: it would fetch further meanwhile.
            with closing(reader):
                return reader.read_to(step.attempt.end)
        except (TopicError, KafkaException) as error:
            log.warning("%s: %s partition %d offset %d: %s; reading on as usual", self._agent, *at, error)
            self.plan.give_up(step.partition)
            return None
