"""Thresholds, and budgets for which thresholds are chosen or paced: each makes a variant of every model."""

from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from typing import Final, NamedTuple

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.backtest.runner.arguments import Thresholds
from pipeline.decision.budget import case_threshold
from pipeline.decision.pacing import Pacing, PacingOptions, ScoredRows, is_news, recent_scores, worth_noting
from pipeline.decision.policy import Policy
from pipeline.engine.records.columns import name_keys
from pipeline.engine.scores.decisions import Decisions
from schemas.times import US_PER_DAY, US_PER_HOUR

BUDGET: Final = "alerts a day"
"""Parameter of a variant whose threshold was chosen for a budget."""


class AlertThreshold(NamedTuple):
    """The threshold of a variant; without one, its policy's."""

    threshold: float | None = None
    budget: float | None = None
    """Cases a day, for which one threshold is chosen before the range."""
    pace: PacingOptions | None = None
    """Budget for which the threshold is set anew each hour."""

    @property
    def suffix(self) -> str:
        """Return the part of a variant's name that tells it from others of its model.

        >>> AlertThreshold(threshold=0.5).suffix, AlertThreshold(budget=20.0).suffix, AlertThreshold().suffix
        (' at 0.5', ' at 20 a day', '')
        >>> AlertThreshold(pace=PacingOptions(20.0)).suffix
        ' paced at 20 a day'
        """
        if self.threshold is not None:
            return f" at {_digits(self.threshold)}"
        if self.pace is not None:
            return f" paced at {_digits(self.pace.alerts_per_day)} a day"
        return "" if self.budget is None else f" at {_digits(self.budget)} a day"


def parsed_thresholds(asked: Thresholds) -> tuple[AlertThreshold, ...]:
    """Return the threshold of each variant of a model, of which there is at least one.

    Raises:
        ValueError: A number is named twice, or a critical score has no pace.
    """
    thresholds, budgets = tuple(asked.fixed), tuple(asked.budgets)
    pace, critical = asked.pace, asked.critical
    if critical is not None and pace is None:
        raise ValueError("a critical score belongs to a pace, whose budget it may exceed: add --pace")
    for kind, values in (("threshold", thresholds), ("budget", budgets)):
        if twice := [value for value, count in Counter(values).items() if count > 1]:
            raise ValueError(f"the {kind} {_digits(twice[0])} is named twice: name it once")
    named = (
        *(AlertThreshold(threshold=value) for value in thresholds),
        *(AlertThreshold(budget=value) for value in budgets),
        *(() if pace is None else (AlertThreshold(pace=PacingOptions(pace, critical)),)),
    )
    return named or (AlertThreshold(),)


def _digits(value: float) -> str:
    """Write a number as short as it can be told from every other one."""
    return text if float(text := f"{value:g}") == value else repr(float(value))


class Budget:
    """The alert budget of a variant: scores before the range choose the threshold that decides the range."""

    def __init__(self, alerts_per_day: float, from_us: int, days: float) -> None:
        """Begin without scores.

        Args:
            alerts_per_day: The budget.
            from_us: Begin of the range, in microseconds since 1970.
            days: Days before it whose scores choose the threshold.
        """
        self.alerts_per_day = alerts_per_day
        self._from_us = from_us
        self._first_us = from_us - round(days * US_PER_DAY)
        self._scores: list[NDArray[np.float64]] = []
        self._cases: list[NDArray[np.int64]] = []
        self.tied = 0
        """Cases with the highest score before the range, where already they are more than the budget allows."""
        self._seen_from_us: int | None = None
        self._policy: Policy | None = None

    @property
    def days(self) -> float:
        """Number of days before the range there were to choose on."""
        if self._seen_from_us is None:
            return 0.0
        return (self._from_us - max(self._seen_from_us, self._first_us)) / US_PER_DAY

    def decide(self, decisions: Decisions) -> Decisions:
        """``decisions``, those of the range by the threshold of the budget; they come in the order of event time.

        Raises ValueError where nothing precedes the range.
        """
        times_us = decisions.transactions.event_time_us
        if not len(times_us):
            return decisions
        if self._seen_from_us is None:
            self._seen_from_us = int(times_us[0])
        rows = np.flatnonzero((times_us >= self._first_us) & (times_us < self._from_us))
        self._scores.append(decisions.score[rows])
        cards = name_keys(pc.take(decisions.transactions.card_id, rows))[:, 0]
        self._cases.append(cards ^ decisions.case_start_us[rows])
        if times_us[-1] < self._from_us:
            return decisions
        if self._policy is None:
            self._policy = self._chosen(decisions.models.policy)
        return decisions.under_policy(self._policy)

    def _chosen(self, policy: Policy) -> Policy:
        score, case = np.concatenate(self._scores), np.concatenate(self._cases)
        if not len(score):
            raise ValueError(
                "the threshold for a budget of alerts is chosen on the days before the range, and there is no "
                "transaction: begin the range later (--from), or lengthen --warm-up"
            )
        self._scores, self._cases = [], []
        highest = len(np.unique(case[score == score.max()]))
        self.tied = highest if highest > self.alerts_per_day * self.days else 0
        return policy.replace(
            threshold=case_threshold(score, case, self.days, self.alerts_per_day),
            metadata={"alerts_per_day": self.alerts_per_day, "validation_days": self.days},
        )


