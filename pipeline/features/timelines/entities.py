"""The slots of entities, and the index that finds them by key."""

from typing import Any

import numpy as np

from pipeline.features.compiled import compiled, inlined
from pipeline.features.timelines.journal import save
from pipeline.features.timelines.layout import (
    FREE,
    IN_SLOTS,
    META,
    NEW_SLOT,
    SLOT,
    SLOT_MASK,
    SLOT_WORDS,
    TAG_SHIFT,
    State,
)


@inlined
def find_slot(state: State, high: Any, low: Any) -> Any:
    """(slot of a key or 0, its position in the index or the free one that it would take).

    Args:
        state: The partition's tables; only read.
        high: First 64 bits of the key, signed.
        low: Last 64 bits of the key, signed; they say where in the index the search begins.
    """
    index, slots = state.slot_index, state.slots
    mask = index.shape[0] - 1
    at = low & mask
    while True:
        entry = index[at]
        if entry == 0:
            return np.int64(0), at
        if (entry ^ high) >> TAG_SHIFT == 0:
            slot = entry & SLOT_MASK
            if slots[slot * SLOT_WORDS + SLOT.key_low] == low and slots[slot * SLOT_WORDS + SLOT.key_high] == high:
                return slot, at
        at = (at + 1) & mask


@inlined
def _index_entry(high: Any, slot: Any) -> Any:
    """Return the index entry of a slot whose key begins with ``high``."""
    return (high & ~SLOT_MASK) | slot


@inlined
def enter_slot(state: State, high: Any, low: Any, expected: Any) -> int:
    """Slot of a key, a new one where there is none yet; its record is in the journal.

    Args:
        state: The partition's tables, with room for another slot and for its record in the journal.
        high: First 64 bits of the key, signed.
        low: Last 64 bits of the key, signed.
        expected: Slot where `find_slot` has found the key already; 0: not looked for, or not found.
    """
    meta, slots = state.meta, state.slots
    slot, at = expected, np.int64(0)
    if slot == 0:
        slot, at = find_slot(state, high, low)
    if slot > 0:
        save(state, IN_SLOTS, slots, state.slots_dirty, slot * SLOT_WORDS, SLOT_WORDS)
        return int(slot)
    slot = meta[META.free_slot]
    if slot > 0:
        meta[META.free_slot] = slots[slot * SLOT_WORDS + SLOT.head]
    else:
        slot = meta[META.slots_end]
        meta[META.slots_end] = slot + 1
    base = slot * SLOT_WORDS
    save(state, IN_SLOTS, slots, state.slots_dirty, base, SLOT_WORDS)
    slots[base : base + SLOT_WORDS] = 0
    slots[base + SLOT.key_high] = high
    slots[base + SLOT.key_low] = low
    state.slot_index[at] = _index_entry(high, slot)
    meta[META.entities] += 1
    end = meta[META.journal_end]
    state.journal[end] = NEW_SLOT
    state.journal[end + 1] = slot
    state.journal[end + 2] = 0
    meta[META.journal_end] = end + 3
    return int(slot)


@compiled
def leave_index(state: State, slot: Any) -> None:
    """Take a slot out of the index; what was probed past it moves up."""
    index, slots = state.slot_index, state.slots
    mask = index.shape[0] - 1
    at = slots[slot * SLOT_WORDS + SLOT.key_low] & mask
    while index[at] & SLOT_MASK != slot:
        at = (at + 1) & mask
    gap = at
    while True:
        at = (at + 1) & mask
        other = index[at]
        if other == 0:
            break
        home = slots[(other & SLOT_MASK) * SLOT_WORDS + SLOT.key_low] & mask
        if ((at - home) & mask) >= ((at - gap) & mask):
            index[gap] = other
            gap = at
    index[gap] = 0


@compiled
def fill_index(state: State) -> None:
    """Enter all slots into an empty index."""
    index, slots = state.slot_index, state.slots
    mask = index.shape[0] - 1
    for slot in range(1, state.meta[META.slots_end]):
        base = slot * SLOT_WORDS
        if slots[base + SLOT.tail] != FREE:
            at = slots[base + SLOT.key_low] & mask
            while index[at] != 0:
                at = (at + 1) & mask
            index[at] = _index_entry(slots[base + SLOT.key_high], slot)
