"""Decision store of the feedback kernel: decisions as served, what is known about them, and when they mature.

Keys of the store: ``k`` + digest: event time and reference of a transaction's decision. ``n`` + digest: the label that
holds and the number of examples emitted, once there is either. ``m`` + time of maturity + number: sampled decisions
that mature from that time on. Decisions themselves stand in segments (`DecisionSegments`).
"""

import copy
import struct
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple, Protocol

import msgspec

from pipeline.engine.layout import DIGEST_BYTES, day_key, day_of, day_of_key, time_key
from pipeline.engine.state import Store
from pipeline.learning.labels import UNSEEN, StateNumbers

_ENTRY_KEY: Final = b"k"
_KNOWN: Final = b"n"
_MATURING: Final = b"m"
_SEGMENT: Final = b"s"
_NEVER: Final = 2**63 - 1
_ENTRY: Final = struct.Struct("<qqI")
_KNOWN_FIELDS: Final = struct.Struct("<bqbII")
_TIME_BYTES: Final = 8
_ITEM_BYTES: Final = _TIME_BYTES + DIGEST_BYTES
_RATE: Final = struct.Struct("<d")
SEGMENT_ROWS: Final = 8
"""Decisions of a stored segment: about what RocksDB reads as one block anyway."""


class Entry(NamedTuple):
    """Reference to a decision."""

    event_time_us: int
    segment: int
    row: int


class Known(NamedTuple):
    """Knowledge about a transaction."""

    state: StateNumbers = UNSEEN
    emitted: int = 0
    """Examples emitted, a presumption that the times alone imply included."""


NOT_KNOWN: Final = Known()


class Matured(NamedTuple):
    """A sampled decision that has matured. Sorts by time of maturity, then digest."""

    at_us: int
    digest: bytes
    rate: float
    """Sample rate under which it was filed."""


class DecisionSegments(Protocol):
    """Append-only decisions by (segment, row). A batch is taken back by `undo`."""

    def add(self, days: Sequence[int], digests: Sequence[bytes], decisions: Sequence[Any]) -> list[tuple[int, int]]:
        """Append decisions whose event times lie on ``days``; return the segment and row of each."""

    def read(self, entries: Sequence[Entry]) -> list[Any]:
        """Return the decisions of ``entries``, which a batch that is not committed may have forgotten."""

    def take_before(self, day: int, at_least: int) -> Iterable[tuple[int, bytes]]:
        """Remove whole segments before ``day``, ``at_least`` so many decisions if there are; return (day, digest)."""

    def settle(self) -> None:
        """The batch is committed."""

    def undo(self) -> None:
        """The batch is not committed."""


class MaturityState(msgspec.Struct):
    """The part of a `DecisionStore` that is not in its store."""

    matures_us: int = _NEVER
    """Nothing matures before."""
    groups: int = 0
    """Number of the next group of maturing decisions."""


class _Group(NamedTuple):
    """Decisions that were sampled together."""

    rate: float
    number: int
    items: list[bytes]
    """Times and digests, in order."""


