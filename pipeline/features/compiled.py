"""The compiled kernel: timelines of events and labels in flat arrays, and the features read off them.

All compiled functions of the kernel stand in this one module, because Numba's cache notices changes of a function's own
file only: where another module compiles in what stands here (`wide_product`), a change here needs an empty cache.
``docs/features.md`` defines what they compute; `pipeline.features.kernel` is the way in.

A *timeline* holds one entity's events or labels, ordered by event time (of the same instant, by log), in a chain of
*chunks*: a record each, and rows in a shared arena. Few events lie in one chunk, whose size follows them; many in
chunks that know their totals, and those of each run of rows. The windows are read from the newest event backwards, one
within the next: by rows, by runs and by whole chunks, as far as each lies in the window. Labels are cumulative within
their chunk: what a window holds of one is a difference of two rows, found by binary search. Chunks are taken from the
arena in the order of need, so that old events lie on pages that nothing touches until they expire.

What is overwritten between two commits is copied to a journal first; `take_back` copies it back, last one first.
"""

from collections.abc import Callable
from typing import Any, Final, NamedTuple, TypeVar, cast

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from pipeline.features.catalogue import (
    EPISODE_US,
    FRAUD_RUN_GAP,
    FRAUD_RUN_STEPS,
    HORIZON_US,
    LABEL_MATURITY_US,
    LONGEST_WINDOW_US,
    MERCHANT_OUTLIER_MINIMUM_EVENTS,
    MERCHANT_OUTLIER_RATIO,
    OUTLIER_MINIMUM_EVENTS,
    OUTLIER_RATIO,
    RISK_PRIOR_RATE,
    RISK_PRIOR_STRENGTH,
    TRANSACTION_FEATURES,
    USUAL_EVENTS,
    WINDOWS_US,
)
from pipeline.features.columns import PAGE_ITEMS
from schemas.times import US_PER_DAY, US_PER_SECOND

F = TypeVar("F", bound=Callable[..., Any])

NEVER: Final = np.iinfo(np.int64).max
NOTHING_YET_US: Final = -(2**62)
"""The newest event time of a partition without transactions: so early that nothing lies behind its horizon."""

SMALLEST_CHUNK: Final = np.int64(4)
LARGEST_CHUNK: Final = 2_048
LARGEST_BLOCK: Final = 64
"""A timeline of so few events that they fit into a chunk of this capacity lies in one chunk, that grows and shrinks."""
ROWS_RESERVE: Final = LARGEST_CHUNK + LARGEST_CHUNK // 4
"""Rows of an arena that one row can need at most: the largest chunk and what is kept behind its rows."""
_RUN: Final = 16
_RUN_SHIFT: Final = 4
_LEAST_WITH_TOTALS: Final = 64
"""Chunks of events of this capacity or more keep their totals, and those of each run of rows, behind them."""

# Numbers that the state needs besides its tables.
NEWEST: Final = 0
SLOTS_END: Final = 1
CHUNKS_END: Final = 2
EVENTS_END: Final = 3
LABEL_CHUNKS_END: Final = 4
LABELS_END: Final = 5
FREE_SLOT: Final = 6
CURSOR: Final = 7
ENTITIES: Final = 8
JOURNAL_END: Final = 9
HELD_EVENTS: Final = 10
HELD_LABELS: Final = 11
_FREE_CHUNKS: Final = 16
_SIZE_CLASSES: Final = 16
META_WORDS: Final = 48

# Constants that are arguments of compiled functions are NumPy's integers: of Python's, Numba would compile each
# function once for each value.
_NONE: Final = np.int64(0)

# The two kinds of timeline; what belongs to labels stands one step further on.
EVENTS: Final = np.int64(0)
LABELS: Final = np.int64(1)

# A slot: one entity. Its key are 128 bits, a free one has FREE as its tail and the next free one as its head.
SLOT_WORDS: Final = np.int64(8)
_KEY_HIGH: Final = 0
_KEY_LOW: Final = 1
_HEAD: Final = 2
_TAIL: Final = 3
_HELD: Final = 4
_CASE_START: Final = 5
_CASE_SEQUENCE: Final = 6
_FREE: Final = -1
_KIND_STEP: Final = 3
_TAG_SHIFT: Final = 32
_SLOT_MASK: Final = np.int64(2**_TAG_SHIFT - 1)

# A chunk; number 0 stands for none.
# Its second half, a cache line of its own, are totals that small chunks of events do not have.
CHUNK_WORDS: Final = np.int64(16)
_LINE_WORDS: Final = np.int64(8)
_START: Final = 0
_CAPACITY: Final = 1
_LENGTH: Final = 2
_PREVIOUS: Final = 3
_NEXT: Final = 4
_FIRST: Final = 5
_LAST: Final = 6
_TOTALS: Final = 8
_KNOWN: Final = 8
_FRAUDS: Final = 9
_LATEST_KNOWN_AT: Final = 10
_CORRECTED: Final = 11
_UNEXPLAINED: Final = 12

# Totals of the events of a chunk or of a run: extremes, sum, squares in 128 bits, number and sum of the flagged.
TOTALS_WORDS: Final = np.int64(7)
_MAX: Final = 0
_MIN: Final = 1
_SUM: Final = 2
_SQUARE_HIGH: Final = 3
_SQUARE_LOW: Final = 4
_FLAGS: Final = 5
_FLAGGED_SUM: Final = 6

# A row of an event: time, twice the amount and one more where it is flagged; of a card's also the merchant's hash.
CARD_EVENT_WORDS: Final = np.int64(3)
MERCHANT_EVENT_WORDS: Final = np.int64(2)
_E_AMOUNT: Final = 1
_E_OTHER: Final = 2

# A row of a label: its transaction's time and identity, from when and until when it is what is known, its value, and
# cumulative within the chunk: known, frauds, unexplained frauds.
LABEL_WORDS: Final = np.int64(8)
_L_IDENTITY: Final = 1
_L_KNOWN_AT: Final = 2
_L_SUPERSEDED_AT: Final = 3
_L_VALUE: Final = 4
_L_KNOWN: Final = 5
_L_FRAUDS: Final = 6
_L_UNEXPLAINED: Final = 7

# Values of a label; those of frauds are odd.
_UNEXPLAINED_FRAUD: Final = 1
_UNKNOWN: Final = 2
_EXPLAINED_FRAUD: Final = 3

# What an entry of the journal was copied from.
_IN_SLOTS: Final = np.int64(0)
_IN_CHUNKS: Final = np.int64(1)
_IN_ITEMS: Final = np.int64(3)
_NEW_SLOT: Final = 5
JOURNAL_RESERVE: Final = 2 * LARGEST_CHUNK * CARD_EVENT_WORDS
"""Words of the journal that one row can need at most: half a chunk split, half a chunk moved, and records."""

# What a row is computed in.
_FOUND: Final = 0
_ORDERED: Final = 32
_RECENT: Final = _ORDERED + USUAL_EVENTS
_SLOTS_AHEAD: Final = _RECENT + USUAL_EVENTS
_AHEAD: Final = 3
"""Rows from one step of looking ahead to the next."""
_LINES_AHEAD: Final = 16
"""Cache lines of a chunk's newest rows that are fetched ahead at most."""
_ROWS_AHEAD: Final = 4 * _AHEAD
_SLOTS_AHEAD_IN_TURN: Final = 8
"""Slots from the one that `sweep` visits to the one whose first chunk is fetched."""
SCRATCH_WORDS: Final = _SLOTS_AHEAD + _ROWS_AHEAD
_FEW_EVENTS: Final = 8
_USUAL_SHIFT: Final = (USUAL_EVENTS - 1).bit_length()

_WINDOWS: Final = tuple(WINDOWS_US.values())
_N_WINDOWS: Final = len(_WINDOWS)
_N_STATISTICS: Final = 6
_CARD_TAIL: Final = len(TRANSACTION_FEATURES) + _N_WINDOWS * _N_STATISTICS
_MERCHANT_TAIL: Final = _N_WINDOWS * _N_STATISTICS
_PAGE_SHIFT: Final = PAGE_ITEMS.bit_length() - 1
_TWO_64: Final = 18446744073709551616.0
_MAD_TO_SIGMA: Final = 1.4826
_DEVIATION_FLOOR: Final = 0.1
_FORTNIGHT_US: Final = 14 * US_PER_DAY


def compiled(function: F) -> F:
    """Compile with Numba, without the interpreter lock, cached on disk.

    And without counting references: the caller holds all arrays, nothing is allocated inside, and counting them
    in atomic steps at every call between the small functions took two thirds of the time.
    """
    return cast(F, numba.njit(cache=True, nogil=True, error_model="numpy", _nrt=False)(function))


def inlined(function: F) -> F:
    """The same, for small functions that are called for every row: the call would cost more than what they do."""
    options = {"cache": True, "nogil": True, "error_model": "numpy", "_nrt": False, "forceinline": True}
    return cast(F, numba.njit(**options)(function))


