"""The alert budget controller: it sets the threshold anew each hour of event time, so that alerts keep to a budget.

The unit is the case: of a case's alerts (``docs/decisions/0009-cases.md``) the first one counts, whatever raised it.
"""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from math import exp, log
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from pipeline.decision.budget import LOWEST_THRESHOLD
from pipeline.decision.case_scores import CaseScores, HourScores, ThresholdRange, quantile, reaching, signed
from pipeline.decision.policy import LARGEST_THRESHOLD
from pipeline.learning.event_clock import EventClock, newest_of
from pipeline.scoring.errors import ModelError
from schemas.times import US_PER_HOUR

HOURS: Final = 168
"""Hours of scores and alerts that a threshold is set by."""
HOURS_OF_DAY: Final = 24
STEADY_HOURS: Final = 48
"""Hours of scores from which on the newest day is compared with those before."""
LARGEST_CORRECTION: Final = 0.3
"""Share of the budget by which a day may make up for others."""
CORRECTION_DAYS: Final = 1.5
"""A deficit of so many budgets moves the rate by one budget."""
MEMORY_DAYS: Final = 3.5
"""A day's deficit weighs e times less so much later. With equal weights a busy day comes back every week."""
SHIFT: Final = 0.3
"""Share of the budget by which the newest day must differ, to count half."""
SHIFT_DEVIATIONS: Final = 3.0
"""Standard deviations of a Poisson count that it must differ by besides: small budgets vary more."""
BRAKE: Final = 1.25
"""Budgets in a day, behind which the brake is on."""
BRAKED_SHARE: Final = 0.25
"""Share of the rate that passes then."""
LEAST_CHANGE: Final = 0.05
"""Change of a threshold's log-odds that is worth a new policy version."""
_MOST_EXTREME: Final = 1e-9


class PacingOptions(NamedTuple):
    """Options of the controller."""

    alerts_per_day: float
    """The budget: first alerts of cases."""
    critical: float | None = None
    """Scores from here on alert whatever the budget says; None: no score does."""

    def refuse_unusable(self) -> None:
        """Raise `ModelError` where options make no sense."""
        if not 0 < self.alerts_per_day < float("inf"):
            raise ModelError(f"a budget is a number of alerts a day, more than none, not {self.alerts_per_day}")
        if self.critical is not None and not LOWEST_THRESHOLD <= self.critical <= 1:
            raise ModelError(f"a critical score lies between {LOWEST_THRESHOLD} and 1, not {self.critical}")

    def at_most_critical(self, threshold: float) -> float:
        """Return the threshold, or the critical score where that is lower."""
        return threshold if self.critical is None else min(threshold, self.critical)


class ScoredRows(NamedTuple):
    """n decisions of one partition, in the order of its log."""

    event_time_us: NDArray[np.int64]
    """Shape (n,)."""
    score: NDArray[np.float64]
    """Shape (n,)."""
    alert: NDArray[np.bool_]
    """True for alerts; shape (n,)."""
    case: Sequence[Hashable]
    """Names the case of each; only those of rows in `worth_noting` are read."""
    comparable: NDArray[np.bool_] | None = None
    """True for scores of the LightGBM version that scores now; shape (n,). None: it gave all."""


class Pace(NamedTuple):
    """A threshold, and what it was decided by."""

    hour: int
    """Event hour since 1970 that the threshold is for."""
    threshold: float
    figures: dict[str, Any]
    """``alerts_per_day`` is the budget, ``rate`` the alerts a day that the threshold was set for."""


def worth_noting(score: NDArray[np.float64], alert: NDArray[np.bool_]) -> NDArray[np.intp]:
    """Return the rows that the controller looks at one by one; the others are counted by their times alone."""
    rows: NDArray[np.intp] = np.flatnonzero((score >= LOWEST_THRESHOLD) | alert)
    return rows


def is_news(threshold: float, pace: Pace, since_hour: int | None) -> bool:
    """Return whether a new policy version is worth a record: the threshold has moved, or a day has passed.

    Args:
        threshold: The threshold of the active policy.
        pace: What the controller decided.
        since_hour: Event hour of the last version that it was worth; None where there was none.
    """
    if pace.figures["cold"]:
        # Nothing but a critical score changes it.
        return pace.threshold != threshold
    moved = abs(log(_odds(pace.threshold)) - log(_odds(threshold))) > LEAST_CHANGE
    return moved or since_hour is None or pace.hour - since_hour >= HOURS_OF_DAY


def recent_scores(metadata: Mapping[str, Any]) -> list[tuple[int, float]]:
    """Return the scores that a policy's metadata has of the days before its LightGBM version became active.

    Args:
        metadata: May hold ``recent_scores``: pairs of an event hour since 1970 and a score.

    Returns:
        The pairs; none where there is nothing, or something else.

    >>> recent_scores({"recent_scores": [[480000, 0.31]]}), recent_scores({"recent_scores": "none"})
    ([(480000, 0.31)], [])
    """
    try:
        return msgspec.convert(metadata.get("recent_scores", []), list[tuple[int, float]])
    except msgspec.ValidationError:
        return []


