"""The alert budget controller: what no cut, no order and no stream may change."""

from zlib import crc32

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pipeline.decision.pacing import HOURS, Pacing, PacingOptions, ScoredRows, is_news
from pipeline.learning.event_clock import EventClock, advanced
from pipeline.scoring.errors import ModelError
from schemas.times import US_PER_HOUR
from tests.helpers.paced import FIRST_DAY, Stream, paced, per_day, stream

BUDGET = PacingOptions(40.0)
START_HOUR = FIRST_DAY * 24


@pytest.fixture(scope="module")
def weeks() -> Stream:
    return stream(21, 1_000, seed=1)


def rows_of(part: Stream, threshold: float) -> ScoredRows:
    return ScoredRows(part.event_time_us, part.score, part.score >= threshold, part.case)


@settings(max_examples=12)
@given(st.data())
def test_neither_cuts_nor_the_order_within_an_hour_nor_late_records_between_partitions_change_a_threshold(
    data: st.DataObject,
) -> None:
    source = stream(3, 150, seed=data.draw(st.integers(0, 50)))
    hours = source.event_time_us // US_PER_HOUR
    # A hour's rows in any order, and each card's rows in a partition of its own.
    shuffled = np.random.default_rng(data.draw(st.integers(0, 1_000))).permutation(len(hours))
    order = shuffled[np.argsort(hours[shuffled], kind="stable")]
    partition = np.array([crc32(case.split("-")[0].encode()) % 3 for case in source.case])
    straight, cut = Pacing(BUDGET), Pacing(BUDGET)
    for number in range(3):
        of_partition = np.flatnonzero(partition == number)
        straight.add(_some(source, of_partition), number)
    # Of one partition after the other or in turns, and by batches of any size.
    size = data.draw(st.integers(1, 400))
    for at in range(0, len(order), size):
        for number in range(3):
            batch = order[at : at + size]
            cut.add(_some(source, batch[partition[batch] == number]), number)
    assert straight.decide(0.5) == cut.decide(0.5)
    assert straight.decide(0.5).threshold != 0.5


def _some(stream: Stream, rows: np.ndarray) -> ScoredRows:
    return rows_of(
        Stream(stream.event_time_us[rows], stream.score[rows], [stream.case[row] for row in rows.tolist()]), 0.3
    )


@settings(max_examples=12)
@given(st.integers(0, 1_000), st.floats(1.0, 200.0), st.floats(1.0, 3.0))
def test_a_larger_budget_never_has_a_higher_threshold(seed: int, budget: float, times: float) -> None:
    source = stream(4, 200, seed)
    # The same alerts for both, which are few: none of the two is braked.
    found = []
    for alerts_per_day in (budget, budget * times):
        pacing = Pacing(PacingOptions(alerts_per_day))
        pacing.add(rows_of(source, 2.0))
        found.append(pacing.decide(0.5))
    smaller, larger = found
    # What one of them takes for a shift, in which the newest day weighs more, the other one may not.
    assume(smaller.figures["shifted"] == larger.figures["shifted"])
    assert larger.threshold <= smaller.threshold


def test_a_stationary_stream_keeps_its_budget() -> None:
    source = stream(35, 1_000, seed=7)
    # Begun with a threshold at which everything is an alert.
    days = per_day(source, paced(source, PacingOptions(60.0), 0.02).first)[9:]
    weekly = np.convolve(days, np.ones(7) / 7, "valid")
    assert np.mean(abs(weekly / 60.0 - 1.0) <= 0.05) >= 0.9
    assert np.mean(abs(days / 60.0 - 1.0) <= 0.3) >= 0.9
    # By chance alone, at the best threshold, weeks would be within 5 % in half of the cases.
    assert days.std() < 60.0**0.5 * 1.3


def test_a_shift_of_all_scores_is_met_within_two_days(weeks: Stream) -> None:
    shifted = stream(21, 1_000, seed=1, scale=lambda day: 4.0 if day >= 14 else 1.0)
    days = per_day(shifted, paced(shifted, BUDGET, 0.5).first)
    # The threshold that kept the budget before.
    fixed = per_day(shifted, shifted.score >= 0.2)
    assert 0.7 * 40 < fixed[:14].mean() < 1.3 * 40
    assert fixed[15:].mean() > 3 * 40
    assert days[14] < 4 * 40
    assert days[16:].max() < 1.4 * 40
    assert per_day(weeks, paced(weeks, BUDGET, 0.5).first)[14:].mean() == pytest.approx(40, rel=0.1)


