"""Surges of labels: what is held follows from the labels before, and from nothing else."""

import numpy as np
import pytest

from pipeline.learning.surges import HISTORY_HOURS, LATE_HOURS, LEAST_LIMIT, Surges
from schemas.times import US_PER_HOUR

WEEK = 7 * 24


def usual(surges: Surges, hours: range, labels: int = 10, source: str = "customer") -> None:
    for hour in hours:
        assert not any(take(surges, hour, labels, source))
    surges.commit()


def take(surges: Surges, hour: int, labels: int, source: str = "customer") -> list[bool]:
    return [surges.take(source, hour * US_PER_HOUR + number) for number in range(labels)]


def test_more_than_five_times_the_usual_most_is_held() -> None:
    surges = Surges()
    usual(surges, range(WEEK))
    assert take(surges, WEEK, 51) == [False] * 50 + [True]
    # The next hour has a limit of its own, and what was held has not raised it.
    assert take(surges, WEEK + 1, 51) == [False] * 50 + [True]
    assert not any(take(surges, WEEK + 1, 1_000, "chargeback"))


def test_the_usual_most_is_a_quantile_of_hours_with_labels() -> None:
    surges = Surges()
    # One batch a week, and one of four times as many long ago.
    take(surges, 0, 400)
    for week in range(1, 5):
        # Others go on: the clock is that of all sources.
        usual(surges, range((week - 1) * WEEK, week * WEEK, 12), 1, "issuer")
        if week < 4:
            take(surges, week * WEEK, 100)
    usual(surges, range(4 * WEEK, 4 * WEEK + 1), 1, "issuer")
    assert sum(take(surges, 4 * WEEK, 3_000)) == 1_000
    assert sum(take(surges, 4 * WEEK + 1, 3_000)) == 0, "the batch before was learned as far as 2,000"
    surges = Surges()
    usual(surges, range(1_000))
    take(surges, 1_000, 40)
    assert sum(take(surges, 1_001, 100)) == 50, "one hour of 672 is no usual hour"


def test_nothing_is_held_in_a_source_s_first_week_and_little_never() -> None:
    surges = Surges()
    usual(surges, range(WEEK), 1)
    assert take(surges, WEEK, LEAST_LIMIT + 1) == [False] * LEAST_LIMIT + [True]
    assert not any(take(surges, WEEK, 5_000, "audit"))
    assert not any(take(surges, 2 * WEEK - 1, 5_000, "audit"))


def test_an_hour_counts_for_four_weeks() -> None:
    surges = Surges()
    take(surges, 0, 1_000)
    usual(surges, range(1, HISTORY_HOURS), 1)
    take(surges, HISTORY_HOURS, 1)
    assert sum(take(surges, HISTORY_HOURS + 1, 100)) == 80


def test_a_backlog_counts_in_its_own_hours() -> None:
    """After an outage the partitions of a topic of labels are read one behind the other."""
    straight, backlog, hours = Surges(), Surges(), range(2 * WEEK)
    for _ in range(8):
        usual(backlog, hours)
    for hour in hours:
        assert not any(take(straight, hour, 80))
    assert backlog.hours == straight.hours
    # The limit of an hour is that of the hours before it, whatever is known of later ones.
    assert sum(take(backlog, 2 * WEEK, 500)) == 100
    assert sum(take(backlog, WEEK + 1, 500)) == 180
    assert not any(take(backlog, WEEK - 1, 500)), "the source's first week"


def test_what_is_too_old_counts_in_the_oldest_hour_and_takes_no_memory() -> None:
    surges = Surges()
    usual(surges, range(4_000), 1)
    oldest = 4_000 - 1 - LATE_HOURS
    assert [surges.take("customer", hour * US_PER_HOUR) for hour in range(40)] == [False] * 19 + [True] * 21
    assert surges.hours["customer"].admitted[oldest] == LEAST_LIMIT
    assert len(surges.hours["customer"].admitted) == HISTORY_HOURS + LATE_HOURS + 1


def test_a_new_name_is_no_way_around_the_limit_and_takes_no_memory() -> None:
    surges = Surges()
    usual(surges, range(WEEK), source="partner")
    held = [surges.take(f"forged {number}", WEEK * US_PER_HOUR) for number in range(60)]
    assert held == [False] * 50 + [True] * 10
    assert list(surges.hours) == ["other"]


@pytest.mark.parametrize("at", [0, 1, 200, 200 * 10])
@pytest.mark.parametrize("source", ["customer", "issuer"])
def test_one_label_of_another_century_changes_nothing(at: int, source: str) -> None:
    labels = [("customer", hour * US_PER_HOUR) for hour in range(WEEK) for _ in range(10)]
    labels += [("customer", WEEK * US_PER_HOUR)] * 90
    straight, odd = Surges(), Surges()
    found = []
    for number, label in enumerate(labels):
        if number == at:
            odd.take(source, 4_070_908_800_000_000)
        found.append(odd.take(*label))
    assert found == [straight.take(*label) for label in labels]
    assert sum(found) == 40
    assert odd.clock == straight.clock


@pytest.mark.parametrize("seed", range(3))
def test_batches_rollbacks_and_dumps_change_nothing(seed: int) -> None:
    random = np.random.default_rng(seed)
    times = np.sort(random.integers(0, 3 * WEEK, 6_000)) + random.integers(-3, 1, 6_000)
    times[3_000:3_400] = times[3_000]
    labels = [(str(source), int(hour) * US_PER_HOUR) for source, hour in zip(
        random.choice(["customer", "issuer", "else"], len(times)), times, strict=True)]  # fmt: skip
    whole, parts = Surges(), Surges()
    wanted = [whole.take(*label) for label in labels]
    assert 0 < sum(wanted) < len(wanted) / 2
    found: list[bool] = []
    while len(found) < len(labels):
        batch = labels[len(found) : len(found) + int(random.integers(1, 400))]
        if random.random() < 0.3:
            for label in batch:
                parts.take(*label)
            parts.rollback()
        found += [parts.take(*label) for label in batch]
        parts.commit()
        if random.random() < 0.2:
            parts = Surges(parts.hours, parts.clock)
    assert found == wanted
