"""The logs as they are: card and score kernels over topics, in the order and by the rules of the live batches.

The card kernel goes through each partition batch by batch, as ``progress`` tells them; the score kernel through
``profiled``, whose order between cards nothing else tells. What the card kernel says now takes the place of what
``profiled`` holds, so that both hops are computed again.
"""

import heapq
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from decimal import Decimal
from functools import partial
from typing import Final, NamedTuple

import msgspec
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.backtest.input.live_decisions import LiveDecision, LiveDecisions, SourcePosition
from pipeline.backtest.input.merge import Numbering
from pipeline.backtest.input.span import EARLIEST_US, LATEST_US, Span
from pipeline.backtest.input.topic_source import TopicSource
from pipeline.backtest.runner.model_library import ModelLibrary
from pipeline.decision.rule_caps import Bound
from pipeline.decision.rules import RuleSet
from pipeline.engine.cards.card_options import CardOptions
from pipeline.engine.cards.card_partition import CardPartition
from pipeline.engine.encoding import row_columns as col
from pipeline.engine.encoding.blocks import BlockError
from pipeline.engine.partition_state.state import MemoryStore, PartitionState
from pipeline.engine.records.columns import EXTRA_TEXTS, Transactions
from pipeline.engine.records.partitioner import partition_of
from pipeline.engine.records.results import Result
from pipeline.engine.records.subjects import Subjects
from pipeline.engine.scores.active_models import ActiveModels
from pipeline.engine.scores.block_messages import read_messages, write_messages
from pipeline.engine.scores.decisions import Decisions, decided
from pipeline.engine.scores.profiled import read_rows
from pipeline.engine.scores.score import ScorePartition
from pipeline.features.catalogue import FEATURES, KERNEL_VERSION
from pipeline.features.known_sets import is_known, own_card_features
from pipeline.history.files import currency_decimals
from pipeline.kafka.readers.replay_reader import RangeReader, in_recorded_order, read_markers
from schemas.messages import CardConfig, Profiled, ProfiledTransaction, RecordPosition, Versions
from schemas.records import Record
from schemas.times import EPOCH, US_PER_SECOND
from schemas.topics import ACCEPTED_LABELS, PROFILED, PROGRESS, REROUTED, TRANSACTIONS, Topic

_BATCH: Final = 16
"""Blocks that are read at once, of up to 512 rows each."""
_NOW: Final = EPOCH
"""When batches are stamped to have been ingested: what is compared and kept has the live stamp."""
_Key = tuple[str, int, int]


class Scored(NamedTuple):
    """Decisions about some transactions of the range, all by the same models."""

    decisions: Decisions
    positions: list[SourcePosition]
    """Position of each transaction's record."""
    live: list[LiveDecision | None]
    """The recorded decision about each; None where there is none, or nobody asked."""


