"""The active versions: what a version changes, and what is refused."""

from dataclasses import replace

import lightgbm
import msgspec
import numpy as np
import pytest

from pipeline.decision.audit_sample import Audit
from pipeline.decision.policy import Policy
from pipeline.engine.feedback.learn import model_record
from pipeline.engine.scores.active_models import ModelSet
from pipeline.features.catalogue import FEATURES, KERNEL_VERSION
from pipeline.scoring.errors import ModelError
from pipeline.scoring.kinds import Scorer
from pipeline.scoring.lightgbm_model import LightGBMModel
from pipeline.scoring.river_factory import new_learner
from schemas.messages import ModelVersion
from tests.helpers.champion import empty_model_set, policy
from tests.helpers.logs import START
from tests.helpers.models import example, matrix, small_model, truth


def record(name: str, version: str, payload: bytes, **changes: object) -> ModelVersion:
    message = msgspec.json.decode(model_record(name, version, payload, START).value or b"", type=ModelVersion)
    return msgspec.structs.replace(message, **changes)


def champion(model: LightGBMModel | None = None) -> ModelVersion:
    model = model or small_model()
    return record("lightgbm", model.version, model.to_payload())


def of_policy(policy: Policy) -> ModelVersion:
    return record("policy", policy.version, policy.to_payload())


def river(count: int = 20) -> tuple[Scorer, ModelVersion]:
    learner = new_learner()
    learner.learn_examples([example(number) for number in range(count)])
    model = learner.snapshot(count)
    return model, record("river", model.version, model.to_payload())


def other_model() -> LightGBMModel:
    features = matrix(300, seed=5)
    booster = lightgbm.train(
        {"objective": "binary", "num_leaves": 4, "verbosity": -1, "num_threads": 1, "seed": 1},
        lightgbm.Dataset(
            features, truth(features).astype(float), feature_name=list(FEATURES), params={"verbosity": -1}
        ),
        num_boost_round=2,
    )
    return LightGBMModel(booster.model_to_string())


def active_after(*records: ModelVersion) -> ModelSet:
    model_set = empty_model_set()
    for record in records:
        model_set = model_set.updated(record)
    return model_set


@pytest.mark.parametrize("records", [(), (champion(),), (of_policy(policy()),), (of_policy(policy()), river()[1])])
def test_nothing_is_active_without_champion_and_policy(records: tuple[ModelVersion, ...]) -> None:
    assert active_after(*records).active is None


@pytest.mark.parametrize("reverse", [False, True])
def test_champion_and_policy_are_active_with_a_first_river_in_any_order(reverse: bool) -> None:
    records = [champion(), of_policy(policy())]
    active = active_after(*(reversed(records) if reverse else records)).active
    assert active is not None
    versions = active.versions("7")
    assert (versions.lightgbm, versions.policy) == (small_model().version, policy().version)
    assert (versions.kernel, versions.rates) == (KERNEL_VERSION, "7")
    assert versions.river.endswith("@0")
    features = matrix(5)
    logit = active.lightgbm.logit(features)
    np.testing.assert_array_equal(active.river.logit(features, logit), logit)


def test_the_latest_record_of_each_counts() -> None:
    learned, published = river()
    loose = policy(0.2)
    active = active_after(champion(), of_policy(policy()), published, of_policy(loose)).active
    assert active is not None
    assert (active.river.version, active.policy.version) == (learned.version, loose.version)
    features = matrix(5)
    logit = active.lightgbm.logit(features)
    np.testing.assert_array_equal(active.river.logit(features, logit), learned.logit(features, logit))


def test_the_online_model_is_kept_when_another_champion_comes() -> None:
    learned, published = river()
    newer = other_model()
    model_set = active_after(published, champion(), of_policy(policy()), champion(newer))
    assert model_set.active is not None
    assert model_set.active.lightgbm.version == newer.version
    assert model_set.active.river.version == learned.version


def test_several_versions_are_active_at_once_or_none_is() -> None:
    model_set = active_after(champion(), of_policy(policy()))
    newer, loose = other_model(), policy(0.2)
    both = model_set.updated(champion(newer), of_policy(loose)).active
    assert both is not None
    assert (both.lightgbm.version, both.policy.version) == (newer.version, loose.version)
    with pytest.raises(ModelError):
        model_set.updated(champion(newer), record("policy", "v", b'{"kind":"something"}'))
    assert model_set.active is not None
    assert model_set.active.lightgbm.version == small_model().version


@pytest.mark.parametrize("name", ["lightgbm", "river", "policy"])
def test_a_payload_of_another_kind_is_refused(name: str) -> None:
    payload = b'{"kind":"something"}'
    with pytest.raises(ModelError):
        empty_model_set().updated(record(name, "v", payload))


def test_features_of_another_kernel_are_refused() -> None:
    payload = small_model().to_payload().replace(KERNEL_VERSION.encode(), b"0-00000000")
    with pytest.raises(ModelError, match="kernel 0-00000000"):
        empty_model_set().updated(record("lightgbm", "v", payload))


def test_a_name_that_this_release_does_not_know_changes_nothing() -> None:
    model_set = active_after(champion(), of_policy(policy()))
    assert model_set.updated(record("control", "v", b"{}")) is model_set


def test_a_board_does_not_change() -> None:
    model_set = active_after(champion(), of_policy(policy()))
    before = model_set.active
    model_set.updated(of_policy(policy(0.2)))
    assert model_set.active is before


def test_a_policy_is_active_only_where_the_key_of_its_audit_is() -> None:
    """Programs that decide nothing need none."""
    audit = of_policy(Policy(0.5, audit=Audit(rate=0.1, key_id="k1")))
    with pytest.raises(ModelError, match=r"'k1'.*FRAUD_PIPELINE_AUDIT_KEYS"):
        replace(empty_model_set(), audit_keys={}).updated(champion(), audit)
    model_set = replace(empty_model_set(), audit_keys={"k1": "secret"}).updated(champion(), audit)
    assert model_set.active is not None
    who = np.arange(1_000, dtype=np.uint64)
    selected = model_set.active.policy.decide(np.zeros(1_000), matrix(1_000), who).alert
    assert 50 < selected.sum() < 150
    assert "secret" not in repr(model_set)
    unkeyed = empty_model_set().updated(champion(), audit)
    assert unkeyed.policy is not None
    with pytest.raises(ModelError, match="needs the key"):
        unkeyed.policy.decide(np.zeros(1), matrix(1), who[:1])
