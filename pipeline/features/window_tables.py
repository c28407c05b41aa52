"""The windows' tables: how they grow, what of them is saved, and how a saved state is loaded."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pipeline.features.built_in import CASE_RETENTION_US
from pipeline.features.state_columns import PAGE_ITEMS, MemoryStorage, Pages, SavedColumn, Storage, aligned_zeros
from pipeline.features.timelines.entities import fill_index
from pipeline.features.timelines.layout import (
    CHUNK,
    CHUNK_WORDS,
    FREE,
    KIND_STEP,
    LABEL_WORDS,
    LARGEST_CHUNK,
    META,
    META_WORDS,
    NOTHING_YET_US,
    ROWS_RESERVE,
    RUN,
    SCRATCH_WORDS,
    SLOT,
    SLOT_WORDS,
    State,
)
from pipeline.features.timelines.maintenance import roll_back, sweep

_INITIAL_ROWS: Final = 1_024
_INITIAL_INDEX: Final = 4_096
_ROWS_PER_STEP: Final = 2
"""Rows profiled for each slot that is visited to see what it still holds: most timelines lose little at a time."""
_STEPS_PER_ENTITY: Final = 2
"""Slots visited for each new entity, so that forgetting keeps ahead of arriving, and costs a bounded time."""
_LEAST_STEPS: Final = 16
_LABEL_COLUMNS: Final = 5
"""Columns of a label's row before the sums over its chunk."""


