"""The store on disk does what the store in memory does, whatever is done to it, and after it was saved and restored."""

import os
import random
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.engine.partition_state.state import MemoryStore, StoreError
from pipeline.state.errors import SnapshotError
from pipeline.state.store import MINIMUM_BYTES, RocksStore, StoreMemory

keys = st.one_of(
    st.sampled_from([b"", b"\x00", b"a", b"a\x00", b"ab", b"b", b"\xff", b"\xff\xff"]), st.binary(max_size=3)
)
values = st.one_of(st.just(b""), st.binary(max_size=40), st.integers(1, 30_000).map(bytes))
steps = st.one_of(
    st.tuples(st.just("put"), keys, values),
    st.tuples(st.just("delete"), keys, st.just(b"")),
    st.tuples(st.just("scan"), keys, keys),
    st.tuples(st.sampled_from(["commit", "commit", "rollback", "restore", "flush"]), st.just(b""), st.just(b"")),
)


@pytest.fixture(scope="module")
def memory() -> StoreMemory:
    return StoreMemory(MINIMUM_BYTES)


@settings(max_examples=60)
@given(st.lists(steps, max_size=40), st.lists(keys, min_size=1, max_size=10), st.sampled_from([1, 3, 100]))
def test_the_store_on_disk_is_the_store_in_memory(
    memory: StoreMemory, done: list[tuple[str, bytes, bytes]], looked_up: list[bytes], write_at_once: int
) -> None:
    with tempfile.TemporaryDirectory() as home:
        expected = MemoryStore()
        store = RocksStore(Path(home, "0"), memory=memory, write_at_once=write_at_once)
        opened = 1
        for name, key, other in done:
            if name == "put":
                expected.put(key, other)
                store.put(key, other)
            elif name == "delete":
                expected.delete(key)
                store.delete(key)
            elif name == "scan":
                assert list(store.scan(key, other)) == list(expected.scan(key, other))
            elif name == "commit":
                expected.commit()
                store.commit()
            elif name == "rollback":
                expected.rollback()
                store.rollback()
            elif name == "flush":
                store.release(store.freeze())
            else:
                # What is not committed is not saved.
                expected.rollback()
                frozen = Path(store.freeze())
                store.close()
                home_of_next = Path(home, str(opened))
                store = RocksStore(home_of_next, memory=memory, frozen=frozen, write_at_once=write_at_once)
                opened += 1
            asked = [*looked_up, key]
            assert store.get_many(asked) == expected.get_many(asked) == [store.get(item) for item in asked]
        assert list(store.scan(b"", b"\xff" * 4)) == list(expected.scan(b"", b"\xff" * 4))
        store.close()


@pytest.fixture
def store(memory: StoreMemory, tmp_path: Path) -> Iterator[RocksStore]:
    store = RocksStore(tmp_path / "store", memory=memory)
    yield store
    store.close()


def test_a_scan_bears_writes_while_it_runs(store: RocksStore) -> None:
    expected = MemoryStore()
    for state in (store, expected):
        for number in range(0, 20, 2):
            state.put(bytes([number]), b"committed")
        state.commit()
        state.put(b"\x05", b"pending")
        state.put(b"\x0c", b"pending")
    seen: list[list[tuple[bytes, bytes]]] = []
    for state in (store, expected):
        seen.append([])
        for key, value in state.scan(b"\x01", b"\x12"):
            seen[-1].append((key, value))
            state.delete(b"\x06")
            state.put(b"\x08", b"changed")
    assert seen[0] == seen[1]
    assert [key[0] for key, _ in seen[0]] == [2, 4, 5, 8, 10, 12, 14, 16]


def test_what_is_frozen_stays_as_it_was_until_it_is_released(
    store: RocksStore, memory: StoreMemory, tmp_path: Path
) -> None:
    store.put(b"a", b"first")
    store.commit()
    store.put(b"b", b"not committed")
    frozen = store.freeze()
    store.commit()
    store.put(b"a", b"second")
    store.commit()
    other = store.freeze()
    assert frozen != other
    restored = RocksStore(tmp_path / "restored", frozen=Path(frozen), memory=memory)
    assert restored.get_many([b"a", b"b"]) == [b"first", None]
    assert store.get_many([b"a", b"b"]) == [b"second", b"not committed"]
    restored.close()
    store.release(other)
    store.release(other)
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


def filled(store: RocksStore, first: int, end: int) -> None:
    for number in range(first, end):
        store.put(b"%d" % number, random.Random(number).randbytes(1_000))
    store.commit()


