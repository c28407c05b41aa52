"""Repeats, and labels that find their transaction: the rules, compiled, over the arrays of one batch.

One pass goes over transactions and labels in the order of their positions. It reads accepted transactions from a table
of entries and adds to it. `transaction_index` fills that table and keeps what the pass has changed.
Where a batch ends makes no difference.
"""

from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.engine.cards.pending import LabelBatch
from pipeline.engine.partition_state.wait_clock import EARLY_LABEL_GRACE_US, labels_from
from pipeline.features.compiled import compiled
from pipeline.learning.labels import OUTCOMES, UNSEEN, resolve_numbers
from schemas.times import US_PER_DAY

IntArray = NDArray[np.signedinteger[Any]]

NO_TRANSACTION: Final = "label_without_transaction"
"""Code of the dead letter of a label that has waited in vain."""
NO_ROOM: Final = "too_many_waiting"
"""Code of the dead letter of a label that cannot wait, since too many do."""
DUPLICATE_DIFFERS: Final = "repeat_differs"
"""Code of the dead letter of a repeat that says something else than the transaction that was accepted."""
SAME: Final = -1
COUNTS: Final = (*OUTCOMES, "early", "too_late", "unknown_transaction")
"""Outcomes of labels, by number."""
UNKNOWN: Final = COUNTS.index("unknown_transaction")
_EARLY, _TOO_LATE = (COUNTS.index(name) for name in ("early", "too_late"))

ENTRY_WORDS: Final = 11
HIGH, LOW, EVENT_US, STREAM_TIME_US, WAIT_US, CONTENT, SOURCE, RANK, LABELLED_AT_US, KNOWN, CHANGES = range(ENTRY_WORDS)
"""Words of an entry: digest, event time, the partition's event time and wait clock at acceptance, content, source, and
the label that holds."""
_UNSEEN_RANK, _UNSEEN_AT, _UNSEEN_KNOWN, _UNSEEN_CHANGES = UNSEEN

DUPLICATE, ACCEPTED, ACCEPTED_AGAIN = range(3)
"""Fate of a transaction; it is accepted again once the time of its deduplication has passed."""
# Words of ``config``.
_DEDUP_US, _LABEL_US = range(2)
# Words of ``meta``.
NEWEST, FIRST_DAY, COUNT, WAITED = range(4)
"""Indexes of: the stream time; the first day of acceptance that is remembered; the number of entries; the wait
clock."""
# Columns of ``follows``.
F_POSITION, F_LABEL, F_ENTRY, F_KNOWN = range(4)
# Columns of ``journal``.
JOURNAL_ENTRY: Final = 0
JOURNAL_WORDS: Final = 5


class Retention(NamedTuple):
    """Retention of transactions, in microseconds of event time."""

    dedup_us: int
    """Time for which a repeat of a transaction is recognised."""
    label_us: int
    """Longest time from a transaction to a label that counts."""


class Clock(NamedTuple):
    """Progress of one partition."""

    stream_time_us: int = 0
    """The newest event time of its accepted transactions."""
    first_day: int = 0
    """The first day of acceptance, since 1970, that is remembered; it only grows, whatever the retention becomes.

    It lies so far behind both retention that a label which finds nothing because of it has long waited in vain.
    """
    waited_us: int = 0
    """What the wait clock shows, as far as a transaction was accepted."""


class Entries:
    """Accepted transactions in the order of their acceptance, and the latest of each digest."""

    __slots__ = ("count", "rows", "table")

    def __init__(self, size: int) -> None:
        """Make room for ``size`` entries."""
        self.rows = np.zeros((size, ENTRY_WORDS), np.int64)
        self.table = np.zeros(_table_size(size), np.int32)
        self.count = 0

    def fill(self, count: int) -> None:
        """Take the first ``count`` rows, which have been written, for the entries."""
        self.count = count
        self.table[:] = 0
        _fill(self.table, self.rows, count)


