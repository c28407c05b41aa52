"""The journal of a batch: copies of what it overwrites, and marks on the pages that it changes."""

from typing import Any, Final

from pipeline.features.columns import PAGE_ITEMS
from pipeline.features.compiled import inlined
from pipeline.features.timelines.layout import JOURNAL_END, State

_PAGE_SHIFT: Final = PAGE_ITEMS.bit_length() - 1


@inlined
def mark(dirty: Any, start: Any, words: Any) -> None:
    """Mark the pages of words that change."""
    for page in range(start >> _PAGE_SHIFT, ((start + words - 1) >> _PAGE_SHIFT) + 1):
        dirty[page] = 1


@inlined
def save(state: State, source: Any, table: Any, dirty: Any, start: Any, words: Any) -> None:
    """Copy words that are about to be overwritten to the journal, and mark their pages."""
    if words <= 0:
        return
    journal = state.journal
    end = state.meta[JOURNAL_END]
    for k in range(words):
        journal[end + k] = table[start + k]
    journal[end + words] = source
    journal[end + words + 1] = start
    journal[end + words + 2] = words
    state.meta[JOURNAL_END] = end + words + 3
    mark(dirty, start, words)
