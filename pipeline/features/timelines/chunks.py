"""Chunks of a timeline: taken from the arena, linked into the chain, searched by time."""

from typing import Any

import numpy as np

from pipeline.features.compiled import compiled, inlined
from pipeline.features.timelines.journal import mark, save
from pipeline.features.timelines.layout import (
    CAPACITY,
    CHUNK_WORDS,
    CHUNKS_END,
    EVENTS,
    EVENTS_END,
    FIRST,
    FREE_CHUNKS,
    HEAD,
    IN_CHUNKS,
    JOURNAL_END,
    JOURNAL_RESERVE,
    KIND_STEP,
    LAST,
    LEAST_WITH_TOTALS,
    LENGTH,
    META_KIND_STEP,
    NEXT,
    PREVIOUS,
    ROWS_RESERVE,
    RUN,
    SIZE_CLASSES,
    SLOT_WORDS,
    SMALLEST_CHUNK,
    START,
    TAIL,
    TOTALS,
    TOTALS_WORDS,
    State,
    tables_of,
)
from pipeline.features.timelines.totals import clear_totals


@inlined
def has_room(state: State, kind: Any, words: Any) -> bool:
    """Return True if one more row surely finds its chunks, its room in the arena and in the journal."""
    chunks, items, _, _ = tables_of(state, kind)
    meta = state.meta
    return bool(
        (meta[CHUNKS_END + META_KIND_STEP * kind] + 2) * CHUNK_WORDS <= chunks.shape[0]
        and (meta[EVENTS_END + META_KIND_STEP * kind] + ROWS_RESERVE) * words <= items.shape[0]
        and meta[JOURNAL_END] + JOURNAL_RESERVE <= state.journal.shape[0]
    )


@compiled
def size_class_of(capacity: Any) -> int:
    """Return the class of a capacity: the number of its free list."""
    size_class, size = 0, SMALLEST_CHUNK
    while size < capacity:
        size <<= 1
        size_class += 1
    return size_class


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
        meta[free] = chunks[base + NEXT]
    else:
        chunk = meta[CHUNKS_END + META_KIND_STEP * kind]
        meta[CHUNKS_END + META_KIND_STEP * kind] = chunk + 1
        base = chunk * CHUNK_WORDS
        save(state, source, chunks, chunks_dirty, base, CHUNK_WORDS)
        start = meta[EVENTS_END + META_KIND_STEP * kind]
        rows = capacity
        if kind == EVENTS and capacity >= LEAST_WITH_TOTALS:
            rows += (capacity // RUN * TOTALS_WORDS + words - 1) // words
        meta[EVENTS_END + META_KIND_STEP * kind] = start + rows
        chunks[base + START] = start
        chunks[base + CAPACITY] = capacity
        mark(items_dirty, start * words, rows * words)
    chunks[base + LENGTH : base + CHUNK_WORDS] = 0
    if kind == EVENTS:
        clear_totals(chunks, base + TOTALS)
    head, tail = slot * SLOT_WORDS + HEAD + KIND_STEP * kind, slot * SLOT_WORDS + TAIL + KIND_STEP * kind
    if after == 0:
        slots[head] = chunk
        slots[tail] = chunk
        return int(chunk)
    following = chunks[after * CHUNK_WORDS + NEXT]
    save(state, source, chunks, chunks_dirty, after * CHUNK_WORDS, CHUNK_WORDS)
    chunks[after * CHUNK_WORDS + NEXT] = chunk
    chunks[base + PREVIOUS] = after
    chunks[base + NEXT] = following
    if following > 0:
        save(state, source, chunks, chunks_dirty, following * CHUNK_WORDS, CHUNK_WORDS)
        chunks[following * CHUNK_WORDS + PREVIOUS] = chunk
    else:
        slots[tail] = chunk
    return int(chunk)


@inlined
def first_later(items: Any, words: Any, start: Any, length: Any, time_us: Any) -> int:
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
def position_at(state: State, kind: Any, words: Any, slot: Any, time_us: Any) -> Any:
    """(chunk, position) behind the last row not later than ``time_us``; chunk 0: all are later, or there is none."""
    return position_from(state, kind, words, state.slots[slot * SLOT_WORDS + TAIL + KIND_STEP * kind], time_us)


@inlined
def position_from(state: State, kind: Any, words: Any, chunk: Any, time_us: Any) -> Any:
    """The same, from a chunk on backwards."""
    chunks, items, _, _ = tables_of(state, kind)
    while chunk > 0 and chunks[chunk * CHUNK_WORDS + FIRST] > time_us:
        chunk = chunks[chunk * CHUNK_WORDS + PREVIOUS]
    if chunk == 0:
        return chunk, np.int64(0)
    record = chunk * CHUNK_WORDS
    length = chunks[record + LENGTH]
    if chunks[record + LAST] <= time_us:
        return chunk, length
    return chunk, np.int64(first_later(items, words, chunks[record + START], length, time_us))