class RecordedReplay:
    """Both hops over the logs of a span."""

    def __init__(
        self,
        source: TopicSource,
        span: Span,
        options: CardOptions,
        library: ModelLibrary,
        on_result: Callable[[Result], None],
        ended: Callable[[str, int, PartitionState], None] = lambda *_: None,
    ) -> None:
        """Prepare a replay; ``options`` are for batches that no record of ``progress`` covers.

        ``on_result`` is called with the card kernel's result for each batch, those of the warm-up included; ``ended``
        with the agent's name, the number and the state of each partition behind its last batch.
        """
        self._source, self._span, self._library, self._on_result = source, span, library, on_result
        self._ended = ended
        future_us = options.future_tolerance_us
        self._ranges: dict[Topic, dict[int, range]] = {
            topic: source.ranges(topic, span, future_us, to_end=False)
            for topic in (TRANSACTIONS, REROUTED, *source.settings.topics_of_labels)
        }
        self._sources = {topic.name: ranges for topic, ranges in self._ranges.items()}
        # Stamped by the label agent's clock, and not by a producer's.
        self._ranges[ACCEPTED_LABELS] = source.ranges(ACCEPTED_LABELS, source.written_in(span), future_us, to_end=False)
        self._options = options._replace(
            partitions=len(self._ranges[TRANSACTIONS]), topic_prefix=source.settings.topic_prefix
        )
        everything = Span(EARLIEST_US, EARLIEST_US, LATEST_US)
        self._as_live = False
        self._progress = source.ranges(PROGRESS, everything, future_us, to_end=True)
        self.first_event_us: int | None = None
        """Event time of the first transaction that entered the windows."""
        self.entered = 0
        """Number of transactions that entered the windows so far."""
        self.stored_otherwise = 0
        """Rows of ``profiled`` that the card kernel does not give again."""
        self.stream_time_us = 0
        """The newest of them."""

    def run(self, models: ActiveModels | None, live: LiveDecisions | None) -> Generator[list[Scored], None, None]:
        """Decide the range by ``models``, or, without, each transaction by those that its live decision names.

        A transaction without a live decision is passed over in the latter case. Comes back after every batch that was
        read, of the warm-up too. With ``live``, what was profiled under another declaration is taken as it stands,
        without the features that only this one has. Without, they are computed for all of the past.
        """
        self._as_live = live is not None
        self._library.learn_declarations()
        with ExitStack() as stack:
            cards = {number: stack.enter_context(closing(self._cards(number))) for number in self._ranges[TRANSACTIONS]}
            again: dict[_Key, Profiled] = {}
            scores: dict[int, ScorePartition] = {}
            for number, records in self._profiled(stack):
                if number not in scores:
                    scores[number] = ScorePartition()
                    stack.callback(scores[number].close)
                score = scores[number]
                repeated = [self._repeated(record, cards, again) for record in records]
                rows = read_rows([record for record in repeated if record is not None])
                decided_rows = score.profile(rows, range(len(rows.records)), Result())
                score.commit()
                yield list(self._decide(rows.subjects.take(decided_rows), rows.features[decided_rows], models, live))
            # Of what stands behind the last that was profiled nothing is decided, but it may be refused.
            for card in cards.values():
                for _ in card:
                    yield []
            for number, score in scores.items():
                self._ended("score", number, score)

    def _profiled(self, stack: ExitStack) -> Iterator[tuple[int, list[Record]]]:
        """Records of all partitions, each in its order, those first that were written first."""
        span = self._source.written_in(self._span)
        ranges = self._source.ranges(PROFILED, span, self._options.future_tolerance_us, to_end=False)
        heap: list[tuple[int, int, list[Record]]] = []
        readers = {}
        for number, offsets in ranges.items():
            name = self._source.settings.topic(PROFILED.name)
            reader = stack.enter_context(
                closing(RangeReader(self._source.bootstrap, self._source.settings, name, number, offsets.start))
            )
            readers[number] = reader
            if records := reader.read_to(offsets.stop, _BATCH):
                heapq.heappush(heap, (records[0].timestamp_ms, number, records))
        while heap:
            _, number, records = heapq.heappop(heap)
            yield number, list(self._library.without("score", records))
            if following := readers[number].read_to(ranges[number].stop, _BATCH):
                heapq.heappush(heap, (following[0].timestamp_ms, number, following))

    def _cards(self, number: int) -> Generator[list[Profiled], None, None]:
        """Yield the card kernel's results of a partition, batch by batch."""
        settings = self._source.settings
        topics = {settings.topic(topic.name): topic for topic in (TRANSACTIONS, REROUTED, ACCEPTED_LABELS)}
        ends = {
            name: self._ranges[topic][number].stop for name, topic in topics.items() if number in self._ranges[topic]
        }
        progress = settings.topic(PROGRESS.name)
        offsets = self._progress[number]
        card = CardPartition(self._options, None, MemoryStore())
        with ExitStack() as stack:
            stack.callback(card.close)
            readers = [
                stack.enter_context(
                    closing(
                        RangeReader(self._source.bootstrap, settings, name, number, self._ranges[topic][number].start)
                    )
                )
                for name, topic in topics.items()
            ]
            marks = stack.enter_context(
                closing(RangeReader(self._source.bootstrap, settings, progress, number, offsets.start))
            )
            markers = read_markers(marks, "card", offsets.stop)
            for batch, config in in_recorded_order(readers, markers, ends, lambda name: topics[name].name):
                options = self._library.under(self._options, config) if isinstance(config, CardConfig) else None
                result = card.process(batch, _NOW, options)
                card.commit()
                self._on_result(result)
                blocks = [read_messages(output.value) for output in result.outputs if output.topic is PROFILED]
                yield [message for block in blocks for message in block]
            self._ended("card", number, card)

    def _repeated(
        self, record: Record, cards: Mapping[int, Iterator[list[Profiled]]], again: dict[_Key, Profiled]
    ) -> Record | None:
        """A record of ``profiled`` as the card kernel gives it now; None where nothing of it lies in the span."""
        try:
            stored = read_messages(record.value)
            messages = [_under_own_kernel(message) for message in stored]
        except BlockError:
            # Live a dead letter.
            return None
        skipped = set(record.skipped_rows)
        rows = [
            self._repeated_row(message, cards, again, as_stored=self._as_live and message is not before)
            for before, message in zip(stored, messages, strict=True)
        ]
        repeated = [None if row in skipped else message for row, message in enumerate(rows)]
        if rows == messages:
            return record
        inside = [message for message in repeated if message is not None]
        return msgspec.structs.replace(record, value=write_messages(inside), skipped_rows=()) if inside else None

    def _repeated_row(
        self,
        message: Profiled,
        cards: Mapping[int, Iterator[list[Profiled]]],
        again: dict[_Key, Profiled],
        *,
        as_stored: bool,
    ) -> Profiled | None:
        key = _key(message)
        number = partition_of(message.card_id, self._options.partitions)
        offsets = self._sources.get(message.source.topic, {}).get(message.source.partition)
        if offsets is None or not offsets.start <= message.source.offset < offsets.stop:
            return None
        while key not in again and (block := next(cards[number], None)) is not None:
            again.update((_key(repeated), repeated) for repeated in block)
        found = again.pop(key, None)
        if isinstance(message, ProfiledTransaction):
            self.entered += 1
            self.stream_time_us = max(self.stream_time_us, message.event_time_us)
            first_us = self.first_event_us
            self.first_event_us = message.event_time_us if first_us is None else min(first_us, message.event_time_us)
        if found is None:
            self.stored_otherwise += 1
            return message
        if isinstance(found, ProfiledTransaction) and isinstance(message, ProfiledTransaction):
            found = msgspec.structs.replace(found, ingested_at=message.ingested_at)
        if as_stored or found == message:
            return message
        self.stored_otherwise += 1
        return found

    def _decide(
        self,
        subjects: Subjects,
        features: NDArray[np.float64],
        models: ActiveModels | None,
        live: LiveDecisions | None,
    ) -> Iterator[Scored]:
        event_time_us = subjects.wholes[col.EVENT_US]
        inside = np.flatnonzero((event_time_us >= self._span.from_us) & (event_time_us < self._span.to_us))
        subjects, features = subjects.take(inside), features[inside]
        positions: list[SourcePosition] = [
            *zip(*subjects.wholes[[col.SOURCE_PARTITION, col.SOURCE_OFFSET]].tolist(), strict=True)
        ]
        found = [None if live is None else live.find(position) for position in positions]
        lists = self._library.list_history
        # The decision followed within moments.
        numbers = lists.numbers(subjects.wholes[col.INGESTED_US]).tolist()
        groups: dict[tuple[str, Versions | None, int], list[int]] = {}
        for row, (rates, recorded) in enumerate(zip(subjects.strings(col.RATES), found, strict=True)):
            if models is None and recorded is None:
                continue
            versions = recorded.decision.versions if models is None and recorded is not None else None
            groups.setdefault((rates, versions, numbers[row] if versions is None else 0), []).append(row)
        for (rates, versions, number), rows in groups.items():
            chosen = (
                models and models.dated(lists.numbered(number)) if versions is None else self._library.named(versions)
            )
            if chosen is None:
                continue
            live_ones = [found[row] for row in rows]
            bound = partial(_bounded_as, live_ones) if versions is not None else None
            decisions = self._columns(subjects.take(np.array(rows)), features[rows], chosen, rates, bound)
            yield Scored(decisions, [positions[row] for row in rows], live_ones)

    def _columns(
        self,
        subjects: Subjects,
        features: NDArray[np.float64],
        models: ActiveModels,
        rates_version: str,
        bound: Bound | None,
    ) -> Decisions:
        numbering, wholes = Numbering(self._options.partitions), subjects.wholes
        names = {
            column: subjects.strings(column) for column in (col.ID, col.CARD, col.MERCHANT, col.CURRENCY, col.TYPE)
        }
        taken = Transactions(
            row=wholes[col.SOURCE_OFFSET] * numbering.partitions + wholes[col.SOURCE_PARTITION],
            key=wholes[col.EVENT_US],
            transaction_id=_texts(names[col.ID]),
            card_id=_texts(names[col.CARD]),
            merchant_id=_texts(names[col.MERCHANT]),
            event_time_us=wholes[col.EVENT_US],
            currency=_texts(names[col.CURRENCY]),
            amount_minor=np.array([*map(_minor, subjects.strings(col.AMOUNT), names[col.CURRENCY])], np.int64),
            amount_base_minor=wholes[col.AMOUNT_BASE],
            transaction_type=_texts(names[col.TYPE]),
            counts=wholes[col.COUNTS].astype(np.bool_),
            hour=_feature("hour", features),
            weekday=_feature("weekday", features),
            declared={name: _texts(texts) for name, texts in subjects.text_lists(EXTRA_TEXTS).items()},
        )
        starts_s = [int(case.rpartition("-")[2]) for case in subjects.strings(col.CASE)]
        return Decisions(
            transactions=taken,
            position=np.arange(subjects.rows),
            partition=wholes[col.SOURCE_PARTITION],
            merchant_partition=wholes[col.LOG_PARTITION],
            wait_us=wholes[col.KNOWN_AT_US],
            features=features,
            **decided(models, features, taken, bound)._asdict(),
            case_start_us=np.array(starts_s, np.int64) * US_PER_SECOND,
            case_sequence=wholes[col.CASE_SEQUENCE],
            models=models,
            base_currency=self._options.rates.base,
            rates_version=rates_version,
            duplicates=0,
            label_outcomes=Counter(),
            rejects=(),
        )


