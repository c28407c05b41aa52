"""The service that stops rules: it counts their hits on all partitions, and puts one that exceeds a cap in shadow."""

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import datetime
from itertools import chain
from typing import Final

from pipeline.decision.policy import BY_RULE
from pipeline.decision.rules import Rule, RuleSet
from pipeline.kafka.readers.follower import TopicFollower
from pipeline.learning.event_clock import EventClock
from pipeline.models.contents import VersionContents
from pipeline.models.decision_feed import DecisionFields, PartitionDecisions, RecentFeed
from pipeline.models.library import PublishedVersions
from pipeline.models.publish import ControlWriter, ServiceStopped
from pipeline.models.rule_changes import RuleChanges, Trip
from pipeline.models.rule_records import RuleTrip, rule_figures
from pipeline.settings import Settings
from schemas.topics import CONTROL

log = logging.getLogger(__name__)

LEAST_TRANSACTIONS: Final = 1_000
"""Transactions of an hour from which on a share of them says something."""
KEPT_HOURS: Final = 48
"""Event hours that are counted: partitions may be at different ones."""
_POLL_S: Final = 0.5


class RuleCounts:
    """Hits of rules on all partitions by event hour: a function of decisions, and of when rules were activated."""

    def __init__(self) -> None:
        self._transactions, self._hits, self._alerts = (
            Counter[int](),
            Counter[tuple[str, int]](),
            Counter[tuple[str, int]](),
        )
        self._since: dict[str, datetime] = {}
        self.grown: set[tuple[str, int]] = set()
        """Rules and hours with new hits, at which `trips` looks; for its caller to clear."""

    def activated(self, code: str, at: datetime) -> None:
        """Count a rule from its activation on."""
        self._since[code] = at
        self._forget(lambda counted, _: counted == code)

    def add(self, hours: Sequence[int], decided: Sequence[DecisionFields]) -> None:
        """Take in decisions, each with its event hour since 1970."""
        self._transactions.update(hours)
        for hour, decision in zip(hours, decided, strict=True):
            overruled = {*chain(*decision.overruled.values())}
            for code in decision.rule_hits:
                if code in self._since and decision.decided_at >= self._since[code]:
                    self._hits[code, hour] += 1
                    self._alerts[code, hour] += decision.selection == BY_RULE and code not in overruled
                    self.grown.add((code, hour))
        if len(self._transactions) > 2 * KEPT_HOURS:
            kept = set(sorted(self._transactions)[-KEPT_HOURS:])
            self._transactions = Counter({hour: self._transactions[hour] for hour in kept})
            self._forget(lambda _, hour: hour not in kept)

    def trips(self, rules: RuleSet) -> list[Trip]:
        """Return the active rules that have exceeded a cap in an hour with new hits."""
        found = {}
        for code, hour in sorted(self.grown):
            rule = rules.find(code, active=True)
            if rule is not None and rule.is_active and (reason := self._exceeded(rule, hour)):
                hits, alerts = self._hits[code, hour], self._alerts[code, hour]
                found[code] = Trip(rule, reason, RuleTrip(code, hour, hits, alerts, self._transactions[hour]))
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

    def _forget(self, is_old: Callable[[str, int], bool]) -> None:
        for counts in (self._hits, self._alerts):
            for key in [key for key in counts if is_old(*key)]:
                del counts[key]


class Breaker:
    """Follows decisions of all partitions, and stops rules; used from one thread.

    Its state is a function of the topics, which are read again at each start. Several may run: what one has stopped is
    no longer active for the others.
    """

    def __init__(self, bootstrap: str, settings: Settings, stopped: Callable[[], bool]) -> None:
        self._stopped, self._counts, self._clocks = stopped, RuleCounts(), dict[tuple[int, int], EventClock]()
        self._control = TopicFollower(bootstrap, settings, CONTROL).start()
        contents = VersionContents(bootstrap, settings)
        self._published = PublishedVersions(settings, (), contents, waiting=self._waiting)
        self._writer = ControlWriter(bootstrap, settings)
        self._changes = RuleChanges(self._published, self._writer, settings)
        self._known = 0
        """Activations that were looked at."""
        self._feed = RecentFeed(bootstrap, settings, KEPT_HOURS / 24, labels=False, waiting=self._waiting)

    def run(self) -> None:
        """Stop rules that exceed their caps until the service is to stop; raises `DeliveryFailed`."""
        try:
            for rows in self._feed.past():
                self._take([rows])
            log.info("the decisions of %d hours are counted: rules that exceed a cap are stopped", KEPT_HOURS)
            while True:
                self._waiting()
                if self._counts.trips(self._changes.rules):
                    self._writer.undisturbed(self._stop, self._refresh)
                self._counts.grown.clear()
                self._take([*self._feed.new(_POLL_S)])
        except ServiceStopped:
            return

    def close(self) -> None:
        """Stop following."""
        self._control.close()
        self._feed.close()

    def _refresh(self) -> None:
        """Take in what ``control`` has by now: from its activation on, the hits of a rule count."""
        self._published.add(self._control.read_committed(self._waiting))
        activations = self._published.history.activations
        for activation in activations[self._known :]:
            for step in rule_figures(activation).rules:
                if step.after == "active":
                    self._counts.activated(step.code, activation.activated_at)
        self._known = len(activations)

    def _take(self, batches: Sequence[PartitionDecisions]) -> None:
        if batches:
            # The activations that they were decided by were on ``control`` before them.
            self._refresh()
        for rows in batches:
            # Workers are at different hours of their partitions, which all write to those of ``decisions``.
            for number, of_log in rows.by_log().items():
                clock = self._clocks.setdefault((rows.partition, number), EventClock())
                self._counts.add(clock.hours(of_log.times_us()).tolist(), of_log.decided)

    def _stop(self) -> None:
        """Stop what still exceeds a cap, as `ControlWriter.undisturbed` calls it."""
        if trips := self._counts.trips(self._changes.rules):
            self._changes.stop(trips)
            for trip in trips:
                log.warning("rule %s is stopped: %s", trip.rule.code, trip.reason)

    def _waiting(self) -> None:
        if self._stopped():
            raise ServiceStopped
