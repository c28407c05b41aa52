"""The layout of the windows' state: names of the words in its tables.

A *timeline* holds one entity's events or labels, ordered by event time (of the same instant, by log), in a chain of
*chunks*: a record each, and rows in a shared arena. Few events lie in one chunk, whose size follows them; many in
chunks that know their totals, and those of each run of rows. The windows are read from the newest event backwards, one
within the next: by rows, by runs and by whole chunks, as far as each lies in the window. Labels are cumulative within
their chunk: what a window holds of one is a difference of two rows, found by binary search. Chunks are taken from the
arena in the order of need, so that old events lie on pages that nothing touches until they expire.

What is overwritten between two commits is copied to a journal first; `roll_back` copies it back, last one first.
"""

from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.features.catalogue import USUAL_EVENTS
from pipeline.features.compiled import inlined

NEVER: Final = np.iinfo(np.int64).max
NOTHING_YET_US: Final = -(2**62)
"""The newest event time of a partition without transactions: so early that nothing lies behind its horizon."""
SMALLEST_CHUNK: Final = np.int64(4)
LARGEST_CHUNK: Final = 2_048
LARGEST_BLOCK: Final = 64
"""A timeline of so few events that they fit into a chunk of this capacity lies in one chunk, that grows and shrinks."""
ROWS_RESERVE: Final = LARGEST_CHUNK + LARGEST_CHUNK // 4
"""Rows of an arena that one row can need at most: the largest chunk and what is kept behind its rows."""
RUN: Final = 16
RUN_SHIFT: Final = 4
LEAST_WITH_TOTALS: Final = 64
"""Chunks of events of this capacity or more keep their totals, and those of each run of rows, behind them."""

# Numbers that the state needs besides its tables.
NEWEST: Final = 0
SLOTS_END: Final = 1
CHUNKS_END: Final = 2
EVENTS_END: Final = 3
LABEL_CHUNKS_END: Final = 4
LABELS_END: Final = 5
FREE_SLOT: Final = 6
CURSOR: Final = 7
ENTITIES: Final = 8
JOURNAL_END: Final = 9
HELD_EVENTS: Final = 10
HELD_LABELS: Final = 11
FREE_CHUNKS: Final = 16
SIZE_CLASSES: Final = 16
META_WORDS: Final = 48
META_KIND_STEP: Final = 2
"""Distance of a number of the labels' timelines behind the same of the events'."""

# Constants that are arguments of compiled functions are NumPy's integers: of Python's, Numba would compile each
# function once for each value.
NO_CHUNK: Final = np.int64(0)

# The two kinds of timeline; what belongs to labels stands one step further on.
EVENTS: Final = np.int64(0)
LABELS: Final = np.int64(1)

# A slot: one entity. Its key are 128 bits, a free one has FREE as its tail and the next free one as its head.
SLOT_WORDS: Final = np.int64(8)
KEY_HIGH: Final = 0
KEY_LOW: Final = 1
HEAD: Final = 2
TAIL: Final = 3
HELD: Final = 4
CASE_START: Final = 5
CASE_SEQUENCE: Final = 6
FREE: Final = -1
KIND_STEP: Final = 3
TAG_SHIFT: Final = 32
SLOT_MASK: Final = np.int64(2**TAG_SHIFT - 1)

# A chunk; number 0 stands for none.
# Its second half, a cache line of its own, are totals that small chunks of events do not have.
CHUNK_WORDS: Final = np.int64(16)
LINE_WORDS: Final = np.int64(8)
START: Final = 0
CAPACITY: Final = 1
LENGTH: Final = 2
PREVIOUS: Final = 3
NEXT: Final = 4
FIRST: Final = 5
LAST: Final = 6
TOTALS: Final = 8
KNOWN: Final = 8
FRAUDS: Final = 9
LATEST_KNOWN_AT: Final = 10
CORRECTED: Final = 11
UNEXPLAINED: Final = 12

# Totals of the events of a chunk or of a run: extremes, sum, squares in 128 bits, number and sum of the flagged.
TOTALS_WORDS: Final = np.int64(7)
LARGEST: Final = 0
SMALLEST: Final = 1
SUM: Final = 2
SQUARE_HIGH: Final = 3
SQUARE_LOW: Final = 4
FLAGS: Final = 5
FLAGGED_SUM: Final = 6

# A row of an event: time, twice the amount and one more where it is flagged; of a card's also the merchant's hash.
CARD_EVENT_WORDS: Final = np.int64(3)
MERCHANT_EVENT_WORDS: Final = np.int64(2)
EVENT_AMOUNT: Final = 1
EVENT_OTHER: Final = 2

# A row of a label: its transaction's time and identity, from when and until when it is what is known, its value, and
# cumulative within the chunk: known, frauds, unexplained frauds.
LABEL_WORDS: Final = np.int64(8)
LABEL_IDENTITY: Final = 1
LABEL_KNOWN_AT: Final = 2
LABEL_SUPERSEDED_AT: Final = 3
LABEL_VALUE: Final = 4
LABEL_KNOWN: Final = 5
LABEL_FRAUDS: Final = 6
LABEL_UNEXPLAINED: Final = 7

# Values of a label; those of frauds are odd.
UNEXPLAINED_FRAUD: Final = 1
UNKNOWN: Final = 2
EXPLAINED_FRAUD: Final = 3

# What an entry of the journal was copied from.
IN_SLOTS: Final = np.int64(0)
IN_CHUNKS: Final = np.int64(1)
IN_ITEMS: Final = np.int64(3)
NEW_SLOT: Final = 5
JOURNAL_RESERVE: Final = 2 * LARGEST_CHUNK * CARD_EVENT_WORDS
"""Words of the journal that one row can need at most: half a chunk split, half a chunk moved, and records."""

# What a row is computed in.
FOUND: Final = 0
ORDERED: Final = 32
RECENT: Final = ORDERED + USUAL_EVENTS
SLOTS_AHEAD: Final = RECENT + USUAL_EVENTS
AHEAD: Final = 3
"""Rows from one step of looking ahead to the next."""
ROWS_AHEAD: Final = 4 * AHEAD
SCRATCH_WORDS: Final = SLOTS_AHEAD + ROWS_AHEAD


class State(NamedTuple):
    """All arrays of one partition's windows. Tables are rows of 64-bit words; ``*_dirty`` has a byte a page."""

    meta: NDArray[np.int64]
    slot_index: NDArray[np.int64]
    """Slots by key, in open addressing with linear probing: the slot in the low half of a word, in the high half the
    same as in the key's first word, so that other keys' slots are not looked at; 0: none. Its size is a power of two.
    """
    journal: NDArray[np.int64]
    scratch: NDArray[np.int64]
    slots: NDArray[np.int64]
    chunks: NDArray[np.int64]
    events: NDArray[np.int64]
    label_chunks: NDArray[np.int64]
    labels: NDArray[np.int64]
    slots_dirty: NDArray[np.uint8]
    chunks_dirty: NDArray[np.uint8]
    events_dirty: NDArray[np.uint8]
    label_chunks_dirty: NDArray[np.uint8]
    labels_dirty: NDArray[np.uint8]


@inlined
def tables_of(state: State, kind: Any) -> Any:
    """(chunks, items, marks of the chunks' pages, marks of the items' pages) of one kind of timeline."""
    if kind == EVENTS:
        return state.chunks, state.events, state.chunks_dirty, state.events_dirty
    return state.label_chunks, state.labels, state.label_chunks_dirty, state.labels_dirty
