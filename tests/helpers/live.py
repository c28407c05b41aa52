"""The live kernels of a pipeline in memory: each record is carried through all of them before the next is read."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from pipeline.engine.cards.card_options import CardOptions
from pipeline.engine.cards.card_partition import CardPartition
from pipeline.engine.feedback.feedback import FeedbackPartition
from pipeline.engine.feedback.learn import LearnPartition
from pipeline.engine.partition_state.state import MemoryStore
from pipeline.engine.records.accepted_labels import LabelOptions, accept
from pipeline.engine.records.partitioner import partition_of
from pipeline.engine.records.results import Result
from pipeline.engine.scores.active_models import ActiveModels
from pipeline.engine.scores.decider import Decider
from pipeline.engine.scores.score import ScorePartition
from pipeline.scoring.river_factory import new_learner
from schemas.codec import decode_transaction
from schemas.errors import InvalidMessage
from schemas.messages import Alert, Decision, Example, FeedbackConfig
from schemas.records import Output, Record
from schemas.times import EPOCH
from schemas.topics import (
    ACCEPTED_LABELS,
    ALERTS,
    DEAD_LETTERS,
    DECISION_FEATURES,
    DECISIONS,
    EXAMPLES,
    LABELS,
    PROFILED,
    TRANSACTIONS,
)
from tests.helpers.logs import decode_alert, decode_decision, decode_example, reason

NOW = datetime(2030, 1, 1, tzinfo=UTC)


class Live:
    """What came of the records so far."""

    def __init__(self, models: ActiveModels, card: CardOptions, feedback: FeedbackConfig | None = None) -> None:
        numbers = range(card.partitions)
        card = card._replace(merchant_partitions=card.partitions)
        self._options = card
        self.models = models
        self._cards = [CardPartition(card, None, MemoryStore()) for _ in numbers]
        self._scores = [ScorePartition() for _ in numbers]
        self._decider = Decider(card.rates.base, card.partitions, all_features=True)
        self._feedbacks = [FeedbackPartition(feedback, MemoryStore()) for _ in numbers] if feedback else []
        self.learn = LearnPartition(new_learner())
        self._offsets: Counter[tuple[str, int]] = Counter()
        self.decisions: list[Decision] = []
        self.alerts: list[Alert] = []
        self.examples: list[Example] = []
        self.dead_letters: list[tuple[str, int, str, str]] = []
        """(topic, which of its records, code, text)."""
        self.counts: Counter[tuple[str, str]] = Counter()
        self.feedback_counts: Counter[tuple[str, str]] = Counter()
        self._records: Counter[str] = Counter()
        self._numbers: dict[tuple[str, int, int], int] = {}

    def transaction(self, fields: dict[str, Any], at_us: int) -> None:
        """A transaction arrives; a field that is None is absent."""
        record = self._record(TRANSACTIONS.name, fields, at_us)
        decided = self._hop(self._cards[record.partition].process([record], NOW), record.partition)
        if self._feedbacks:
            for decision in decided:
                self._teach(decision)

    def label(self, fields: dict[str, Any], at_us: int) -> None:
        """A label arrives."""
        for record in self._accepted(self._record(LABELS.name, fields, at_us)):
            self._hop(self._cards[record.partition].process([record], NOW), record.partition)
            if self._feedbacks:
                self._teach(record)

    def batch(self, happened: Iterable[tuple[str, dict[str, Any], int]]) -> None:
        """A batch of the only partition, as the card agent reads one; (topic, fields, arrival) each."""
        records: list[Record] = []
        for topic, fields, at_us in happened:
            record = self._record(topic, fields, at_us)
            records += self._accepted(record) if topic == LABELS.name else [record]
        self._hop(self._cards[0].process(records, NOW), 0)

    def event_time_us(self, fields: dict[str, Any], at_us: int) -> int | None:
        """The event time of a transaction that would be accepted, or be a repeat; None where it is refused."""
        try:
            item = decode_transaction(
                _value(fields),
                record_timestamp_us=at_us // 1_000 * 1_000,
                future_tolerance_us=self._options.future_tolerance_us,
                rates=self._options.rates,
            )
        except InvalidMessage:
            return None
        return item.event_time_us

    def publish(self) -> None:
        """What has been learned scores from now on."""
        if self.learn.unpublished:
            self.models = replace(self.models, river=self.learn.publish())

    def _accepted(self, record: Record) -> list[Record]:
        """What the label agent makes of a label."""
        options = LabelOptions(self._options.future_tolerance_us, self._options.partitions)
        result = accept([record], options)
        self._refused(result)
        return [self._append(output) for output in result.outputs if output.topic is ACCEPTED_LABELS]

    def _refused(self, result: Result) -> None:
        for output in result.outputs:
            if output.topic is DEAD_LETTERS:
                topic, number = reason(output, "topic"), int(reason(output, "offset"))
                row = self._numbers[topic, int(reason(output, "partition")), number]
                self.dead_letters.append((topic, row, reason(output, "error"), reason(output, "message")))
                self.counts["dead_letter", reason(output, "error")] += 1

    def _hop(self, result: Result, partition: int) -> list[Record]:
        self._cards[partition].commit()
        self.counts += Counter({row: count for row, count in result.counts.items() if row[0] != "dead_letter"})
        self._refused(result)
        decided = []
        for output in result.outputs:
            if output.topic is not PROFILED:
                continue
            read = self._append(output)
            scored = self._decider.process([(self._scores[read.partition], [read])], self.models, NOW)
            self._scores[read.partition].commit()
            for record in scored.outputs:
                if record.topic is ALERTS:
                    self.alerts.append(decode_alert(record.value or b""))
                if record.topic is DECISIONS:
                    self.decisions.append(decode_decision(record.value or b""))
                if record.topic is DECISION_FEATURES:
                    decided.append(self._append(record))
        return decided

    def _teach(self, record: Record) -> None:
        feedback = self._feedbacks[record.partition]
        result = feedback.process([record], NOW)
        feedback.commit()
        self.feedback_counts += result.counts
        for output in result.outputs:
            assert output.topic is EXAMPLES
            self.examples.append(decode_example(output.value or b""))
            self.learn.learn([Record(EXAMPLES.name, 0, len(self.examples) - 1, 0, output.key, output.value)])
            self.learn.commit()

    def _record(self, topic: str, fields: dict[str, Any], at_us: int) -> Record:
        value = _value(fields)
        card = fields.get("card_id")
        partition = partition_of(card, self._options.partitions) if isinstance(card, str) else 0
        offset = self._next(topic, partition)
        self._numbers[topic, partition, offset] = self._records[topic]
        self._records[topic] += 1
        return Record(topic, partition, offset, at_us // 1_000, b"key", value)

    def _append(self, output: Output) -> Record:
        partition = output.partition
        if partition is None:
            partition = partition_of((output.key or b"").decode(), self._options.partitions)
        offset = self._next(output.topic.name, partition)
        return Record(output.topic.name, partition, offset, 0, output.key, output.value, output.headers)

    def _next(self, topic: str, partition: int) -> int:
        self._offsets[topic, partition] += 1
        return self._offsets[topic, partition] - 1


def _value(fields: dict[str, Any]) -> bytes:
    return msgspec.json.encode({name: value for name, value in fields.items() if value is not None})


def moment(time_us: int) -> datetime:
    """A time in UTC."""
    return EPOCH + timedelta(microseconds=time_us)
