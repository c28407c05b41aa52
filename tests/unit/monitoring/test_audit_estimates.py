"""Bounds from an audit: they hold the truth in simulations, and say when little is known."""

import math

import numpy as np
import pytest
from scipy.stats import binom

from pipeline.learning.regimes import NEVER_US
from pipeline.monitoring import audit_estimate as audit_module
from pipeline.monitoring.audit_estimate import BY_AUDIT, BY_SCORE_OR_RULE, NOT_SELECTED, AuditReport, AuditRows, assess
from pipeline.monitoring.outcomes import Outcomes
from schemas.times import US_PER_DAY

DAYS = 60
NOW_US = DAYS * US_PER_DAY
SIMULATIONS = 200


def world(seed: int, never: float = 0.3, answers: float = 0.8) -> tuple[AuditRows, dict[str, float]]:
    """Frauds of 60 days, half of them alerted; a slice of the others is audited, in two strata.

    Returns:
        What was selected or reported, and the true numbers.
    """
    random = np.random.default_rng(seed)
    n = 1_500
    time_us = random.integers(0, NOW_US, n)
    fraud = random.random(n) < 0.5
    alert = fraud & (random.random(n) < 0.5)
    probability = np.where(random.random(n) < 0.3, 0.2, 0.05)
    audited = ~alert & (random.random(n) < probability)
    delay_days = random.lognormal(np.log(5), 0.6, n)
    reported = np.where(
        fraud & (random.random(n) >= never), time_us + (delay_days * US_PER_DAY).astype(np.int64), NEVER_US
    )
    answered = alert | (audited & (random.random(n) < answers))
    known = np.where(reported <= NOW_US, reported, NEVER_US)
    rows = AuditRows(
        time_us,
        np.where(alert, BY_SCORE_OR_RULE, np.where(audited, BY_AUDIT, NOT_SELECTED)).astype(np.int8),
        np.where(alert, 1.0, probability),
        answered,
        fraud & (answered | (known < NEVER_US)),
        known,
    )
    age_days = (NOW_US - time_us) / US_PER_DAY
    usable, mature = age_days >= 7, age_days >= 30
    missed = fraud & ~alert & usable
    late = missed & (reported > NOW_US)
    silent = missed & mature & (reported > NOW_US)
    truth = {
        "unreported": late.sum(),
        "never_reported": silent.sum(),
        "never_reported_share": silent.sum() / (missed & mature).sum(),
        "recall": (alert & usable).sum() / ((alert & usable).sum() + missed.sum()),
        "missed_in_time": (missed & (reported - time_us <= 30 * US_PER_DAY)).sum(),
    }
    return rows, {name: float(value) for name, value in truth.items()}


def intervals(report: AuditReport) -> dict[str, tuple[float, float]]:
    return {
        "unreported": report.unreported.frauds,
        "never_reported": report.never_reported.frauds,
        "never_reported_share": report.never_reported_share,
        "recall": report.recall,
        "missed_in_time": report.missed_in_time,
    }


@pytest.mark.parametrize(("never", "answers"), [(0.3, 0.8), (0.02, 1.0)])
def test_intervals_hold_the_truth_in_93_of_100_simulations(never: float, answers: float) -> None:
    held = dict.fromkeys(intervals(assess(world(0)[0], NOW_US)), 0)
    for seed in range(SIMULATIONS):
        rows, truth = world(seed, never, answers)
        for name, (low, high) in intervals(assess(rows, NOW_US)).items():
            held[name] += low <= truth[name] <= high
    assert min(held.values()) >= 0.93 * SIMULATIONS, held


def test_intervals_are_no_wider_than_they_must_be() -> None:
    """With a tenth audited, never reported is known within a factor; more audits give less width."""
    report = assess(world(1)[0], NOW_US)
    low, high = report.never_reported_share
    assert 0.0 < low < 0.35 < high < 0.9
    low, high = report.recall_of_reported
    assert high - low < 0.15