class FirstAlerts(NamedTuple):
    """Budget figures of a variant."""

    alerts_per_day: float
    """The budget."""
    by_day: dict[int, int]
    """First alerts of cases, by day since 1970 (UTC); days without any are absent."""


class PacedVariant:
    """The pace of a variant. Each hour is decided by a policy that was made of earlier hours alone.

    Args:
        options: The budget.
        from_us: Event time at which the controller begins to watch: some days before the range.
    """

    def __init__(self, options: PacingOptions, from_us: int) -> None:
        self.alerts_per_day = options.alerts_per_day
        self._from_us = from_us
        self._pacing = Pacing(options)
        self._policy: Policy | None = None
        self._lightgbm: str | None = None
        self._changed_hour: int | None = None
        self._by_day: Counter[int] = Counter()

    @property
    def first_alerts(self) -> FirstAlerts:
        """Return the first alerts by day, the days before the range included."""
        return FirstAlerts(self.alerts_per_day, dict(self._by_day))

    def decide(self, decisions: Decisions) -> Iterator[Decisions]:
        """Yield ``decisions``, which follow on all before in the order of event time, in parts of a policy each."""
        times_us = decisions.transactions.event_time_us
        begin = int(np.searchsorted(times_us, self._from_us))
        if begin or not len(times_us):
            yield decisions.take(np.arange(begin))
        hours = times_us[begin:] // US_PER_HOUR
        starts = (np.flatnonzero(np.diff(hours)) + 1 + begin).tolist()
        for start, end in pairwise([begin, *starts, len(times_us)] if len(hours) else []):
            yield self._of_hour(decisions.take(np.arange(start, end)))

    def _of_hour(self, decisions: Decisions) -> Decisions:
        hour = int(decisions.transactions.event_time_us[0] // US_PER_HOUR)
        given = decisions.models
        if given.lightgbm.version != self._lightgbm:
            if self._lightgbm is not None:
                self._pacing.forget_scores()
            self._pacing.seed(recent_scores(given.policy.metadata), before=hour)
            self._lightgbm, self._policy = given.lightgbm.version, given.policy
        policy = self._policy or given.policy
        if hour != self._pacing.hour:
            pace = self._pacing.decide(policy.threshold, hour)
            if is_news(policy.threshold, pace, self._changed_hour):
                policy = given.policy.replace(threshold=pace.threshold, metadata={"paced_for_hour": hour})
                self._changed_hour = hour
        self._policy = policy
        decided = decisions.under_policy(policy)
        first = self._pacing.add(_scored(decided))
        if first:
            self._by_day[int(hour * US_PER_HOUR // US_PER_DAY)] += first
        return decided


def _scored(decisions: Decisions) -> ScoredRows:
    taken = decisions.transactions
    names: list[tuple[str, int] | None] = [None] * len(decisions)
    rows = worth_noting(decisions.score, decisions.alert)
    if len(rows):
        cards = pc.take(taken.card_id, rows).to_pylist()
        for row, card, started_us in zip(rows.tolist(), cards, decisions.case_start_us[rows].tolist(), strict=True):
            names[row] = card, started_us
    return ScoredRows(taken.event_time_us, decisions.score, decisions.alert, names)
