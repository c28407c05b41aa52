"""Committed offsets of a group, believed only as far as the group's results bear them out."""

import logging
import math
import time
from collections.abc import Collection, Mapping
from contextlib import closing
from functools import partial
from typing import Final

from confluent_kafka import OFFSET_INVALID, Consumer, IsolationLevel

from pipeline.kafka.checks.evidence import Claim, borne_out
from pipeline.kafka.checks.offset_checks import ResultBatch, newest_batches, result_offsets
from pipeline.kafka.cluster.admin import group_consumer
from pipeline.kafka.cluster.clients import admin_client
from pipeline.kafka.cluster.errors import SessionError
from pipeline.kafka.cluster.log_offsets import committed_partitions, last_offsets, partition_numbers
from pipeline.kafka.cluster.retries import Retries
from pipeline.kafka.records.batch import Partition
from pipeline.kafka.records.member import Member
from pipeline.kafka.session.attempts import Committed, holder, read_mark

log = logging.getLogger(__name__)

FORGETFUL_S: Final = 30.0
"""Longest wait for a group coordinator that does not know what results show."""


class CommittedOffsets:
    """The committed offsets of one agent's group."""

    def __init__(self, member: Member, retries: Retries) -> None:
        self._member, self._retries = member, retries
        self._agent, self._settings = member.agent, member.settings
        # Under at_least_once results may be ahead of the offsets, and two settings accept that they are.
        self._checked = self._settings.delivery == "exactly_once" and not (
            self._settings.restart_from_beginning or self._settings.accept_lost_records
        )

    def read(self, consumer: Consumer, partitions: Collection[Partition]) -> dict[Partition, Committed]:
        """Committed offsets, 0 where there is none, but none from before the newest batch that results show.

        Going on from there would do records again. A coordinator may know a part of its log only, and so older offsets
        or none: Kafka 4.4.0 takes the end of a load that leadership had ended for the end of the next one
        (``docs/decisions/0004-exactly-once.md``). Raises ``SessionError`` where that stays so.
        """
        if not self._checked:
            return self.from_coordinator(consumer, partitions)
        deadline_s = math.inf
        proven: dict[Partition, int] = {}
        while True:
            # First: what is committed meanwhile lies before what is asked for next.
            shown = self._shown(self.from_coordinator(consumer, partitions))
            committed = self.from_coordinator(consumer, partitions)
            behind = self._within(
                {
                    partition: shown[partition].start
                    for partition in sorted(committed)
                    if partition in shown and committed[partition].offset < shown[partition].start
                }
            )
            if behind != proven:
                proven = behind = self._proven(behind, shown, committed)
            if not behind:
                return committed
            known = ", ".join(
                f"{topic} partition {number}: {committed[topic, number].offset} of {start}"
                for (topic, number), start in behind.items()
            )
            deadline_s = min(deadline_s, time.monotonic() + FORGETFUL_S)
            if time.monotonic() > deadline_s:
                raise SessionError(
                    f"agent {self._agent}: the brokers know older offsets, or none, than results tell were read "
                    f"({known}): look at the group coordinator's log; docs/operating.md (lost offsets) says what to do"
                )
            log.warning("%s: the group's offsets lie before what was read (%s); asking again", self._agent, known)
            self._retries.pause()

    def dead_holders(self, partitions: Collection[Partition]) -> set[str]:
        """Return the other instances that held partitions last and have not released them."""
        return {holder(at.mark) for at in self._committed(partitions).values()} - {"", self._settings.instance}

    def commits_of_others(self, session: str) -> dict[Partition, str]:
        """Return the transactions beside offsets that another ``session`` of this instance has committed."""
        client = admin_client(self._member.bootstrap, settings=self._settings)
        topics = self._member.topics
        partitions = [(name, n) for name in topics for n in partition_numbers(client, name, self._retries.wait)]
        marks = {at: found.mark for at, found in self._committed(partitions).items()}
        return {
            at: mark.commit
            for at, mark in marks.items()
            if holder(mark) == self._settings.instance and mark is not None and not mark.commit.startswith(session)
        }

    def _committed(self, partitions: Collection[Partition]) -> dict[Partition, Committed]:
        """Committed offsets, asked for without waiting for what open transactions would commit."""
        group = self._settings.topic(self._agent)
        with closing(group_consumer(self._member.bootstrap, group, settings=self._settings)) as consumer:
            return self.from_coordinator(consumer, partitions)

    def from_coordinator(self, consumer: Consumer, partitions: Collection[Partition]) -> dict[Partition, Committed]:
        """Committed offsets as the coordinator knows them, 0 where there is none."""

        def ask() -> dict[Partition, Committed]:
            # One error that passes: the last holder's transaction has not ended yet. It will, by its time limit.
            return {
                (partition.topic, partition.partition): Committed(0, None, known=False)
                if partition.offset == OFFSET_INVALID
                else Committed(partition.offset, read_mark(partition.metadata))
                for partition in committed_partitions(consumer, partitions)
            }

        advice = "if brokers are well, a transaction may hang: docs/operating.md (hanging transactions)"
        return self._retries.call("committed offsets", ask, advice)

    def _within(self, starts: dict[Partition, int]) -> dict[Partition, int]:
        """Return the ``starts`` that lie within their logs: no agent has read beyond the end of one."""
        if not starts:
            return starts
        client = admin_client(self._member.bootstrap, settings=self._settings)
        ends = last_offsets(client, sorted(starts), IsolationLevel.READ_UNCOMMITTED, self._retries.wait)
        for (topic, number), start in starts.items():
            if start > ends[topic, number]:
                log.error(
                    "%s: a result tells of offset %d of %s partition %d, whose log ends at %d: no agent wrote that",
                    self._agent, start, topic, number, ends[topic, number],
                )  # fmt: skip
        return {partition: start for partition, start in starts.items() if start <= ends[partition]}

    def _proven(
        self,
        behind: Mapping[Partition, int],
        shown: Mapping[Partition, ResultBatch],
        committed: Mapping[Partition, Committed],
    ) -> dict[Partition, int]:
        """Return those of ``behind`` that a second topic bears out: a marker alone is quickly forged."""
        claims = {
            at: Claim(range(committed[at].offset, shown[at].end), shown[at].timestamp_ms, committed[at].known)
            for at in behind
        }
        if not claims:
            return {}
        found = self._retries.call("results", partial(borne_out, self._member, claims))
        for topic, number in claims.keys() - found:
            log.error(
                "%s: a result says that %s partition %d was read up to offset %d, and no other topic bears it out: "
                "the group's offset counts",
                self._agent, topic, number, behind[topic, number],
            )  # fmt: skip
        return {at: start for at, start in behind.items() if at in found}

    def _shown(self, committed: Mapping[Partition, Committed]) -> dict[Partition, ResultBatch]:
        """Return the newest batch of each partition that results show: reading had got to its start at least."""
        client = admin_client(self._member.bootstrap, settings=self._settings)
        numbers = {number for _, number in committed}
        shown = self._retries.call("results", partial(newest_batches, self._member, numbers))
        missing = [partition for partition, at in committed.items() if at.offset == 0]
        if missing:
            # Without an offset, anything that was ever read counts, where there is anything to read again.
            ends = last_offsets(client, missing, IsolationLevel.READ_UNCOMMITTED, self._retries.wait)
            if any(ends[partition] for partition in missing):
                furthest = self._retries.call("results", partial(result_offsets, self._member, numbers)).furthest
                shown |= {at: furthest[at]._replace(start=furthest[at].end) for at in missing if at in furthest}
        return shown