def test_what_was_not_audited_is_unknown() -> None:
    rows, _ = world(2)
    report = assess(rows.take(rows.selection != BY_AUDIT), NOW_US)
    assert report.never_reported.audited == 0
    assert report.never_reported.frauds == (0.0, math.inf)
    assert report.never_reported_share == (0.0, 1.0)
    assert report.recall[0] == 0.0
    assert report.recall_of_reported[0] > 0.5


def test_where_nothing_was_found_there_is_only_a_most() -> None:
    rows, _ = world(3, never=0.0, answers=1.0)
    mature = rows.take(rows.event_time_us < NOW_US - 50 * US_PER_DAY)
    report = assess(mature, NOW_US)
    assert report.never_reported.found == 0
    assert report.never_reported.frauds.low == 0.0
    assert 0 < report.never_reported.frauds.high < math.inf


def test_nothing_at_all_is_no_error() -> None:
    report = assess(Outcomes().rows(0), NOW_US)
    assert (report.alerted, report.missed, report.recall_of_reported) == (0, 0, (0.0, 0.0))


@pytest.mark.parametrize("found", [0, 1, 3, 20])
@pytest.mark.parametrize("probability", [0.9, 0.3, 0.01, 0.0005])
def test_bounds_invert_the_binomial_distribution(found: int, probability: float) -> None:
    error = 0.025
    most = audit_module._most(found, probability, error)
    assert binom.cdf(found, most, probability) > error >= binom.cdf(found, most + 1, probability)
    fewest = audit_module._fewest(found, probability, error)
    assert binom.sf(found - 1, fewest, probability) > error
    assert fewest == found or binom.sf(found - 1, fewest - 1, probability) <= error


def test_a_report_is_what_somebody_else_says_and_an_answer_what_an_analyst_says() -> None:
    outcomes = Outcomes()
    key = [("c", f"t{number}") for number in range(6)]
    outcomes.add_label(key[0], "fraud", "customer", 20, 25)
    outcomes.add_label(key[0], "fraud", "issuer", 10, 15)
    outcomes.add_label(key[1], "fraud", "audit", 10, 10)
    outcomes.add_label(key[2], "fraud", "customer", 10, 10)
    outcomes.add_label(key[2], "legitimate", "analyst", 11, 11)
    outcomes.add_label(key[3], "fraud", "rule", 10, 10)
    outcomes.add_label(key[4], "unknown", "analyst", 10, 10)
    for number, selection in enumerate((None, "audit", "score", "rule", "audit", None)):
        outcomes.add_decision(key[number], number, selection, 0.1 if number else 0.0)
    rows = outcomes.rows(0)
    assert rows.event_time_us.tolist() == [0, 1, 2, 3, 4]
    assert rows.selection.tolist() == [NOT_SELECTED, BY_AUDIT, BY_SCORE_OR_RULE, BY_SCORE_OR_RULE, BY_AUDIT]
    assert rows.fraud.tolist() == [True, True, False, False, False]
    assert rows.answered.tolist() == [False, True, True, False, False]
    assert rows.reported_us.tolist() == [15, NEVER_US, 10, NEVER_US, NEVER_US]
    assert outcomes.first_audit_us == 1
    assert outcomes.decisions(0) == (6, 1)
    assert len(outcomes.rows(3).fraud) == 2


def test_audits_without_an_answer_widen_the_bounds_as_fewer_audits_would() -> None:
    n = 400
    time_us = np.zeros(n, np.int64)
    selection, known = np.full(n, BY_AUDIT, np.int8), np.full(n, NEVER_US)
    fraud, answered = np.arange(n) % 20 == 0, np.arange(n) % 40 < 20
    half = AuditRows(time_us, selection, np.full(n, 0.2), answered, fraud & answered, known)
    lower = AuditRows(time_us, selection, np.full(n, 0.1), np.ones(n, bool), fraud & answered, known)
    assert assess(half, NOW_US).never_reported.frauds == assess(lower, NOW_US).never_reported.frauds
    silent = half._replace(answered=np.zeros(n, bool), fraud=np.zeros(n, bool))
    assert assess(silent, NOW_US).never_reported.frauds == (0.0, math.inf)