class State(NamedTuple):
    """All arrays of one partition's windows. Tables are rows of 64-bit words; ``*_dirty`` has a byte a page."""

    meta: NDArray[np.int64]
    places: NDArray[np.int64]
    """Slots by key, in open addressing with linear probing: the slot in the low half of a word, in the high half the
    same as in the key's first word, so that other keys' slots are not looked at; 0: none. Its size is a power of two.
    """
    journal: NDArray[np.int64]
    scratch: NDArray[np.int64]
    slots: NDArray[np.int64]
    chunks: NDArray[np.int64]
    events: NDArray[np.int64]
    label_chunks: NDArray[np.int64]
    labels: NDArray[np.int64]
    slots_dirty: NDArray[np.uint8]
    chunks_dirty: NDArray[np.uint8]
    events_dirty: NDArray[np.uint8]
    label_chunks_dirty: NDArray[np.uint8]
    labels_dirty: NDArray[np.uint8]


@intrinsic  # type: ignore[untyped-decorator]
def wide_product(_typing: Any, a: Any, b: Any) -> Any:
    """128-bit product (high, low) of two unsigned 64-bit integers: one instruction, which Python's syntax has not."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        wide, word = ir.IntType(128), ir.IntType(64)
        product = builder.mul(builder.zext(arguments[0], wide), builder.zext(arguments[1], wide))
        high = builder.trunc(builder.lshr(product, ir.Constant(wide, 64)), word)
        return context.make_tuple(builder, signature.return_type, (high, builder.trunc(product, word)))

    return types.UniTuple(a, 2)(a, b), generate


@intrinsic  # type: ignore[untyped-decorator]
def _prefetch(_typing: Any, array: Any, index: Any) -> Any:
    """Have the cache line of an item of an array fetched, without waiting for it."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        held = context.make_array(signature.args[0])(context, builder, arguments[0])
        address = builder.bitcast(builder.gep(held.data, [arguments[1]]), ir.IntType(8).as_pointer())
        flag = ir.IntType(32)
        fetch = builder.module.declare_intrinsic(
            "llvm.prefetch", [address.type], ir.FunctionType(ir.VoidType(), [address.type, flag, flag, flag])
        )
        # To read, to be kept in all caches, of data.
        builder.call(fetch, [address, ir.Constant(flag, 0), ir.Constant(flag, 3), ir.Constant(flag, 1)])
        return context.get_dummy_value()

    return types.void(array, index), generate


@inlined
def _plus(a_high: Any, a_low: Any, b_high: Any, b_low: Any) -> Any:
    """128-bit sum; the words are signed here and everywhere in the tables, and count as unsigned."""
    low = a_low + b_low
    return a_high + b_high + (1 if np.uint64(low) < np.uint64(b_low) else 0), low


@inlined
def _standard_deviation(count: Any, total: Any, signed_high: Any, signed_low: Any) -> float:
    """Population standard deviation from exact sums: sqrt(n * sum(a^2) - sum(a)^2) / n."""
    n, high, low = np.uint64(count), np.uint64(signed_high), np.uint64(signed_low)
    scaled_high, scaled_low = wide_product(n, low)
    scaled_high = scaled_high + n * high
    square_high, square_low = wide_product(np.uint64(total), np.uint64(total))
    borrow = np.uint64(1) if scaled_low < square_low else np.uint64(0)
    numerator = np.float64(scaled_high - square_high - borrow) * _TWO_64 + np.float64(scaled_low - square_low)
    return float(np.sqrt(numerator) / count)


@inlined
def _mark(dirty: Any, start: Any, words: Any) -> None:
    for page in range(start >> _PAGE_SHIFT, ((start + words - 1) >> _PAGE_SHIFT) + 1):
        dirty[page] = 1


@inlined
def _save(state: State, source: Any, table: Any, dirty: Any, start: Any, words: Any) -> None:
    """Copy words that are about to be overwritten to the journal, and mark their pages."""
    if words <= 0:
        return
    journal = state.journal
    end = state.meta[JOURNAL_END]
    for k in range(words):
        journal[end + k] = table[start + k]
    journal[end + words] = source
    journal[end + words + 1] = start
    journal[end + words + 2] = words
    state.meta[JOURNAL_END] = end + words + 3
    _mark(dirty, start, words)


@inlined
def _tables(state: State, kind: Any) -> Any:
    """(chunks, items, marks of the chunks' pages, marks of the items' pages) of one kind of timeline."""
    if kind == EVENTS:
        return state.chunks, state.events, state.chunks_dirty, state.events_dirty
    return state.label_chunks, state.labels, state.label_chunks_dirty, state.labels_dirty


@inlined
def _find(state: State, high: Any, low: Any) -> Any:
    """(slot of a key or 0, its place in the index or the free one where it would go)."""
    places, slots = state.places, state.slots
    mask = places.shape[0] - 1
    at = low & mask
    while True:
        place = places[at]
        if place == 0:
            return np.int64(0), at
        if (place ^ high) >> _TAG_SHIFT == 0:
            slot = place & _SLOT_MASK
            if slots[slot * SLOT_WORDS + _KEY_LOW] == low and slots[slot * SLOT_WORDS + _KEY_HIGH] == high:
                return slot, at
        at = (at + 1) & mask


@inlined
def _entry(high: Any, slot: Any) -> Any:
    """Return the index entry of a slot whose key begins with ``high``."""
    return (high & ~_SLOT_MASK) | slot


@inlined
def _look_ahead(state: State, kind: Any, words: Any, keys: Any, i: Any, slots_ahead: Any) -> None:
    """Have fetched what the rows behind row ``i`` will read: a step of the way from key to events for each of them.

    With many entities each step is a cache miss that the next step waits for; steps of several rows wait together.
    """
    n, mask = keys.shape[0], state.places.shape[0] - 1
    chunks, items, _, _ = _tables(state, kind)
    tail = _TAIL + _KIND_STEP * kind
    j = i + 5 * _AHEAD
    if j < n:
        _prefetch(state.places, keys[j, 1] & mask)
    j = i + 4 * _AHEAD
    if j < n:
        _prefetch(state.slots, (state.places[keys[j, 1] & mask] & _SLOT_MASK) * SLOT_WORDS)
    j = i + 3 * _AHEAD
    if j < n:
        slot = _find(state, keys[j, 0], keys[j, 1])[0]
        slots_ahead[j % _ROWS_AHEAD] = slot
        _prefetch(chunks, state.slots[slot * SLOT_WORDS + tail] * CHUNK_WORDS)
    for step in range(2, 0, -1):
        j = i + step * _AHEAD
        if j < n:
            chunk = state.slots[slots_ahead[j % _ROWS_AHEAD] * SLOT_WORDS + tail]
            if step == 1:
                chunk = chunks[chunk * CHUNK_WORDS + _PREVIOUS]
                if chunk == 0:
                    continue
            record = chunk * CHUNK_WORDS
            start = chunks[record + _START] * words
            end = start + (chunks[record + _LENGTH] + 1) * words
            for k in range(max(start, end - _LINES_AHEAD * _LINE_WORDS), end, _LINE_WORDS):
                _prefetch(items, k)
            _prefetch(items, end - 1)
            if kind == EVENTS and chunks[record + _CAPACITY] >= _LEAST_WITH_TOTALS:
                _prefetch(chunks, record + _TOTALS)
                runs = start + chunks[record + _CAPACITY] * words
                end = runs + ((chunks[record + _LENGTH] >> _RUN_SHIFT) + 1) * TOTALS_WORDS
                for k in range(max(runs, end - _LINES_AHEAD * _LINE_WORDS), end, _LINE_WORDS):
                    _prefetch(items, k)
            _prefetch(chunks, chunks[record + _PREVIOUS] * CHUNK_WORDS)


@inlined
def _enter(state: State, high: Any, low: Any, expected: Any) -> int:
    """Slot of a key, a new one where there is none yet; its record is in the journal.

    ``expected``: the slot where it was found already, or 0.
    """
    meta, slots = state.meta, state.slots
    slot, at = expected, np.int64(0)
    if slot == 0:
        slot, at = _find(state, high, low)
    if slot > 0:
        _save(state, _IN_SLOTS, slots, state.slots_dirty, slot * SLOT_WORDS, SLOT_WORDS)
        return int(slot)
    slot = meta[FREE_SLOT]
    if slot > 0:
        meta[FREE_SLOT] = slots[slot * SLOT_WORDS + _HEAD]
    else:
        slot = meta[SLOTS_END]
        meta[SLOTS_END] = slot + 1
    base = slot * SLOT_WORDS
    _save(state, _IN_SLOTS, slots, state.slots_dirty, base, SLOT_WORDS)
    slots[base : base + SLOT_WORDS] = 0
    slots[base + _KEY_HIGH] = high
    slots[base + _KEY_LOW] = low
    state.places[at] = _entry(high, slot)
    meta[ENTITIES] += 1
    end = meta[JOURNAL_END]
    state.journal[end] = _NEW_SLOT
    state.journal[end + 1] = slot
    state.journal[end + 2] = 0
    meta[JOURNAL_END] = end + 3
    return int(slot)