class Arrivals(NamedTuple):
    """n transactions and m labels of one partition, in one order by position."""

    digest: NDArray[np.int64]
    """Shape (n, 2): `pipeline.engine.records.columns.digest_keys`."""
    event_time_us: NDArray[np.int64]
    position: NDArray[np.int64]
    """Shape (n,): where each transaction stands among all records; ascending."""
    content: NDArray[np.int64]
    """Shape (n,): `pipeline.engine.records.columns.content_keys`."""
    source: NDArray[np.int64]
    """Shape (n,): a number of each transaction's record, 0 or more, by which a repeat finds it again."""
    home: int
    """Number of the partition."""
    feed: NDArray[np.int64]
    """Shape (n,): the partition of ``transactions`` that each was sent to."""
    merchants: NDArray[Any]
    """Merchants of the transactions, as the index keeps them."""
    labels: LabelBatch
    label_position: NDArray[np.int64]
    """Shape (m,): ascending."""


class PassResult(NamedTuple):
    """Result of a pass."""

    fate: NDArray[np.int8]
    """Shape (n,): `DUPLICATE`, `ACCEPTED` or `ACCEPTED_AGAIN`."""
    differs: NDArray[np.int64]
    """Shape (n,): of a repeat with other content, ``source`` of the transaction that was accepted; else `SAME`."""
    clock: Clock
    follows: NDArray[np.int64]
    """Shape (k, 4): of each label that changes what is known, the position of the record behind which it stands,
    the label, its transaction's entry, and what is known now."""
    waits: NDArray[np.bool_]
    """Shape (m,): which labels wait, or go on waiting."""
    journal: NDArray[np.int64]
    """Shape (c, 5): entries whose label state changed, each with the state before; the first change comes first."""
    counts: NDArray[np.int64]
    """Shape (len(COUNTS),): what became of labels."""


def join(
    retention: Retention,
    clock: Clock,
    entries: Entries,
    given: Arrivals,
    wait_us: NDArray[np.int64],
    batch: LabelBatch,
) -> PassResult:
    """Accept what is no repeat, and let labels find their transactions.

    Args:
        retention: The retention of this batch.
        clock: How far the partition has come.
        entries: What is known of the digests in ``given`` and ``batch``, with room for n more: the accepted ones.
        given: The transactions.
        wait_us: Shape (n,): what the wait clock shows with each transaction.
        batch: m labels: those that have waited already, and behind them those of ``given``.
    """
    labels, n, m = batch.labels, len(given.digest), len(batch.labels)
    meta = np.array([clock.stream_time_us, clock.first_day, entries.count, clock.waited_us], np.int64)
    fate, differs, counts = np.zeros(n, np.int8), np.full(n, SAME), np.zeros(len(COUNTS), np.int64)
    tables = _LabelTables.with_room(m) if m else _NO_TABLES
    held, label_position = m - len(given.label_position), given.label_position
    if held:
        label_position = np.concatenate([np.full(held, -1), label_position])
    waits, follows, journal = tables.waits, tables.follows, tables.journal
    followed, changed = _join(
        np.array(retention, np.int64), meta, entries.rows, entries.table, tables.pending, tables.chains, held,
        given.digest, given.event_time_us, given.position, given.content, given.source, wait_us,
        batch.digest, label_position, labels.rank, labels.known, labels.labelled_at_us, labels.known_at_us,
        fate, differs, waits, follows, journal, counts,
    )  # fmt: skip
    entries.count = int(meta[COUNT])
    return PassResult(
        fate,
        differs,
        Clock(int(meta[NEWEST]), int(meta[FIRST_DAY]), int(meta[WAITED])),
        follows[:followed],
        waits,
        journal[:changed],
        counts,
    )


def _table_size(entries: int) -> int:
    """A power of two that leaves half of a table free."""
    return 1 << max(2 * entries - 1, 1).bit_length()


