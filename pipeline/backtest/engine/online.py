"""The online model behind the kernels: trained on labels as they come, published by event time."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from pipeline.backtest.input.order import Chunk
from pipeline.decision.online_gate import BothScores, Gate, Identity
from pipeline.engine.feedback.decision_store import DecisionStore
from pipeline.engine.feedback.feedback import example
from pipeline.engine.feedback.feedback_kernel import (
    DecidedBatch,
    Emitted,
    FeedbackKernel,
    JoinedRows,
    TransactionIdentities,
)
from pipeline.engine.partition_state.decision_segments import MemorySegments
from pipeline.engine.partition_state.pending_items import PendingItems
from pipeline.engine.partition_state.state import MemoryStore
from pipeline.engine.records.accepted_labels import reports_of
from pipeline.engine.records.columns import Labels, Transactions
from pipeline.engine.records.partitioner import partitions_of
from pipeline.engine.records.results import Result
from pipeline.engine.scores.active_models import ActiveModels
from pipeline.engine.scores.decision_records import DecisionRecord, named_features
from pipeline.engine.scores.decisions import Decisions
from pipeline.features.catalogue import FEATURES
from pipeline.scoring.blend import sigmoid
from pipeline.scoring.prequential import Prequential
from pipeline.scoring.river_factory import new_learner
from pipeline.scoring.training_updates import RiverLearner
from schemas.messages import FeedbackConfig, LogPosition, Versions
from schemas.times import time_of


class DecisionColumns(NamedTuple):
    """Columns of a chunk's decisions that examples are made of; arrays have shape (n,)."""

    transactions: Transactions
    features: NDArray[np.float64]
    """Shape (n, features kept)."""
    logit: NDArray[np.float64]
    river_logit: NDArray[np.float64]
    score: NDArray[np.float64]
    versions: Versions


class _FeatureRows(Sequence[Any]):
    """Some rows of columns, each read as (columns, row)."""

    def __init__(self, columns: DecisionColumns, rows: Sequence[int]) -> None:
        self._columns, self._rows = columns, rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, number: Any) -> tuple[DecisionColumns, int]:
        return self._columns, self._rows[number]


class ColumnSegments(MemorySegments):
    """Segments of one partition; the columns of a chunk are in memory until all of its decisions are forgotten."""

    def begin(self, columns: DecisionColumns) -> None:
        """Let rows that are added be those of ``columns``."""
        self._columns = columns

    def add(self, digests: Sequence[bytes], event_time_us: Sequence[int], decisions: Sequence[int]) -> int:
        """Append rows of the columns that came last.

        Args:
            digests: Digests of card and transaction, 16 bytes each.
            event_time_us: Microseconds since 1970, one for each digest.
            decisions: Row of each in the columns that `begin` was given.

        Returns:
            The row of the first decision among all; the others follow it.
        """
        return super().add(digests, event_time_us, _FeatureRows(self._columns, decisions))


class Learning(NamedTuple):
    """The options of the online model's training in a backtest."""

    config: FeedbackConfig
    publish_every_us: int
    """A version is published, and scores from then on, whenever event time passes a multiple of this since 1970."""
    learner: RiverLearner | None = None
    """Goes on with this one, which belongs to the models that score; a new one where there is none."""
    next_offset: int = 0
    """Number of examples it has been given."""
    prequential: Prequential | None = None
    """Takes in the examples, with the scores from before they were learned."""
    gate: bool = False
    """True if reported frauds set the policy's blend with each version, as ``fraud-pipeline pace`` does; else it
    stays."""


class Periods:
    """The clock of events by which versions come."""

    def __init__(self, every_us: int, from_us: int | None = None) -> None:
        """Set the clock.

        Args:
            every_us: Length of a period in microseconds.
            from_us: End of the time that belongs to the first period too; by default periods are counted from 1970 on,
                and none begins with the first transaction.
        """
        self.every_us, self._from_us = every_us, from_us
        self._stream_time_us = 0
        self._period = None if from_us is None else 0

    def parts(self, chunk: Chunk) -> Iterator[tuple[Chunk, bool]]:
        """The chunk in parts, and whether a period begins with the part's first transaction."""
        stream_time_us = np.maximum.accumulate(np.append(self._stream_time_us, chunk.transactions.event_time_us))[1:]
        periods = self._numbers(stream_time_us)
        if self._period is None:
            self._period = int(periods[0]) if len(periods) else None
        starts = chunk.position[np.flatnonzero(np.diff(periods, prepend=self._period or 0))].tolist()
        # Whatever labels stand before the first transaction, chunks of the same transactions have as many parts.
        for number, (first, end) in enumerate(pairwise([chunk.first, *starts, chunk.end])):
            if first < end or starts:
                yield chunk.between(first, end), number > 0
        if len(periods):
            self._stream_time_us, self._period = int(stream_time_us[-1]), int(periods[-1])

    def begin_us(self, event_time_us: int) -> int:
        """Return when the period of a time began, in microseconds since 1970."""
        return (self._from_us or 0) + int(self._numbers(np.array([event_time_us]))[0]) * self.every_us

    def _numbers(self, event_time_us: NDArray[np.int64]) -> NDArray[np.int64]:
        if self._from_us is None:
            return event_time_us // self.every_us
        return np.maximum(event_time_us - self._from_us, 0) // self.every_us


