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

from pipeline.features.built_in import USUAL_EVENTS, columns_of
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

META: Final = columns_of(
    "MetaWords",
    ("newest", "slots_end", "chunks_end", "events_end", "label_chunks_end", "labels_end", "free_slot", "cursor",
     "entities", "journal_end", "held_events", "held_labels", "horizon", "journal_reserve", "values"),
)  # fmt: skip
"""Numbers that the state needs besides its tables. The last three follow from the declaration, which compiled code must
not read as constants: Numba keeps it on disk for every declaration. ``values``: declared values of an event."""
FREE_CHUNKS: Final = 16
"""First of the numbers that are heads of the lists of free chunks."""
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

SLOT: Final = columns_of("SlotWords", ("key_high", "key_low", "head", "tail", "held", "case_start", "case_sequence"))
"""A slot: one entity. Its key are 128 bits, a free one has FREE as its tail and the next free one as its head."""
SLOT_WORDS: Final = np.int64(8)
FREE: Final = -1
KIND_STEP: Final = 3
TAG_SHIFT: Final = 32
SLOT_MASK: Final = np.int64(2**TAG_SHIFT - 1)

CHUNK: Final = columns_of("ChunkWords", ("start", "capacity", "length", "previous", "next", "first", "last"))
"""A chunk; number 0 stands for none. Its second half, a cache line of its own, are totals that small chunks of events
do not have."""
TOTALS: Final = 8
LABELLED: Final = columns_of(
    "LabelledWords", ("known", "frauds", "latest_known_at", "corrected", "unexplained"), TOTALS
)
"""Totals of a chunk of labels."""
CHUNK_WORDS: Final = np.int64(16)
LINE_WORDS: Final = np.int64(8)

TOTAL: Final = columns_of(
    "TotalWords", ("largest", "smallest", "sum", "square_high", "square_low", "flags", "flagged_sum")
)
"""Totals of the events of a chunk or of a run: squares in 128 bits, number and sum of the flagged."""
TOTALS_WORDS: Final = np.int64(len(TOTAL))

EVENT: Final = columns_of("EventWords", ("time", "amount", "other"))
"""A row of an event: time, twice the amount and one more where it is flagged; of a card's also the merchant's hash.

Behind them stand the values that declared windows read, or NO_VALUE. The words of a whole row are an argument of
compiled functions. Behind the totals of its runs, a chunk counts the events that have each of these values: those of
each run, and then all of them."""
CARD_EVENT_WORDS: Final = np.int64(3)
MERCHANT_EVENT_WORDS: Final = np.int64(2)
NO_VALUE: Final = np.iinfo(np.int64).min
"""In place of a declared value that an event does not have."""

LABEL: Final = columns_of(
    "LabelWords", ("time", "identity", "known_at", "superseded_at", "value", "known", "frauds", "unexplained")
)
"""A row of a label: its transaction's time and identity, from when and until when it is what is known, its value, and
cumulative within the chunk: known, frauds, unexplained frauds."""
LABEL_WORDS: Final = np.int64(len(LABEL))

# Values of a label; those of frauds are odd.
UNEXPLAINED_FRAUD: Final = 1
UNKNOWN: Final = 2
EXPLAINED_FRAUD: Final = 3

# What an entry of the journal was copied from.
IN_SLOTS: Final = np.int64(0)
IN_CHUNKS: Final = np.int64(1)
IN_ITEMS: Final = np.int64(3)
NEW_SLOT: Final = 5

# What a row is computed in.
FOUND: Final = 0
ORDERED: Final = 32
RECENT: Final = ORDERED + USUAL_EVENTS
AHEAD: Final = 3
"""Rows from one step of looking ahead to the next."""
CHUNKS_AHEAD: Final = 4
"""Chunks of a timeline that are fetched ahead, one a step, the newest first."""
ROWS_AHEAD: Final = 16
"""A power of two, more than the rows to the step that finds a row's slot."""
LOOKED_AHEAD: Final = RECENT + USUAL_EVENTS
LOOKED_AHEAD_WORDS: Final = 3 * ROWS_AHEAD
SCRATCH_WORDS: Final = LOOKED_AHEAD + LOOKED_AHEAD_WORDS


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