class _LabelTables(NamedTuple):
    """Arrays in which a pass writes about m labels."""

    waits: NDArray[np.bool_]
    follows: NDArray[np.int64]
    journal: NDArray[np.int64]
    pending: NDArray[np.int32]
    chains: NDArray[np.int64]

    @classmethod
    def with_room(cls, m: int) -> "_LabelTables":
        """Return tables of ``m`` labels."""
        return cls(
            np.ones(m, np.bool_),
            np.empty((m, 4), np.int64),
            np.empty((m, JOURNAL_WORDS), np.int64),
            np.zeros(_table_size(m) if m else 1, np.int32),
            np.full((m, 2), -1, np.int64),
        )


_NO_TABLES: Final = _LabelTables.with_room(0)
"""Tables for most batches, in which nothing is written to them."""


@compiled
def _slot(table: IntArray, rows: IntArray, high: int, low: int) -> int:
    """Return the slot of ``table`` (row + 1, 0 for none) in which the row of a digest stands, or would."""
    mask = len(table) - 1
    slot = low & mask
    while table[slot] != 0:
        row = table[slot] - 1
        if rows[row, 0] == high and rows[row, 1] == low:
            break
        slot = (slot + 1) & mask
    return slot


@compiled
def _fill(table: IntArray, rows: IntArray, count: int) -> None:
    for row in range(count):
        table[_slot(table, rows, rows[row, 0], rows[row, 1])] = row + 1


@compiled
def _forgotten(config: IntArray, meta: IntArray) -> int:
    retention_us = max(config[_DEDUP_US], config[_LABEL_US])
    day: int = (meta[WAITED] - retention_us - 2 * EARLY_LABEL_GRACE_US) // US_PER_DAY
    first: int = max(meta[FIRST_DAY], day)
    return first


@compiled
def _remembered(config: IntArray, meta: IntArray, entry: IntArray) -> bool:
    remembered: bool = entry[STREAM_TIME_US] // US_PER_DAY >= _forgotten(config, meta)
    return remembered


@compiled
def _is_late(config: IntArray, entry: IntArray, known_at_us: int) -> bool:
    late: bool = known_at_us - entry[EVENT_US] > config[_LABEL_US]
    return late


@compiled
def _finds(config: IntArray, meta: IntArray, entry: IntArray, known_at_us: int) -> bool:
    """Return True if a label finds its transaction: a rule on times, whichever of the two is read first.

    A label that has been given up before a late transaction came, or that came after its transaction was forgotten,
    finds none either where a replay meets them the other way round.
    """
    last_us = entry[EVENT_US] + config[_LABEL_US] + EARLY_LABEL_GRACE_US
    in_time: bool = labels_from(entry[EVENT_US], entry[WAIT_US]) <= known_at_us <= last_us
    return in_time and _remembered(config, meta, entry)