def test_the_first_alert_of_a_case_is_what_counts() -> None:
    """Three decisions of a case within two hours: it alerts once, in the hour in which it reaches a threshold first."""
    pacing = Pacing(PacingOptions(24.0))
    times = np.array([0, 1, 2, 26]) * US_PER_HOUR + START_HOUR * US_PER_HOUR
    scores, alerts = np.array([0.3, 0.5, 0.4, 0.0]), np.array([True, True, True, False])
    pacing.add(ScoredRows(times, scores, alerts, ["a", "a", "a", "b"]))
    pace = pacing.decide(0.2)
    assert (pace.figures["alerts_7d"], pace.figures["hours"]) == (1, 26)
    reached = [pacing._reaches[START_HOUR + at].columns() for at in range(2)]
    assert [(score.tolist(), before.tolist()) for score, before in reached] == [([0.3], [0.0]), ([0.5], [0.3])]
    assert START_HOUR + 2 not in pacing._reaches
    # Another budget's worth of cases would be alerted down to the floor.
    assert pace.threshold == 0.3


def test_a_threshold_stays_until_there_is_a_day_of_scores_of_the_version_that_scores() -> None:
    decision = stream(2, 500, seed=2)
    pacing = Pacing(BUDGET)
    pacing.add(rows_of(decision, 0.5))
    assert pacing.decide(0.7).threshold < 0.7
    pacing.forget_scores()
    pace = pacing.decide(0.7)
    assert (pace.threshold, pace.figures["cold"], pace.figures["hours"]) == (0.7, True, 0)
    # What was alerted stays counted.
    assert pace.figures["alerts_7d"] > 0
    # Scores of the version before do not count, those of its training's end do.
    later = decision.event_time_us + 2 * 24 * US_PER_HOUR
    strange = np.zeros(len(later), np.bool_)
    pacing.add(ScoredRows(later, decision.score, strange, decision.case, comparable=strange))
    assert pacing.decide(0.7).threshold == 0.7
    first = START_HOUR + 96
    pacing.seed([(first - hour, 0.4 + hour / 1_000) for hour in range(1, HOURS)] + [(first, 0.99)], before=first)
    seeded = pacing.decide(0.7)
    assert (seeded.figures["cold"], seeded.threshold < 0.6) == (False, True)
    alone = Pacing(BUDGET)
    alone.seed([(first - hour, 0.4 + hour / 1_000) for hour in range(1, HOURS)])
    assert seeded.threshold == alone.decide(0.7, seeded.hour).threshold
    # Below the lowest that was given nobody knows how many there were.
    plenty = Pacing(PacingOptions(1_000.0))
    plenty.seed([(first - hour, 0.4 + hour / 1_000) for hour in range(1, HOURS)])
    own = np.full(50, (first - 1) * US_PER_HOUR)
    plenty.add(ScoredRows(own, np.full(50, 0.05), np.zeros(50, np.bool_), [f"c{number}" for number in range(50)]))
    assert plenty.decide(0.7, first).threshold == 0.401
    assert plenty.decide(0.35, first).threshold == 0.35
    # A week later they count no more, nor does what was decided before a day without decisions.
    assert plenty.decide(0.7, first + HOURS).figures["cold"]


@pytest.mark.parametrize("away_days", [1, 5, 9])
def test_a_version_that_returns_begins_anew(away_days: int) -> None:
    decision = stream(14, 300, seed=3)
    day = (decision.event_time_us - decision.event_time_us[0]) // (24 * US_PER_HOUR)
    own = (day < 13 - away_days) | (day >= 13)
    pacing = Pacing(BUDGET)
    pacing.add(ScoredRows(decision.event_time_us, decision.score, decision.score >= 0.2, decision.case, comparable=own))
    pace = pacing.decide(0.2)
    assert (pace.threshold, pace.figures["cold"]) == (0.2, True)
    assert pace.figures["hours"] <= 24


def test_days_without_decisions_say_nothing_of_a_rate() -> None:
    source, later = stream(10, 300, seed=3), stream(1, 300, seed=4)
    pacing = Pacing(BUDGET)
    pacing.add(rows_of(source, 0.2))
    pacing.add(rows_of(Stream(later.event_time_us + 14 * 24 * US_PER_HOUR, later.score, later.case), 0.2))
    assert pacing.decide(0.2).threshold == 0.2


def test_behind_five_quarters_of_the_budget_a_quarter_of_the_rate_passes() -> None:
    def figures(alerts: int) -> tuple[bool, float, float]:
        pacing = Pacing(PacingOptions(10.0))
        hours = START_HOUR + np.r_[np.arange(48), [48] * alerts, 49]
        score = np.r_[np.linspace(0.1, 0.5, 48), [0.9] * alerts, 0.0]
        alert = np.r_[np.zeros(48, np.bool_), [True] * alerts, False].astype(np.bool_)
        names = [f"c{number}" for number in range(len(hours))]
        pacing.add(ScoredRows(hours * US_PER_HOUR, score, alert, names))
        pace = pacing.decide(0.5)
        return pace.figures["braked"], pace.figures["rate"], pace.threshold

    assert figures(12)[0] is False
    braked, rate, threshold = figures(13)
    assert braked is True
    assert rate == pytest.approx(figures(12)[1] / 4, rel=0.1)
    assert threshold > figures(12)[2]


