"""The kernel of a card's features; ``docs/features.md`` defines them."""

from typing import Any, Final

import numpy as np

from pipeline.features.built_in import (
    CARD,
    CASE_RETENTION_US,
    EPISODE_US,
    OUTLIER_MINIMUM_EVENTS,
    OUTLIER_RATIO,
    USUAL_EVENTS,
    WINDOWS_US,
)
from pipeline.features.compiled import compiled, inlined
from pipeline.features.declared_windows import Declared, declared_features
from pipeline.features.timelines.chunks import has_room, position_at
from pipeline.features.timelines.entities import enter_slot
from pipeline.features.timelines.insertion import insert_event
from pipeline.features.timelines.layout import (
    CARD_EVENT_WORDS,
    CHUNK,
    CHUNK_WORDS,
    EVENT,
    EVENTS,
    FOUND,
    LOOKED_AHEAD,
    LOOKED_AHEAD_WORDS,
    META,
    NEVER,
    ORDERED,
    RECENT,
    ROWS_AHEAD,
    SLOT,
    SLOT_WORDS,
    State,
)
from pipeline.features.timelines.look_ahead import look_ahead
from pipeline.features.window_statistics import N_WINDOWS, last_flagged_us, window_features
from schemas.times import US_PER_SECOND

_LANES: Final = 8
"""Numbers of keys that are compared are multiples of it; so is `USUAL_EVENTS`."""
_USUAL_SHIFT: Final = (USUAL_EVENTS - 1).bit_length()
_DAY, _WEEK, _MONTH = map([*WINDOWS_US].index, ("1d", "7d", "30d"))
_MAD_TO_SIGMA: Final = 1.4826
_DEVIATION_FLOOR: Final = 0.1


@inlined
def _order(keys: Any, n: Any, ordered: Any) -> None:
    """Write the amounts of ``keys[:n]`` to ``ordered``, ascending. A key: an amount, and its position below it.

    Each goes to the position that the number of smaller ones gives: comparisons without a branch take a few vector
    instructions, where a sort's branches are guessed wrong. The number that is compared is known at run time only.
    A constant one lets LLVM unroll the loop before it looks for vectors, into single instructions.
    """
    compared = (n + _LANES - 1) & ~(_LANES - 1)
    for k in range(n, compared):
        keys[k] = NEVER
    for j in range(n):
        key, smaller = keys[j], 0
        for k in range(compared):
            smaller += 1 if keys[k] < key else 0
        ordered[smaller] = key >> _USUAL_SHIFT


