"""Features of what is known of a merchant's transactions, and of the runs of its unexplained frauds."""

from typing import Any, Final

import numpy as np

from pipeline.features.built_in import (
    FRAUD_RUN_GAP,
    FRAUD_RUN_STEPS,
    MERCHANT,
    MONTH_US,
    RISK_PRIOR_RATE,
    RISK_PRIOR_STRENGTH,
    SILENCE_AGES_US,
)
from pipeline.features.compiled import compiled, inlined
from pipeline.features.known_labels import first_reaching, is_known
from pipeline.features.timelines.chunks import first_later, position_at, position_from
from pipeline.features.timelines.layout import (
    CHUNK,
    CHUNK_WORDS,
    EVENTS,
    LABEL,
    LABEL_WORDS,
    LABELLED,
    LABELS,
    NEVER,
    NOTHING_YET_US,
    UNEXPLAINED_FRAUD,
    State,
)
from schemas.times import US_PER_DAY, US_PER_SECOND

_FORTNIGHT_US: Final = 14 * US_PER_DAY
_AGE_2D_US, _AGE_7D_US, _AGE_14D_US = (SILENCE_AGES_US[suffix] for suffix in ("2d", "", "14d"))

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
    chunks, labels, record = state.label_chunks, state.labels, chunk * CHUNK_WORDS
    start = chunks[record + CHUNK.start]
    if chunks[record + LABELLED.corrected] > 0 or chunks[record + LABELLED.latest_known_at] > time_us:
        for i in range(end - 1, first - 1, -1):
            row = (start + i) * LABEL_WORDS
            if not is_known(labels, row, time_us):
                continue
            value = labels[row + LABEL.value]
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
        known_before, frauds_before = labels[before + LABEL.known], labels[before + LABEL.frauds]
        unexplained_before = labels[before + LABEL.unexplained]
    # The totals, where they do: the rows of old chunks are left alone.
    known_end, frauds_end = chunks[record + LABELLED.known], chunks[record + LABELLED.frauds]
    unexplained_end = chunks[record + LABELLED.unexplained]
    if end < chunks[record + CHUNK.length]:
        last = (start + end - 1) * LABEL_WORDS
        known_end, frauds_end = labels[last + LABEL.known], labels[last + LABEL.frauds]
        unexplained_end = labels[last + LABEL.unexplained]
    known, frauds = known_end - known_before, frauds_end - frauds_before
    found[_KNOWN] += known
    found[_FRAUDS] += frauds
    found[_UNEXPLAINED] += unexplained_end - unexplained_before
    fraud_at, legitimate_at = -1, -1
    if frauds > 0 and (found[_NEWEST_IS_FRAUD] < 0 or found[_FRAUD_US] == NEVER):
        fraud_at = first_reaching(labels, start, first, end, LABEL.frauds, 0, frauds_end)
    if known > frauds and (found[_NEWEST_IS_FRAUD] < 0 or found[_LEGITIMATE_US] == NEVER):
        legitimate_at = first_reaching(labels, start, first, end, LABEL.known, LABEL.frauds, known_end - frauds_end)
    if found[_NEWEST_IS_FRAUD] < 0 and known > 0:
        found[_NEWEST_IS_FRAUD] = 1 if fraud_at > legitimate_at else 0
    if found[_FRAUD_US] == NEVER and fraud_at >= 0:
        found[_FRAUD_US] = labels[(start + fraud_at) * LABEL_WORDS]
    if found[_LEGITIMATE_US] == NEVER and legitimate_at >= 0:
        found[_LEGITIMATE_US] = labels[(start + legitimate_at) * LABEL_WORDS]


@compiled
def _unexplained_before(state: State, chunk: Any, end: Any, time_us: Any, month_us: Any) -> Any:
    """(chunk, position) of the last unexplained fraud known at ``time_us`` before a position.

    (0, 0): none is later than ``month_us``.
    """
    chunks, labels = state.label_chunks, state.labels
    while chunk > 0 and chunks[chunk * CHUNK_WORDS + CHUNK.last] > month_us:
        record = chunk * CHUNK_WORDS
        start, at = chunks[record + CHUNK.start], -1
        if chunks[record + LABELLED.corrected] > 0 or chunks[record + LABELLED.latest_known_at] > time_us:
            for i in range(end - 1, -1, -1):
                row = (start + i) * LABEL_WORDS
                if labels[row + LABEL.value] == UNEXPLAINED_FRAUD and is_known(labels, row, time_us):
                    at = i
                    break
        elif end > 0:
            unexplained = labels[(start + end - 1) * LABEL_WORDS + LABEL.unexplained]
            if unexplained > 0:
                at = first_reaching(labels, start, 0, end, LABEL.unexplained, 0, unexplained)
        if at >= 0:
            if labels[(start + at) * LABEL_WORDS] > month_us:
                return chunk, np.int64(at)
            break
        chunk = chunks[record + CHUNK.previous]
        end = chunks[chunk * CHUNK_WORDS + CHUNK.length]
    return np.int64(0), np.int64(0)


