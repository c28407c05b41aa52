"""Feedback kernel: joins labels to decisions as served, and decides which training examples follow.

A batch is two sets of columns, decisions and labels, each row with a position. Within one position decisions are filed
first, then labels are joined, then matured decisions are presumed legitimate. A live batch has one position; a backtest
gives every record its own, and gets what the live kernel does for records that come one by one.
"""

import struct
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.engine.feedback.decision_store import NOT_KNOWN, DecisionStore, Known, Matured
from pipeline.engine.partition_state.decision_segments import DecisionReference
from pipeline.engine.partition_state.layout import day_of, forgotten_with
from pipeline.engine.partition_state.pending_items import GIVE_UP_AT_MOST, PendingItem, PendingItems
from pipeline.engine.partition_state.wait_clock import EARLY_LABEL_GRACE_US, LATE_US, NOT_SEEN, WaitClock, labels_from
from pipeline.engine.records.columns import Labels, digests, identities
from pipeline.engine.records.results import Result
from pipeline.learning.labels import (
    KNOWN,
    KNOWN_FRAUD,
    KNOWN_LEGITIMATE,
    KNOWN_NOTHING,
    OUTCOMES,
    REVIEWER_RANK,
    resolve_numbers,
)
from pipeline.learning.online_updates import PRESUMED, WITHDRAWN, Learned, OnlineUpdate, online_update
from pipeline.learning.sampling import keep_negative, keep_negatives
from pipeline.learning.surges import Surges
from schemas.codec import EARLIEST_US
from schemas.messages import FeedbackConfig
from schemas.times import US_PER_DAY

PRESUME_AT_MOST: Final = 5_000
"""Transactions that one position presumes legitimate at most; others are left to the positions after it."""
_STATE_KNOWN: Final = 2
"""Place of what is known in `StateNumbers`."""
_PENDING: Final = struct.Struct("<bbqQ?H")
_LAST: Final = 2**63 - 1
"""Behind every position."""
_UTF_8: Final = ("utf-8", "surrogatepass")


class TransactionIdentities(NamedTuple):
    """Identities of n transactions."""

    digest: list[bytes]
    hash: NDArray[np.uint64]

    @classmethod
    def from_ids(cls, card_id: pa.Array, transaction_id: pa.Array) -> "TransactionIdentities":
        """Return those of transactions by their names, which are texts or their UTF-8."""
        return cls(digests(card_id, transaction_id), identities(card_id, transaction_id))


class DecidedBatch(NamedTuple):
    """Decisions of a batch, in order."""

    identities: TransactionIdentities
    event_time_us: Sequence[int]
    position: Sequence[int]
    """Ascending."""
    decisions: Sequence[Any]
    """In the form in which the segments of the store take them."""
    partition: NDArray[np.int64]
    """Partition of ``profiled`` of each."""
    wait_us: NDArray[np.int64]
    """What the card agent's wait clock showed with each; 0 where that is not known."""


class LabelRow(NamedTuple):
    """A label as it is joined, and as it waits."""

    rank: int
    known: int
    labelled_at_us: int
    known_at_us: int
    hash: int
    source: str
    origin: str = ""
    """Topic, partition and offset of its record; empty where it has none."""
    held: bool = False
    """True if it is part of a surge of its source."""

    def pack(self) -> bytes:
        """Return it for the pending labels, which keep ``known_at_us`` themselves."""
        source, numbers = self.source.encode(*_UTF_8), (self.rank, self.known, self.labelled_at_us, self.hash)
        return _PENDING.pack(*numbers, self.held, len(source)) + source + self.origin.encode()

    @classmethod
    def unpack(cls, packed: bytes, known_at_us: int) -> "LabelRow":
        """Return a pending label."""
        rank, known, labelled_at_us, identity, held, source_bytes = _PENDING.unpack_from(packed)
        end = _PENDING.size + source_bytes
        source, origin = packed[_PENDING.size : end].decode(*_UTF_8), packed[end:].decode()
        return cls(rank, known, labelled_at_us, known_at_us, identity, source, origin, held)