def _bounded_as(
    live: Sequence[LiveDecision | None], rules: RuleSet, hits: NDArray[np.object_], by_score: NDArray[np.bool_]
) -> NDArray[np.object_]:
    """Return hits in which rules are stopped as a partition stopped them at their caps: live decisions say so."""
    del by_score
    bounded = hits.copy()
    for row, found in enumerate(live):
        if found is not None and hits[row] and (shadow := {*found.decision.shadow_hits} - {*found.decision.rule_hits}):
            stopped = {number for number in hits[row] if number < rules.alerting and rules.code(number) in shadow}
            bounded[row] = rules.capped(hits[row], stopped)
    return bounded


def _under_own_kernel(message: Profiled) -> Profiled:
    """Return a row of another declaration with this one's features; `BlockError` where it has too few or too many."""
    if not isinstance(message, ProfiledTransaction) or message.kernel == KERNEL_VERSION or not is_known(message.kernel):
        return message
    try:
        features = own_card_features(message.kernel, np.frombuffer(message.card_features, "<f8")[np.newaxis])
    except ValueError as error:
        raise BlockError(str(error)) from error
    return msgspec.structs.replace(message, card_features=features.tobytes(), kernel=KERNEL_VERSION)


def _key(message: Profiled) -> _Key:
    source: RecordPosition = message.source
    return source.topic, source.partition, source.offset


def _minor(amount: str, currency: str) -> int:
    return int(Decimal(amount).scaleb(currency_decimals(currency)))


def _feature(name: str, features: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return a feature of n transactions; NaN where it is not declared."""
    return features[:, FEATURES.index(name)].copy() if name in FEATURES else np.full(len(features), np.nan)


def _texts(values: Sequence[str | None]) -> pa.Array:
    return pa.array(values, pa.string())
