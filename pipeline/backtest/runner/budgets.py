"""Thresholds for budgets of alerts, chosen on what comes before a range, as they could have been."""

import numpy as np
from numpy.typing import NDArray

from pipeline.decision.budget import budget_threshold
from pipeline.decision.policy import Policy
from pipeline.engine.scores.decisions import Decisions
from schemas.times import US_PER_DAY


class Budget:
    """The alert budget of a variant: scores before the range choose the threshold that decides the range."""

    def __init__(self, alerts_per_day: float, from_us: int, days: float) -> None:
        """``from_us`` is where the range begins; the threshold is chosen on the last ``days`` before it."""
        self.alerts_per_day = alerts_per_day
        self._from_us = from_us
        self._first_us = from_us - round(days * US_PER_DAY)
        self._scores: list[NDArray[np.float64]] = []
        self.tied = 0
        """Transactions with the highest score before the range, where already they are more than the budget allows."""
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
        self._scores.append(decisions.score[(times_us >= self._first_us) & (times_us < self._from_us)])
        if times_us[-1] < self._from_us:
            return decisions
        if self._policy is None:
            self._policy = self._chosen(decisions.models.policy)
        return decisions.under_policy(self._policy)

    def _chosen(self, policy: Policy) -> Policy:
        score = np.concatenate(self._scores)
        if not len(score):
            raise ValueError(
                "the threshold for a budget of alerts is chosen on the days before the range, and there is no "
                "transaction: begin the range later (--from), or lengthen --warm-up"
            )
        self._scores = []
        highest = int(np.count_nonzero(score == score.max()))
        self.tied = highest if highest > self.alerts_per_day * self.days else 0
        return policy.replace(
            threshold=budget_threshold(score, np.ones(len(score)), self.days, self.alerts_per_day),
            metadata={"alerts_per_day": self.alerts_per_day, "validation_days": self.days},
        )
