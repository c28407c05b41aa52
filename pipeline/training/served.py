"""Rows as they were served: the features of every decision, with what labels say of it by now.

Training, gate and guard read these columns. They come from ``features`` and ``accepted-labels``, so that models learn
from what was served and never from features that are computed again.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.engine.encoding.row_columns import EVENT_US, SOURCE_OFFSET, SOURCE_PARTITION
from pipeline.engine.records.accepted_labels import read_accepted
from pipeline.engine.records.columns import digest_keys, name_keys
from pipeline.engine.scores.feature_blocks import (
    LIGHTGBM,
    LOGIT,
    SCORE,
    SOURCE_TOPIC,
    FeatureRows,
    block_texts,
)
from pipeline.features.catalogue import FEATURES
from pipeline.features.feature_set import is_comparable
from pipeline.kafka.records.internal import not_counted, readable_features, refuse
from pipeline.learning.event_clock import EventClock, newest_of
from pipeline.learning.labels import KNOWN_FRAUD, NO_LABEL, holding
from pipeline.learning.regimes import NEVER_US
from pipeline.settings import Settings
from pipeline.training.cohorts import Split, TrainingSet, split_cohorts
from schemas.records import Record
from schemas.times import US_PER_DAY

WINDOW_DAYS: Final = 120.0
"""Days of event time that are held by default."""
_ID_TEXT, _CARD_TEXT = range(2)


class Labelled(NamedTuple):
    """m accepted labels, in any order; every array has shape (m,)."""

    identity: NDArray[np.int64]
    """64 bits of card and transaction."""
    rank: NDArray[np.int8]
    labelled_at_us: NDArray[np.int64]
    known: NDArray[np.int8]
    known_at_us: NDArray[np.int64]

    def take(self, rows: NDArray[np.bool_]) -> "Labelled":
        """Return some labels."""
        return Labelled._make(column[rows] for column in self)

    def reports_of(
        self, identity: NDArray[np.int64], as_of_us: int = NEVER_US
    ) -> tuple[NDArray[np.int64], NDArray[np.int8]]:
        """Return since when each of n transactions was known as fraud, and by whom; of shape (n,) each.

        Args:
            identity: Shape (n,).
            as_of_us: Only what had come by then counts.
        """
        reported_us = np.full(len(identity), NEVER_US, np.int64)
        reported_by = np.full(len(identity), NO_LABEL, np.int8)
        labels = self if as_of_us == NEVER_US else self.take(self.known_at_us <= as_of_us)
        if not len(labels.identity) or not len(identity):
            return reported_us, reported_by
        holds = holding([labels.identity], labels.rank, labels.labelled_at_us, labels.known)
        at = np.minimum(np.searchsorted(labels.identity[holds], identity), len(holds) - 1)
        fraud = (labels.identity[holds][at] == identity) & (labels.known[holds][at] == KNOWN_FRAUD)
        frauds = np.flatnonzero(labels.known == KNOWN_FRAUD)
        order = frauds[np.lexsort((labels.known_at_us[frauds], labels.identity[frauds]))]
        first = np.searchsorted(labels.identity[order], identity[fraud])
        reported_us[fraud] = labels.known_at_us[order][first]
        reported_by[fraud] = labels.rank[order][first]
        return reported_us, reported_by


_WHOLE, _SMALL = np.empty(0, np.int64), np.empty(0, np.int8)
_NO_LABELS: Final = Labelled(_WHOLE, _SMALL, _WHOLE, _SMALL, _WHOLE)


@dataclass(frozen=True, slots=True)
class ServedRows:
    """n decisions in the order of event time; every array but ``names`` has n rows."""

    features: NDArray[np.float64]
    """Shape (n, len(FEATURES)), as the models saw them; NaN for no value."""
    event_time_us: NDArray[np.int64]
    """Microseconds since 1970-01-01T00:00:00Z, ascending."""
    card: NDArray[np.int64]
    """Cards, numbered from 0."""
    identity: NDArray[np.int64]
    """64 bits of card and transaction."""
    score: NDArray[np.float64]
    """The score that was decided by."""
    logit: NDArray[np.float64]
    """LightGBM's log-odds that the online model built on."""
    lightgbm: NDArray[np.int32]
    """Index in ``names`` of the LightGBM version."""
    decided_ms: NDArray[np.int64]
    """Timestamp of the record on ``features``, in milliseconds since 1970."""
    reported_us: NDArray[np.int64]
    """Time at which a fraud was first known, in microseconds since 1970; `NEVER_US` for what is no known fraud."""
    reported_by: NDArray[np.int8]
    """`pipeline.learning.labels.source_rank` of who reported it then; -1 for what is no known fraud."""
    names: tuple[str, ...]
    """Names of versions."""
    labels: Labelled | None = None
    """The labels by which ``reported_us`` holds; None where no earlier time is asked for."""

    def __len__(self) -> int:
        return len(self.event_time_us)

    def take(self, rows: slice | NDArray[np.intp] | NDArray[np.bool_]) -> "ServedRows":
        """Return some rows."""
        columns = [field.name for field in fields(self) if field.name not in ("names", "labels")]
        return replace(self, **{name: getattr(self, name)[rows] for name in columns})

    def between(self, start_us: int, end_us: int) -> "ServedRows":
        """Return the rows from an event time on and before another."""
        return self.take(slice(*np.searchsorted(self.event_time_us, [start_us, end_us]).tolist()))

    @property
    def amount(self) -> NDArray[np.float64]:
        """Amounts in the base currency; shape (n,)."""
        return self.features[:, FEATURES.index("amount")]

    def served_by(self, version: str) -> NDArray[np.bool_]:
        """Return which rows a LightGBM version served; shape (n,)."""
        if version not in self.names:
            return np.zeros(len(self), np.bool_)
        by: NDArray[np.bool_] = self.lightgbm == self.names.index(version)
        return by

    def reports_by(self, as_of_us: int) -> NDArray[np.int64]:
        """Return when each row was first known as fraud, by the labels that had come by a time; shape (n,).

        `NEVER_US` for a row that no fraud was known of then. What was corrected later was a fraud until then.
        """
        if self.labels is not None:
            return self.labels.reports_of(self.identity, as_of_us)[0]
        return np.where(self.reported_us <= as_of_us, self.reported_us, NEVER_US)

    def training_set(self, as_of_us: int) -> TrainingSet:
        """Return all rows as a training set, by the labels that had come by ``as_of_us``.

        Features are not copied. Which rows may be trained on is for a `Split` to say.
        """
        return TrainingSet.of_reports(
            features=self.features,
            event_time_us=self.event_time_us,
            card=self.card,
            identity=self.identity,
            reported_us=self.reports_by(as_of_us),
        )

    def split(self, as_of_us: int, maturity_us: int, validation_days: float) -> Split:
        """Return the rows to train on at a time.

        A transaction that is old enough and has no reported fraud counts as legitimate.

        Args:
            as_of_us: The time, in microseconds since 1970.
            maturity_us: Microseconds that a transaction must be old by then.
            validation_days: Length of the validation period, the newest of these rows.

        Raises:
            ModelError: The rows leave nothing to train on, or nothing to check on.
        """
        return split_cohorts(
            self.event_time_us,
            label_delay_us=maturity_us,
            validation_us=round(validation_days * US_PER_DAY),
            known_before_us=as_of_us,
        )


