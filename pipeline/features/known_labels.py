"""The timeline of a merchant's labels: what was known when."""

from typing import Any

from pipeline.features.compiled import compiled, inlined
from pipeline.features.timelines.chunks import position_at
from pipeline.features.timelines.insertion import make_room
from pipeline.features.timelines.journal import save
from pipeline.features.timelines.layout import (
    CHUNK,
    CHUNK_WORDS,
    EVENT,
    EVENTS,
    EXPLAINED_FRAUD,
    IN_CHUNKS,
    IN_ITEMS,
    KIND_STEP,
    LABEL,
    LABEL_WORDS,
    LABELLED,
    LABELS,
    META,
    NEVER,
    NOTHING_YET_US,
    SLOT,
    SLOT_WORDS,
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
            chunk = chunks[chunk * CHUNK_WORDS + CHUNK.previous]
            at = chunks[chunk * CHUNK_WORDS + CHUNK.length]
            continue
        at -= 1
        event = (chunks[chunk * CHUNK_WORDS + CHUNK.start] + at) * words
        if events[event] != time_us:
            return False
        if events[event + EVENT.amount] & 1:
            return True
    return False


@compiled
def insert_label(
    state: State, words: Any, slot: Any, time_us: Any, identity: Any, value: Any, known_at_us: Any
) -> None:
    """Add what a label makes known; an earlier label of the same transaction is superseded."""
    chunks, labels = state.label_chunks, state.labels
    chunk, at = position_at(state, LABELS, LABEL_WORDS, slot, time_us)
    inside, i = chunk, at
    while inside > 0:
        if i == 0:
            inside = chunks[inside * CHUNK_WORDS + CHUNK.previous]
            if inside == 0:
                break
            i = chunks[inside * CHUNK_WORDS + CHUNK.length]
        i -= 1
        row = (chunks[inside * CHUNK_WORDS + CHUNK.start] + i) * LABEL_WORDS
        if labels[row] != time_us:
            break
        if labels[row + LABEL.identity] == identity and labels[row + LABEL.superseded_at] == NEVER:
            known_at_us = max(known_at_us, labels[row + LABEL.known_at])
            record = inside * CHUNK_WORDS
            save(state, IN_ITEMS + LABELS, labels, state.labels_dirty, row, LABEL_WORDS)
            save(state, IN_CHUNKS + LABELS, chunks, state.label_chunks_dirty, record, CHUNK_WORDS)
            labels[row + LABEL.superseded_at] = known_at_us
            chunks[record + LABELLED.corrected] += 1
            # Directly behind what it replaces, so that of two transactions of the same
            # instant the one first labelled later stays the later one.
            chunk, at = inside, i + 1
            break
    if value == UNEXPLAINED_FRAUD and _is_flagged(state, words, slot, time_us):
        value = EXPLAINED_FRAUD
    known = 0 if value == UNKNOWN else 1
    fraud = value & 1
    unexplained = 1 if value == UNEXPLAINED_FRAUD else 0
    chunk, at = make_room(state, LABELS, LABEL_WORDS, slot, chunk, at, NOTHING_YET_US)
    state.slots[slot * SLOT_WORDS + KIND_STEP + SLOT.held] += 1
    state.meta[META.held_labels] += 1
    record = chunk * CHUNK_WORDS
    start, length = chunks[record + CHUNK.start], chunks[record + CHUNK.length]
    row = (start + at) * LABEL_WORDS
    labels[row] = time_us
    labels[row + LABEL.identity] = identity
    labels[row + LABEL.known_at] = known_at_us
    labels[row + LABEL.superseded_at] = NEVER
    labels[row + LABEL.value] = value
    labels[row + LABEL.known] = known + (labels[row - LABEL_WORDS + LABEL.known] if at > 0 else 0)
    labels[row + LABEL.frauds] = fraud + (labels[row - LABEL_WORDS + LABEL.frauds] if at > 0 else 0)
    labels[row + LABEL.unexplained] = unexplained + (labels[row - LABEL_WORDS + LABEL.unexplained] if at > 0 else 0)
    for j in range(start + at + 1, start + length):
        labels[j * LABEL_WORDS + LABEL.known] += known
        labels[j * LABEL_WORDS + LABEL.frauds] += fraud
        labels[j * LABEL_WORDS + LABEL.unexplained] += unexplained
    if length == 1:
        chunks[record + CHUNK.first] = chunks[record + CHUNK.last] = time_us
        chunks[record + LABELLED.latest_known_at] = known_at_us
    else:
        chunks[record + CHUNK.first] = min(chunks[record + CHUNK.first], time_us)
        chunks[record + CHUNK.last] = max(chunks[record + CHUNK.last], time_us)
        chunks[record + LABELLED.latest_known_at] = max(chunks[record + LABELLED.latest_known_at], known_at_us)
    chunks[record + LABELLED.known] += known
    chunks[record + LABELLED.frauds] += fraud
    chunks[record + LABELLED.unexplained] += unexplained


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
        labels[row + LABEL.value] != UNKNOWN
        and labels[row + LABEL.known_at] <= time_us
        and labels[row + LABEL.superseded_at] > time_us
    )
