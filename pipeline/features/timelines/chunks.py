"""Chunks of a timeline: taken from the arena, linked into the chain, searched by time."""

from typing import Any

import numpy as np

from pipeline.features.compiled import compiled, inlined
from pipeline.features.timelines.journal import mark, save
from pipeline.features.timelines.layout import (
    CHUNK,
    CHUNK_WORDS,
    EVENTS,
    FREE_CHUNKS,
    IN_CHUNKS,
    IN_ITEMS,
    KIND_STEP,
    LEAST_WITH_TOTALS,
    META,
    META_KIND_STEP,
    ROWS_RESERVE,
    RUN,
    SIZE_CLASSES,
    SLOT,
    SLOT_WORDS,
    SMALLEST_CHUNK,
    TOTALS,
    TOTALS_WORDS,
    State,
    tables_of,
)
from pipeline.features.timelines.totals import clear_totals


@inlined
def has_room(state: State, kind: Any, words: Any) -> bool:
    """Return True if one more row surely finds its chunks, its room in the arena and in the journal.

    Args:
        state: The partition's tables; only read.
        kind: Kind of timeline that the row is for: `EVENTS` or `LABELS`.
        words: 64-bit words of a row of that kind.
    """
    chunks, items, _, _ = tables_of(state, kind)
    meta = state.meta
    return bool(
        (meta[META.chunks_end + META_KIND_STEP * kind] + 2) * CHUNK_WORDS <= chunks.shape[0]
        and (meta[META.events_end + META_KIND_STEP * kind] + ROWS_RESERVE) * words <= items.shape[0]
        and meta[META.journal_end] + meta[META.journal_reserve] <= state.journal.shape[0]
    )


@compiled
def size_class_of(capacity: Any) -> int:
    """Return the class of a capacity: the number of its free list."""
    size_class, size = 0, SMALLEST_CHUNK
    while size < capacity:
        size <<= 1
        size_class += 1
    return size_class


@inlined
def first_count(state: State, words: Any, record: Any) -> Any:
    """Number of the word at which the counts of a chunk's first run begin; ``record``: where the chunk's begins."""
    capacity = state.chunks[record + CHUNK.capacity]
    return (state.chunks[record + CHUNK.start] + capacity) * words + capacity // RUN * TOTALS_WORDS


@compiled
def take_chunk(state: State, kind: Any, words: Any, slot: Any, after: Any, capacity: Any, least_capacity: Any) -> int:
    """An empty chunk, linked into a slot's chain behind chunk ``after`` (0: the chain is empty).

    Where none of ``capacity`` is free, a smaller one down to ``least_capacity`` is taken before the arena grows:
    entities that became busier leave small ones behind.
    """
    chunks, _, chunks_dirty, items_dirty = tables_of(state, kind)
    meta, slots = state.meta, state.slots
    source = IN_CHUNKS + kind
    free = FREE_CHUNKS + SIZE_CLASSES * kind + size_class_of(capacity)
    least = FREE_CHUNKS + SIZE_CLASSES * kind + size_class_of(least_capacity)
    while meta[free] == 0 and free > least:
        free -= 1
    chunk = meta[free]
    if chunk > 0:
        base = chunk * CHUNK_WORDS
        save(state, source, chunks, chunks_dirty, base, CHUNK_WORDS)
        meta[free] = chunks[base + CHUNK.next]
    else:
        chunk = meta[META.chunks_end + META_KIND_STEP * kind]
        meta[META.chunks_end + META_KIND_STEP * kind] = chunk + 1
        base = chunk * CHUNK_WORDS
        save(state, source, chunks, chunks_dirty, base, CHUNK_WORDS)
        start = meta[META.events_end + META_KIND_STEP * kind]
        rows = capacity
        if kind == EVENTS and capacity >= LEAST_WITH_TOTALS:
            behind = capacity // RUN * TOTALS_WORDS + (capacity // RUN + 1) * meta[META.values]
            rows += (behind + words - 1) // words
        meta[META.events_end + META_KIND_STEP * kind] = start + rows
        chunks[base + CHUNK.start] = start
        chunks[base + CHUNK.capacity] = capacity
        mark(items_dirty, start * words, rows * words)
    chunks[base + CHUNK.length : base + CHUNK_WORDS] = 0
    if kind == EVENTS:
        clear_totals(chunks, base + TOTALS)
        if chunks[base + CHUNK.capacity] >= LEAST_WITH_TOTALS:
            counts = first_count(state, words, base) + chunks[base + CHUNK.capacity] // RUN * meta[META.values]
            save(state, IN_ITEMS, state.events, items_dirty, counts, meta[META.values])
            state.events[counts : counts + meta[META.values]] = 0
    head, tail = slot * SLOT_WORDS + SLOT.head + KIND_STEP * kind, slot * SLOT_WORDS + SLOT.tail + KIND_STEP * kind
    if after == 0:
        slots[head] = chunk
        slots[tail] = chunk
        return int(chunk)
    following = chunks[after * CHUNK_WORDS + CHUNK.next]
    save(state, source, chunks, chunks_dirty, after * CHUNK_WORDS, CHUNK_WORDS)
    chunks[after * CHUNK_WORDS + CHUNK.next] = chunk
    chunks[base + CHUNK.previous] = after
    chunks[base + CHUNK.next] = following
    if following > 0:
        save(state, source, chunks, chunks_dirty, following * CHUNK_WORDS, CHUNK_WORDS)
        chunks[following * CHUNK_WORDS + CHUNK.previous] = chunk
    else:
        slots[tail] = chunk
    return int(chunk)


