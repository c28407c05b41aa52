"""Decisions and labels as the alert budget controller and the gate read them from the topics."""

from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from itertools import groupby
from statistics import median_low
from typing import Final, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from pipeline.decision.online_gate import BothScores, LabelReport
from pipeline.decision.pacing import ScoredRows
from pipeline.engine.records.accepted_labels import read_accepted, reports_of
from pipeline.kafka.cluster.admin import end_offsets
from pipeline.kafka.cluster.log_offsets import starts_at
from pipeline.kafka.readers.follower import TopicFollower
from pipeline.kafka.readers.topic_reader import read_topic
from pipeline.kafka.records.internal import not_counted, readable
from pipeline.scoring.blend import sigmoid
from pipeline.settings import Settings
from schemas.codec import timestamp_us
from schemas.messages import LogPosition, ModelScores, Versions
from schemas.records import Record
from schemas.times import US_PER_DAY, US_PER_HOUR
from schemas.topics import ACCEPTED_LABELS, DECISIONS, Topic

_NEWEST_RECORDS: Final = 20
"""Offsets looked at behind the end of a partition: the last ones may be the markers of Kafka transactions."""
_POLL_S: Final = 0.1


class DecisionFields(msgspec.Struct, frozen=True, gc=False):
    """Fields of a decision that are read."""

    transaction_id: str
    card_id: str
    event_time: datetime
    score: float
    model_scores: ModelScores
    logit: float
    action: str
    versions: Versions
    case_id: str
    decided_at: datetime
    log: LogPosition
    selection: str | None = None
    rule_hits: list[str] = []
    overruled: dict[str, list[str]] = {}


decode_decided: Final = msgspec.json.Decoder(DecisionFields).decode


class PartitionDecisions(NamedTuple):
    """Decisions of one partition, in the order of its log."""

    partition: int
    decided: Sequence[DecisionFields]

    def until(self, hour: int) -> "PartitionDecisions":
        """Return those with an event time up to an hour since 1970."""
        hours = (self.times_us() // US_PER_HOUR).tolist()
        return self._replace(decided=[decision for decision, at in zip(self.decided, hours, strict=True) if at <= hour])

    def by_log(self) -> "dict[int, PartitionDecisions]":
        """Return those of each partition of ``profiled`` by its number, in the order of its log."""
        found: dict[int, list[DecisionFields]] = {}
        for decision in self.decided:
            found.setdefault(decision.log.partition, []).append(decision)
        return {number: self._replace(decided=decided) for number, decided in found.items()}

    def scored(self, lightgbm: str) -> ScoredRows:
        """Return what the controller reads; ``lightgbm`` is the version whose scores count."""
        return ScoredRows(
            self.times_us(),
            np.array([decision.score for decision in self.decided]),
            np.array([decision.action == "alert" for decision in self.decided], np.bool_),
            [decision.case_id for decision in self.decided],
            np.array([decision.versions.lightgbm == lightgbm for decision in self.decided], np.bool_),
        )

    def both_scores(self) -> BothScores:
        """Return what the gate reads: the online model's score is that of blend 1, whatever the policy blends."""
        return BothScores(
            self.times_us(),
            np.array([decision.model_scores.river for decision in self.decided]),
            sigmoid(np.array([decision.logit for decision in self.decided])),
            [(decision.card_id, decision.transaction_id) for decision in self.decided],
        )

    def times_us(self) -> NDArray[np.int64]:
        """Return event times; shape (n,)."""
        return np.array([timestamp_us(decision.event_time) for decision in self.decided], np.int64)


class RecentFeed:
    """Follows ``decisions`` and ``accepted-labels`` from some days before the newest decision on.

    Nothing is kept on disk: the topics are read again at each start.

    Args:
        days: Event time to go back.
        labels: Whether labels are read.
        waiting: Called while no broker answers; may raise.
    """

    def __init__(
        self, bootstrap: str, settings: Settings, days: float, *, labels: bool, waiting: Callable[[], None]
    ) -> None:
        self._bootstrap, self._settings, self._waiting = bootstrap, settings, waiting
        stream_time_us = self._stream_time_us()
        since_ms = 0 if stream_time_us is None else max((stream_time_us - round(days * US_PER_DAY)) // 1_000, 0)
        self._decisions = self._follow(DECISIONS, since_ms)
        self._labels = self._follow(ACCEPTED_LABELS, since_ms) if labels else None

    def past(self) -> Iterator[PartitionDecisions]:
        """Yield the decisions that are there already, batch by batch."""
        while not self._decisions.caught_up:
            self._waiting()
            yield from _by_partition(self._decisions.poll(_POLL_S))

    def new(self, timeout_s: float) -> Iterator[PartitionDecisions]:
        """Yield decisions that came since, after at most ``timeout_s`` seconds."""
        yield from _by_partition(self._decisions.poll(timeout_s))

    def committed(self) -> Iterator[PartitionDecisions]:
        """Yield all decisions that were committed before this call."""
        yield from _by_partition(self._decisions.read_committed(self._waiting))

    def reports(self) -> Iterator[LabelReport]:
        """Yield the labels that were committed before this call."""
        records = [] if self._labels is None else self._labels.read_committed(self._waiting)
        yield from reports_of(read_accepted(records, self._settings.topic_prefix).labels)

    @property
    def offsets(self) -> dict[str, int]:
        """Offsets behind what was read of ``decisions``, by partition."""
        return {str(number): at for number, at in sorted(self._decisions.positions.items())}

    def close(self) -> None:
        """Stop following."""
        self._decisions.close()
        if self._labels is not None:
            self._labels.close()

    def _stream_time_us(self) -> int | None:
        name = self._settings.topic(DECISIONS.name)
        ends = end_offsets(self._bootstrap, [name], settings=self._settings)
        start = {partition: max(0, end - _NEWEST_RECORDS) for (_, partition), end in ends.items()}
        records = read_topic(self._bootstrap, name, settings=self._settings, start=start)
        # One event with a wrong date among them does not say what the newest is.
        usual = [median_low(rows.times_us().tolist()) for rows in _by_partition(list(records))]
        return max(usual, default=None)

    def _follow(self, topic: Topic, since_ms: int) -> TopicFollower:
        """Follow from records of that time on: none that is younger has an event time that is older."""
        name = self._settings.topic(topic.name)
        follower = TopicFollower(self._bootstrap, self._settings, topic)
        return follower.start(starts_at(self._bootstrap, name, since_ms, settings=self._settings))


def _by_partition(records: Sequence[Record]) -> Iterator[PartitionDecisions]:
    decided = readable(records, decode_decided, not_counted)
    in_order = sorted(decided, key=lambda item: item[0].partition)
    for partition, of_partition in groupby(in_order, key=lambda item: item[0].partition):
        yield PartitionDecisions(partition, [decision for _, decision in of_partition])