def _odds(threshold: float) -> float:
    within = min(max(threshold, _MOST_EXTREME), 1.0 - _MOST_EXTREME)
    return within / (1.0 - within)


class Pacing:
    """The controller: a function of decisions and their event times, without a clock of its own.

    What it decides depends neither on how decisions are cut into batches nor on their order within an hour. It keeps,
    for each of the last 168 hours, at most two budgets and 64 of the largest scores, and a number of alerts.

    Args:
        options: The budget.

    Raises:
        ModelError: Options make no sense.
    """

    def __init__(self, options: PacingOptions) -> None:
        options.refuse_unusable()
        self._options = options
        self._most = int(2 * options.alerts_per_day) + 64
        self._partitions: dict[int, CaseScores] = {}
        self._clocks: dict[int, EventClock] = {}
        self._reaches: dict[int, HourScores] = {}
        self._alerts: dict[int, int] = {}
        self._own: set[int] = set()
        """Event hours with scores of the version that scores now."""
        self._others: set[int] = set()
        """Event hours with scores of other versions."""
        self._first_seeded: int | None = None
        self._first_hour: int | None = None
        self._least_seeded, self._last_seeded = 0.0, 0

    @property
    def hour(self) -> int | None:
        """The newest event hour since 1970; None before the first decision."""
        stream_time_us = newest_of(self._clocks.values())
        return None if stream_time_us is None else stream_time_us // US_PER_HOUR

    @property
    def first_scored(self) -> int | None:
        """The event hour in which the version that scores now began to; None if it has not. See `_since`."""
        return self._since((self.hour or 0) + 1)

    def _since(self, hour: int) -> int | None:
        """Return where the newest run of hours begins that the version that scores now decided, before an hour.

        A run ends at an hour that another version alone decided, and at a day without decisions: what lies behind says
        nothing about the rate of its scores.
        """
        last = max((at for at in self._others - self._own if at < hour), default=-1)
        first, newer = None, hour
        for at in sorted((at for at in self._own if max(last, hour - HOURS - 1) < at < hour), reverse=True):
            if newer - at > HOURS_OF_DAY:
                break
            first = newer = at
        seeded = self._first_seeded if self._last_seeded >= hour - HOURS else None
        return seeded if first is None or (seeded is not None and seeded < first) else first

    def seed(self, recent: Iterable[tuple[int, float]], before: int | None = None) -> None:
        """Take in scores that the LightGBM version gave to hours before it decided.

        Only the highest are given. The threshold is therefore not below the lowest of them, while they count.

        Args:
            recent: Event hours since 1970, with a score.
            before: Hours from here on are left out; None: none are.
        """
        recent = list(recent)
        self._least_seeded = min((score for _, score in recent), default=0.0)
        for number, (hour, score) in enumerate(recent):
            if before is not None and hour >= before:
                continue
            self._first_seeded = hour if self._first_seeded is None else min(self._first_seeded, hour)
            self._last_seeded = max(self._last_seeded, hour)
            if score >= LOWEST_THRESHOLD:
                self._of_hour(hour).note(("seed", number), ThresholdRange(score, 0.0))

    def forget_scores(self) -> None:
        """Let go of all scores, since they mean nothing to the version that scores now; alerts stay counted."""
        self._reaches.clear()
        self._partitions = {partition: CaseScores() for partition in self._partitions}
        self._first_seeded = None
        self._own, self._others = set(), set()
        self._least_seeded, self._last_seeded = 0.0, 0

    def add(self, rows: ScoredRows, partition: int = 0) -> int:
        """Take in decisions of a partition, which follow on all that were taken in of it before.

        Returns:
            How many of their alerts are the first ones of their cases.
        """
        if not len(rows.event_time_us):
            return 0
        hours = self._clocks.setdefault(partition, EventClock()).hours(rows.event_time_us)
        comparable = np.ones(len(hours), np.bool_) if rows.comparable is None else rows.comparable
        first_hour = int(hours.min())
        self._first_hour = first_hour if self._first_hour is None else min(self._first_hour, first_hour)
        self._own.update(np.unique(hours[comparable]).tolist())
        self._others.update(np.unique(hours[~comparable]).tolist())
        cases, first_alerts = self._partitions.setdefault(partition, CaseScores()), 0
        for row in worth_noting(rows.score, rows.alert).tolist():
            case, hour = rows.case[row], int(hours[row])
            if rows.alert[row] and cases.alert(case, hour):
                self._alerts[hour] = self._alerts.get(hour, 0) + 1
                first_alerts += 1
            if comparable[row] and rows.score[row] >= LOWEST_THRESHOLD:
                reach = cases.score(case, hour, float(rows.score[row]))
                if reach.score > reach.before:
                    self._of_hour(hour).note((partition, case), reach)
        self._forget(self.hour or 0)
        return first_alerts

    def decide(self, threshold: float, hour: int | None = None) -> Pace:
        """Return the threshold for an hour, decided by the hours before it.

        Args:
            threshold: The one that holds; it stays until there is a day of scores.
            hour: Event hour since 1970, not older than the newest one; None: that one.
        """
        hour, budget = hour if hour is not None else self.hour or 0, self._options.alerts_per_day
        alerts = {at: count for at, count in self._alerts.items() if hour - HOURS <= at < hour}
        observed = min(hour - (hour if self._first_hour is None else self._first_hour), HOURS)
        since = self._since(hour)
        scored = min(hour - (hour if since is None else since), HOURS)
        today = sum(count for at, count in alerts.items() if at // HOURS_OF_DAY == hour // HOURS_OF_DAY)
        deficit = self._deficit(alerts, hour, observed)
        correction = max(-LARGEST_CORRECTION, min(deficit / (CORRECTION_DAYS * budget), LARGEST_CORRECTION))
        braked = today > BRAKE * budget
        rate = budget * (1.0 + correction) * (BRAKED_SHARE if braked else 1.0)
        figures: dict[str, Any] = {
            "alerts_per_day": budget,
            "hours": scored,
            "alerts_7d": sum(alerts.values()),
            "alerts_7d_hours": observed,
            "alerts_24h": sum(count for at, count in alerts.items() if at >= hour - HOURS_OF_DAY),
            "alerts_today": today,
            "correction": round(correction, 4),
            "braked": braked,
            "rate": round(rate, 3),
            "before": threshold,
        }
        if scored < HOURS_OF_DAY:
            return Pace(hour, self._options.at_most_critical(threshold), {**figures, "cold": True})
        found, shifted = self._threshold(hour, scored, rate)
        if self._last_seeded >= hour - HOURS and found <= self._least_seeded:
            # Below the lowest that was given nobody knows how many there were: the threshold that holds stays.
            found = min(self._least_seeded, threshold)
        found = self._options.at_most_critical(min(found, LARGEST_THRESHOLD))
        return Pace(hour, found, {**figures, "cold": False, "shifted": shifted})

    def _deficit(self, alerts: Mapping[int, int], hour: int, observed: int) -> float:
        """Alerts that are missing to the budget over the last seven days; an older day weighs less."""
        deficit = 0.0
        for day in range(HOURS // HOURS_OF_DAY):
            end = hour - HOURS_OF_DAY * day
            hours = min(max(observed - HOURS_OF_DAY * day, 0), HOURS_OF_DAY)
            found = sum(alerts.get(at, 0) for at in range(end - HOURS_OF_DAY, end))
            deficit += exp(-day / MEMORY_DAYS) * (self._options.alerts_per_day * hours / HOURS_OF_DAY - found)
        return deficit

    def _threshold(self, hour: int, scored: int, rate: float) -> tuple[float, bool]:
        """The threshold at which ``rate`` alerts a day are expected, and whether the newest day counts half."""
        old = [self._reaches[at] for at in sorted(self._reaches) if hour - scored <= at < hour - HOURS_OF_DAY]
        new = [self._reaches[at] for at in sorted(self._reaches) if hour - HOURS_OF_DAY <= at < hour]
        budget = self._options.alerts_per_day
        uniform = HOURS_OF_DAY / scored
        parts = (signed(old), signed(new))
        if scored < STEADY_HOURS:
            return quantile(parts, (uniform, uniform), rate), False
        usual = quantile(parts, (uniform, uniform), budget)
        days = (scored - HOURS_OF_DAY) / HOURS_OF_DAY
        before, newest = reaching(parts[0], usual) / days, reaching(parts[1], usual)
        shifted = abs(newest - before) > max(SHIFT * budget, SHIFT_DEVIATIONS * budget**0.5)
        weights = (0.5 / days, 0.5) if shifted else (uniform, uniform)
        return quantile(parts, weights, rate), shifted

    def _of_hour(self, hour: int) -> HourScores:
        if hour not in self._reaches:
            self._reaches[hour] = HourScores(self._most)
        return self._reaches[hour]

    def _forget(self, hour: int) -> None:
        """Let go of hours that no threshold will be decided by."""
        if len(self._own) + len(self._others) > 4 * HOURS:
            self._own, self._others = (
                {at for at in scores if at >= hour - HOURS} for scores in (self._own, self._others)
            )
        if len(self._reaches) > HOURS + 1 or len(self._alerts) > HOURS + 1:
            self._reaches = {at: reach for at, reach in self._reaches.items() if at >= hour - HOURS}
            self._alerts = {at: count for at, count in self._alerts.items() if at >= hour - HOURS}
