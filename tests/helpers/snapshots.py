"""A partition's state that grows by rule, as the snapshots' tests save it, and as a program that is killed saves it."""

import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.engine.partition_state.state import LoadedState, StateDump
from pipeline.features.state_columns import PAGE_ITEMS, Pages
from pipeline.state.manifest import SnapshotKey
from pipeline.state.snapshots import SnapshotRepository
from pipeline.state.store import MINIMUM_BYTES, RocksStore, StoreMemory

KEY = SnapshotKey("card", 3, "cluster-1", {"transactions": "topic-1", "labels": "topic-2"}, 6, "kernel-2")
COLUMNS = {"amounts": "int64", "times": "float64", "flags": "uint8"}
ITEMS = 3 * PAGE_ITEMS + 100


def items_at(step: int) -> int:
    """Items of each column after ``step`` steps."""
    return ITEMS + 1_000 * step


def column_at(name: str, step: int) -> NDArray[np.generic]:
    """A column after ``step`` steps: random, then in each step one page rewritten, and 1,000 items more."""
    seed = sorted(COLUMNS).index(name)
    values = np.random.default_rng(seed).integers(0, 200, items_at(step)).astype(COLUMNS[name])
    for past in range(1, step + 1):
        page = past % 3
        values[page * PAGE_ITEMS : (page + 1) * PAGE_ITEMS] += past
        values[items_at(past - 1) : items_at(past)] = past % 100
    return values


def pages_at(name: str, step: int, *, full: bool) -> Pages:
    """What a dump after ``step`` has of a column."""
    values = column_at(name, step)
    last = -(-len(values) // PAGE_ITEMS)
    numbers = range(last) if full else {step % 3, *range(items_at(step - 1) // PAGE_ITEMS, last)}
    return Pages(
        COLUMNS[name],
        len(values),
        {number: values[number * PAGE_ITEMS : (number + 1) * PAGE_ITEMS].tobytes() for number in numbers},
    )


def dump_at(step: int, *, full: bool = True, store: str | None = None) -> StateDump:
    """The dump after ``step``."""
    return StateDump(b"values %d" % step, {name: pages_at(name, step, full=full) for name in COLUMNS}, store)


def positions_at(step: int) -> dict[str, int]:
    """Next offsets after ``step``."""
    return {"transactions": 100 * step, "labels": 10 * step}


def store_items(step: int) -> list[tuple[bytes, bytes]]:
    """What the store holds after ``step``."""
    return [(number.to_bytes(4, "big"), b"%d" % number * 20) for number in range(500 * step)]


def write_store(store: RocksStore, step: int) -> str:
    """Bring a store to ``step`` and freeze it."""
    for key, value in store_items(step):
        store.put(key, value)
    store.commit()
    return store.freeze()


def check_state(state: LoadedState, step: int) -> None:
    """Assert that a loaded state is the one after ``step``, to the last bit."""
    assert state.values == b"values %d" % step
    assert set(state.columns) == set(COLUMNS)
    for name, saved in state.columns.items():
        assert (saved.dtype, saved.items) == (COLUMNS[name], items_at(step))
        array = np.zeros(saved.items + 5, saved.dtype)
        saved.read_into(array)
        assert np.array_equal(array[:-5], column_at(name, step))
        assert not array[-5:].any()


def write_for_ever(root: str, first: int) -> None:
    """Write snapshots, and say so after each, until somebody kills this process."""
    home = Path(root)
    memory = StoreMemory(MINIMUM_BYTES)
    repository = SnapshotRepository(str(home / "snapshots"))
    found = repository.newest(KEY, {"transactions": 2**62, "labels": 2**62}, home / "scratch")
    writer = repository.writer(KEY, found)
    if found is None or found.store is None:
        store = RocksStore(home / "store", memory=memory)
    else:
        store = RocksStore(home / "store", frozen=found.store, memory=memory)
        found.close()
    step = first
    print(f"{step}", flush=True)
    while True:
        step += 1
        frozen = write_store(store, step)
        writer.write(positions_at(step), step, dump_at(step, full=writer.needs_full, store=frozen))
        store.release(frozen)
        print(f"{step}", flush=True)


if __name__ == "__main__":
    write_for_ever(sys.argv[1], int(sys.argv[2]))
