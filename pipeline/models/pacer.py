"""The service that keeps alerts to a budget: it follows decisions and activates policies for hours of event time."""

import logging
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

from pipeline.decision.case_scores import KEPT_HOURS
from pipeline.decision.online_gate import REACH_DAYS, BlendDecision, Gate
from pipeline.decision.pacing import HOURS, HOURS_OF_DAY, Pace, Pacing, PacingOptions, is_news, recent_scores
from pipeline.decision.policy import Policy
from pipeline.engine.scores.active_models import ActiveModels
from pipeline.kafka.readers.follower import TopicFollower
from pipeline.learning.event_clock import AHEAD_HOURS
from pipeline.models.contents import VersionContents
from pipeline.models.decision_feed import PartitionDecisions, RecentFeed
from pipeline.models.library import PublishedVersions
from pipeline.models.publish import (
    ControlWriter,
    ModelChange,
    ServiceEnded,
    ServiceStopped,
    SoleProcess,
    VersionToPublish,
)
from pipeline.models.version_history import PACE
from pipeline.settings import Settings
from schemas.topics import CONTROL

log = logging.getLogger(__name__)

DAYS: Final = (HOURS + KEPT_HOURS) / HOURS_OF_DAY
"""Days of decisions that the controller reads at its start."""
_POLL_S: Final = 1.0
_HOUR_S: Final = 3_600


class NothingActive(ServiceEnded):
    """There is no policy whose threshold could be set."""


class Proposal(NamedTuple):
    """A policy for an hour, and why."""

    policy: Policy
    news: bool
    """True if it differs enough from the active one to be published."""
    reason: str
    figures: dict[str, Any]


