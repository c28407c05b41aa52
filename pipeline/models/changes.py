"""Changes of the active versions by a person, and the switch of learning. Each is checked before it is written."""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any, NamedTuple, Self

import msgspec

from pipeline.decision.policy import Policy, compared_features
from pipeline.features.feature_set import FeatureSet
from pipeline.models.description import lightgbm_facts, metrics_of
from pipeline.models.known import KnownVersion, KnownVersions
from pipeline.models.library import PublishedVersions
from pipeline.models.publish import ControlWriter, ModelChange, VersionToPublish
from pipeline.models.published_files import declared_features
from pipeline.models.recipes import AGAINST_RECIPE, RECIPE, barred_among, inherited, recipe_of_facts
from pipeline.models.registry import LIGHTGBM, POLICY, Registry
from pipeline.models.version_history import (
    ACCEPTED,
    COLD_START,
    FALL_BACK,
    POLICY_SET,
    PROMOTE,
    PUBLISH,
    ROLLBACK,
    Bundle,
    VersionHistory,
)
from pipeline.scoring.errors import ModelError
from pipeline.scoring.lightgbm_model import LightGBMModel, needed_features
from pipeline.scoring.payload import VERSION_DIGITS
from pipeline.settings import Settings
from schemas.messages import Activation, Assessment, LearningSwitch


class ChangeAuthor(NamedTuple):
    """The maker of a change, and the reason."""

    by: str
    reason: str


class Active(NamedTuple):
    """The versions of a bundle, by name."""

    lightgbm: str
    policy: str


