"""The rules of a set on history: what each is worth beside the score and the others."""

from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from pipeline.backtest.metrics.bootstrap import Estimate, day_estimates
from pipeline.backtest.metrics.rule_worth import RuleHits, RuleWorth, rule_worth
from pipeline.decision.policy import BY_SCORE
from pipeline.decision.rule_program import Read
from pipeline.decision.rules import RuleSet, condition_of
from pipeline.expressions.trees import fields_in
from pipeline.rules.hits import Counted, HitHistory, day_span
from schemas.times import US_PER_DAY


class SetReport(Counted):
    """The hits of the rules of a set that are evaluated, part by part, in any order.

    Args:
        rules: The set.
    """

    def __init__(self, rules: RuleSet) -> None:
        super().__init__([condition_of(rule) for rule in rules.evaluated])
        self._rules = rules
        self._hits = [np.empty((len(rules.evaluated), 0), np.bool_)]

    def take(
        self, read: Read, event_time_us: NDArray[np.int64], kernel: NDArray[np.int64], transaction_id: Any
    ) -> NDArray[np.intp]:
        """Count n transactions, and return the rows that a rule hits; see `pipeline.rules.hits.Counted`."""
        del transaction_id
        if not (n := len(event_time_us)) or not self._rules.evaluated:
            return np.empty(0, np.intp)
        read = cache(read)
        self._count(np.ones((1, n), np.bool_), read, event_time_us, kernel)
        found = self._rules.program.hits(read, n)
        rows = np.flatnonzero(found.any(axis=0))
        self._hits.append(found[:, rows])
        return rows

    def worth(
        self,
        history: HitHistory,
        since: Mapping[tuple[str, str], str],
        *,
        first: int | None = None,
        end: int | None = None,
    ) -> list[RuleWorth]:
        """Return the worth of each rule that is evaluated.

        Args:
            history: The hits of all parts.
            since: When rules came into their states, by code and state.
            first: First day, in days since 1970; None: that of the history.
            end: Day to end before, likewise.
        """
        hits, maturity_us, kernels, *_ = history
        rules, day = self._rules.evaluated, hits.event_time_us // US_PER_DAY
        days = range(first or 0, self._last_event_us // US_PER_DAY + 1 if end is None else end)
        inside = {key: int(rows[0]) for key, rows in self._days.items() if key[1] in days}
        mature = hits.event_time_us <= self._last_event_us - maturity_us
        found = np.concatenate(self._hits, axis=1) & (day >= days.start) & (day < days.stop)
        figures: dict[tuple[str, str], dict[str, Any]] = {}
        for number, rule in enumerate(rules):
            usable = self._usable(kernels, fields_in(condition_of(rule)) & {*self.features})
            found[number] &= np.isin(hits.kernel, usable)
            span = day_span(key for key in inside if key[0] in usable)
            figures[rule.code, rule.state] = {
                "precision": span and _precision(found[number] & mature, hits.fraud, day - span[0], span[1]),
                "not_computed": sum(rows for (kernel, _), rows in inside.items() if kernel not in usable),
            }
        pairs = RuleHits(rules, *np.nonzero(found.T))
        worth = rule_worth(pairs, hits.selection == BY_SCORE, hits.fraud, mature, hits.amount, since)
        return [replace(each, **figures[each.code, each.state]) for each in worth]


def _precision(
    chosen: NDArray[np.bool_], fraud: NDArray[np.bool_], day: NDArray[np.int64], width: int
) -> Estimate | None:
    """Return the share of frauds among chosen hits of the days from 0 to ``width``."""
    by_day = np.array([np.bincount(day[rows], minlength=width) for rows in (chosen & fraud, chosen)])

    def statistics(drawn: NDArray[np.float64]) -> NDArray[np.float64]:
        frauds, old = by_day @ drawn
        return np.array([frauds / old if old else np.nan])

    return day_estimates(statistics, width)[0]
