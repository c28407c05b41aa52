"""The contents of windows in canonical order: equal for equal histories, however they came about."""

from collections.abc import Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipeline.features.catalogue import HORIZON_US
from pipeline.features.timelines import layout

_LABEL_COLUMNS: Final = 5
"""Columns of a label's row before the sums over its chunk."""


def window_contents(state: layout.State, event_words: int) -> list[tuple[bytes, ...]]:
    """Return what the windows can still show: key, case, events and labels of each entity, by key.

    Places in the tables, sums over chunks, and rows behind the horizon that no sweep has freed yet
    are left out: they depend on how the state came about, and no feature shows them.

    Args:
        state: Committed tables of one partition.
        event_words: Words of an event's row.
    """
    floor_us = int(state.meta[layout.NEWEST]) - HORIZON_US
    used = int(state.meta[layout.SLOTS_END]) * int(layout.SLOT_WORDS)
    slots = state.slots[:used].reshape(-1, int(layout.SLOT_WORDS))
    found = []
    for slot in slots[1:][slots[1:, layout.TAIL] != layout.FREE]:
        events = _rows(state.chunks, state.events, int(slot[layout.HEAD]), event_words, floor_us)
        first_label = int(slot[layout.HEAD + layout.KIND_STEP]) if len(state.labels) else 0
        labels = _rows(state.label_chunks, state.labels, first_label, int(layout.LABEL_WORDS), floor_us)
        case = slot[[layout.CASE_START, layout.CASE_SEQUENCE]]
        has_case = not len(state.labels) and int(case[0]) > floor_us
        if len(events) or len(labels) or has_case:
            key = slot[[layout.KEY_HIGH, layout.KEY_LOW]].tobytes()
            shown = case.tobytes() if has_case else b""
            found.append((key, shown, events.tobytes(), labels[:, :_LABEL_COLUMNS].tobytes()))
    return sorted(found)


def _rows(
    chunks: NDArray[np.int64], items: NDArray[np.int64], first: int, words: int, floor_us: int
) -> NDArray[np.int64]:
    """Return the rows of a timeline behind ``floor_us``, in log order; shape (n, words)."""
    parts = [np.empty((0, words), np.int64)]
    for chunk in _chain(chunks, first):
        start, length = (int(chunks[chunk * layout.CHUNK_WORDS + word]) for word in (layout.START, layout.LENGTH))
        parts.append(items[start * words : (start + length) * words].reshape(-1, words))
    rows = np.concatenate(parts)
    return rows[rows[:, 0] > floor_us]


def _chain(chunks: NDArray[np.int64], first: int) -> Iterator[int]:
    while first > 0:
        yield first
        first = int(chunks[first * layout.CHUNK_WORDS + layout.NEXT])
