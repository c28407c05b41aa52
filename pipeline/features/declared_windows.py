"""Declared windows: aggregates of one value of each event, over windows of any length.

A group is one aggregate over several windows. It is computed in one walk from the newest event backwards, one window
within the next. Values are whole numbers of steps, so that sums are exact whatever the order of events.
"""

import math
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.features.aggregates import (
    COUNT_CODE,
    DISTINCT_CODE,
    FIRST_CODE,
    LAST_CODE,
    MAX_CODE,
    MEAN_CODE,
    MIN_CODE,
    NEW_CODE,
    SHARE_CODE,
    STD_CODE,
    SUM_CODE,
    USUAL_HOUR_CODE,
)
from pipeline.features.compiled import compiled, inlined, wide_product
from pipeline.features.timelines.chunks import first_count
from pipeline.features.timelines.layout import (
    CHUNK,
    CHUNK_WORDS,
    EVENT,
    LEAST_WITH_TOTALS,
    META,
    NEVER,
    NO_VALUE,
    RUN,
    RUN_SHIFT,
    State,
)
from pipeline.features.timelines.totals import TWO_64, add_wide, standard_deviation
from pipeline.features.window_statistics import NO_TOTALS, extend, seconds_since_row
from schemas.times import US_PER_SECOND

MOST_DISTINCT: Final = 1_000
"""Different values that are counted at most."""
MOST_HOURS: Final = 1_000
"""The newest events whose hours make the usual one, at most."""
LARGEST_VALUE: Final = 2.0**53
"""Values of so many steps or more, of either sign, count as none."""
AMOUNT_SCALE: Final = 100.0
_MINUTES: Final = 1_440
_HOURS_PER_RADIAN: Final = 12.0 / math.pi
_UNIT: Final = 2**30
_SINES: Final = np.array([round(_UNIT * math.sin(2 * math.pi * m / _MINUTES)) for m in range(_MINUTES)], np.int64)
_COSINES: Final = np.array([round(_UNIT * math.cos(2 * math.pi * m / _MINUTES)) for m in range(_MINUTES)], np.int64)
"""Direction of each minute of the day on the clock, in whole numbers, which add up exactly."""
_TABLE_BITS: Final = 11
_TABLE_MASK: Final = 2**_TABLE_BITS - 1
_HASH_SHIFT: Final = np.uint64(64 - _TABLE_BITS)
_HASH_FACTOR: Final = np.uint64(0x9E3779B97F4A7C15)
_EXACT_SQUARES: Final = 2**62
"""The number of values times the high word of the sum of their squares, up to which variances are exact."""


class Declared(NamedTuple):
    """The work of an entity's kernel beyond built-in features; it gets None where nothing is declared.

    The first four are of the `pipeline.features.feature_set.Plan`.
    """

    groups: NDArray[np.int64]
    windows_us: NDArray[np.int64]
    ratios: NDArray[np.int64]
    scales: NDArray[np.float64]
    values: NDArray[np.int64]
    """`whole_values` of all rows."""
    distinct: NDArray[np.int64]
    """The `distinct_table`."""


def distinct_table() -> NDArray[np.int64]:
    """Return room for counting different values: pairs of stamp and value, and behind them the latest stamp."""
    return np.zeros(2 * (_TABLE_MASK + 1) + 1, np.int64)


