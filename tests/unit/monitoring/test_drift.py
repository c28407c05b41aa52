"""Drift on synthetic daily histograms: quiet on stationary streams, quick on shifts, and ranked by importance."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.features.catalogue import FEATURES
from pipeline.monitoring.daily import ALERTS, REPORT_AGE, REPORT_SCORE, REPORTS, SCORE, DailyCounts, History
from pipeline.monitoring.drift import DayDrift, DriftOptions, drift_reason, drifted, judge
from pipeline.scoring.distributions import FeatureDistribution
from schemas.times import US_PER_DAY

ROWS = 2_000
BINS = 6
QUIET = DriftOptions()


def episodes(days: Sequence[DayDrift]) -> list[int]:
    """Return the days on which an alarm began: those with drift after some days without any."""
    alarmed = [day.day for day in days if day.findings]
    return alarmed[:1] + [day for before, day in pairwise(alarmed) if day - before > QUIET.gap_days]


def stream(
    seed: int,
    days: int = 80,
    series: int = 8,
    *,
    weekday: float = 0.3,
    over: float = 0.03,
    shifted: tuple[int, int, float] | None = None,
) -> list[History]:
    """Series with weekday effects and real variation from day to day.

    Args:
        seed: Of all draws.
        days: Length.
        series: Number of series.
        weekday: Standard deviation of the weekdays' log-odds.
        over: Standard deviation of the log-odds from day to day.
        shifted: From (day, series) on the first bin's log-odds are larger by so much.
    """
    random = np.random.default_rng(seed)
    volume = ROWS * np.exp(0.4 * random.normal(size=7))
    found = []
    for number in range(series):
        base, of_weekday = random.normal(size=BINS) * 0.3, weekday * random.normal(size=(7, BINS))
        counts = np.zeros((days, BINS))
        for day in range(days):
            odds = base + of_weekday[day % 7] + over * random.normal(size=BINS)
            if shifted is not None and day >= shifted[0] and number == shifted[1]:
                odds[0] += shifted[2]
            share = np.exp(odds) / np.exp(odds).sum()
            counts[day] = random.multinomial(round(volume[day % 7]), share)
        found.append(History(f"s{number}", tuple(map(str, range(BINS))), np.arange(days), counts))
    return found


def test_stationary_streams_raise_at_most_one_alarm_a_month() -> None:
    assessed, began = 0, 0
    for seed in range(12):
        days = judge(stream(seed))
        assessed += len(days)
        began += len(episodes(days))
    assert assessed > 600
    assert began <= assessed / 30


def test_a_weekday_that_differs_every_week_is_no_drift() -> None:
    days = [day for seed in range(3) for day in judge(stream(seed, weekday=1.5))]
    assert len([day for day in days if day.findings]) <= len(days) / 30


@pytest.mark.parametrize("seed", range(5))
def test_a_shift_is_found_within_two_days_and_keeps_its_first_day(seed: int) -> None:
    days = judge(stream(seed, shifted=(60, 3, 0.5)))
    alarmed = [day for day in days if any(finding.name == "s3" for finding in day.findings)]
    assert 60 <= alarmed[0].day <= 61
    first = alarmed[0].day
    shown = {found.since for day in alarmed for found in day.findings if found.name == "s3" and day.day < first + 6}
    assert shown == {first}
    (found,) = (finding for finding in alarmed[0].findings if finding.name == "s3")
    assert (found.bin, found.now > found.before) == ("0", True)


def test_a_new_value_in_one_row_is_no_drift_and_in_two_of_a_hundred_it_is() -> None:
    constant = np.zeros((40, 2))
    constant[:, 0] = ROWS
    for rows, expected in ((1, 0), (ROWS // 50, 1)):
        counts = constant.copy()
        counts[-1] = (ROWS - rows, rows)
        days = judge([History("flag", ("value", "no value"), np.arange(40), counts)])
        assert len(days[-1].findings) == expected
        if expected:
            assert days[-1].findings[0].now == pytest.approx(0.02)


def test_a_rate_that_falls_is_found_and_one_that_varies_is_not() -> None:
    random = np.random.default_rng(7)
    reports = random.poisson(80, 70).astype(float)
    for kept, expected in ((1.0, False), (0.4, True)):
        counted = reports.copy()
        counted[-1] = round(reports[-1] * kept)
        history = History(REPORTS, ("all others", REPORTS), np.arange(70), np.column_stack([9_600 - counted, counted]))
        days = judge([history])
        assert bool(days[-1].findings) == expected
        assert len(episodes(days[:-1])) <= 1
        if expected:
            assert days[-1].findings[0].bin == REPORTS


def test_a_day_of_little_traffic_is_not_an_alarm() -> None:
    histories = stream(2)
    for history in histories:
        history.counts[-1] = np.round(history.counts[-1] / 20)
    assert judge(histories)[-1].findings == ()


def test_days_without_enough_past_are_not_assessed() -> None:
    days = judge(stream(0, days=40))
    first = 7 * QUIET.least_weeks + QUIET.least_history
    assert [day.day for day in days] == list(range(first, 40))
    assert judge(stream(0, days=first)) == []


def test_days_assessed_before_do_not_change_when_days_are_added() -> None:
    long = judge(stream(4, shifted=(60, 3, 0.5)))
    short = judge(
        [item._replace(days=item.days[:65], counts=item.counts[:65]) for item in stream(4, shifted=(60, 3, 0.5))]
    )
    assert short == long[: len(short)]


def test_findings_are_ranked_by_importance_times_distance() -> None:
    item, other = stream(5, series=8, shifted=(60, 3, 0.6)), stream(5, series=8, shifted=(60, 4, 0.6))
    both = [other[4] if history.name == "s4" else history for history in item]
    for first, importance in (("s3", {"s3": 0.9, "s4": 0.01}), ("s4", {"s3": 0.01, "s4": 0.9})):
        day = next(day for day in judge(both, importance) if day.day == 60)
        assert [found.name for found in day.findings] == [first, "s4" if first == "s3" else "s3"]


def test_reasons_to_train_again_leave_out_what_another_version_changes() -> None:
    histories = [
        entry._replace(name=SCORE) if entry.name == "s3" else entry for entry in stream(0, 62, shifted=(60, 3, 0.6))
    ]
    days = judge(histories)
    assert [found.name for found in drifted(days, ignored=())] == [SCORE]
    assert drifted(days) == []
    importance = {"s3": 0.01}
    days = judge(stream(0, 62, shifted=(60, 3, 0.6)), importance)
    assert [found.name for found in drifted(days)] == ["s3"]
    assert drifted(days, least_importance=0.02) == []
    quiet = [DayDrift(day.day + 10, day.p_values, ()) for day in days[-2:]]
    assert drifted([*days, *quiet]) == []


def counted(days: int, rows: int = 50) -> DailyCounts:
    counts = DailyCounts([FeatureDistribution(name="amount", edges=(10.0, 20.0), counts=(0.0,) * 4)])
    for day in range(days):
        features = np.full((rows, len(FEATURES)), np.nan)
        features[:, 0] = np.linspace(0, 30, rows)
        features[:2, 0] = np.nan
        times = day * US_PER_DAY + np.arange(rows) * (US_PER_DAY // rows)
        counts.add_decisions(times, features, np.linspace(0.0, 1.0, rows))
    return counts


def by_name(counts: DailyCounts, through_day: int) -> dict[str, History]:
    return {history.name: history for history in counts.histories(through_day)}


def test_counts_do_not_depend_on_the_order_of_rows() -> None:
    random = np.random.default_rng(3)
    times = random.integers(0, 3 * US_PER_DAY, 500)
    features, score = random.normal(10, 8, (500, len(FEATURES))), random.random(500)
    distributions = [FeatureDistribution(name=name, edges=(5.0, 15.0), counts=(0.0,) * 4) for name in FEATURES[:3]]
    item, other = DailyCounts(distributions), DailyCounts(distributions)
    item.add_decisions(times, features, score)
    for rows in np.array_split(random.permutation(500), 7):
        other.add_decisions(times[rows], features[rows], score[rows])
    for first, second in zip(item.histories(2), other.histories(2), strict=True):
        assert first.name == second.name
        np.testing.assert_array_equal(first.counts, second.counts)
        assert first.counts.sum() == 500


def test_alerts_and_reports_are_counted_by_their_days() -> None:
    counts = counted(3)
    half_day: NDArray[np.int64] = np.array([US_PER_DAY // 2], np.int64)
    counts.add_alerts(np.repeat(half_day, 4))
    # One of the two was imported, and has no score.
    counts.add_reports(np.repeat(half_day, 2), np.repeat(half_day, 2) + 2 * US_PER_DAY, np.array([0.5, np.nan]))
    found = by_name(counts, 2)
    assert found["amount"].counts[0].tolist() == [15.0, 16.0, 17.0, 2.0]
    assert found["amount"].bins == ("below 10", "10 to 20", "20 or more", "no value")
    assert found[ALERTS].counts.tolist() == [[46.0, 4.0], [50.0, 0.0], [50.0, 0.0]]
    assert found[REPORTS].counts.tolist() == [[50.0, 0.0], [50.0, 0.0], [48.0, 2.0]]
    assert found[REPORT_AGE].counts.sum(axis=1).tolist() == [0.0, 0.0, 2.0]
    assert found[REPORT_SCORE].counts.sum(axis=1).tolist() == [0.0, 0.0, 1.0]
    assert found[REPORT_AGE].bins[int(found[REPORT_AGE].counts[2].argmax())] == "1 d to 3 d"
    assert found[REPORT_SCORE].bins[int(found[REPORT_SCORE].counts[2].argmax())] == "0.5 to 0.6225"


def test_frauds_that_the_models_no_longer_see_are_drift() -> None:
    """Scores of all transactions stay as they were; those of the frauds that are reported fall."""
    random, counts = np.random.default_rng(3), counted(60)
    for day in range(60):
        reported = np.full(40, day * US_PER_DAY + US_PER_DAY // 2, np.int64)
        seen = random.random(40) < (0.9 if day < 50 else 0.4)
        score = np.where(seen, random.uniform(0.6, 0.99, 40), random.uniform(0.001, 0.02, 40))
        counts.add_reports(reported - 7 * US_PER_DAY, reported, score)
    days = judge([history for history in counts.histories(59) if history.name in (SCORE, REPORTS, REPORT_SCORE)])
    alarms = [(found.day, found.name) for day in days for found in day.findings]
    assert alarms[0] == (50, REPORT_SCORE)
    assert not drifted(days), "it is no reason to train by itself: another version changes it too"


def test_one_decision_of_another_century_ends_no_day() -> None:
    empty = np.full((1, len(FEATURES)), np.nan)
    counts = counted(1, rows=50)
    whole = counts.newest_whole_day
    for number in range(2):
        counts.add_decisions(np.array([4_070_908_800_000_000 + number * US_PER_DAY]), empty, np.array([0.5]))
        assert counts.newest_whole_day == whole
    # Three do, as behind days without traffic.
    counts.add_decisions(np.array([4_070_908_800_000_000 + 2 * US_PER_DAY]), empty, np.array([0.5]))
    assert counts.newest_whole_day > whole


def test_a_day_is_whole_once_a_later_one_or_its_last_hour_has_begun() -> None:
    counts = counted(1, rows=2)
    assert counts.newest_whole_day == -1
    empty = np.full((1, len(FEATURES)), np.nan)
    counts.add_decisions(np.array([US_PER_DAY - 1]), empty, np.array([0.5]))
    assert counts.newest_whole_day == 0
    counts.add_decisions(np.array([US_PER_DAY]), empty, np.array([0.5]))
    assert counts.newest_whole_day == 0
    assert by_name(counts, 0).keys() == {"amount", SCORE}
    assert DailyCounts([]).histories() == []


def served(drifting: int, days: int = 40, rows: int = 150) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Times and features; amounts are larger by half on the last ``drifting`` of the whole days."""
    random = np.random.default_rng(1)
    day = np.repeat(np.arange(days), rows)
    features = np.full((len(day), len(FEATURES)), np.nan)
    features[:, 0] = random.lognormal(3, 0.5, len(day)) * np.where(day >= days - 1 - drifting, 1.5, 1.0)
    features[:, 1] = random.uniform(0, 24, len(day))
    times = (
        day * US_PER_DAY + np.sort(random.integers(0, US_PER_DAY // 2, len(day)).reshape(days, rows), axis=1).ravel()
    )
    return times.astype(np.int64), features


@pytest.mark.parametrize(("importance", "reported"), [({"amount": 0.9, "hour": 0.1}, True), ({"hour": 1.0}, False)])
def test_served_decisions_give_a_reason_to_train_where_an_important_feature_drifts(
    importance: dict[str, float], reported: bool
) -> None:
    edges = {"amount": (10.0, 15.0, 20.0, 27.0, 40.0), "hour": (6.0, 12.0, 18.0)}
    distributions = [
        FeatureDistribution(name=name, edges=at, counts=(0.0,) * (len(at) + 2)) for name, at in edges.items()
    ]
    times, features = served(drifting=1)
    reason = drift_reason(times, features, np.full(len(times), 0.1), distributions, importance)
    if reported:
        assert reason is not None
        assert reason.startswith("drift of amount since 1970-02-08 (share of ")
    else:
        assert reason is None
    steady, features = served(drifting=-1)
    assert drift_reason(steady, features, np.full(len(steady), 0.1), distributions, importance) is None