class JoinedRows(NamedTuple):
    """Labels of a batch, in order."""

    digest: Sequence[bytes]
    labels: Sequence[LabelRow]
    position: Sequence[int]
    """Ascending."""

    @classmethod
    def from_labels(cls, labels: Labels, position: Sequence[int], origins: Sequence[str] = ()) -> "JoinedRows":
        """Return the rows of columns.

        Args:
            labels: n labels, in the order in which they are joined.
            position: Position of each in the batch, ascending; n of them.
            origins: `LabelRow.origin` of each; empty where labels have no records.
        """
        found = TransactionIdentities.from_ids(labels.card_id, labels.transaction_id)
        numbers = (labels.rank, labels.known, labels.labelled_at_us, labels.known_at_us, found.hash)
        rows = map(
            LabelRow, *(column.tolist() for column in numbers), labels.source.to_pylist(), origins or [""] * len(labels)
        )
        return cls(found.digest, list(rows), position)


NO_LABELS: Final = JoinedRows([], [], [])


class Emitted(NamedTuple):
    """A training example that follows."""

    position: int
    entry: DecisionReference
    """Reference to the decision."""
    label: str
    source: str | None
    known_at_us: int
    weight: float
    revision: int
    online: OnlineUpdate
    reported_share: float
    """Share of the reported frauds whose reports come within the maturity, for what is presumed."""


class FeedbackKernel:
    """State of one partition: decisions as served, labels that wait for theirs, and how far event time has come.

    Args:
        decisions: Decisions, and what is known of them.
        pending: Labels that wait.
        stream_time_us: Newest event time so far, in microseconds since 1970; 0: none.
        first_day: First day since 1970 that is remembered.
        surges: Labels of each source so far; None: no label has come.
        wait: The wait clock to go on from; None: no decision has come.
    """

    def __init__(
        self,
        decisions: DecisionStore,
        pending: PendingItems,
        stream_time_us: int = 0,
        first_day: int = 0,
        surges: Surges | None = None,
        wait: WaitClock | None = None,
    ) -> None:
        self.decisions, self.pending = decisions, pending
        self.surges, self.wait = surges or Surges(), wait or WaitClock()
        self._waited_us = self.wait.reached_us
        self._stream_time_us = self._committed_stream_time_us = stream_time_us
        # Only grows, whatever the config becomes: what was forgotten under a short period stays forgotten under a
        # longer one, and nothing is filed where deleting has passed by.
        self._first_day = self._committed_first_day = first_day

    @property
    def progress(self) -> tuple[int, int]:
        """Stream time, and the first day that is remembered; for the dump."""
        return self._stream_time_us, self._first_day

    def commit(self) -> None:
        """Commit the batch (the store is committed by its owner)."""
        self.decisions.commit()
        self.pending.commit()
        self.surges.commit()
        self.wait.commit()
        self._committed_stream_time_us, self._committed_first_day = self._stream_time_us, self._first_day

    def rollback(self) -> None:
        """The batch is not committed."""
        self.decisions.rollback()
        self.pending.rollback()
        self.surges.rollback()
        self.wait.rollback()
        self._waited_us = self.wait.reached_us
        self._stream_time_us, self._first_day = self._committed_stream_time_us, self._committed_first_day

    def process(
        self, config: FeedbackConfig, decided: DecidedBatch, joined: JoinedRows, records: int, result: Result
    ) -> list[Emitted]:
        """File decisions, join labels, and presume what has matured; return examples in order of position.

        Args:
            config: Processing config of the batch.
            decided: Its decisions.
            joined: Its labels.
            records: Records of the batch, refused ones included: forgetting keeps step with them.
            result: Counts what happens, and gets positions of labels that are given up while a decision of theirs might
                still come.
        """
        event_us = np.array(decided.event_time_us, np.int64)
        came_us = np.where(decided.wait_us > 0, decided.wait_us, event_us)
        stream_time_us = np.maximum.accumulate(np.append(self._stream_time_us, event_us)).tolist()
        waited_us = np.append(self._waited_us, self.wait.advance(NOT_SEEN, decided.partition, came_us))
        late_rows = np.flatnonzero(came_us > event_us + LATE_US).tolist()
        late = {row: labels_from(int(event_us[row]), int(came_us[row])) for row in late_rows}
        retention_us = max(config.label_horizon_us, config.maturity_us) + EARLY_LABEL_GRACE_US
        first_day = np.maximum(self._first_day, day_of(waited_us - retention_us))
        # What a position lets be forgotten is forgotten before the next one.
        ends = [decided.position[row] for row in np.flatnonzero(np.diff(first_day)).tolist()]
        clocks = _Clocks(stream_time_us, waited_us.tolist(), first_day.tolist(), late)
        emitted: list[Emitted] = []
        rows = labels = 0
        for last in dict.fromkeys((*ends, _LAST)):
            part = _BatchPart(self, config, clocks, decided, joined, result)
            row_end, label_end = bisect_right(decided.position, last), bisect_right(joined.position, last)
            if row_end > rows or label_end > labels or not (rows or labels):
                emitted += part.process(range(rows, row_end), range(labels, label_end))
                self._stream_time_us, self._waited_us = stream_time_us[row_end], clocks.waited_us[row_end]
                self._first_day = clocks.first_day[row_end]
                limit_us = self._waited_us - EARLY_LABEL_GRACE_US
                self.give_up(self.pending.take_older(limit_us, GIVE_UP_AT_MOST * part.positions), result)
                self.decisions.forget_before(self._first_day, forgotten_with(records))
            rows, labels = row_end, label_end
        return emitted

    def give_up(self, items: Sequence[PendingItem], result: Result) -> None:
        """Count labels that have waited in vain.

        No decision of theirs comes any more, so that the card agent refuses them, unless a partition has dropped out.
        """
        if not items:
            return
        result.counts["label", "unknown_transaction"] += len(items)
        if self.wait.misses_some:
            result.given_up += [LabelRow.unpack(item.payload, item.at_us).origin for item in items]


