"""Committed offsets of a group, believed only as far as the group's results bear them out."""

import logging
import math
import time
from collections.abc import Collection, Mapping
from contextlib import closing
from functools import partial
from typing import Final

from confluent_kafka import OFFSET_INVALID, Consumer, IsolationLevel, KafkaException, TopicPartition

from pipeline.kafka.admin import group_consumer
from pipeline.kafka.batch import Place
from pipeline.kafka.careful import Committed, holder, read_mark
from pipeline.kafka.clients import admin_client, last_offsets
from pipeline.kafka.internal import OnRefused, not_counted
from pipeline.kafka.patience import Patience
from pipeline.kafka.traces import newest_batches, traces_of
from pipeline.kafka.transactions import SessionError
from pipeline.settings import Settings
from schemas.topics import Topic

log = logging.getLogger(__name__)

REQUEST_TIMEOUT_S: Final = 10.0
FORGETFUL_S: Final = 30.0
"""Longest wait for a group coordinator that does not know what results show."""


class CommittedOffsets:
    """The committed offsets of one agent's group."""

    def __init__(
        self,
        bootstrap: str,
        settings: Settings,
        agent: str,
        reads: Collection[Topic],
        patience: Patience,
        on_refused: OnRefused = not_counted,
    ) -> None:
        self._bootstrap, self._settings, self._agent = bootstrap, settings, agent
        self._reads, self._patience, self._on_refused = reads, patience, on_refused
        # Under at_least_once results may be ahead of the offsets, and two settings accept that they are.
        self._checked = settings.delivery == "exactly_once" and not (
            settings.restart_from_beginning or settings.accept_lost_records
        )

    def of(self, consumer: Consumer, places: Collection[Place]) -> dict[Place, Committed]:
        """Committed offsets, 0 where there is none, but none from before the newest batch that results show.

        Going on from there would do records again. A coordinator may know a part of its log only, and so older offsets
        or none: Kafka 4.4.0 takes the end of a load that leadership had ended for the end of the next one
        (``docs/decisions/0004-exactly-once.md``). Raises ``SessionError`` where that stays so.
        """
        if not self._checked:
            return self.told(consumer, places)
        deadline_s = math.inf
        while True:
            # First: what is committed meanwhile lies before what is asked for next.
            starts = self._starts(self.told(consumer, places))
            committed = self.told(consumer, places)
            behind = self._within(
                {place: starts[place] for place in sorted(committed) if committed[place].offset < starts.get(place, 0)}
            )
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
            self._patience.pause()

    def dead_holders(self, places: Collection[Place]) -> set[str]:
        """Return the other instances that held partitions last and have not released them.

        Asked without waiting for what their open transactions would commit.
        """
        group = self._settings.topic(self._agent)
        with closing(group_consumer(self._bootstrap, group, settings=self._settings)) as consumer:
            holders = {holder(at.mark) for at in self.told(consumer, places).values()}
        return holders - {"", self._settings.instance}

    def told(self, consumer: Consumer, places: Collection[Place]) -> dict[Place, Committed]:
        """Committed offsets as the coordinator knows them, 0 where there is none."""

        def ask() -> dict[Place, Committed]:
            found = consumer.committed([TopicPartition(*place) for place in places], REQUEST_TIMEOUT_S)
            for partition in found:
                if partition.error is not None:
                    # For one, that the last holder's transaction has not ended yet: it will, by its time limit.
                    raise KafkaException(partition.error)
            return {
                (partition.topic, partition.partition): Committed(0, None, known=False)
                if partition.offset == OFFSET_INVALID
                else Committed(partition.offset, read_mark(partition.metadata))
                for partition in found
            }

        advice = "if brokers are well, a transaction may hang: docs/operating.md (hanging transactions)"
        return self._patience.repeat("committed offsets", ask, advice)

    def _within(self, starts: dict[Place, int]) -> dict[Place, int]:
        """Return the ``starts`` that lie within their logs: no agent has read beyond the end of one."""
        if not starts:
            return starts
        client = admin_client(self._bootstrap, settings=self._settings)
        look = partial(last_offsets, client, sorted(starts), IsolationLevel.READ_UNCOMMITTED)
        ends = self._patience.repeat("ends", look)
        for (topic, number), start in starts.items():
            if start > ends[topic, number]:
                log.error(
                    "%s: a result tells of offset %d of %s partition %d, whose log ends at %d: no agent wrote that",
                    self._agent, start, topic, number, ends[topic, number],
                )  # fmt: skip
        return {place: start for place, start in starts.items() if start <= ends[place]}

    def _starts(self, committed: Mapping[Place, Committed]) -> dict[Place, int]:
        """Return the offsets that reading had got to at least, by the results."""
        client = admin_client(self._bootstrap, settings=self._settings)
        numbers = {number for _, number in committed}
        asked = (self._bootstrap, self._agent, self._reads, numbers, self._settings, self._on_refused)
        look = partial(newest_batches, *asked)
        starts = self._patience.repeat("results", look)
        missing = [place for place, at in committed.items() if at.offset == 0]
        if missing:
            # Without an offset, anything that was ever read counts, where there is anything to read again.
            ends = self._patience.repeat(
                "ends", partial(last_offsets, client, missing, IsolationLevel.READ_UNCOMMITTED)
            )
            if any(ends[place] for place in missing):
                traces = self._patience.repeat("results", partial(traces_of, *asked))
                starts |= {place: traces.ends[place] for place in missing if place in traces.ends}
        return starts