@inlined
def _median_and_spread(ordered: Any, n: Any) -> Any:
    """(2 x median, 4 x MAD) of ``ordered[:n]`` (ascending integers); MAD: median absolute deviation from the median."""
    median_2 = ordered[(n - 1) // 2] + ordered[n // 2]
    # The half (and one more) of the amounts that are nearest to the median stand together. They begin at the first
    # amount that is no further from it than the one behind the last of them would be.
    half = n // 2
    low, high = 0, n - half - 1
    while low < high:
        middle = (low + high) >> 1
        if ordered[middle] + ordered[middle + half + 1] < median_2:
            low = middle + 1
        else:
            high = middle
    left, right = median_2 - 2 * ordered[low], 2 * ordered[low + half] - median_2
    if n % 2 == 1:
        return median_2, 2 * max(left, right)
    # The mean of the two largest distances among them.
    if left > right:
        return median_2, left + max(median_2 - 2 * ordered[low + 1], right)
    return median_2, right + max(left, 2 * ordered[low + half - 1] - median_2)


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
    built_in: Any,
    row: Any,
    declared: Declared | None,
    out: Any,
    case_starts: Any,
    case_sequences: Any,
    outliers: Any,
) -> int:
    """Fill the chosen columns of ``out`` from ``first_row`` on; returns the first row not done (a table is full).

    ``built_in`` (of the plan) chooses among the built-in features, for a row of which ``row`` has room.
    """
    meta, slots, chunks, events = state.meta, state.slots, state.chunks, state.events
    # Where events have no values, none are read.
    words, values = CARD_EVENT_WORDS, keys
    if declared is not None:
        values = declared.values
        words = CARD_EVENT_WORDS + values.shape[1]
    ordered = state.scratch[ORDERED : ORDERED + USUAL_EVENTS]
    recent = state.scratch[RECENT : RECENT + USUAL_EVENTS]
    flagged = state.scratch[FOUND : FOUND + N_WINDOWS]
    ahead = state.scratch[LOOKED_AHEAD : LOOKED_AHEAD + LOOKED_AHEAD_WORDS]
    ahead[:] = 0
    for i in range(first_row, keys.shape[0]):
        if not has_room(state, EVENTS, words):
            return i
        look_ahead(state, words, keys, i, ahead)
        slot = enter_slot(state, keys[i, 0], keys[i, 1], ahead[i % ROWS_AHEAD])
        ahead[i % ROWS_AHEAD] = 0
        time_us, amount = times[i], amounts[i]
        # A late event enters at its event time, unless it lies behind the horizon: then no window holds it.
        floor_us = meta[META.newest] - meta[META.horizon]
        base = slot * SLOT_WORDS
        if (
            slots[base + SLOT.case_sequence] == 0
            or slots[base + SLOT.case_start] <= meta[META.newest] - CASE_RETENTION_US
            or time_us >= slots[base + SLOT.case_start] + EPISODE_US
        ):
            slots[base + SLOT.case_start] = time_us
            slots[base + SLOT.case_sequence] = 0
        slots[base + SLOT.case_sequence] += 1
        case_starts[i] = slots[base + SLOT.case_start]
        case_sequences[i] = slots[base + SLOT.case_sequence]
        row[CARD.amount] = amount / 100.0
        row[CARD.hour] = hours[i]
        row[CARD.weekday] = weekdays[i]
        chunk, end = position_at(state, EVENTS, words, slot, time_us)
        sum_, outlier_sum, _, _ = window_features(
            state, words, chunk, end, time_us, floor_us, row, CARD.card_count_1h, flagged
        )
        month = np.int64(row[CARD.card_count_30d])
        n: Any = min(month, USUAL_EVENTS)
        row[CARD.card_seconds_since_last] = row[CARD.card_usual_amount] = np.nan
        row[CARD.card_amount_to_usual] = row[CARD.card_amount_deviation] = np.nan
        flag, seen = np.int64(0), 0
        if n > 0:
            last = chunks[chunk * CHUNK_WORDS + CHUNK.start] + end - 1
            row[CARD.card_seconds_since_last] = (time_us - events[last * words]) / US_PER_SECOND
            inside, at = chunk, end
            for j in range(n):
                if at == 0:
                    inside = chunks[inside * CHUNK_WORDS + CHUNK.previous]
                    at = chunks[inside * CHUNK_WORDS + CHUNK.length]
                at -= 1
                event = (chunks[inside * CHUNK_WORDS + CHUNK.start] + at) * words
                value = events[event + EVENT.amount] >> 1
                if events[event + EVENT.other] == merchants[i]:
                    seen += 1
                recent[j] = (value << _USUAL_SHIFT) | j
            _order(recent, n, ordered)
            median_2, spread_4 = _median_and_spread(ordered, n)
            row[CARD.card_usual_amount] = median_2 / 200.0
            if median_2 > 0:
                row[CARD.card_amount_to_usual] = amount / (median_2 / 2.0)
            scale = max(_MAD_TO_SIGMA * spread_4 / 4.0, _DEVIATION_FLOOR * median_2 / 2.0)
            if scale > 0:
                row[CARD.card_amount_deviation] = (amount - median_2 / 2.0) / scale
            if n >= OUTLIER_MINIMUM_EVENTS and 2 * amount > OUTLIER_RATIO * median_2:
                flag = np.int64(1)
        row[CARD.card_outlier_count_1d] = flagged[_DAY]
        row[CARD.card_outlier_count_7d] = flagged[_WEEK]
        row[CARD.card_outlier_count_30d] = flagged[_MONTH]
        row[CARD.card_merchant_count] = seen
        row[CARD.card_regular_mean_30d] = row[CARD.card_amount_to_regular] = np.nan
        row[CARD.card_seconds_since_outlier] = np.nan
        regular = month - flagged[_MONTH]
        if regular > 0:
            mean = (sum_ - outlier_sum) / regular / 100.0
            row[CARD.card_regular_mean_30d] = mean
            if mean > 0:
                row[CARD.card_amount_to_regular] = amount / 100.0 / mean
        if flagged[_MONTH] > 0:
            row[CARD.card_seconds_since_outlier] = (time_us - last_flagged_us(state, words, chunk, end)) / US_PER_SECOND
        outliers[i] = flag == 1
        for j in range(built_in.shape[0]):
            out[i, built_in[j, 1]] = row[built_in[j, 0]]
        if declared is not None:
            declared_features(state, words, slot, chunk, end, time_us, floor_us, amount, i, declared, out[i])
        if counts[i] and time_us > floor_us:
            event = insert_event(state, words, slot, chunk, end, time_us, amount, flag, floor_us, values, i)
            events[event + EVENT.other] = merchants[i]
        meta[META.newest] = max(meta[META.newest], time_us)
    return int(keys.shape[0])
