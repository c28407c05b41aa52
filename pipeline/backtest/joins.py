"""What repeats and labels are recognised by, for one partition of cards: the rules of `pipeline.engine.card`, compiled.

Transactions are remembered in the order of their acceptance, which is also the order in which they are forgotten; a
table finds the latest of a digest. Labels that found nothing wait. One pass goes over records in their order; where a
chunk of them ends makes no difference.
"""

from typing import Any, Final, NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray

from pipeline.engine.card import EARLY_LABEL_PATIENCE_US, NO_TRANSACTION, not_joined
from pipeline.engine.columns import Labels, Reject, digest_keys, identities, no_labels
from pipeline.features.catalogue import US_PER_DAY
from pipeline.learning.labels import NO_LABEL, OUTCOMES, resolve_numbers

IntArray = NDArray[np.signedinteger[Any]]

COUNTS: Final = (*OUTCOMES, "early", "too_late", "unknown_transaction")
"""What became of labels, as the card agent counts it, by number."""
_EARLY, _TOO_LATE, _UNKNOWN = (COUNTS.index(name) for name in ("early", "too_late", "unknown_transaction"))
_LEAST: Final = 1_024
_ENTRY_WORDS: Final = 11
# Words of an entry.
_HIGH, _LOW, _EVENT_US, _NEWEST_US, _MERCHANT, _MERCHANT_2, _PLACE = range(7)
_RANK, _LABELLED_AT_US, _KNOWN, _CHANGES = range(7, 11)
# Words of ``rules``.
_DEDUP_US, _LABEL_US, _PATIENCE_US = range(3)
# Words of ``meta``.
_NEWEST, _ENTRIES = range(2)
"""``_NEWEST``: how far the partition's event time has come; ``_ENTRIES``: how many entries there are."""


class Records(NamedTuple):
    """A chunk's transactions and labels of one partition; n and m of them."""

    digest: NDArray[np.int64]
    """Shape (n, 2): `digest_keys`."""
    event_time_us: NDArray[np.int64]
    merchant: NDArray[np.int64]
    """Shape (n, 2): `name_keys` of the merchants."""
    merchant_partition: NDArray[np.int64]
    position: NDArray[np.int64]
    """Shape (n,): where each transaction stands among all records of the chunk."""
    labels: Labels
    label_position: NDArray[np.int64]
    """Shape (m,)."""


class Following(NamedTuple):
    """Labels that change what is known, as they stand in the merchants' log; shape (k,) each."""

    position: NDArray[np.int64]
    """That of the record behind which each stands: its own, or its transaction's."""
    identity: NDArray[np.uint64]
    event_time_us: NDArray[np.int64]
    merchant: NDArray[np.int64]
    """Shape (k, 2)."""
    merchant_partition: NDArray[np.int64]
    known: NDArray[np.int64]
    """Index of `pipeline.learning.labels.KNOWN`."""
    known_at_us: NDArray[np.int64]


class Joined(NamedTuple):
    """What a pass found."""

    accepted: NDArray[np.bool_]
    """Shape (n,): what is no repeat."""
    newest_us: NDArray[np.int64]
    """Shape (n,): how far the partition's event time has come with each transaction."""
    following: Following
    rejects: list[Reject]
    """Labels that have waited in vain; in no stated order."""


