"""The service: it looks at the topics, guards the active version, and renews it when that is due."""

import logging
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Final, NamedTuple

from msgspec import Meta

from pipeline.decision.policy import Policy
from pipeline.models.publish import ControlWriter, ModelChange, SoleProcess, VersionToPublish
from pipeline.models.recipes import TREELESS
from pipeline.models.version_history import PROMOTE, ROLLBACK, Tenure
from pipeline.monitoring.drift import drift_reason
from pipeline.retraining.challenger import (
    Challenge,
    Champion,
    Comparison,
    CycleOptions,
    challenge,
    compared_days,
    policy_for,
)
from pipeline.retraining.cluster_reader import AS_OF, BY, SERVICE, ClusterLog, cycles_of
from pipeline.retraining.gate import GateLimits
from pipeline.retraining.guard import GuardDecision, harm_done
from pipeline.scoring.errors import ModelError
from pipeline.scoring.lightgbm_model import LightGBMModel
from pipeline.settings import Settings
from pipeline.training.fit import DEFAULT_BUDGET
from pipeline.training.selection import refuse_barred
from pipeline.training.served import WINDOW_DAYS, ServedRows
from schemas.messages import LearningSwitch, VersionReference
from schemas.times import US_PER_DAY

log = logging.getLogger(__name__)

PAUSE_DAYS: Final = 7.0
"""Days of event time without a challenger after a rollback."""


class ServiceOptions(NamedTuple):
    """Options of the service."""

    every_days: Annotated[float, Meta(gt=0, description="Event time between two challengers.")] = 1.0
    window_days: Annotated[
        float,
        Meta(
            gt=0,
            description="Train on decisions of the newest days; a million of them take 0.7 GB, and twice that for a "
            "moment.",
        ),
    ] = WINDOW_DAYS
    alerts_per_day: Annotated[
        float | None,
        Meta(
            gt=0,
            description="Cases a day that analysts can look at.  [default: that of the active policy, else "
            f"{DEFAULT_BUDGET:g}]",
            extra={"option": "--budget-per-day"},
        ),
    ] = None
    cycle: CycleOptions = CycleOptions()


class CycleOutcome(NamedTuple):
    """Result of a look."""

    outcome: str
    """``promoted``, ``rejected``, ``failed``, ``kept``, ``rolled_back`` or ``nothing``."""
    reason: str
    lightgbm: str | None = None
    """The version that was promoted, rejected or returned to."""
    policy: str | None = None
    figures: dict[str, Any] = {}  # noqa: RUF012 -- never changed


