"""The guard after a change of versions: does the new version do harm that the one before would not have done?

The version before scores in the shadow what the new one serves. The comparison is looked at every day, so that it rests
on a confidence sequence.
"""

import logging
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.decision.budget import case_numbers, first_alerts
from pipeline.decision.policy import Policy
from pipeline.models.version_history import CHAIN_DAYS, ROLLBACK, Tenure
from pipeline.retraining.cluster_reader import ClusterLog
from pipeline.retraining.gate import rescored
from pipeline.retraining.paired import Scorings, confidence_sequence, paired_days
from pipeline.scoring.lightgbm_model import LightGBMModel
from pipeline.training.served import ServedRows
from schemas.times import MS_PER_DAY, US_PER_DAY

log = logging.getLogger(__name__)

_VOLUME_US: Final = 2 * US_PER_DAY
"""Newest event time in which cases are counted."""

MOST_ALIKE: Final = 1.25
"""Times the cases of the version before that a version may raise, whatever the budget is."""
MOST_BUDGETS: Final = 2.0
"""Times the daily budget that a version's cases within 24 hours may reach."""
LEVEL: Final = 0.975
"""Confidence of one comparison; two run at a time, so that false rollbacks keep to 5 % together."""


class GuardDecision(NamedTuple):
    """The guard's judgement of the versions that serve."""

    harm: bool
    reason: str
    """Sentence for people; empty without harm."""
    figures: dict[str, Any]
    """The measurements, as JSON has them."""


def finds_less(rows: Scorings, alerts_per_day: float, today_us: int) -> GuardDecision:
    """Return whether it is proven that the served scores (the candidate) find fewer frauds than the shadow's.

    As many cards a day are compared as the budget has alerts. The day of the newest event time, ``today_us``, is not
    over, and takes no part.
    """
    today = today_us // US_PER_DAY
    over = rows.event_time_us < today * US_PER_DAY
    of_days = Scorings._make(column[over] for column in rows)
    days = paired_days(of_days, max(round(alerts_per_day), 1), by_report=True)
    difference = days.difference[days.day < today]
    if not len(difference):
        return GuardDecision(False, "", {"report_days": 0})
    low, high = confidence_sequence(difference, LEVEL)
    figures: dict[str, Any] = {
        "report_days": len(difference),
        "frauds_a_day_more": float(difference.mean()),
        "frauds_a_day_more_low": float(low[-1]) if np.isfinite(low[-1]) else None,
        "frauds_a_day_more_high": float(high[-1]) if np.isfinite(high[-1]) else None,
        "level": LEVEL,
    }
    # The bounds of all looks hold together: one that was below 0 stays so.
    if float(high.min()) >= 0.0:
        return GuardDecision(False, "", figures)
    return GuardDecision(
        True,
        f"it finds {difference.mean():+.2f} frauds a day against the version before, on {len(difference)} days with "
        "reports, which is proven to be fewer",
        figures,
    )


def raises_too_much(
    score: NDArray[np.float64],
    shadow: NDArray[np.float64],
    thresholds: tuple[float, float],
    case: NDArray[np.int64],
    event_time_us: NDArray[np.int64],
    alerts_per_day: float,
) -> GuardDecision:
    """Return whether the new version raised more than `MOST_BUDGETS` budgets of cases within 24 hours.

    It is no harm of the version's where the one before, whose scores are ``shadow``, would have raised nearly as many.
    Of a case's alerts the first one counts. Thresholds are those of the new policy and of the one before; arrays have
    shape (n,), in the order of event time.
    """
    alerts = event_time_us[first_alerts(case, score >= thresholds[0])]
    firsts = np.searchsorted(alerts, alerts - US_PER_DAY, side="right")
    within = np.arange(1, len(alerts) + 1) - firsts
    most = int(within.max(initial=0))
    figures: dict[str, Any] = {"most_alerts_in_24_hours": most, "alerts_per_day_budget": alerts_per_day}
    if most <= MOST_BUDGETS * alerts_per_day:
        return GuardDecision(False, "", figures)
    at = int(np.argmax(within))
    end_us = int(alerts[at])
    shadowed = event_time_us[first_alerts(case, shadow >= thresholds[1])]
    before = int(np.count_nonzero((shadowed > end_us - US_PER_DAY) & (shadowed <= end_us)))
    figures["alerts_of_the_version_before"] = before
    if MOST_ALIKE * before >= most:
        return GuardDecision(False, "", figures)
    return GuardDecision(
        True,
        f"it raised {most} cases within 24 hours for a budget of {alerts_per_day:g} a day, where the version before "
        f"would have raised {before}",
        figures,
    )


