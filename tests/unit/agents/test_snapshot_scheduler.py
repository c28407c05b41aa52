"""Snapshots that fail are told and counted and end nothing; a store that is broken ends the worker."""

import logging
import shutil
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import cast

import pytest

from agents.snapshot_scheduler import FIRST_S, SnapshotScheduler
from pipeline.engine.cards.card_partition import CardPartition
from pipeline.engine.partition_state.state import StateDump, StoreError
from pipeline.kafka.session.session import Session
from pipeline.observability.metrics import WorkerMetrics
from pipeline.settings import Settings
from pipeline.state.manifest import SnapshotKey
from pipeline.state.snapshots import Snapshot, SnapshotRepository
from pipeline.state.store import MINIMUM_BYTES, RocksStore, StoreMemory
from schemas.topics import TRANSACTIONS
from tests.helpers.logs import Log, after, transaction
from tests.helpers.waiting import TIMEOUT_S
from tests.unit.engine.test_engine_card import NOW, bought, options

KEY = SnapshotKey("card", 0, "cluster", {"transactions": "id"}, 1, "kernel")


class Stands:
    """The part of a session that the snapshots asks: where the committed state stands."""

    def __init__(self) -> None:
        self.committed: dict[tuple[str, int], int] = {}
        self.progress = {0: 0}


class Bench:
    """A card partition in RocksDB, its snapshots, and what the snapshots has counted."""

    def __init__(self, home: Path) -> None:
        self.home, self.memory = home, StoreMemory(MINIMUM_BYTES)
        self.metrics = WorkerMetrics()
        self.repository = SnapshotRepository(str(home / "snapshots"))
        self.snapshots = SnapshotScheduler(self.repository, "card", KEY, Settings(), self.metrics)
        self.state = CardPartition(options(), None, RocksStore(home / "store", memory=self.memory))
        self.log, self.session = Log(TRANSACTIONS), Stands()
        self.snapshots.begin(0, None)
        self.snapshots.held(0)

    def buy(self, count: int, state: CardPartition | None = None) -> list[object]:
        found: list[object] = []
        for _ in range(count):
            number = len(self.log.records)
            at = after(minutes=number)
            record = self.log.append(transaction(number, at, card_id=f"c{number % 50}"), at)
            for item in (self.state, state):
                if item is not None:
                    found += [message.card_features for message in bought(item.process([record], NOW))]
                    item.commit()
        self.session.committed["transactions", 0] = len(self.log.records)
        return found

    def save(self) -> None:
        """As when a snapshot is due."""
        self.snapshots._collect()
        if 0 in self.snapshots._due_s:
            self.snapshots._due_s[0] = 0.0
        self.snapshots.save({0: self.state}, cast(Session, self.session))

    def written(self) -> None:
        """Wait for what is being written."""
        for future in self.snapshots._writing.values():
            future.result(timeout=TIMEOUT_S)

    def counted(self, name: str) -> float:
        return self.metrics.registry.get_sample_value(f"fraud_pipeline_snapshots_{name}_total", {"agent": "card"}) or 0

    def newest(self) -> Snapshot:
        committed: Mapping[str, int] = {"transactions": len(self.log.records)}
        found = self.snapshots.newest(
            0, committed, self.home / "scratch", {"transactions": range(len(self.log.records))}, lambda: None
        )
        assert found is not None
        return found

    def restored(self) -> CardPartition:
        """A partition as another worker begins it from the newest snapshot."""
        found = self.newest()
        assert found.store is not None
        store = RocksStore(self.home / "again", frozen=found.store, memory=self.memory)
        state = CardPartition(options(), None, store, found.state)
        found.close()
        return state


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    bench.snapshots._thread.shutdown()


def test_a_partition_without_a_snapshot_gets_one_soon(bench: Bench) -> None:
    last = 7  # of eight partitions, whose snapshots are spread
    bench.snapshots.begin(last, None)
    bench.snapshots.held(last)
    assert bench.snapshots._due_s[last] <= time.monotonic() + FIRST_S
    bench.buy(10)
    bench.save()
    bench.written()
    found = bench.newest()
    began_s = time.monotonic()
    bench.snapshots.begin(last, found)
    bench.snapshots.held(last)
    assert bench.snapshots._due_s[last] >= began_s + Settings().snapshot_interval_s
    found.close()


def test_a_freeze_that_fails_is_counted_and_the_next_snapshot_has_all(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    whole: list[bool] = []
    dump = bench.state.dump

    def noted(*, full: bool = False) -> StateDump:
        whole.append(full)
        return dump(full=full)

    monkeypatch.setattr(bench.state, "dump", noted)
    bench.buy(100)
    bench.save()
    bench.written()
    bench.buy(100)
    # What only the snapshot needs is in the way.
    (bench.home / "store.frozen-1").mkdir()
    bench.save()
    assert (bench.counted("written"), bench.counted("failed")) == (1, 1)
    assert "card: partition 0: no snapshot: " in caplog.text
    bench.buy(1)
    bench.save()
    bench.written()
    assert (bench.counted("written"), bench.counted("failed")) == (2, 1)
    # The second one had already copied what changed since the first.
    assert whole == [True, False, True]
    again = bench.restored()
    features = bench.buy(50, again)
    assert features[::2] == features[1::2]
    again.close()
    bench.state.close()


def test_a_broken_store_ends_the_worker(bench: Bench) -> None:
    bench.buy(10)
    shutil.rmtree(bench.home / "store")
    (bench.home / "store").write_text("no directory any more")
    with pytest.raises(StoreError, match="rebuilds it from the log"):
        bench.save()
    assert bench.counted("failed") == 0


def test_a_write_that_fails_after_its_partition_went_is_reported_and_counted(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    gone = threading.Event()
    store = bench.repository._object_store
    listing = store.listing

    def late(path: str) -> object:
        assert gone.wait(TIMEOUT_S)
        return listing(path)

    monkeypatch.setattr(store, "listing", late)
    (bench.home / "snapshots").write_text("a file, where a directory should be")
    bench.buy(10)
    bench.save()
    (writing,) = bench.snapshots._writing.values()
    with caplog.at_level(logging.ERROR):
        bench.snapshots.forget(0)
        gone.set()
        writing.exception(timeout=TIMEOUT_S)
        bench.save()
    assert bench.counted("failed") == 1
    assert "card: partition 0: no snapshot: " in caplog.text
    bench.state.close()


def test_an_error_that_nobody_expected_of_a_write_ends_the_worker_though_its_partition_went(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(path: str) -> object:
        raise ZeroDivisionError(path)

    monkeypatch.setattr(bench.repository._object_store, "listing", broken)
    bench.buy(10)
    bench.save()
    (writing,) = bench.snapshots._writing.values()
    bench.snapshots.forget(0)
    assert isinstance(writing.exception(timeout=TIMEOUT_S), ZeroDivisionError)
    with pytest.raises(ZeroDivisionError):
        bench.save()
    bench.state.close()
