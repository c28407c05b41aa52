"""The kernel of a merchant's features; ``docs/features.md`` defines them."""

from typing import Any

import numpy as np

from pipeline.features.built_in import (
    MERCHANT,
    MERCHANT_OUTLIER_MINIMUM_EVENTS,
    MERCHANT_OUTLIER_RATIO,
)
from pipeline.features.compiled import compiled, inlined, wide_product
from pipeline.features.declared_windows import Declared, declared_features
from pipeline.features.known_labels import insert_label
from pipeline.features.label_features import FOUND_WORDS, label_features, unlabelled_features
from pipeline.features.timelines.chunks import has_room, position_at
from pipeline.features.timelines.entities import enter_slot, find_slot
from pipeline.features.timelines.insertion import insert_event
from pipeline.features.timelines.layout import (
    CHUNK,
    CHUNK_WORDS,
    EVENTS,
    FOUND,
    KIND_STEP,
    LABEL_WORDS,
    LABELS,
    LOOKED_AHEAD,
    LOOKED_AHEAD_WORDS,
    MERCHANT_EVENT_WORDS,
    META,
    ROWS_AHEAD,
    SLOT,
    SLOT_WORDS,
    State,
)
from pipeline.features.timelines.look_ahead import look_ahead
from pipeline.features.window_statistics import N_WINDOWS, seconds_since_row, window_features
from schemas.times import US_PER_SECOND


@inlined
def _is_merchant_outlier(amount: Any, count: Any, sum_: Any) -> bool:
    """Compare an amount with the mean of a merchant's transactions, exactly."""
    high, low = wide_product(np.uint64(amount), np.uint64(count))
    limit_high, limit_low = wide_product(np.uint64(MERCHANT_OUTLIER_RATIO), np.uint64(sum_))
    above = high > limit_high or (high == limit_high and low > limit_low)
    return bool(above and count >= MERCHANT_OUTLIER_MINIMUM_EVENTS)


@compiled
def profile_merchants(
    state: State,
    first_row: Any,
    kinds: Any,
    keys: Any,
    identities: Any,
    times: Any,
    amounts: Any,
    counts: Any,
    outliers: Any,
    known: Any,
    known_at: Any,
    built_in: Any,
    row: Any,
    declared: Declared | None,
    out: Any,
    out_rows: Any,
    first_column: Any,
) -> int:
    """Fill the chosen columns of ``out``, the first being ``first_column``, row i at ``out_rows[i]``.

    Returns the first row not done (a table is full). A row of kind 1 is a label: it changes what is known, and its
    output row, if it has one, is NaN. The other arguments are those of `profile_cards`.
    """
    meta, chunks, events = state.meta, state.chunks, state.events
    # Where events have no values, none are read.
    words, values = MERCHANT_EVENT_WORDS, keys
    if declared is not None:
        values = declared.values
        words = MERCHANT_EVENT_WORDS + values.shape[1]
    flagged = state.scratch[FOUND : FOUND + N_WINDOWS]
    found = state.scratch[FOUND : FOUND + FOUND_WORDS]
    ahead = state.scratch[LOOKED_AHEAD : LOOKED_AHEAD + LOOKED_AHEAD_WORDS]
    ahead[:] = 0
    for i in range(first_row, keys.shape[0]):
        look_ahead(state, words, keys, i, ahead)
        is_label = kinds[i] == 1
        if not has_room(state, LABELS if is_label else EVENTS, LABEL_WORDS if is_label else words):
            return i
        time_us, amount = times[i], amounts[i]
        floor_us = meta[META.newest] - meta[META.horizon]
        enters = time_us > floor_us and (is_label or counts[i])
        slot = ahead[i % ROWS_AHEAD]
        ahead[i % ROWS_AHEAD] = 0
        if enters:
            slot = enter_slot(state, keys[i, 0], keys[i, 1], slot)
        elif slot == 0:
            slot = find_slot(state, keys[i, 0], keys[i, 1])[0]
        out_row = out_rows[i]
        if is_label:
            if out_row >= 0:
                out[out_row, first_column:] = np.nan
            if enters:
                insert_label(state, words, slot, time_us, identities[i], known[i], known_at[i])
            continue
        chunk, end = position_at(state, EVENTS, words, slot, time_us)
        sum_, _, first, at = window_features(
            state, words, chunk, end, time_us, floor_us, row, MERCHANT.merchant_count_1h, flagged
        )
        month = row[MERCHANT.merchant_count_30d]
        row[MERCHANT.merchant_seconds_since_last] = row[MERCHANT.merchant_seconds_since_first] = np.nan
        if month > 0:
            last = chunks[chunk * CHUNK_WORDS + CHUNK.start] + end - 1
            row[MERCHANT.merchant_seconds_since_last] = (time_us - events[last * words]) / US_PER_SECOND
            row[MERCHANT.merchant_seconds_since_first] = seconds_since_row(state, words, slot, first, at, time_us)
        mean = row[MERCHANT.merchant_mean_30d]
        row[MERCHANT.merchant_amount_to_mean] = amount / 100.0 / mean if mean > 0 else np.nan
        row[MERCHANT.merchant_surge] = row[MERCHANT.merchant_count_1d] / (month / 30.0) if month > 0 else np.nan
        if state.slots[slot * SLOT_WORDS + SLOT.tail + KIND_STEP] == 0:
            unlabelled_features(row)
        else:
            label_features(state, words, slot, time_us, floor_us, row, found)
        for j in range(built_in.shape[0]):
            out[out_row, first_column + built_in[j, 1]] = row[built_in[j, 0]]
        if declared is not None:
            columns = out[out_row, first_column:]
            declared_features(state, words, slot, chunk, end, time_us, floor_us, amount, i, declared, columns)
        if enters:
            flag = np.int64(outliers[i] or _is_merchant_outlier(amount, np.int64(month), sum_))
            insert_event(state, words, slot, chunk, end, time_us, amount, flag, floor_us, values, i)
        meta[META.newest] = max(meta[META.newest], time_us)
    return int(keys.shape[0])
