"""Insertion of rows into a timeline, wherever their event time puts them."""

from typing import Any

import numpy as np

from pipeline.features.compiled import compiled, inlined
from pipeline.features.timelines.chunks import first_count, first_later, size_class_of, take_chunk
from pipeline.features.timelines.journal import mark, save
from pipeline.features.timelines.layout import (
    CHUNK,
    CHUNK_WORDS,
    EVENT,
    EVENTS,
    FREE_CHUNKS,
    IN_CHUNKS,
    IN_ITEMS,
    KIND_STEP,
    LABEL,
    LABEL_WORDS,
    LABELLED,
    LARGEST_BLOCK,
    LARGEST_CHUNK,
    LEAST_WITH_TOTALS,
    LINE_WORDS,
    META,
    NEVER,
    NO_CHUNK,
    NO_VALUE,
    RUN,
    RUN_SHIFT,
    SLOT,
    SLOT_WORDS,
    SMALLEST_CHUNK,
    TOTALS,
    TOTALS_WORDS,
    State,
    tables_of,
)
from pipeline.features.timelines.totals import add_event, clear_totals


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
def _open_row(state: State, kind: Any, words: Any, chunk: Any, at: Any) -> Any:
    """Move the rows of a chunk with room from position ``at`` on up by one; returns (chunk, position)."""
    chunks, items, chunks_dirty, items_dirty = tables_of(state, kind)
    record = chunk * CHUNK_WORDS
    length = chunks[record + CHUNK.length]
    save(state, IN_CHUNKS + kind, chunks, chunks_dirty, record, CHUNK_WORDS)
    start = chunks[record + CHUNK.start] * words
    save(state, IN_ITEMS + kind, items, items_dirty, start + at * words, (length - at) * words)
    for k in range(start + (length + 1) * words - 1, start + (at + 1) * words - 1, -1):
        items[k] = items[k - words]
    mark(items_dirty, start + at * words, (length + 1 - at) * words)
    chunks[record + CHUNK.length] = length + 1
    return chunk, at


@compiled
def make_room(state: State, kind: Any, words: Any, slot: Any, chunk: Any, at: Any, floor_us: Any) -> Any:
    """Open a row at a position of a chunk.

    Later rows of the chunk are moved, the new one is not written.

    Args:
        state: The partition's tables, for which `has_room` is True.
        kind: Kind of timeline: `EVENTS` or `LABELS`.
        words: 64-bit words of a row of that kind.
        slot: Slot of the entity.
        chunk: A chunk of its timeline, as `position_at` finds it; 0: in front of all.
        at: Position in that chunk, 0 to its length; not read where ``chunk`` is 0.
        floor_us: Horizon, in microseconds since 1970. If a timeline's only chunk is small and has no room, its events
            up to that time may be dropped for the new one. Labels never are.

    Returns:
        The (chunk, position) of the row.
    """
    chunks, items, _, items_dirty = tables_of(state, kind)
    slots, base = state.slots, slot * SLOT_WORDS + KIND_STEP * kind
    if chunk == 0:
        chunk, at = slots[base + SLOT.head], 0
        if chunk == 0:
            chunk = take_chunk(state, kind, words, slot, NO_CHUNK, SMALLEST_CHUNK, SMALLEST_CHUNK)
    record = chunk * CHUNK_WORDS
    length, capacity = chunks[record + CHUNK.length], chunks[record + CHUNK.capacity]
    appended = at == length and chunk == slots[base + SLOT.tail]
    if length < (_appendable(capacity) if appended else capacity):
        return _open_row(state, kind, words, chunk, at)
    if kind == EVENTS and slots[base + SLOT.head] == slots[base + SLOT.tail] and capacity <= LARGEST_BLOCK:
        block, gone = _resize_only_chunk(state, words, slot, chunk, floor_us)
        if block > 0:
            return _open_row(state, kind, words, block, at - gone)
    if appended:
        capacity = _next_capacity(slots[base + SLOT.held] + 1)
        least = capacity // 4
        if kind == EVENTS:
            # All of a chain know their totals: without them every window would add up the rows of small ones.
            capacity, least = max(capacity, LARGEST_BLOCK), max(least, LEAST_WITH_TOTALS)
        chunk = take_chunk(state, kind, words, slot, chunk, capacity, least)
        return _open_row(state, kind, words, chunk, NO_CHUNK)
    half = length // 2
    upper = take_chunk(state, kind, words, slot, chunk, length, length)
    start, target = chunks[record + CHUNK.start] * words, chunks[upper * CHUNK_WORDS + CHUNK.start] * words
    save(state, kind + IN_ITEMS, items, items_dirty, start + half * words, (length - half) * words)
    for k in range((length - half) * words):
        items[target + k] = items[start + half * words + k]
    mark(items_dirty, target, (length - half) * words)
    chunks[record + CHUNK.length] = half
    chunks[upper * CHUNK_WORDS + CHUNK.length] = length - half
    if kind == EVENTS:
        _recount_chunk(state, words, chunk)
        _recount_chunk(state, words, upper)
    else:
        _split_label_totals(state, chunk, upper)
    if at > half:
        chunk, at = upper, at - half
    return _open_row(state, kind, words, chunk, at)


