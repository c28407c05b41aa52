"""The generator: what is due when, and that a late send counts from when it was due."""

from datetime import date
from pathlib import Path

import numpy as np
import pytest

from tests.benchmarks.open_loop import due_times, schedule, send
from tests.benchmarks.traffic import LABEL_BEHIND_ROWS, Item, Traffic, items, read_items, write_items

MS = 1_000_000


class Clock:
    """Time passes by sleeping and by sending."""

    def __init__(self) -> None:
        self.now_ns = 0
        self.sleeps = 0

    def __call__(self) -> int:
        return self.now_ns

    def sleep(self, seconds: float) -> None:
        self.sleeps += 1
        self.now_ns += round(seconds * 1e9)


def transactions(count: int) -> list[Item]:
    return [Item("transactions", number, b"k", b"v") for number in range(count)]


def test_a_label_is_due_with_the_transaction_before_it() -> None:
    sent = [*transactions(2), Item("labels", 0, b"k", b"l"), Item("transactions", 2, b"k", b"v")]
    assert due_times(sent, np.array([10, 20, 30])).tolist() == [10, 20, 20, 30]


def test_nothing_is_sent_before_it_is_due_and_sleeps_are_few() -> None:
    clock, sent = Clock(), transactions(1_000)
    due_ns = schedule(1_000, 10_000)
    times: list[int] = []
    found = send(sent, due_ns, lambda _: times.append(clock.now_ns), lambda: None, clock=clock, sleep=clock.sleep)
    late = np.array(times) - due_ns
    assert late.min() >= 0
    assert late.max() <= MS
    assert found.tolist() == times
    # A tick holds ten of them.
    assert clock.sleeps <= 101


def test_a_stall_makes_those_behind_it_late_and_loses_none() -> None:
    clock, due_ns = Clock(), schedule(100, 1_000)

    def produce(item: Item) -> None:
        if item.number == 10:
            clock.now_ns += 50 * MS

    sent_ns = send(transactions(100), due_ns, produce, lambda: None, clock=clock, sleep=clock.sleep)
    late_ms = (sent_ns - due_ns) / MS
    assert late_ms[11] == pytest.approx(49)
    assert late_ms[59] == pytest.approx(1)
    assert late_ms[70:].max() == 0


def test_traffic_depends_on_its_seed_alone_and_labels_follow_their_transactions(tmp_path: Path) -> None:
    traffic = Traffic(cards=300, merchants=100, seed=2, history_days=3)
    starts = date(2026, 3, 1)
    frame = traffic.measured(starts, 4_000)
    assert len(frame) == 4_000
    assert frame["event_time"].iloc[0].date() == starts
    assert traffic.history(starts)["event_time"].iloc[-1] < frame["event_time"].iloc[0]
    made = list(items(frame, 2, labelled=0.05, first_number=7))
    assert made == list(items(traffic.measured(starts, 4_000), 2, labelled=0.05, first_number=7))
    numbers = [item.number for item in made if item.topic == "transactions"]
    assert numbers == list(range(7, 4_007))
    place = {item.number: at for at, item in enumerate(made) if item.topic == "transactions"}
    labels = [(at, item.number) for at, item in enumerate(made) if item.topic == "labels"]
    assert len(labels) == pytest.approx(0.05 * (4_000 - LABEL_BEHIND_ROWS), rel=0.4)
    assert all(at - place[number] >= LABEL_BEHIND_ROWS for at, number in labels)
    write_items(tmp_path / "items", made)
    assert read_items(tmp_path / "items") == made
