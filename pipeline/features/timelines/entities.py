"""The slots of entities, and the index that finds them by key."""

from typing import Any

import numpy as np

from pipeline.features.compiled import compiled, inlined
from pipeline.features.timelines.journal import save
from pipeline.features.timelines.layout import (
    ENTITIES,
    FREE,
    FREE_SLOT,
    HEAD,
    IN_SLOTS,
    JOURNAL_END,
    KEY_HIGH,
    KEY_LOW,
    NEW_SLOT,
    SLOT_MASK,
    SLOT_WORDS,
    SLOTS_END,
    TAG_SHIFT,
    TAIL,
    State,
)


@inlined
def find_slot(state: State, high: Any, low: Any) -> Any:
    """(slot of a key or 0, its position in the index or the free one that it would take)."""
    index, slots = state.slot_index, state.slots
    mask = index.shape[0] - 1
    at = low & mask
    while True:
        entry = index[at]
        if entry == 0:
            return np.int64(0), at
        if (entry ^ high) >> TAG_SHIFT == 0:
            slot = entry & SLOT_MASK
            if slots[slot * SLOT_WORDS + KEY_LOW] == low and slots[slot * SLOT_WORDS + KEY_HIGH] == high:
                return slot, at
        at = (at + 1) & mask


@inlined
def _index_entry(high: Any, slot: Any) -> Any:
    """Return the index entry of a slot whose key begins with ``high``."""
    return (high & ~SLOT_MASK) | slot


@inlined
def enter_slot(state: State, high: Any, low: Any, expected: Any) -> int:
    """Slot of a key, a new one where there is none yet; its record is in the journal.

    ``expected``: the slot where it was found already, or 0.
    """
    meta, slots = state.meta, state.slots
    slot, at = expected, np.int64(0)
    if slot == 0:
        slot, at = find_slot(state, high, low)
    if slot > 0:
        save(state, IN_SLOTS, slots, state.slots_dirty, slot * SLOT_WORDS, SLOT_WORDS)
        return int(slot)
    slot = meta[FREE_SLOT]
    if slot > 0:
        meta[FREE_SLOT] = slots[slot * SLOT_WORDS + HEAD]
    else:
        slot = meta[SLOTS_END]
        meta[SLOTS_END] = slot + 1
    base = slot * SLOT_WORDS
    save(state, IN_SLOTS, slots, state.slots_dirty, base, SLOT_WORDS)
    slots[base : base + SLOT_WORDS] = 0
    slots[base + KEY_HIGH] = high
    slots[base + KEY_LOW] = low
    state.slot_index[at] = _index_entry(high, slot)
    meta[ENTITIES] += 1
    end = meta[JOURNAL_END]
    state.journal[end] = NEW_SLOT
    state.journal[end + 1] = slot
    state.journal[end + 2] = 0
    meta[JOURNAL_END] = end + 3
    return int(slot)


@compiled
def leave_index(state: State, slot: Any) -> None:
    """Take a slot out of the index; what was probed past it moves up."""
    index, slots = state.slot_index, state.slots
    mask = index.shape[0] - 1
    at = slots[slot * SLOT_WORDS + KEY_LOW] & mask
    while index[at] & SLOT_MASK != slot:
        at = (at + 1) & mask
    gap = at
    while True:
        at = (at + 1) & mask
        other = index[at]
        if other == 0:
            break
        home = slots[(other & SLOT_MASK) * SLOT_WORDS + KEY_LOW] & mask
        if ((at - home) & mask) >= ((at - gap) & mask):
            index[gap] = other
            gap = at
    index[gap] = 0


@compiled
def fill_index(state: State) -> None:
    """Enter all slots into an empty index."""
    index, slots = state.slot_index, state.slots
    mask = index.shape[0] - 1
    for slot in range(1, state.meta[SLOTS_END]):
        base = slot * SLOT_WORDS
        if slots[base + TAIL] != FREE:
            at = slots[base + KEY_LOW] & mask
            while index[at] != 0:
                at = (at + 1) & mask
            index[at] = _index_entry(slots[base + KEY_HIGH], slot)
