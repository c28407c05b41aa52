"""Changes of versions: what is checked before anything is written, and what is written then."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest

from pipeline.commands.models import rows_of
from pipeline.decision.policy import FIRST_BLEND, Policy
from pipeline.features.catalogue import FEATURES, KERNEL_VERSION
from pipeline.kafka.session.quarantine import control_record
from pipeline.models.changes import Active, ChangeAuthor, VersionChanges
from pipeline.models.contents import VersionContents
from pipeline.models.description import lightgbm_facts
from pipeline.models.known import KnownVersion
from pipeline.models.library import PublishedVersions
from pipeline.models.publish import ControlWriter, ModelChange, VersionToPublish
from pipeline.models.recipes import AGAINST_RECIPE, RECIPE, recipe_of_facts
from pipeline.models.registry import LIGHTGBM, POLICY, Registry
from pipeline.protection.signing import Signer
from pipeline.retraining.challenger import recipe_of
from pipeline.scoring.errors import ModelError
from pipeline.scoring.lightgbm_model import LightGBMModel
from pipeline.scoring.payload import payload_digest
from pipeline.settings import Settings
from pipeline.training.cold_start import cold_start
from schemas.messages import Activation, LearningSwitch, ModelVersion, VersionReference
from schemas.records import Headers, Record
from tests.helpers.champion import policy
from tests.helpers.models import small_model
from tests.unit.engine.test_engine_models import other_model
from tests.unit.protection.test_signing import key_pair

NOW = datetime(2026, 3, 1, tzinfo=UTC)
DANA = ChangeAuthor("dana", "A test.")
MODEL, OTHER = small_model(), other_model()
FIRST = policy(0.6)
SECOND = policy(0.5, lightgbm_version=OTHER.version)
PACED = policy(0.55)


class Cluster(ControlWriter, VersionContents):
    """Two topics in memory, written to and read as those of a cluster are."""

    def __init__(self, home: Path) -> None:
        self._settings = Settings(registry_dir=home)
        self._signer = Signer.from_settings(self._settings)
        self.registry = Registry(home)
        self.models: list[ModelVersion] = []
        self.items: list[Any] = []
        self.headers: list[Headers] = []

    def contents(self, contents: Sequence[VersionToPublish]) -> list[VersionReference]:
        references = []
        for name, version, payload in contents:
            digest = payload_digest(payload)
            references.append(VersionReference(name=name, version=version, digest=digest, offset=len(self.models)))
            message = {"name": name, "version": version, "digest": digest, "published_at": NOW}
            self.models.append(ModelVersion(payload=msgspec.Raw(payload), **cast(Any, message)))
        return references

    def fence(self) -> Any:
        """Nobody else writes."""

    def control(self, item: Any, others: object = ()) -> None:
        self.items.append(item)
        self.headers.append(self._signer.headers(control_record(item), "control"))

    note = control

    def written_by(self, settings: Settings) -> None:
        """Read and write from now on as a program with other settings."""
        self._settings, self._signer = settings, Signer.from_settings(settings)

    def find(self, reference: VersionReference, waiting: Any = None) -> ModelVersion | None:
        return next((model for model in self.models if model.digest == reference.digest), None)

    def readable(self, waiting: Any = None) -> range:
        return range(len(self.models))

    def published(self) -> PublishedVersions:
        outputs = [control_record(item) for item in self.items]
        records = [
            Record("control", 0, at, 0, output.key, output.value, headers)
            for at, (output, headers) in enumerate(zip(outputs, self.headers, strict=True))
        ]
        return PublishedVersions(self._settings, records, self)

    def changes(self, barred: str = "", *, second_approval: bool = False, **options: Any) -> VersionChanges:
        settings = self._settings.model_copy(update={"barred_features": barred, "second_approval": second_approval})
        return VersionChanges(self.published(), self.registry, self, settings, **options)

    def publish(self, *versions: Any, step: str = "publish", by: str = "train") -> None:
        contents = [
            VersionToPublish(LIGHTGBM if hasattr(version, "trees") else POLICY, version.version, version.to_payload())
            for version in versions
        ]
        self.activate(self.contents(contents), ModelChange(step, by, "A test."))

    def register(self, *versions: Any) -> None:
        for version in versions:
            self.registry.register(LIGHTGBM if hasattr(version, "trees") else POLICY, version.to_payload())


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    made = Cluster(tmp_path)
    made.publish(MODEL, FIRST)
    return made


def now_active(cluster: Cluster) -> Active:
    return cluster.changes().active()


def test_a_version_of_the_registry_becomes_active_with_the_policy_made_for_it(cluster: Cluster) -> None:
    cluster.register(OTHER, policy(0.7), SECOND)
    wanted = Active(OTHER.version, SECOND.version)
    assert cluster.changes().promote(OTHER.version[:8], DANA) == wanted == now_active(cluster)
    last = cluster.items[-1]
    assert isinstance(last, Activation)
    assert (last.step, last.by, last.reason) == ("promote", "dana", "A test.")
    assert last.figures["before"] == {"lightgbm": MODEL.version, "policy": FIRST.version}
    with pytest.raises(ModelError, match="are active already"):
        cluster.changes().promote(OTHER.version, DANA)


def test_a_version_of_the_cluster_becomes_active_with_the_policy_that_it_had_last(cluster: Cluster) -> None:
    cluster.publish(PACED, step="pace", by="pace")
    cluster.publish(OTHER, SECOND)
    contents = len(cluster.models)
    assert cluster.changes().promote(MODEL.version, DANA) == Active(MODEL.version, PACED.version) == now_active(cluster)
    assert len(cluster.models) == contents


@pytest.mark.parametrize("damage", ["kernel", "content", "policy"])
def test_what_could_not_be_used_is_not_activated(cluster: Cluster, damage: str) -> None:
    payload = OTHER.to_payload()
    reason = "no policy was made for"
    if damage == "kernel":
        payload, reason = (
            payload.replace(KERNEL_VERSION.encode(), b"2-00000000"),
            "cannot be used.*does not fit the kernel",
        )
    cluster.activate(cluster.contents([VersionToPublish(LIGHTGBM, "x", payload)]), ModelChange())
    if damage == "content":
        cluster.models.pop()
        reason = "cannot be read on topic models"
    version = payload_digest(payload)[:12]
    written = len(cluster.items)
    with pytest.raises(ModelError, match=reason):
        cluster.changes().promote(version, DANA, None if damage == "policy" else FIRST.version)
    assert len(cluster.items) == written
    assert now_active(cluster).lightgbm == (OTHER.version if damage == "policy" else MODEL.version)


def test_a_version_that_needs_what_is_not_declared_is_not_activated(cluster: Cluster) -> None:
    """Every worker would refuse it."""
    cluster.changes().publish(OTHER, SECOND, DANA)
    written, asked = len(cluster.items), next(iter(MODEL.gain_shares))
    changes = cluster.changes(declared=lambda: SimpleNamespace(features=[name for name in FEATURES if name != asked]))
    with pytest.raises(ModelError, match=f"lightgbm {MODEL.version} needs {asked}, which the cluster's active"):
        changes.publish(MODEL, FIRST, DANA)
    assert len(cluster.items) == written
    cluster.changes(declared=lambda: SimpleNamespace(features=FEATURES)).publish(MODEL, FIRST, DANA)
    assert now_active(cluster).lightgbm == MODEL.version


def test_a_trained_version_takes_over_the_policy_that_is_active(cluster: Cluster) -> None:
    changes = cluster.changes()
    before = changes.inherited_policy()
    assert before is not None
    assert before.version == FIRST.version
    made = before.replace(threshold=0.4, lightgbm_version=OTHER.version)
    changes.publish(OTHER, made, ChangeAuthor("train", ""))
    assert now_active(cluster) == (OTHER.version, made.version)
    assert (cluster.items[-1].step, cluster.items[-1].by) == ("publish", "train")
    third = LightGBMModel(OTHER._text, msgspec.structs.replace(OTHER.calibration, intercept=1.5))
    with pytest.raises(ModelError, match="was never active"):
        cluster.changes(second_approval=True).publish(third, made, DANA)


def test_a_policy_is_taken_over_from_a_version_of_another_kernel(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path)
    assert cluster.changes().inherited_policy() is None
    payload = OTHER.to_payload().replace(KERNEL_VERSION.encode(), b"2-00000000")
    contents = [VersionToPublish(LIGHTGBM, "x", payload), VersionToPublish(POLICY, FIRST.version, FIRST.payload)]
    cluster.activate(cluster.contents(contents), ModelChange())
    assert cluster.published().model_set.active is None
    inherited = cluster.changes().inherited_policy()
    assert inherited is not None
    assert inherited.version == FIRST.version


def test_a_version_of_barred_features_is_not_promoted(cluster: Cluster) -> None:
    cluster.register(OTHER, SECOND)
    with pytest.raises(ModelError, match=r"was trained on hour, .*FRAUD_PIPELINE_BARRED_FEATURES bars"):
        cluster.changes("hour, customer_*").promote(OTHER.version, DANA)
    assert now_active(cluster).lightgbm == MODEL.version
    assert cluster.changes("customer_*").promote(OTHER.version, DANA).lightgbm == OTHER.version


def test_a_version_is_named_by_enough_of_its_digits(cluster: Cluster) -> None:
    known = cluster.changes().known
    for text, reason in (("xyz", "is no version"), ("0000", "have no version 0000"), ("", "is no version")):
        with pytest.raises(ModelError, match=reason):
            known.find(text)
    assert known.find(FIRST.version[:6]).version == FIRST.version
    with pytest.raises(ModelError, match="no lightgbm version"):
        known.find(FIRST.version, LIGHTGBM)


def test_a_version_that_may_be_several_asks_for_more_digits(cluster: Cluster) -> None:
    known: dict[str, Policy] = {}
    for number in range(100_000):
        version = policy(0.1 + number / 1e6)
        other = known.setdefault(version.version[:4], version)
        if other is not version:
            break
    cluster.register(version, other)
    with pytest.raises(
        ModelError, match=rf"{version.version[:4]} may be any of policy .*, policy .*: give more digits"
    ):
        cluster.changes().known.find(version.version[:4])


def test_a_rollback_goes_back_by_one_and_then_further(cluster: Cluster) -> None:
    with pytest.raises(ModelError, match="no bundle before the present one"):
        cluster.changes().rollback(DANA)
    third = policy(0.4, lightgbm_version=OTHER.version)
    cluster.publish(OTHER, SECOND)
    cluster.publish(third, step="policy", by="dana")
    for wanted in ((OTHER.version, SECOND.version), (MODEL.version, FIRST.version)):
        assert cluster.changes().rollback(DANA) == wanted == now_active(cluster)
        assert (cluster.items[-1].step, cluster.items[-1].by) == ("rollback", "dana")
    with pytest.raises(ModelError, match="no bundle before the present one"):
        cluster.changes().rollback(DANA)


def test_a_rollback_passes_over_what_workers_have_refused(cluster: Cluster) -> None:
    cluster.publish(OTHER, SECOND)
    for name in ("one", "two"):
        damaged = VersionToPublish(LIGHTGBM, name, b'{"kind":"lightgbm","name":"%s"}' % name.encode())
        cluster.activate(cluster.contents([damaged]), ModelChange())
    assert cluster.changes().rollback(DANA) == Active(MODEL.version, FIRST.version) == now_active(cluster)


def test_a_fall_back_is_to_what_was_approved_and_leaves_river_out(cluster: Cluster) -> None:
    cluster.publish(OTHER, SECOND, step="promote", by="retrain")
    found = cluster.changes().fall_back(DANA)
    active = cluster.changes()._published.model_set.active
    assert active is not None
    assert (active.lightgbm.version, active.policy.version) == found
    assert (active.lightgbm.version, active.policy.threshold, active.policy.blend) == (MODEL.version, 0.6, 0.0)
    with pytest.raises(ModelError, match="active already, without the online model"):
        cluster.changes().fall_back(DANA)
    # Back to what was active, and the policy of a fall-back is none to promote.
    assert cluster.changes().promote(MODEL.version, DANA).policy == FIRST.version
    assert cluster.changes().rollback(DANA) == found
    assert cluster.changes().rollback(DANA) == (OTHER.version, SECOND.version)


def test_a_policy_changes_in_what_is_given_alone(cluster: Cluster) -> None:
    after = cluster.changes().set_policy({"threshold": 0.3, "audit_rate": 0.01}, DANA)
    assert now_active(cluster) == (MODEL.version, after.version)
    active = cluster.changes().active_policy()
    kept = (active.blend, active.max_reasons, active.lightgbm_version)
    assert kept == (FIRST.blend, FIRST.max_reasons, FIRST.lightgbm_version)
    assert cluster.items[-1].figures["changes"] == {
        "threshold": {"before": 0.6, "after": 0.3},
        "audit_rate": {"before": 0.0, "after": 0.01},
    }
    with pytest.raises(ModelError, match="has these values already"):
        cluster.changes().set_policy({"threshold": 0.3}, DANA)
    with pytest.raises(ModelError, match="between 0 and 1"):
        cluster.changes().set_policy({"blend": 2.0}, DANA)


def test_the_list_has_what_was_rejected_and_what_cannot_be_read(cluster: Cluster) -> None:
    contents = [VersionToPublish(LIGHTGBM, OTHER.version, OTHER.to_payload())]
    cluster.assess("rejected", cluster.contents(contents), [], ModelChange("", "retrain", "It finds less."))
    lost = cluster.contents([VersionToPublish(POLICY, SECOND.version, SECOND.payload)])
    cluster.models.pop()
    cluster.activate(lost, ModelChange("policy", "dana", "A test."))
    rows = {row["version"]: row for row in rows_of(cluster.published(), cluster.registry, 10)}
    assert {row["version"] for row in rows.values() if row["active"]} == {MODEL.version, FIRST.version}
    assert (rows[OTHER.version]["step"], rows[OTHER.version]["by"]) == ("rejected", "retrain")
    assert rows[OTHER.version]["facts"]["trees"] == OTHER.trees
    assert "cannot be read on topic models" in rows[SECOND.version]["error"]


def test_a_switch_says_who_and_why(cluster: Cluster) -> None:
    cluster.changes().switch_learning(DANA, frozen=True)
    assert cluster.changes().history.frozen
    item = cluster.items[-1]
    assert isinstance(item, LearningSwitch)
    assert (item.by, item.reason) == ("dana", "A test.")


def test_the_versions_of_a_time_are_those_that_workers_had(cluster: Cluster) -> None:
    first = cluster.items[0].activated_at
    cluster.publish(OTHER, SECOND)
    published = cluster.published()
    then, now = (published.model_set_at(item.activated_at).active for item in (cluster.items[0], cluster.items[-1]))
    assert then is not None
    assert now is not None
    assert (then.lightgbm.version, now.lightgbm.version) == (MODEL.version, OTHER.version)
    assert published.model_set_at(first.replace(year=2000)).active is None


def test_no_version_is_active_before_one_is_published(tmp_path: Path) -> None:
    empty = Cluster(tmp_path)
    for change in (empty.changes().active, lambda: empty.changes().rollback(DANA)):
        with pytest.raises(ModelError, match="no version is active"):
            change()
    with pytest.raises(ModelError, match="no bundle was activated"):
        empty.changes().fall_back(DANA)
    assert isinstance(FIRST, Policy)


def test_records_that_come_later_change_what_is_known(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path)
    published = cluster.published()
    assert published.model_set.active is None

    def come(*items: Any) -> None:
        published.add([Record("control", 0, 0, 0, b"", control_record(item).value) for item in items])

    cluster.publish(MODEL, FIRST)
    cluster.publish(OTHER, SECOND)
    come(cluster.items[0])
    assert published.model_set.lightgbm is not None
    assert published.model_set.lightgbm.version == MODEL.version
    # An activation waits for its content, whenever that comes.
    models, cluster.models = cluster.models, cluster.models[:2]
    come(cluster.items[1])
    assert published.model_set.lightgbm.version == MODEL.version
    cluster.models = models
    come()
    assert published.model_set.lightgbm.version == OTHER.version
    assert [tenure.lightgbm.digest for tenure in published.history.tenures()] == [MODEL.digest, OTHER.digest]


def proposed(
    cluster: Cluster, outcome: str = "accepted", against: str | None = None, compared: Sequence[VersionReference] = ()
) -> None:
    """Record a proposal of `OTHER` by Mona."""
    recipe = recipe_of_facts(lightgbm_facts(KnownVersion(LIGHTGBM, MODEL.version, MODEL.to_payload())))
    versions = cluster.contents(
        [
            VersionToPublish(LIGHTGBM, OTHER.version, OTHER.to_payload()),
            VersionToPublish(POLICY, SECOND.version, SECOND.to_payload()),
        ]
    )
    figures = {RECIPE: "new", AGAINST_RECIPE: against or recipe, "frauds_a_day_more": 1.5}
    cluster.assess(outcome, versions, compared, ModelChange(outcome, "mona", "It knows more.", figures))


def test_a_proposed_version_is_approved_by_somebody_else(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path)
    cluster.publish(MODEL, FIRST)
    proposed(cluster)
    with pytest.raises(ModelError, match="mona has proposed this version: somebody else"):
        cluster.changes().approve(OTHER.version, ChangeAuthor("Mona ", "Mine."))
    active = cluster.changes().approve(OTHER.version, DANA)
    assert active.lightgbm == OTHER.version
    approval = cluster.items[-1]
    assert (approval.step, approval.by, approval.figures["proposed_by"]) == ("promote", "dana", "mona")
    assert approval.figures["frauds_a_day_more"] == 1.5
    # The policy is the active one with the threshold of the proposal.
    made = cluster.published().model_set.policy
    assert made is not None
    assert (made.threshold, made.lightgbm_version) == (SECOND.threshold, OTHER.version)
    with pytest.raises(ModelError, match="was active already"):
        cluster.changes().approve(OTHER.version, DANA)


def test_where_records_are_signed_the_key_tells_who_approves(tmp_path: Path) -> None:
    (mona, of_mona), (dana, of_dana) = key_pair(tmp_path, "mona"), key_pair(tmp_path, "dana")
    both = {"registry_dir": tmp_path, "deployment": "test", "trusted_keys": f"{of_mona}, {of_dana}"}
    by_mona, by_dana = (Settings(signing_key_file=key, **cast(Any, both)) for key in (mona, dana))
    cluster = Cluster(tmp_path)
    cluster.publish(MODEL, FIRST)
    proposed(cluster)
    unsigned = {"unsigned_below": {"control": len(cluster.items)}}
    cluster.written_by(by_dana.model_copy(update=unsigned))
    with pytest.raises(ModelError, match="was not signed: propose it again"):
        cluster.changes().approve(OTHER.version, DANA)
    cluster.written_by(by_mona.model_copy(update=unsigned))
    proposed(cluster)
    # Another name is easily given.
    with pytest.raises(ModelError, match="was proposed with the key that you sign with"):
        cluster.changes().approve(OTHER.version, DANA)
    cluster.written_by(by_dana.model_copy(update=unsigned))
    changes = cluster.changes()
    assert changes.knows_signers
    assert changes.approve(OTHER.version, ChangeAuthor("mona", "The same account.")).lightgbm == OTHER.version
    assert not Cluster(tmp_path).changes().knows_signers


def test_what_was_not_accepted_against_the_active_recipe_is_not_approved(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path)
    cluster.publish(MODEL, FIRST)
    cluster.register(OTHER)
    with pytest.raises(ModelError, match="was not proposed"):
        cluster.changes().approve(OTHER.version, DANA)
    proposed(cluster, "rejected")
    with pytest.raises(ModelError, match="was rejected"):
        cluster.changes().approve(OTHER.version, DANA)
    proposed(cluster, against="another")
    with pytest.raises(ModelError, match="of another recipe than that was compared"):
        cluster.changes().approve(OTHER.version, DANA)


def test_a_proposal_against_a_version_that_does_not_tell_its_recipe_is_approved(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path)
    cold, of_cold = cold_start(0.01, 0.5, 0.0)
    cluster.publish(cold, of_cold)
    proposed(cluster, against=recipe_of(cold).digest, compared=cluster.published().history.tenures()[-1].references)
    assert cluster.changes().approve(OTHER.version, DANA).lightgbm == OTHER.version
    # Beside trees the online model waits for its gate.
    assert (of_cold.blend, cluster.changes().active_policy().blend) == (1.0, FIRST_BLEND)


def test_with_a_second_approval_nobody_promotes_what_was_never_active(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path)
    cluster.register(MODEL, FIRST, OTHER, SECOND)
    # Without any version there is nothing to compare with.
    cluster.changes(second_approval=True).promote(MODEL.version, DANA)
    with pytest.raises(ModelError, match=r"SECOND_APPROVAL is set, and version .* was never active"):
        cluster.changes(second_approval=True).promote(OTHER.version, DANA)
    cluster.changes().promote(OTHER.version, DANA)
    assert cluster.changes(second_approval=True).promote(MODEL.version, DANA).lightgbm == MODEL.version