class _Clocks(NamedTuple):
    """Clocks before the first decision of a batch and with each, and the late ones among them."""

    stream_time_us: Sequence[int]
    waited_us: Sequence[int]
    first_day: Sequence[int]
    """The first day that is remembered: what lies before it is as if it were not there."""
    late: Mapping[int, int]
    """`Known.labels_from_us` by row."""


class _BatchPart:
    """A batch, or a part of one behind which something is forgotten."""

    def __init__(
        self,
        kernel: FeedbackKernel,
        config: FeedbackConfig,
        clocks: _Clocks,
        decided: DecidedBatch,
        joined: JoinedRows,
        result: Result,
    ) -> None:
        self._kernel, self._result, self._counts = kernel, result, result.counts
        self._decisions, self._pending = kernel.decisions, kernel.pending
        self._config, self._decided, self._joined = config, decided, joined
        self._stream_time_us, self._waited_us, self._first_day, self._late_rows = clocks
        self._changed: dict[bytes, Known] = {}
        self._emitted: list[Emitted] = []
        self.positions = 1
        """Approximate number of positions."""

    def process(self, rows: range, labels: range) -> list[Emitted]:
        """Work on some rows of the batch; return examples in order."""
        decided, joined = self._decided, self._joined
        self._first_label = labels.start
        found = sorted({*decided.position[rows.start : rows.stop], *joined.position[labels.start : labels.stop]})
        self._start, self.positions = (found[0], len(found)) if found else (0, 1)
        limit_us = self._first_day[rows.stop] * US_PER_DAY
        kept: Sequence[int] = rows
        if min(decided.event_time_us[rows.start : rows.stop], default=limit_us) < limit_us:
            kept = [row for row in rows if day_of(decided.event_time_us[row]) >= self._first_day[row + 1]]
        digests = [decided.identities.digest[row] for row in kept]
        self._awaited = set(self._pending.awaited(digests))
        due = self._matured(rows, kept)
        chosen = kept if kept is rows else {*kept}
        late = {row: decided.identities.digest[row] for row in self._late_rows if row in chosen}
        involved = {*self._awaited, *joined.digest[labels.start : labels.stop], *late.values()}
        involved.update(item.digest for ones in due.values() for item in ones)
        self._entries = self._decisions.segments.find(list(involved))
        self._known = self._decisions.known(list(involved))
        first_row = self._decisions.segments.add(
            digests, [decided.event_time_us[row] for row in kept], [decided.decisions[row] for row in kept]
        )
        filed: defaultdict[int, dict[bytes, DecisionReference]] = defaultdict(dict)
        self._late: defaultdict[int, dict[bytes, int]] = defaultdict(dict)
        for row, digest in late.items():
            self._late[decided.position[row]][digest] = self._late_rows[row]
        if involved:
            for number, digest in enumerate(digests):
                if digest in involved:
                    row = kept[number]
                    filed[decided.position[row]][digest] = DecisionReference(
                        decided.event_time_us[row], first_row + number
                    )
        if labels:
            hashes = np.array([joined.labels[number].hash for number in labels], np.uint64)
            self._sampled = keep_negatives(hashes, self._config.negative_sample_rate).tolist()
        labels_at: defaultdict[int, list[int]] = defaultdict(list)
        for number in labels:
            labels_at[joined.position[number]].append(number)
        for position in sorted({*filed, *labels_at, *due}):
            self._visit(position, filed.get(position, {}), labels_at.get(position, ()), due.get(position, ()))
        self._decisions.learn(
            (digest, self._entries[digest].event_time_us, known) for digest, known in self._changed.items()
        )
        return self._emitted

    def _matured(self, rows: range, kept: Sequence[int]) -> Mapping[int, Sequence[Matured]]:
        """Let sampled decisions mature; return what has matured, in order, by the position at which it does."""
        decided, rate = self._decided, self._config.negative_sample_rate
        stream_time_us, known = self._stream_time_us[rows.stop], None if kept is rows else set(kept)
        items: list[tuple[int, bytes]] = []
        own: defaultdict[tuple[int, bytes], list[int]] = defaultdict(list)
        for number in np.flatnonzero(keep_negatives(decided.identities.hash[rows.start : rows.stop], rate)).tolist():
            row = rows[number]
            if known is None or row in known:
                item = (decided.event_time_us[row] + self._config.maturity_us, decided.identities.digest[row])
                items.append(item)
                if item[0] <= stream_time_us:
                    own[item].append(decided.position[row])
        self._decisions.let_mature(items, rate)
        due: defaultdict[int, list[Matured]] = defaultdict(list)
        for decision in self._decisions.take_matured(stream_time_us, PRESUME_AT_MOST * self.positions):
            row = bisect_left(self._stream_time_us, decision.at_us, rows.start, rows.stop)
            position = self._start if row == rows.start else decided.position[row - 1]
            # Not before it was filed; of equal ones those of this batch come first.
            of_batch = own.get((decision.at_us, decision.digest))
            due[max(position, of_batch.pop()) if of_batch else position].append(decision)
        return due

    def _visit(
        self, position: int, filed: Mapping[bytes, DecisionReference], labels: Sequence[int], due: Sequence[Matured]
    ) -> None:
        self._remembered = self._first_day[bisect_right(self._decided.position, position)]
        self._entries.update(filed)
        for digest, from_us in self._late.get(position, {}).items():
            known = self._known.get(digest, NOT_KNOWN)._replace(labels_from_us=from_us)
            self._known[digest] = self._changed[digest] = known
        for digest in filed:
            entry = self._find(digest) if digest in self._awaited else None
            if entry is not None:
                self._join_pending(position, digest, entry)
        for number in labels:
            digest, label = self._joined.digest[number], self._joined.labels[number]
            # Here, whether or not its transaction is there: what is held depends on the order of the labels alone.
            label = label._replace(held=self._kernel.surges.take(label.source, label.known_at_us))
            entry = self._find(digest)
            if entry is None or label.known_at_us < self._labels_from(digest, entry):
                self._pending.add(digest, label.known_at_us, label.pack())
                self._awaited.add(digest)
                self._counts["label", "early"] += 1
            else:
                self._join(position, digest, entry, label, self._sampled[number - self._first_label])
        for at_us, digest, rate in due:
            entry, known = self._find(digest), self._known.get(digest, NOT_KNOWN)
            if entry is not None and not known.emitted and known.state[_STATE_KNOWN] == KNOWN_NOTHING:
                weight, share = 1.0 / rate, self._config.reported_share
                emitted = Emitted(position, entry, PRESUMED, None, at_us, weight, 0, OnlineUpdate(weight), share)
                self._emit(digest, known._replace(learned=Learned.presumed(weight)), emitted)

    def _find(self, digest: bytes) -> DecisionReference | None:
        entry = self._entries.get(digest)
        return None if entry is None or day_of(entry.event_time_us) < self._remembered else entry

    def _labels_from(self, digest: bytes, entry: DecisionReference) -> int:
        return max(labels_from(entry.event_time_us, 0), self._known.get(digest, NOT_KNOWN).labels_from_us)

    def _join_pending(self, position: int, digest: bytes, entry: DecisionReference) -> None:
        before_us = self._waited_us[bisect_left(self._decided.position, position)]
        # An earlier batch has given up what it could; of an earlier position's that is done here.
        given_up_us = EARLIEST_US if position == self._start else before_us - EARLY_LABEL_GRACE_US
        from_us = self._labels_from(digest, entry)
        for item in self._pending.items(digest):
            if item.at_us < given_up_us:
                self._pending.remove(item)
                self._kernel.give_up([item], self._result)
            elif item.at_us >= from_us:
                self._pending.remove(item)
                label = LabelRow.unpack(item.payload, item.at_us)
                sampled = keep_negative(label.hash, self._config.negative_sample_rate)
                self._join(position, digest, entry, label, sampled)

    def _join(self, position: int, digest: bytes, entry: DecisionReference, label: LabelRow, sampled: bool) -> None:
        config, counts = self._config, self._counts
        if label.known_at_us - entry.event_time_us > config.label_horizon_us:
            counts["label", "too_late"] += 1
            return
        known = self._known.get(digest, NOT_KNOWN)
        in_time = label.known_at_us <= entry.event_time_us + config.maturity_us
        if known.emitted == 0 and sampled and not in_time:
            # By the times alone it had been presumed legitimate before: the same on every replay.
            known = known._replace(emitted=1, learned=Learned.presumed(1.0 / config.negative_sample_rate))
        before = known.state[_STATE_KNOWN]
        state, outcome = resolve_numbers(known.state, label.rank, label.labelled_at_us, label.known)
        counts["label", OUTCOMES[outcome]] += 1
        known = self._known[digest] = self._changed[digest] = known._replace(state=state)
        now = state[_STATE_KNOWN]
        if now == before or (now == KNOWN_NOTHING and known.emitted == 0):
            return
        reviewed = label.rank >= REVIEWER_RANK
        if now == KNOWN_LEGITIMATE and known.emitted == 0 and not sampled and not reviewed:
            counts["label", "not_sampled"] += 1
            return
        # A fraud is an example for certain, and so are its correction and what somebody has looked at. Any other
        # legitimate one stands for 1 / rate.
        is_sample = now == KNOWN_LEGITIMATE and sampled and not reviewed and before != KNOWN_FRAUD
        weight = 1.0 / config.negative_sample_rate if is_sample else 1.0
        online, learned = online_update(known.learned, now, weight, config.reported_share, in_time=in_time)
        name, online = WITHDRAWN if now == KNOWN_NOTHING else KNOWN[now], online._replace(held=label.held)
        emitted = Emitted(
            position, entry, name, label.source, label.known_at_us, weight, known.emitted, online, config.reported_share
        )
        self._emit(digest, known if label.held else known._replace(learned=learned), emitted)

    def _emit(self, digest: bytes, known: Known, emitted: Emitted) -> None:
        self._emitted.append(emitted)
        self._counts["example", emitted.label] += 1
        self._known[digest] = self._changed[digest] = known._replace(emitted=known.emitted + 1)