class Pacer:
    """Follows decisions and labels, and activates policies; used from one thread.

    Its state is a function of the topics: what it read is read again at each start, and when another LightGBM version
    becomes active.

    Args:
        options: The budget.
        gate: Whether reported frauds set the policy's blend too.
        stopped: Whether to stop.
    """

    def __init__(
        self,
        bootstrap: str,
        settings: Settings,
        options: PacingOptions,
        *,
        gate: bool,
        stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        self._bootstrap, self._settings, self._options = bootstrap, settings, options
        self._with_gate, self._stopped, self._sole = gate, stopped, SoleProcess(PACE)
        self._pacing, self._gate = Pacing(options), Gate()
        contents = VersionContents(bootstrap, settings)
        self._published = PublishedVersions(settings, (), contents, waiting=self._waiting)
        self._control = TopicFollower(bootstrap, settings, CONTROL)
        self._writer: ControlWriter | None = None
        self._feed: RecentFeed | None = None
        self._lightgbm: str | None = None
        self._decided_hour: int | None = None
        self._changed_hour: int | None = None
        self._reported_frozen = False

    def once(self) -> Proposal:
        """Decide once, and publish nothing.

        Raises:
            NothingActive: No LightGBM version and policy are active, or nothing was decided.
        """
        self._control.start()
        self._refresh()
        active = self._prepared()
        if self._pacing.hour is None:
            raise NothingActive("there are no decisions to pace by: let a worker decide transactions first")
        return self._proposal(active)

    def run(self) -> None:
        """Pace until it is to stop.

        Raises:
            ServiceEnded: Another pace has taken over, or there is nothing to pace.
            DeliveryFailed: A policy could not be written.
        """
        try:
            self._control.start()
            self._refresh()
            while True:
                self._waiting()
                self._sole.refuse_other(self._published.history)
                active = self._prepared()
                if self._pacing.hour is None or self._pacing.hour == self._decided_hour:
                    self._take(() if self._feed is None else self._feed.new(_POLL_S))
                    self._published.add(self._control.poll(0))
                    continue
                self._refresh()
                if self._published.model_set.active is active:
                    self._step(active)
        except ServiceStopped:
            return

    def close(self) -> None:
        """Stop following."""
        self._control.close()
        if self._feed is not None:
            self._feed.close()

    def _refresh(self) -> None:
        """Take in all that was committed to ``control`` before this call."""
        self._published.add(self._control.read_committed(self._waiting))

    def _first_policy(self, active: ActiveModels) -> Policy | None:
        """Return the policy that became active together with the LightGBM version; None if it cannot be read."""
        for activation in reversed(self._published.history.activations):
            named = {version.name: version for version in activation.versions}
            if {"lightgbm", "policy"} <= named.keys() and named["lightgbm"].digest == active.lightgbm.digest:
                content = self._published.content(named["policy"])
                return None if content is None else Policy.from_payload(bytes(content.payload))
        return None

    def _waiting(self) -> None:
        if self._stopped():
            raise ServiceStopped

    def _prepared(self) -> ActiveModels:
        """Return the active versions, once what their LightGBM version has decided is read."""
        active = self._published.model_set.active
        if active is None:
            raise NothingActive(
                "no LightGBM version and policy are active: publish them with `fraud-pipeline train --publish`"
            )
        if active.lightgbm.version != self._lightgbm:
            self._restart(active)
        return active

    def _restart(self, active: ActiveModels) -> None:
        log.info("LightGBM %s is active: its decisions are read", active.lightgbm.version)
        if self._feed is not None:
            self._feed.close()
        self._pacing, self._gate = Pacing(self._options), Gate()
        self._lightgbm, self._decided_hour, self._changed_hour = active.lightgbm.version, None, None
        days = max(DAYS, float(REACH_DAYS) if self._with_gate else 0.0)
        self._feed = RecentFeed(self._bootstrap, self._settings, days, labels=self._with_gate, waiting=self._waiting)
        self._take(self._feed.past())
        first = self._first_policy(active)
        known = recent_scores(active.policy.metadata) or recent_scores({} if first is None else first.metadata)
        self._pacing.seed(known, before=self._pacing.first_scored)

    def _take(self, batches: Iterable[PartitionDecisions]) -> None:
        for rows in batches:
            self._pacing.add(rows.scored(self._lightgbm or ""), rows.partition)
            if self._with_gate:
                self._gate.add(rows.until((self._pacing.hour or 0) + AHEAD_HOURS).both_scores())

    def _step(self, active: ActiveModels) -> None:
        """Decide for the newest hour, with all that was committed, and publish what is news."""
        if self._feed is not None:
            self._take(self._feed.committed())
        proposal = self._proposal(active)
        self._decided_hour = self._pacing.hour
        if not proposal.news:
            return
        if self._published.history.frozen:
            if not self._reported_frozen:
                log.warning("learning is stopped on control: the threshold stays, until learning is resumed")
            self._reported_frozen = True
            return
        self._reported_frozen = False
        self._publish(active, proposal)

    def _proposal(self, active: ActiveModels) -> Proposal:
        policy = active.policy
        if self._with_gate and self._feed is not None:
            for report in self._feed.reports():
                self._gate.report(report)
        decision = self._gate.decide(policy.blend) if self._with_gate else None
        pace = self._pacing.decide(policy.threshold)
        blend = policy.blend if decision is None else decision.blend
        threshold = pace.threshold
        stale = policy.lightgbm_version not in (None, active.lightgbm.version)
        # A policy for the version before came just behind the activation of this one, whose rules and audit hold.
        first = self._first_policy(active) if stale else None
        if first is not None and pace.figures["cold"]:
            threshold = self._options.at_most_critical(first.threshold)
        is_changed = first is not None or blend != policy.blend or threshold != pace.threshold
        news = is_changed or is_news(policy.threshold, pace, self._changed_hour)
        new = (first or policy).replace(
            threshold=threshold,
            blend=blend,
            lightgbm_version=active.lightgbm.version if stale else policy.lightgbm_version,
            metadata={"alerts_per_day": self._options.alerts_per_day, "paced_for_hour": pace.hour},
        )
        return Proposal(new, news, _reason(policy, new, pace, decision), self._figures(active, new, pace, decision))

    def _figures(self, active: ActiveModels, new: Policy, pace: Pace, decision: BlendDecision | None) -> dict[str, Any]:
        gate = {} if decision is None else {"w": decision.won, "l": decision.lost, "z": round(decision.z, 3)}
        return {
            "hour": f"{datetime.fromtimestamp(pace.hour * _HOUR_S, UTC):%Y-%m-%dT%H:00:00Z}",
            **pace.figures,
            "threshold": new.threshold,
            "blend": new.blend,
            **gate,
            "lightgbm": active.lightgbm.version,
            "decisions": {} if self._feed is None else self._feed.offsets,
            **self._sole.figures,
        }

    def _publish(self, active: ActiveModels, proposal: Proposal) -> None:
        if self._writer is None:
            self._writer = ControlWriter(self._bootstrap, self._settings)
        policy, writer = proposal.policy, self._writer
        references = writer.contents(VersionToPublish.from_models(policy))
        change = ModelChange(PACE, PACE, proposal.reason, proposal.figures)

        def activate() -> bool:
            self._sole.refuse_other(self._published.history)
            if self._published.history.frozen or self._published.model_set.active is not active:
                return False
            writer.activate(references, change)
            return True

        if not writer.undisturbed(activate, self._refresh):
            # What was decided by is no longer active: decide again.
            self._decided_hour = None
            return
        log.info("%s", proposal.reason)
        self._changed_hour = self._pacing.hour


def _reason(before: Policy, new: Policy, pace: Pace, decision: BlendDecision | None) -> str:
    found = pace.figures
    text = (
        f"{found['alerts_24h']} cases alerted first in 24 hours, of a budget of {found['alerts_per_day']:g} a day: the "
        f"threshold is {new.threshold:.4g}, after {before.threshold:.4g}"
    )
    if decision is None or new.blend == before.blend:
        return text
    what = "in" if new.blend > before.blend else "out"
    return f"{text}; the online model is {what}, by {decision.won} reported frauds to {decision.lost}"
