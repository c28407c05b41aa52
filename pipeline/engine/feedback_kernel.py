"""Feedback kernel: joins labels to decisions as served, and decides which training examples follow.

A batch is two sets of columns, decisions and labels, each row with a position. Within one position decisions are filed
first, then labels are joined, then matured decisions are presumed legitimate. A live batch has one position; a backtest
gives every record its own, and gets what the live kernel does for records that come one by one.
"""

import heapq
import struct
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.engine.columns import Labels
from pipeline.engine.decision_store import NOT_KNOWN, DecisionStore, Entry, Known, Matured
from pipeline.engine.layout import day_of, transaction_digest
from pipeline.engine.waiting import WaitingRoom
from pipeline.features.catalogue import US_PER_DAY
from pipeline.features.identity import transaction_hash
from pipeline.learning.labels import KNOWN, LEGITIMATE, NOTHING, OUTCOMES, resolve_numbers
from pipeline.learning.sampling import keep_negative, keep_negatives
from schemas.messages import FeedbackRules

PATIENCE_US: Final = 7 * US_PER_DAY
"""How long, in event time, a label waits for its decision; the card agent reports the ones that wait in vain."""
PRESUME_AT_MOST: Final = 5_000
"""Transactions that one position presumes legitimate at most; others are left to the positions after it."""
GIVE_UP_AT_MOST: Final = 5_000
"""Labels that one position gives up at most; likewise."""
PRESUMED: Final = "presumed_legitimate"
_FORGET_AT_LEAST: Final = 64
_NOTHING: Final = KNOWN.index(NOTHING)
_LEGITIMATE: Final = KNOWN.index(LEGITIMATE)
_STATE_KNOWN: Final = 2
"""Place of what is known in `StateNumbers`."""
_PENDING: Final = struct.Struct("<bbqQ")
_UTF_8: Final = ("utf-8", "surrogatepass")


class Identities(NamedTuple):
    """Identities of n transactions."""

    digest: list[bytes]
    hash: NDArray[np.uint64]

    @classmethod
    def of(cls, card_id: Sequence[str], transaction_id: Sequence[str]) -> "Identities":
        """Return those of transactions by their names."""
        hashes = np.fromiter(map(transaction_hash, card_id, transaction_id), np.uint64, len(card_id))
        return cls(list(map(transaction_digest, card_id, transaction_id)), hashes)


class DecidedRows(NamedTuple):
    """Decisions of a batch, in order; arrays have shape (n,)."""

    identities: Identities
    event_time_us: NDArray[np.int64]
    position: NDArray[np.int64]
    """Ascending."""
    decisions: NDArray[Any]
    """In the form in which the segments of the store take them."""

    def take(self, rows: slice | NDArray[np.intp]) -> "DecidedRows":
        """Return some of the rows."""
        digests, hashes = self.identities
        taken = digests[rows] if isinstance(rows, slice) else [digests[row] for row in rows.tolist()]
        identities = Identities(taken, hashes[rows])
        return DecidedRows(identities, self.event_time_us[rows], self.position[rows], self.decisions[rows])


class LabelRow(NamedTuple):
    """A label as it is joined, and as it waits."""

    rank: int
    known: int
    labelled_at_us: int
    known_at_us: int
    hash: int
    source: str

    def pack(self) -> bytes:
        """Return it for the pending labels, which keep ``known_at_us`` themselves."""
        return _PENDING.pack(self.rank, self.known, self.labelled_at_us, self.hash) + self.source.encode(*_UTF_8)

    @classmethod
    def unpack(cls, packed: bytes, known_at_us: int) -> "LabelRow":
        """Return a pending label."""
        rank, known, labelled_at_us, identity = _PENDING.unpack_from(packed)
        source = packed[_PENDING.size :].decode(*_UTF_8)
        return cls(rank, known, labelled_at_us, known_at_us, identity, source)


class JoinedRows(NamedTuple):
    """Labels of a batch, in order."""

    digest: list[bytes]
    labels: list[LabelRow]
    position: NDArray[np.int64]
    """Shape (n,): ascending."""

    @classmethod
    def of(cls, columns: Labels, position: NDArray[np.int64]) -> "JoinedRows":
        """Return the rows of columns."""
        digests, hashes = Identities.of(columns.card_id.to_pylist(), columns.transaction_id.to_pylist())
        labels = map(
            LabelRow,
            columns.rank.tolist(),
            columns.known.tolist(),
            columns.labelled_at_us.tolist(),
            columns.known_at_us.tolist(),
            hashes.tolist(),
            columns.source.to_pylist(),
        )
        return cls(digests, list(labels), position)

    def take(self, rows: slice) -> "JoinedRows":
        """Return some of the rows."""
        return JoinedRows(self.digest[rows], self.labels[rows], self.position[rows])