def harm_done(
    topics: ClusterLog, policy: Policy, tenures: Sequence[Tenure], alerts_per_day: float, *, whole: bool
) -> tuple[GuardDecision, Tenure] | None:
    """Return why the active version is to be rolled back, and to which; None without proven harm.

    The active version is compared with the one before it, and the chain of renewals of the last `CHAIN_DAYS` with the
    version before the chain: labels may take longer than a version is active. Nothing before a rollback is looked at.

    Args:
        topics: What was served and is known, and the versions before.
        policy: The active one.
        tenures: Versions in the order of their activation, the active one last.
        alerts_per_day: The budget.
        whole: Compare frauds too, and not only numbers of alerts.
    """
    start = max((n for n, tenure in enumerate(tenures) if tenure.step == ROLLBACK), default=0)
    last, served = len(tenures) - 1, topics.served
    if last <= start or served.stream_time_us is None:
        return None
    decision = _volume(served.newest(served.stream_time_us - _VOLUME_US), topics, policy, tenures[-2:], alerts_per_day)
    if decision.harm:
        return decision, tenures[last - 1]
    if not whole:
        return None
    rows = served.rows()
    oldest_ms = int(rows.decided_ms.max()) - CHAIN_DAYS * MS_PER_DAY
    first = next((n for n in range(start + 1, last) if tenures[n].activated_ms >= oldest_ms), last)
    for number in dict.fromkeys((last, first)):
        before = tenures[number - 1]
        since = rows.take(_served_since(rows, tenures[number:]))
        model = topics.model(before)
        if model is None or not len(since):
            continue
        scorings = Scorings(since.score, _shadow(since, model), since.event_time_us, since.card, since.reported_us)
        decision = finds_less(scorings, alerts_per_day, served.stream_time_us)
        log.info("what is active against version %s in the shadow: %s", before.lightgbm.version, decision.figures)
        if decision.harm:
            return decision, before
    return None


def _volume(
    rows: ServedRows, topics: ClusterLog, policy: Policy, tenures: Sequence[Tenure], alerts_per_day: float
) -> GuardDecision:
    """Count the cases of the second of two versions."""
    before, tenure = tenures
    if tenure.given is not None and policy.digest != tenure.given.digest:
        # Paced since, or set by a person: how many alerts there are is not the version's doing.
        return GuardDecision(False, "", {})
    rows = rows.take(_served_since(rows, [tenure]))
    model, policy_before = topics.model(before), topics.policy(before)
    if model is None or policy_before is None or not len(rows):
        return GuardDecision(False, "", {})
    thresholds = (policy.threshold, policy_before.threshold)
    case = case_numbers(rows.card, rows.event_time_us)
    return raises_too_much(rows.score, _shadow(rows, model), thresholds, case, rows.event_time_us, alerts_per_day)


def _shadow(rows: ServedRows, model: LightGBMModel) -> NDArray[np.float64]:
    """Return the scores that another version would have given."""
    return rescored(model.logit(rows.features), rows.logit, rows.score)


def _served_since(rows: ServedRows, tenures: Sequence[Tenure]) -> NDArray[np.bool_]:
    """Return which rows some versions served since the first of them was activated."""
    by = np.zeros(len(rows), np.bool_)
    for version in {tenure.lightgbm.version for tenure in tenures}:
        by |= rows.served_by(version)
    return by & (rows.decided_ms >= tenures[0].activated_ms)
