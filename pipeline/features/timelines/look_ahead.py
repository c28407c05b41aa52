"""Prefetching of what the next rows will read."""

from typing import Any, Final

from pipeline.features.compiled import inlined, prefetch
from pipeline.features.timelines.entities import find_slot
from pipeline.features.timelines.layout import (
    AHEAD,
    CHUNK,
    CHUNK_WORDS,
    CHUNKS_AHEAD,
    LEAST_WITH_TOTALS,
    LINE_WORDS,
    ROWS_AHEAD,
    RUN_SHIFT,
    SLOT,
    SLOT_MASK,
    SLOT_WORDS,
    TOTALS,
    TOTALS_WORDS,
    State,
)

_EVENTS_AHEAD: Final = 40
"""Newest events of a timeline that are fetched ahead: those whose amounts are compared, and of the shortest window.
Of large chunks totals tell of the others; those of small chunks, which have none, are fetched too."""
_RUN_LINES_AHEAD: Final = 16
"""Cache lines of the totals of a chunk's newest runs that are fetched ahead at most."""
_CHUNKS: Final = ROWS_AHEAD
_LEFT: Final = 2 * ROWS_AHEAD


@inlined
def look_ahead(state: State, words: Any, keys: Any, i: Any, ahead: Any) -> None:
    """Have fetched what the rows behind row ``i`` will read: a step of the way from key to events for each of them.

    With many entities each step is a cache miss that the next step waits for; steps of several rows wait together.

    Args:
        state: The partition's tables; only read.
        words: 64-bit words of an event's row.
        keys: Keys of the entities of all n rows, shape (n, 2).
        i: Number of the row that comes next; called for one row after the other.
        ahead: Shape (LOOKED_AHEAD_WORDS,), zeros at first. The slot of row j, or 0, is noted at j % ROWS_AHEAD. Callers
            set it to 0 again once that row has come. Behind the slots are the chunks to be fetched next, or 0, and the
            events to be fetched still.
    """
    n, mask = keys.shape[0], state.slot_index.shape[0] - 1
    j = i + (CHUNKS_AHEAD + 3) * AHEAD
    if j < n:
        prefetch(state.slot_index, keys[j, 1] & mask)
    j = i + (CHUNKS_AHEAD + 2) * AHEAD
    if j < n:
        prefetch(state.slots, (state.slot_index[keys[j, 1] & mask] & SLOT_MASK) * SLOT_WORDS)
    j = i + (CHUNKS_AHEAD + 1) * AHEAD
    if j < n:
        slot = find_slot(state, keys[j, 0], keys[j, 1])[0]
        chunk = state.slots[slot * SLOT_WORDS + SLOT.tail]
        ahead[j % ROWS_AHEAD] = slot
        ahead[_CHUNKS + j % ROWS_AHEAD] = chunk
        ahead[_LEFT + j % ROWS_AHEAD] = _EVENTS_AHEAD
        prefetch(state.chunks, chunk * CHUNK_WORDS)
    for step in range(CHUNKS_AHEAD, 0, -1):
        j = i + step * AHEAD
        if j < n and ahead[_CHUNKS + j % ROWS_AHEAD] > 0:
            _fetch_chunk(state, words, j % ROWS_AHEAD, ahead)


@inlined
def _fetch_chunk(state: State, words: Any, at: Any, ahead: Any) -> None:
    """Have a chunk's rows and totals fetched, and the record of the chunk before it."""
    chunks, events = state.chunks, state.events
    record, left = ahead[_CHUNKS + at] * CHUNK_WORDS, ahead[_LEFT + at]
    length, capacity = chunks[record + CHUNK.length], chunks[record + CHUNK.capacity]
    start = chunks[record + CHUNK.start] * words
    with_totals = capacity >= LEAST_WITH_TOTALS
    if with_totals:
        prefetch(chunks, record + TOTALS)
        if left > 0:
            runs = start + capacity * words
            end = runs + ((length >> RUN_SHIFT) + 1) * TOTALS_WORDS
            for k in range(max(runs, end - _RUN_LINES_AHEAD * LINE_WORDS), end, LINE_WORDS):
                prefetch(events, k)
    fetched = min(length, left) if with_totals else length
    if fetched > 0:
        # And the row behind them, in which the next one may come to stand.
        end = start + (length + 1) * words
        for k in range(end - (fetched + 1) * words, end, LINE_WORDS):
            prefetch(events, k)
        prefetch(events, end - 1)
    before = chunks[record + CHUNK.previous]
    prefetch(chunks, before * CHUNK_WORDS)
    ahead[_CHUNKS + at] = before
    ahead[_LEFT + at] = left - length