@compiled
def _leave_index(state: State, slot: Any) -> None:
    """Take a slot out of the index; what was probed past it moves up."""
    places, slots = state.places, state.slots
    mask = places.shape[0] - 1
    at = slots[slot * SLOT_WORDS + _KEY_LOW] & mask
    while places[at] & _SLOT_MASK != slot:
        at = (at + 1) & mask
    gap = at
    while True:
        at = (at + 1) & mask
        other = places[at]
        if other == 0:
            break
        home = slots[(other & _SLOT_MASK) * SLOT_WORDS + _KEY_LOW] & mask
        if ((at - home) & mask) >= ((at - gap) & mask):
            places[gap] = other
            gap = at
    places[gap] = 0


@compiled
def fill_index(state: State) -> None:
    """Enter all slots into an empty index."""
    places, slots = state.places, state.slots
    mask = places.shape[0] - 1
    for slot in range(1, state.meta[SLOTS_END]):
        base = slot * SLOT_WORDS
        if slots[base + _TAIL] != _FREE:
            at = slots[base + _KEY_LOW] & mask
            while places[at] != 0:
                at = (at + 1) & mask
            places[at] = _entry(slots[base + _KEY_HIGH], slot)


@inlined
def _has_room(state: State, kind: Any, words: Any) -> bool:
    """Return True if one more row surely finds its chunks, its place in the arena and in the journal."""
    chunks, items, _, _ = _tables(state, kind)
    meta = state.meta
    return bool(
        (meta[CHUNKS_END + 2 * kind] + 2) * CHUNK_WORDS <= chunks.shape[0]
        and (meta[EVENTS_END + 2 * kind] + ROWS_RESERVE) * words <= items.shape[0]
        and meta[JOURNAL_END] + JOURNAL_RESERVE <= state.journal.shape[0]
    )


@compiled
def _size_class(capacity: Any) -> int:
    size_class, size = 0, SMALLEST_CHUNK
    while size < capacity:
        size <<= 1
        size_class += 1
    return size_class


@inlined
def _clear_totals(table: Any, at: Any) -> None:
    """Totals of no events."""
    table[at : at + TOTALS_WORDS] = 0
    table[at + _MAX] = -1
    table[at + _MIN] = NEVER


