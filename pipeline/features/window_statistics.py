"""Statistics of every window of one entity, in one walk from its newest event backwards."""

from typing import Any, Final

import numpy as np

from pipeline.features.built_in import STATISTICS, WINDOWS_US
from pipeline.features.compiled import compiled, inlined
from pipeline.features.timelines.layout import (
    CHUNK,
    CHUNK_WORDS,
    EVENT,
    LEAST_WITH_TOTALS,
    NEVER,
    RUN,
    RUN_SHIFT,
    SLOT,
    SLOT_WORDS,
    TOTAL,
    TOTALS,
    TOTALS_WORDS,
    State,
)
from pipeline.features.timelines.totals import standard_deviation, with_event, with_totals
from schemas.times import US_PER_SECOND

_WINDOWS: Final = tuple(WINDOWS_US.values())
N_WINDOWS: Final = len(_WINDOWS)
_COUNT, _SUM, _MEAN, _STD, _MAX, _MIN = map(STATISTICS.index, ("count", "sum", "mean", "std", "max", "min"))
_N_STATISTICS: Final = len(STATISTICS)
NO_TOTALS: Final = np.int64(-1), np.int64(NEVER), np.int64(0), np.int64(0), np.int64(0), np.int64(0), np.int64(0)
"""Totals of no events, in the order of `TOTAL`."""


@inlined
def extend(state: State, words: Any, chunk: Any, end: Any, lower_us: Any, count: Any, totals: Any) -> Any:
    """Count the events before a position that are later than a time.

    Args:
        state: The partition's tables; only read.
        words: 64-bit words of an event's row.
        chunk: A chunk of the entity; 0: none.
        end: Position in it: the events before it, and those of earlier chunks, are looked at.
        lower_us: Microseconds since 1970.
        count: Number of events so far.
        totals: Their totals, in the order of `TOTAL`.

    Returns:
        (chunk, end, count, totals), the position being that before the first event that was counted.
    """
    chunks, events = state.chunks, state.events
    while chunk > 0:
        record = chunk * CHUNK_WORDS
        start = chunks[record + CHUNK.start]
        if chunks[record + CHUNK.capacity] >= LEAST_WITH_TOTALS:
            length = chunks[record + CHUNK.length]
            runs = (start + chunks[record + CHUNK.capacity]) * words
            if end == length and chunks[record + CHUNK.first] > lower_us:
                totals = with_totals(totals, chunks, record + TOTALS)
                count += end
                end = np.int64(0)
            while end > 0:
                if end % RUN == 0 or end == length:
                    first = (end - 1) & ~(RUN - 1)
                    if events[(start + first) * words] > lower_us:
                        totals = with_totals(totals, events, runs + (first >> RUN_SHIFT) * TOTALS_WORDS)
                        count += end - first
                        end = first
                        continue
                event = (start + end - 1) * words
                if events[event] <= lower_us:
                    break
                totals = with_event(totals, events[event + EVENT.amount])
                count += 1
                end -= 1
        else:
            while end > 0:
                event = (start + end - 1) * words
                if events[event] <= lower_us:
                    break
                totals = with_event(totals, events[event + EVENT.amount])
                count += 1
                end -= 1
        if end > 0:
            break
        chunk = chunks[record + CHUNK.previous]
        end = chunks[chunk * CHUNK_WORDS + CHUNK.length]
    return chunk, end, count, totals


@inlined
def window_features(
    state: State, words: Any, chunk: Any, end: Any, time_us: Any, floor_us: Any, row: Any, column: Any, found: Any
) -> Any:
    """Write the statistics of every window to ``row``, those of the first window from ``column`` on.

    ``chunk`` and ``end``: the position behind the last event to look at. ``found``: gets the flags of every window.

    Returns:
        Of the longest window: sum of the amounts, of the flagged ones alone, and the position before its first event.
    """
    count, totals = np.int64(0), NO_TOTALS
    for w in range(N_WINDOWS):
        lower_us, shorter = max(time_us - _WINDOWS[w], floor_us), count
        chunk, end, count, totals = extend(state, words, chunk, end, lower_us, count, totals)
        largest, smallest, sum_, high, low, flags, _ = totals
        found[w] = flags
        at = column + w * _N_STATISTICS
        if w > 0 and count == shorter:
            # The same events as in the window before, and so the same statistics.
            for k in range(at, at + _N_STATISTICS):
                row[k] = row[k - _N_STATISTICS]
            continue
        row[at + _COUNT] = count
        row[at + _SUM] = sum_ / 100.0
        # All is computed for an empty window too, and then put aside: without branches, the windows' divisions overlap.
        mean, deviation = sum_ / count / 100.0, standard_deviation(count, sum_, high, low) / 100.0
        most, least = largest / 100.0, smallest / 100.0
        empty = count == 0
        row[at + _MEAN] = np.nan if empty else mean
        row[at + _STD] = np.nan if empty else deviation
        row[at + _MAX] = np.nan if empty else most
        row[at + _MIN] = np.nan if empty else least
    _, _, sum_, _, _, _, flagged_sum = totals
    return sum_, flagged_sum, chunk, end


@inlined
def seconds_since_row(state: State, words: Any, slot: Any, chunk: Any, at: Any, time_us: Any) -> float:
    """Seconds from the event at position ``at`` of ``chunk`` (behind its last: the next chunk's first) to a time."""
    chunks = state.chunks
    if chunk == 0:
        chunk = state.slots[slot * SLOT_WORDS + SLOT.head]
    elif at == chunks[chunk * CHUNK_WORDS + CHUNK.length]:
        chunk, at = chunks[chunk * CHUNK_WORDS + CHUNK.next], np.int64(0)
    return float((time_us - state.events[(chunks[chunk * CHUNK_WORDS + CHUNK.start] + at) * words]) / US_PER_SECOND)


@compiled
def last_flagged_us(state: State, words: Any, chunk: Any, end: Any) -> int:
    """Time of the last flagged event before position ``end`` of ``chunk``; there is one."""
    chunks, events = state.chunks, state.events
    while True:
        record = chunk * CHUNK_WORDS
        start, capacity = chunks[record + CHUNK.start], chunks[record + CHUNK.capacity]
        if capacity < LEAST_WITH_TOTALS or chunks[record + TOTALS + TOTAL.flags] > 0:
            runs = (start + capacity) * words
            while end > 0:
                first = (end - 1) & ~(RUN - 1)
                if capacity < LEAST_WITH_TOTALS or events[runs + (first >> RUN_SHIFT) * TOTALS_WORDS + TOTAL.flags] > 0:
                    for i in range(start + end - 1, start + first - 1, -1):
                        if events[i * words + EVENT.amount] & 1:
                            return int(events[i * words])
                end = first
        chunk = chunks[record + CHUNK.previous]
        end = chunks[chunk * CHUNK_WORDS + CHUNK.length]
