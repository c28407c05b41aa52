"""Prefetching of what the next rows will read."""

from typing import Any, Final

from pipeline.features.compiled import inlined, prefetch
from pipeline.features.timelines.entities import find_slot
from pipeline.features.timelines.layout import (
    AHEAD,
    CAPACITY,
    CHUNK_WORDS,
    EVENTS,
    KIND_STEP,
    LEAST_WITH_TOTALS,
    LENGTH,
    LINE_WORDS,
    PREVIOUS,
    ROWS_AHEAD,
    RUN_SHIFT,
    SLOT_MASK,
    SLOT_WORDS,
    START,
    TAIL,
    TOTALS,
    TOTALS_WORDS,
    State,
    tables_of,
)

_LINES_AHEAD: Final = 16
"""Cache lines of a chunk's newest rows that are fetched ahead at most."""


@inlined
def look_ahead(state: State, kind: Any, words: Any, keys: Any, i: Any, slots_ahead: Any) -> None:
    """Have fetched what the rows behind row ``i`` will read: a step of the way from key to events for each of them.

    With many entities each step is a cache miss that the next step waits for; steps of several rows wait together.
    """
    n, mask = keys.shape[0], state.slot_index.shape[0] - 1
    chunks, items, _, _ = tables_of(state, kind)
    tail = TAIL + KIND_STEP * kind
    j = i + 5 * AHEAD
    if j < n:
        prefetch(state.slot_index, keys[j, 1] & mask)
    j = i + 4 * AHEAD
    if j < n:
        prefetch(state.slots, (state.slot_index[keys[j, 1] & mask] & SLOT_MASK) * SLOT_WORDS)
    j = i + 3 * AHEAD
    if j < n:
        slot = find_slot(state, keys[j, 0], keys[j, 1])[0]
        slots_ahead[j % ROWS_AHEAD] = slot
        prefetch(chunks, state.slots[slot * SLOT_WORDS + tail] * CHUNK_WORDS)
    for step in range(2, 0, -1):
        j = i + step * AHEAD
        if j < n:
            chunk = state.slots[slots_ahead[j % ROWS_AHEAD] * SLOT_WORDS + tail]
            if step == 1:
                chunk = chunks[chunk * CHUNK_WORDS + PREVIOUS]
                if chunk == 0:
                    continue
            record = chunk * CHUNK_WORDS
            start = chunks[record + START] * words
            end = start + (chunks[record + LENGTH] + 1) * words
            for k in range(max(start, end - _LINES_AHEAD * LINE_WORDS), end, LINE_WORDS):
                prefetch(items, k)
            prefetch(items, end - 1)
            if kind == EVENTS and chunks[record + CAPACITY] >= LEAST_WITH_TOTALS:
                prefetch(chunks, record + TOTALS)
                runs = start + chunks[record + CAPACITY] * words
                end = runs + ((chunks[record + LENGTH] >> RUN_SHIFT) + 1) * TOTALS_WORDS
                for k in range(max(runs, end - _LINES_AHEAD * LINE_WORDS), end, LINE_WORDS):
                    prefetch(items, k)
            prefetch(chunks, chunks[record + PREVIOUS] * CHUNK_WORDS)