@compiled
def _time_before(state: State, words: Any, chunk: Any, end: Any, n: Any) -> int:
    """Time of the n-th event before a position; `NOTHING_YET_US` where there are fewer."""
    chunks = state.chunks
    while chunk > 0:
        if end >= n:
            return int(state.events[(chunks[chunk * CHUNK_WORDS + CHUNK.start] + end - n) * words])
        n -= end
        chunk = chunks[chunk * CHUNK_WORDS + CHUNK.previous]
        end = chunks[chunk * CHUNK_WORDS + CHUNK.length]
    return NOTHING_YET_US


@compiled
def _fraud_runs(
    state: State, words: Any, slot: Any, chunk: Any, end: Any, time_us: Any, month_us: Any, row: Any
) -> None:
    """Write for each age the mature transactions since the newest unexplained fraud, and the time since its run began.

    There must be one.
    """
    chunk, at = _unexplained_before(state, chunk, end, time_us, month_us)
    since, first_us = _fraud_run(state, words, slot, chunk, at, time_us, month_us, _AGE_2D_US)
    row[MERCHANT.merchant_unreported_since_fraud_2d] = since
    row[MERCHANT.merchant_fraud_run_seconds_2d] = (time_us - first_us) / US_PER_SECOND
    since, first_us = _fraud_run(state, words, slot, chunk, at, time_us, month_us, _AGE_7D_US)
    row[MERCHANT.merchant_unreported_since_fraud] = since
    row[MERCHANT.merchant_fraud_run_seconds] = (time_us - first_us) / US_PER_SECOND
    since, first_us = _fraud_run(state, words, slot, chunk, at, time_us, month_us, _AGE_14D_US)
    row[MERCHANT.merchant_unreported_since_fraud_14d] = since
    row[MERCHANT.merchant_fraud_run_seconds_14d] = (time_us - first_us) / US_PER_SECOND


@compiled
def _fraud_run(
    state: State, words: Any, slot: Any, chunk: Any, at: Any, time_us: Any, month_us: Any, age_us: Any
) -> tuple[Any, Any]:
    """(mature transactions since the newest unexplained fraud, time of its run's first one), by an age of maturity.

    The fraud lies at position ``at`` of ``chunk``.
    """
    chunks, label_chunks = state.chunks, state.label_chunks
    first_us = state.labels[(label_chunks[chunk * CHUNK_WORDS + CHUNK.start] + at) * LABEL_WORDS]
    mature_us = time_us - age_us
    inside, end = position_at(state, EVENTS, words, slot, mature_us)
    since = np.int64(0)
    while inside > 0 and first_us < mature_us:
        if chunks[inside * CHUNK_WORDS + CHUNK.first] <= first_us:
            later = first_later(state.events, words, chunks[inside * CHUNK_WORDS + CHUNK.start], end, first_us)
            since += end - later
            break
        since += end
        inside = chunks[inside * CHUNK_WORDS + CHUNK.previous]
        end = chunks[inside * CHUNK_WORDS + CHUNK.length]
    for _ in range(FRAUD_RUN_STEPS):
        chunk, at = _unexplained_before(state, chunk, at, time_us, month_us)
        if chunk == 0:
            break
        earlier_us = state.labels[(label_chunks[chunk * CHUNK_WORDS + CHUNK.start] + at) * LABEL_WORDS]
        inside, end = position_from(state, EVENTS, words, inside, min(first_us - 1, mature_us))
        if _time_before(state, words, inside, end, FRAUD_RUN_GAP + 1) > earlier_us:
            break
        first_us = earlier_us
    return since, first_us


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
def label_features(state: State, words: Any, slot: Any, time_us: Any, floor_us: Any, row: Any, found: Any) -> None:
    """Write the features of a merchant by what is known of its transactions at ``time_us``."""
    chunks, labels = state.label_chunks, state.labels
    found[_KNOWN] = found[_FRAUDS] = found[_UNEXPLAINED] = 0
    found[_NEWEST_IS_FRAUD] = -1
    found[_FRAUD_US] = found[_LEGITIMATE_US] = NEVER
    fortnight_known, fortnight_frauds = np.int64(-1), np.int64(-1)
    fortnight_us = max(time_us - _FORTNIGHT_US, floor_us)
    month_us = max(time_us - MONTH_US, floor_us)
    newest, newest_end = position_at(state, LABELS, LABEL_WORDS, slot, time_us)
    chunk, end = newest, newest_end
    while chunk > 0 and chunks[chunk * CHUNK_WORDS + CHUNK.last] > month_us:
        record = chunk * CHUNK_WORDS
        start, middle = chunks[record + CHUNK.start], np.int64(0)
        if fortnight_known < 0:
            if chunks[record + CHUNK.first] <= fortnight_us:
                middle = np.int64(first_later(labels, LABEL_WORDS, start, end, fortnight_us))
            _count_known(state, chunk, middle, end, time_us, found)
            if chunks[record + CHUNK.first] <= fortnight_us:
                fortnight_known, fortnight_frauds = found[_KNOWN], found[_FRAUDS]
        else:
            middle = end
        first = np.int64(0)
        if chunks[record + CHUNK.first] <= month_us:
            first = np.int64(first_later(labels, LABEL_WORDS, start, middle, month_us))
        _count_known(state, chunk, first, middle, time_us, found)
        chunk = chunks[record + CHUNK.previous]
        end = chunks[chunk * CHUNK_WORDS + CHUNK.length] if chunk > 0 else np.int64(0)
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
        _fraud_runs(state, words, slot, newest, newest_end, time_us, month_us, row)
