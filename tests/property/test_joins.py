"""Repeats and labels come out alike in memory and over a store, and what was taken back leaves no trace in either."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipeline.engine.cards.card_join import CardJoin
from pipeline.engine.cards.joins import COUNTS, Arrivals, Retention
from pipeline.engine.cards.pending import LabelBatch, MemoryPending, StorePending
from pipeline.engine.cards.transaction_index import MemoryIndex, StoreIndex
from pipeline.engine.partition_state.state import MemoryStore
from pipeline.engine.records.accept import accept_labels
from pipeline.engine.records.columns import digest_keys
from schemas.records import Record
from schemas.times import US_PER_DAY
from tests.helpers.logs import START, after, label, microseconds

HORIZONS = tuple(Retention(dedup * US_PER_DAY, label * US_PER_DAY) for dedup, label in ((3, 5), (8, 4), (20, 20)))
Happened = tuple[Retention, list[tuple[int, int]], list[Record]]


class Places:
    """A join with its store, if it has one."""

    def __init__(self, *, in_memory: bool) -> None:
        self.in_memory, self.store = in_memory, MemoryStore()
        if in_memory:
            self.join = CardJoin(MemoryIndex(), MemoryPending())
        else:
            self.join = CardJoin(StoreIndex(self.store), StorePending(self.store))

    def work(self, happened: Happened) -> tuple[Any, ...]:
        retention, bought, reported = happened
        ids = pa.array([f"t{number}" for number, _ in bought], pa.string())
        times_us = np.array([time_us for _, time_us in bought], np.int64)
        n, m = len(bought), len(reported)
        arrived_us = np.array([record.timestamp_ms * 1_000 for record in reported], np.int64)
        labels, rejects = accept_labels([record.value for record in reported], arrived_us, US_PER_DAY)
        assert not rejects
        numbers = np.array([number for number, _ in bought], np.int64)
        names = np.array([b"%d" % number for number in numbers], object)
        merchants = np.column_stack([numbers] * 3) if self.in_memory else names
        digest = digest_keys(pa.array(["c1"] * n, pa.string()), ids)
        given = Arrivals(
            digest, times_us, np.arange(n), times_us % 7, numbers, 0, numbers % 2, merchants,
            LabelBatch.from_labels(labels, reported), np.arange(n, n + m),
        )  # fmt: skip
        found = self.join.join(retention, given)
        self.join.forget(3)
        follows, who = found.following, found.following.labels.labels
        merchant = follows.merchants[:, 0].tolist() if self.in_memory else [int(name) for name in follows.merchants]
        emitted = zip(
            follows.position.tolist(), merchant, who.known_at_us.tolist(), follows.event_time_us.tolist(),
            follows.known.tolist(), who.transaction_id.to_pylist(), strict=True,
        )  # fmt: skip
        given_up = found.given_up.labels
        in_vain = sorted(zip(given_up.transaction_id.to_pylist(), given_up.known_at_us.tolist(), strict=True))
        differs = found.differs.tolist()
        return found.accepted.tolist(), list(emitted), in_vain, found.counts.tolist(), self.join.clock, differs

    def commit(self) -> None:
        self.store.commit()
        self.join.commit()

    def rollback(self) -> None:
        self.store.rollback()
        self.join.rollback()


def history(random: np.random.Generator) -> Iterator[Happened]:
    """Sixty days, with repeats after days, late transactions, and labels early, late, twice and of nobody."""
    first = microseconds(START)
    for batch in range(120):
        day = 0.5 * batch
        bought = [
            (
                max(3 * batch + k - int(random.choice([0, 0, 0, 5, 40])), 0),
                first + round((day + random.uniform(-1, 0.5)) * US_PER_DAY),
            )
            for k in range(int(random.integers(0, 4)))
        ]
        reported = []
        for _ in range(int(random.integers(0, 3))):
            at = after(max(day - float(random.choice([0, 0, 8])), 0))
            number = max(3 * batch + int(random.integers(-30, 12)), 0)
            known, source = str(random.choice(["fraud", "legitimate"])), str(random.choice(["analyst", "customer"]))
            value = label(number, at, known, source=source)
            reported.append(Record("labels", 0, 0, microseconds(at) // 1_000, None, value))
        yield HORIZONS[int(random.integers(len(HORIZONS)))], bought, reported


@pytest.mark.parametrize("seed", range(4))
def test_memory_and_store_agree_whatever_was_undone(seed: int) -> None:
    random = np.random.default_rng(seed)
    straight, memory, store = Places(in_memory=True), Places(in_memory=True), Places(in_memory=False)
    totals = np.zeros(len(COUNTS), np.int64)
    repeats = differing = 0
    batches = list(history(random))
    for number, happened in enumerate(batches):
        expected = straight.work(happened)
        straight.commit()
        for places in (memory, store):
            for ahead in batches[number : number + int(random.integers(0, 3))]:
                places.work(ahead)
            places.rollback()
            assert places.work(happened) == expected
            places.commit()
        totals += np.array(expected[3])
        repeats += expected[0].count(False)
        differing += sum(source >= 0 for source in expected[5])
    counts = dict(zip(COUNTS, totals.tolist(), strict=True))
    assert 0 < differing < repeats
    assert repeats > 10
    assert min(counts[name] for name in ("first", "changed", "early", "too_late", "unknown_transaction")) > 0


def test_a_day_that_is_rolled_back_forgets_nothing_once_room_is_made() -> None:
    retention, first_us = HORIZONS[0], microseconds(START)
    bought = [(number, first_us) for number in range(600)]
    for in_memory in (True, False):
        places = Places(in_memory=in_memory)
        places.work((retention, bought, []))
        places.commit()
        places.work((retention, [(9_999, first_us + 400 * US_PER_DAY)], []))
        places.rollback()
        accepted, *_ = places.work((retention, bought, []))
        assert not any(accepted)
