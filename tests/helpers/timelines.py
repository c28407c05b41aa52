"""What the windows hold, read off their tables one by one, with every promise of the layout checked on the way."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from pipeline.features import compiled as layout
from pipeline.features.columns import PAGE_ITEMS, Pages
from pipeline.features.kernel import CardWindows, MerchantWindows
from pipeline.features.tables import Tables
from tests.helpers.memory_columns import MemoryColumn

Windows = CardWindows | MerchantWindows


class Held(NamedTuple):
    """One entity: events as (time, amount, flag, other), labels as (time, identity, known at, superseded at, value)."""

    events: list[tuple[int, ...]]
    labels: list[tuple[int, ...]]
    case: tuple[int, int]


def contents(windows: Windows) -> dict[tuple[int, int], Held]:
    """All entities by key; asserts that chains, totals, free lists and index are sound."""
    tables: Tables = windows._tables
    state = tables.state
    meta, labelled = state.meta, isinstance(windows, MerchantWindows)
    slots = state.slots[: meta[layout.SLOTS_END] * layout.SLOT_WORDS].reshape(-1, layout.SLOT_WORDS)
    held: dict[tuple[int, int], Held] = {}
    free = _chain(int(meta[layout.FREE_SLOT]), lambda slot: int(slots[slot][layout._HEAD]))
    used: tuple[list[int], list[int]] = ([], [])
    for slot in range(1, len(slots)):
        record = slots[slot]
        if record[layout._TAIL] == layout._FREE:
            assert slot in free
            continue
        assert slot not in free
        key = (int(record[layout._KEY_HIGH]), int(record[layout._KEY_LOW]))
        assert layout._find(state, *key)[0] == slot
        events = _rows(tables, layout.EVENTS, record, used[0])
        labels = _rows(tables, layout.LABELS, record, used[1]) if labelled else []
        case = (0, 0) if labelled else (int(record[layout._CASE_START]), int(record[layout._CASE_SEQUENCE]))
        held[key] = Held(events, labels, case)
    assert len(held) == windows.entities == np.count_nonzero(state.places)
    assert windows.events == sum(len(one.events) for one in held.values())
    assert windows.labels == sum(len(one.labels) for one in held.values())
    for kind in (layout.EVENTS, layout.LABELS) if labelled else (layout.EVENTS,):
        _all_accounted_for(tables, kind, used[kind])
    return held


def _chain(first: int, following: Any) -> list[int]:
    found: list[int] = []
    while first:
        assert first not in found
        found.append(first)
        first = following(first)
    return found


def _chunks(tables: Tables, kind: int) -> np.ndarray:
    chunks = layout._tables(tables.state, kind)[0]
    return chunks[: tables.state.meta[layout.CHUNKS_END + 2 * kind] * layout.CHUNK_WORDS].reshape(
        -1, layout.CHUNK_WORDS
    )


def _all_accounted_for(tables: Tables, kind: int, used: list[int]) -> None:
    """Every chunk is in one chain or on one free list, and the chunks tile the arena."""
    chunks, meta = _chunks(tables, kind), tables.state.meta
    free: list[int] = []
    for size_class in range(layout._SIZE_CLASSES):
        head = int(meta[layout._FREE_CHUNKS + layout._SIZE_CLASSES * kind + size_class])
        on_list = _chain(head, lambda chunk: int(chunks[chunk][layout._NEXT]))
        assert all(chunks[chunk][layout._CAPACITY] == layout.SMALLEST_CHUNK << size_class for chunk in on_list)
        free += on_list
    assert sorted([*free, *used]) == list(range(1, len(chunks)))
    words = tables._words["labels" if kind == layout.LABELS else "events"][0]
    capacity = chunks[1:, layout._CAPACITY]
    with_totals = (capacity >= layout._LEAST_WITH_TOTALS) & (kind == layout.EVENTS)
    behind = -(-(capacity // layout._RUN * layout.TOTALS_WORDS) // words)
    ends = chunks[1:, layout._START] + capacity + np.where(with_totals, behind, 0)
    assert [0, *ends.tolist()] == [*chunks[1:, layout._START].tolist(), int(meta[layout.EVENTS_END + 2 * kind])]


def _rows(tables: Tables, kind: int, slot: np.ndarray, used: list[int]) -> list[tuple[int, ...]]:
    chunks, items = _chunks(tables, kind), layout._tables(tables.state, kind)[1]
    words = tables._words["labels" if kind == layout.LABELS else "events"][0]
    step = layout._KIND_STEP * kind
    found: list[tuple[int, ...]] = []
    chain = _chain(int(slot[layout._HEAD + step]), lambda chunk: int(chunks[chunk][layout._NEXT]))
    previous = 0
    for number in chain:
        chunk = chunks[number]
        assert chunk[layout._PREVIOUS] == previous
        assert 0 < chunk[layout._LENGTH] <= chunk[layout._CAPACITY]
        start = int(chunk[layout._START])
        rows = items[start * words : (start + int(chunk[layout._LENGTH])) * words].reshape(-1, words).tolist()
        assert (chunk[layout._FIRST], chunk[layout._LAST]) == (rows[0][0], rows[-1][0])
        if kind == layout.LABELS:
            found += _labels(chunk, rows)
        else:
            events = [(row[0], row[1] >> 1, row[1] & 1, row[2] if len(row) > 2 else 0) for row in rows]
            if chunk[layout._CAPACITY] >= layout._LEAST_WITH_TOTALS:
                _check_totals(chunk[layout._TOTALS :], events)
                runs = items[(start + int(chunk[layout._CAPACITY])) * words :]
                for run in range(0, -(-len(rows) // layout._RUN)):
                    _check_totals(
                        runs[run * layout.TOTALS_WORDS :], events[run * layout._RUN : (run + 1) * layout._RUN]
                    )
            found += events
        previous = number
    used += chain
    assert slot[layout._TAIL + step] == previous
    assert slot[layout._HELD + step] == len(found)
    assert [row[0] for row in found] == sorted(row[0] for row in found)
    return found


def _check_totals(totals: np.ndarray, events: list[tuple[int, ...]]) -> None:
    amounts = [amount for _, amount, *_ in events]
    assert (totals[layout._MAX], totals[layout._MIN]) == (max(amounts), min(amounts))
    assert (totals[layout._SUM], totals[layout._FLAGS]) == (sum(amounts), sum(flag for _, _, flag, _ in events))
    assert totals[layout._FLAGGED_SUM] == sum(amount for _, amount, flag, _ in events if flag)
    high, low = int(totals[layout._SQUARE_HIGH]), int(totals[layout._SQUARE_LOW])
    assert ((high % 2**64) << 64) + low % 2**64 == sum(amount * amount for amount in amounts)


def _labels(chunk: np.ndarray, rows: list[list[int]]) -> list[tuple[int, ...]]:
    known = frauds = unexplained = 0
    for row in rows:
        known, frauds, unexplained = known + (row[4] != 2), frauds + row[4] % 2, unexplained + (row[4] == 1)
        assert row[5:8] == [known, frauds, unexplained]
    assert tuple(chunk[[layout._KNOWN, layout._FRAUDS, layout._UNEXPLAINED]]) == (known, frauds, unexplained)
    assert chunk[layout._LATEST_KNOWN_AT] == max(row[2] for row in rows)
    assert chunk[layout._CORRECTED] == sum(row[3] != layout.NEVER for row in rows)
    return [tuple(row[:5]) for row in rows]


class Saved:
    """What a writer of snapshots keeps: the last values, and of each column its pages."""

    def __init__(self) -> None:
        self.values = b""
        self.pages: dict[str, dict[int, bytes]] = {}
        self.columns: dict[str, MemoryColumn] = {}

    def take(self, dump: tuple[bytes, Mapping[str, Pages]]) -> None:
        """Lay a dump over the ones before."""
        self.values = dump[0]
        for name, column in dump[1].items():
            pages = self.pages.setdefault(name, {})
            pages.update(column.changed)
            self.columns[name] = MemoryColumn(column.dtype, column.items, dict(pages))

    def whole(self) -> bool:
        """Whether each page holds all of the items that its column's length says."""
        return all(
            sorted(column.pages) == list(range(-(-column.items // PAGE_ITEMS)))
            and all(len(page) == 8 * min(PAGE_ITEMS, column.items - k * PAGE_ITEMS) for k, page in column.pages.items())
            for column in self.columns.values()
        )
