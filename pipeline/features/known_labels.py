"""The timeline of a merchant's labels: what was known when."""

from typing import Any

from pipeline.features.compiled import compiled, inlined
from pipeline.features.timelines.chunks import position_at
from pipeline.features.timelines.insertion import make_room
from pipeline.features.timelines.journal import save
from pipeline.features.timelines.layout import (
    CHUNK_WORDS,
    CORRECTED,
    EVENT_AMOUNT,
    EVENTS,
    EXPLAINED_FRAUD,
    FIRST,
    FRAUDS,
    HELD,
    HELD_LABELS,
    IN_CHUNKS,
    IN_ITEMS,
    KIND_STEP,
    KNOWN,
    LABEL_FRAUDS,
    LABEL_IDENTITY,
    LABEL_KNOWN,
    LABEL_KNOWN_AT,
    LABEL_SUPERSEDED_AT,
    LABEL_UNEXPLAINED,
    LABEL_VALUE,
    LABEL_WORDS,
    LABELS,
    LAST,
    LATEST_KNOWN_AT,
    LENGTH,
    MERCHANT_EVENT_WORDS,
    NEVER,
    NOTHING_YET_US,
    PREVIOUS,
    SLOT_WORDS,
    START,
    UNEXPLAINED,
    UNEXPLAINED_FRAUD,
    UNKNOWN,
    State,
)


@compiled
def _is_flagged(state: State, words: Any, slot: Any, time_us: Any) -> bool:
    """Return True if an event of exactly this time is flagged."""
    chunks, events = state.chunks, state.events
    chunk, at = position_at(state, EVENTS, words, slot, time_us)
    while chunk > 0:
        if at == 0:
            chunk = chunks[chunk * CHUNK_WORDS + PREVIOUS]
            at = chunks[chunk * CHUNK_WORDS + LENGTH]
            continue
        at -= 1
        event = (chunks[chunk * CHUNK_WORDS + START] + at) * words
        if events[event] != time_us:
            return False
        if events[event + EVENT_AMOUNT] & 1:
            return True
    return False


@compiled
def insert_label(state: State, slot: Any, time_us: Any, identity: Any, value: Any, known_at_us: Any) -> None:
    """Add what a label makes known; an earlier label of the same transaction is superseded."""
    chunks, labels = state.label_chunks, state.labels
    chunk, at = position_at(state, LABELS, LABEL_WORDS, slot, time_us)
    inside, i = chunk, at
    while inside > 0:
        if i == 0:
            inside = chunks[inside * CHUNK_WORDS + PREVIOUS]
            if inside == 0:
                break
            i = chunks[inside * CHUNK_WORDS + LENGTH]
        i -= 1
        row = (chunks[inside * CHUNK_WORDS + START] + i) * LABEL_WORDS
        if labels[row] != time_us:
            break
        if labels[row + LABEL_IDENTITY] == identity and labels[row + LABEL_SUPERSEDED_AT] == NEVER:
            known_at_us = max(known_at_us, labels[row + LABEL_KNOWN_AT])
            record = inside * CHUNK_WORDS
            save(state, IN_ITEMS + LABELS, labels, state.labels_dirty, row, LABEL_WORDS)
            save(state, IN_CHUNKS + LABELS, chunks, state.label_chunks_dirty, record, CHUNK_WORDS)
            labels[row + LABEL_SUPERSEDED_AT] = known_at_us
            chunks[record + CORRECTED] += 1
            # Directly behind what it replaces, so that of two transactions of the same
            # instant the one first labelled later stays the later one.
            chunk, at = inside, i + 1
            break
    if value == UNEXPLAINED_FRAUD and _is_flagged(state, MERCHANT_EVENT_WORDS, slot, time_us):
        value = EXPLAINED_FRAUD
    known = 0 if value == UNKNOWN else 1
    fraud = value & 1
    unexplained = 1 if value == UNEXPLAINED_FRAUD else 0
    chunk, at = make_room(state, LABELS, LABEL_WORDS, slot, chunk, at, NOTHING_YET_US)
    state.slots[slot * SLOT_WORDS + KIND_STEP + HELD] += 1
    state.meta[HELD_LABELS] += 1
    record = chunk * CHUNK_WORDS
    start, length = chunks[record + START], chunks[record + LENGTH]
    row = (start + at) * LABEL_WORDS
    labels[row] = time_us
    labels[row + LABEL_IDENTITY] = identity
    labels[row + LABEL_KNOWN_AT] = known_at_us
    labels[row + LABEL_SUPERSEDED_AT] = NEVER
    labels[row + LABEL_VALUE] = value
    labels[row + LABEL_KNOWN] = known + (labels[row - LABEL_WORDS + LABEL_KNOWN] if at > 0 else 0)
    labels[row + LABEL_FRAUDS] = fraud + (labels[row - LABEL_WORDS + LABEL_FRAUDS] if at > 0 else 0)
    labels[row + LABEL_UNEXPLAINED] = unexplained + (labels[row - LABEL_WORDS + LABEL_UNEXPLAINED] if at > 0 else 0)
    for j in range(start + at + 1, start + length):
        labels[j * LABEL_WORDS + LABEL_KNOWN] += known
        labels[j * LABEL_WORDS + LABEL_FRAUDS] += fraud
        labels[j * LABEL_WORDS + LABEL_UNEXPLAINED] += unexplained
    if length == 1:
        chunks[record + FIRST] = chunks[record + LAST] = time_us
        chunks[record + LATEST_KNOWN_AT] = known_at_us
    else:
        chunks[record + FIRST] = min(chunks[record + FIRST], time_us)
        chunks[record + LAST] = max(chunks[record + LAST], time_us)
        chunks[record + LATEST_KNOWN_AT] = max(chunks[record + LATEST_KNOWN_AT], known_at_us)
    chunks[record + KNOWN] += known
    chunks[record + FRAUDS] += fraud
    chunks[record + UNEXPLAINED] += unexplained


@compiled
def first_reaching(labels: Any, start: Any, low: Any, high: Any, plus: Any, minus: Any, target: Any) -> int:
    """First position in [low, high) at which cumulative column ``plus`` less ``minus`` (0: none) reaches ``target``."""
    while low < high:
        middle = (low + high) >> 1
        row = (start + middle) * LABEL_WORDS
        if labels[row + plus] - (labels[row + minus] if minus > 0 else 0) < target:
            low = middle + 1
        else:
            high = middle
    return int(low)


@inlined
def is_known(labels: Any, row: Any, time_us: Any) -> bool:
    """Return True if a label holds at a time."""
    return bool(
        labels[row + LABEL_VALUE] != UNKNOWN
        and labels[row + LABEL_KNOWN_AT] <= time_us
        and labels[row + LABEL_SUPERSEDED_AT] > time_us
    )