class OnlineTrainer:
    """The feedback and the learn agent behind an engine.

    Args:
        models: Give the online model that scores first, and the blend that the gate begins with.
        learning: Options; without ``learner`` a new online model is trained.
        partitions: Partitions of the topics that are simulated; each joins its own cards' labels.
    """

    def __init__(self, models: ActiveModels, learning: Learning, partitions: int) -> None:
        self.river = models.river
        """The scorer: the version that was published last."""
        self._config = learning.config
        self._learner, self._prequential = learning.learner or new_learner(), learning.prequential
        self._columns = [FEATURES.index(name) for name in self._learner.sources]
        self._feedback = [_Partition.empty() for _ in range(partitions)]
        self._next_offset = self._published_offset = learning.next_offset
        self._gate = Gate() if learning.gate else None
        self._blend = models.policy.blend

    def active(self, models: ActiveModels) -> ActiveModels:
        """Return ``models`` with the online model as published last, in the score or out of it as the gate says."""
        policy = models.policy
        if self._gate is not None and policy.blend != self._blend:
            policy = policy.replace(blend=self._blend)
        return replace(models, river=self.river, policy=policy)

    def learn(self, chunk: Chunk, decisions: Decisions) -> None:
        """Learn from the examples that the decisions and labels of a part of a chunk give."""
        taken = decisions.transactions
        if self._gate is not None:
            names = zip(taken.card_id.to_pylist(), taken.transaction_id.to_pylist(), strict=True)
            _show_gate(self._gate, chunk.labels, decisions, list(names))
        identities = TransactionIdentities.from_ids(taken.card_id, taken.transaction_id)
        columns = DecisionColumns(
            taken,
            np.ascontiguousarray(decisions.features[:, self._columns]),
            decisions.logit,
            decisions.river_logit,
            decisions.score,
            # Blocks of `features`, of which live examples are made, do not name the rules.
            msgspec.structs.replace(decisions.models.versions(decisions.rates_version), rules=""),
        )
        label_partition = partitions_of(chunk.labels.card_id, len(self._feedback))
        found: list[tuple[Emitted, DecisionColumns, int]] = []
        for number, partition in enumerate(self._feedback):
            rows = np.flatnonzero(decisions.partition == number)
            decided = DecidedBatch(
                TransactionIdentities([identities.digest[row] for row in rows.tolist()], identities.hash[rows]),
                taken.event_time_us[rows].tolist(),
                decisions.position[rows].tolist(),
                rows.tolist(),
                decisions.merchant_partition[rows],
                decisions.wait_us[rows],
            )
            chosen = np.flatnonzero(label_partition == number)
            joined = JoinedRows.from_labels(chunk.labels.take(chosen), chunk.label_position[chosen].tolist())
            found += partition.process(self._config, columns, decided, joined, decisions.feedback)
        if found:
            # Of several partitions; what one record gives stays in its order.
            found.sort(key=lambda row: row[0].position)
            examples = [example(label, self._record(columns, row)) for label, columns, row in found]
            self._learner.learn_examples(examples)
            if self._prequential is not None:
                self._prequential.add(examples)
            self._next_offset += len(found)

    def publish(self) -> None:
        """Score by all that was learned so far, and let the gate decide."""
        if self._gate is not None:
            self._blend = self._gate.decide(self._blend).blend
        if self._published_offset != self._next_offset:
            self._published_offset = self._next_offset
            self.river = self._learner.snapshot(self._next_offset)

    def _record(self, columns: DecisionColumns, row: int) -> DecisionRecord:
        taken, values = columns.transactions, columns.features[row].tolist()
        return DecisionRecord(
            transaction_id=taken.transaction_id[row].as_py(),
            card_id=taken.card_id[row].as_py(),
            merchant_id=taken.merchant_id[row].as_py(),
            event_time=time_of(int(taken.event_time_us[row])),
            amount_base=int(taken.amount_base_minor[row]) / 100,
            score=float(columns.score[row]),
            logit=float(columns.logit[row]),
            river_logit=float(columns.river_logit[row]),
            features=named_features(self._learner.sources, values),
            versions=columns.versions,
            log=LogPosition(partition=0, offset=int(taken.row[row])),
        )


def _show_gate(gate: Gate, labels: Labels, decisions: Decisions, identity: Sequence[Identity]) -> None:
    for report in reports_of(labels):
        gate.report(report)
    scores = sigmoid(decisions.river_logit), sigmoid(decisions.logit)
    gate.add(BothScores(decisions.transactions.event_time_us, *scores, identity))


class _Partition(NamedTuple):
    """The feedback kernel of one partition with what it keeps, in memory."""

    kernel: FeedbackKernel
    store: MemoryStore
    segments: ColumnSegments

    @classmethod
    def empty(cls) -> "_Partition":
        store, segments = MemoryStore(), ColumnSegments()
        return cls(FeedbackKernel(DecisionStore(store, segments), PendingItems(store)), store, segments)

    def process(
        self,
        config: FeedbackConfig,
        columns: DecisionColumns,
        decided: DecidedBatch,
        joined: JoinedRows,
        counts: Counter[tuple[str, str]],
    ) -> list[tuple[Emitted, DecisionColumns, int]]:
        """Return the examples that follow, each with its decision; ``counts`` grows by what happened."""
        records = len(decided.position) + len(joined.position)
        if not records:
            return []
        self.segments.begin(columns)
        result = Result()
        emitted = self.kernel.process(config, decided, joined, records, result)
        counts.update(result.counts)
        served = self.segments.read([joined.entry for joined in emitted])
        self.store.commit()
        self.kernel.commit()
        return [(joined, *found) for joined, found in zip(emitted, served, strict=True)]
