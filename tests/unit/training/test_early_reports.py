"""Reporting delays, and the targets of a training that takes reported frauds at once."""

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.learning.labels import NO_LABEL, source_rank
from pipeline.learning.regimes import NEVER_US, LabelRegime
from pipeline.learning.report_delays import FALLBACK, LEAST_REPORTS, ReportDelays, described_by_source
from pipeline.training.early_reports import LARGEST_WEIGHT, EarlyReports, Targets
from schemas.times import US_PER_DAY

NOW_US = 100 * US_PER_DAY
SPREAD = LabelRegime(reported="frauds-only", delay_days=5.0, delay_spread=1.0, never_reported=0.1)


def days(*values: float) -> NDArray[np.int64]:
    return np.array([round(value * US_PER_DAY) for value in values], np.int64)


def targets_at(
    times: NDArray[np.int64], reported: NDArray[np.int64], p: NDArray[np.float64], delays: ReportDelays
) -> Targets:
    return EarlyReports(NOW_US, delays).targets(times, reported, lambda rows: p[rows])


def test_mature_rows_and_young_ones_weigh_as_defined() -> None:
    times = NOW_US - days(40, 40, 10, 10, 1, 1, -1)
    delays_us = days(3, 0, 6, 0, 0.5, 0, 0.5)
    reported = np.where(delays_us > 0, times + delays_us, NEVER_US)
    p = np.array([0.2, 0.9, 0.3, 0.3, 0.1, 0.8, 0.5])
    delays = ReportDelays(SPREAD)
    found = targets_at(times, reported, p, delays)
    assert found.rows.tolist() == [0, 1, 2, 3, 4, 5]
    assert found.fraud.tolist() == [True, False, True, False, True, False]
    # The share of the reports by an age does not hold what is never reported.
    ten, item = (float(SPREAD.share_reported(np.array([age]))[0]) / 0.9 for age in (10.0, 1.0))
    assert 1 / item > LARGEST_WEIGHT > 1 / ten
    expected = [1, 1, 1 / ten, 1 - 0.3 * (1 - ten) / (1 - 0.3 * ten), 5, 1 - 0.8 * (1 - item) / (1 - 0.8 * item)]
    np.testing.assert_allclose(found.weight, expected, rtol=1e-12)


def test_young_rows_weigh_together_what_they_turn_out_to_be() -> None:
    random = np.random.default_rng(1)
    n = 200_000
    p = random.choice([0.02, 0.4, 0.9], n)
    fraud = random.random(n) < p
    times = NOW_US - random.integers(3 * US_PER_DAY, 17 * US_PER_DAY, n)
    regime = LabelRegime(reported="frauds-only", delay_days=5.0, delay_spread=1.0)
    known = regime.known_at_us(times, fraud, random.integers(0, 2**63, n).astype(np.uint64))
    found = targets_at(times, known, p, ReportDelays(regime))
    for level in (0.02, 0.4, 0.9):
        source = p[found.rows] == level
        weight, taken = found.weight[source], found.fraud[source]
        assert weight[taken].sum() / weight.sum() == pytest.approx(level, rel=0.03)
        assert weight.sum() == pytest.approx((p == level).sum(), rel=0.03)


def test_one_delay_leaves_mature_rows_alone() -> None:
    random = np.random.default_rng(2)
    times = np.sort(random.integers(80 * US_PER_DAY, NOW_US + 1, 1_000))
    fraud = random.random(1_000) < 0.1
    regime = LabelRegime(reported="frauds-only", delay_days=7.0, never_reported=0.2)
    known = regime.known_at_us(times, fraud, np.arange(1_000, dtype=np.uint64))
    found = targets_at(times, known, np.full(1_000, 0.5), ReportDelays(regime))
    assert found.rows.tolist() == np.flatnonzero(times <= NOW_US - 7 * US_PER_DAY).tolist()
    assert (found.weight == 1).all()
    np.testing.assert_array_equal(found.fraud, known[found.rows] < NEVER_US)


def test_what_is_reported_later_is_not_known() -> None:
    times = NOW_US - days(40, 5)
    reported = times + days(41, 6)
    assert not targets_at(times, reported, np.full(2, 0.5), ReportDelays(SPREAD)).fraud.any()


def test_delays_are_estimated_from_old_cohorts_alone() -> None:
    random = np.random.default_rng(3)
    n = 4_000
    times = random.integers(0, NOW_US, n)
    regime = LabelRegime(reported="frauds-only", delay_days=3.0, delay_spread=0.5, never_reported=0.3)
    known = regime.known_at_us(times, np.ones(n, bool), random.integers(0, 2**63, n).astype(np.uint64))
    found = ReportDelays.estimated(times, known, NOW_US)
    assert found.is_estimated
    assert found.maturity_us / US_PER_DAY == pytest.approx(regime.maturity_days, rel=0.05)
    ages = days(1, 3, 5, 20)
    declared = ReportDelays(regime)
    np.testing.assert_allclose(found.share_reported(ages), declared.share_reported(ages), atol=0.03)
    # A wave of young frauds that were reported at once changes nothing, and neither does what is to come.
    young = np.r_[times, np.full(9_000, NOW_US - 59 * US_PER_DAY)]
    again = ReportDelays.estimated(young, np.r_[known, young[n:]], NOW_US)
    assert again.observed_us.tolist() == found.observed_us.tolist()
    later = np.where(known > NOW_US, NEVER_US, known)
    assert ReportDelays.estimated(times, later, NOW_US).observed_us.tolist() == found.observed_us.tolist()


def test_too_few_reports_leave_one_long_delay() -> None:
    times = np.zeros(LEAST_REPORTS, np.int64)
    reported = times + US_PER_DAY
    assert ReportDelays.estimated(times, reported, NOW_US).maturity_us == US_PER_DAY
    few = ReportDelays.estimated(times[1:], reported[1:], NOW_US)
    assert not few.is_estimated
    assert few.regime == FALLBACK
    assert few.share_reported(days(29, 30)).tolist() == [0.0, 1.0]
    declared = ReportDelays.estimated(times[1:], reported[1:], NOW_US, fallback=SPREAD)
    assert declared.maturity_us == ReportDelays(SPREAD).maturity_us


def test_delays_are_described_by_the_source_that_reported_first() -> None:
    customer, issuer, rare = (source_rank(name) for name in ("customer", "issuer", "somebody"))
    times = np.full(400, NOW_US - 80 * US_PER_DAY)
    by = np.repeat([customer, issuer, rare, NO_LABEL], [100, 200, 10, 90]).astype(np.int8)
    delays = np.r_[np.linspace(0.1, 10.0, 100), np.linspace(0.2, 40.0, 200), np.full(10, 1.0), np.zeros(90)]
    reported = np.where(by == NO_LABEL, NEVER_US, times + days(*delays))
    # Too young to say how long reports take.
    times[99], reported[99] = NOW_US - 2 * US_PER_DAY, NOW_US - US_PER_DAY
    found = described_by_source(times, reported, by, NOW_US)
    assert list(found) == ["all", "issuer", "customer"]
    assert found["customer"] == {"reports": 99, "half_days": pytest.approx(5.0), "nine_tenths_days": pytest.approx(9.0)}
    assert found["issuer"]["reports"] == 200
    assert found["issuer"]["nine_tenths_days"] == pytest.approx(36.0)
    assert found["all"]["reports"] == 309