@compiled
def _resize_only_chunk(state: State, words: Any, slot: Any, chunk: Any, floor_us: Any) -> Any:
    """Let a timeline's only chunk fit what is not behind the horizon, with room for more.

    Returns (the chunk that takes its place or itself, rows that are gone from its front); (0, 0): there is too much.
    """
    chunks, events, base = state.chunks, state.events, slot * SLOT_WORDS
    record = chunk * CHUNK_WORDS
    start, length = chunks[record + CHUNK.start], chunks[record + CHUNK.length]
    gone = first_later(events, words, start, length, floor_us)
    kept, capacity = length - gone, SMALLEST_CHUNK
    while 4 * kept > 3 * capacity:
        capacity <<= 1
    if capacity > LARGEST_BLOCK:
        return np.int64(0), np.int64(0)
    save(state, IN_CHUNKS, chunks, state.chunks_dirty, record, CHUNK_WORDS)
    # Also where they stay: once it is free, the same batch may take the chunk again and write over them.
    save(state, IN_ITEMS, events, state.events_dirty, start * words, length * words)
    block = chunk
    if capacity != chunks[record + CHUNK.capacity]:
        block = take_chunk(state, EVENTS, words, slot, NO_CHUNK, capacity, capacity)
        free = FREE_CHUNKS + size_class_of(chunks[record + CHUNK.capacity])
        chunks[record + CHUNK.next] = state.meta[free]
        state.meta[free] = chunk
    source, target = (start + gone) * words, chunks[block * CHUNK_WORDS + CHUNK.start] * words
    for k in range(kept * words):
        events[target + k] = events[source + k]
    mark(state.events_dirty, target, max(kept, 1) * words)
    chunks[block * CHUNK_WORDS + CHUNK.length] = kept
    state.slots[base + SLOT.held] -= gone
    state.meta[META.held_events] -= gone
    _recount_chunk(state, words, block)
    return np.int64(block), np.int64(gone)


@inlined
def _count_values(state: State, words: Any, row: Any, counts: Any) -> None:
    """Add 1 to each count, from word ``counts`` on, whose value an event has; its row begins at word ``row``."""
    events, values = state.events, state.meta[META.values]
    for k in range(values):
        events[counts + k] += events[row + words - values + k] != NO_VALUE