def whole_values(inputs: NDArray[np.float64] | None, n: int, scales: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the values of n events as whole numbers of steps.

    Args:
        inputs: Shape (n, inputs), NaN for no value; None for no values.
        n: Number of events.
        scales: Steps of each input's unit, shape (inputs,).

    Returns:
        Shape (n, inputs): value x scale, rounded (half to even), `NO_VALUE` for those that are too large.

    >>> whole_values(np.array([[0.125, np.nan]]), 1, np.array([100.0, 1.0])).tolist()
    [[12, -9223372036854775808]]
    """
    if inputs is None:
        return np.full((n, len(scales)), NO_VALUE)
    if inputs.shape != (n, len(scales)):
        raise ValueError(f"the inputs have shape {inputs.shape}, not {(n, len(scales))}")
    # Rows of labels hold whatever was in memory, a signalling NaN too: their values are not read.
    with np.errstate(over="ignore", invalid="ignore"):
        steps = np.multiply(inputs, scales, order="C")
    usable = np.abs(steps) < LARGEST_VALUE
    whole: NDArray[np.int64] = np.rint(np.where(usable, steps, 0.0)).astype(np.int64)
    whole[~usable] = NO_VALUE
    return whole


@compiled
def declared_features(
    state: State, words: Any, slot: Any, chunk: Any, end: Any, time_us: Any, floor_us: Any, amount: Any, i: Any,
    declared: Declared, out: Any,
) -> None:  # fmt: skip
    """Write the features of declared windows, and ratios.

    Args:
        state: The partition's tables; only read.
        words: 64-bit words of an event's row.
        slot: Slot of the entity.
        chunk: The chunk that `position_at` finds for ``time_us``.
        end: The position that it finds with it.
        time_us: Event time of the present row, which is in no window of its own.
        floor_us: Horizon, in microseconds since 1970.
        amount: Amount of the present row, in minor units.
        i: Number of the present row.
        declared: What to compute.
        out: Shape (columns,): the row of features, which has those that ratios are of.
    """
    groups, ratios, own_words = declared.groups, declared.ratios, words - declared.values.shape[1]
    for g in range(groups.shape[0]):
        code, given, column = groups[g, 0], groups[g, 1], groups[g, 2]
        windows = declared.windows_us[groups[g, 3] : groups[g, 4]]
        group_out = out[column : column + windows.shape[0]]
        word, shift, value, scale = np.int64(EVENT.amount), np.int64(1), amount, AMOUNT_SCALE
        if given >= 0:
            word, shift, value, scale = (
                own_words + given,
                np.int64(0),
                declared.values[i, given],
                declared.scales[given],
            )
        if code == DISTINCT_CODE:
            _distinct(state, words, chunk, end, time_us, floor_us, windows, word, shift, declared.distinct, group_out)
        elif code == NEW_CODE:
            _new(state, words, chunk, end, time_us, floor_us, windows, word, shift, value, group_out)
        elif code == USUAL_HOUR_CODE:
            _usual_hour(state, words, chunk, end, time_us, floor_us, windows, word, shift, value, group_out)
        elif given >= 0 and code in (COUNT_CODE, SHARE_CODE):
            _counts(state, words, chunk, end, time_us, floor_us, windows, given, code, group_out)
        elif given < 0:
            _amounts(state, words, slot, chunk, end, time_us, floor_us, windows, code, group_out)
        else:
            _moments(state, words, chunk, end, time_us, floor_us, windows, word, code, scale, group_out)
    for r in range(ratios.shape[0]):
        divisor = out[ratios[r, 2]]
        out[ratios[r, 0]] = out[ratios[r, 1]] / divisor if divisor > 0 else np.nan


@inlined
def _step_back(state: State, words: Any, chunk: Any, end: Any, lower_us: Any) -> Any:
    """(chunk, position, first word) of the event before a position; the word is -1 if none is later than a time."""
    if end == 0:
        chunk = state.chunks[chunk * CHUNK_WORDS + CHUNK.previous]
        end = state.chunks[chunk * CHUNK_WORDS + CHUNK.length]
    if chunk > 0:
        event = (state.chunks[chunk * CHUNK_WORDS + CHUNK.start] + end - 1) * words
        if state.events[event] > lower_us:
            return chunk, end - 1, event
    return chunk, end, np.int64(-1)


@inlined
def _as_float(high: Any, low: Any) -> Any:
    """A signed 128-bit number; exactly rounded if it fits into 64 bits."""
    if high == low >> 63:
        return np.float64(low)
    return np.float64(high) * TWO_64 + np.float64(np.uint64(low))


@inlined
def _deviation(count: Any, sum_high: Any, sum_low: Any, high: Any, low: Any) -> Any:
    """Population standard deviation, from the sum of values and the sum of their squares; exact before the root.

    Of huge numbers, whose products do not fit into 128 bits, it is as exact as floating-point numbers are.
    """
    if 0 <= high < _EXACT_SQUARES // count:
        return standard_deviation(count, abs(sum_low), high, low)
    mean = _as_float(sum_high, sum_low) / count
    squares = np.float64(np.uint64(high)) * TWO_64 + np.float64(np.uint64(low))
    return np.sqrt(max(squares / count - mean * mean, 0.0))


@inlined
def _statistic(
    code: Any, count: Any, sums: Any, largest: Any, smallest: Any, last_us: Any, oldest_us: Any,
    time_us: Any, scale: Any,
) -> Any:  # fmt: skip
    """The statistic of a window that ``code`` names.

    Args:
        code: A code of `pipeline.features.aggregates`.
        count: Number of its events that have a value.
        sums: Sum of the values and of their squares, 128 bits each.
        largest: Largest value.
        smallest: Smallest value.
        last_us: Event time of the newest value.
        oldest_us: Event time of the oldest value.
        time_us: Event time of the present row.
        scale: Steps of a unit.
    """
    sum_high, sum_low, square_high, square_low = sums
    result = np.nan
    if code == COUNT_CODE:
        result = np.float64(count)
    elif code == SUM_CODE:
        result = _as_float(sum_high, sum_low) / scale
    elif count == 0:
        result = np.nan
    elif code == MEAN_CODE:
        result = _as_float(sum_high, sum_low) / count / scale
    elif code == STD_CODE:
        result = _deviation(count, sum_high, sum_low, square_high, square_low) / scale
    elif code == MIN_CODE:
        result = smallest / scale
    elif code == MAX_CODE:
        result = largest / scale
    elif code == LAST_CODE:
        result = (time_us - last_us) / US_PER_SECOND
    elif code == FIRST_CODE:
        result = (time_us - oldest_us) / US_PER_SECOND
    return result


@compiled
def _amounts(
    state: State, words: Any, slot: Any, chunk: Any, end: Any, time_us: Any, floor_us: Any, windows: Any, code: Any,
    out: Any,
) -> None:  # fmt: skip
    """Write a statistic of the amounts of all events, which chunks and runs have totals of."""
    totals, count, last_us = NO_TOTALS, np.int64(0), np.int64(0)
    if chunk > 0:
        last_us = state.events[(state.chunks[chunk * CHUNK_WORDS + CHUNK.start] + end - 1) * words]
    for w in range(windows.shape[0]):
        lower_us = max(time_us - windows[w], floor_us)
        chunk, end, count, totals = extend(state, words, chunk, end, lower_us, count, totals)
        largest, smallest, sum_, high, low, _, _ = totals
        if code == FIRST_CODE:
            out[w] = seconds_since_row(state, words, slot, chunk, end, time_us) if count > 0 else np.nan
        else:
            sums = sum_ >> 63, sum_, high, low
            out[w] = _statistic(code, count, sums, largest, smallest, last_us, time_us, time_us, AMOUNT_SCALE)


@inlined
def _count_back(
    state: State, words: Any, chunk: Any, end: Any, lower_us: Any, given: Any, held: Any, count: Any
) -> Any:
    """Count the events before a position that are later than a time, and those of them that have a value.

    Returns (chunk, position before the first that was counted, events, events with a value).
    """
    chunks, events, values = state.chunks, state.events, state.meta[META.values]
    word = words - values + given
    while chunk > 0:
        record = chunk * CHUNK_WORDS
        start, capacity, length = (
            chunks[record + CHUNK.start],
            chunks[record + CHUNK.capacity],
            chunks[record + CHUNK.length],
        )
        counts = first_count(state, words, record) + given
        with_counts = capacity >= LEAST_WITH_TOTALS
        if with_counts and end == length and chunks[record + CHUNK.first] > lower_us:
            held, count = held + end, count + events[counts + capacity // RUN * values]
            end = np.int64(0)
        while end > 0:
            if with_counts and (end % RUN == 0 or end == length):
                first = (end - 1) & ~(RUN - 1)
                if events[(start + first) * words] > lower_us:
                    held, count = held + end - first, count + events[counts + (first >> RUN_SHIFT) * values]
                    end = first
                    continue
            row = (start + end - 1) * words
            if events[row] <= lower_us:
                break
            held, count = held + 1, count + (events[row + word] != NO_VALUE)
            end -= 1
        if end > 0:
            break
        chunk = chunks[record + CHUNK.previous]
        end = chunks[chunk * CHUNK_WORDS + CHUNK.length]
    return chunk, end, held, count


@compiled
def _counts(
    state: State, words: Any, chunk: Any, end: Any, time_us: Any, floor_us: Any, windows: Any, given: Any, code: Any,
    out: Any,
) -> None:  # fmt: skip
    """Write how many events have a value, or what share of them; chunks and runs know how many of theirs do."""
    held, count = np.int64(0), np.int64(0)
    for w in range(windows.shape[0]):
        lower_us = max(time_us - windows[w], floor_us)
        chunk, end, held, count = _count_back(state, words, chunk, end, lower_us, given, held, count)
        out[w] = count if code == COUNT_CODE else count / held if held > 0 else np.nan


@compiled
def _moments(
    state: State, words: Any, chunk: Any, end: Any, time_us: Any, floor_us: Any, windows: Any, word: Any, code: Any,
    scale: Any, out: Any,
) -> None:  # fmt: skip
    """Write a statistic of the values in a word of each event's row."""
    events = state.events
    count, sum_high, sum_low = np.int64(0), np.int64(0), np.int64(0)
    high, low, largest, smallest = np.int64(0), np.int64(0), np.int64(NO_VALUE), np.int64(NEVER)
    last_us, oldest_us = np.int64(NO_VALUE), np.int64(0)
    for w in range(windows.shape[0]):
        lower_us = max(time_us - windows[w], floor_us)
        while code != LAST_CODE or count == 0:
            chunk, end, event = _step_back(state, words, chunk, end, lower_us)
            if event < 0:
                break
            value = events[event + word]
            if value == NO_VALUE:
                continue
            count += 1
            sum_high, sum_low = add_wide(sum_high, sum_low, value >> 63, value)
            square_high, square_low = wide_product(np.uint64(abs(value)), np.uint64(abs(value)))
            high, low = add_wide(high, low, np.int64(square_high), np.int64(square_low))
            largest, smallest = max(largest, value), min(smallest, value)
            oldest_us = events[event]
            last_us = max(last_us, oldest_us)
        sums = sum_high, sum_low, high, low
        out[w] = _statistic(code, count, sums, largest, smallest, last_us, oldest_us, time_us, scale)


@compiled
def _distinct(
    state: State, words: Any, chunk: Any, end: Any, time_us: Any, floor_us: Any, windows: Any, word: Any, shift: Any,
    table: Any, out: Any,
) -> None:  # fmt: skip
    """Write the number of different values."""
    last = table.shape[0] - 1
    table[last] += 1
    stamp, different = table[last], np.int64(0)
    for w in range(windows.shape[0]):
        lower_us = max(time_us - windows[w], floor_us)
        while different < MOST_DISTINCT:
            chunk, end, event = _step_back(state, words, chunk, end, lower_us)
            if event < 0:
                break
            value = state.events[event + word]
            if value == NO_VALUE:
                continue
            value >>= shift
            at = np.int64((np.uint64(value) * _HASH_FACTOR) >> _HASH_SHIFT)
            while table[2 * at] == stamp and table[2 * at + 1] != value:
                at = (at + 1) & _TABLE_MASK
            if table[2 * at] != stamp:
                table[2 * at], table[2 * at + 1] = stamp, value
                different += 1
        out[w] = different


@compiled
def _new(
    state: State, words: Any, chunk: Any, end: Any, time_us: Any, floor_us: Any, windows: Any, word: Any, shift: Any,
    value: Any, out: Any,
) -> None:  # fmt: skip
    """Write 1 if no event has the present row's value, else 0."""
    found = False
    for w in range(windows.shape[0]):
        lower_us = max(time_us - windows[w], floor_us)
        while value != NO_VALUE and not found:
            chunk, end, event = _step_back(state, words, chunk, end, lower_us)
            if event < 0:
                break
            found = state.events[event + word] >> shift == value
        out[w] = np.nan if value == NO_VALUE else 0.0 if found else 1.0


@compiled
def _usual_hour(
    state: State, words: Any, chunk: Any, end: Any, time_us: Any, floor_us: Any, windows: Any, word: Any, shift: Any,
    value: Any, out: Any,
) -> None:  # fmt: skip
    """Write the distance on the clock, in hours, of the present row's minute from the circular mean of the values."""
    sine, cosine = np.int64(0), np.int64(0)
    looked_at = 0
    for w in range(windows.shape[0]):
        lower_us = max(time_us - windows[w], floor_us)
        while value != NO_VALUE and looked_at < MOST_HOURS:
            chunk, end, event = _step_back(state, words, chunk, end, lower_us)
            if event < 0:
                break
            looked_at += 1
            minute = state.events[event + word]
            if minute != NO_VALUE:
                minute = (minute >> shift) % _MINUTES
                sine += _SINES[minute]
                cosine += _COSINES[minute]
        out[w] = np.nan
        if sine != 0 or cosine != 0:
            mean = math.atan2(np.float64(sine), np.float64(cosine)) * _HOURS_PER_RADIAN
            apart = abs((value % _MINUTES) / 60.0 - mean)
            apart = apart - 24.0 if apart >= 24.0 else apart
            out[w] = 24.0 - apart if apart > 12.0 else apart
