"""The rules of a set on history: what each is worth beside the score and the others."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.backtest.metrics.rule_worth import RuleHits, RuleWorth, rule_worth
from pipeline.decision.policy import BY_SCORE
from pipeline.decision.rule_program import Read
from pipeline.decision.rules import SCORES, RuleSet, condition_of
from pipeline.expressions.trees import fields_in, lists_in
from pipeline.rules.hits import HitHistory
from schemas.times import US_PER_DAY


class SetReport:
    """The hits of the rules of a set that are evaluated, part by part, in any order.

    Args:
        rules: The set.
    """

    def __init__(self, rules: RuleSet) -> None:
        self._rules = rules
        names = frozenset().union(*(fields_in(condition_of(rule)) for rule in rules.evaluated))
        self.texts, self.scores = [*rules.texts], sorted(names & {*SCORES})
        self.features = sorted(names.difference(self.texts, SCORES))
        self.lists = any(lists_in(condition_of(rule)) for rule in rules.evaluated)
        self._hits = [np.empty((len(rules.evaluated), 0), np.bool_)]
        self._last_event_us = 0

    def take(
        self, read: Read, event_time_us: NDArray[np.int64], kernel: NDArray[np.int64], transaction_id: Any
    ) -> NDArray[np.intp]:
        """Count n transactions, and return the rows that a rule hits; see `pipeline.rules.hits.Counted`."""
        del kernel, transaction_id
        if not len(event_time_us) or not self._rules.evaluated:
            return np.empty(0, np.intp)
        self._last_event_us = max(self._last_event_us, int(event_time_us.max()))
        found = self._rules.program.hits(read, len(event_time_us))
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
        hits, maturity_us, kernels, _ = history
        day = hits.event_time_us // US_PER_DAY
        chosen = np.isin(hits.kernel, [*kernels]) & (day >= (day if first is None else first))
        chosen &= day < (day + 1 if end is None else end)
        found = np.concatenate(self._hits, axis=1) & chosen
        row, rule = np.nonzero(found.T)
        mature = hits.event_time_us <= self._last_event_us - maturity_us
        pairs = RuleHits(self._rules.evaluated, row, rule)
        return rule_worth(pairs, hits.selection == BY_SCORE, hits.fraud, mature, hits.amount, since)