@compiled
def _recount_runs(state: State, words: Any, chunk: Any, first: Any) -> None:
    """Find totals and counts of a chunk's runs again, from the run of position ``first`` on; the old ones are saved."""
    chunks, events, record = state.chunks, state.events, chunk * CHUNK_WORDS
    start, length = chunks[record + CHUNK.start], chunks[record + CHUNK.length]
    runs = (start + chunks[record + CHUNK.capacity]) * words
    low, high = first >> RUN_SHIFT, (length - 1) >> RUN_SHIFT
    save(state, IN_ITEMS, events, state.events_dirty, runs + low * TOTALS_WORDS, (high + 1 - low) * TOTALS_WORDS)
    counts, values = first_count(state, words, record), state.meta[META.values]
    save(state, IN_ITEMS, events, state.events_dirty, counts + low * values, (high + 1 - low) * values)
    for run in range(low, high + 1):
        at, counted = runs + run * TOTALS_WORDS, counts + run * values
        clear_totals(events, at)
        events[counted : counted + values] = 0
        for i in range(run * RUN, min((run + 1) * RUN, length)):
            row = (start + i) * words
            add_event(events, at, events[row + EVENT.amount])
            _count_values(state, words, row, counted)


@compiled
def _recount_chunk(state: State, words: Any, chunk: Any) -> None:
    """Set a chunk's first and last time and its totals by its rows; its record is saved already."""
    chunks, events, record = state.chunks, state.events, chunk * CHUNK_WORDS
    start, length = chunks[record + CHUNK.start], chunks[record + CHUNK.length]
    if length > 0:
        chunks[record + CHUNK.first] = events[start * words]
        chunks[record + CHUNK.last] = events[(start + length - 1) * words]
    if chunks[record + CHUNK.capacity] >= LEAST_WITH_TOTALS:
        clear_totals(chunks, record + TOTALS)
        for i in range(start, start + length):
            add_event(chunks, record + TOTALS, events[i * words + EVENT.amount])
        _recount_runs(state, words, chunk, NO_CHUNK)
        _add_up_counts(state, words, record)


@compiled
def _add_up_counts(state: State, words: Any, record: Any) -> None:
    """Set the counts of a whole chunk, whose record begins at word ``record``, by those of its runs."""
    events, values, capacity = state.events, state.meta[META.values], state.chunks[record + CHUNK.capacity]
    counts, runs = first_count(state, words, record), (state.chunks[record + CHUNK.length] + RUN - 1) >> RUN_SHIFT
    whole = counts + capacity // RUN * values
    save(state, IN_ITEMS, events, state.events_dirty, whole, values)
    for k in range(values):
        events[whole + k] = 0
        for run in range(runs):
            events[whole + k] += events[counts + run * values + k]


@compiled
def _split_label_totals(state: State, lower: Any, upper: Any) -> None:
    """Give the two halves of a chunk that was split their own cumulative columns and totals."""
    chunks, labels = state.label_chunks, state.labels
    low, up = lower * CHUNK_WORDS, upper * CHUNK_WORDS
    last = (chunks[low + CHUNK.start] + chunks[low + CHUNK.length] - 1) * LABEL_WORDS
    known, frauds = labels[last + LABEL.known], labels[last + LABEL.frauds]
    unexplained = labels[last + LABEL.unexplained]
    for i in range(chunks[up + CHUNK.start], chunks[up + CHUNK.start] + chunks[up + CHUNK.length]):
        labels[i * LABEL_WORDS + LABEL.known] -= known
        labels[i * LABEL_WORDS + LABEL.frauds] -= frauds
        labels[i * LABEL_WORDS + LABEL.unexplained] -= unexplained
    for record in (low, up):
        start, end = chunks[record + CHUNK.start], chunks[record + CHUNK.start] + chunks[record + CHUNK.length]
        latest, corrected = labels[start * LABEL_WORDS + LABEL.known_at], 0
        for i in range(start, end):
            latest = max(latest, labels[i * LABEL_WORDS + LABEL.known_at])
            corrected += 1 if labels[i * LABEL_WORDS + LABEL.superseded_at] != NEVER else 0
        last = (end - 1) * LABEL_WORDS
        chunks[record + CHUNK.first], chunks[record + CHUNK.last] = labels[start * LABEL_WORDS], labels[last]
        chunks[record + LABELLED.known] = labels[last + LABEL.known]
        chunks[record + LABELLED.frauds] = labels[last + LABEL.frauds]
        chunks[record + LABELLED.unexplained] = labels[last + LABEL.unexplained]
        chunks[record + LABELLED.latest_known_at], chunks[record + LABELLED.corrected] = latest, corrected


