"""What the windows hold, read off their tables one by one, with every promise of the layout checked on the way."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from pipeline.features.kernel import CardWindows, MerchantWindows
from pipeline.features.state_columns import PAGE_ITEMS, Pages
from pipeline.features.timelines.entities import find_slot
from pipeline.features.timelines.layout import (
    CHUNK,
    CHUNK_WORDS,
    EVENTS,
    FREE,
    FREE_CHUNKS,
    KIND_STEP,
    LABELLED,
    LABELS,
    LEAST_WITH_TOTALS,
    META,
    NEVER,
    NO_VALUE,
    RUN,
    SIZE_CLASSES,
    SLOT,
    SLOT_WORDS,
    SMALLEST_CHUNK,
    TOTAL,
    TOTALS,
    TOTALS_WORDS,
    tables_of,
)
from pipeline.features.window_tables import Tables
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
    slots = state.slots[: meta[META.slots_end] * SLOT_WORDS].reshape(-1, SLOT_WORDS)
    held: dict[tuple[int, int], Held] = {}
    free = _chain(int(meta[META.free_slot]), lambda slot: int(slots[slot][SLOT.head]))
    used: tuple[list[int], list[int]] = ([], [])
    for slot in range(1, len(slots)):
        record = slots[slot]
        if record[SLOT.tail] == FREE:
            assert slot in free
            continue
        assert slot not in free
        key = (int(record[SLOT.key_high]), int(record[SLOT.key_low]))
        assert find_slot(state, *key)[0] == slot
        events = _rows(tables, EVENTS, record, used[0])
        labels = _rows(tables, LABELS, record, used[1]) if labelled else []
        case = (0, 0) if labelled else (int(record[SLOT.case_start]), int(record[SLOT.case_sequence]))
        held[key] = Held(events, labels, case)
    assert len(held) == windows.entities == np.count_nonzero(state.slot_index)
    assert windows.events == sum(len(item.events) for item in held.values())
    assert windows.labels == sum(len(result.labels) for result in held.values())
    for kind in (EVENTS, LABELS) if labelled else (EVENTS,):
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
    chunks = tables_of(tables.state, kind)[0]
    return chunks[: tables.state.meta[META.chunks_end + 2 * kind] * CHUNK_WORDS].reshape(-1, CHUNK_WORDS)


def _all_accounted_for(tables: Tables, kind: int, used: list[int]) -> None:
    """Every chunk is in one chain or on one free list, and the chunks tile the arena."""
    chunks, meta = _chunks(tables, kind), tables.state.meta
    free: list[int] = []
    for size_class in range(SIZE_CLASSES):
        head = int(meta[FREE_CHUNKS + SIZE_CLASSES * kind + size_class])
        on_list = _chain(head, lambda chunk: int(chunks[chunk][CHUNK.next]))
        assert all(chunks[chunk][CHUNK.capacity] == SMALLEST_CHUNK << size_class for chunk in on_list)
        free += on_list
    assert sorted([*free, *used]) == list(range(1, len(chunks)))
    words = tables._words["labels" if kind == LABELS else "events"][0]
    capacity = chunks[1:, CHUNK.capacity]
    with_totals = (capacity >= LEAST_WITH_TOTALS) & (kind == EVENTS)
    values = int(meta[META.values])
    behind = -(-(capacity // RUN * TOTALS_WORDS + (capacity // RUN + 1) * values) // words)
    ends = chunks[1:, CHUNK.start] + capacity + np.where(with_totals, behind, 0)
    assert [0, *ends.tolist()] == [
        *chunks[1:, CHUNK.start].tolist(),
        int(meta[META.events_end + 2 * kind]),
    ]


def _rows(tables: Tables, kind: int, slot: np.ndarray, used: list[int]) -> list[tuple[int, ...]]:
    chunks, items = _chunks(tables, kind), tables_of(tables.state, kind)[1]
    words = tables._words["labels" if kind == LABELS else "events"][0]
    step = KIND_STEP * kind
    found: list[tuple[int, ...]] = []
    chain = _chain(int(slot[SLOT.head + step]), lambda chunk: int(chunks[chunk][CHUNK.next]))
    previous = 0
    for number in chain:
        chunk = chunks[number]
        assert chunk[CHUNK.previous] == previous
        assert 0 < chunk[CHUNK.length] <= chunk[CHUNK.capacity]
        start = int(chunk[CHUNK.start])
        rows = items[start * words : (start + int(chunk[CHUNK.length])) * words].reshape(-1, words).tolist()
        assert (chunk[CHUNK.first], chunk[CHUNK.last]) == (rows[0][0], rows[-1][0])
        if kind == LABELS:
            found += _labels(chunk, rows)
        else:
            events = [(row[0], row[1] >> 1, row[1] & 1, row[2] if len(row) > 2 else 0) for row in rows]
            if chunk[CHUNK.capacity] >= LEAST_WITH_TOTALS:
                _check_totals(chunk[TOTALS:], events)
                runs = items[(start + int(chunk[CHUNK.capacity])) * words :]
                for run in range(0, -(-len(rows) // RUN)):
                    _check_totals(runs[run * TOTALS_WORDS :], events[run * RUN : (run + 1) * RUN])
                _check_counts(runs, int(chunk[CHUNK.capacity]), np.array(rows), int(tables.state.meta[META.values]))
            found += events
        previous = number
    used += chain
    assert slot[SLOT.tail + step] == previous
    assert slot[SLOT.held + step] == len(found)
    assert [row[0] for row in found] == sorted(row[0] for row in found)
    return found


def _check_totals(totals: np.ndarray, events: list[tuple[int, ...]]) -> None:
    amounts = [amount for _, amount, *_ in events]
    assert (totals[TOTAL.largest], totals[TOTAL.smallest]) == (max(amounts), min(amounts))
    assert (totals[TOTAL.sum], totals[TOTAL.flags]) == (
        sum(amounts),
        sum(flag for _, _, flag, _ in events),
    )
    assert totals[TOTAL.flagged_sum] == sum(amount for _, amount, flag, _ in events if flag)
    high, low = int(totals[TOTAL.square_high]), int(totals[TOTAL.square_low])
    assert ((high % 2**64) << 64) + low % 2**64 == sum(amount * amount for amount in amounts)


def _check_counts(behind: np.ndarray, capacity: int, rows: np.ndarray, values: int) -> None:
    counts = behind[capacity // RUN * TOTALS_WORDS :][: (capacity // RUN + 1) * values].reshape(-1, values)
    held = rows[:, rows.shape[1] - values :] != NO_VALUE
    assert counts[-1].tolist() == held.sum(axis=0).tolist()
    for run in range(-(-len(rows) // RUN)):
        assert counts[run].tolist() == held[run * RUN : (run + 1) * RUN].sum(axis=0).tolist()


def _labels(chunk: np.ndarray, rows: list[list[int]]) -> list[tuple[int, ...]]:
    known = frauds = unexplained = 0
    for row in rows:
        known, frauds, unexplained = known + (row[4] != 2), frauds + row[4] % 2, unexplained + (row[4] == 1)
        assert row[5:8] == [known, frauds, unexplained]
    assert tuple(chunk[[LABELLED.known, LABELLED.frauds, LABELLED.unexplained]]) == (
        known,
        frauds,
        unexplained,
    )
    assert chunk[LABELLED.latest_known_at] == max(row[2] for row in rows)
    assert chunk[LABELLED.corrected] == sum(row[3] != NEVER for row in rows)
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