class CardIndex:
    """Accepted transactions of one partition, and the labels that wait for theirs."""

    def __init__(self, dedup_horizon_us: int, label_horizon_us: int) -> None:
        self._rules = np.array([dedup_horizon_us, label_horizon_us, EARLY_LABEL_PATIENCE_US], np.int64)
        self._meta = np.zeros(2, np.int64)
        self._entries = np.zeros((_LEAST, _ENTRY_WORDS), np.int64)
        self._table = np.zeros(2 * _LEAST, np.int32)
        self._waiting = no_labels()
        self._waiting_keys: tuple[NDArray[np.int64], NDArray[np.uint64]] = (
            np.empty((0, 2), np.int64),
            np.empty(0, np.uint64),
        )
        self.counts = np.zeros(len(COUNTS), np.int64)
        """What became of labels so far, by number of `COUNTS`."""

    @property
    def newest_us(self) -> int:
        """How far event time has come."""
        return int(self._meta[_NEWEST])

    @property
    def transactions(self) -> int:
        """How many are remembered; some may be due to be forgotten."""
        return int(self._meta[_ENTRIES])

    @property
    def capacity(self) -> int:
        """For how many there is room; each takes 96 bytes."""
        return len(self._entries)

    def join(self, records: Records) -> Joined:
        """Accept what is no repeat, and let labels follow their transactions; records in their order."""
        self._make_room(len(records.digest))
        held, labels = len(self._waiting), records.labels
        digest, identity = self._waiting_keys
        if len(labels):
            digest = np.concatenate([digest, digest_keys(labels.card_id, labels.transaction_id)])
            identity = np.concatenate([identity, identities(labels.card_id, labels.transaction_id)])
            labels = Labels.concat([self._waiting, labels]) if held else labels
        else:
            labels = self._waiting
        n, m = len(records.digest), len(labels)
        accepted, newest_us, waits = np.zeros(n, np.bool_), np.empty(n, np.int64), np.ones(m, np.bool_)
        follows = np.empty((m, 7), np.int64)
        table = np.zeros(_power_of_two(2 * m) if m else 0, np.int32)
        chains = np.full((m, 2), -1, np.int64)
        # A label stands before the first transaction behind it; those that wait already stand before all.
        positions = np.concatenate([np.full(held, -1), records.label_position])
        k = _join(
            self._rules, self._meta, self._entries, self._table, table, chains, held,
            records.digest, records.event_time_us, records.merchant, records.merchant_partition, records.position,
            digest, positions, labels.rank, labels.known, labels.labelled_at_us, labels.known_at_us,
            accepted, newest_us, waits, follows, self.counts,
        )  # fmt: skip
        of = follows[:k, 1]
        following = Following(
            follows[:k, 0], identity[of], follows[:k, 2], follows[:k, 3:5], follows[:k, 5], follows[:k, 6],
            labels.known_at_us[of],
        )  # fmt: skip
        return Joined(accepted, newest_us, following, self._keep_waiting(labels, digest, identity, waits))

    def _keep_waiting(
        self, labels: Labels, digest: NDArray[np.int64], identity: NDArray[np.uint64], waits: NDArray[np.bool_]
    ) -> list[Reject]:
        """Keep the labels that wait, but for those that have waited for too long."""
        in_vain = waits & (labels.known_at_us < self.newest_us - EARLY_LABEL_PATIENCE_US)
        given_up = labels.take(in_vain) if in_vain.any() else no_labels()
        self.counts[_UNKNOWN] += len(given_up)
        kept = waits & ~in_vain
        self._waiting = labels.take(kept) if kept.any() else no_labels()
        self._waiting_keys = (digest[kept], identity[kept])
        horizon_us = int(self._rules[_LABEL_US])
        names = zip(given_up.transaction_id.to_pylist(), given_up.card_id.to_pylist(), strict=True)
        texts = [not_joined(transaction_id, card_id, horizon_us) for transaction_id, card_id in names]
        rows = zip(given_up.row.tolist(), texts, given_up.known_at_us.tolist(), strict=True)
        return [Reject("label", row, NO_TRANSACTION, text, known_at_us) for row, text, known_at_us in rows]

    def _make_room(self, arriving: int) -> None:
        entries, count = self._entries, self.transactions
        if count + arriving <= len(entries):
            return
        first = int(_forgotten(self._rules, self.newest_us)) * US_PER_DAY
        # In the order of acceptance, in which the event time that had been reached only grows.
        gone = int(np.searchsorted(entries[:count, _NEWEST_US], first))
        kept = entries[gone:count]
        size = len(entries)
        while 2 * (len(kept) + arriving) > size:
            size *= 2
        self._entries = np.zeros((size, _ENTRY_WORDS), np.int64)
        self._entries[: len(kept)] = kept
        self._meta[_ENTRIES] = len(kept)
        self._table = np.zeros(2 * size, np.int32)
        _fill(self._table, self._entries, len(kept))


def _power_of_two(least: int) -> int:
    return 1 << (least - 1).bit_length()


@numba.njit(cache=True)  # type: ignore[untyped-decorator]
def _slot(table: IntArray, rows: IntArray, high: int, low: int) -> int:
    """Where in ``table`` (row + 1, 0 for none) the row of a digest stands, or would."""
    mask = len(table) - 1
    slot = low & mask
    while table[slot] != 0:
        row = table[slot] - 1
        if rows[row, 0] == high and rows[row, 1] == low:
            break
        slot = (slot + 1) & mask
    return slot


@numba.njit(cache=True)  # type: ignore[untyped-decorator]
def _fill(table: IntArray, rows: IntArray, count: int) -> None:
    for row in range(count):
        table[_slot(table, rows, rows[row, 0], rows[row, 1])] = row + 1


@numba.njit(cache=True)  # type: ignore[untyped-decorator]
def _forgotten(rules: IntArray, newest_us: int) -> int:
    """`CardPartition._forgotten_day`; under rules that do not change it is told by the newest event time alone."""
    day: int = (newest_us - max(rules[_DEDUP_US], rules[_LABEL_US]) - 2 * rules[_PATIENCE_US]) // US_PER_DAY
    return max(0, day)


