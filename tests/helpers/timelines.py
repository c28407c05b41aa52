"""What the windows hold, read off their tables one by one, with every promise of the layout checked on the way."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from pipeline.features.columns import PAGE_ITEMS, Pages
from pipeline.features.kernel import CardWindows, MerchantWindows
from pipeline.features.tables import Tables
from pipeline.features.timelines import layout
from pipeline.features.timelines.entities import find_slot
from tests.helpers.memory_columns import MemoryColumn

Windows = CardWindows | MerchantWindows


class Held(NamedTuple):
    """One entity: events as (time, amount, flag, other), labels as (time, identity, known at, superseded at, value)."""

    events: list[tuple[int, ...]]
    labels: list[tuple[int, ...]]
    case: tuple[int, int]


def contents(windows: Windows) -> dict[tuple[int, int], Held]:
    """All entities by key; asserts that chains, totals, free lists and index are sound."""
    tables: Tables = windows
    state = tables.state
    meta, labelled = state.meta, isinstance(windows, MerchantWindows)
    slots = state.slots[: meta[layout.SLOTS_END] * layout.SLOT_WORDS].reshape(-1, layout.SLOT_WORDS)
    held: dict[tuple[int, int], Held] = {}
    free = _chain(int(meta[layout.FREE_SLOT]), lambda slot: int(slots[slot][layout.HEAD]))
    used: tuple[list[int], list[int]] = ([], [])
    for slot in range(1, len(slots)):
        record = slots[slot]
        if record[layout.TAIL] == layout.FREE:
            assert slot in free
            continue
        assert slot not in free
        key = (int(record[layout.KEY_HIGH]), int(record[layout.KEY_LOW]))
        assert find_slot(state, *key)[0] == slot
        events = _rows(tables, layout.EVENTS, record, used[0])
        labels = _rows(tables, layout.LABELS, record, used[1]) if labelled else []
        case = (0, 0) if labelled else (int(record[layout.CASE_START]), int(record[layout.CASE_SEQUENCE]))
        held[key] = Held(events, labels, case)
    assert len(held) == windows.entities == np.count_nonzero(state.slot_index)
    assert windows.events == sum(len(item.events) for item in held.values())
    assert windows.labels == sum(len(result.labels) for result in held.values())
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
    chunks = layout.tables_of(tables.state, kind)[0]
    return chunks[: tables.state.meta[layout.CHUNKS_END + 2 * kind] * layout.CHUNK_WORDS].reshape(
        -1, layout.CHUNK_WORDS
    )


def _all_accounted_for(tables: Tables, kind: int, used: list[int]) -> None:
    """Every chunk is in one chain or on one free list, and the chunks tile the arena."""
    chunks, meta = _chunks(tables, kind), tables.state.meta
    free: list[int] = []
    for size_class in range(layout.SIZE_CLASSES):
        head = int(meta[layout.FREE_CHUNKS + layout.SIZE_CLASSES * kind + size_class])
        on_list = _chain(head, lambda chunk: int(chunks[chunk][layout.NEXT]))
        assert all(chunks[chunk][layout.CAPACITY] == layout.SMALLEST_CHUNK << size_class for chunk in on_list)
        free += on_list
    assert sorted([*free, *used]) == list(range(1, len(chunks)))
    words = tables._words["labels" if kind == layout.LABELS else "events"][0]
    capacity = chunks[1:, layout.CAPACITY]
    with_totals = (capacity >= layout.LEAST_WITH_TOTALS) & (kind == layout.EVENTS)
    behind = -(-(capacity // layout.RUN * layout.TOTALS_WORDS) // words)
    ends = chunks[1:, layout.START] + capacity + np.where(with_totals, behind, 0)
    assert [0, *ends.tolist()] == [*chunks[1:, layout.START].tolist(), int(meta[layout.EVENTS_END + 2 * kind])]


def _rows(tables: Tables, kind: int, slot: np.ndarray, used: list[int]) -> list[tuple[int, ...]]:
    chunks, items = _chunks(tables, kind), layout.tables_of(tables.state, kind)[1]
    words = tables._words["labels" if kind == layout.LABELS else "events"][0]
    step = layout.KIND_STEP * kind
    found: list[tuple[int, ...]] = []
    chain = _chain(int(slot[layout.HEAD + step]), lambda chunk: int(chunks[chunk][layout.NEXT]))
    previous = 0
    for number in chain:
        chunk = chunks[number]
        assert chunk[layout.PREVIOUS] == previous
        assert 0 < chunk[layout.LENGTH] <= chunk[layout.CAPACITY]
        start = int(chunk[layout.START])
        rows = items[start * words : (start + int(chunk[layout.LENGTH])) * words].reshape(-1, words).tolist()
        assert (chunk[layout.FIRST], chunk[layout.LAST]) == (rows[0][0], rows[-1][0])
        if kind == layout.LABELS:
            found += _labels(chunk, rows)
        else:
            events = [(row[0], row[1] >> 1, row[1] & 1, row[2] if len(row) > 2 else 0) for row in rows]
            if chunk[layout.CAPACITY] >= layout.LEAST_WITH_TOTALS:
                _check_totals(chunk[layout.TOTALS :], events)
                runs = items[(start + int(chunk[layout.CAPACITY])) * words :]
                for run in range(0, -(-len(rows) // layout.RUN)):
                    _check_totals(runs[run * layout.TOTALS_WORDS :], events[run * layout.RUN : (run + 1) * layout.RUN])
            found += events
        previous = number
    used += chain
    assert slot[layout.TAIL + step] == previous
    assert slot[layout.HELD + step] == len(found)
    assert [row[0] for row in found] == sorted(row[0] for row in found)
    return found


def _check_totals(totals: np.ndarray, events: list[tuple[int, ...]]) -> None:
    amounts = [amount for _, amount, *_ in events]
    assert (totals[layout.LARGEST], totals[layout.SMALLEST]) == (max(amounts), min(amounts))
    assert (totals[layout.SUM], totals[layout.FLAGS]) == (sum(amounts), sum(flag for _, _, flag, _ in events))
    assert totals[layout.FLAGGED_SUM] == sum(amount for _, amount, flag, _ in events if flag)
    high, low = int(totals[layout.SQUARE_HIGH]), int(totals[layout.SQUARE_LOW])
    assert ((high % 2**64) << 64) + low % 2**64 == sum(amount * amount for amount in amounts)


def _labels(chunk: np.ndarray, rows: list[list[int]]) -> list[tuple[int, ...]]:
    known = frauds = unexplained = 0
    for row in rows:
        known, frauds, unexplained = known + (row[4] != 2), frauds + row[4] % 2, unexplained + (row[4] == 1)
        assert row[5:8] == [known, frauds, unexplained]
    assert tuple(chunk[[layout.KNOWN, layout.FRAUDS, layout.UNEXPLAINED]]) == (known, frauds, unexplained)
    assert chunk[layout.LATEST_KNOWN_AT] == max(row[2] for row in rows)
    assert chunk[layout.CORRECTED] == sum(row[3] != layout.NEVER for row in rows)
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