class Retrainer:
    """Guards and renews the active version of a cluster; used from one thread.

    Args:
        options: How often it renews, and how.
    """

    def __init__(self, bootstrap: str, settings: Settings, options: ServiceOptions) -> None:
        self._options, self._barred = options, settings.barred_features
        self._topics = ClusterLog(bootstrap, settings, options.window_days)
        self._writer, self._sole = ControlWriter(bootstrap, settings), SoleProcess(SERVICE)
        self._day: int | None = None
        self._reported: str | None = None

    def look(self, *, now: bool = False) -> CycleOutcome:
        """Read what is new, guard the active version, and renew it if that is due.

        Args:
            now: Renew although no renewal is due, if there are decisions since the last one.

        Raises:
            TopicError: A topic is missing, or a part of it cannot be read.
            DeliveryFailed: A record was not written. Nothing is active before the last one is.
            ServiceEnded: Another process has renewed since the first look.
        """
        has_news = self._topics.read()
        self._sole.refuse_other(self._topics.published.history)
        if not has_news and not now:
            return self._nothing("no decision or label has come")
        champion = self._topics.champion()
        stream_time_us = self._topics.served.stream_time_us
        if champion is None:
            return self._nothing("no LightGBM version is active: publish one with `fraud-pipeline train --publish`")
        if stream_time_us is None:
            return self._nothing("topic features holds no decision of this kernel version yet")
        tenures = self._topics.tenures(champion)
        new_day = self._day != stream_time_us // US_PER_DAY
        self._day = stream_time_us // US_PER_DAY
        budget = self._budget(champion)
        if found := harm_done(self._topics, champion.policy, tenures, budget, whole=new_day or now):
            decision, to = found
            return self._undisturbed(lambda: self._rolled_back(champion, decision, to))
        if why := self._waits(champion.model, stream_time_us, now=now, new_day=new_day):
            return self._nothing(why)
        return self._cycle(champion, tenures, stream_time_us)

    def _nothing(self, reason: str) -> CycleOutcome:
        if reason != self._reported:
            self._reported = reason
            log.info("nothing to do: %s", reason)
        return CycleOutcome("nothing", reason)

    def _budget(self, champion: Champion) -> float:
        return self._options.alerts_per_day or champion.alerts_per_day

    def _rolled_back(self, champion: Champion, decision: GuardDecision, to: Tenure) -> CycleOutcome:
        current = self._topics.champion()
        if current is None or current.model.digest != champion.model.digest:
            return self._nothing("the active version was changed while it was compared")
        stream_time_us = self._topics.served.stream_time_us
        reason = f"version {champion.model.version} is rolled back to {to.lightgbm.version}: {decision.reason}"
        if (frozen := self._frozen()) is not None:
            reason = f"learning is frozen by {frozen.by}; otherwise {reason}"
            if reason != self._reported:
                self._reported = reason
                log.error("%s", reason)
            return CycleOutcome("kept", reason, figures=decision.figures)
        figures = {**decision.figures, AS_OF: stream_time_us, "offsets": self._topics.offsets, **self._sole.figures}
        references = [to.lightgbm, *self._policy_behind(current.policy, to)]
        self._writer.activate(references, ModelChange(ROLLBACK, BY, reason, figures))
        log.error("%s", reason)
        return self._done("rolled_back", reason, references, figures)

    def _policy_behind(self, policy: Policy, to: Tenure) -> list[VersionReference]:
        before, model = self._topics.policy(to), self._topics.model(to)
        if before is None or model is None:
            return []
        made = policy_back(policy, before, model)
        return self._writer.contents(VersionToPublish.from_models(made))

    def _waits(self, model: LightGBMModel, stream_time_us: int, *, now: bool, new_day: bool) -> str | None:
        """Return why no challenger is trained now; None where one is due."""
        if (frozen := self._frozen()) is not None:
            return f"learning is frozen by {frozen.by}: {frozen.reason}"
        last_us, rollback_us = cycles_of(self._topics.published.history)
        pause_us = (rollback_us or 0) + round(PAUSE_DAYS * US_PER_DAY)
        # A time ahead of the decisions is of a clock that was wrong, or of topics that began anew.
        if rollback_us is not None and rollback_us <= stream_time_us < pause_us:
            return f"a version was rolled back; no challenger is trained for {PAUSE_DAYS:g} days of event time"
        since_us = None if last_us is None or last_us > stream_time_us else stream_time_us - last_us
        if since_us is None or (now and since_us > 0) or since_us >= round(self._options.every_days * US_PER_DAY):
            return None
        if new_day and (drift := _drift_of(self._topics.served.rows(), model)):
            log.warning("a challenger is trained ahead of time: %s", drift)
            return None
        return "the last challenger has read the newest decisions" if now else "no challenger is due"

    def _cycle(self, champion: Champion, tenures: Sequence[Tenure], stream_time_us: int) -> CycleOutcome:
        rows = self._topics.served.rows()
        options = self._options.cycle
        start_us, end_us = compared_days(rows, options)
        reference = self._topics.newest_trained_before(tenures, start_us)
        figures: dict[str, Any] = {
            AS_OF: stream_time_us,
            "rows": len(rows),
            "compared_from_us": start_us,
            "compared_to_us": end_us,
            "compared_with": "served" if reference is None else reference.version,
            "offsets": self._topics.offsets,
            **self._sole.figures,
        }
        log.info("training a challenger of version %s on %s decisions", champion.model.version, f"{len(rows):,}")
        limits = GateLimits(alerts_per_day=self._budget(champion))
        cycle = Comparison(champion, rows, limits, tenures[-1].references if tenures else [], figures)
        try:
            refuse_barred(champion.model.trained_on, self._barred)
            found = challenge(rows, champion, reference, limits, options)
        except ModelError as error:
            why = f"no challenger could be made: {error}"
            return self._undisturbed(lambda: self._assessed("failed", why, [], cycle))
        figures |= found.judgement.figures
        return self._undisturbed(lambda: self._conclude(found, cycle))

    def _conclude(self, found: Challenge, cycle: Comparison) -> CycleOutcome:
        """Make an accepted challenger active, where what it was compared with still is."""
        if not found.judgement.accepted:
            return self._assessed("rejected", found.judgement.reason, self._writer.contents(found.versions), cycle)
        champion, current = cycle.champion, self._topics.champion()
        if current is None or current.model.digest != champion.model.digest or self._frozen() is not None:
            reason = "the active version was changed, or learning was frozen, while the challenger was trained"
            return self._assessed("kept", reason, self._writer.contents(found.versions), cycle)
        if current.policy.digest != champion.policy.digest:
            # Pacing goes on meanwhile.
            found = found._replace(policy=policy_for(cycle.rows, found.trained.model, current, cycle.limits))
        versions = self._writer.contents(found.versions)
        reason = f"version {versions[0].version} replaces {champion.model.version}: {found.judgement.reason}"
        self._writer.activate(versions, ModelChange(PROMOTE, BY, reason, cycle.figures))
        log.info("%s", reason)
        return self._done("promoted", reason, versions, cycle.figures)

    def _undisturbed(self, decide: Callable[[], CycleOutcome]) -> CycleOutcome:
        """Decide by what `control` has by now, and write before anybody else does."""

        def read() -> None:
            self._topics.read_control()
            self._sole.refuse_other(self._topics.published.history)

        return self._writer.undisturbed(decide, read)

    def _frozen(self) -> LearningSwitch | None:
        """Return the switch that stops learning; None while models learn."""
        switch = self._topics.published.history.switch
        return switch if switch is not None and switch.frozen else None

    def _assessed(
        self, outcome: str, reason: str, versions: Sequence[VersionReference], cycle: Comparison
    ) -> CycleOutcome:
        self._writer.assess(outcome, versions, cycle.against, ModelChange(outcome, BY, reason, cycle.figures))
        log.warning("%s", reason)
        return self._done(outcome, reason, versions, cycle.figures)

    def _done(
        self, outcome: str, reason: str, versions: Sequence[VersionReference], figures: dict[str, Any]
    ) -> CycleOutcome:
        self._topics.read_control()
        named = {reference.name: reference.version for reference in versions}
        return CycleOutcome(outcome, reason, named.get("lightgbm"), named.get("policy"), figures)


def _drift_of(rows: ServedRows, model: LightGBMModel) -> str | None:
    """Return why served rows have drifted so far that a challenger should not wait; None where they have not."""
    return drift_reason(rows.event_time_us, rows.features, rows.score, model.distributions, model.gain_shares)


def policy_back(policy: Policy, before: Policy, model: LightGBMModel) -> Policy:
    """Return the policy for a rollback: rules, audit and blend of now, the threshold of the version's last one.

    A version without trees keeps its blend: nothing but the online model tells transactions apart.
    """
    blend = before.blend if TREELESS in model.metadata else policy.blend
    return policy.replace(
        threshold=before.threshold, blend=blend, lightgbm_version=model.version, metadata=before.metadata
    )