def test_critical_scores_pass_whatever_the_budget_says() -> None:
    source = stream(3, 500, seed=2)
    thresholds = []
    for critical in (None, 0.3):
        pacing = Pacing(PacingOptions(1.0, critical))
        pacing.add(rows_of(source, 0.5))
        thresholds.append(pacing.decide(0.5).threshold)
    assert thresholds[0] > 0.3
    assert thresholds[1] == 0.3


def test_a_critical_score_holds_before_there_is_a_day_of_scores() -> None:
    pacing = Pacing(PacingOptions(40.0, 0.3))
    pace = pacing.decide(0.5, START_HOUR)
    assert (pace.threshold, pace.figures["cold"], is_news(0.5, pace, None)) == (0.3, True, True)
    assert not is_news(0.3, pacing.decide(0.3, START_HOUR), None)


@pytest.mark.parametrize("at", [0.3, 0.99])
def test_critical_cases_exceed_the_budget_and_count(at: float) -> None:
    """More critical cases than the budget has: all alert, and nothing below does."""
    decision = stream(14, 600, seed=5)
    score = np.where(np.arange(len(decision.score)) % 60 == 0, 0.995, np.minimum(decision.score, 0.9))
    found = paced(decision._replace(score=score), PacingOptions(3.0, at), 0.5)
    assert found.alert[score >= at].all()
    days = per_day(decision, found.first)
    assert days[8:13].mean() > 2 * 3.0
    if at == 0.99:
        later = decision.event_time_us // US_PER_HOUR >= START_HOUR + 24 * 9
        assert not found.alert[later & (score < at)].any()


@pytest.mark.parametrize("at", [0, 1, 2, 1_000])
def test_one_event_of_another_century_changes_nothing(at: int) -> None:
    decision = stream(10, 300, seed=3)
    straight, odd = Pacing(BUDGET), Pacing(BUDGET)
    straight.add(rows_of(decision, 0.3))
    wrong = Stream(np.array([4_070_908_800_000_000]), np.array([0.01]), ["c-2099"])
    for part in (
        _some(decision, np.arange(at)),
        rows_of(wrong, 0.3),
        _some(decision, np.arange(at, len(decision.score))),
    ):
        odd.add(part)
    assert odd.hour == straight.hour
    assert odd.decide(0.5) == straight.decide(0.5)
    # So does a partition that has no other.
    odd.add(rows_of(wrong, 0.3), partition=1)
    assert odd.hour == straight.hour
    assert odd.decide(0.5) == straight.decide(0.5)


@given(st.lists(st.sampled_from([0, 1, 2, 30, 31, 60, 900_000]), min_size=1, max_size=30), st.data())
def test_a_clock_does_not_depend_on_batches(steps: list[int], data: st.DataObject) -> None:
    # Behind three decisions that confirm the clock it never goes back.
    times_us = (START_HOUR + np.array([0, 0, 0, *steps])) * US_PER_HOUR
    cut = data.draw(st.integers(0, len(times_us)))
    whole, parts = EventClock(), EventClock()
    expected = whole.hours(times_us).tolist()
    assert parts.hours(times_us[:cut]).tolist() + parts.hours(times_us[cut:]).tolist() == expected
    assert expected == sorted(expected)
    assert set(expected) <= set((times_us // US_PER_HOUR).tolist())


@given(st.lists(st.sampled_from([0, 1, 2, 30, 31, 60, 900_000]), min_size=1, max_size=30))
def test_a_clock_is_the_same_event_by_event_and_in_columns(steps: list[int]) -> None:
    times_us = (START_HOUR + np.array(steps)) * US_PER_HOUR
    clock, state, expected = EventClock(), None, []
    for time_us in times_us.tolist():
        state = advanced(state, time_us)
        expected.append(state.stream_time_us // US_PER_HOUR)
    assert clock.hours(times_us).tolist() == expected
    assert clock.state == state


@pytest.mark.parametrize("options", [PacingOptions(0.0), PacingOptions(float("nan")), PacingOptions(10.0, 1.5)])
def test_a_budget_that_is_none_is_refused(options: PacingOptions) -> None:
    with pytest.raises(ModelError, match=r"budget|critical"):
        Pacing(options)


def test_memory_is_that_of_a_week_and_a_few_budgets() -> None:
    decision = stream(16, 2_000, seed=4)
    pacing = Pacing(PacingOptions(2.0))
    pacing.add(rows_of(decision, 0.5))
    assert len(pacing._reaches) <= HOURS + 1
    assert max(len(item.columns()[0]) for item in pacing._reaches.values()) <= 2 * 2 + 64
    cases = pacing._partitions[0]._cases
    assert len(cases) < 0.5 * len(
        {case for case, score in zip(decision.case, decision.score, strict=True) if score >= 0.02}
    )
