"""Variants whose thresholds are set anew each hour, by the controller that paces live traffic."""

from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pyarrow.compute as pc

from pipeline.decision.pacing import Pacing, PacingOptions, ScoredRows, is_news, recent_scores, worth_noting
from pipeline.decision.policy import Policy
from pipeline.engine.scores.decisions import Decisions
from schemas.times import US_PER_DAY, US_PER_HOUR


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
