"""Segments on disk: sealed by size and time, forgotten from the front, truncated on rollback, and damaged."""

import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.engine.partition_state.decision_segments import DecisionReference
from pipeline.engine.partition_state.state import LoadedState, StateDump, StoreError
from pipeline.state.errors import SnapshotError, StateRemoved
from pipeline.state.segment_groups import GROUP_ROWS
from pipeline.state.segments import FileSegments
from pipeline.state.snapshots import Refused, SnapshotRepository
from schemas.times import US_PER_DAY
from tests.helpers.snapshots import KEY
from tests.reference.identities import transaction_digest

SEALED_BYTES = 1_500 * GROUP_ROWS


def digest(number: int) -> bytes:
    return transaction_digest("c", f"t{number}")


class Desk:
    """Segments in a directory; decision k has 1,000 bytes."""

    def __init__(self, home: Path) -> None:
        self.directory = home / "segments"
        self.segments = FileSegments(self.directory, sealed_bytes=SEALED_BYTES)

    def add(self, first: int, end: int, day: float = 0.0) -> None:
        numbers = range(first, end)
        times = [round(day * US_PER_DAY)] * len(numbers)
        self.segments.add([digest(number) for number in numbers], times, [decision(number) for number in numbers])

    def commit(self, first: int, end: int, day: float = 0.0) -> None:
        self.add(first, end, day)
        self.segments.commit()

    def read(self, *numbers: int) -> list[bytes]:
        found = self.segments.find([digest(number) for number in numbers])
        return self.segments.read([found[digest(number)] for number in numbers])

    def files(self, suffix: str = ".segment") -> list[str]:
        return sorted(path.name for path in self.directory.glob(f"*{suffix}"))


def decision(number: int) -> bytes:
    return np.random.default_rng(number).bytes(1_000)


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    desk = Desk(tmp_path)
    yield desk
    desk.segments.close()
    assert not desk.directory.exists()


def test_a_segment_is_sealed_by_a_commit_once_it_is_large(desk: Desk) -> None:
    desk.add(0, 2 * GROUP_ROWS + 3)
    assert desk.files() == []
    desk.segments.commit()
    assert desk.files() == ["00000000.segment"]
    assert desk.files(".index") == ["00000000.index"]
    # What had not filled a group begins the next segment.
    desk.commit(100, 100 + GROUP_ROWS)
    assert desk.files() == ["00000000.segment"]
    assert desk.read(0, 2 * GROUP_ROWS + 2, 2 * GROUP_ROWS - 1, 100) == [
        decision(0), decision(2 * GROUP_ROWS + 2), decision(2 * GROUP_ROWS - 1), decision(100),
    ]  # fmt: skip
    assert desk.segments.find([digest(99)]) == {}


def test_a_segment_is_sealed_once_event_time_has_moved_on(desk: Desk) -> None:
    desk.commit(0, GROUP_ROWS)
    desk.commit(100, 101)
    desk.commit(101, 102, 16.0)
    assert desk.files() == []
    desk.commit(200, 201, 16.1)
    assert desk.files() == ["00000000.segment"]
    # Late decisions do not seal again and again.
    for number in range(40):
        desk.commit(1_000 + number, 1_001 + number, 0.0 if number % 2 else 20.0)
    assert desk.files() == ["00000000.segment"]


def test_segments_are_forgotten_from_the_front_with_the_commit(desk: Desk) -> None:
    for number, day in enumerate((1, 5, 2)):
        desk.commit(100 * number, 100 * number + 2 * GROUP_ROWS, day)
    desk.segments.forget_before(3)
    assert len(desk.files()) == 3
    desk.segments.rollback()
    desk.segments.commit()
    assert len(desk.files()) == 3
    desk.segments.forget_before(5)
    desk.segments.commit()
    # The last one is behind the day too, and stays while one before it does not.
    assert desk.files() == ["00000001.segment", "00000002.segment"]
    assert desk.segments.find([digest(0)]) == {}
    assert desk.read(100, 200) == [decision(100), decision(200)]
    desk.segments.forget_before(6)
    desk.segments.commit()
    assert (desk.files(), desk.files(".index"), desk.segments.rows()) == ([], [], 0)


def test_rollback_truncates(desk: Desk) -> None:
    desk.commit(0, GROUP_ROWS + 3)
    size = (desk.directory / "open").stat().st_size
    desk.add(3, 5 * GROUP_ROWS, 2)
    assert (desk.directory / "open").stat().st_size > 4 * size
    desk.segments.rollback()
    assert (desk.directory / "open").stat().st_size == size
    assert desk.segments.find([digest(GROUP_ROWS + 3)]) == {}
    assert desk.segments.find([digest(3)]) == {digest(3): DecisionReference(0, 3)}
    desk.commit(GROUP_ROWS + 3, 2 * GROUP_ROWS)
    assert desk.read(*range(2 * GROUP_ROWS)) == [decision(number) for number in range(2 * GROUP_ROWS)]


def test_what_is_read_again_from_many_segments_is_whole(desk: Desk) -> None:
    """More files than are held open at once."""
    for first in range(0, 40 * 2 * GROUP_ROWS, 2 * GROUP_ROWS):
        desk.commit(first, first + 2 * GROUP_ROWS)
    assert len(desk.files()) == 40
    numbers = range(0, 40 * 2 * GROUP_ROWS, 7)
    assert desk.read(*numbers) == [decision(number) for number in numbers]


