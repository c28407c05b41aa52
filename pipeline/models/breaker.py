"""The service that stops rules: it counts their hits on all partitions, and puts one that exceeds a cap in shadow."""

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from pipeline.decision.policy import BY_RULE
from pipeline.decision.rule_caps import KEPT_HOURS, DecidedHits, RuleBreaker
from pipeline.decision.rules import RULES
from pipeline.kafka.readers.follower import TopicFollower
from pipeline.learning.event_clock import EventClock
from pipeline.models.contents import VersionContents
from pipeline.models.decision_feed import PartitionDecisions, RecentFeed
from pipeline.models.library import PublishedVersions
from pipeline.models.publish import ControlWriter
from pipeline.models.rule_changes import RuleChanges
from pipeline.settings import Settings
from schemas.records import Record
from schemas.topics import CONTROL

log = logging.getLogger(__name__)

_POLL_S: Final = 0.5
_HOURS_A_DAY: Final = 24


class BreakerStopped(Exception):
    """The service was asked to stop."""


class Breaker:
    """Follows decisions of all partitions, and stops rules; used from one thread.

    Its state is a function of the topics, which are read again at each start. Several may run: what one has stopped is
    no longer active for the others.

    Args:
        stopped: Whether to stop.
    """

    def __init__(self, bootstrap: str, settings: Settings, *, stopped: Callable[[], bool]) -> None:
        self._bootstrap, self._settings, self._stopped = bootstrap, settings, stopped
        self._control = TopicFollower(bootstrap, settings, CONTROL)
        contents = VersionContents(bootstrap, settings)
        self._published = PublishedVersions(settings, (), contents, waiting=self._waiting)
        self._writer = ControlWriter(bootstrap, settings)
        self._changes = RuleChanges(self._published, self._writer, settings)
        self._breaker, self._clocks = RuleBreaker(), dict[int, EventClock]()
        self._known = 0
        """Activations that were looked at."""
        self._feed: RecentFeed | None = None

    def run(self) -> None:
        """Stop rules that exceed their caps until the service is to stop.

        Raises:
            DeliveryFailed: A set could not be written.
        """
        try:
            self._control.start()
            self._refresh()
            self._feed = RecentFeed(
                self._bootstrap, self._settings, KEPT_HOURS / _HOURS_A_DAY, labels=False, waiting=self._waiting
            )
            self._take(self._feed.past())
            log.info("the decisions of %d hours are counted: rules that exceed a cap are stopped", KEPT_HOURS)
            while True:
                self._waiting()
                if self._breaker.trips(self._changes.rules):
                    self._writer.undisturbed(self._refresh, self._stop)
                self._breaker.grown.clear()
                self._take(self._feed.new(_POLL_S))
                self._activated(self._control.poll(0))
        except BreakerStopped:
            return

    def close(self) -> None:
        """Stop following."""
        self._control.close()
        if self._feed is not None:
            self._feed.close()

    def _refresh(self) -> None:
        self._activated(self._control.read_committed(self._waiting))

    def _activated(self, control: Sequence[Record]) -> None:
        """Take in records of ``control``: from its activation on, the hits of a rule count."""
        self._published.add(control)
        activations = self._published.history.activations
        for activation in activations[self._known :]:
            for change in activation.figures.get(RULES, ()):
                if change["after"] == "active":
                    self._breaker.activated(change["code"], activation.activated_at)
        self._known = len(activations)

    def _take(self, batches: Iterable[PartitionDecisions]) -> None:
        for rows in batches:
            hours = self._clocks.setdefault(rows.partition, EventClock()).hours(rows.times_us()).tolist()
            self._breaker.add(
                DecidedHits(hour, decision.rule_hits, decision.selection == BY_RULE, decision.decided_at)
                for hour, decision in zip(hours, rows.decided, strict=True)
            )

    def _stop(self) -> None:
        """Stop what still exceeds a cap, as `ControlWriter.undisturbed` calls it."""
        if trips := self._breaker.trips(self._changes.rules):
            self._changes.stop(trips)
            for trip in trips:
                log.warning("rule %s is stopped: %s", trip.rule.code, trip.reason)

    def _waiting(self) -> None:
        if self._stopped():
            raise BreakerStopped
