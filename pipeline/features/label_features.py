"""Features of what is known of a merchant's transactions."""

from typing import Any, Final

import numpy as np

from pipeline.features.catalogue import LONGEST_WINDOW_US, MERCHANT, RISK_PRIOR_RATE, RISK_PRIOR_STRENGTH
from pipeline.features.compiled import compiled, inlined
from pipeline.features.fraud_runs import fraud_runs
from pipeline.features.known_labels import first_reaching, is_known
from pipeline.features.timelines.chunks import first_later, position_at
from pipeline.features.timelines.layout import (
    CHUNK_WORDS,
    CORRECTED,
    FIRST,
    FRAUDS,
    KNOWN,
    LABEL_FRAUDS,
    LABEL_KNOWN,
    LABEL_UNEXPLAINED,
    LABEL_VALUE,
    LABEL_WORDS,
    LABELS,
    LAST,
    LATEST_KNOWN_AT,
    LENGTH,
    NEVER,
    PREVIOUS,
    START,
    UNEXPLAINED,
    UNEXPLAINED_FRAUD,
    State,
)
from schemas.times import US_PER_DAY, US_PER_SECOND

_FORTNIGHT_US: Final = 14 * US_PER_DAY

# What is found of a merchant's labels, in words of the scratch.
_KNOWN: Final = 0
_FRAUDS: Final = 1
_NEWEST_IS_FRAUD: Final = 2
"""-1: none is known yet."""
_FRAUD_US: Final = 3
"""Time of the newest known fraud; NEVER: none yet. That of the newest legitimate transaction is the next word."""
_LEGITIMATE_US: Final = _FRAUD_US + 1
_UNEXPLAINED: Final = 5
FOUND_WORDS: Final = 6


@compiled
def _count_known(state: State, chunk: Any, first: Any, end: Any, time_us: Any, found: Any) -> None:
    """Add what is known at ``time_us`` of positions [first, end) of a chunk to ``found``, the newest first."""
    if end <= first:
        return
    labels, record = state.labels, chunk * CHUNK_WORDS
    start = state.label_chunks[record + START]
    if state.label_chunks[record + CORRECTED] > 0 or state.label_chunks[record + LATEST_KNOWN_AT] > time_us:
        for i in range(end - 1, first - 1, -1):
            row = (start + i) * LABEL_WORDS
            if not is_known(labels, row, time_us):
                continue
            value = labels[row + LABEL_VALUE]
            fraud = value & 1
            found[_KNOWN] += 1
            found[_FRAUDS] += fraud
            found[_UNEXPLAINED] += 1 if value == UNEXPLAINED_FRAUD else 0
            if found[_NEWEST_IS_FRAUD] < 0:
                found[_NEWEST_IS_FRAUD] = fraud
            if found[_LEGITIMATE_US - fraud] == NEVER:
                found[_LEGITIMATE_US - fraud] = labels[row]
        return
    known_before, frauds_before, unexplained_before = np.int64(0), np.int64(0), np.int64(0)
    if first > 0:
        before = (start + first - 1) * LABEL_WORDS
        known_before, frauds_before = labels[before + LABEL_KNOWN], labels[before + LABEL_FRAUDS]
        unexplained_before = labels[before + LABEL_UNEXPLAINED]
    # The totals, where they do: the rows of old chunks are left alone.
    known_end, frauds_end = state.label_chunks[record + KNOWN], state.label_chunks[record + FRAUDS]
    unexplained_end = state.label_chunks[record + UNEXPLAINED]
    if end < state.label_chunks[record + LENGTH]:
        last = (start + end - 1) * LABEL_WORDS
        known_end, frauds_end = labels[last + LABEL_KNOWN], labels[last + LABEL_FRAUDS]
        unexplained_end = labels[last + LABEL_UNEXPLAINED]
    known, frauds = known_end - known_before, frauds_end - frauds_before
    found[_KNOWN] += known
    found[_FRAUDS] += frauds
    found[_UNEXPLAINED] += unexplained_end - unexplained_before
    fraud_at, legitimate_at = -1, -1
    if frauds > 0 and (found[_NEWEST_IS_FRAUD] < 0 or found[_FRAUD_US] == NEVER):
        fraud_at = first_reaching(labels, start, first, end, LABEL_FRAUDS, 0, frauds_end)
    if known > frauds and (found[_NEWEST_IS_FRAUD] < 0 or found[_LEGITIMATE_US] == NEVER):
        legitimate_at = first_reaching(labels, start, first, end, LABEL_KNOWN, LABEL_FRAUDS, known_end - frauds_end)
    if found[_NEWEST_IS_FRAUD] < 0 and known > 0:
        found[_NEWEST_IS_FRAUD] = 1 if fraud_at > legitimate_at else 0
    if found[_FRAUD_US] == NEVER and fraud_at >= 0:
        found[_FRAUD_US] = labels[(start + fraud_at) * LABEL_WORDS]
    if found[_LEGITIMATE_US] == NEVER and legitimate_at >= 0:
        found[_LEGITIMATE_US] = labels[(start + legitimate_at) * LABEL_WORDS]