@inlined
def first_later(items: Any, words: Any, start: Any, length: Any, time_us: Any) -> int:
    """Position (within a chunk from row ``start`` on) of the first of ``length`` rows later than ``time_us``.

    Args:
        items: The arena of one kind of timeline, flat; the first word of each row is its event time.
        words: 64-bit words of a row.
        start: Row of the arena at which the chunk begins.
        length: Rows of the chunk to look at; they ascend by event time.
        time_us: Microseconds since 1970.

    Returns:
        0 to ``length``, which stands for none.
    """
    low, high = 0, length
    while low < high:
        middle = (low + high) >> 1
        if items[(start + middle) * words] <= time_us:
            low = middle + 1
        else:
            high = middle
    return int(low)


@inlined
def position_at(state: State, kind: Any, words: Any, slot: Any, time_us: Any) -> Any:
    """(chunk, position) behind the last row not later than ``time_us``; chunk 0: all are later, or there is none.

    Args:
        state: The partition's tables; only read.
        kind: Kind of timeline to search: `EVENTS` or `LABELS`.
        words: 64-bit words of a row of that kind.
        slot: Slot of the entity; 0, the slot of none, has no rows.
        time_us: Microseconds since 1970.
    """
    return position_from(state, kind, words, state.slots[slot * SLOT_WORDS + SLOT.tail + KIND_STEP * kind], time_us)


@inlined
def position_from(state: State, kind: Any, words: Any, chunk: Any, time_us: Any) -> Any:
    """The same, from a chunk on backwards.

    Args:
        state: The partition's tables; only read.
        kind: Kind of timeline that the chunk is of: `EVENTS` or `LABELS`.
        words: 64-bit words of a row of that kind.
        chunk: Number of the last chunk to look at; 0: none.
        time_us: Microseconds since 1970.
    """
    chunks, items, _, _ = tables_of(state, kind)
    while chunk > 0 and chunks[chunk * CHUNK_WORDS + CHUNK.first] > time_us:
        chunk = chunks[chunk * CHUNK_WORDS + CHUNK.previous]
    if chunk == 0:
        return chunk, np.int64(0)
    record = chunk * CHUNK_WORDS
    length = chunks[record + CHUNK.length]
    if chunks[record + CHUNK.last] <= time_us:
        return chunk, length
    return chunk, np.int64(first_later(items, words, chunks[record + CHUNK.start], length, time_us))