class Emitted(NamedTuple):
    """A training example that follows."""

    position: int
    entry: Entry
    """Reference to the decision."""
    label: str
    source: str | None
    known_at_us: int
    weight: float
    revision: int


class FeedbackKernel:
    """State of one partition: decisions as served, labels that wait for theirs, and how far event time has come."""

    def __init__(self, decisions: DecisionStore, pending: WaitingRoom, newest_us: int = 0, first_day: int = 0) -> None:
        self._decisions, self._pending = decisions, pending
        self._newest_us = self._settled_newest_us = newest_us
        # Only grows, whatever the rules become: what was forgotten under a short horizon stays forgotten under a longer
        # one, and nothing is filed where deleting has passed by.
        self._first_day = self._settled_first_day = first_day
        self._counts: Counter[tuple[str, str]] = Counter()

    @property
    def progress(self) -> tuple[int, int]:
        """How far event time has come, and the first day that is remembered; for the dump."""
        return self._newest_us, self._first_day

    def take_counts(self) -> Counter[tuple[str, str]]:
        """Return what happened since the last call, as the feedback agent counts it."""
        taken, self._counts = self._counts, Counter()
        return taken

    def settle(self) -> None:
        """The batch is committed (the store is settled by its owner)."""
        self._decisions.settle()
        self._pending.settle()
        self._settled_newest_us, self._settled_first_day = self._newest_us, self._first_day

    def undo(self) -> None:
        """The batch is not committed."""
        self._decisions.undo()
        self._pending.undo()
        self._newest_us, self._first_day = self._settled_newest_us, self._settled_first_day

    def process(self, rules: FeedbackRules, decided: DecidedRows, joined: JoinedRows, records: int) -> list[Emitted]:
        """File decisions, join labels, and presume what has matured.

        Args:
            rules: Those under which the batch is judged.
            decided: Its decisions.
            joined: Its labels.
            records: Records of the batch, refused ones included: forgetting keeps step with them.

        Returns:
            Examples in order of position.
        """
        timeline = _Timeline.of(rules, self._newest_us, self._first_day, decided)
        emitted: list[Emitted] = []
        first = labels_first = 0
        # What a position lets be forgotten is forgotten before the next one.
        for position in [*decided.position[timeline.moves].tolist(), None]:
            end, labels_end = len(decided.position), len(joined.position)
            if position is not None:
                end = int(np.searchsorted(decided.position, position, side="right"))
                labels_end = int(np.searchsorted(joined.position, position, side="right"))
            if first < end or labels_first < labels_end or (position is None and end + labels_end == 0):
                rows = slice(first, end)
                part = _Part(
                    self._decisions, self._pending, self._counts, rules, timeline.between(first, end),
                    decided.take(rows), joined.take(slice(labels_first, labels_end)),
                )  # fmt: skip
                emitted += part.process()
                self._newest_us, self._first_day = part.timeline.end
                self._forget(part.positions(), records)
            first, labels_first = end, labels_end
        return emitted

    def _forget(self, positions: int, records: int) -> None:
        given_up = self._pending.take_older(self._newest_us - PATIENCE_US, GIVE_UP_AT_MOST * positions)
        if given_up:
            self._counts["label", "unknown_transaction"] += len(given_up)
        self._decisions.forget_before(self._first_day, 2 * records + _FORGET_AT_LEAST)