@compiled
def _join(
    config: IntArray, meta: IntArray, entries: IntArray, table: IntArray, pending: IntArray, chains: IntArray,
    held: int,
    digest: IntArray, event_us: IntArray, position: IntArray, content: IntArray, source: IntArray, wait_us: IntArray,
    label_digest: IntArray, label_position: IntArray, rank: IntArray, known: IntArray, labelled_at_us: IntArray,
    known_at_us: IntArray, fate: IntArray, differs: IntArray, waits: NDArray[np.bool_], follows: IntArray,
    journal: IntArray, counts: IntArray,
) -> tuple[int, int]:  # fmt: skip
    """Work on all records; returns how many rows ``follows`` and ``journal`` have."""
    n, m = len(digest), len(label_digest)
    followed = changed = 0
    for j in range(held):
        _wait(pending, chains, label_digest, j)
    pending_count = held
    i, j = 0, held
    while i < n or j < m:
        if j < m and (i >= n or label_position[j] < position[i]):
            entry = table[_slot(table, entries, label_digest[j, 0], label_digest[j, 1])] - 1
            if entry >= 0 and _finds(config, meta, entries[entry], known_at_us[j]):
                waits[j] = False
                travels, changes = _apply(
                    config, entries, entry, j, label_position[j], rank[j], known[j], labelled_at_us[j], known_at_us[j],
                    follows[followed:], journal[changed:], counts,
                )  # fmt: skip
                followed += travels
                changed += changes
            else:
                _wait(pending, chains, label_digest, j)
                pending_count += 1
                late = (
                    entry >= 0
                    and _remembered(config, meta, entries[entry])
                    and _is_late(config, entries[entry], known_at_us[j])
                )
                counts[_TOO_LATE if late else _EARLY] += 1
            j += 1
            continue
        slot = _slot(table, entries, digest[i, 0], digest[i, 1])
        before = table[slot] - 1
        if (
            before >= 0
            and meta[NEWEST] - entries[before, STREAM_TIME_US] <= config[_DEDUP_US]
            and _remembered(config, meta, entries[before])
        ):
            if entries[before, CONTENT] != content[i]:
                differs[i] = entries[before, SOURCE]
            meta[WAITED] = max(meta[WAITED], min(wait_us[i], meta[NEWEST]))
            i += 1
            continue
        fate[i] = ACCEPTED if before < 0 else ACCEPTED_AGAIN
        meta[NEWEST] = max(meta[NEWEST], event_us[i])
        meta[WAITED] = max(meta[WAITED], min(wait_us[i], meta[NEWEST]))
        entry = meta[COUNT]
        meta[COUNT] += 1
        row = entries[entry]
        row[HIGH], row[LOW] = digest[i, 0], digest[i, 1]
        row[EVENT_US], row[STREAM_TIME_US], row[WAIT_US] = event_us[i], meta[NEWEST], meta[WAITED]
        row[CONTENT], row[SOURCE] = content[i], source[i]
        row[RANK], row[LABELLED_AT_US] = _UNSEEN_RANK, _UNSEEN_AT
        row[KNOWN], row[CHANGES] = _UNSEEN_KNOWN, _UNSEEN_CHANGES
        table[slot] = entry + 1
        if pending_count:
            w = pending[_slot(pending, label_digest, digest[i, 0], digest[i, 1])] - 1
            while w >= 0:
                if waits[w] and _finds(config, meta, row, known_at_us[w]):
                    waits[w] = False
                    travels, changes = _apply(
                        config, entries, entry, w, position[i], rank[w], known[w], labelled_at_us[w], known_at_us[w],
                        follows[followed:], journal[changed:], counts,
                    )  # fmt: skip
                    followed += travels
                    changed += changes
                w = chains[w, 0]
        i += 1
    # What is forgotten stays so, under other rules too.
    meta[FIRST_DAY] = _forgotten(config, meta)
    return followed, changed


@compiled
def _wait(pending: IntArray, chains: IntArray, label_digest: IntArray, j: int) -> None:
    """Let label ``j`` wait behind the others of its transaction."""
    slot = _slot(pending, label_digest, label_digest[j, 0], label_digest[j, 1])
    first = pending[slot] - 1
    if first < 0:
        pending[slot] = j + 1
        chains[j, 1] = j
    else:
        chains[chains[first, 1], 0] = j
        chains[first, 1] = j


@compiled
def _apply(
    config: IntArray, entries: IntArray, entry: int, label: int, position: int, rank: int, known: int,
    labelled_at_us: int, known_at_us: int, follows: IntArray, journal: IntArray, counts: IntArray,
) -> tuple[int, int]:  # fmt: skip
    """Let a label change what is known; (1 where it travels on, 1 where the entry changes)."""
    row = entries[entry]
    if _is_late(config, row, known_at_us):
        counts[_TOO_LATE] += 1
        return 0, 0
    before = (row[RANK], row[LABELLED_AT_US], row[KNOWN], row[CHANGES])
    state, outcome = resolve_numbers(before, rank, labelled_at_us, known)
    counts[outcome] += 1
    if state == before:
        return 0, 0
    noted = journal[0]
    noted[0], noted[1], noted[2], noted[3], noted[4] = entry, before[0], before[1], before[2], before[3]
    row[RANK], row[LABELLED_AT_US], row[KNOWN], row[CHANGES] = state
    if state[2] == before[2]:
        return 0, 1
    joined = follows[0]
    joined[0], joined[1], joined[2], joined[3] = position, label, entry, state[2]
    return 1, 1
