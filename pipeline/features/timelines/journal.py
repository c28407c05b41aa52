"""The journal of a batch: copies of what it overwrites, and marks on the pages that it changes."""

from typing import Any, Final

from pipeline.features.compiled import inlined
from pipeline.features.state_columns import PAGE_ITEMS
from pipeline.features.timelines.layout import META, State

_PAGE_SHIFT: Final = PAGE_ITEMS.bit_length() - 1


@inlined
def mark(dirty: Any, start: Any, words: Any) -> None:
    """Mark the pages of words that change.

    Args:
        dirty: Marks of a table's pages, shape (pages,), set to 1.
        start: Number of the first word in the table.
        words: Number of words, at least 1.
    """
    for page in range(start >> _PAGE_SHIFT, ((start + words - 1) >> _PAGE_SHIFT) + 1):
        dirty[page] = 1


@inlined
def save(state: State, source: Any, table: Any, dirty: Any, start: Any, words: Any) -> None:
    """Copy words that are about to be overwritten to the journal, and mark their pages.

    Args:
        state: The partition's tables, with room in the journal for the words and three more.
        source: Names the table for `roll_back`: `IN_SLOTS`, or `IN_CHUNKS` or `IN_ITEMS` plus the kind of timeline.
        table: The table, flat.
        dirty: Marks of its pages, shape (pages,).
        start: Number of the first word.
        words: Number of words; for 0 or less nothing happens.
    """
    if words <= 0:
        return
    journal = state.journal
    end = state.meta[META.journal_end]
    for k in range(words):
        journal[end + k] = table[start + k]
    journal[end + words] = source
    journal[end + words + 1] = start
    journal[end + words + 2] = words
    state.meta[META.journal_end] = end + words + 3
    mark(dirty, start, words)
