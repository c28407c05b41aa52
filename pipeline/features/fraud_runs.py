"""Features of unexplained frauds: the run that the newest one ends, and the silence since, by ages of maturity."""

from typing import Any

import numpy as np

from pipeline.features.catalogue import FRAUD_RUN_GAP, FRAUD_RUN_STEPS, MERCHANT, SILENCE_AGES_US
from pipeline.features.compiled import compiled
from pipeline.features.known_labels import first_reaching, is_known
from pipeline.features.timelines.chunks import first_later, position_at, position_from
from pipeline.features.timelines.layout import (
    CHUNK_WORDS,
    CORRECTED,
    EVENTS,
    FIRST,
    LABEL_UNEXPLAINED,
    LABEL_VALUE,
    LABEL_WORDS,
    LAST,
    LATEST_KNOWN_AT,
    LENGTH,
    MERCHANT_EVENT_WORDS,
    NOTHING_YET_US,
    PREVIOUS,
    START,
    UNEXPLAINED_FRAUD,
    State,
)
from schemas.times import US_PER_SECOND

_AGE_2D_US, _AGE_7D_US, _AGE_14D_US = (SILENCE_AGES_US[suffix] for suffix in ("2d", "", "14d"))


@compiled
def _unexplained_before(state: State, chunk: Any, end: Any, time_us: Any, month_us: Any) -> Any:
    """(chunk, position) of the last unexplained fraud known at ``time_us`` before a position.

    (0, 0): none is later than ``month_us``.
    """
    chunks, labels = state.label_chunks, state.labels
    while chunk > 0 and chunks[chunk * CHUNK_WORDS + LAST] > month_us:
        record = chunk * CHUNK_WORDS
        start, at = chunks[record + START], -1
        if chunks[record + CORRECTED] > 0 or chunks[record + LATEST_KNOWN_AT] > time_us:
            for i in range(end - 1, -1, -1):
                row = (start + i) * LABEL_WORDS
                if labels[row + LABEL_VALUE] == UNEXPLAINED_FRAUD and is_known(labels, row, time_us):
                    at = i
                    break
        elif end > 0:
            unexplained = labels[(start + end - 1) * LABEL_WORDS + LABEL_UNEXPLAINED]
            if unexplained > 0:
                at = first_reaching(labels, start, 0, end, LABEL_UNEXPLAINED, 0, unexplained)
        if at >= 0:
            if labels[(start + at) * LABEL_WORDS] > month_us:
                return chunk, np.int64(at)
            break
        chunk = chunks[record + PREVIOUS]
        end = chunks[chunk * CHUNK_WORDS + LENGTH]
    return np.int64(0), np.int64(0)


@compiled
def _time_before(state: State, words: Any, chunk: Any, end: Any, n: Any) -> int:
    """Time of the n-th event before a position; `NOTHING_YET_US` where there are fewer."""
    chunks = state.chunks
    while chunk > 0:
        if end >= n:
            return int(state.events[(chunks[chunk * CHUNK_WORDS + START] + end - n) * words])
        n -= end
        chunk = chunks[chunk * CHUNK_WORDS + PREVIOUS]
        end = chunks[chunk * CHUNK_WORDS + LENGTH]
    return NOTHING_YET_US


@compiled
def fraud_runs(state: State, slot: Any, chunk: Any, end: Any, time_us: Any, month_us: Any, row: Any) -> None:
    """Write for each age the mature transactions since the newest unexplained fraud, and the time since its run began.

    There must be one.
    """
    chunk, at = _unexplained_before(state, chunk, end, time_us, month_us)
    since, first_us = _fraud_run(state, slot, chunk, at, time_us, month_us, _AGE_2D_US)
    row[MERCHANT.merchant_unreported_since_fraud_2d] = since
    row[MERCHANT.merchant_fraud_run_seconds_2d] = (time_us - first_us) / US_PER_SECOND
    since, first_us = _fraud_run(state, slot, chunk, at, time_us, month_us, _AGE_7D_US)
    row[MERCHANT.merchant_unreported_since_fraud] = since
    row[MERCHANT.merchant_fraud_run_seconds] = (time_us - first_us) / US_PER_SECOND
    since, first_us = _fraud_run(state, slot, chunk, at, time_us, month_us, _AGE_14D_US)
    row[MERCHANT.merchant_unreported_since_fraud_14d] = since
    row[MERCHANT.merchant_fraud_run_seconds_14d] = (time_us - first_us) / US_PER_SECOND


@compiled
def _fraud_run(
    state: State, slot: Any, chunk: Any, at: Any, time_us: Any, month_us: Any, age_us: Any
) -> tuple[Any, Any]:
    """(mature transactions since the newest unexplained fraud, time of its run's first one), by an age of maturity.

    The fraud lies at position ``at`` of ``chunk``.
    """
    chunks, label_chunks, words = state.chunks, state.label_chunks, MERCHANT_EVENT_WORDS
    first_us = state.labels[(label_chunks[chunk * CHUNK_WORDS + START] + at) * LABEL_WORDS]
    mature_us = time_us - age_us
    inside, end = position_at(state, EVENTS, words, slot, mature_us)
    since = np.int64(0)
    while inside > 0 and first_us < mature_us:
        if chunks[inside * CHUNK_WORDS + FIRST] <= first_us:
            later = first_later(state.events, words, chunks[inside * CHUNK_WORDS + START], end, first_us)
            since += end - later
            break
        since += end
        inside = chunks[inside * CHUNK_WORDS + PREVIOUS]
        end = chunks[inside * CHUNK_WORDS + LENGTH]
    for _ in range(FRAUD_RUN_STEPS):
        chunk, at = _unexplained_before(state, chunk, at, time_us, month_us)
        if chunk == 0:
            break
        earlier_us = state.labels[(label_chunks[chunk * CHUNK_WORDS + START] + at) * LABEL_WORDS]
        inside, end = position_from(state, EVENTS, words, inside, min(first_us - 1, mature_us))
        if _time_before(state, words, inside, end, FRAUD_RUN_GAP + 1) > earlier_us:
            break
        first_us = earlier_us
    return since, first_us
