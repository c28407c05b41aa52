"""State handler of the feedback agent: features of decisions and labels in, training examples out."""

from collections.abc import Sequence
from datetime import datetime
from typing import Final

import msgspec
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.engine.encoding.blocks import BlockError, row_count
from pipeline.engine.encoding.row_columns import EVENT_US
from pipeline.engine.feedback.decision_store import DecisionState, DecisionStore
from pipeline.engine.feedback.feedback_kernel import (
    NO_LABELS,
    DecidedBatch,
    Emitted,
    FeedbackKernel,
    JoinedRows,
    TransactionIdentities,
)
from pipeline.engine.partition_state.decision_segments import DecisionSegments, MemorySegments, SegmentsState
from pipeline.engine.partition_state.layout import LAYOUT, decode_values
from pipeline.engine.partition_state.pending_items import PendingItems, PendingItemsState
from pipeline.engine.partition_state.state import LoadedState, StateDump, Store, state_digest
from pipeline.engine.partition_state.wait_clock import WaitClock, WaitState
from pipeline.engine.records.accepted_labels import read_accepted
from pipeline.engine.records.results import Result
from pipeline.engine.scores.decision_records import DecisionRecord, pack_records, unpack_record
from pipeline.engine.scores.feature_blocks import read_features
from pipeline.learning.event_clock import ClockState
from pipeline.learning.online_updates import PRESUMED
from pipeline.learning.report_delays import unreported_weight
from pipeline.learning.surges import SourceHours, Surges
from schemas.messages import Example, FeedbackConfig
from schemas.records import Output, Record
from schemas.times import time_of
from schemas.topics import DECISION_FEATURES, EXAMPLES

_encode = msgspec.json.Encoder().encode


class _FeedbackValues(msgspec.Struct):
    layout: int
    stream_time_us: int
    first_day: int
    decisions: DecisionState
    segments: SegmentsState
    pending: PendingItemsState
    label_hours: dict[str, SourceHours]
    label_clock: ClockState | None
    wait: WaitState


_DECODER: Final = msgspec.msgpack.Decoder(_FeedbackValues)


