"""Caps on rules: the alerts that one raises in an hour of event time, and the share of transactions that it hits.

A partition stops a rule at the cap on its own alerts; the breaker counts all partitions, and stops it everywhere.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.decision.rules import Rule, RuleSet
from pipeline.learning.event_clock import ClockState, EventClock
from pipeline.scoring.payload import payload_digest

LEAST_TRANSACTIONS: Final = 1_000
"""Transactions of an hour from which on a share of them says something."""
KEPT_HOURS: Final = 48
"""Event hours that the breaker counts: partitions may be at different ones."""
MOST_COUNTED: Final = 150
"""Rules that a partition counts, those with most alerts: counts stand beside a committed offset, in 4,096 bytes."""

Bound = Callable[[RuleSet, NDArray[np.object_], NDArray[np.bool_]], NDArray[np.object_]]
"""Returns the hits of n rows, in which rules have been stopped, from their hits and which the score alone alerts on."""


class _Counts(NamedTuple):
    clock: ClockState | None
    hour: int
    alerts: Mapping[str, int]
    """Alerts by the rule's key."""


class PartitionCaps:
    """Alerts of each rule in the newest event hour of a partition of ``profiled``.

    They depend on the order of the log and on the rules that decided, and not on how rows are cut into batches. They
    are committed beside the partition's offset, so that whoever restores it goes on with them.
    """

    def __init__(self, counters: Mapping[str, int] | None = None) -> None:
        found = dict(counters or {})
        ahead = tuple(found.pop(f"ahead-{number}") for number in range(2) if f"ahead-{number}" in found)
        time_us, witnesses, hour = (found.pop(name, 0) for name in ("time", "witnesses", "hour"))
        clock = ClockState(time_us, witnesses, ahead) if witnesses else None
        self._now = self._committed = _Counts(clock, hour, found)

    @property
    def counters(self) -> dict[str, int]:
        """The counts, that of the open batch included, as they are committed."""
        clock, hour, alerts = self._now
        if clock is None:
            return {}
        ahead = {f"ahead-{number}": time_us for number, time_us in enumerate(clock.ahead)}
        return {"time": clock.stream_time_us, "witnesses": clock.witnesses, **ahead, "hour": hour, **alerts}

    def commit(self) -> None:
        """The batch is committed."""
        self._committed = self._now

    def rollback(self) -> None:
        """The batch is not committed: take it back."""
        self._now = self._committed

    def bounded(
        self,
        rules: RuleSet,
        hits: NDArray[np.object_],
        by_score: NDArray[np.bool_],
        event_time_us: NDArray[np.int64],
    ) -> NDArray[np.object_]:
        """Return the hits of the next n rows of the log, each hit beyond a cap as one that raises nothing.

        Args:
            rules: The set that has hit.
            hits: Numbers of its rules that hit each row, ascending.
            by_score: True where the score alerts by itself, so that a rule adds no alert; shape (n,).
            event_time_us: Shape (n,).
        """
        caps = {
            number: rule for number, rule in enumerate(rules.evaluated[: rules.alerting]) if rule.max_alerts_per_hour
        }
        if not caps or not len(hits):
            return hits
        clock = EventClock()
        clock.state = self._now.clock
        hours = clock.hours(event_time_us)
        keys = {number: payload_digest(rule.code.encode())[:8] for number, rule in caps.items()}
        hour, alerts, found = self._now.hour, Counter(self._now.alerts), hits
        for row in np.flatnonzero(rules.alerts(hits) & ~by_score).tolist():
            if hours[row] != hour:
                hour, alerts = int(hours[row]), Counter[str]()
            hit = [number for number in hits[row] if number in caps]
            stopped = {number for number in hit if alerts[keys[number]] >= (caps[number].max_alerts_per_hour or 0)}
            alerts.update(keys[number] for number in hit if number not in stopped)
            if stopped:
                found = hits.copy() if found is hits else found
                found[row] = rules.capped(hits[row], stopped)
        most = sorted(alerts.items(), key=lambda item: (-item[1], item[0]))[:MOST_COUNTED]
        self._now = _Counts(clock.state, hour, dict(most))
        return found


class DecidedHits(NamedTuple):
    """A decision, as far as caps count it."""

    hour: int
    """Event hour since 1970 that it counts in."""
    rule_hits: Sequence[str]
    by_rule: bool
    """True where a rule raised the alert."""
    decided_at: datetime


class Trip(NamedTuple):
    """A rule that has exceeded a cap."""

    rule: Rule
    reason: str
    figures: dict[str, Any]


class RuleBreaker:
    """Counts the hits of rules on all partitions by event hour, and says which rules have exceeded a cap.

    A function of decisions and of when rules were activated: hits of before do not count.
    """

    def __init__(self) -> None:
        self._transactions: Counter[int] = Counter()
        self._hits: Counter[tuple[str, int]] = Counter()
        self._alerts: Counter[tuple[str, int]] = Counter()
        self._since: dict[str, datetime] = {}
        self.grown: set[tuple[str, int]] = set()
        """Rules and hours with new hits, at which `trips` looks; for its caller to clear."""

    def activated(self, code: str, at: datetime) -> None:
        """Count a rule from its activation on."""
        if self._since.get(code) != at:
            self._since[code] = at
            self._forget(lambda key: key[0] == code)

    def add(self, decisions: Iterable[DecidedHits]) -> None:
        """Take in decisions."""
        for hour, rule_hits, by_rule, decided_at in decisions:
            self._transactions[hour] += 1
            for code in rule_hits:
                if code in self._since and decided_at >= self._since[code]:
                    self._hits[code, hour] += 1
                    self._alerts[code, hour] += by_rule
                    self.grown.add((code, hour))
        if len(self._transactions) > 2 * KEPT_HOURS:
            kept = set(sorted(self._transactions)[-KEPT_HOURS:])
            self._transactions = Counter({hour: self._transactions[hour] for hour in kept})
            self._forget(lambda key: key[1] not in kept)

    def trips(self, rules: RuleSet) -> list[Trip]:
        """Return the active rules that have exceeded a cap in an hour with new hits."""
        found = {}
        for code, hour in sorted(self.grown):
            rule = rules.find(code, active=True)
            if rule is not None and rule.is_active and (exceeded := self._exceeded(rule, hour)):
                figures = {"event_hour": hour, "hits": self._hits[code, hour], "alerts": self._alerts[code, hour]}
                found[code] = Trip(rule, exceeded, {**figures, "transactions": self._transactions[hour]})
        return list(found.values())

    def _exceeded(self, rule: Rule, hour: int) -> str:
        alerts, hits, transactions = (
            self._alerts[rule.code, hour],
            self._hits[rule.code, hour],
            self._transactions[hour],
        )
        if rule.action == "alert" and rule.max_alerts_per_hour and alerts > rule.max_alerts_per_hour:
            return f"it raised {alerts:,} alerts in an hour of event time, of {rule.max_alerts_per_hour:,} at most"
        if rule.max_hit_rate and transactions >= LEAST_TRANSACTIONS and hits > rule.max_hit_rate * transactions:
            return f"it hit {hits:,} of an hour's {transactions:,} transactions, of {rule.max_hit_rate:.2%} at most"
        return ""

    def _forget(self, is_old: Callable[[tuple[str, int]], bool]) -> None:
        for counts in (self._hits, self._alerts):
            for key in [key for key in counts if is_old(key)]:
                del counts[key]
