"""Statistics of every window of one entity, in one walk from its newest event backwards."""

from typing import Any, Final

import numpy as np

from pipeline.features.catalogue import STATISTICS, WINDOWS_US
from pipeline.features.compiled import compiled, inlined
from pipeline.features.timelines.layout import (
    CAPACITY,
    CHUNK_WORDS,
    EVENT_AMOUNT,
    FIRST,
    FLAGGED_SUM,
    FLAGS,
    HEAD,
    LEAST_WITH_TOTALS,
    LENGTH,
    NEVER,
    NEXT,
    PREVIOUS,
    RUN,
    RUN_SHIFT,
    SLOT_WORDS,
    START,
    SUM,
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


@inlined
def window_features(
    state: State, words: Any, chunk: Any, end: Any, time_us: Any, floor_us: Any, row: Any, column: Any, found: Any
) -> Any:
    """Write the statistics of every window to ``row``, those of the first window from ``column`` on.

    ``chunk`` and ``end``: the position behind the last event to look at. ``found``: gets the flags of every window.

    Returns:
        Of the longest window: sum of the amounts, of the flagged ones alone, and the position before its first event.
    """
    chunks, events = state.chunks, state.events
    count = np.int64(0)
    totals = np.int64(-1), np.int64(NEVER), np.int64(0), np.int64(0), np.int64(0), np.int64(0), np.int64(0)
    for w in range(N_WINDOWS):
        lower_us = max(time_us - _WINDOWS[w], floor_us)
        while chunk > 0:
            record = chunk * CHUNK_WORDS
            start = chunks[record + START]
            if chunks[record + CAPACITY] >= LEAST_WITH_TOTALS:
                length = chunks[record + LENGTH]
                runs = (start + chunks[record + CAPACITY]) * words
                if end == length and chunks[record + FIRST] > lower_us:
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
                    totals = with_event(totals, events[event + EVENT_AMOUNT])
                    count += 1
                    end -= 1
            else:
                while end > 0:
                    event = (start + end - 1) * words
                    if events[event] <= lower_us:
                        break
                    totals = with_event(totals, events[event + EVENT_AMOUNT])
                    count += 1
                    end -= 1
            if end > 0:
                break
            chunk = chunks[record + PREVIOUS]
            end = chunks[chunk * CHUNK_WORDS + LENGTH]
        largest, smallest, sum_, high, low, flags, _ = totals
        found[w] = flags
        at = column + w * _N_STATISTICS
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
    return totals[SUM], totals[FLAGGED_SUM], chunk, end


@inlined
def seconds_since_row(state: State, words: Any, slot: Any, chunk: Any, at: Any, time_us: Any) -> float:
    """Seconds from the event at position ``at`` of ``chunk`` (behind its last: the next chunk's first) to a time."""
    chunks = state.chunks
    if chunk == 0:
        chunk = state.slots[slot * SLOT_WORDS + HEAD]
    elif at == chunks[chunk * CHUNK_WORDS + LENGTH]:
        chunk, at = chunks[chunk * CHUNK_WORDS + NEXT], np.int64(0)
    return float((time_us - state.events[(chunks[chunk * CHUNK_WORDS + START] + at) * words]) / US_PER_SECOND)


@compiled
def last_flagged_us(state: State, words: Any, chunk: Any, end: Any) -> int:
    """Time of the last flagged event before position ``end`` of ``chunk``; there is one."""
    chunks, events = state.chunks, state.events
    while True:
        record = chunk * CHUNK_WORDS
        start, capacity = chunks[record + START], chunks[record + CAPACITY]
        if capacity < LEAST_WITH_TOTALS or chunks[record + TOTALS + FLAGS] > 0:
            runs = (start + capacity) * words
            while end > 0:
                first = (end - 1) & ~(RUN - 1)
                if capacity < LEAST_WITH_TOTALS or events[runs + (first >> RUN_SHIFT) * TOTALS_WORDS + FLAGS] > 0:
                    for i in range(start + end - 1, start + first - 1, -1):
                        if events[i * words + EVENT_AMOUNT] & 1:
                            return int(events[i * words])
                end = first
        chunk = chunks[record + PREVIOUS]
        end = chunks[chunk * CHUNK_WORDS + LENGTH]
