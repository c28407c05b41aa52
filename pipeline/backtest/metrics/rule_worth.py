"""The worth of rules: frauds that only they find, and the alerts that these cost."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from pipeline.backtest.metrics.bootstrap import Estimate
from pipeline.decision.rules import Rule


class RuleWorth(msgspec.Struct, frozen=True, kw_only=True):
    """A rule's hits; alone are those that no score and no other active rule has alerted. Money is of frauds."""

    code: str
    state: str
    action: str
    owner: str
    since: str | None
    """Time from which it is in its state, RFC 3339; None where that is not known."""
    hits: int
    mature: int
    """Hits that are old enough for a label to have come; all that follow are of these."""
    frauds: int
    money: float
    frauds_alone: int
    money_alone: float
    false_alone: int
    """Hits alone that are no fraud: what has no label counts among them."""
    precision: Estimate | None = None
    """Share of frauds among mature hits; only of `rules report`, where there is one."""
    not_computed: int = 0
    """Transactions from before a feature was declared; the other figures are without them."""

    @property
    def earns_nothing(self) -> bool:
        """True of an active rule that alerts, and finds no fraud that nothing else finds."""
        return self.state == "active" and self.action == "alert" and not self.frauds_alone


class RuleHits(NamedTuple):
    """Hits of rules, as pairs of shape (p,)."""

    rules: Sequence[Rule]
    row: NDArray[np.int64]
    """Row of the transaction."""
    rule: NDArray[np.int64]
    """Number of the rule."""


def rule_worth(
    found: RuleHits,
    by_score: NDArray[np.bool_],
    fraud: NDArray[np.bool_],
    mature: NDArray[np.bool_],
    amount: NDArray[np.float64],
    since: Mapping[tuple[str, str], str],
) -> list[RuleWorth]:
    """Return the worth of each rule, by the money that it finds alone.

    Args:
        found: Which rules hit which rows.
        by_score: Rows that the score alerted, shape (n,). What an audit drew was found by chance, and not by it.
        fraud: Shape (n,).
        mature: Shape (n,).
        amount: In the base currency, shape (n,).
        since: When rules came into their states, by code and state.
    """
    n = len(by_score)
    acts = np.array([rule.is_active and rule.action == "alert" for rule in found.rules], np.bool_)
    alerted = by_score + np.bincount(found.row[acts[found.rule]], minlength=n)
    alone = alerted[found.row] == acts[found.rule]
    is_mature, is_fraud, money = mature[found.row], (mature & fraud)[found.row], amount[found.row]

    def counts(chosen: NDArray[np.bool_], weights: NDArray[np.float64] | None = None) -> list[float]:
        numbers = np.bincount(
            found.rule[chosen], None if weights is None else weights[chosen], minlength=len(found.rules)
        )
        rounded: list[float] = np.round(numbers, 2).tolist()
        return rounded

    columns = zip(
        found.rules,
        counts(np.ones(len(found.row), np.bool_)),
        counts(is_mature),
        counts(is_fraud),
        counts(is_fraud, money),
        counts(is_fraud & alone),
        counts(is_fraud & alone, money),
        counts(is_mature & ~is_fraud & alone),
        strict=True,
    )
    worth = [
        RuleWorth(
            code=rule.code, state=rule.state, action=rule.action, owner=rule.owner,
            since=since.get((rule.code, rule.state)), hits=int(hits), mature=int(old), frauds=int(frauds), money=of_all,
            frauds_alone=int(caught), money_alone=of_alone, false_alone=int(false),
        )
        for rule, hits, old, frauds, of_all, caught, of_alone, false in columns
    ]  # fmt: skip
    return sorted(worth, key=lambda rule: (-rule.money_alone, -rule.frauds_alone, rule.code, rule.state))