class VersionChanges:
    """Makes changes on one cluster, from what was there when this object was made: if somebody else came since, none.

    A version or policy is named by the beginning of its digest; an author says who makes a change, and why.

    Args:
        published: The cluster's versions.
        registry: The local registry, for versions that the cluster does not have.
        writer: Writes to the cluster.
        settings: Say which features no promoted version may have been trained on, and whether somebody else has to
            approve one that was never active.
        declared: Returns the features of the cluster's active declaration, None without one: a version or a policy
            that needs others is refused.

    Raises:
        ModelError: By every method: a version cannot be found, read or used, or may not be made active; none is where
            one is asked for.
        DeliveryFailed: By every method that makes a change: nothing became active.
    """

    def __init__(
        self,
        published: PublishedVersions,
        registry: Registry,
        writer: ControlWriter,
        settings: Settings,
        declared: Callable[[], FeatureSet | None] = lambda: None,
    ) -> None:
        self._published, self._writer, self._settings, self._declared = published, writer, settings, declared
        self.known = KnownVersions(registry, published)

    @classmethod
    def on(cls, bootstrap: str, settings: Settings, writer: ControlWriter | None = None) -> Self:
        """Read a cluster and the settings' registry.

        Args:
            bootstrap: Address of the cluster.
            settings: Settings of the cluster.
            writer: Has the right to write on ``control``, to make a change (`pipeline.models.publish.changed`). None:
                versions are only looked at.

        Raises:
            TopicError: A topic is missing.
            KeyFileError: Records are to be signed, and the key cannot be used.
        """
        writer = writer or ControlWriter(bootstrap, settings)
        published = PublishedVersions.on(bootstrap, settings)
        declared = partial(declared_features, bootstrap, settings)
        return cls(published, Registry(settings.registry_path), writer, settings, declared)

    @property
    def history(self) -> VersionHistory:
        """The history of versions on the cluster."""
        return self._published.history

    def active(self) -> Active:
        """Return the active versions."""
        lightgbm, policy = self._models()
        return Active(lightgbm, policy.version)

    def active_policy(self) -> Policy:
        """Return the active policy."""
        return self._models()[1]

    def inherited_policy(self) -> Policy | None:
        """Return the policy that a new version takes over; None where none was ever activated.

        It is the active one. Where this program can use none, as behind a change of the kernel, it is the newest one
        that was activated.
        """
        active = self._published.model_set.active
        if active is not None:
            return inherited(active.policy, active.lightgbm.metadata)
        for bundle in reversed(self.history.bundles()):
            try:
                facts = lightgbm_facts(self.known.at(bundle.lightgbm))
                return inherited(self._without_moved(Policy.from_payload(self.known.at(bundle.policy).payload)), facts)
            except ModelError:
                # A version that nobody can read was never active.
                continue
        return None

    def publish(self, model: LightGBMModel, policy: Policy, author: ChangeAuthor) -> None:
        """Make a trained version active with a policy that was made for it; see `inherited_policy`.

        Args:
            model: The version; its content is written if the cluster does not have it.
            policy: Policy that names it, likewise.
            author: Who publishes it, and why.
        """
        if self._settings.second_approval:
            refuse_unapproved(self.history, f"version {model.version}", model.digest)
        made = KnownVersion.made(model)
        self._activate((made, KnownVersion.made(policy)), PUBLISH, author, {"metrics": metrics_of(made)})

    def start_cold(self, model: LightGBMModel, policy: Policy, author: ChangeAuthor) -> Active:
        """Make a version without trees active, where none is.

        Args:
            model: The version, as of `pipeline.training.cold_start.cold_start`.
            policy: Policy for it.
            author: Who starts it, and why.
        """
        if self._published.model_set.active is not None:
            raise ModelError("versions are active on this cluster already: a cold start is for a cluster without any")
        self._activate((KnownVersion.made(model), KnownVersion.made(policy)), COLD_START, author)
        return Active(model.version, policy.version)

    def promote(self, version: str, author: ChangeAuthor, policy: str | None = None) -> Active:
        """Make a LightGBM version active.

        Args:
            version: 4 to 64 first hexadecimal digits of its digest.
            author: Who promotes it, and why.
            policy: First digits of a policy's digest, likewise. None: the policy that was made for the version.
        """
        model = self._unbarred(version)
        if self._settings.second_approval:
            refuse_unapproved(self.history, f"version {model.version}", model.digest)
        chosen = self.known.policy_for(model.version) if policy is None else self.known.find(policy, POLICY)
        chosen = self._known_without_moved(chosen)
        bundle = Active(model.version, chosen.version)
        active = self._published.model_set.active
        if active is not None and bundle == (active.lightgbm.version, active.policy.version):
            raise ModelError(f"LightGBM version {bundle.lightgbm} and policy {bundle.policy} are active already")
        self._activate((model, chosen), PROMOTE, author, {"metrics": metrics_of(model)})
        return bundle

    def approve(self, version: str, author: ChangeAuthor) -> Active:
        """Make a version active that somebody else has proposed, with the audit and blend of now.

        It must have been accepted against the active recipe. Somebody else signs with another key, where records are
        signed.
        """
        model = self._unbarred(version)
        if self.history.activations_of(model.digest):
            raise ModelError(
                f"LightGBM version {model.version} was active already: use `fraud-pipeline models promote`"
            )
        found = [assessment for assessment in self.history.assessments_of(model.digest) if RECIPE in assessment.figures]
        if not found or found[-1].outcome != ACCEPTED:
            was = f"was {found[-1].outcome}" if found else "was not proposed"
            raise ModelError(f"LightGBM version {model.version} {was}: approve one that `models propose` has accepted")
        proposal = found[-1]
        refuse_proposer(self.history, proposal, author.by, self._writer.key_id, "this version")
        active, _ = self._models()
        champion = self.known.find(active, LIGHTGBM)
        # A version of a cold start or of an earlier release does not tell all of its recipe: itself it is the same.
        champion_facts = lightgbm_facts(champion)
        is_compared = champion.digest in {against.digest for against in proposal.against}
        if not is_compared and recipe_of_facts(champion_facts) != proposal.figures.get(AGAINST_RECIPE):
            raise ModelError(f"the active version {active} is of another recipe than that was compared: propose again")
        (reference,) = (paired for paired in proposal.versions if paired.name == POLICY)
        made = Policy.from_payload(self.known.at(reference).payload)
        new = (self.inherited_policy() or made).replace(
            threshold=made.threshold, lightgbm_version=model.version, metadata=made.metadata
        )
        figures = {**proposal.figures, "proposed_by": proposal.by, "metrics": metrics_of(model)}
        self._activate((model, KnownVersion.made(new)), PROMOTE, author, figures)
        return Active(model.version, new.version)

    @property
    def knows_signers(self) -> bool:
        """True if signatures tell who proposes and who approves, and not only names that people give."""
        return bool(self._writer.key_id)

    def _unbarred(self, version: str) -> KnownVersion:
        """Return a LightGBM version that was trained on no barred feature."""
        model = self.known.find(version, LIGHTGBM)
        if found := barred_among(lightgbm_facts(model)["features"], self._settings.barred_features):
            raise ModelError(
                f"LightGBM version {model.version} was trained on {', '.join(found)}, which "
                "FRAUD_PIPELINE_BARRED_FEATURES bars: choose another version, or change the setting"
            )
        return model

    def rollback(self, author: ChangeAuthor) -> Active:
        """Make the bundle active again that was active before the present one, and that can be used.

        Rules that its policy had, and that have moved to the set since, do not come back.
        """
        active = self.active()
        stack = self.history.rollback_stack()
        # Above the active bundle lies what workers have refused.
        while stack and tuple(digest[:VERSION_DIGITS] for digest in stack[-1].digests) != active:
            stack.pop()
        refused = ""
        for bundle in reversed(stack[:-1]):
            try:
                versions = self._versions_of(bundle)
            except ModelError as error:
                refused = f": {error}"
                continue
            if (back := Active(versions[0].version, versions[1].version)) != active:
                self._activate(versions, ROLLBACK, author)
                return back
        raise ModelError(
            f"there is no bundle before the present one to go back to{refused}; choose a version with "
            "`fraud-pipeline models promote`"
        )

    def set_policy(self, changes: dict[str, Any], author: ChangeAuthor) -> Policy:
        """Make a policy active that differs from the active one in some of its fields.

        Args:
            changes: Arguments of `pipeline.decision.policy.Policy`.
            author: Who changes it, and why.
        """
        before = self.active_policy()
        if "audit_rate" in changes:
            # A rate takes the place of an audit by key and strata.
            changes = {"audit": None, **changes}
        policy = before.replace(**changes)
        if policy.version == before.version:
            raise ModelError(f"policy {before.version} has these values already")
        self._activate([KnownVersion.made(policy)], POLICY_SET, author, {"changes": changed_fields(before, policy)})
        return policy

    def fall_back(self, author: ChangeAuthor) -> Active:
        """Make the last approved bundle active, with blend 0 and no weights: LightGBM scores alone."""
        approved = self.history.approved()
        if approved is None:
            raise ModelError("no bundle was activated by a person or by `fraud-pipeline train`: there is none to use")
        model, chosen = self._versions_of(approved)
        policy = Policy.from_payload(chosen.payload).replace(blend=0.0, weights={})
        bundle = Active(model.version, policy.version)
        if bundle == self.active():
            raise ModelError(f"LightGBM version {bundle.lightgbm} is active already, without the online model")
        figures = {"approved": {"policy": chosen.version, "by": approved.activation.by}}
        self._activate((model, KnownVersion.made(policy)), FALL_BACK, author, figures)
        return bundle

    def switch_learning(self, author: ChangeAuthor, *, frozen: bool) -> None:
        """Stop or resume learning."""
        now = datetime.now(UTC)
        self._writer.control(LearningSwitch(frozen=frozen, by=author.by, reason=author.reason, switched_at=now))

    def _models(self) -> tuple[str, Policy]:
        active = self._published.model_set.active
        if active is None:
            raise ModelError("no version is active on this cluster; publish one with `fraud-pipeline train --publish`")
        return active.lightgbm.version, active.policy

    def _versions_of(self, bundle: Bundle) -> tuple[KnownVersion, KnownVersion]:
        """Return the versions of a bundle, which this program can use; the policy without rules that have moved."""
        versions = self.known.at(bundle.lightgbm), self._known_without_moved(self.known.at(bundle.policy))
        for version in versions:
            version.usable()
        return versions

    def _without_moved(self, policy: Policy) -> Policy:
        """Return a policy without its old rules where they have moved to the active set of rules."""
        model_set = self._published.model_set
        if not model_set.rules.version or (model_set.policy is not None and model_set.policy.old_rules):
            return policy
        return policy.replace(old_rules=()) if policy.old_rules else policy

    def _known_without_moved(self, known: KnownVersion) -> KnownVersion:
        """Likewise, of a version of the cluster or the registry; raises `ModelError` where it cannot be used."""
        policy = known.usable()
        without = self._without_moved(policy) if isinstance(policy, Policy) else policy
        return known if without is policy else KnownVersion.made(without)

    def _activate(
        self, versions: Sequence[KnownVersion], step: str, author: ChangeAuthor, figures: dict[str, Any] | None = None
    ) -> None:
        """Write contents that the cluster does not have, then the activation of all of them."""
        declared = self._declared()
        for version in versions:
            version.usable()
            needs = needed_features if version.name == LIGHTGBM else compared_features
            needed = needs(version.payload)
            if declared is not None and (missing_features := sorted(needed.difference(declared.features))):
                raise ModelError(
                    f"{version.name} {version.version} needs {', '.join(missing_features[:5])}, which the cluster's "
                    "active declaration of features lacks: publish one with it first (fraud-pipeline features publish)"
                )
        active = self._published.model_set.active
        before = {} if active is None else {"lightgbm": active.lightgbm.version, "policy": active.policy.version}
        change = ModelChange(step, author.by, author.reason, {"before": before, **(figures or {})})
        there = [version.reference for version in versions if version.reference is not None]
        missing = [VersionToPublish(*version[:3]) for version in versions if version.reference is None]
        self._writer.activate([*there, *(self._writer.contents(missing) if missing else ())], change)