class FeedbackPartition:
    """State of one partition of ``features`` and of the same partition of ``accepted-labels``."""

    def __init__(
        self,
        config: FeedbackConfig,
        store: Store,
        loaded: LoadedState | None = None,
        segments: DecisionSegments | None = None,
        topic_prefix: str = "",
    ) -> None:
        """Start empty, or from a dump.

        Args:
            config: That of every batch that brings none of its own; a restore must use the same.
            store: Holds what the dumped partition's store held; empty without a dump.
            loaded: The dump; None: start empty.
            segments: Empty; the dump is loaded into them, which must find the files that it names. None: memory.
            topic_prefix: Prefix of the names of the topics that are read.

        Raises:
            OtherLayout: The dump is of another release.
        """
        self._config, self._topic_prefix = config, topic_prefix
        self._store = store
        self._features = topic_prefix + DECISION_FEATURES.name
        values = None if loaded is None else decode_values(loaded.values, _DECODER)
        self._segments = MemorySegments() if segments is None else segments
        if loaded is not None and values is not None:
            self._segments.load(values.segments, loaded.columns)
        self._served = DecisionStore(store, self._segments, values.decisions if values else None)
        self._pending = PendingItems(store, values.pending if values else None)
        progress = (values.stream_time_us, values.first_day) if values else (0, 0)
        surges = Surges(values.label_hours, values.label_clock) if values else Surges()
        wait = WaitClock(values.wait if values else None)
        self._kernel = FeedbackKernel(self._served, self._pending, *progress, surges, wait)

    def process(self, records: Sequence[Record], now: datetime | None, config: FeedbackConfig | None = None) -> Result:
        """File decisions, join labels, and presume what has matured; examples are the outputs.

        Decisions come before labels, whatever the order of the records.

        Args:
            records: One partition's, of ``accepted-labels`` and ``features``, each in offset order.
            now: None only updates the state (a restore) and emits nothing.
            config: Takes the place of the kernel's own for this batch: a restore hands over that of the live batch.

        Returns:
            Examples, and counts.
        """
        result = Result()
        decided = self._read_decisions([record for record in records if record.topic == self._features], result)
        joined = self._read_labels([record for record in records if record.topic != self._features], result)
        rows = sum(row_count(record.value) for record in records)
        emitted = self._kernel.process(config or self._config, decided, joined, rows, result)
        if now is not None and emitted:
            self._write(emitted, result)
        return result

    def commit(self) -> None:
        """The batch is committed."""
        self._store.commit()
        self._kernel.commit()

    def rollback(self) -> None:
        """The batch is not committed: take it back."""
        self._store.rollback()
        self._kernel.rollback()

    def dump(self, *, full: bool = False) -> StateDump:
        """Copy the committed state; what is large is in files, which are linked."""
        segments = self._segments.dump(full=full)
        values = _FeedbackValues(
            LAYOUT,
            *self._kernel.progress,
            self._served.state,
            segments.state,
            self._pending.state,
            self._kernel.surges.hours,
            self._kernel.surges.clock,
            self._kernel.wait.state,
        )
        frozen = self._store.freeze()
        if frozen is not None:
            self._segments.link(frozen)
        return StateDump(msgspec.msgpack.encode(values), segments.columns, frozen)

    def digest(self) -> str:
        """Return the digest of the committed state."""
        stream_time_us, first_day = self._kernel.progress
        wait = self._kernel.wait.state
        decisions, hours = list(self._served.contents(first_day)), self._kernel.surges.hours
        surges = [
            *((name, counted.first_hour, sorted(counted.admitted.items())) for name, counted in sorted(hours.items())),
            self._kernel.surges.clock,
        ]
        return state_digest(
            stream_time_us, first_day, wait, decisions, self._pending.state, list(self._pending.contents()), surges
        )

    def close(self) -> None:
        """Let go of the state."""
        self._segments.close()
        self._store.close()

    def _read_decisions(self, records: Sequence[Record], result: Result) -> DecidedBatch:
        transactions: list[bytes] = []
        cards: list[bytes] = []
        event_time_us: list[int] = []
        clocks: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = [(np.empty(0, np.int64), np.empty(0, np.int64))]
        packed: list[bytes] = []
        for record in records:
            try:
                rows = read_features(record)
            except BlockError as error:
                result.unreadable(record, "feedback", error)
                continue
            texts = rows.texts()
            transactions += texts[0]
            cards += texts[1]
            event_time_us += rows.block.whole(EVENT_US)[rows.rows].tolist()
            clocks.append((rows.block.sources.partition[rows.rows].astype(np.int64), rows.wait_us()))
            packed += pack_records(rows, texts)
        names = TransactionIdentities.from_ids(pa.array(cards, pa.binary()), pa.array(transactions, pa.binary()))
        partition, wait_us = (np.concatenate(column) for column in zip(*clocks, strict=True))
        return DecidedBatch(names, event_time_us, [0] * len(packed), packed, partition, wait_us)

    def _read_labels(self, records: Sequence[Record], result: Result) -> JoinedRows:
        """Read accepted labels; the card agent reads the same topic and refuses what is left out here."""
        labels, origins, refused = read_accepted(records, self._topic_prefix)
        if refused:
            result.counts["label", "invalid"] += len(refused)
        if not len(labels):
            return NO_LABELS
        positions = [f"{origin.topic} {origin.partition} {origin.offset}" for origin in origins]
        return JoinedRows.from_labels(labels, [0] * len(labels), positions)

    def _write(self, emitted: Sequence[Emitted], result: Result) -> None:
        packed = self._segments.read([emission.entry for emission in emitted])
        for joined, decision in zip(emitted, packed, strict=True):
            found = example(joined, unpack_record(decision))
            result.outputs.append(Output(EXAMPLES, found.card_id.encode(), _encode(found)))


def example(joined: Emitted, decision: DecisionRecord) -> Example:
    """Return the training example that follows, of its decision as served."""
    return Example(
        **decision._asdict(),
        label=joined.label,
        label_source=joined.source,
        known_at=time_of(joined.known_at_us),
        weight=joined.weight,
        revision=joined.revision,
        online_weight=_online_weight(joined, decision),
        former=joined.online.former.label,
        former_weight=joined.online.former.weight,
        held=joined.online.held,
    )


def _online_weight(joined: Emitted, decision: DecisionRecord) -> float:
    """Return the weight for the online model; what is presumed legitimate may be a fraud that nobody has reported."""
    if joined.label != PRESUMED or joined.reported_share == 1.0:
        return joined.online.weight
    weight = unreported_weight(np.array([decision.score]), np.array([joined.reported_share]))
    return joined.online.weight * float(weight[0])
