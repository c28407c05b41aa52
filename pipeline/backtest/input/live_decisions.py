"""Live decisions as the topics hold them, each joined to the features that the models saw."""

from collections import OrderedDict
from collections.abc import Iterable
from datetime import datetime
from typing import Final, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from pipeline.backtest.input.span import Span
from pipeline.backtest.input.topic_source import TopicSource
from pipeline.engine.encoding.blocks import MOST_ROWS
from pipeline.engine.encoding.row_columns import EVENT_US, SOURCE_OFFSET, SOURCE_PARTITION
from pipeline.engine.scores.feature_blocks import FeatureRows
from pipeline.kafka.records.internal import not_counted, readable, readable_features
from schemas.codec import timestamp_us
from schemas.messages import LogPosition, ModelScores, RecordPosition, Versions
from schemas.records import Record
from schemas.topics import DECISION_FEATURES, DECISIONS

SourcePosition = tuple[int, int]
"""Partition and offset of a transaction's record on ``transactions``."""

_DECISIONS_READ: Final = 1_000
"""Decisions of a partition that are read at a time."""
_BLOCKS_READ: Final = 1
_MOST_UNPAIRED: Final = 20_000
"""Decisions and rows of features that wait for the other side, besides what is read of each partition at a time."""


class RecordedDecision(msgspec.Struct, gc=False):
    """Fields of a decision on ``decisions`` that are compared."""

    transaction_id: str
    card_id: str
    event_time: datetime
    score: float
    model_scores: ModelScores
    logit: float
    action: str
    threshold: float
    versions: Versions
    source: RecordPosition
    log: LogPosition
    case_id: str
    case_sequence: int
    river_logit: float | None = None
    selection: str | None = None
    selection_probability: float = 1.0
    rule_hits: list[str] = []
    list_hits: list[str] = []
    overruled: dict[str, list[str]] = {}
    shadow_hits: list[str] = []


class LiveDecision(NamedTuple):
    """A decision as it was recorded."""

    decision: RecordedDecision
    features: NDArray[np.float64] | None
    """Shape (len(FEATURES),), NaN for no value; None where ``features`` does not hold them, or was not read."""


_decode = msgspec.json.Decoder(RecordedDecision).decode


class _Unpaired:
    """A decision without its features, or features without their decision."""

    __slots__ = ("decision", "decisions_ahead", "features")

    def __init__(self, found: LiveDecision | None) -> None:
        self.decision = None if found is None else found.decision
        self.features = None if found is None else found.features
        self.decisions_ahead = int(found is not None and found.features is None)
        """Copies of the decision less copies of its features, which differ while a repeat is read."""


class LiveDecisions:
    """Decisions of a range, found by their transaction's record; topics are read only as far as they are needed.

    ``decisions`` and ``features`` are read side by side, in the order of their timestamps, and joined in memory. Of
    repeated records the last one counts.
    """

    def __init__(
        self, source: TopicSource, span: Span, decisions: dict[int, range], features: dict[int, range] | None
    ) -> None:
        """Prepare to read some offsets of each partition.

        Args:
            source: Reads the topics.
            span: Only decisions about event times of its range are kept, without the warm-up's.
            decisions: Offsets of ``decisions`` to read, by partition.
            features: Offsets of ``features``, likewise. None: no features are joined.
        """
        self._span, self._joins = span, features is not None
        self._readers = {
            (False, number): source.read(DECISIONS, number, offsets, batch=_DECISIONS_READ)
            for number, offsets in decisions.items()
        }
        for number, offsets in (features or {}).items():
            self._readers[True, number] = source.read(DECISION_FEATURES, number, offsets, batch=_BLOCKS_READ)
        self._newest_ms = dict.fromkeys(self._readers, 0)
        self._unpaired: OrderedDict[SourcePosition, _Unpaired] = OrderedDict()
        read_at_once = len(decisions) * _DECISIONS_READ + len(features or {}) * MOST_ROWS
        self._most_unpaired = _MOST_UNPAIRED + 2 * read_at_once
        self.waiting: dict[SourcePosition, LiveDecision] = {}
        """Read, and not asked for yet."""

    def pull(self) -> int:
        """Read the next decisions, and the features of that time; returns how many decisions, 0 at the end."""
        while self._readers:
            reader = min(self._readers, key=lambda key: (self._newest_ms[key], key))
            records = next(self._readers[reader], None)
            if records is None:
                del self._readers[reader]
                continue
            self._newest_ms[reader] = records[-1].timestamp_ms
            holds_features, _ = reader
            if not holds_features:
                self._add_decisions(records)
                return len(records)
            self._add_features(records)
        while self._unpaired:
            self._release()
        return 0

    def find(self, position: SourcePosition) -> LiveDecision | None:
        """Return the decision about a transaction, read up to where it stands; None where there is none."""
        while position not in self.waiting and self.pull():
            pass
        return self.waiting.pop(position, None)

    def _add_decisions(self, records: Iterable[Record]) -> None:
        for _, decision in readable(records, _decode, not_counted):
            if self._span.from_us <= timestamp_us(decision.event_time) < self._span.to_us:
                position = (decision.source.partition, decision.source.offset)
                if self._joins:
                    unpaired = self._begin(position)
                    unpaired.decision = decision
                    unpaired.decisions_ahead += 1
                    self._end(position, unpaired)
                else:
                    self.waiting[position] = LiveDecision(decision, None)

    def _add_features(self, records: Iterable[Record]) -> None:
        for _, rows in readable_features(records, not_counted):
            block = rows.block
            event_us = block.whole(EVENT_US)[rows.rows]
            inside = rows.rows[(event_us >= self._span.from_us) & (event_us < self._span.to_us)]
            columns = (block.whole(column)[inside].tolist() for column in (SOURCE_PARTITION, SOURCE_OFFSET))
            positions = zip(*columns, strict=True)
            for position, values in zip(positions, FeatureRows(block, inside).own_features(), strict=True):
                unpaired = self._begin(position)
                # A tenth of the memory of a dictionary; and a view would hold the whole block.
                unpaired.features = values.copy()
                unpaired.decisions_ahead -= 1
                self._end(position, unpaired)

    def _begin(self, position: SourcePosition) -> _Unpaired:
        if position not in self._unpaired:
            self._unpaired[position] = _Unpaired(self.waiting.pop(position, None))
        return self._unpaired[position]

    def _end(self, position: SourcePosition, unpaired: _Unpaired) -> None:
        if unpaired.decisions_ahead == 0:
            self._unpaired.move_to_end(position, last=False)
            self._release()
        elif len(self._unpaired) > self._most_unpaired:
            self._release()

    def _release(self) -> None:
        """Let the first of the unpaired go: a decision is compared as it is, features alone are dropped."""
        position, unpaired = self._unpaired.popitem(last=False)
        if unpaired.decision is not None:
            self.waiting[position] = LiveDecision(unpaired.decision, unpaired.features)


def live_decisions(source: TopicSource, span: Span, *, features: bool) -> LiveDecisions:
    """Return the live decisions about a range.

    Args:
        source: Reads the topics.
        span: Gives the range of event times, its end excluded.
        features: Join each decision to the features that the models saw.

    Raises:
        TopicError: A topic is missing.
    """
    written = source.written_in(span)
    decisions = source.ranges(DECISIONS, written, 0, to_end=True)
    blocks = source.ranges(DECISION_FEATURES, written, 0, to_end=True) if features else None
    return LiveDecisions(source, span, decisions, blocks)