def test_a_freeze_without_room_is_not_tried_and_the_store_goes_on(
    store: RocksStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RocksDB refuses all writes once a flush has failed."""
    filled(store, 0, 1_000)
    with monkeypatch.context() as full:
        full.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=500_000))
        with pytest.raises(SnapshotError, match=r"500000 bytes are free .* free space there"):
            store.freeze()
    filled(store, 1_000, 1_100)
    assert None not in store.get_many([b"%d" % number for number in range(1_100)])
    store.release(store.freeze())
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


def test_a_freeze_whose_files_cannot_be_linked_leaves_the_store_as_it_was(store: RocksStore, tmp_path: Path) -> None:
    filled(store, 0, 10)
    (tmp_path / "store.frozen-0").mkdir()
    with pytest.raises(SnapshotError, match="could not be linked"):
        store.freeze()
    filled(store, 10, 20)
    assert None not in store.get_many([b"%d" % number for number in range(20)])
    store.release(store.freeze())
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


def test_a_freeze_of_a_broken_store_is_the_store_s_error(memory: StoreMemory, tmp_path: Path) -> None:
    store = RocksStore(tmp_path / "store", memory=memory)
    filled(store, 0, 10)
    shutil.rmtree(tmp_path / "store")
    (tmp_path / "store").write_text("no directory any more")
    with pytest.raises(StoreError, match="rebuilds it"):
        store.freeze()


def test_a_table_that_goes_while_sizes_are_added_up_has_none(
    store: RocksStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As RocksDB removes one on a thread of its own, between the listing and the look at the file."""
    filled(store, 0, 100)
    store.release(store.freeze())
    expected = store.size_bytes()
    gone = tmp_path / "store" / "999999.sst"
    gone.write_bytes(b"table")
    scandir = os.scandir

    def listing(path: Path) -> list[os.DirEntry[str]]:
        entries = list(scandir(path))
        gone.unlink()
        return entries

    monkeypatch.setattr(os, "scandir", listing)
    assert store.size_bytes() == expected > 100_000


def test_a_store_begins_empty_and_removes_what_a_killed_one_left(memory: StoreMemory, tmp_path: Path) -> None:
    left = tmp_path / "0"
    left.mkdir()
    (left / "CURRENT").write_bytes(b"rubbish")
    (tmp_path / "0.frozen-7").mkdir()
    (tmp_path / "01").mkdir()
    store = RocksStore(left, memory=memory)
    assert list(store.scan(b"", b"\xff")) == []
    store.close()
    assert [path.name for path in tmp_path.iterdir()] == ["01"]


def test_what_is_frozen_outlives_the_store(memory: StoreMemory, tmp_path: Path) -> None:
    store = RocksStore(tmp_path / "0", memory=memory)
    store.put(b"a", b"1")
    store.commit()
    frozen = Path(store.freeze())
    store.close()
    restored = RocksStore(tmp_path / "1", frozen=frozen, memory=memory)
    assert restored.get(b"a") == b"1"
    restored.close()


def test_stores_share_one_budget_of_memory(memory: StoreMemory, tmp_path: Path) -> None:
    stores = [RocksStore(tmp_path / str(number), memory=memory) for number in range(3)]
    for batch in range(40):
        for store in stores:
            for number in range(100):
                store.put(b"%d-%d" % (batch, number), bytes(2_000))
            store.commit()
    for store in stores:
        assert sum(1 for _ in store.scan(b"", b"\xff")) == 4_000
    # 24 MB were written; unflushed writes are allowed to run over their quarter while a flush is under way.
    assert memory.used_bytes() < 2 * MINIMUM_BYTES
    for store in stores:
        store.close()


def test_a_damaged_table_is_an_error_and_not_a_gap(store: RocksStore, memory: StoreMemory, tmp_path: Path) -> None:
    for number in range(2_000):
        store.put(number.to_bytes(4, "big"), number.to_bytes(4, "big") * 20)
    store.commit()
    frozen = Path(store.freeze())
    table = next(frozen.glob("*.sst"))
    content = bytearray(table.read_bytes())
    content[len(content) // 3] ^= 1
    table.unlink()
    table.write_bytes(content)
    damaged = RocksStore(tmp_path / "damaged", frozen=frozen, memory=memory)
    with pytest.raises(StoreError, match="disk"):
        list(damaged.scan(b"", b"\xff"))
    with pytest.raises(StoreError, match="disk"):
        damaged.get_many([number.to_bytes(4, "big") for number in range(2_000)])
    damaged.close()


def test_too_little_memory_is_refused() -> None:
    with pytest.raises(ValueError, match="raise"):
        StoreMemory(MINIMUM_BYTES - 1)


def test_small_batches_are_written_together(memory: StoreMemory, tmp_path: Path) -> None:
    store = RocksStore(tmp_path / "store", memory=memory, write_at_once=5)
    for number in range(4):
        store.put(b"%d" % number, b"value")
        store.commit()
    assert (store.entries(), store.get(b"3")) == (0, b"value")
    store.put(b"4", b"value")
    store.commit()
    assert store.entries() == 5
    store.close()
