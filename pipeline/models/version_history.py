"""The history of versions in `control`: activations, assessments and switches of learning, as plain values."""

from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Final, NamedTuple, Self

from pipeline.kafka.readers.topic_reader import read_topic
from pipeline.kafka.records.internal import TrustedRecords, not_counted
from pipeline.kafka.session.quarantine import decode_control
from pipeline.models.rule_records import RuleStep, rule_figures
from pipeline.settings import Settings
from schemas.messages import Activation, Assessment, Control, LearningSwitch, VersionReference
from schemas.records import Record
from schemas.topics import CONTROL

VersionEvent = Activation | Assessment | LearningSwitch
BUNDLED: Final = ("lightgbm", "policy")
"""Names of the versions that make a bundle."""

PACE: Final = "pace"
BREAKER: Final = "breaker"
ROLLBACK: Final = "rollback"
PROMOTE: Final = "promote"
PUBLISH: Final = "publish"
POLICY_SET: Final = "policy"
FALL_BACK: Final = "fall-back"
COLD_START: Final = "cold-start"
FIRST_START: Final = "first-start"
"""Step of a file that a worker publishes where none is there: it makes active only what takes nobody's place."""
RETRAIN: Final = "retrain"
CHAIN_DAYS: Final = 28
"""Days over which a chain of renewals is compared with the version before its first one."""
ACCEPTED: Final = "accepted"
"""Outcome of a comparison that the proposed version has won."""

AUTOMATIC: Final = frozenset({"pace", "pacing", "renew", RETRAIN, BREAKER})
"""Programs that activate versions by themselves, as `Activation.by` names them, with or without `PROGRAM`. Any other
name approves a version: a person's, ``train`` and, in older records, none."""
PROGRAM: Final = "fraud-pipeline "


class Bundle(NamedTuple):
    """A LightGBM version and a policy that were active together."""

    lightgbm: VersionReference
    policy: VersionReference
    activation: Activation
    """The one after which both were active."""

    @property
    def digests(self) -> tuple[str, str]:
        """The digests of both contents."""
        return self.lightgbm.digest, self.policy.digest


class Tenure(NamedTuple):
    """A LightGBM version from its activation to the next one's, with the last policy beside it."""

    lightgbm: VersionReference
    policy: VersionReference | None
    activated_ms: int
    """Wall-clock time of the activation, in milliseconds since 1970."""
    step: str
    given: VersionReference | None = None
    """The policy that became active with it."""

    @property
    def references(self) -> list[VersionReference]:
        """Both versions."""
        return [self.lightgbm] if self.policy is None else [self.lightgbm, self.policy]


class Mention(NamedTuple):
    """A version, and the newest record that names it."""

    reference: VersionReference
    event: Activation | Assessment
    first_at: datetime
    """Time of the first record that names it."""