def refuse_unapproved(history: VersionHistory, what: str, digest: str = "") -> None:
    """Refuse a version that was never active, where one was and a second person has to approve.

    Args:
        history: The cluster's.
        what: Names the version in the error, such as ``version 0a1b2c3d4e5f``.
        digest: Digest of its content; empty for a version that is not trained yet.

    Raises:
        ModelError: The version was never active.
    """
    if history.tenures() and not history.activations_of(digest):
        raise ModelError(
            f"FRAUD_PIPELINE_SECOND_APPROVAL is set, and {what} was never active: propose its recipe with "
            "`fraud-pipeline models propose`, for somebody else to approve"
        )


def refuse_proposer(
    history: VersionHistory, proposal: Assessment | Activation, by: str, key_id: str, what: str
) -> None:
    """Refuse the approval of a version or a rule by whoever has proposed it.

    Where records are not signed, and ``key_id`` is empty, names are compared, which nobody can verify.
    """
    if not key_id:
        if proposal.by.strip().casefold() == by.strip().casefold():
            raise ModelError(f"{proposal.by} has proposed {what}: somebody else has to approve it")
        return
    signer = history.signer(proposal)
    if signer is None:
        raise ModelError(f"the proposal of {what} was not signed: propose it again, signed")
    if signer == key_id:
        raise ModelError(
            f"{what} was proposed with the key that you sign with ({signer}): somebody else has to approve it, with a "
            "key of their own"
        )


def changed_fields(before: Policy, after: Policy) -> dict[str, dict[str, Any]]:
    """Return the fields in which two policies differ, each with its value before and after."""
    fields = ("threshold", "blend", "weights", "audit_rate", "audit", "max_reasons", "old_rules", "lightgbm_version")
    pairs = {name: tuple(msgspec.to_builtins(getattr(version, name)) for version in (before, after)) for name in fields}
    return {name: {"before": old, "after": new} for name, (old, new) in pairs.items() if old != new}
