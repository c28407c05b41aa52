"""Snapshots: what is written is read back to the last bit, only what changed is written, and room is given back."""

import resource
import signal
import uuid
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from pipeline.engine.partition_state.state import StateDump
from pipeline.features.state_columns import PAGE_ITEMS, Pages
from pipeline.state.errors import SnapshotError
from pipeline.state.objects import LocalObjects, ObjectInfo
from pipeline.state.packs import PACK_BYTES
from pipeline.state.snapshots import Refused, Snapshot, SnapshotRepository, UnusableReason
from pipeline.state.store import MINIMUM_BYTES, RocksStore, StoreMemory
from pipeline.state.writer import SnapshotWriter
from tests.helpers.snapshots import (
    KEY,
    check_state,
    dump_at,
    positions_at,
    store_items,
    write_store,
)

FOREVER = {"transactions": 2**62, "labels": 2**62}


@pytest.fixture(params=["path", "file://", "memory://"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "memory://":
        return f"memory://snapshots-{uuid.uuid4().hex}"
    return f"{'' if request.param == 'path' else 'file://'}{tmp_path / 'snap shots'}"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[RocksStore]:
    store = RocksStore(tmp_path / "store", memory=StoreMemory(MINIMUM_BYTES))
    yield store
    store.close()


def found(repository: SnapshotRepository, scratch: Path) -> Snapshot:
    snapshot = repository.newest(KEY, FOREVER, scratch)
    assert snapshot is not None
    return snapshot


def objects(root: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in (root / "card" / "3" / "objects").iterdir()}


def manifests(root: Path) -> list[Path]:
    return sorted((root / "card" / "3").glob("*.json"))


def test_a_state_is_read_back_as_it_was_written(url: str, store: RocksStore, tmp_path: Path) -> None:
    repository = SnapshotRepository(url)
    assert repository.newest(KEY, FOREVER, tmp_path / "scratch") is None
    writer = repository.writer(KEY, None)
    assert writer.needs_full
    writer.write(positions_at(1), 11, dump_at(1, store=write_store(store, 1)))
    assert not writer.needs_full
    writer.write(positions_at(2), 12, dump_at(2, full=False, store=write_store(store, 2)))
    snapshot = found(repository, tmp_path / "scratch")
    assert (snapshot.manifest.positions, snapshot.manifest.progress) == (positions_at(2), 12)
    check_state(snapshot.state, 2)
    assert snapshot.store is not None
    restored = RocksStore(tmp_path / "restored", frozen=snapshot.store, memory=StoreMemory(MINIMUM_BYTES))
    assert list(restored.scan(b"", b"\xff")) == store_items(2)
    restored.close()
    snapshot.close()
    assert not (tmp_path / "scratch").exists()


def test_a_snapshot_after_a_restart_builds_on_the_one_restored(url: str, tmp_path: Path) -> None:
    first = SnapshotRepository(url)
    first.writer(KEY, None).write(positions_at(1), 1, dump_at(1))
    again = SnapshotRepository(url)
    snapshot = found(again, tmp_path / "scratch")
    writer = again.writer(KEY, snapshot)
    snapshot.close()
    assert not writer.needs_full
    for step in range(2, 9):
        writer.write(positions_at(step), step, dump_at(step, full=False))
    check_state(found(again, tmp_path / "scratch").state, 8)


def test_a_state_without_a_store_or_columns_is_kept(tmp_path: Path) -> None:
    repository = SnapshotRepository(str(tmp_path / "root"))
    repository.writer(KEY, None).write(
        {"transactions": 0, "labels": 0}, 0, StateDump(b"", {"none": Pages("i8", 0, {})})
    )
    snapshot = found(repository, tmp_path / "scratch")
    assert (snapshot.state.values, snapshot.store, snapshot.state.columns["none"].items) == (b"", None, 0)


def test_only_what_changed_is_written(store: RocksStore, tmp_path: Path) -> None:
    root = tmp_path / "root"
    writer = SnapshotRepository(str(root)).writer(KEY, None)
    whole = writer.write(positions_at(1), 1, dump_at(1, store=write_store(store, 10)))
    tables = {path.stat().st_size for path in (tmp_path / "store").glob("*.sst")}
    before = objects(root)
    store.put(b"new", b"value")
    store.commit()
    part = writer.write(positions_at(2), 2, dump_at(2, full=False, store=store.freeze()))
    written = {name: size for name, size in objects(root).items() if name not in before}
    assert sum(written.values()) <= part.size_bytes < 0.7 * whole.size_bytes
    # The table that was there is not written again: a pack of pages, the new table and the snapshot's own file are.
    assert part.objects == 3
    assert not tables & set(written.values())


def test_a_table_that_only_looks_like_a_saved_one_is_written(tmp_path: Path) -> None:
    repository = SnapshotRepository(str(tmp_path / "root"))
    writer = repository.writer(KEY, None)
    memory = StoreMemory(MINIMUM_BYTES)
    for step, value in enumerate((b"one", b"two")):
        # A store that begins anew gives its tables the names that the one before gave, and here their sizes too.
        store = RocksStore(tmp_path / "store", memory=memory)
        store.put(b"key", value)
        store.commit()
        writer.write({}, step, StateDump(b"", {}, store.freeze()))
        store.close()
    snapshot = found(repository, tmp_path / "scratch")
    assert snapshot.store is not None
    restored = RocksStore(tmp_path / "restored", frozen=snapshot.store, memory=memory)
    assert restored.get(b"key") == b"two"
    restored.close()


def test_a_restored_stores_tables_are_not_written_again(store: RocksStore, tmp_path: Path) -> None:
    repository = SnapshotRepository(str(tmp_path / "root"))
    repository.writer(KEY, None).write(positions_at(1), 1, dump_at(1, store=write_store(store, 10)))
    snapshot = found(repository, tmp_path / "scratch")
    assert snapshot.store is not None
    restored = RocksStore(tmp_path / "restored", frozen=snapshot.store, memory=StoreMemory(MINIMUM_BYTES))
    snapshot.close()
    writer = repository.writer(KEY, snapshot)
    written = writer.write(positions_at(2), 2, dump_at(2, full=False, store=restored.freeze()))
    assert written.objects == 2
    restored.close()


def test_pages_that_are_nowhere_are_an_error_and_a_full_dump_mends_it(tmp_path: Path) -> None:
    repository = SnapshotRepository(str(tmp_path / "root"))
    writer = repository.writer(KEY, None)
    with pytest.raises(SnapshotError, match="full"):
        writer.write(positions_at(2), 2, dump_at(2, full=False))
    assert repository.newest(KEY, FOREVER, tmp_path / "scratch") is None
    assert objects(tmp_path / "root") == {} if (tmp_path / "root").exists() else True
    assert writer.needs_full
    writer.write(positions_at(2), 2, dump_at(2))
    check_state(found(repository, tmp_path / "scratch").state, 2)


def test_a_page_of_another_type_is_not_carried_over(tmp_path: Path) -> None:
    writer = SnapshotRepository(str(tmp_path)).writer(KEY, None)
    writer.write({}, 0, StateDump(b"", {"a": Pages("int64", 1, {0: bytes(8)})}))
    with pytest.raises(SnapshotError, match="full"):
        writer.write({}, 0, StateDump(b"", {"a": Pages("float64", 1, {})}))


def test_old_snapshots_and_what_only_they_name_go(store: RocksStore, tmp_path: Path) -> None:
    root = tmp_path / "root"
    repository = SnapshotRepository(str(root), kept=2, grace_s=0)
    writer = repository.writer(KEY, None)
    for step in range(1, 12):
        frozen = write_store(store, step)
        writer.write(positions_at(step), step, dump_at(step, full=writer.needs_full, store=frozen))
        store.release(frozen)
        assert len(manifests(root)) == min(step, 2)
    full = SnapshotRepository(str(tmp_path / "full")).writer(KEY, None)
    size = full.write(positions_at(11), 11, dump_at(11, store=write_store(store, 11))).size_bytes
    assert sum(objects(root).values()) < 3 * size
    check_state(found(repository, tmp_path / "scratch").state, 11)
    manifests(root)[-1].unlink()
    check_state(found(repository, tmp_path / "scratch").state, 10)


def test_a_page_that_stays_does_not_keep_what_changed(tmp_path: Path) -> None:
    def state(step: int, numbers: range) -> StateDump:
        random = np.random.default_rng(step)
        changed = {number: random.bytes(8 * PAGE_ITEMS) for number in numbers}
        return StateDump(b"", {"a": Pages("int64", 30 * PAGE_ITEMS, changed)})

    root = tmp_path / "root"
    writer = SnapshotRepository(str(root), kept=1, grace_s=0).writer(KEY, None)
    size = writer.write({}, 0, state(0, range(30))).size_bytes
    for step in range(1, 29):
        # Each step's object has one page more that stays, and all its others are written again.
        writer.write({}, step, state(step, range(step, 30)))
    assert sum(objects(root).values()) < 2 * size


def test_large_states_are_cut_into_objects_of_bounded_size(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    changed = {number: random.bytes(8 * PAGE_ITEMS) for number in range(300)}
    root = tmp_path / "root"
    state = StateDump(b"", {"a": Pages("int64", 300 * PAGE_ITEMS, changed)})
    SnapshotRepository(str(root)).writer(KEY, None).write({}, 0, state)
    assert len(objects(root)) > 2
    assert max(objects(root).values()) < PACK_BYTES + 16 * PAGE_ITEMS


def test_an_object_that_another_writer_may_be_about_to_name_stays(tmp_path: Path) -> None:
    root = tmp_path / "root"
    writer = SnapshotRepository(str(root), grace_s=3_600).writer(KEY, None)
    writer.write(positions_at(1), 1, dump_at(1))
    stray = root / "card" / "3" / "objects" / ("0" * 64)
    stray.write_bytes(b"of another writer")
    writer.write(positions_at(2), 2, dump_at(2, full=False))
    assert stray.exists()
    hasty = SnapshotRepository(str(root), grace_s=0).writer(KEY, None)
    hasty.write(positions_at(3), 3, dump_at(3))
    assert not stray.exists()


def test_two_writers_of_one_partition_leave_each_others_snapshots_whole(tmp_path: Path) -> None:
    root = tmp_path / "root"
    refused: list[Refused] = []
    repository = SnapshotRepository(str(root), on_refused=refused.append)
    repository.writer(KEY, None).write(positions_at(1), 1, dump_at(1))
    snapshot = found(repository, tmp_path / "scratch")
    old, new = repository.writer(KEY, snapshot), SnapshotRepository(str(root)).writer(KEY, snapshot)
    for step in range(2, 6):
        for writer in (old, new):
            writer.write(positions_at(step), step, dump_at(step, full=False))
            check_state(found(repository, tmp_path / "scratch").state, step)
    assert refused == []
    assert len({path.name.split("-")[0] for path in manifests(root)}) == 2


class StalePlace(LocalObjects):
    """A place whose snapshots do not show once ``shown`` is set, as on a slow network."""

    shown: dict[str, ObjectInfo] | None = None

    def listing(self, directory: str) -> dict[str, ObjectInfo]:
        if directory == "card/3" and self.shown is not None:
            return self.shown
        return super().listing(directory)


def test_two_writers_that_take_the_same_number_do_not_overwrite_each_other(tmp_path: Path) -> None:
    place = StalePlace(tmp_path)
    place.shown = {}
    for step in (1, 2):
        writer = SnapshotWriter(place, "here", KEY, None, {}, kept=2, grace_s=60, damaged=())
        writer.write(positions_at(step), step, dump_at(step))
    assert [path.name[:12] for path in manifests(tmp_path)] == ["000000000001"] * 2


class HarmedPlace(LocalObjects):
    """A place from which all other objects vanish whenever one is written."""

    def write(self, name: str, content: bytes) -> None:
        for other in self.listing("card/3/objects"):
            self.delete(f"card/3/objects/{other}")
        super().write(name, content)


def test_a_snapshot_that_needs_what_vanished_meanwhile_is_not_written(tmp_path: Path) -> None:
    repository = SnapshotRepository(str(tmp_path / "root"))
    repository.writer(KEY, None).write(positions_at(1), 1, dump_at(1))
    base = found(repository, tmp_path / "scratch").manifest
    writer = SnapshotWriter(HarmedPlace(tmp_path / "root"), "here", KEY, base, {}, kept=2, grace_s=60, damaged=())
    with pytest.raises(SnapshotError, match="another program"):
        writer.write(positions_at(2), 2, dump_at(2, full=False))
    assert len(manifests(tmp_path / "root")) == 1


def test_a_snapshot_that_another_program_emptied_is_written_in_full_again(tmp_path: Path) -> None:
    root = tmp_path / "root"
    repository = SnapshotRepository(str(root))
    writer = repository.writer(KEY, None)
    writer.write(positions_at(1), 1, dump_at(1))
    for path in (root / "card" / "3" / "objects").iterdir():
        path.unlink()
    with pytest.raises(SnapshotError, match="gone"):
        writer.write(positions_at(2), 2, dump_at(2, full=False))
    writer.write(positions_at(2), 2, dump_at(2))
    check_state(found(repository, tmp_path / "scratch").state, 2)


def test_a_full_disk_leaves_the_snapshots_before_and_can_be_got_over(store: RocksStore, tmp_path: Path) -> None:
    root = tmp_path / "root"
    repository = SnapshotRepository(str(root))
    writer = repository.writer(KEY, None)
    writer.write(positions_at(1), 1, dump_at(1))
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    # Small enough to be written before the disk is full.
    store.put(b"key", b"value")
    store.commit()
    frozen = store.freeze()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
        with pytest.raises(SnapshotError, match="room"):
            writer.write(positions_at(2), 2, dump_at(2, full=False, store=frozen))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, ignored)
    assert {path: path.read_bytes() for path in root.rglob("*") if path.is_file()} == before
    assert writer.needs_full
    writer.write(positions_at(3), 3, dump_at(3))
    check_state(found(repository, tmp_path / "scratch").state, 3)


def test_an_address_that_cannot_be_written_or_read_is_reported(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.write_text("a file, where a directory should be")
    refused: list[Refused] = []
    repository = SnapshotRepository(str(root), pauses_s=(), on_refused=refused.append)
    assert repository.newest(KEY, FOREVER, tmp_path / "scratch") is None
    assert [item.reason for item in refused] == [UnusableReason.UNREADABLE]
    writer = repository.writer(KEY, None)
    with pytest.raises(SnapshotError, match="rights"):
        writer.write(positions_at(1), 1, dump_at(1))
    root.unlink()
    writer.write(positions_at(1), 1, dump_at(1))
    check_state(found(repository, tmp_path / "scratch").state, 1)


def test_an_unknown_file_system_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match="nowhere"):
        SnapshotRepository("nowhere://bucket/path")