class DecisionStore:
    """Decisions by the digest of their transaction."""

    def __init__(self, store: Store, segments: DecisionSegments, state: MaturityState | None = None) -> None:
        self._store, self.segments = store, segments
        self._state = state or MaturityState()
        self._settled = copy.copy(self._state)

    @property
    def state(self) -> MaturityState:
        """For the dump."""
        return self._state

    def settle(self) -> None:
        """The batch is committed (the store is settled by its owner)."""
        self.segments.settle()
        self._settled = copy.copy(self._state)

    def undo(self) -> None:
        """The batch is not committed."""
        self.segments.undo()
        self._state = copy.copy(self._settled)

    def find(self, digests: Sequence[bytes]) -> dict[bytes, Entry]:
        """Return the entries of those of ``digests`` that have one."""
        found = self._store.get_many([_ENTRY_KEY + digest for digest in digests]) if digests else []
        return {
            digest: Entry(*_ENTRY.unpack(packed))
            for digest, packed in zip(digests, found, strict=True)
            if packed is not None
        }

    def file(
        self, digests: Sequence[bytes], event_time_us: Sequence[int], decisions: Sequence[Any]
    ) -> list[tuple[int, int]]:
        """Keep decisions, a later one in place of an earlier one of its transaction; return segments and rows."""
        put, pack = self._store.put, _ENTRY.pack
        references = self.segments.add([day_of(time_us) for time_us in event_time_us], digests, decisions)
        for digest, time_us, (segment, row) in zip(digests, event_time_us, references, strict=True):
            put(_ENTRY_KEY + digest, pack(time_us, segment, row))
        return references

    def known(self, digests: Sequence[bytes]) -> dict[bytes, Known]:
        """Return what is known about those of ``digests`` about which anything is."""
        found = self._store.get_many([_KNOWN + digest for digest in digests]) if digests else []
        known = {}
        for digest, packed in zip(digests, found, strict=True):
            if packed is not None:
                *state, emitted = _KNOWN_FIELDS.unpack(packed)
                known[digest] = Known(tuple(state), emitted)
        return known

    def learn(self, known: Iterable[tuple[bytes, Known]]) -> None:
        """Keep what is known now."""
        for digest, (state, emitted) in known:
            self._store.put(_KNOWN + digest, _KNOWN_FIELDS.pack(*state, emitted))

    def let_mature(self, items: Iterable[tuple[int, bytes]], rate: float) -> None:
        """Have `take_matured` return decisions: from when on, and digest; they were sampled at ``rate``."""
        packed = sorted(at_us.to_bytes(_TIME_BYTES, "big") + digest for at_us, digest in items)
        if packed:
            self._put_group(_Group(rate, self._state.groups, packed))
            self._state.groups += 1

    def take_matured(self, now_us: int, at_most: int) -> list[Matured]:
        """Remove and return up to ``at_most`` decisions that have matured, in order; of equal ones the newest first."""
        if self._state.matures_us > now_us:
            return []
        groups = self._take_groups(now_us, at_most)
        end = (now_us + 1).to_bytes(_TIME_BYTES, "big")
        due = [
            (item, -group.number, group) for group in groups for item in group.items[: bisect_left(group.items, end)]
        ]
        due = sorted(due)[:at_most]
        taken = Counter(-number for _, number, _ in due)
        for group in groups:
            # What is taken of a group are its first.
            if taken[group.number] < len(group.items):
                self._put_group(group._replace(items=group.items[taken[group.number] :]))
        return [Matured(_time_of(item), item[_TIME_BYTES:], group.rate) for item, _, group in due]

    def forget_before(self, day: int, at_least: int) -> None:
        """Forget decisions about transactions before ``day``, and what is known: ``at_least`` so many, if there are."""
        swept = list(self.segments.take_before(day, at_least))
        times = self._store.get_many([_ENTRY_KEY + digest for _, digest in swept]) if swept else []
        for (of_day, digest), packed in zip(swept, times, strict=True):
            # One that was decided again since, with another time, stands under its own day.
            if packed is not None and day_of(_ENTRY.unpack(packed)[0]) == of_day:
                self._store.delete(_ENTRY_KEY + digest)
                self._store.delete(_KNOWN + digest)

    def _put_group(self, group: _Group) -> None:
        first_us = _time_of(group.items[0])
        key = time_key(_MATURING, first_us, group.number.to_bytes(8, "big"))
        self._store.put(key, _RATE.pack(group.rate) + b"".join(group.items))
        self._state.matures_us = min(self._state.matures_us, first_us)

    def _take_groups(self, now_us: int, at_most: int) -> list[_Group]:
        """Remove the groups that hold the first ``at_most`` of what has matured."""
        groups: list[_Group] = []
        keys, items = [], 0
        start, self._state.matures_us = self._state.matures_us, _NEVER
        for key, packed in self._store.scan(time_key(_MATURING, start), _MATURING + b"\xff" * 8):
            first_us, before = int.from_bytes(key[1:9], "big"), key[1:9]
            # Groups overlap little, so that this is counted once or twice.
            if first_us > now_us or (
                items >= at_most and sum(bisect_left(group.items, before) for group in groups) >= at_most
            ):
                self._state.matures_us = first_us
                break
            of = [packed[at : at + _ITEM_BYTES] for at in range(_RATE.size, len(packed), _ITEM_BYTES)]
            groups.append(_Group(_RATE.unpack_from(packed)[0], int.from_bytes(key[9:], "big"), of))
            keys.append(key)
            items += len(of)
        for key in keys:
            self._store.delete(key)
        return groups


