"""Decision store of the feedback kernel: decisions as served, what is known about them, and when they mature.

Decisions and their index are in segments (`partition_state.segments`). The store holds what concerns few of them.
``n`` + digest: the label that holds, the number of examples emitted, and what the online model learned. ``d`` + day of
event time + digest, empty: the same by the day with which it is forgotten. ``m`` + time of maturity + number: sampled
decisions that mature from that time on.
"""

import struct
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, Final, NamedTuple

import msgspec

from pipeline.engine.partition_state.decision_segments import DecisionSegments
from pipeline.engine.partition_state.layout import DIGEST_BYTES, day_key, day_of, time_key
from pipeline.engine.partition_state.state import Store, StoreBacked
from pipeline.learning.labels import UNSEEN, StateNumbers
from pipeline.learning.online_updates import NOTHING_LEARNED, Learned

_KNOWN: Final = b"n"
_KNOWN_DAY: Final = b"d"
_DAY_BYTES: Final = 5
"""Length of a key of `day_key` before its digest."""
_MATURING: Final = b"m"
_AFTER: Final = b"\xff" * 64
"""Behind every key of one prefix."""
_NEVER: Final = 2**63 - 1
_KNOWN_FIELDS: Final = struct.Struct("<bqbIIbdq")
_TIME_BYTES: Final = 8
_ITEM_BYTES: Final = _TIME_BYTES + DIGEST_BYTES
_RATE: Final = struct.Struct("<d")
_READ_AT_ONCE: Final = 1_024


class Known(NamedTuple):
    """Knowledge about a transaction."""

    state: StateNumbers = UNSEEN
    emitted: int = 0
    """Examples emitted, a presumption that the times alone imply included."""
    learned: Learned = NOTHING_LEARNED
    """The last update of the online model from it that was not undone."""
    labels_from_us: int = 0
    """Since when a label must be known to count, where its decision came late."""


NOT_KNOWN: Final = Known()


class Matured(NamedTuple):
    """A sampled decision that has matured. Sorts by time of maturity, then digest."""

    at_us: int
    digest: bytes
    rate: float
    """Sample rate under which it was filed."""


class DecisionState(msgspec.Struct):
    """The part of a `DecisionStore` that is not in its store."""

    matures_us: int = _NEVER
    """Nothing matures before."""
    groups: int = 0
    """Number of the next group of maturing decisions."""
    swept: bytes = _KNOWN_DAY
    """No key by day lies before."""


class _Group(NamedTuple):
    rate: float
    number: int
    items: list[bytes]
    """Times and digests, in order."""