class Tables:
    """All arrays of one partition's windows. ``state`` is what the compiled functions work on.

    Args:
        storage: Holds the tables; None: memory.
        event_words: 64-bit words of an event's row without declared values: `CARD_EVENT_WORDS` or
            `MERCHANT_EVENT_WORDS`.
        values: Values of an event that declared windows read, a word each.
        labelled: True if entities have labels beside their events, as merchants have.
        horizon_us: Time behind the partition's newest event after which an event is forgotten.
    """

    def __init__(
        self, storage: Storage | None, event_words: int, *, values: int, labelled: bool, horizon_us: int
    ) -> None:
        self._storage: Storage = MemoryStorage() if storage is None else storage
        self._labelled, self._horizon_us, self._values = labelled, horizon_us, values
        self._words = {
            "slots": (int(SLOT_WORDS), META.slots_end),
            "chunks": (int(CHUNK_WORDS), META.chunks_end),
            "events": (event_words + values, META.events_end),
            "label_chunks": (int(CHUNK_WORDS), META.label_chunks_end),
            "labels": (int(LABEL_WORDS), META.labels_end),
        }
        if not labelled:
            self._words = {name: self._words[name] for name in ("slots", "chunks", "events")}
        meta = np.zeros(META_WORDS, np.int64)
        meta[META.newest] = NOTHING_YET_US
        # Number 0 stands for none.
        meta[[META.slots_end, META.chunks_end, META.label_chunks_end]] = 1
        empty, no_marks = np.zeros(0, np.int64), np.zeros(0, np.uint8)
        self.state = State(
            meta=meta,
            slot_index=aligned_zeros(_INITIAL_INDEX, "<i8"),
            journal=np.zeros(2 * self._journal_reserve, np.int64),
            scratch=np.zeros(SCRATCH_WORDS, np.int64),
            slots=empty, chunks=empty, events=empty, label_chunks=empty, labels=empty,
            slots_dirty=no_marks, chunks_dirty=no_marks, events_dirty=no_marks,
            label_chunks_dirty=no_marks, labels_dirty=no_marks,
        )  # fmt: skip
        self._declare()
        for name in self._words:
            self._hold(name, _INITIAL_ROWS)
            getattr(self.state, f"{name}_dirty")[0] = 1
        self._before: np.ndarray[tuple[int], np.dtype[np.int64]] | None = None
        self._rows = 0

    def work(self, kernel: Callable[..., int], n: int, *columns: Any) -> None:
        """Have ``kernel`` work on n rows: where a table is full it ends early, and goes on once that has grown."""
        self._begin(n)
        done = 0
        while done < n:
            done = kernel(self.state, done, *columns)
            if done < n:
                self._grow()

    def contents(self) -> list[tuple[bytes, ...]]:
        """Return what the committed state can still show: key, case, events and labels of each entity, by key.

        Equal for equal histories, however they came about: places in the tables, sums over chunks, and rows behind the
        horizon that no sweep has freed yet are left out.
        """
        state, event_words = self.state, self._words["events"][0]
        floor_us = int(state.meta[META.newest]) - self._horizon_us
        case_floor_us = int(state.meta[META.newest]) - CASE_RETENTION_US
        used = int(state.meta[META.slots_end]) * int(SLOT_WORDS)
        slots = state.slots[:used].reshape(-1, int(SLOT_WORDS))
        found = []
        for slot in slots[1:][slots[1:, SLOT.tail] != FREE]:
            events = _rows(state.chunks, state.events, int(slot[SLOT.head]), event_words, floor_us)
            first_label = int(slot[SLOT.head + KIND_STEP]) if len(state.labels) else 0
            labels = _rows(state.label_chunks, state.labels, first_label, int(LABEL_WORDS), floor_us)
            case = slot[[SLOT.case_start, SLOT.case_sequence]]
            has_case = not len(state.labels) and int(case[0]) > case_floor_us
            if len(events) or len(labels) or has_case:
                key = slot[[SLOT.key_high, SLOT.key_low]].tobytes()
                shown = case.tobytes() if has_case else b""
                found.append((key, shown, events.tobytes(), labels[:, :_LABEL_COLUMNS].tobytes()))
        return sorted(found)

    @property
    def _journal_reserve(self) -> int:
        """Words of the journal that one row can need at most: half a chunk split, half a chunk moved, and records.

        Each half and the runs behind the row are counted anew.
        """
        counts = 4 * (LARGEST_CHUNK // RUN + 1) * self._values
        return counts + LARGEST_CHUNK * (
            1 + max(words for name, (words, _) in self._words.items() if name in ("events", "labels"))
        )

    def _declare(self) -> None:
        """Set what follows from the declaration, whatever was loaded or restored."""
        meta = self.state.meta
        meta[META.horizon], meta[META.journal_reserve] = self._horizon_us, self._journal_reserve
        meta[META.values] = self._values

    def _begin(self, rows: int) -> None:
        """Make sure that ``rows`` more rows find their slots, and note what `rollback` goes back to."""
        if self._before is None:
            self._before = self.state.meta.copy()
        self._rows += rows
        meta = self.state.meta
        self._hold("slots", int(meta[META.slots_end]) + rows)
        size = len(self.state.slot_index)
        if 2 * (int(meta[META.entities]) + rows) > size:
            self._index(2 * (int(meta[META.entities]) + rows))

    def _grow(self) -> None:
        """Enlarge what has no room for another row."""
        meta, state = self.state.meta, self.state
        for name, (_, end) in self._words.items():
            if name != "slots":
                self._hold(name, int(meta[end]) + (ROWS_RESERVE if name in ("events", "labels") else 2))
        if int(meta[META.journal_end] + meta[META.journal_reserve]) > len(state.journal):
            grown = np.zeros(2 * len(state.journal), np.int64)
            grown[: meta[META.journal_end]] = state.journal[: meta[META.journal_end]]
            self.state = self.state._replace(journal=grown)

    def commit(self) -> None:
        """Commit the changes; visit a bounded number of slots to forget entities behind the retention."""
        meta, before = self.state.meta, self._before
        meta[META.journal_end] = 0
        self._before = None
        if before is not None:
            arrived = int(meta[META.entities] - before[META.entities])
            steps = self._rows // _ROWS_PER_STEP + _STEPS_PER_ENTITY * arrived
            sweep(self.state, self._labelled, max(_LEAST_STEPS, steps))
            self._rows = 0

    def rollback(self) -> None:
        """Take back all that changed since the last `commit`."""
        if self._before is not None:
            roll_back(self.state)
            self.state.meta[:] = self._before
            self._declare()
            self._before = None
        self._rows = 0

    def dump(self, *, full: bool = False) -> tuple[bytes, dict[str, Pages]]:
        """Copy the committed state.

        Args:
            full: Copy all pages, and not only those that changed since the last dump.

        Returns:
            (values, columns), as `load` takes them.

        Raises:
            RuntimeError: Something is not committed.
        """
        if self._before is not None:
            raise RuntimeError("the windows hold a batch that is not committed; commit or roll it back before a dump")
        meta = self.state.meta
        columns = {}
        for name, (words, end) in self._words.items():
            table, dirty = getattr(self.state, name), getattr(self.state, f"{name}_dirty")
            items = int(meta[end]) * words
            pages = -(-items // PAGE_ITEMS)
            numbers = range(pages) if full else np.flatnonzero(dirty[:pages]).tolist()
            columns[f"windows_{name}"] = Pages(
                "<i8",
                items,
                {k: table[k * PAGE_ITEMS : min(items, (k + 1) * PAGE_ITEMS)].tobytes() for k in numbers},
            )
            dirty[:] = 0
        return meta.astype("<i8").tobytes(), columns

    def load(self, values: bytes, columns: Mapping[str, SavedColumn]) -> None:
        """Fill empty tables with a saved state; ValueError where its parts do not fit together."""
        if self.state.meta[META.slots_end] > 1 or self._before is not None:
            raise RuntimeError("a saved state is loaded into empty windows only")
        if len(values) != 8 * META_WORDS:
            raise ValueError(f"the saved windows have {len(values)} bytes of values, not {8 * META_WORDS}")
        meta = np.frombuffer(values, "<i8")
        for name, (words, end) in self._words.items():
            saved = columns.get(f"windows_{name}")
            if saved is None:
                raise ValueError(f"the saved windows lack the column windows_{name}")
            if saved.items != meta[end] * words or np.dtype(saved.dtype) != np.int64:
                raise ValueError(
                    f"the saved column windows_{name} has {saved.items} items of {saved.dtype}, "
                    f"not {meta[end] * words} of <i8"
                )
            self._hold(name, int(meta[end]))
            saved.read_into(getattr(self.state, name))
            getattr(self.state, f"{name}_dirty")[:] = 0
        self.state.meta[:] = meta
        self._declare()
        self._index(2 * int(meta[META.entities]))

    def close(self) -> None:
        """Let go of the columns; the windows must not be used any more."""
        self._storage.close()

    @property
    def stream_time_us(self) -> int:
        """The largest event time of the partition's transactions so far; 0 before there is one."""
        stream_time_us = int(self.state.meta[META.newest])
        return 0 if stream_time_us == NOTHING_YET_US else stream_time_us

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays, as far as they are used."""
        used = sum(int(self.state.meta[end]) * words * 8 for words, end in self._words.values())
        return used + self.state.slot_index.nbytes + self.state.journal.nbytes

    @property
    def entities(self) -> int:
        """Cards or merchants that are held."""
        return int(self.state.meta[META.entities])

    @property
    def events(self) -> int:
        """Transactions that are held; some may lie behind the horizon and wait to be freed."""
        return int(self.state.meta[META.held_events])

    @property
    def labels(self) -> int:
        """Labels that are held."""
        return int(self.state.meta[META.held_labels])

    def _hold(self, name: str, rows: int) -> None:
        words, _ = self._words[name]
        table = getattr(self.state, name)
        if rows * words <= len(table):
            return
        # By half, not twofold: large tables are files or most of the memory.
        items = max(rows * words, len(table) + len(table) // 2)
        items = -(-items // PAGE_ITEMS) * PAGE_ITEMS
        grown = self._storage.column(f"windows_{name}", "<i8", items)
        dirty = np.zeros(-(-len(grown) // PAGE_ITEMS), np.uint8)
        held = getattr(self.state, f"{name}_dirty")
        dirty[: len(held)] = held
        self.state = self.state._replace(**{name: grown, f"{name}_dirty": dirty})

    def _index(self, wanted: int) -> None:
        size = _INITIAL_INDEX
        while size < wanted:
            size *= 2
        self.state = self.state._replace(slot_index=aligned_zeros(size, "<i8"))
        fill_index(self.state)


def _rows(
    chunks: NDArray[np.int64], items: NDArray[np.int64], first: int, words: int, floor_us: int
) -> NDArray[np.int64]:
    """Return the rows of a timeline behind ``floor_us``, in log order; shape (n, words)."""
    parts = [np.empty((0, words), np.int64)]
    for chunk in _chain(chunks, first):
        start, length = (int(chunks[chunk * CHUNK_WORDS + word]) for word in (CHUNK.start, CHUNK.length))
        parts.append(items[start * words : (start + length) * words].reshape(-1, words))
    rows = np.concatenate(parts)
    return rows[rows[:, 0] > floor_us]


def _chain(chunks: NDArray[np.int64], first: int) -> Iterator[int]:
    while first > 0:
        yield first
        first = int(chunks[first * CHUNK_WORDS + CHUNK.next])
