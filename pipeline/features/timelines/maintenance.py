"""Rollback of a batch by its journal, and removal of what lies behind the horizon."""

from typing import Any, Final

from pipeline.features.built_in import CASE_RETENTION_US
from pipeline.features.compiled import compiled, prefetch
from pipeline.features.timelines.chunks import size_class_of
from pipeline.features.timelines.entities import leave_index
from pipeline.features.timelines.journal import mark
from pipeline.features.timelines.layout import (
    CHUNK,
    CHUNK_WORDS,
    EVENTS,
    FREE,
    FREE_CHUNKS,
    IN_CHUNKS,
    IN_ITEMS,
    KIND_STEP,
    LABELS,
    META,
    NEW_SLOT,
    SIZE_CLASSES,
    SLOT,
    SLOT_WORDS,
    State,
    tables_of,
)

_SLOTS_AHEAD_IN_TURN: Final = 8
"""Slots from the one that `sweep` visits to the one whose first chunk is fetched."""


@compiled
def roll_back(state: State) -> None:
    """Copy the journal back, last entry first. The caller restores ``meta``."""
    journal, end = state.journal, state.meta[META.journal_end]
    while end > 0:
        source, start, words = journal[end - 3], journal[end - 2], journal[end - 1]
        end -= 3 + words
        if source == NEW_SLOT:
            leave_index(state, start)
            continue
        table = state.slots
        if source == IN_CHUNKS:
            table = state.chunks
        elif source == IN_CHUNKS + LABELS:
            table = state.label_chunks
        elif source == IN_ITEMS:
            table = state.events
        elif source == IN_ITEMS + LABELS:
            table = state.labels
        for k in range(words):
            table[start + k] = journal[end + k]


@compiled
def _free_expired_chunks(state: State, kind: Any, slot: Any, floor_us: Any) -> int:
    """Free a timeline's first chunks as far as nothing in them is later than ``floor_us``; returns their number."""
    chunks, _, chunks_dirty, _ = tables_of(state, kind)
    meta, slots, base = state.meta, state.slots, slot * SLOT_WORDS + KIND_STEP * kind
    dropped = 0
    chunk = slots[base + SLOT.head]
    while chunk > 0 and chunks[chunk * CHUNK_WORDS + CHUNK.last] <= floor_us:
        record = chunk * CHUNK_WORDS
        following, length = chunks[record + CHUNK.next], chunks[record + CHUNK.length]
        free = FREE_CHUNKS + SIZE_CLASSES * kind + size_class_of(chunks[record + CHUNK.capacity])
        chunks[record + CHUNK.next] = meta[free]
        meta[free] = chunk
        mark(chunks_dirty, record, CHUNK_WORDS)
        slots[base + SLOT.held] -= length
        meta[META.held_events + kind] -= length
        slots[base + SLOT.head] = following
        if following > 0:
            chunks[following * CHUNK_WORDS + CHUNK.previous] = 0
            mark(chunks_dirty, following * CHUNK_WORDS, CHUNK_WORDS)
        else:
            slots[base + SLOT.tail] = 0
        mark(state.slots_dirty, slot * SLOT_WORDS, SLOT_WORDS)
        dropped += 1
        chunk = following
    return dropped


@compiled
def sweep(state: State, labelled: bool, steps: Any) -> None:
    """Visit the next slots in turn, free what lies behind the horizon, and forget entities that hold nothing.

    Args:
        state: The partition's tables, with nothing that could still be rolled back.
        labelled: True if entities have labels. Those without are held until their case is forgotten too.
        steps: Bounds the slots visited and chunks freed (a timeline that was begun is finished).
    """
    meta, slots = state.meta, state.slots
    end, floor_us, slot = meta[META.slots_end], meta[META.newest] - meta[META.horizon], meta[META.cursor]
    case_floor_us = meta[META.newest] - CASE_RETENTION_US
    steps = min(steps, 2 * end)
    while steps > 0 and end > 1:
        steps -= 1
        slot = slot + 1 if slot + 1 < end else 1
        if slot + _SLOTS_AHEAD_IN_TURN < end:
            prefetch(state.chunks, slots[(slot + _SLOTS_AHEAD_IN_TURN) * SLOT_WORDS + SLOT.head] * CHUNK_WORDS)
        base = slot * SLOT_WORDS
        if slots[base + SLOT.tail] == FREE:
            continue
        steps -= _free_expired_chunks(state, EVENTS, slot, floor_us)
        if labelled:
            steps -= _free_expired_chunks(state, LABELS, slot, floor_us)
            empty = slots[base + SLOT.head] == 0 and slots[base + SLOT.head + KIND_STEP] == 0
        else:
            empty = slots[base + SLOT.head] == 0 and slots[base + SLOT.case_start] <= case_floor_us
        if empty:
            leave_index(state, slot)
            slots[base + SLOT.head] = meta[META.free_slot]
            slots[base + SLOT.tail] = FREE
            meta[META.free_slot] = slot
            meta[META.entities] -= 1
            mark(state.slots_dirty, base, SLOT_WORDS)
    meta[META.cursor] = slot
