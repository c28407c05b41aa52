"""The gate lets a routine renewal through and stops harm; the guard finds harm after the fact."""

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.learning.regimes import NEVER_US
from pipeline.retraining.gate import GateLimits, judge, rescored
from pipeline.retraining.guard import finds_less, raises_too_much
from pipeline.retraining.paired import Scorings
from pipeline.scoring.blend import sigmoid
from schemas.times import US_PER_DAY

LIMITS = GateLimits(alerts_per_day=20.0)
DAYS = 14


def scorings(seed: int, noise: float = 0.1, days: int = DAYS, rows_a_day: int = 1_500) -> Scorings:
    """Two calibrated scorings of the same truth, each with errors of its own."""
    random = np.random.default_rng(seed)
    n = days * rows_a_day
    logit = random.normal(-6.5, 2.0, n)
    fraud = random.random(n) < sigmoid(logit)
    event_time_us = np.sort(random.integers(0, days * US_PER_DAY, n))
    return Scorings(
        sigmoid(logit + random.normal(0, noise, n)),
        sigmoid(logit + random.normal(0, noise, n)),
        event_time_us,
        random.integers(0, 2_000, n),
        np.where(fraud, event_time_us + 2 * US_PER_DAY, NEVER_US),
    )


def amounts(rows: int = DAYS * 1_500) -> NDArray[np.float64]:
    return np.random.default_rng(7).lognormal(3, 1, rows)


def test_an_equal_challenger_passes_in_nine_cases_of_ten() -> None:
    compared = [judge(scorings(seed), amounts(), LIMITS) for seed in range(20)]
    assert sum(item.accepted for item in compared) >= 18, [item.reason for item in compared if not item.accepted]
    assert compared[0].figures["compared_days"] == DAYS
    assert compared[0].figures["margin"] == pytest.approx(0.2**0.5)


@pytest.mark.parametrize("harm", ["shuffled", "inverted", "overconfident", "narrow"])
def test_a_bad_challenger_is_rejected_with_its_figures(harm: str) -> None:
    expected = {"overconfident": "calibration error", "narrow": "cases a day for a budget"}.get(harm, "frauds a day")
    for seed in range(5):
        rows = scorings(seed)
        score = rows.candidate
        late = rows.event_time_us >= DAYS // 2 * US_PER_DAY
        bad = {
            "shuffled": np.random.default_rng(seed).permutation(score),
            "inverted": 1.0 - score,
            "overconfident": sigmoid(2.0 * np.log(score / (1 - score)) + 6.0),
            # Its scores of the later days are all higher: a threshold does not hold.
            "narrow": np.where(late, sigmoid(np.log(score / (1 - score)) + 1.0), score),
        }[harm]
        found = judge(rows._replace(candidate=bad), amounts(), LIMITS)
        assert not found.accepted
        assert expected in found.reason


def test_frauds_that_are_expected_among_small_amounts_alone_are_a_fault() -> None:
    """As after an import that called a third of them fraud: the highest scores stay as they are."""
    rows, amount = scorings(1), amounts()
    small = amount < np.quantile(amount, 0.25)
    imported = np.where(small, np.maximum(rows.candidate, 0.05), rows.candidate)
    found = judge(rows._replace(candidate=imported), amount, LIMITS)
    assert not found.accepted
    assert "of amounts from" in found.reason
    assert found.reason.count("; ") == 0, found.reason
    # Where the version that serves expects the same, it is nothing that the challenger changes.
    assert judge(rows._replace(candidate=imported, reference=imported), amount, LIMITS).accepted


def test_a_new_recipe_must_find_more() -> None:
    superior = LIMITS._replace(superior=True)
    equal = judge(scorings(1), amounts(), superior)
    assert not equal.accepted
    assert "not proven to find more" in equal.reason
    rows = scorings(1, noise=2.0)
    truth = scorings(1, noise=0.0)
    assert judge(rows._replace(candidate=truth.candidate), amounts(), superior).accepted


def test_alerts_that_change_with_the_traffic_are_no_fault() -> None:
    rows = scorings(1)
    late = rows.event_time_us >= DAYS // 2 * US_PER_DAY
    kept = np.flatnonzero(late | (np.arange(len(late)) % 3 == 0))
    busier = Scorings(*(column[kept] for column in rows))
    found = judge(busier, amounts(len(busier.card)), LIMITS)
    assert found.figures["alerts_per_day"] > 1.5 * LIMITS.alerts_per_day
    assert found.accepted, found.reason


def test_the_gate_wants_days_and_frauds() -> None:
    rows = scorings(1, days=1)
    with pytest.raises(ValueError, match="hold 1 days"):
        judge(rows, amounts(1_500), LIMITS)
    with pytest.raises(ValueError, match="0 frauds"):
        judge(scorings(1)._replace(reported_us=np.full(DAYS * 1_500, NEVER_US)), amounts(), LIMITS)


def test_another_version_is_scored_with_what_the_online_model_added() -> None:
    logit, other, added = np.array([-4.0, 2.0, 0.0]), np.array([-3.0, 0.5, 0.1]), np.array([0.4, -1.0, 0.0])
    np.testing.assert_allclose(rescored(other, logit, sigmoid(logit + added)), sigmoid(other + added))
    assert np.isfinite(rescored(other, logit, np.array([0.0, 1.0, 0.5]))).all()


def test_the_guard_finds_a_bad_version_by_the_reports_and_no_equal_one() -> None:
    rows = scorings(1, days=28)
    now_us = int(rows.event_time_us[-1])
    bad = finds_less(rows._replace(candidate=1.0 - rows.candidate), 20.0, now_us)
    assert bad.harm
    assert "proven to be fewer" in bad.reason
    assert bad.figures["frauds_a_day_more_high"] < 0
    # Looked at again and again, it never finds harm in an equal one.
    for seed in range(6):
        rows = scorings(seed, days=20)
        looks = [finds_less(rows, 20.0, day * US_PER_DAY) for day in range(1, 21, 3)]
        assert not any(look.harm for look in looks)
    # The day that is not over takes no part, nor a report of it.
    assert finds_less(rows._replace(candidate=1.0 - rows.candidate), 20.0, 3 * US_PER_DAY - 1).figures == {
        "report_days": 0
    }


def test_alerts_beyond_two_budgets_are_harm_at_once_unless_the_version_before_raised_them_too() -> None:
    time_us = np.arange(60) * (US_PER_DAY // 20)
    score = np.where(np.arange(60) < 40, 0.1, 0.9)
    quiet = np.full(60, 0.1)
    case = np.arange(60)
    assert not raises_too_much(score, quiet, (0.5, 0.5), case, time_us, 10.0).harm
    found = raises_too_much(score, quiet, (0.5, 0.5), case, time_us, 9.0)
    assert found.harm
    assert found.figures == {
        "most_alerts_in_24_hours": 20,
        "alerts_per_day_budget": 9.0,
        "alerts_of_the_version_before": 0,
    }
    assert not raises_too_much(score, score, (0.5, 0.5), case, time_us, 9.0).harm
    # Spread over days they are no burst.
    assert not raises_too_much(score, quiet, (0.5, 0.5), case, 10 * time_us, 9.0).harm
    # Two alerts of a case are one case, of the version before too.
    assert not raises_too_much(score, quiet, (0.5, 0.5), case // 2, time_us, 5.0).harm
    assert raises_too_much(score, score, (0.5, 0.5), case // 2, time_us, 4.0).figures == {
        "most_alerts_in_24_hours": 10,
        "alerts_per_day_budget": 4.0,
        "alerts_of_the_version_before": 10,
    }
