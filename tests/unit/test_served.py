"""Decisions as served, on disk: found again whole, by day, and never left over from before."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.served import DiskServedStore


@pytest.fixture
def store(tmp_path: Path) -> Iterator[DiskServedStore]:
    one = DiskServedStore(tmp_path / "served" / "0")
    yield one
    one.close()


def test_what_was_put_is_found(store: DiskServedStore) -> None:
    store.put(10, [(("c1", "t1"), 864_000_000_001, b"one"), (("c1", "t2"), 864_000_000_002, b"")])
    store.put(11, [(("c2", "t1"), -5, b"\x00three" * 10_000)])
    assert store.get(("c1", "t1")) == (864_000_000_001, b"one")
    assert store.get(("c1", "t2")) == (864_000_000_002, b"")
    assert store.get(("c2", "t1")) == (-5, b"\x00three" * 10_000)
    assert store.get(("c2", "t2")) is None


def test_a_read_sees_what_was_put_after_an_earlier_read(store: DiskServedStore) -> None:
    assert store.get(("c", "t")) is None
    store.put(1, [(("c", "t"), 1, b"first")])
    assert store.get(("c", "t")) == (1, b"first")
    store.put(1, [(("c", "t"), 2, b"second"), (("c", "u"), 3, b"other")])
    assert store.get(("c", "t")) == (2, b"second")
    assert store.get(("c", "u")) == (3, b"other")


def test_what_was_read_outlives_the_next_write(store: DiskServedStore) -> None:
    store.put(1, [(("c", "t"), 1, b"first")])
    found = store.get(("c", "t"))
    store.put(1, [(("c", "t"), 2, b"other")])
    store.drop_before(5)
    assert found == (1, b"first")


def test_the_newest_day_wins(store: DiskServedStore) -> None:
    for day in (5, 9, 7):
        store.put(day, [(("c", "t"), day, b"%d" % day)])
    assert store.get(("c", "t")) == (9, b"9")
    store.drop_before(9)
    assert store.get(("c", "t")) == (9, b"9")


def test_days_are_dropped_whole_and_may_come_back(store: DiskServedStore) -> None:
    for day in range(-3, 20):
        store.put(day, [(("c", f"t{day}"), day, b"x")])
    assert store.get(("c", "t3")) == (3, b"x")
    store.drop_before(4)
    assert [day for day in range(-3, 20) if store.get(("c", f"t{day}"))] == list(range(4, 20))
    store.put(2, [(("c", "late"), 2, b"y")])
    assert store.get(("c", "late")) == (2, b"y")
    assert store.get(("c", "t2")) is None
    store.drop_before(4)
    assert store.get(("c", "late")) is None


def test_more_days_than_the_store_has_places_for_pass_through_it(store: DiskServedStore) -> None:
    for day in range(5_000):
        store.put(day, [(("c", f"t{day}"), day, b"x")])
        store.drop_before(day - 1)
    assert store.get(("c", "t4999")) == (4_999, b"x")
    assert store.get(("c", "t4990")) is None


def test_identifiers_of_any_length_are_kept_apart(store: DiskServedStore) -> None:
    long, strange = "k" * 256, "\ud800\u20ac"
    keys = [(long, long + "x"), (long + "x", long), ("a", "bc"), ("ab", "c"), (strange, strange), ("", "")]
    store.put(1, [(key, number, b"%d" % number) for number, key in enumerate(keys)])
    assert [store.get(key) for key in keys] == [(number, b"%d" % number) for number in range(len(keys))]


def test_a_store_starts_empty(tmp_path: Path) -> None:
    first = DiskServedStore(tmp_path / "s")
    first.put(1, [(("c", "t"), 1, b"not committed, perhaps")])
    first.close()
    left_over = tmp_path / "s"
    left_over.mkdir()
    (left_over / "data.mdb").write_bytes(b"what a process that was killed left")
    second = DiskServedStore(tmp_path / "s")
    assert second.get(("c", "t")) is None
    second.close()


def test_closing_leaves_nothing(tmp_path: Path) -> None:
    store = DiskServedStore(tmp_path / "s")
    store.put(1, [(("c", "t"), 1, b"x")])
    assert store.get(("c", "t")) is not None
    store.close()
    assert not (tmp_path / "s").exists()