@inlined
def _no_runs(row: Any) -> None:
    row[MERCHANT.merchant_unreported_since_fraud_2d] = row[MERCHANT.merchant_fraud_run_seconds_2d] = np.nan
    row[MERCHANT.merchant_unreported_since_fraud] = row[MERCHANT.merchant_fraud_run_seconds] = np.nan
    row[MERCHANT.merchant_unreported_since_fraud_14d] = row[MERCHANT.merchant_fraud_run_seconds_14d] = np.nan


@inlined
def unlabelled_features(row: Any) -> None:
    """Write the features of a merchant without labels."""
    row[MERCHANT.merchant_known_count_14d] = row[MERCHANT.merchant_known_fraud_14d] = 0.0
    row[MERCHANT.merchant_known_count_30d] = row[MERCHANT.merchant_known_fraud_30d] = 0.0
    row[MERCHANT.merchant_fraud_risk_30d] = RISK_PRIOR_RATE * RISK_PRIOR_STRENGTH / RISK_PRIOR_STRENGTH
    row[MERCHANT.merchant_newest_label] = np.nan
    row[MERCHANT.merchant_seconds_since_fraud] = row[MERCHANT.merchant_seconds_since_legitimate] = np.nan
    row[MERCHANT.merchant_unexplained_fraud_30d] = 0.0
    _no_runs(row)


@compiled
def label_features(state: State, slot: Any, time_us: Any, floor_us: Any, row: Any, found: Any) -> None:
    """Write the features of a merchant by what is known of its transactions at ``time_us``."""
    chunks, labels = state.label_chunks, state.labels
    found[_KNOWN] = found[_FRAUDS] = found[_UNEXPLAINED] = 0
    found[_NEWEST_IS_FRAUD] = -1
    found[_FRAUD_US] = found[_LEGITIMATE_US] = NEVER
    fortnight_known, fortnight_frauds = np.int64(-1), np.int64(-1)
    fortnight_us = max(time_us - _FORTNIGHT_US, floor_us)
    month_us = max(time_us - LONGEST_WINDOW_US, floor_us)
    newest, newest_end = position_at(state, LABELS, LABEL_WORDS, slot, time_us)
    chunk, end = newest, newest_end
    while chunk > 0 and chunks[chunk * CHUNK_WORDS + LAST] > month_us:
        record = chunk * CHUNK_WORDS
        start, middle = chunks[record + START], np.int64(0)
        if fortnight_known < 0:
            if chunks[record + FIRST] <= fortnight_us:
                middle = np.int64(first_later(labels, LABEL_WORDS, start, end, fortnight_us))
            _count_known(state, chunk, middle, end, time_us, found)
            if chunks[record + FIRST] <= fortnight_us:
                fortnight_known, fortnight_frauds = found[_KNOWN], found[_FRAUDS]
        else:
            middle = end
        first = np.int64(0)
        if chunks[record + FIRST] <= month_us:
            first = np.int64(first_later(labels, LABEL_WORDS, start, middle, month_us))
        _count_known(state, chunk, first, middle, time_us, found)
        chunk = chunks[record + PREVIOUS]
        end = chunks[chunk * CHUNK_WORDS + LENGTH] if chunk > 0 else np.int64(0)
    known, frauds = found[_KNOWN], found[_FRAUDS]
    row[MERCHANT.merchant_known_count_14d] = known if fortnight_known < 0 else fortnight_known
    row[MERCHANT.merchant_known_fraud_14d] = frauds if fortnight_known < 0 else fortnight_frauds
    row[MERCHANT.merchant_known_count_30d] = known
    row[MERCHANT.merchant_known_fraud_30d] = frauds
    row[MERCHANT.merchant_fraud_risk_30d] = (frauds + RISK_PRIOR_RATE * RISK_PRIOR_STRENGTH) / (
        known + RISK_PRIOR_STRENGTH
    )
    newest_is_fraud, fraud_us, legitimate_us = found[_NEWEST_IS_FRAUD], found[_FRAUD_US], found[_LEGITIMATE_US]
    row[MERCHANT.merchant_newest_label] = np.nan if newest_is_fraud < 0 else np.float64(newest_is_fraud)
    row[MERCHANT.merchant_seconds_since_fraud] = np.nan if fraud_us == NEVER else (time_us - fraud_us) / US_PER_SECOND
    row[MERCHANT.merchant_seconds_since_legitimate] = (
        np.nan if legitimate_us == NEVER else (time_us - legitimate_us) / US_PER_SECOND
    )
    row[MERCHANT.merchant_unexplained_fraud_30d] = found[_UNEXPLAINED]
    _no_runs(row)
    if found[_UNEXPLAINED] > 0:
        fraud_runs(state, slot, newest, newest_end, time_us, month_us, row)
