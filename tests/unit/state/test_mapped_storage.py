"""Columns in mapped files: what they held stays when they grow, and nothing stays behind."""

import errno
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from pipeline.state.errors import StateRemoved
from pipeline.state.mapped import MappedStorage
from pipeline.state.store import MINIMUM_BYTES, RocksStore, StoreMemory


def test_a_column_keeps_what_it_held_and_is_zero_beyond(tmp_path: Path) -> None:
    storage = MappedStorage(tmp_path / "state")
    column = storage.column("a", "<i8", 10)
    column[:] = np.arange(10)
    grown = storage.column("a", "<i8", 100_000)
    assert grown[:10].tolist() == list(range(10))
    assert not grown[10:].any()
    assert storage.column("a", "<i8", 50) is grown
    other = storage.column("b", "|u1", 3)
    other[:] = 7
    assert not grown[10:].any()
    assert other.dtype == np.uint8


def test_close_removes_the_files(tmp_path: Path) -> None:
    storage = MappedStorage(tmp_path / "state")
    storage.column("a", "<i8", 10)
    assert (tmp_path / "state").exists()
    storage.close()
    assert not (tmp_path / "state").exists()


def test_what_another_process_left_is_not_read(tmp_path: Path) -> None:
    MappedStorage(tmp_path).column("a", "<i8", 10)[:] = 1
    assert not MappedStorage(tmp_path).column("a", "<i8", 20).any()


def test_a_full_disk_is_reported_when_a_column_grows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = MappedStorage(tmp_path)
    column = storage.column("a", "<i8", 10)
    column[:] = 5

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="free space there") as reported:
        storage.column("a", "<i8", 10_000)
    assert reported.value.errno == errno.ENOSPC
    assert column.tolist() == [5] * 10
    assert storage.column("a", "<i8", 10) is column


def test_a_column_whose_file_was_removed_does_not_begin_anew(tmp_path: Path) -> None:
    storage = MappedStorage(tmp_path / "state")
    storage.column("a", "<i8", 10)[:] = 5
    shutil.rmtree(tmp_path / "state")
    with pytest.raises(StateRemoved, match="start the worker again"):
        storage.column("a", "<i8", 100_000)
    assert not (tmp_path / "state").exists()
    storage.close()


def test_a_store_whose_directory_was_removed_says_so(tmp_path: Path) -> None:
    store = RocksStore(tmp_path / "store", memory=StoreMemory(MINIMUM_BYTES))
    store.put(b"a", b"b")
    store.commit()
    shutil.rmtree(tmp_path / "store")
    with pytest.raises(StateRemoved, match="start the worker again"):
        store.size_bytes()
    with pytest.raises(StateRemoved, match="start the worker again"):
        store.freeze()
    store.close()