@pytest.mark.parametrize("suffix", [".segment", ".index"])
def test_a_damaged_file_is_an_error_and_not_a_gap(suffix: str, desk: Desk) -> None:
    desk.commit(0, 2 * GROUP_ROWS)
    path = desk.directory / f"00000000{suffix}"
    content = bytearray(path.read_bytes())
    content[700] ^= 1
    path.write_bytes(content)
    if suffix == ".segment":
        with pytest.raises(StoreError, match=r"group of decisions is damaged.*look for room and errors on its disk"):
            desk.read(0)
        return
    saved = desk.directory.with_name("saved")
    saved.mkdir()
    desk.segments.link(str(saved))
    dump = desk.segments.dump(full=True)
    other = FileSegments(desk.directory.with_name("other"), saved)
    with pytest.raises(StoreError, match=r"00000000.index is damaged.*look for room and errors on its disk"):
        other.load(dump.state, {})
    other.close()


def test_a_truncated_index_is_an_error(desk: Desk) -> None:
    desk.commit(0, 2 * GROUP_ROWS)
    path = desk.directory / "00000000.index"
    os.truncate(path, path.stat().st_size - 8)
    with pytest.raises(StoreError, match="ends at byte"):
        desk.segments.find([digest(number) for number in range(2 * GROUP_ROWS)])


def test_a_full_disk_is_the_store_s_error(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(StoreError, match=r"No space left.*rebuilds it from the log when it is started again"):
        desk.add(0, GROUP_ROWS)


def test_a_write_that_comes_short_goes_on(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda file, content, at: pwrite(file, content[:1_000], at))
    desk.commit(0, 3 * GROUP_ROWS)
    assert desk.read(0, 3 * GROUP_ROWS - 1) == [decision(0), decision(3 * GROUP_ROWS - 1)]


def test_a_directory_that_was_removed_is_reported(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    desk.commit(0, 2 * GROUP_ROWS)
    shutil.rmtree(desk.directory)
    with pytest.raises(StateRemoved, match="start the worker again"):
        desk.segments.link(str(tmp_path))
    with pytest.raises(StateRemoved, match="start the worker again"):
        desk.segments.size_bytes()
    with pytest.raises(StateRemoved, match="start the worker again"):
        desk.commit(100, 100 + 2 * GROUP_ROWS)
    desk.segments.close()


def test_files_that_cannot_be_linked_fail_only_the_snapshot(desk: Desk, tmp_path: Path) -> None:
    desk.commit(0, 2 * GROUP_ROWS)
    frozen = tmp_path / "frozen"
    frozen.mkdir()
    (frozen / "00000000.segment").write_bytes(b"in the way")
    with pytest.raises(SnapshotError, match=r"could not be linked.*the next snapshot is a full one"):
        desk.segments.link(str(frozen))
    assert not frozen.exists()
    assert desk.read(0) == [decision(0)]


class Snapshots:
    """Snapshots of a desk's segments."""

    def __init__(self, home: Path, desk: Desk) -> None:
        self._home, self._desk, self._step = home, desk, 0
        self.refused: list[Refused] = []
        self._repository = SnapshotRepository(str(home / "snapshots"), on_refused=self.refused.append)
        self._writer = self._repository.writer(KEY, None)
        self.states: dict[int, Any] = {}

    def save(self) -> int:
        """Write one; return how many bytes that took."""
        frozen = self._home / f"frozen-{self._step}"
        frozen.mkdir()
        dump = self._desk.segments.dump(full=self._writer.needs_full)
        self._desk.segments.link(str(frozen))
        self._step += 1
        self.states[self._step] = dump.state
        values = b"%d" % self._step
        return self._writer.write({"a": self._step}, 0, StateDump(values, dump.columns, str(frozen))).size_bytes

    def restored(self) -> FileSegments:
        """Segments as the newest snapshot has them."""
        found = self._repository.newest(KEY, {"a": self._step}, self._home / "scratch")
        assert found is not None
        assert found.store is not None
        segments = FileSegments(self._home / "restored", found.store)
        loaded: LoadedState = found.state
        segments.load(self.states[int(loaded.values)], loaded.columns)
        found.close()
        return segments

    def objects(self) -> list[Path]:
        return sorted((self._home / "snapshots").rglob("objects/*"), key=lambda path: path.stat().st_mtime_ns)


def test_a_snapshot_writes_a_sealed_segment_once_and_of_the_open_one_what_is_new(desk: Desk, tmp_path: Path) -> None:
    snapshots = Snapshots(tmp_path, desk)
    desk.commit(0, 2 * GROUP_ROWS)
    assert snapshots.save() > 2 * GROUP_ROWS * 1_000
    desk.commit(100, 103)
    # Three decisions and what is small.
    assert snapshots.save() < 8_000
    restored = snapshots.restored()
    assert restored.checksum(0) == desk.segments.checksum(0)
    restored.close()


def test_a_dump_has_what_was_added_to_the_open_segment(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    desk.segments.close()
    desk.segments = FileSegments(desk.directory)
    desk.commit(0, 5 * GROUP_ROWS)
    whole = desk.segments.dump(full=False).columns
    assert {name: list(pages.changed) for name, pages in whole.items()} == {
        "segment-keys": [0], "segment-times": [0], "segment-groups": [0], "segment-content": [0, 1, 2],
    }  # fmt: skip
    desk.commit(1_000, 1_000 + GROUP_ROWS)
    assert list(desk.segments.dump(full=False).columns["segment-content"].changed) == [2]
    assert list(desk.segments.dump(full=True).columns["segment-content"].changed) == [0, 1, 2]
    desk.segments.close()