class VersionHistory:
    """Records of `control` about versions, in their order.

    Nothing here reads contents: an activation whose content no worker could use is in the history like any other.
    `pipeline.models.activation` has the rule of what is active.
    """

    def __init__(self, events: Iterable[VersionEvent] = ()) -> None:
        self.events: list[VersionEvent] = list(events)
        self._signers: dict[int, str | None] = {}
        """Key that has signed an event, by the event's identity."""

    @classmethod
    def on(cls, bootstrap: str, settings: Settings) -> Self:
        """Read a cluster's.

        Raises:
            TopicError: `control` is missing or cannot be read.
        """
        control, history = read_topic(bootstrap, settings.topic(CONTROL.name), settings=settings), cls()
        history.take(control, TrustedRecords(settings, not_counted))
        return history

    def take(self, control: Iterable[Record], trusted: TrustedRecords) -> list[Control]:
        """Take in records that follow all others, and return them.

        What cannot be decoded or is not trusted is reported and skipped.
        """
        items: list[Control] = []
        for record, item in trusted.readable(control, decode_control):
            items.append(item)
            if isinstance(item, VersionEvent):
                self.events.append(item)
                self._signers[id(item)] = trusted.signer(record)
        return items

    def signer(self, event: VersionEvent) -> str | None:
        """Return the id of the key that has signed one of the events; None where that cannot be told."""
        return self._signers.get(id(event))

    @property
    def activations(self) -> list[Activation]:
        """All activations, oldest first."""
        return [event for event in self.events if isinstance(event, Activation)]

    def rule_changes(self) -> Iterator[tuple[Activation, RuleStep]]:
        """Yield the activations that changed rules, oldest first, once for each change."""
        for activation in self.activations:
            for step in rule_figures(activation).rules:
                yield activation, step

    def rules_since(self) -> dict[tuple[str, str], datetime]:
        """Return when rules came into a state last, by code and state."""
        return {(step.code, step.after): event.activated_at for event, step in self.rule_changes()}

    @property
    def switch(self) -> LearningSwitch | None:
        """The newest switch of learning; None where it was never switched."""
        return next((event for event in reversed(self.events) if isinstance(event, LearningSwitch)), None)

    @property
    def frozen(self) -> bool:
        """Return whether learning is frozen."""
        return self.switch is not None and self.switch.frozen

    def last_writer(self, service: str) -> str | None:
        """Return the process of a service that has written last, as `SoleProcess` names it; None without one."""
        figures = [event.figures for event in reversed(self.events) if not isinstance(event, LearningSwitch)]
        return next((str(found[service]) for found in figures if service in found), None)

    def mentions(self) -> list[Mention]:
        """Return every LightGBM and policy version that was activated or assessed, the newest record first.

        An activation takes precedence over an assessment, which makes nothing active.
        """
        found: dict[tuple[str, str], Mention] = {}
        for event in self.events:
            if isinstance(event, LearningSwitch):
                continue
            for reference in event.versions:
                if reference.name not in BUNDLED:
                    continue
                before = found.pop((reference.name, reference.digest), None)
                first_at = event_time(event) if before is None else before.first_at
                stays = before is not None and isinstance(event, Assessment) and isinstance(before.event, Activation)
                newest = before.event if before is not None and stays else event
                found[reference.name, reference.digest] = Mention(reference, newest, first_at)
        return sorted(found.values(), key=lambda version: event_time(version.event), reverse=True)

    def bundles(self) -> list[Bundle]:
        """Return the bundle after each activation that left one, oldest first."""
        found: list[Bundle] = []
        versions: dict[str, VersionReference] = {}
        for activation in self.activations:
            named = {version.name: version for version in activation.versions if version.name in BUNDLED}
            versions |= named
            if named and len(versions) == len(BUNDLED):
                found.append(Bundle(versions["lightgbm"], versions["policy"], activation))
        return found

    def tenures(self) -> list[Tenure]:
        """Return the LightGBM versions in the order of their activation; two that follow each other differ."""
        found: list[Tenure] = []
        policy: VersionReference | None = None
        for activation in self.activations:
            named = {version.name: version for version in activation.versions if version.name in BUNDLED}
            policy = named.get("policy", policy)
            lightgbm = named.get("lightgbm")
            if lightgbm is not None and (not found or lightgbm.digest != found[-1].lightgbm.digest):
                at_ms = round(activation.activated_at.timestamp() * 1_000)
                found.append(Tenure(lightgbm, policy, at_ms, activation.step, named.get("policy")))
            elif found:
                found[-1] = found[-1]._replace(policy=policy)
        return found

    def rollback_stack(self) -> list[Bundle]:
        """Return the bundles that rollbacks would go back through, the present one last.

        A paced threshold belongs to its bundle. A rollback takes the bundles above its own off the stack, so that the
        next one goes further back, and never to what was rolled back.
        """
        stack: list[Bundle] = []
        for bundle in self.bundles():
            step = bundle.activation.step
            if step == ROLLBACK and stack:
                stack = [*_below(stack[:-1], bundle), bundle]
            elif step == PACE and stack:
                stack[-1] = bundle
            else:
                stack.append(bundle)
        return stack

    def approved(self) -> Bundle | None:
        """Return the last bundle whose LightGBM version and policy were both activated by a person or by ``train``."""
        automatic: dict[str, bool] = {}
        found = None
        for bundle in self.bundles():
            activation = bundle.activation
            by_program = activation.by.removeprefix(PROGRAM) in AUTOMATIC or activation.step == PACE
            automatic |= {version.name: by_program for version in activation.versions}
            # The policy of a fall-back is made anew from the approved one each time.
            if not any(automatic.get(name, False) for name in BUNDLED) and activation.step != FALL_BACK:
                found = bundle
        return found

    def assessments_of(self, digest: str) -> list[Assessment]:
        """Return the assessments of a version, oldest first."""
        return [
            assessment for assessment in self._assessments() if any(at.digest == digest for at in assessment.versions)
        ]

    def challengers_of(self, digest: str) -> list[Assessment]:
        """Return the assessments of other versions against this one, oldest first."""
        return [
            assessment for assessment in self._assessments() if any(at.digest == digest for at in assessment.against)
        ]

    def activations_of(self, digest: str) -> list[Activation]:
        """Return the activations that name a version, oldest first."""
        return [activation for activation in self.activations if any(at.digest == digest for at in activation.versions)]

    def until(self, moment: datetime) -> "VersionHistory":
        """Return what had been written by ``moment``, by the records' own times."""
        return VersionHistory(event for event in self.events if event_time(event) <= moment)

    def _assessments(self) -> list[Assessment]:
        return [event for event in self.events if isinstance(event, Assessment)]


def event_time(event: VersionEvent) -> datetime:
    """Return when a record was made."""
    if isinstance(event, Activation):
        return event.activated_at
    return event.assessed_at if isinstance(event, Assessment) else event.switched_at


def _below(stack: list[Bundle], bundle: Bundle) -> list[Bundle]:
    """Return the bundles below the one that a rollback went to; all of them where it went to none of these."""
    same = [at for at, entry in enumerate(stack) if entry.digests == bundle.digests]
    alike = [at for at, entry in enumerate(stack) if entry.lightgbm.digest == bundle.lightgbm.digest]
    return stack[: (same or alike or [len(stack)])[-1]]