class SegmentState(msgspec.Struct):
    """The part of `StoredSegments` that is not in their store."""

    swept: bytes = _SEGMENT
    """No segment's key lies before."""
    segments: int = 0
    """Number of the next segment."""


class StoredSegments:
    """Segments of packed decisions in the store, under ``s`` + day of event time + number.

    A value holds the number of its decisions (one byte), their lengths, digests and bytes.
    """

    def __init__(self, store: Store, state: SegmentState | None = None) -> None:
        self._store = store
        self.state = state or SegmentState()
        """For the dump."""
        self._settled = copy.copy(self.state)

    def settle(self) -> None:
        """The batch is committed (the store is settled by its owner)."""
        self._settled = copy.copy(self.state)

    def undo(self) -> None:
        """The batch is not committed."""
        self.state = copy.copy(self._settled)

    def add(self, days: Sequence[int], digests: Sequence[bytes], decisions: Sequence[bytes]) -> list[tuple[int, int]]:
        """Append packed decisions."""
        references = [(0, 0)] * len(days)
        for day in dict.fromkeys(days):
            rows = [row for row, of in enumerate(days) if of == day]
            for first in range(0, len(rows), SEGMENT_ROWS):
                of_segment = rows[first : first + SEGMENT_ROWS]
                packed = [decisions[row] for row in of_segment]
                lengths = struct.pack(f"<B{len(packed)}I", len(packed), *map(len, packed))
                value = b"".join((lengths, *(digests[row] for row in of_segment), *packed))
                self._store.put(_segment_key(day, self.state.segments), value)
                for number, row in enumerate(of_segment):
                    references[row] = (self.state.segments, number)
                self.state.segments += 1
        return references

    def read(self, entries: Sequence[Entry]) -> list[bytes | None]:
        """Return the packed decisions of ``entries``."""
        keys = [_segment_key(day_of(entry.event_time_us), entry.segment) for entry in entries]
        values = self._store.get_many(keys) if keys else []
        return [
            None if value is None else _decision(value, entry.row) for entry, value in zip(entries, values, strict=True)
        ]

    def take_before(self, day: int, at_least: int) -> list[tuple[int, bytes]]:
        """Remove whole segments before ``day``."""
        start, end = self.state.swept, day_key(_SEGMENT, day)
        if start >= end:
            return []
        self.state.swept = end
        swept: list[tuple[int, bytes]] = []
        for key, value in self._store.scan(start, end):
            if len(swept) >= at_least:
                self.state.swept = key
                break
            self._store.delete(key)
            first = 1 + 4 * value[0]
            digests = range(first, first + value[0] * DIGEST_BYTES, DIGEST_BYTES)
            swept += [(day_of_key(key), value[at : at + DIGEST_BYTES]) for at in digests]
        return swept


def _segment_key(day: int, number: int) -> bytes:
    return day_key(_SEGMENT, day, number.to_bytes(8, "big"))


def _decision(value: bytes, row: int) -> bytes:
    lengths = struct.unpack_from(f"<{value[0]}I", value, 1)
    start = 1 + value[0] * (4 + DIGEST_BYTES) + sum(lengths[:row])
    return value[start : start + lengths[row]]


def _time_of(item: bytes) -> int:
    return int.from_bytes(item[:_TIME_BYTES], "big")
