"""Insertion of rows into a timeline, wherever their event time puts them."""

from typing import Any

import numpy as np

from pipeline.features.compiled import compiled, inlined
from pipeline.features.timelines.chunks import first_later, size_class_of, take_chunk
from pipeline.features.timelines.journal import mark, save
from pipeline.features.timelines.layout import (
    CAPACITY,
    CHUNK_WORDS,
    CORRECTED,
    EVENT_AMOUNT,
    EVENT_OTHER,
    EVENTS,
    FIRST,
    FRAUDS,
    FREE_CHUNKS,
    HEAD,
    HELD,
    HELD_EVENTS,
    IN_CHUNKS,
    IN_ITEMS,
    KIND_STEP,
    KNOWN,
    LABEL_FRAUDS,
    LABEL_KNOWN,
    LABEL_KNOWN_AT,
    LABEL_SUPERSEDED_AT,
    LABEL_UNEXPLAINED,
    LABEL_WORDS,
    LARGEST_BLOCK,
    LARGEST_CHUNK,
    LAST,
    LATEST_KNOWN_AT,
    LEAST_WITH_TOTALS,
    LENGTH,
    LINE_WORDS,
    NEVER,
    NEXT,
    NO_CHUNK,
    RUN,
    RUN_SHIFT,
    SLOT_WORDS,
    SMALLEST_CHUNK,
    START,
    TAIL,
    TOTALS,
    TOTALS_WORDS,
    UNEXPLAINED,
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
    length = chunks[record + LENGTH]
    save(state, IN_CHUNKS + kind, chunks, chunks_dirty, record, CHUNK_WORDS)
    start = chunks[record + START] * words
    save(state, IN_ITEMS + kind, items, items_dirty, start + at * words, (length - at) * words)
    for k in range(start + (length + 1) * words - 1, start + (at + 1) * words - 1, -1):
        items[k] = items[k - words]
    mark(items_dirty, start + at * words, (length + 1 - at) * words)
    chunks[record + LENGTH] = length + 1
    return chunk, at


@compiled
def make_room(state: State, kind: Any, words: Any, slot: Any, chunk: Any, at: Any, floor_us: Any) -> Any:
    """Open a row at position ``at`` of ``chunk`` (0: in front of all).

    Later rows of the chunk are moved, the new one is not written. Returns the (chunk, position) of the row.
    """
    chunks, items, _, items_dirty = tables_of(state, kind)
    slots, base = state.slots, slot * SLOT_WORDS + KIND_STEP * kind
    if chunk == 0:
        chunk, at = slots[base + HEAD], 0
        if chunk == 0:
            chunk = take_chunk(state, kind, words, slot, NO_CHUNK, SMALLEST_CHUNK, SMALLEST_CHUNK)
    record = chunk * CHUNK_WORDS
    length, capacity = chunks[record + LENGTH], chunks[record + CAPACITY]
    appended = at == length and chunk == slots[base + TAIL]
    if length < (_appendable(capacity) if appended else capacity):
        return _open_row(state, kind, words, chunk, at)
    if kind == EVENTS and slots[base + HEAD] == slots[base + TAIL] and capacity <= LARGEST_BLOCK:
        block, gone = _resize_only_chunk(state, words, slot, chunk, floor_us)
        if block > 0:
            return _open_row(state, kind, words, block, at - gone)
    if appended:
        capacity = _next_capacity(slots[base + HELD] + 1)
        if kind == EVENTS:
            capacity = max(capacity, LARGEST_BLOCK)
        chunk = take_chunk(state, kind, words, slot, chunk, capacity, capacity // 4)
        return _open_row(state, kind, words, chunk, NO_CHUNK)
    half = length // 2
    upper = take_chunk(state, kind, words, slot, chunk, length, length)
    start, target = chunks[record + START] * words, chunks[upper * CHUNK_WORDS + START] * words
    save(state, kind + IN_ITEMS, items, items_dirty, start + half * words, (length - half) * words)
    for k in range((length - half) * words):
        items[target + k] = items[start + half * words + k]
    mark(items_dirty, target, (length - half) * words)
    chunks[record + LENGTH] = half
    chunks[upper * CHUNK_WORDS + LENGTH] = length - half
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
    start, length = chunks[record + START], chunks[record + LENGTH]
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
    if capacity != chunks[record + CAPACITY]:
        block = take_chunk(state, EVENTS, words, slot, NO_CHUNK, capacity, capacity)
        free = FREE_CHUNKS + size_class_of(chunks[record + CAPACITY])
        chunks[record + NEXT] = state.meta[free]
        state.meta[free] = chunk
    source, target = (start + gone) * words, chunks[block * CHUNK_WORDS + START] * words
    for k in range(kept * words):
        events[target + k] = events[source + k]
    mark(state.events_dirty, target, max(kept, 1) * words)
    chunks[block * CHUNK_WORDS + LENGTH] = kept
    state.slots[base + HELD] -= gone
    state.meta[HELD_EVENTS] -= gone
    _recount_chunk(state, words, block)
    return np.int64(block), np.int64(gone)


@compiled
def _recount_runs(state: State, words: Any, chunk: Any, first: Any) -> None:
    """Find the totals of a chunk's runs again, from the run of position ``first`` on; the old ones are saved."""
    chunks, events, record = state.chunks, state.events, chunk * CHUNK_WORDS
    start, length = chunks[record + START], chunks[record + LENGTH]
    runs = (start + chunks[record + CAPACITY]) * words
    low, high = first >> RUN_SHIFT, (length - 1) >> RUN_SHIFT
    save(state, IN_ITEMS, events, state.events_dirty, runs + low * TOTALS_WORDS, (high + 1 - low) * TOTALS_WORDS)
    for run in range(low, high + 1):
        at = runs + run * TOTALS_WORDS
        clear_totals(events, at)
        for i in range(run * RUN, min((run + 1) * RUN, length)):
            add_event(events, at, events[(start + i) * words + EVENT_AMOUNT])


@compiled
def _recount_chunk(state: State, words: Any, chunk: Any) -> None:
    """Set a chunk's first and last time and its totals by its rows; its record is saved already."""
    chunks, events, record = state.chunks, state.events, chunk * CHUNK_WORDS
    start, length = chunks[record + START], chunks[record + LENGTH]
    if length > 0:
        chunks[record + FIRST], chunks[record + LAST] = events[start * words], events[(start + length - 1) * words]
    if chunks[record + CAPACITY] >= LEAST_WITH_TOTALS:
        clear_totals(chunks, record + TOTALS)
        for i in range(start, start + length):
            add_event(chunks, record + TOTALS, events[i * words + EVENT_AMOUNT])
        _recount_runs(state, words, chunk, NO_CHUNK)


@compiled
def _split_label_totals(state: State, lower: Any, upper: Any) -> None:
    """Give the two halves of a chunk that was split their own cumulative columns and totals."""
    chunks, labels = state.label_chunks, state.labels
    low, up = lower * CHUNK_WORDS, upper * CHUNK_WORDS
    last = (chunks[low + START] + chunks[low + LENGTH] - 1) * LABEL_WORDS
    known, frauds, unexplained = (
        labels[last + LABEL_KNOWN],
        labels[last + LABEL_FRAUDS],
        labels[last + LABEL_UNEXPLAINED],
    )
    for i in range(chunks[up + START], chunks[up + START] + chunks[up + LENGTH]):
        labels[i * LABEL_WORDS + LABEL_KNOWN] -= known
        labels[i * LABEL_WORDS + LABEL_FRAUDS] -= frauds
        labels[i * LABEL_WORDS + LABEL_UNEXPLAINED] -= unexplained
    for record in (low, up):
        start, end = chunks[record + START], chunks[record + START] + chunks[record + LENGTH]
        latest, corrected = labels[start * LABEL_WORDS + LABEL_KNOWN_AT], 0
        for i in range(start, end):
            latest = max(latest, labels[i * LABEL_WORDS + LABEL_KNOWN_AT])
            corrected += 1 if labels[i * LABEL_WORDS + LABEL_SUPERSEDED_AT] != NEVER else 0
        last = (end - 1) * LABEL_WORDS
        chunks[record + FIRST], chunks[record + LAST] = labels[start * LABEL_WORDS], labels[last]
        chunks[record + KNOWN], chunks[record + FRAUDS] = labels[last + LABEL_KNOWN], labels[last + LABEL_FRAUDS]
        chunks[record + UNEXPLAINED] = labels[last + LABEL_UNEXPLAINED]
        chunks[record + LATEST_KNOWN_AT], chunks[record + CORRECTED] = latest, corrected


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
    other: Any,
    floor_us: Any,
) -> None:
    """Put an event at position ``at`` of ``chunk``; the rows behind it in that chunk are moved."""
    chunks, events = state.chunks, state.events
    record = chunk * CHUNK_WORDS
    if chunk > 0 and at == chunks[record + LENGTH] and at < _appendable(chunks[record + CAPACITY]):
        save(state, IN_CHUNKS, chunks, state.chunks_dirty, record, LINE_WORDS)
        chunks[record + LENGTH] = at + 1
    else:
        chunk, at = make_room(state, EVENTS, words, slot, chunk, at, floor_us)
        record = chunk * CHUNK_WORDS
    state.slots[slot * SLOT_WORDS + HELD] += 1
    state.meta[HELD_EVENTS] += 1
    doubled = amount << 1 | flag
    row = (chunks[record + START] + at) * words
    events[row] = time_us
    events[row + EVENT_AMOUNT] = doubled
    if words > EVENT_OTHER:
        events[row + EVENT_OTHER] = other
    mark(state.events_dirty, row, words)
    if at == 0:
        chunks[record + FIRST] = time_us
    if at + 1 == chunks[record + LENGTH]:
        chunks[record + LAST] = time_us
    if chunks[record + CAPACITY] >= LEAST_WITH_TOTALS:
        _count_event(state, words, chunk, at, doubled)


@compiled
def _count_event(state: State, words: Any, chunk: Any, at: Any, doubled: Any) -> None:
    """Take the event at position ``at`` into the totals of a chunk that has them."""
    chunks, events, record = state.chunks, state.events, chunk * CHUNK_WORDS
    save(state, IN_CHUNKS, chunks, state.chunks_dirty, record + TOTALS, TOTALS_WORDS)
    add_event(chunks, record + TOTALS, doubled)
    if at + 1 < chunks[record + LENGTH] or at % RUN == 0:
        _recount_runs(state, words, chunk, at)
        return
    run = (chunks[record + START] + chunks[record + CAPACITY]) * words + (at >> RUN_SHIFT) * TOTALS_WORDS
    save(state, IN_ITEMS, events, state.events_dirty, run, TOTALS_WORDS)
    add_event(events, run, doubled)