@numba.njit(cache=True)  # type: ignore[untyped-decorator]
def _join(
    rules: IntArray, meta: IntArray, entries: IntArray, table: IntArray, waiting: IntArray, chains: IntArray, held: int,
    digest: IntArray, event_us: IntArray, merchant: IntArray, merchant_partition: IntArray, position: IntArray,
    label_digest: IntArray, label_position: IntArray, rank: IntArray, known: IntArray, labelled_at_us: IntArray,
    known_at_us: IntArray, accepted: NDArray[np.bool_], newest_us: IntArray, waits: NDArray[np.bool_],
    follows: IntArray, counts: IntArray,
) -> int:  # fmt: skip
    """Work on all records; returns how many rows of ``follows`` there are."""
    n, m = len(digest), len(label_digest)
    followed = 0
    for j in range(held):
        _wait(waiting, chains, label_digest, j)
    waiting_count = held
    i, j = 0, held
    while i < n or j < m:
        if j < m and (i >= n or label_position[j] < position[i]):
            entry = table[_slot(table, entries, label_digest[j, 0], label_digest[j, 1])] - 1
            if entry >= 0 and _finds(rules, meta, entries[entry], known_at_us[j]):
                waits[j] = False
                followed += _apply(
                    rules, entries[entry], j, label_position[j], rank[j], known[j], labelled_at_us[j], known_at_us[j],
                    follows[followed:], counts,
                )  # fmt: skip
            else:
                _wait(waiting, chains, label_digest, j)
                waiting_count += 1
                late = (
                    entry >= 0
                    and entries[entry, _NEWEST_US] // US_PER_DAY >= _forgotten(rules, meta[_NEWEST])
                    and known_at_us[j] - entries[entry, _EVENT_US] > rules[_LABEL_US]
                )
                counts[_TOO_LATE if late else _EARLY] += 1
            j += 1
            continue
        slot = _slot(table, entries, digest[i, 0], digest[i, 1])
        before = table[slot] - 1
        if (
            before >= 0
            and meta[_NEWEST] - entries[before, _NEWEST_US] <= rules[_DEDUP_US]
            and entries[before, _NEWEST_US] // US_PER_DAY >= _forgotten(rules, meta[_NEWEST])
        ):
            newest_us[i] = meta[_NEWEST]
            i += 1
            continue
        accepted[i] = True
        meta[_NEWEST] = newest_us[i] = max(meta[_NEWEST], event_us[i])
        entry = meta[_ENTRIES]
        meta[_ENTRIES] += 1
        row = entries[entry]
        row[_HIGH], row[_LOW] = digest[i, 0], digest[i, 1]
        row[_EVENT_US], row[_NEWEST_US] = event_us[i], meta[_NEWEST]
        row[_MERCHANT], row[_MERCHANT_2], row[_PLACE] = merchant[i, 0], merchant[i, 1], merchant_partition[i]
        row[_RANK], row[_LABELLED_AT_US], row[_KNOWN], row[_CHANGES] = NO_LABEL, 0, 0, 0
        table[slot] = entry + 1
        if waiting_count:
            w = waiting[_slot(waiting, label_digest, digest[i, 0], digest[i, 1])] - 1
            while w >= 0:
                if waits[w] and _finds(rules, meta, row, known_at_us[w]):
                    waits[w] = False
                    followed += _apply(
                        rules, row, w, position[i], rank[w], known[w], labelled_at_us[w], known_at_us[w],
                        follows[followed:], counts,
                    )  # fmt: skip
                w = chains[w, 0]
        i += 1
    return followed


@numba.njit(cache=True)  # type: ignore[untyped-decorator]
def _wait(waiting: IntArray, chains: IntArray, label_digest: IntArray, j: int) -> None:
    """Let label ``j`` wait behind the others of its transaction."""
    slot = _slot(waiting, label_digest, label_digest[j, 0], label_digest[j, 1])
    first = waiting[slot] - 1
    if first < 0:
        waiting[slot] = j + 1
        chains[j, 1] = j
    else:
        chains[chains[first, 1], 0] = j
        chains[first, 1] = j


@numba.njit(cache=True)  # type: ignore[untyped-decorator]
def _finds(rules: IntArray, meta: IntArray, entry: IntArray, known_at_us: int) -> bool:
    """`CardPartition._finds`."""
    last_us = entry[_EVENT_US] + rules[_LABEL_US] + rules[_PATIENCE_US]
    remembered: bool = entry[_NEWEST_US] // US_PER_DAY >= _forgotten(rules, meta[_NEWEST])
    in_time: bool = entry[_NEWEST_US] - rules[_PATIENCE_US] <= known_at_us <= last_us
    return remembered and in_time


@numba.njit(cache=True)  # type: ignore[untyped-decorator]
def _apply(
    rules: IntArray, entry: IntArray, label: int, position: int, rank: int, known: int, labelled_at_us: int,
    known_at_us: int, follows: IntArray, counts: IntArray,
) -> int:  # fmt: skip
    """`CardPartition._apply`: 1 where the label travels on, which is then the first of ``follows``."""
    if known_at_us - entry[_EVENT_US] > rules[_LABEL_US]:
        counts[_TOO_LATE] += 1
        return 0
    before = entry[_KNOWN]
    state, outcome = resolve_numbers(
        (entry[_RANK], entry[_LABELLED_AT_US], entry[_KNOWN], entry[_CHANGES]), rank, labelled_at_us, known
    )
    entry[_RANK], entry[_LABELLED_AT_US], entry[_KNOWN], entry[_CHANGES] = state
    counts[outcome] += 1
    if state[2] == before:
        return 0
    row = follows[0]
    row[0], row[1], row[2] = position, label, entry[_EVENT_US]
    row[3], row[4], row[5], row[6] = entry[_MERCHANT], entry[_MERCHANT_2], entry[_PLACE], state[2]
    return 1