class _Timeline(NamedTuple):
    """How far event time has come before the first of n decisions, and with each: arrays of shape (n + 1,)."""

    position: NDArray[np.int64]
    """Shape (n,): of the decisions."""
    newest_us: NDArray[np.int64]
    first_day: NDArray[np.int64]
    """First day of event time that is remembered; what lies before is as if it were not there."""

    @classmethod
    def of(cls, rules: FeedbackRules, newest_us: int, first_day: int, decided: DecidedRows) -> "_Timeline":
        running_us = np.maximum.accumulate(np.append(newest_us, decided.event_time_us))
        retention_us = max(rules.label_horizon_us, rules.maturity_us) + PATIENCE_US
        return cls(decided.position, running_us, np.maximum(first_day, (running_us - retention_us) // US_PER_DAY))

    def between(self, first: int, end: int) -> "_Timeline":
        return _Timeline(self.position[first:end], self.newest_us[first : end + 1], self.first_day[first : end + 1])

    @property
    def moves(self) -> NDArray[np.bool_]:
        """Which decisions let a day be forgotten; shape (n,)."""
        return np.diff(self.first_day) > 0

    @property
    def end(self) -> tuple[int, int]:
        return int(self.newest_us[-1]), int(self.first_day[-1])

    def reached(self, time_us: NDArray[np.int64], first: int) -> NDArray[np.int64]:
        """Return the positions at which event time comes to ``time_us``; ``first`` where it had before."""
        rows = np.searchsorted(self.newest_us, time_us)
        return np.append(first, self.position)[rows]


class _Part:
    """A batch, or a part of one behind which something is forgotten."""

    def __init__(
        self,
        decisions: DecisionStore,
        pending: WaitingRoom,
        counts: Counter[tuple[str, str]],
        rules: FeedbackRules,
        timeline: _Timeline,
        decided: DecidedRows,
        joined: JoinedRows,
    ) -> None:
        self._decisions, self._pending, self._counts = decisions, pending, counts
        self._rules, self.timeline, self._joined = rules, timeline, joined
        kept = decided.event_time_us // US_PER_DAY >= timeline.first_day[1:]
        self._decided = decided if kept.all() else decided.take(np.flatnonzero(kept))
        self._first = min([*timeline.position[:1].tolist(), *joined.position[:1].tolist()], default=0)
        self._entries: dict[bytes, Entry] = {}
        self._known: dict[bytes, Known] = {}
        self._changed: dict[bytes, Known] = {}
        self._due: list[tuple[int, bytes, int, float]] = []
        """Heap of what has matured and is to be presumed: time, digest, rank among equal ones, sample rate."""
        self._emitted: list[Emitted] = []

    def positions(self) -> int:
        """Return how many positions there are; at least one."""
        return max(1, len(np.union1d(self.timeline.position, self._joined.position)))

    def process(self) -> list[Emitted]:
        digests = self._decided.identities.digest
        self._awaited = set(self._pending.awaited(digests))
        matured = self._matured()
        involved = {*self._joined.digest, *self._awaited, *(one.digest for _, one in matured)}
        asked = list(involved)
        self._entries = self._decisions.find(asked)
        segments, rows = self._decisions.file(digests, self._decided.event_time_us, self._decided.decisions)
        filed: defaultdict[int, list[int]] = defaultdict(list)
        for row in [row for row, digest in enumerate(digests) if digest in involved]:
            filed[int(self._decided.position[row])].append(row)
        self._segments, self._rows = segments, rows
        self._known = self._decisions.known(asked)
        self._visit_all(filed, matured)
        self._decisions.learn(self._changed.items())
        # More than is presumed at once.
        for rate in {rate for *_, rate in self._due}:
            left = [(at_us, digest) for at_us, digest, _, of in self._due if of == rate]
            self._decisions.let_mature([digest for _, digest in left], np.array([at_us for at_us, _ in left]), rate)
        return self._emitted

    def _matured(self) -> list[tuple[int, Matured]]:
        """Let sampled decisions mature; return those that do within the part, each with its position."""
        decided, rate = self._decided, self._rules.negative_sample_rate
        newest_us, _ = self.timeline.end
        sampled = np.flatnonzero(keep_negatives(decided.identities.hash, rate))
        at_us = decided.event_time_us[sampled] + self._rules.maturity_us
        later = at_us > newest_us
        digests = decided.identities.digest
        self._decisions.let_mature([digests[row] for row in sampled[later].tolist()], at_us[later], rate)
        sampled, at_us = sampled[~later], at_us[~later]
        own = [
            Matured(time_us, digests[row], rate) for time_us, row in zip(at_us.tolist(), sampled.tolist(), strict=True)
        ]
        taken = self._decisions.take_matured(newest_us, PRESUME_AT_MOST * self.positions())
        if not own and not taken:
            return []
        reached = self.timeline.reached(np.array([one.at_us for one in (*own, *taken)], np.int64), self._first)
        reached[: len(own)] = np.maximum(reached[: len(own)], decided.position[sampled])
        return list(zip(reached.tolist(), (*own, *taken), strict=True))

    def _visit_all(self, filed: Mapping[int, Sequence[int]], matured: Sequence[tuple[int, Matured]]) -> None:
        """Go through the positions at which something happens."""
        joined: defaultdict[int, list[int]] = defaultdict(list)
        for number, position in enumerate(self._joined.position.tolist()):
            joined[position].append(number)
        due: defaultdict[int, list[tuple[int, bytes, int, float]]] = defaultdict(list)
        for rank, (position, (at_us, digest, rate)) in enumerate(matured):
            due[position].append((at_us, digest, rank, rate))
        positions = sorted({*filed, *joined, *due})
        visits = np.array(positions, np.int64)
        first_days = self.timeline.first_day[np.searchsorted(self.timeline.position, visits, side="right")]
        before_us = self.timeline.newest_us[np.searchsorted(self.timeline.position, visits, side="left")] - PATIENCE_US
        times = zip(first_days.tolist(), before_us.tolist(), strict=True)
        for position, following, (first_day, given_up_us) in zip(
            positions, [*positions[1:], None], times, strict=False
        ):
            # Before the first position the batch before has given up what it could.
            self._file(position, filed.get(position, ()), first_day, given_up_us if position != self._first else None)
            self._join_labels(position, joined.get(position, ()), first_day)
            for one in due.get(position, ()):
                heapq.heappush(self._due, one)
            self._presume(position, first_day)
            if self._due:
                self._presume_rest(position, following)

    def _file(self, position: int, rows: Sequence[int], first_day: int, given_up_us: int | None) -> None:
        """Take up decisions, and join the labels that waited for them."""
        decided = self._decided
        for row in rows:
            self._entries[decided.identities.digest[row]] = Entry(
                int(decided.event_time_us[row]), int(self._segments[row]), int(self._rows[row])
            )
        for digest in dict.fromkeys(decided.identities.digest[row] for row in rows):
            entry = self._find(digest, first_day) if digest in self._awaited else None
            if entry is None:
                continue
            self._awaited.discard(digest)
            for item in self._pending.items(digest):
                self._pending.remove(item)
                if given_up_us is not None and item.at_us < given_up_us:
                    self._counts["label", "unknown_transaction"] += 1
                else:
                    self._join(position, digest, entry, LabelRow.unpack(item.payload, item.at_us))

    def _join_labels(self, position: int, numbers: Sequence[int], first_day: int) -> None:
        for number in numbers:
            digest, label = self._joined.digest[number], self._joined.labels[number]
            entry = self._find(digest, first_day)
            if entry is None:
                self._pending.add(digest, label.known_at_us, label.pack())
                self._awaited.add(digest)
                self._counts["label", "early"] += 1
            else:
                self._join(position, digest, entry, label)

    def _find(self, digest: bytes, first_day: int) -> Entry | None:
        entry = self._entries.get(digest)
        return None if entry is None or day_of(entry.event_time_us) < first_day else entry

    def _join(self, position: int, digest: bytes, entry: Entry, label: LabelRow) -> None:
        rules, counts = self._rules, self._counts
        if label.known_at_us - entry.event_time_us > rules.label_horizon_us:
            counts["label", "too_late"] += 1
            return
        known, rate = self._known.get(digest, NOT_KNOWN), rules.negative_sample_rate
        sampled = keep_negative(label.hash, rate)
        if known.emitted == 0 and sampled and label.known_at_us > entry.event_time_us + rules.maturity_us:
            # By the times alone it had been presumed legitimate before: the same on every replay.
            known = known._replace(emitted=1)
        state, outcome = resolve_numbers(known.state, label.rank, label.labelled_at_us, label.known)
        counts["label", OUTCOMES[outcome]] += 1
        before, now = known.state[_STATE_KNOWN], state[_STATE_KNOWN]
        known = known._replace(state=state)
        if now in (before, _NOTHING):
            self._learn(digest, known)
        elif now == _LEGITIMATE and known.emitted == 0 and not sampled:
            counts["label", "not_sampled"] += 1
            self._learn(digest, known)
        else:
            # A correction replaces an example that is there for certain; a first one stands for 1 / rate.
            weight = 1.0 / rate if now == _LEGITIMATE and sampled else 1.0
            self._emit(position, digest, entry, known, KNOWN[now], label.source, label.known_at_us, weight)

    def _presume(self, position: int, first_day: int) -> None:
        """Presume what has matured, as much as one position may."""
        for _ in range(min(PRESUME_AT_MOST, len(self._due))):
            at_us, digest, _, rate = heapq.heappop(self._due)
            entry = self._find(digest, first_day)
            known = self._known.get(digest, NOT_KNOWN)
            if entry is not None and not known.emitted and known.state[_STATE_KNOWN] == _NOTHING:
                self._emit(position, digest, entry, known, PRESUMED, None, at_us, 1.0 / rate)

    def _presume_rest(self, position: int, following: int | None) -> None:
        """Go on at the positions between two at which something else happens."""
        rest = np.union1d(self.timeline.position, self._joined.position)
        rest = rest[rest > position] if following is None else rest[(rest > position) & (rest < following)]
        for one in rest.tolist():
            if self._due:
                at = int(np.searchsorted(self.timeline.position, one, side="right"))
                self._presume(one, int(self.timeline.first_day[at]))

    def _emit(
        self,
        position: int,
        digest: bytes,
        entry: Entry,
        known: Known,
        label: str,
        source: str | None,
        known_at_us: int,
        weight: float,
    ) -> None:
        self._emitted.append(Emitted(position, entry, label, source, known_at_us, weight, known.emitted))
        self._counts["example", label] += 1
        self._learn(digest, known._replace(emitted=known.emitted + 1))

    def _learn(self, digest: bytes, known: Known) -> None:
        self._known[digest] = self._changed[digest] = known