class _ServedPart(NamedTuple):
    """Columns of some rows, in the order in which they were read."""

    features: NDArray[np.float64]
    event_time_us: NDArray[np.int64]
    card: NDArray[np.int64]
    identity: NDArray[np.int64]
    score: NDArray[np.float64]
    logit: NDArray[np.float64]
    lightgbm: NDArray[np.int32]
    decided_ms: NDArray[np.int64]
    topic: NDArray[np.int32]
    partition: NDArray[np.int32]
    offset: NDArray[np.int64]

    def take(self, rows: slice | NDArray[np.intp] | NDArray[np.bool_]) -> "_ServedPart":
        return _ServedPart._make(column[rows] for column in self)


class ServedLog:
    """Takes in records of ``features`` and ``accepted-labels``, and holds the newest days of them.

    A decision that is read twice counts once. Rows of another kernel version are counted and left out, because their
    features mean something else. A row with a date far ahead of its partition's clock moves no window, and waits until
    the clock has come there. With 81 features a million rows take 0.7 GB, and twice that while `rows` orders them.

    Args:
        settings: Give the prefix of the topics.
        window_days: Days of event time before the newest decision that are held.
    """

    def __init__(self, settings: Settings, window_days: float = WINDOW_DAYS) -> None:
        self._topic_prefix = settings.topic_prefix
        self._window_us = round(window_days * US_PER_DAY)
        self._parts: list[_ServedPart] = []
        self._labels: list[Labelled] = []
        self._codes: dict[str, int] = {}
        self._changed = False
        self._rows: ServedRows | None = None
        self._clocks: dict[int, EventClock] = {}
        self.stream_time_us: int | None = None
        """Newest event time so far, as far as it is to be believed; None before the first row."""
        self.other_kernel = 0
        """Rows of another kernel version."""

    def add_features(self, records: Sequence[Record]) -> None:
        """Take in records of ``features``; one that is no block is reported and skipped."""
        found: list[tuple[FeatureRows, int]] = []
        for record, rows in readable_features(records, not_counted):
            if is_comparable(rows.block.kernel):
                found.append((rows, record.timestamp_ms))
                self._advance(record.partition, rows.block.whole(EVENT_US)[rows.rows])
            else:
                self.other_kernel += len(rows.rows)
        if not found:
            return
        part = self._columns(found)
        if not len(part.event_time_us):
            return
        oldest_us = (self.stream_time_us or 0) - self._window_us
        self._parts = [kept for kept in [*self._parts, part] if kept.event_time_us.max() >= oldest_us]
        self._changed = True

    def _advance(self, partition: int, event_time_us: NDArray[np.int64]) -> None:
        self._clocks.setdefault(partition, EventClock()).hours(event_time_us)
        self.stream_time_us = newest_of(self._clocks.values())

    def add_labels(self, records: Sequence[Record]) -> None:
        """Take in records of ``accepted-labels``; labels of rules are left out, since nothing is known by them."""
        read = read_accepted(records, self._topic_prefix)
        for record, error in read.refused:
            refuse(record, error, not_counted)
        labels = read.labels
        labelled = labels.rank > 0
        if labelled.any():
            identity = digest_keys(labels.card_id, labels.transaction_id)[:, 0]
            columns = (identity, labels.rank, labels.labelled_at_us, labels.known, labels.known_at_us)
            self._labels.append(Labelled._make(column[labelled] for column in columns))
            self._changed = True

    def rows(self) -> ServedRows:
        """Return the decisions of the window with what is known of them by now."""
        if self._rows is None or self._changed:
            self._rows = None  # views of the columns that are copied below: let them go first
            if self._parts:
                self._parts = [self._merged(self._parts, (self.stream_time_us or 0) - self._window_us)]
            self._rows = self._served(self._parts[0] if self._parts else _no_rows())
            self._changed = False
        return self._rows

    def newest(self, since_us: int) -> ServedRows:
        """Return the decisions with an event time of ``since_us`` or later, without ordering the others."""
        parts = [part.take(part.event_time_us >= since_us) for part in self._parts]
        return self._served(self._merged(parts, since_us) if parts else _no_rows())

    def _served(self, part: _ServedPart) -> ServedRows:
        """Return ordered rows, as far as their dates are to be believed."""
        if self.stream_time_us is not None:
            part = part.take(slice(int(np.searchsorted(part.event_time_us, self.stream_time_us, side="right"))))
        labels = self._held_labels()
        card = np.unique(part.card, return_inverse=True)[1].astype(np.int64)
        columns: dict[str, Any] = part._replace(card=card)._asdict()
        for name in ("topic", "partition", "offset"):
            del columns[name]
        reported_us, reported_by = labels.reports_of(part.identity)
        return ServedRows(
            **columns, reported_us=reported_us, reported_by=reported_by, names=tuple(self._codes), labels=labels
        )

    def _columns(self, found: Sequence[tuple[FeatureRows, int]]) -> _ServedPart:
        """Return the rows of some blocks as one part."""
        blocks = [rows.block for rows, _ in found]
        counts = [block.rows for block in blocks]
        # Texts are cut from whole blocks; quarantined rows go at the end.
        firsts = np.cumsum([0, *counts[:-1]])
        kept = np.concatenate([first + rows.rows for first, (rows, _) in zip(firsts, found, strict=True)])
        cards, names = block_texts(blocks, _CARD_TEXT), block_texts(blocks, _ID_TEXT)
        event_us, partition, offset = (
            np.concatenate([block.whole(column) for block in blocks])
            for column in (EVENT_US, SOURCE_PARTITION, SOURCE_OFFSET)
        )
        numbers = np.concatenate([block.features[:, [LOGIT, SCORE]] for block in blocks])
        codes = [self._coded(rows) for rows, _ in found]
        lightgbm, topic = np.concatenate(codes, axis=1)
        return _ServedPart(
            np.concatenate([rows.own_features() for rows, _ in found]),
            *(
                column[kept]
                for column in (
                    event_us,
                    name_keys(cards)[:, 0],
                    digest_keys(cards, names)[:, 0],
                    numbers[:, 1],
                    numbers[:, 0],
                    lightgbm,
                    np.repeat(np.array([at_ms for _, at_ms in found], np.int64), counts),
                    topic,
                    partition,
                    offset,
                )
            ),
        )

    def _coded(self, rows: FeatureRows) -> NDArray[np.int32]:
        """Return numbers of the LightGBM version and the source topic of a whole block; shape (2, rows)."""
        block = rows.block
        used = np.unique(block.codes[[LIGHTGBM, SOURCE_TOPIC]])
        numbers = np.zeros(len(block.names), np.int32)
        for code in used.tolist():
            name = block.names[code].decode()
            numbers[code] = self._codes.setdefault(name, len(self._codes))
        return numbers[block.codes[[LIGHTGBM, SOURCE_TOPIC]]]

    @staticmethod
    def _merged(parts: list[_ServedPart], oldest_us: int) -> _ServedPart:
        """Merge parts, whose features are let go of: ordered by event time, each decision once, none of before."""
        columns = zip(*(part[1:] for part in parts), strict=True)
        light = _ServedPart._make([np.empty((0, 0)), *(np.concatenate(column) for column in columns)])
        order = np.lexsort((light.offset, light.partition, light.topic, light.event_time_us))
        positions = [column[order] for column in (light.topic, light.partition, light.offset)]
        repeated = np.zeros(len(order), np.bool_)
        repeated[1:] = np.all([column[1:] == column[:-1] for column in positions], axis=0)
        order = order[(light.event_time_us[order] >= oldest_us) & ~repeated]
        to = np.full(len(repeated), -1)
        to[order] = np.arange(len(order))
        features = np.empty((len(order), len(FEATURES)))
        first = 0
        for number, part in enumerate(parts):
            rows = to[first : first + len(part.event_time_us)]
            first += len(rows)
            features[rows[rows >= 0]] = part.features if (rows >= 0).all() else part.features[rows >= 0]
            parts[number] = part._replace(features=np.empty((0, 0)))
        return _ServedPart._make([features, *(column[order] for column in light[1:])])

    def _held_labels(self) -> Labelled:
        if self._labels:
            labels = Labelled._make(np.concatenate(columns) for columns in zip(*self._labels, strict=True))
            # What was known before the window began is of transactions before it.
            self._labels = [labels.take(labels.known_at_us >= (self.stream_time_us or 0) - self._window_us)]
        return self._labels[0] if self._labels else _NO_LABELS


def _no_rows() -> _ServedPart:
    numbers, whole, codes = np.empty(0), np.empty(0, np.int64), np.empty(0, np.int32)
    return _ServedPart(
        np.empty((0, len(FEATURES))), whole, whole, whole, numbers, numbers, codes, whole, codes, codes, whole
    )