@compiled
def _take_chunk(state: State, kind: Any, words: Any, slot: Any, after: Any, capacity: Any, least_capacity: Any) -> int:
    """An empty chunk, linked into a slot's chain behind chunk ``after`` (0: the chain is empty).

    Where none of ``capacity`` is free, a smaller one down to ``least_capacity`` is taken before the arena grows:
    entities that became busier leave small ones behind.
    """
    chunks, _, chunks_dirty, items_dirty = _tables(state, kind)
    meta, slots = state.meta, state.slots
    source = _IN_CHUNKS + kind
    free = _FREE_CHUNKS + _SIZE_CLASSES * kind + _size_class(capacity)
    least = _FREE_CHUNKS + _SIZE_CLASSES * kind + _size_class(least_capacity)
    while meta[free] == 0 and free > least:
        free -= 1
    chunk = meta[free]
    if chunk > 0:
        base = chunk * CHUNK_WORDS
        _save(state, source, chunks, chunks_dirty, base, CHUNK_WORDS)
        meta[free] = chunks[base + _NEXT]
    else:
        chunk = meta[CHUNKS_END + 2 * kind]
        meta[CHUNKS_END + 2 * kind] = chunk + 1
        base = chunk * CHUNK_WORDS
        _save(state, source, chunks, chunks_dirty, base, CHUNK_WORDS)
        start = meta[EVENTS_END + 2 * kind]
        rows = capacity
        if kind == EVENTS and capacity >= _LEAST_WITH_TOTALS:
            rows += (capacity // _RUN * TOTALS_WORDS + words - 1) // words
        meta[EVENTS_END + 2 * kind] = start + rows
        chunks[base + _START] = start
        chunks[base + _CAPACITY] = capacity
        _mark(items_dirty, start * words, rows * words)
    chunks[base + _LENGTH : base + CHUNK_WORDS] = 0
    if kind == EVENTS:
        _clear_totals(chunks, base + _TOTALS)
    head, tail = slot * SLOT_WORDS + _HEAD + _KIND_STEP * kind, slot * SLOT_WORDS + _TAIL + _KIND_STEP * kind
    if after == 0:
        slots[head] = chunk
        slots[tail] = chunk
        return int(chunk)
    following = chunks[after * CHUNK_WORDS + _NEXT]
    _save(state, source, chunks, chunks_dirty, after * CHUNK_WORDS, CHUNK_WORDS)
    chunks[after * CHUNK_WORDS + _NEXT] = chunk
    chunks[base + _PREVIOUS] = after
    chunks[base + _NEXT] = following
    if following > 0:
        _save(state, source, chunks, chunks_dirty, following * CHUNK_WORDS, CHUNK_WORDS)
        chunks[following * CHUNK_WORDS + _PREVIOUS] = chunk
    else:
        slots[tail] = chunk
    return int(chunk)


@compiled
def _next_capacity(held: Any) -> int:
    """Return the next capacity, the root of the timeline's length: about as many chunks as rows in one."""
    capacity, factor = SMALLEST_CHUNK, 4 if held < 256 else 16
    while capacity < LARGEST_CHUNK and capacity * capacity < factor * held:
        capacity <<= 1
    return int(capacity)


@inlined
def _appendable(capacity: Any) -> Any:
    """Rows that are appended to a chunk. The last sixteenth is left for late ones, which would split it otherwise."""
    return capacity - capacity // 64 * 4


@inlined
def _opened(state: State, kind: Any, words: Any, chunk: Any, at: Any) -> Any:
    """Move the rows of a chunk with room from position ``at`` on up by one; returns (chunk, position)."""
    chunks, items, chunks_dirty, items_dirty = _tables(state, kind)
    record = chunk * CHUNK_WORDS
    length = chunks[record + _LENGTH]
    _save(state, _IN_CHUNKS + kind, chunks, chunks_dirty, record, CHUNK_WORDS)
    start = chunks[record + _START] * words
    _save(state, _IN_ITEMS + kind, items, items_dirty, start + at * words, (length - at) * words)
    for k in range(start + (length + 1) * words - 1, start + (at + 1) * words - 1, -1):
        items[k] = items[k - words]
    _mark(items_dirty, start + at * words, (length + 1 - at) * words)
    chunks[record + _LENGTH] = length + 1
    return chunk, at


@compiled
def _make_room(state: State, kind: Any, words: Any, slot: Any, chunk: Any, at: Any, floor_us: Any) -> Any:
    """Open a row at position ``at`` of ``chunk`` (0: in front of all).

    Later rows of the chunk are moved, the new one is not written. Returns the (chunk, position) of the row.
    """
    chunks, items, _, items_dirty = _tables(state, kind)
    slots, base = state.slots, slot * SLOT_WORDS + _KIND_STEP * kind
    if chunk == 0:
        chunk, at = slots[base + _HEAD], 0
        if chunk == 0:
            chunk = _take_chunk(state, kind, words, slot, _NONE, SMALLEST_CHUNK, SMALLEST_CHUNK)
    record = chunk * CHUNK_WORDS
    length, capacity = chunks[record + _LENGTH], chunks[record + _CAPACITY]
    appended = at == length and chunk == slots[base + _TAIL]
    if length < (_appendable(capacity) if appended else capacity):
        return _opened(state, kind, words, chunk, at)
    if kind == EVENTS and slots[base + _HEAD] == slots[base + _TAIL] and capacity <= LARGEST_BLOCK:
        block, gone = _renewed(state, words, slot, chunk, floor_us)
        if block > 0:
            return _opened(state, kind, words, block, at - gone)
    if appended:
        capacity = _next_capacity(slots[base + _HELD] + 1)
        if kind == EVENTS:
            capacity = max(capacity, LARGEST_BLOCK)
        chunk = _take_chunk(state, kind, words, slot, chunk, capacity, capacity // 4)
        return _opened(state, kind, words, chunk, _NONE)
    half = length // 2
    upper = _take_chunk(state, kind, words, slot, chunk, length, length)
    start, target = chunks[record + _START] * words, chunks[upper * CHUNK_WORDS + _START] * words
    _save(state, kind + _IN_ITEMS, items, items_dirty, start + half * words, (length - half) * words)
    for k in range((length - half) * words):
        items[target + k] = items[start + half * words + k]
    _mark(items_dirty, target, (length - half) * words)
    chunks[record + _LENGTH] = half
    chunks[upper * CHUNK_WORDS + _LENGTH] = length - half
    if kind == EVENTS:
        _count_again(state, words, chunk)
        _count_again(state, words, upper)
    else:
        _share_labels(state, chunk, upper)
    if at > half:
        chunk, at = upper, at - half
    return _opened(state, kind, words, chunk, at)


@compiled
def _renewed(state: State, words: Any, slot: Any, chunk: Any, floor_us: Any) -> Any:
    """Let a timeline's only chunk fit what is not behind the horizon, with room for more.

    Returns (the chunk that takes its place or itself, rows that are gone from its front); (0, 0): there is too much.
    """
    chunks, events, base = state.chunks, state.events, slot * SLOT_WORDS
    record = chunk * CHUNK_WORDS
    start, length = chunks[record + _START], chunks[record + _LENGTH]
    gone = _first_later(events, words, start, length, floor_us)
    kept, capacity = length - gone, SMALLEST_CHUNK
    while 4 * kept > 3 * capacity:
        capacity <<= 1
    if capacity > LARGEST_BLOCK:
        return np.int64(0), np.int64(0)
    _save(state, _IN_CHUNKS, chunks, state.chunks_dirty, record, CHUNK_WORDS)
    # Also where they stay: once it is free, the same batch may take the chunk again and write over them.
    _save(state, _IN_ITEMS, events, state.events_dirty, start * words, length * words)
    block = chunk
    if capacity != chunks[record + _CAPACITY]:
        block = _take_chunk(state, EVENTS, words, slot, _NONE, capacity, capacity)
        free = _FREE_CHUNKS + _size_class(chunks[record + _CAPACITY])
        chunks[record + _NEXT] = state.meta[free]
        state.meta[free] = chunk
    source, target = (start + gone) * words, chunks[block * CHUNK_WORDS + _START] * words
    for k in range(kept * words):
        events[target + k] = events[source + k]
    _mark(state.events_dirty, target, max(kept, 1) * words)
    chunks[block * CHUNK_WORDS + _LENGTH] = kept
    state.slots[base + _HELD] -= gone
    state.meta[HELD_EVENTS] -= gone
    _count_again(state, words, block)
    return np.int64(block), np.int64(gone)


@inlined
def _with_event(totals: Any, doubled: Any) -> Any:
    """Totals (in their order) with one more event, by its row's amount and flag."""
    largest, smallest, sum_, high, low, flags, flagged_sum = totals
    amount, flag = doubled >> 1, doubled & 1
    square_high, square_low = wide_product(np.uint64(amount), np.uint64(amount))
    high, low = _plus(high, low, np.int64(square_high), np.int64(square_low))
    return (
        max(largest, amount), min(smallest, amount), sum_ + amount, high, low, flags + flag,
        flagged_sum + (amount & -flag),
    )  # fmt: skip


@inlined
def _add_event(table: Any, at: Any, doubled: Any) -> None:
    """Take an event, by its row's amount and flag, into totals that stand in a table."""
    totals = (
        table[at + _MAX], table[at + _MIN], table[at + _SUM], table[at + _SQUARE_HIGH], table[at + _SQUARE_LOW],
        table[at + _FLAGS], table[at + _FLAGGED_SUM],
    )  # fmt: skip
    largest, smallest, sum_, high, low, flags, flagged_sum = _with_event(totals, doubled)
    table[at + _MAX], table[at + _MIN], table[at + _SUM] = largest, smallest, sum_
    table[at + _SQUARE_HIGH], table[at + _SQUARE_LOW] = high, low
    table[at + _FLAGS], table[at + _FLAGGED_SUM] = flags, flagged_sum


@compiled
def _count_runs(state: State, words: Any, chunk: Any, first: Any) -> None:
    """Find the totals of a chunk's runs again, from the run of position ``first`` on; the old ones are saved."""
    chunks, events, record = state.chunks, state.events, chunk * CHUNK_WORDS
    start, length = chunks[record + _START], chunks[record + _LENGTH]
    runs = (start + chunks[record + _CAPACITY]) * words
    low, high = first >> _RUN_SHIFT, (length - 1) >> _RUN_SHIFT
    _save(state, _IN_ITEMS, events, state.events_dirty, runs + low * TOTALS_WORDS, (high + 1 - low) * TOTALS_WORDS)
    for run in range(low, high + 1):
        at = runs + run * TOTALS_WORDS
        _clear_totals(events, at)
        for i in range(run * _RUN, min((run + 1) * _RUN, length)):
            _add_event(events, at, events[(start + i) * words + _E_AMOUNT])


@compiled
def _count_again(state: State, words: Any, chunk: Any) -> None:
    """Set a chunk's first and last time and its totals by its rows; its record is saved already."""
    chunks, events, record = state.chunks, state.events, chunk * CHUNK_WORDS
    start, length = chunks[record + _START], chunks[record + _LENGTH]
    if length > 0:
        chunks[record + _FIRST], chunks[record + _LAST] = events[start * words], events[(start + length - 1) * words]
    if chunks[record + _CAPACITY] >= _LEAST_WITH_TOTALS:
        _clear_totals(chunks, record + _TOTALS)
        for i in range(start, start + length):
            _add_event(chunks, record + _TOTALS, events[i * words + _E_AMOUNT])
        _count_runs(state, words, chunk, _NONE)


@compiled
def _share_labels(state: State, lower: Any, upper: Any) -> None:
    """Give the two halves of a chunk that was split their own cumulative columns and totals."""
    chunks, labels = state.label_chunks, state.labels
    low, up = lower * CHUNK_WORDS, upper * CHUNK_WORDS
    last = (chunks[low + _START] + chunks[low + _LENGTH] - 1) * LABEL_WORDS
    known, frauds, unexplained = labels[last + _L_KNOWN], labels[last + _L_FRAUDS], labels[last + _L_UNEXPLAINED]
    for i in range(chunks[up + _START], chunks[up + _START] + chunks[up + _LENGTH]):
        labels[i * LABEL_WORDS + _L_KNOWN] -= known
        labels[i * LABEL_WORDS + _L_FRAUDS] -= frauds
        labels[i * LABEL_WORDS + _L_UNEXPLAINED] -= unexplained
    for record in (low, up):
        start, end = chunks[record + _START], chunks[record + _START] + chunks[record + _LENGTH]
        latest, corrected = labels[start * LABEL_WORDS + _L_KNOWN_AT], 0
        for i in range(start, end):
            latest = max(latest, labels[i * LABEL_WORDS + _L_KNOWN_AT])
            corrected += 1 if labels[i * LABEL_WORDS + _L_SUPERSEDED_AT] != NEVER else 0
        last = (end - 1) * LABEL_WORDS
        chunks[record + _FIRST], chunks[record + _LAST] = labels[start * LABEL_WORDS], labels[last]
        chunks[record + _KNOWN], chunks[record + _FRAUDS] = labels[last + _L_KNOWN], labels[last + _L_FRAUDS]
        chunks[record + _UNEXPLAINED] = labels[last + _L_UNEXPLAINED]
        chunks[record + _LATEST_KNOWN_AT], chunks[record + _CORRECTED] = latest, corrected


@inlined
def _insert_event(
    state: State,
    words: Any,
    slot: Any,
    chunk: Any,
    at: Any,
    time_us: Any,
    amount: Any,
    flag: Any,
    other: Any,
    floor_us: Any,
) -> None:
    """Put an event at position ``at`` of ``chunk``; the rows behind it in that chunk are moved."""
    chunks, events = state.chunks, state.events
    record = chunk * CHUNK_WORDS
    if chunk > 0 and at == chunks[record + _LENGTH] and at < _appendable(chunks[record + _CAPACITY]):
        _save(state, _IN_CHUNKS, chunks, state.chunks_dirty, record, _LINE_WORDS)
        chunks[record + _LENGTH] = at + 1
    else:
        chunk, at = _make_room(state, EVENTS, words, slot, chunk, at, floor_us)
        record = chunk * CHUNK_WORDS
    state.slots[slot * SLOT_WORDS + _HELD] += 1
    state.meta[HELD_EVENTS] += 1
    doubled = amount << 1 | flag
    row = (chunks[record + _START] + at) * words
    events[row] = time_us
    events[row + _E_AMOUNT] = doubled
    if words > _E_OTHER:
        events[row + _E_OTHER] = other
    _mark(state.events_dirty, row, words)
    if at == 0:
        chunks[record + _FIRST] = time_us
    if at + 1 == chunks[record + _LENGTH]:
        chunks[record + _LAST] = time_us
    if chunks[record + _CAPACITY] >= _LEAST_WITH_TOTALS:
        _count(state, words, chunk, at, doubled)


@compiled
def _count(state: State, words: Any, chunk: Any, at: Any, doubled: Any) -> None:
    """Take the event at position ``at`` into the totals of a chunk that has them."""
    chunks, events, record = state.chunks, state.events, chunk * CHUNK_WORDS
    _save(state, _IN_CHUNKS, chunks, state.chunks_dirty, record + _TOTALS, TOTALS_WORDS)
    _add_event(chunks, record + _TOTALS, doubled)
    if at + 1 < chunks[record + _LENGTH] or at % _RUN == 0:
        _count_runs(state, words, chunk, at)
        return
    run = (chunks[record + _START] + chunks[record + _CAPACITY]) * words + (at >> _RUN_SHIFT) * TOTALS_WORDS
    _save(state, _IN_ITEMS, events, state.events_dirty, run, TOTALS_WORDS)
    _add_event(events, run, doubled)


@inlined
def _first_later(items: Any, words: Any, start: Any, length: Any, time_us: Any) -> int:
    """Position (within a chunk from row ``start`` on) of the first of ``length`` rows later than ``time_us``."""
    low, high = 0, length
    while low < high:
        middle = (low + high) >> 1
        if items[(start + middle) * words] <= time_us:
            low = middle + 1
        else:
            high = middle
    return int(low)


@inlined
def _place(state: State, kind: Any, words: Any, slot: Any, time_us: Any) -> Any:
    """(chunk, position) behind the last row not later than ``time_us``; chunk 0: all are later, or there is none."""
    return _place_from(state, kind, words, state.slots[slot * SLOT_WORDS + _TAIL + _KIND_STEP * kind], time_us)


@inlined
def _place_from(state: State, kind: Any, words: Any, chunk: Any, time_us: Any) -> Any:
    """The same, from a chunk on backwards."""
    chunks, items, _, _ = _tables(state, kind)
    while chunk > 0 and chunks[chunk * CHUNK_WORDS + _FIRST] > time_us:
        chunk = chunks[chunk * CHUNK_WORDS + _PREVIOUS]
    if chunk == 0:
        return chunk, np.int64(0)
    record = chunk * CHUNK_WORDS
    length = chunks[record + _LENGTH]
    if chunks[record + _LAST] <= time_us:
        return chunk, length
    return chunk, np.int64(_first_later(items, words, chunks[record + _START], length, time_us))


@inlined
def _with_totals(totals: Any, table: Any, at: Any) -> Any:
    """Totals with those that stand in a table."""
    largest, smallest, sum_, high, low, flags, flagged_sum = totals
    high, low = _plus(high, low, table[at + _SQUARE_HIGH], table[at + _SQUARE_LOW])
    return (
        max(largest, table[at + _MAX]), min(smallest, table[at + _MIN]), sum_ + table[at + _SUM], high, low,
        flags + table[at + _FLAGS], flagged_sum + table[at + _FLAGGED_SUM],
    )  # fmt: skip


@inlined
def _window_features(
    state: State, words: Any, chunk: Any, end: Any, time_us: Any, floor_us: Any, row: Any, column: Any, found: Any
) -> Any:
    """Write count, sum, mean, std, max and min of every window to ``row`` from ``column`` on.

    ``chunk`` and ``end``: the place behind the last event to look at. ``found``: gets the flags of every window.

    Returns:
        Of the longest window: sum of the amounts, of the flagged ones alone, and the place before its first event.
    """
    chunks, events = state.chunks, state.events
    count = np.int64(0)
    totals = np.int64(-1), np.int64(NEVER), np.int64(0), np.int64(0), np.int64(0), np.int64(0), np.int64(0)
    for w in range(_N_WINDOWS):
        lower_us = max(time_us - _WINDOWS[w], floor_us)
        while chunk > 0:
            record = chunk * CHUNK_WORDS
            start = chunks[record + _START]
            if chunks[record + _CAPACITY] >= _LEAST_WITH_TOTALS:
                length = chunks[record + _LENGTH]
                runs = (start + chunks[record + _CAPACITY]) * words
                if end == length and chunks[record + _FIRST] > lower_us:
                    totals = _with_totals(totals, chunks, record + _TOTALS)
                    count += end
                    end = np.int64(0)
                while end > 0:
                    if end % _RUN == 0 or end == length:
                        first = (end - 1) & ~(_RUN - 1)
                        if events[(start + first) * words] > lower_us:
                            totals = _with_totals(totals, events, runs + (first >> _RUN_SHIFT) * TOTALS_WORDS)
                            count += end - first
                            end = first
                            continue
                    event = (start + end - 1) * words
                    if events[event] <= lower_us:
                        break
                    totals = _with_event(totals, events[event + _E_AMOUNT])
                    count += 1
                    end -= 1
            else:
                while end > 0:
                    event = (start + end - 1) * words
                    if events[event] <= lower_us:
                        break
                    totals = _with_event(totals, events[event + _E_AMOUNT])
                    count += 1
                    end -= 1
            if end > 0:
                break
            chunk = chunks[record + _PREVIOUS]
            end = chunks[chunk * CHUNK_WORDS + _LENGTH]
        largest, smallest, sum_, high, low, flags, _ = totals
        found[w] = flags
        at = column + w * _N_STATISTICS
        row[at] = count
        row[at + 1] = sum_ / 100.0
        # All is computed for an empty window too, and then put aside: without branches, the windows' divisions overlap.
        mean, deviation = sum_ / count / 100.0, _standard_deviation(count, sum_, high, low) / 100.0
        most, least = largest / 100.0, smallest / 100.0
        empty = count == 0
        row[at + 2] = np.nan if empty else mean
        row[at + 3] = np.nan if empty else deviation
        row[at + 4] = np.nan if empty else most
        row[at + 5] = np.nan if empty else least
    return totals[2], totals[6], chunk, end


@inlined
def _seconds_since_row(state: State, words: Any, slot: Any, chunk: Any, at: Any, time_us: Any) -> float:
    """Seconds from the event at position ``at`` of ``chunk`` (behind its last: the next chunk's first) to a time."""
    chunks = state.chunks
    if chunk == 0:
        chunk = state.slots[slot * SLOT_WORDS + _HEAD]
    elif at == chunks[chunk * CHUNK_WORDS + _LENGTH]:
        chunk, at = chunks[chunk * CHUNK_WORDS + _NEXT], np.int64(0)
    return float((time_us - state.events[(chunks[chunk * CHUNK_WORDS + _START] + at) * words]) / US_PER_SECOND)


@compiled
def _last_flagged_us(state: State, words: Any, chunk: Any, end: Any) -> int:
    """Time of the last flagged event before position ``end`` of ``chunk``; there is one."""
    chunks, events = state.chunks, state.events
    while True:
        record = chunk * CHUNK_WORDS
        start, capacity = chunks[record + _START], chunks[record + _CAPACITY]
        if capacity < _LEAST_WITH_TOTALS or chunks[record + _TOTALS + _FLAGS] > 0:
            runs = (start + capacity) * words
            while end > 0:
                first = (end - 1) & ~(_RUN - 1)
                if capacity < _LEAST_WITH_TOTALS or events[runs + (first >> _RUN_SHIFT) * TOTALS_WORDS + _FLAGS] > 0:
                    for i in range(start + end - 1, start + first - 1, -1):
                        if events[i * words + _E_AMOUNT] & 1:
                            return int(events[i * words])
                end = first
        chunk = chunks[record + _PREVIOUS]
        end = chunks[chunk * CHUNK_WORDS + _LENGTH]


@inlined
def _place_by_rank(keys: Any, n: Any, compared: Any, ordered: Any) -> None:
    for k in range(n, compared):
        keys[k] = NEVER
    for j in range(n):
        key, smaller = keys[j], 0
        for k in range(compared):
            smaller += 1 if keys[k] < key else 0
        ordered[smaller] = key >> _USUAL_SHIFT


@inlined
def _order(keys: Any, n: Any, ordered: Any) -> None:
    """Write the amounts of ``keys[:n]`` to ``ordered``, ascending. A key: an amount, and its position below it.

    Each goes to the place that the number of smaller ones gives. One of two fixed numbers of them is compared, whatever
    ``n``: comparisons without a branch take a few vector instructions, where a sort's branches are guessed wrong.
    """
    if n <= _FEW_EVENTS:
        _place_by_rank(keys, n, _FEW_EVENTS, ordered)
    else:
        _place_by_rank(keys, n, USUAL_EVENTS, ordered)


@compiled
def _median_and_spread(ordered: Any, n: Any) -> Any:
    """(2 x median, 4 x MAD) of ``ordered[:n]`` (ascending integers); MAD: median absolute deviation from the median."""
    median_2 = ordered[(n - 1) // 2] + ordered[n // 2]
    # The distances from the median fall and then rise along the sorted amounts, so that the
    # smallest ones are met by walking outwards from the middle.
    right = n // 2
    left = right - 1
    distance = previous = np.int64(0)
    for _ in range(n // 2 + 1):
        previous = distance
        take_left = right >= n or (left >= 0 and median_2 - 2 * ordered[left] <= 2 * ordered[right] - median_2)
        if take_left:
            distance = median_2 - 2 * ordered[left]
            left -= 1
        else:
            distance = 2 * ordered[right] - median_2
            right += 1
    return median_2, (2 * distance if n % 2 == 1 else previous + distance)


@compiled
def profile_cards(
    state: State,
    first_row: Any,
    keys: Any,
    merchants: Any,
    times: Any,
    amounts: Any,
    counts: Any,
    hours: Any,
    weekdays: Any,
    out: Any,
    case_starts: Any,
    case_sequences: Any,
    outliers: Any,
) -> int:
    """Fill ``out`` (rows x CARD_FEATURES) from ``first_row`` on; returns the first row not done (a table is full)."""
    meta, slots, chunks, events = state.meta, state.slots, state.chunks, state.events
    words = CARD_EVENT_WORDS
    ordered = state.scratch[_ORDERED : _ORDERED + USUAL_EVENTS]
    recent = state.scratch[_RECENT : _RECENT + USUAL_EVENTS]
    flagged = state.scratch[_FOUND : _FOUND + _N_WINDOWS]
    slots_ahead = state.scratch[_SLOTS_AHEAD : _SLOTS_AHEAD + _ROWS_AHEAD]
    slots_ahead[:] = 0
    for i in range(first_row, keys.shape[0]):
        if not _has_room(state, EVENTS, words):
            return i
        _look_ahead(state, EVENTS, words, keys, i, slots_ahead)
        slot = _enter(state, keys[i, 0], keys[i, 1], slots_ahead[i % _ROWS_AHEAD])
        slots_ahead[i % _ROWS_AHEAD] = 0
        time_us, amount = times[i], amounts[i]
        floor_us = meta[NEWEST] - HORIZON_US
        base = slot * SLOT_WORDS
        if (
            slots[base + _CASE_SEQUENCE] == 0
            or slots[base + _CASE_START] <= floor_us
            or time_us >= slots[base + _CASE_START] + EPISODE_US
        ):
            slots[base + _CASE_START] = time_us
            slots[base + _CASE_SEQUENCE] = 0
        slots[base + _CASE_SEQUENCE] += 1
        case_starts[i] = slots[base + _CASE_START]
        case_sequences[i] = slots[base + _CASE_SEQUENCE]
        row = out[i]
        row[0] = amount / 100.0
        row[1] = hours[i]
        row[2] = weekdays[i]
        chunk, end = _place(state, EVENTS, words, slot, time_us)
        sum_, outlier_sum, _, _ = _window_features(
            state, words, chunk, end, time_us, floor_us, row, len(TRANSACTION_FEATURES), flagged
        )
        tail = _CARD_TAIL
        n: Any = min(np.int64(row[tail - _N_STATISTICS]), USUAL_EVENTS)
        row[tail : tail + 4] = np.nan
        flag, seen = np.int64(0), 0
        if n > 0:
            last = chunks[chunk * CHUNK_WORDS + _START] + end - 1
            row[tail] = (time_us - events[last * words]) / US_PER_SECOND
            inside, at = chunk, end
            for j in range(n):
                if at == 0:
                    inside = chunks[inside * CHUNK_WORDS + _PREVIOUS]
                    at = chunks[inside * CHUNK_WORDS + _LENGTH]
                at -= 1
                event = (chunks[inside * CHUNK_WORDS + _START] + at) * words
                value = events[event + _E_AMOUNT] >> 1
                if events[event + _E_OTHER] == merchants[i]:
                    seen += 1
                recent[j] = (value << _USUAL_SHIFT) | j
            _order(recent, n, ordered)
            median_2, spread_4 = _median_and_spread(ordered, n)
            row[tail + 1] = median_2 / 200.0
            if median_2 > 0:
                row[tail + 2] = amount / (median_2 / 2.0)
            scale = max(_MAD_TO_SIGMA * spread_4 / 4.0, _DEVIATION_FLOOR * median_2 / 2.0)
            if scale > 0:
                row[tail + 3] = (amount - median_2 / 2.0) / scale
            if n >= OUTLIER_MINIMUM_EVENTS and 2 * amount > OUTLIER_RATIO * median_2:
                flag = np.int64(1)
        for w in range(1, _N_WINDOWS):
            row[tail + 3 + w] = flagged[w]
        row[tail + 7] = seen
        row[tail + 8 : tail + 11] = np.nan
        regular = np.int64(row[tail - _N_STATISTICS]) - flagged[_N_WINDOWS - 1]
        if regular > 0:
            mean = (sum_ - outlier_sum) / regular / 100.0
            row[tail + 8] = mean
            if mean > 0:
                row[tail + 9] = amount / 100.0 / mean
        if flagged[_N_WINDOWS - 1] > 0:
            row[tail + 10] = (time_us - _last_flagged_us(state, words, chunk, end)) / US_PER_SECOND
        outliers[i] = flag == 1
        if counts[i] and time_us > floor_us:
            _insert_event(state, words, slot, chunk, end, time_us, amount, flag, merchants[i], floor_us)
        meta[NEWEST] = max(meta[NEWEST], time_us)
    return int(keys.shape[0])


@compiled
def _is_flagged(state: State, words: Any, slot: Any, time_us: Any) -> bool:
    """Return True if an event of exactly this time is flagged."""
    chunks, events = state.chunks, state.events
    chunk, at = _place(state, EVENTS, words, slot, time_us)
    while chunk > 0:
        if at == 0:
            chunk = chunks[chunk * CHUNK_WORDS + _PREVIOUS]
            at = chunks[chunk * CHUNK_WORDS + _LENGTH]
            continue
        at -= 1
        event = (chunks[chunk * CHUNK_WORDS + _START] + at) * words
        if events[event] != time_us:
            return False
        if events[event + _E_AMOUNT] & 1:
            return True
    return False


@compiled
def _insert_label(state: State, slot: Any, time_us: Any, identity: Any, value: Any, known_at_us: Any) -> None:
    """Add what a label makes known; an earlier label of the same transaction is superseded."""
    chunks, labels = state.label_chunks, state.labels
    chunk, at = _place(state, LABELS, LABEL_WORDS, slot, time_us)
    inside, i = chunk, at
    while inside > 0:
        if i == 0:
            inside = chunks[inside * CHUNK_WORDS + _PREVIOUS]
            if inside == 0:
                break
            i = chunks[inside * CHUNK_WORDS + _LENGTH]
        i -= 1
        row = (chunks[inside * CHUNK_WORDS + _START] + i) * LABEL_WORDS
        if labels[row] != time_us:
            break
        if labels[row + _L_IDENTITY] == identity and labels[row + _L_SUPERSEDED_AT] == NEVER:
            known_at_us = max(known_at_us, labels[row + _L_KNOWN_AT])
            record = inside * CHUNK_WORDS
            _save(state, _IN_ITEMS + LABELS, labels, state.labels_dirty, row, LABEL_WORDS)
            _save(state, _IN_CHUNKS + LABELS, chunks, state.label_chunks_dirty, record, CHUNK_WORDS)
            labels[row + _L_SUPERSEDED_AT] = known_at_us
            chunks[record + _CORRECTED] += 1
            # Directly behind what it replaces, so that of two transactions of the same
            # instant the one first labelled later stays the later one.
            chunk, at = inside, i + 1
            break
    if value == _UNEXPLAINED_FRAUD and _is_flagged(state, MERCHANT_EVENT_WORDS, slot, time_us):
        value = _EXPLAINED_FRAUD
    known = 0 if value == _UNKNOWN else 1
    fraud = value & 1
    unexplained = 1 if value == _UNEXPLAINED_FRAUD else 0
    chunk, at = _make_room(state, LABELS, LABEL_WORDS, slot, chunk, at, NOTHING_YET_US)
    state.slots[slot * SLOT_WORDS + _KIND_STEP + _HELD] += 1
    state.meta[HELD_LABELS] += 1
    record = chunk * CHUNK_WORDS
    start, length = chunks[record + _START], chunks[record + _LENGTH]
    row = (start + at) * LABEL_WORDS
    labels[row] = time_us
    labels[row + _L_IDENTITY] = identity
    labels[row + _L_KNOWN_AT] = known_at_us
    labels[row + _L_SUPERSEDED_AT] = NEVER
    labels[row + _L_VALUE] = value
    labels[row + _L_KNOWN] = known + (labels[row - LABEL_WORDS + _L_KNOWN] if at > 0 else 0)
    labels[row + _L_FRAUDS] = fraud + (labels[row - LABEL_WORDS + _L_FRAUDS] if at > 0 else 0)
    labels[row + _L_UNEXPLAINED] = unexplained + (labels[row - LABEL_WORDS + _L_UNEXPLAINED] if at > 0 else 0)
    for j in range(start + at + 1, start + length):
        labels[j * LABEL_WORDS + _L_KNOWN] += known
        labels[j * LABEL_WORDS + _L_FRAUDS] += fraud
        labels[j * LABEL_WORDS + _L_UNEXPLAINED] += unexplained
    if length == 1:
        chunks[record + _FIRST] = chunks[record + _LAST] = time_us
        chunks[record + _LATEST_KNOWN_AT] = known_at_us
    else:
        chunks[record + _FIRST] = min(chunks[record + _FIRST], time_us)
        chunks[record + _LAST] = max(chunks[record + _LAST], time_us)
        chunks[record + _LATEST_KNOWN_AT] = max(chunks[record + _LATEST_KNOWN_AT], known_at_us)
    chunks[record + _KNOWN] += known
    chunks[record + _FRAUDS] += fraud
    chunks[record + _UNEXPLAINED] += unexplained


@compiled
def _first_reaching(labels: Any, start: Any, low: Any, high: Any, plus: Any, minus: Any, target: Any) -> int:
    """First position in [low, high) at which cumulative column ``plus`` less ``minus`` (0: none) reaches ``target``."""
    while low < high:
        middle = (low + high) >> 1
        row = (start + middle) * LABEL_WORDS
        if labels[row + plus] - (labels[row + minus] if minus > 0 else 0) < target:
            low = middle + 1
        else:
            high = middle
    return int(low)


@inlined
def _is_known(labels: Any, row: Any, time_us: Any) -> bool:
    """Return True if a label holds at a time."""
    return bool(
        labels[row + _L_VALUE] != _UNKNOWN
        and labels[row + _L_KNOWN_AT] <= time_us
        and labels[row + _L_SUPERSEDED_AT] > time_us
    )


@compiled
def _count_known(state: State, chunk: Any, first: Any, end: Any, time_us: Any, found: Any) -> None:
    """Add what is known at ``time_us`` of positions [first, end) of a chunk to ``found``, the newest first.

    ``found``: known, frauds, whether the newest is fraud (-1: none yet), times of the newest fraud and of the newest
    legitimate one (NEVER: none yet), unexplained frauds.
    """
    if end <= first:
        return
    labels, record = state.labels, chunk * CHUNK_WORDS
    start = state.label_chunks[record + _START]
    if state.label_chunks[record + _CORRECTED] > 0 or state.label_chunks[record + _LATEST_KNOWN_AT] > time_us:
        for i in range(end - 1, first - 1, -1):
            row = (start + i) * LABEL_WORDS
            if not _is_known(labels, row, time_us):
                continue
            value = labels[row + _L_VALUE]
            fraud = value & 1
            found[0] += 1
            found[1] += fraud
            found[5] += 1 if value == _UNEXPLAINED_FRAUD else 0
            if found[2] < 0:
                found[2] = fraud
            if found[4 - fraud] == NEVER:
                found[4 - fraud] = labels[row]
        return
    known_before, frauds_before, unexplained_before = np.int64(0), np.int64(0), np.int64(0)
    if first > 0:
        before = (start + first - 1) * LABEL_WORDS
        known_before, frauds_before = labels[before + _L_KNOWN], labels[before + _L_FRAUDS]
        unexplained_before = labels[before + _L_UNEXPLAINED]
    # The totals, where they do: the rows of old chunks are left alone.
    known_end, frauds_end = state.label_chunks[record + _KNOWN], state.label_chunks[record + _FRAUDS]
    unexplained_end = state.label_chunks[record + _UNEXPLAINED]
    if end < state.label_chunks[record + _LENGTH]:
        last = (start + end - 1) * LABEL_WORDS
        known_end, frauds_end = labels[last + _L_KNOWN], labels[last + _L_FRAUDS]
        unexplained_end = labels[last + _L_UNEXPLAINED]
    known, frauds = known_end - known_before, frauds_end - frauds_before
    found[0] += known
    found[1] += frauds
    found[5] += unexplained_end - unexplained_before
    fraud_at, legitimate_at = -1, -1
    if frauds > 0 and (found[2] < 0 or found[3] == NEVER):
        fraud_at = _first_reaching(labels, start, first, end, _L_FRAUDS, 0, frauds_end)
    if known > frauds and (found[2] < 0 or found[4] == NEVER):
        legitimate_at = _first_reaching(labels, start, first, end, _L_KNOWN, _L_FRAUDS, known_end - frauds_end)
    if found[2] < 0 and known > 0:
        found[2] = 1 if fraud_at > legitimate_at else 0
    if found[3] == NEVER and fraud_at >= 0:
        found[3] = labels[(start + fraud_at) * LABEL_WORDS]
    if found[4] == NEVER and legitimate_at >= 0:
        found[4] = labels[(start + legitimate_at) * LABEL_WORDS]


@compiled
def _label_features(state: State, slot: Any, time_us: Any, floor_us: Any, row: Any, column: Any, found: Any) -> None:
    chunks, labels = state.label_chunks, state.labels
    found[0] = found[1] = found[5] = 0
    found[2] = -1
    found[3] = found[4] = NEVER
    fortnight_known, fortnight_frauds = np.int64(-1), np.int64(-1)
    fortnight_us = max(time_us - _FORTNIGHT_US, floor_us)
    month_us = max(time_us - LONGEST_WINDOW_US, floor_us)
    newest, newest_end = _place(state, LABELS, LABEL_WORDS, slot, time_us)
    chunk, end = newest, newest_end
    while chunk > 0 and chunks[chunk * CHUNK_WORDS + _LAST] > month_us:
        record = chunk * CHUNK_WORDS
        start, middle = chunks[record + _START], np.int64(0)
        if fortnight_known < 0:
            if chunks[record + _FIRST] <= fortnight_us:
                middle = np.int64(_first_later(labels, LABEL_WORDS, start, end, fortnight_us))
            _count_known(state, chunk, middle, end, time_us, found)
            if chunks[record + _FIRST] <= fortnight_us:
                fortnight_known, fortnight_frauds = found[0], found[1]
        else:
            middle = end
        first = np.int64(0)
        if chunks[record + _FIRST] <= month_us:
            first = np.int64(_first_later(labels, LABEL_WORDS, start, middle, month_us))
        _count_known(state, chunk, first, middle, time_us, found)
        chunk = chunks[record + _PREVIOUS]
        end = chunks[chunk * CHUNK_WORDS + _LENGTH] if chunk > 0 else np.int64(0)
    row[column] = found[0] if fortnight_known < 0 else fortnight_known
    row[column + 1] = found[1] if fortnight_known < 0 else fortnight_frauds
    row[column + 2] = found[0]
    row[column + 3] = found[1]
    row[column + 4] = (found[1] + RISK_PRIOR_RATE * RISK_PRIOR_STRENGTH) / (found[0] + RISK_PRIOR_STRENGTH)
    row[column + 5] = np.nan if found[2] < 0 else np.float64(found[2])
    row[column + 6] = np.nan if found[3] == NEVER else (time_us - found[3]) / US_PER_SECOND
    row[column + 7] = np.nan if found[4] == NEVER else (time_us - found[4]) / US_PER_SECOND
    row[column + 8] = found[5]
    row[column + 9 : column + 11] = np.nan
    if found[5] > 0:
        _fraud_run(state, slot, newest, newest_end, time_us, month_us, row, column + 9)


@compiled
def _unexplained_before(state: State, chunk: Any, end: Any, time_us: Any, month_us: Any) -> Any:
    """(chunk, position) of the last unexplained fraud known at ``time_us`` before a place; (0, 0): none is later than
    ``month_us``.
    """
    chunks, labels = state.label_chunks, state.labels
    while chunk > 0 and chunks[chunk * CHUNK_WORDS + _LAST] > month_us:
        record = chunk * CHUNK_WORDS
        start, at = chunks[record + _START], -1
        if chunks[record + _CORRECTED] > 0 or chunks[record + _LATEST_KNOWN_AT] > time_us:
            for i in range(end - 1, -1, -1):
                row = (start + i) * LABEL_WORDS
                if labels[row + _L_VALUE] == _UNEXPLAINED_FRAUD and _is_known(labels, row, time_us):
                    at = i
                    break
        elif end > 0:
            unexplained = labels[(start + end - 1) * LABEL_WORDS + _L_UNEXPLAINED]
            if unexplained > 0:
                at = _first_reaching(labels, start, 0, end, _L_UNEXPLAINED, 0, unexplained)
        if at >= 0:
            if labels[(start + at) * LABEL_WORDS] > month_us:
                return chunk, np.int64(at)
            break
        chunk = chunks[record + _PREVIOUS]
        end = chunks[chunk * CHUNK_WORDS + _LENGTH]
    return np.int64(0), np.int64(0)


@compiled
def _time_before(state: State, words: Any, chunk: Any, end: Any, n: Any) -> int:
    """Time of the n-th event before a place; `NOTHING_YET_US` where there are fewer."""
    chunks = state.chunks
    while chunk > 0:
        if end >= n:
            return int(state.events[(chunks[chunk * CHUNK_WORDS + _START] + end - n) * words])
        n -= end
        chunk = chunks[chunk * CHUNK_WORDS + _PREVIOUS]
        end = chunks[chunk * CHUNK_WORDS + _LENGTH]
    return NOTHING_YET_US


@compiled
def _fraud_run(
    state: State, slot: Any, chunk: Any, end: Any, time_us: Any, month_us: Any, row: Any, column: Any
) -> None:
    """Write the mature transactions since the newest unexplained fraud, and the seconds since its run began."""
    chunks, label_chunks, words = state.chunks, state.label_chunks, MERCHANT_EVENT_WORDS
    chunk, at = _unexplained_before(state, chunk, end, time_us, month_us)
    first_us = state.labels[(label_chunks[chunk * CHUNK_WORDS + _START] + at) * LABEL_WORDS]
    mature_us = time_us - LABEL_MATURITY_US
    inside, end = _place(state, EVENTS, words, slot, mature_us)
    since = np.int64(0)
    while inside > 0 and first_us < mature_us:
        if chunks[inside * CHUNK_WORDS + _FIRST] <= first_us:
            later = _first_later(state.events, words, chunks[inside * CHUNK_WORDS + _START], end, first_us)
            since += end - later
            break
        since += end
        inside = chunks[inside * CHUNK_WORDS + _PREVIOUS]
        end = chunks[inside * CHUNK_WORDS + _LENGTH]
    row[column] = since
    for _ in range(FRAUD_RUN_STEPS):
        chunk, at = _unexplained_before(state, chunk, at, time_us, month_us)
        if chunk == 0:
            break
        earlier_us = state.labels[(label_chunks[chunk * CHUNK_WORDS + _START] + at) * LABEL_WORDS]
        inside, end = _place_from(state, EVENTS, words, inside, min(first_us - 1, mature_us))
        if _time_before(state, words, inside, end, FRAUD_RUN_GAP + 1) > earlier_us:
            break
        first_us = earlier_us
    row[column + 1] = (time_us - first_us) / US_PER_SECOND


@inlined
def _is_merchant_outlier(amount: Any, count: Any, sum_: Any) -> bool:
    """Compare an amount with the mean of a merchant's transactions, exactly."""
    high, low = wide_product(np.uint64(amount), np.uint64(count))
    limit_high, limit_low = wide_product(np.uint64(MERCHANT_OUTLIER_RATIO), np.uint64(sum_))
    above = high > limit_high or (high == limit_high and low > limit_low)
    return bool(above and count >= MERCHANT_OUTLIER_MINIMUM_EVENTS)


@compiled
def profile_merchants(
    state: State,
    first_row: Any,
    kinds: Any,
    keys: Any,
    identities: Any,
    times: Any,
    amounts: Any,
    counts: Any,
    outliers: Any,
    known: Any,
    known_at: Any,
    out: Any,
) -> int:
    """Fill ``out`` (rows x MERCHANT_FEATURES) from ``first_row`` on; returns the first row not done (a table is full).

    A row of kind 1 is a label: it changes what is known, and its output row is NaN.
    """
    meta, chunks, events = state.meta, state.chunks, state.events
    words = MERCHANT_EVENT_WORDS
    flagged = state.scratch[_FOUND : _FOUND + _N_WINDOWS]
    found = state.scratch[_FOUND : _FOUND + 6]
    slots_ahead = state.scratch[_SLOTS_AHEAD : _SLOTS_AHEAD + _ROWS_AHEAD]
    slots_ahead[:] = 0
    for i in range(first_row, keys.shape[0]):
        _look_ahead(state, EVENTS, words, keys, i, slots_ahead)
        is_label = kinds[i] == 1
        if not _has_room(state, LABELS if is_label else EVENTS, LABEL_WORDS if is_label else words):
            return i
        time_us, amount = times[i], amounts[i]
        floor_us = meta[NEWEST] - HORIZON_US
        enters = time_us > floor_us and (is_label or counts[i])
        slot = slots_ahead[i % _ROWS_AHEAD]
        slots_ahead[i % _ROWS_AHEAD] = 0
        if enters:
            slot = _enter(state, keys[i, 0], keys[i, 1], slot)
        elif slot == 0:
            slot = _find(state, keys[i, 0], keys[i, 1])[0]
        row = out[i]
        if is_label:
            row[:] = np.nan
            if enters:
                _insert_label(state, slot, time_us, identities[i], known[i], known_at[i])
            continue
        chunk, end = _place(state, EVENTS, words, slot, time_us)
        sum_, _, oldest, position = _window_features(state, words, chunk, end, time_us, floor_us, row, 0, flagged)
        tail = _MERCHANT_TAIL
        month = row[(_N_WINDOWS - 1) * _N_STATISTICS]
        row[tail] = row[tail + 14] = np.nan
        if month > 0:
            row[tail] = (time_us - events[(chunks[chunk * CHUNK_WORDS + _START] + end - 1) * words]) / US_PER_SECOND
            row[tail + 14] = _seconds_since_row(state, words, slot, oldest, position, time_us)
        mean = row[(_N_WINDOWS - 1) * _N_STATISTICS + 2]
        row[tail + 1] = amount / 100.0 / mean if mean > 0 else np.nan
        row[tail + 2] = row[_N_STATISTICS] / (month / 30.0) if month > 0 else np.nan
        if state.slots[slot * SLOT_WORDS + _TAIL + _KIND_STEP] == 0:
            row[tail + 3 : tail + 7] = 0.0
            row[tail + 7] = RISK_PRIOR_RATE * RISK_PRIOR_STRENGTH / RISK_PRIOR_STRENGTH
            row[tail + 8 : tail + 11] = np.nan
            row[tail + 11] = 0.0
            row[tail + 12 : tail + 14] = np.nan
        else:
            _label_features(state, slot, time_us, floor_us, row, tail + 3, found)
        if enters:
            flag = np.int64(outliers[i] or _is_merchant_outlier(amount, np.int64(month), sum_))
            _insert_event(state, words, slot, chunk, end, time_us, amount, flag, _NONE, floor_us)
        meta[NEWEST] = max(meta[NEWEST], time_us)
    return int(keys.shape[0])


@compiled
def take_back(state: State) -> None:
    """Copy the journal back, last entry first. The caller restores ``meta``."""
    journal, end = state.journal, state.meta[JOURNAL_END]
    while end > 0:
        source, start, words = journal[end - 3], journal[end - 2], journal[end - 1]
        end -= 3 + words
        if source == _NEW_SLOT:
            _leave_index(state, start)
            continue
        table = state.slots
        if source == _IN_CHUNKS:
            table = state.chunks
        elif source == _IN_CHUNKS + LABELS:
            table = state.label_chunks
        elif source == _IN_ITEMS:
            table = state.events
        elif source == _IN_ITEMS + LABELS:
            table = state.labels
        for k in range(words):
            table[start + k] = journal[end + k]


@compiled
def _drop_front(state: State, kind: Any, slot: Any, floor_us: Any) -> int:
    """Free a timeline's first chunks as far as nothing in them is later than ``floor_us``; returns their number."""
    chunks, _, chunks_dirty, _ = _tables(state, kind)
    meta, slots, base = state.meta, state.slots, slot * SLOT_WORDS + _KIND_STEP * kind
    dropped = 0
    chunk = slots[base + _HEAD]
    while chunk > 0 and chunks[chunk * CHUNK_WORDS + _LAST] <= floor_us:
        record = chunk * CHUNK_WORDS
        following, length = chunks[record + _NEXT], chunks[record + _LENGTH]
        free = _FREE_CHUNKS + _SIZE_CLASSES * kind + _size_class(chunks[record + _CAPACITY])
        chunks[record + _NEXT] = meta[free]
        meta[free] = chunk
        _mark(chunks_dirty, record, CHUNK_WORDS)
        slots[base + _HELD] -= length
        meta[HELD_EVENTS + kind] -= length
        slots[base + _HEAD] = following
        if following > 0:
            chunks[following * CHUNK_WORDS + _PREVIOUS] = 0
            _mark(chunks_dirty, following * CHUNK_WORDS, CHUNK_WORDS)
        else:
            slots[base + _TAIL] = 0
        _mark(state.slots_dirty, slot * SLOT_WORDS, SLOT_WORDS)
        dropped += 1
        chunk = following
    return dropped


@compiled
def sweep(state: State, labelled: bool, steps: Any) -> None:
    """Visit the next slots in turn, free what lies behind the horizon, and forget entities that hold nothing.

    ``steps`` bounds the slots visited and chunks freed (a timeline that was begun is finished).
    """
    meta, slots = state.meta, state.slots
    end, floor_us, slot = meta[SLOTS_END], meta[NEWEST] - HORIZON_US, meta[CURSOR]
    steps = min(steps, 2 * end)
    while steps > 0 and end > 1:
        steps -= 1
        slot = slot + 1 if slot + 1 < end else 1
        if slot + _SLOTS_AHEAD_IN_TURN < end:
            _prefetch(state.chunks, slots[(slot + _SLOTS_AHEAD_IN_TURN) * SLOT_WORDS + _HEAD] * CHUNK_WORDS)
        base = slot * SLOT_WORDS
        if slots[base + _TAIL] == _FREE:
            continue
        steps -= _drop_front(state, EVENTS, slot, floor_us)
        if labelled:
            steps -= _drop_front(state, LABELS, slot, floor_us)
            empty = slots[base + _HEAD] == 0 and slots[base + _HEAD + _KIND_STEP] == 0
        else:
            empty = slots[base + _HEAD] == 0 and slots[base + _CASE_START] <= floor_us
        if empty:
            _leave_index(state, slot)
            slots[base + _HEAD] = meta[FREE_SLOT]
            slots[base + _TAIL] = _FREE
            meta[FREE_SLOT] = slot
            meta[ENTITIES] -= 1
            _mark(state.slots_dirty, base, SLOT_WORDS)
    meta[CURSOR] = slot
