"""The age of the oldest undecided record: what is asked of the logs, and what follows from their answers."""

import threading
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import pytest

from agents.watches import UndecidedWatch
from pipeline.kafka.readers.undecided import FirstRecord, OldestUndecided
from pipeline.observability.metrics import WorkerMetrics
from pipeline.settings import Settings
from tests.helpers.waiting import TIMEOUT_S

PLACE = ("transactions", 1)


@dataclass
class OneLog:
    """One partition without a broker: offsets that hold committed, hidden or unreadable records, and their times."""

    end: int | None = 0
    records: dict[int, float] = field(default_factory=dict)
    hidden: dict[int, float] = field(default_factory=dict)
    unreadable: set[int] = field(default_factory=set)
    answers: bool = True
    reads: list[tuple[int, bool]] = field(default_factory=list)
    broken: bool = False
    asked: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    """Released with each measurement, before it is answered."""

    def ends(self, places: Collection[tuple[str, int]]) -> Mapping[tuple[str, int], int]:
        self.asked.release()
        if self.broken:
            raise RuntimeError("broken")
        return {} if self.end is None else dict.fromkeys(places, self.end)

    def first(
        self, offsets: Mapping[tuple[str, int], int], *, committed: bool
    ) -> Mapping[tuple[str, int], FirstRecord]:
        assert self.end is not None
        at = offsets[PLACE]
        self.reads.append((at, committed))
        if not self.answers:
            return {}
        readable_end = min(self.hidden, default=self.end) if committed else self.end
        records = self.records if committed else self.records | self.hidden
        for offset in range(at, readable_end):
            if offset in self.unreadable:
                return {PLACE: FirstRecord("unreadable", offset)}
            if offset in records:
                return {PLACE: FirstRecord("record", offset, round(records[offset] * 1_000))}
        return {PLACE: FirstRecord("end", readable_end)}


@pytest.fixture
def log() -> OneLog:
    return OneLog()


@pytest.fixture
def oldest(log: OneLog) -> OldestUndecided:
    return OldestUndecided(log)


def age_s(oldest: OldestUndecided, position: int, now_s: float) -> float:
    return oldest.ages_s({PLACE: position}, now_s)[PLACE]


def test_nothing_is_read_where_everything_is_decided_or_new(log: OneLog, oldest: OldestUndecided) -> None:
    log.end = 10
    assert age_s(oldest, 10, 100) == 0
    log.end = 20
    assert age_s(oldest, 15, 102) == 0
    log.end = 30
    assert age_s(oldest, 20, 104) == 0
    assert log.reads == []


def test_a_record_that_stays_ages_from_its_timestamp_and_is_read_once(log: OneLog, oldest: OldestUndecided) -> None:
    log.end, log.records = 12, {10: 90.0, 11: 95.0}
    assert age_s(oldest, 10, 100) == 10
    assert age_s(oldest, 10, 160) == 70
    assert log.reads == [(10, True)]
    assert age_s(oldest, 11, 162) == 67
    assert age_s(oldest, 12, 164) == 0


def test_transaction_markers_and_aborted_records_are_nothing_to_decide(log: OneLog, oldest: OldestUndecided) -> None:
    log.end = 12
    assert [age_s(oldest, 10, now_s) for now_s in (100, 200, 300)] == [0, 0, 0]
    assert log.reads == [(10, True)]
    log.end, log.records = 14, {13: 350.0}
    assert age_s(oldest, 10, 360) == 0
    assert age_s(oldest, 10, 362) == 12


def test_an_open_transaction_ages_until_it_ends(log: OneLog, oldest: OldestUndecided) -> None:
    log.end, log.hidden, log.records = 20, {10: 90.0, 11: 91.0}, {12: 95.0}
    assert age_s(oldest, 10, 100) == 10
    assert age_s(oldest, 10, 200) == 110
    # What the transaction hides is not read again and again.
    assert log.reads == [(10, True), (10, False), (10, True)]
    log.hidden, log.end = {}, 21  # aborted: its marker lies at 20
    assert age_s(oldest, 10, 202) == 107
    assert age_s(oldest, 13, 204) == 0


def test_records_before_an_open_transaction_come_first(log: OneLog, oldest: OldestUndecided) -> None:
    log.end, log.records, log.hidden = 20, {10: 50.0}, {15: 90.0}
    assert age_s(oldest, 10, 100) == 50
    assert age_s(oldest, 11, 102) == 12


def test_what_cannot_be_read_ages_from_when_it_was_first_seen(log: OneLog, oldest: OldestUndecided) -> None:
    log.end, log.unreadable = 11, {10}
    assert age_s(oldest, 10, 100) == 0
    assert age_s(oldest, 10, 160) == 60
    assert log.reads == [(10, True)]
    assert age_s(oldest, 11, 162) == 0


def test_a_simulated_clock_counts_from_when_a_record_was_first_seen(log: OneLog) -> None:
    oldest = OldestUndecided(log, untimed=["transactions"])
    log.end, log.hidden = 20, {10: 5.0}
    assert age_s(oldest, 10, 1_000) == 0
    assert age_s(oldest, 10, 1_030) == 30


def test_without_answers_what_was_waiting_goes_on_ageing(log: OneLog, oldest: OldestUndecided) -> None:
    log.end, log.records = 12, {10: 90.0}
    assert age_s(oldest, 10, 100) == 10
    log.end = None
    assert age_s(oldest, 10, 130) == 40
    assert age_s(oldest, 12, 132) == 0


def test_a_read_that_nobody_answers_is_tried_again_and_ages_meanwhile(log: OneLog, oldest: OldestUndecided) -> None:
    log.end, log.answers = 12, False
    assert age_s(oldest, 10, 100) == 0
    assert age_s(oldest, 10, 130) == 30
    log.answers = True
    assert age_s(oldest, 10, 132) == 0


def test_a_partition_that_went_and_came_back_is_measured_anew(log: OneLog, oldest: OldestUndecided) -> None:
    log.end, log.records = 12, {10: 90.0}
    assert age_s(oldest, 10, 100) == 10
    assert oldest.ages_s({}, 110) == {}
    log.end, log.records = 40, {30: 120.0}
    assert age_s(oldest, 30, 130) == 10


def test_a_measurement_that_fails_leaves_no_value_behind(log: OneLog, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last value, mostly 0, would keep the alert silent for ever."""
    metrics = WorkerMetrics()
    watch = UndecidedWatch("nobody:1", Settings(), metrics, interval_s=0.001)
    monkeypatch.setattr(watch, "_new_log", lambda: log)
    watch.follow("card", lambda: {PLACE: 10})

    def shown() -> float | None:
        # The value of the measurement before the one that is under way.
        for _ in range(2):
            assert log.asked.acquire(timeout=TIMEOUT_S)
        labels = {"agent": "card", "topic": PLACE[0], "partition": str(PLACE[1])}
        return metrics.registry.get_sample_value("fraud_pipeline_oldest_undecided_seconds", labels)

    log.end = 10
    with watch:
        assert shown() == 0
        log.broken = True
        while shown() is not None:
            pass
        log.broken = False
        while shown() is None:
            pass
