"""How the demo feeds its days: slices of real time, and how far it runs ahead of the decisions."""

from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

import pytest

from pipeline.demo.environment import FEWEST_PARTITIONS, run_settings
from pipeline.demo.feeder import DecidedFlow
from pipeline.demo.figures import RunFigures
from pipeline.demo.world import SLICE_S, paced
from pipeline.settings import Settings
from schemas.times import US_PER_DAY

MIDNIGHT_US = 1_000 * US_PER_DAY


class Clock:
    """A clock that only sleeping moves."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def sleep(self, seconds: float) -> None:
        """Move on."""
        self.now_s += seconds


def test_every_transaction_of_a_day_is_sent_once_and_not_before_its_time() -> None:
    times_us = [MIDNIGHT_US + second * 1_000_000 for second in range(0, 86_400, 37)]
    clock, sent = Clock(), []
    for share, part in paced(times_us, 2.0, lambda: clock.now_s, clock.sleep, 0.0):
        assert clock.now_s == pytest.approx(2.0 * share)
        assert all(time_us < MIDNIGHT_US + share * US_PER_DAY for time_us in times_us[part])
        sent += times_us[part]
    assert sent == times_us
    assert clock.now_s == pytest.approx(2.0)


def test_a_slice_lasts_as_long_as_it_should() -> None:
    times_us = [MIDNIGHT_US + second * 1_000_000 for second in range(86_400)]
    clock = Clock()
    sent_s = [clock.now_s for _ in paced(times_us, 1.0, lambda: clock.now_s, clock.sleep, 0.0)]
    assert len(sent_s) == round(1.0 / SLICE_S)
    assert all(after - before == pytest.approx(SLICE_S) for before, after in pairwise(sent_s))


def test_an_empty_day_takes_its_time() -> None:
    clock = Clock()
    assert list(paced([], 3.0, lambda: clock.now_s, clock.sleep, 0.0)) == []
    assert clock.now_s == 3.0


def test_sending_runs_ahead_of_the_decisions_by_the_limit_and_no_further() -> None:
    figures = RunFigures()
    flow = DecidedFlow(figures, 100)
    assert flow.allowed == 100
    figures.transactions, figures.decisions, figures.refused, figures.repeated_decisions = 90, 50, 3, 2
    assert flow.allowed == 151
    assert flow.in_flight(90) == 39
    before_s = flow.progress_s
    assert flow.progress_s == before_s
    figures.decisions += 1
    assert flow.progress_s >= before_s


@pytest.mark.parametrize(("workers", "expected"), [(1, FEWEST_PARTITIONS), (5, 5)])
def test_a_run_has_partitions_for_all_its_workers(tmp_path: Path, workers: int, expected: int) -> None:
    settings = run_settings(Settings(data_dir=tmp_path), tmp_path, datetime.now(UTC), workers)
    assert (settings.card_partitions, settings.merchant_partitions) == (expected, expected)


def test_a_run_has_the_partitions_that_its_user_asks_for(tmp_path: Path) -> None:
    given = Settings(data_dir=tmp_path, card_partitions=7)
    settings = run_settings(given, tmp_path, datetime.now(UTC), 1)
    assert (settings.card_partitions, settings.merchant_partitions) == (7, FEWEST_PARTITIONS)


def test_topics_that_may_exist_keep_the_partitions_of_the_settings(tmp_path: Path) -> None:
    given = Settings(data_dir=tmp_path, kafka_bootstrap_servers="localhost:9", topic_prefix="own-")
    settings = run_settings(given, tmp_path, datetime.now(UTC), 1)
    assert (settings.card_partitions, settings.merchant_partitions) == (given.card_partitions, 4)
