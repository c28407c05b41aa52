"""What an agent remembers of records that are set aside."""

from datetime import UTC, datetime, timedelta

import pytest

from agents.control import SetAsides
from agents.runtime import NOT_THE_RECORD
from pipeline.engine.state import MemoryStore, StoreError
from pipeline.engine.waiting import WaitingRoom
from pipeline.settings import Settings
from schemas.records import Record

NOW = datetime(2026, 1, 2, tzinfo=UTC)


def record(offset: int) -> Record:
    return Record("transactions", 0, offset, 0, b"c1", b"{}")


def test_a_record_is_passed_over_only_once_that_is_committed() -> None:
    aside = SetAsides("nowhere:1", Settings(), "card")
    outputs = aside.outputs(record(1), ValueError("odd"), NOW).outputs
    assert len(outputs) == 2
    assert aside.without([record(1), record(2)]) == [record(1), record(2)]
    aside.committed(record(1), NOW)
    assert aside.without([record(1), record(2)]) == [record(2)]


def test_the_limit_counts_a_day() -> None:
    aside = SetAsides("nowhere:1", Settings(), "card")
    for offset in range(3):
        aside.committed(record(offset), NOW + offset * timedelta(hours=12))
    assert aside.within_a_day(NOW + timedelta(hours=25)) == 2
    assert aside.within_a_day(NOW + timedelta(hours=24) + timedelta(days=1)) == 0


def test_what_the_store_has_lost_is_no_record_s_fault() -> None:
    store = MemoryStore()
    room = WaitingRoom(store)
    room.add(b"d" * 16, 5, b"label")
    store.settle()
    for key in [key for key, _ in store.scan(b"", b"\xff" * 40) if store.get(key) == (5).to_bytes(8, "big") + b"label"]:
        store.delete(key)
    with pytest.raises(StoreError, match="rebuilds it"):
        room.take_older(10, 10)
    assert issubclass(StoreError, NOT_THE_RECORD)