class DecisionStore(StoreBacked[DecisionState]):
    """Decisions by the digest of their transaction.

    Args:
        store: Holds what is known of them and when they mature; its owner commits and rolls it back.
        segments: Hold the decisions; committed and rolled back here.
        state: The rest of a dumped state; None: ``store`` and ``segments`` are empty.
    """

    def __init__(self, store: Store, segments: DecisionSegments, state: DecisionState | None = None) -> None:
        super().__init__(store, state or DecisionState())
        self.segments = segments

    def commit(self) -> None:
        """Commit the batch (the store is committed by its owner)."""
        self.segments.commit()
        super().commit()

    def rollback(self) -> None:
        """Roll the batch back."""
        self.segments.rollback()
        super().rollback()

    def known(self, digests: Sequence[bytes]) -> dict[bytes, Known]:
        """Return what is known about those of ``digests`` about which anything is."""
        found = self._store.get_many([_KNOWN + digest for digest in digests]) if digests else []
        known = {}
        for digest, packed in zip(digests, found, strict=True):
            if packed is not None:
                *state, emitted, label, weight, from_us = _KNOWN_FIELDS.unpack(packed)
                known[digest] = Known(tuple(state), emitted, Learned(label, weight), from_us)
        return known

    def learn(self, known: Iterable[tuple[bytes, int, Known]]) -> None:
        """Keep what is known now about transactions, given the event time of each one's decision."""
        for digest, event_time_us, (state, emitted, learned, from_us) in known:
            self._store.put(_KNOWN + digest, _KNOWN_FIELDS.pack(*state, emitted, *learned, from_us))
            self._store.put(day_key(_KNOWN_DAY, day_of(event_time_us), digest), b"")

    def let_mature(self, items: Iterable[tuple[int, bytes]], rate: float) -> None:
        """Have `take_matured` return decisions: from when on, and digest; they were sampled at ``rate``."""
        packed = sorted(at_us.to_bytes(_TIME_BYTES, "big") + digest for at_us, digest in items)
        if packed:
            self._put_group(_Group(rate, self.state.groups, packed))
            self.state.groups += 1

    def take_matured(self, now_us: int, at_most: int) -> list[Matured]:
        """Remove and return up to ``at_most`` decisions that have matured, in order; of equal ones the newest first."""
        if self.state.matures_us > now_us:
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
        """Forget decisions about transactions before ``day``, and what is known: ``at_least`` so much, if there is."""
        self.segments.forget_before(day)
        start, end = self.state.swept, day_key(_KNOWN_DAY, day)
        if start >= end:
            return
        self.state.swept = end
        keys: list[bytes] = []
        for key, _ in self._store.scan(start, end):
            if len(keys) >= at_least:
                self.state.swept = key
                break
            keys.append(key)
        entries = self.segments.find([key[_DAY_BYTES:] for key in keys])
        for key in keys:
            self._store.delete(key)
            digest = key[_DAY_BYTES:]
            entry = entries.get(digest)
            if entry is None or day_of(entry.event_time_us) < day:
                self._store.delete(_KNOWN + digest)
            else:
                # One that was decided again since, with another time, is forgotten with its own day.
                self._store.put(day_key(_KNOWN_DAY, day_of(entry.event_time_us), digest), b"")

    def contents(self, day: int) -> Iterator[Any]:
        """Yield what is held from ``day`` on, for the digest of a state: the same however it came to be held."""
        yield self.segments.checksum(day)
        known = self._store.scan(_KNOWN, _KNOWN + _AFTER)
        while part := list(islice(known, _READ_AT_ONCE)):
            entries = self.segments.find([key[1:] for key, _ in part])
            for key, packed in part:
                entry = entries.get(key[1:])
                if entry is not None and day_of(entry.event_time_us) >= day:
                    yield key, packed
        groups = [_group(key, packed) for key, packed in self._store.scan(_MATURING, _MATURING + _AFTER)]
        yield [
            (item, rate)
            for item, _, rate in sorted((item, -group.number, group.rate) for group in groups for item in group.items)
        ]

    def _put_group(self, group: _Group) -> None:
        first_us = _time_of(group.items[0])
        key = time_key(_MATURING, first_us, group.number.to_bytes(8, "big"))
        self._store.put(key, _RATE.pack(group.rate) + b"".join(group.items))
        self.state.matures_us = min(self.state.matures_us, first_us)

    def _take_groups(self, now_us: int, at_most: int) -> list[_Group]:
        """Remove the groups that hold the first ``at_most`` of what has matured."""
        groups: list[_Group] = []
        keys, items = [], 0
        start, self.state.matures_us = self.state.matures_us, _NEVER
        for key, packed in self._store.scan(time_key(_MATURING, start), _MATURING + _AFTER):
            first_us, before = int.from_bytes(key[1:9], "big"), key[1:9]
            # Groups overlap little, so that this is counted once or twice.
            if first_us > now_us or (
                items >= at_most and sum(bisect_left(group.items, before) for group in groups) >= at_most
            ):
                self.state.matures_us = first_us
                break
            groups.append(_group(key, packed))
            keys.append(key)
            items += len(groups[-1].items)
        for key in keys:
            self._store.delete(key)
        return groups


def _group(key: bytes, packed: bytes) -> _Group:
    items = [packed[at : at + _ITEM_BYTES] for at in range(_RATE.size, len(packed), _ITEM_BYTES)]
    return _Group(_RATE.unpack_from(packed)[0], int.from_bytes(key[1 + _TIME_BYTES :], "big"), items)


def _time_of(item: bytes) -> int:
    return int.from_bytes(item[:_TIME_BYTES], "big")