@inlined
def insert_event(
    state: State,
    words: Any,
    slot: Any,
    chunk: Any,
    at: Any,
    time_us: Any,
    amount: Any,
    flag: Any,
    floor_us: Any,
    values: Any,
    i: Any,
) -> Any:
    """Put an event at position ``at`` of ``chunk``; the rows behind it in that chunk are moved.

    The caller writes the words between its amount and its values.

    Args:
        state: The partition's tables, for which `has_room` is True.
        words: 64-bit words of an event's row.
        slot: Slot of the entity.
        chunk: The chunk that `position_at` finds for ``time_us``; 0: in front of all.
        at: The position that it finds with it.
        time_us: Event time, in microseconds since 1970.
        amount: Minor units of the base currency, 0 <= amount < 2**53.
        flag: 1 if the amount is an outlier, else 0.
        floor_us: Horizon, as of `make_room`.
        values: Declared values of all rows, shape (n, k); not read where events have none.
        i: Number of the event among them.

    Returns:
        Number of the first word of its row.
    """
    chunks, events = state.chunks, state.events
    record = chunk * CHUNK_WORDS
    if chunk > 0 and at == chunks[record + CHUNK.length] and at < _appendable(chunks[record + CHUNK.capacity]):
        save(state, IN_CHUNKS, chunks, state.chunks_dirty, record, LINE_WORDS)
        chunks[record + CHUNK.length] = at + 1
    else:
        chunk, at = make_room(state, EVENTS, words, slot, chunk, at, floor_us)
        record = chunk * CHUNK_WORDS
    state.slots[slot * SLOT_WORDS + SLOT.held] += 1
    state.meta[META.held_events] += 1
    doubled = amount << 1 | flag
    row = (chunks[record + CHUNK.start] + at) * words
    events[row] = time_us
    events[row + EVENT.amount] = doubled
    held = state.meta[META.values]
    for k in range(held):
        events[row + words - held + k] = values[i, k]
    mark(state.events_dirty, row, words)
    if at == 0:
        chunks[record + CHUNK.first] = time_us
    if at + 1 == chunks[record + CHUNK.length]:
        chunks[record + CHUNK.last] = time_us
    if chunks[record + CHUNK.capacity] >= LEAST_WITH_TOTALS:
        _count_event(state, words, chunk, at, doubled)
    return row


@compiled
def _count_event(state: State, words: Any, chunk: Any, at: Any, doubled: Any) -> None:
    """Take the event at position ``at`` into the totals of a chunk that has them."""
    chunks, events, record = state.chunks, state.events, chunk * CHUNK_WORDS
    save(state, IN_CHUNKS, chunks, state.chunks_dirty, record + TOTALS, TOTALS_WORDS)
    add_event(chunks, record + TOTALS, doubled)
    capacity, values, row = chunks[record + CHUNK.capacity], state.meta[META.values], chunks[record + CHUNK.start] + at
    counts = first_count(state, words, record)
    whole = counts + capacity // RUN * values
    save(state, IN_ITEMS, events, state.events_dirty, whole, values)
    _count_values(state, words, row * words, whole)
    if at + 1 < chunks[record + CHUNK.length] or at % RUN == 0:
        _recount_runs(state, words, chunk, at)
        return
    run = (chunks[record + CHUNK.start] + capacity) * words + (at >> RUN_SHIFT) * TOTALS_WORDS
    save(state, IN_ITEMS, events, state.events_dirty, run, TOTALS_WORDS)
    add_event(events, run, doubled)
    counts += (at >> RUN_SHIFT) * values
    save(state, IN_ITEMS, events, state.events_dirty, counts, values)
    _count_values(state, words, row * words, counts)
