"""Challengers on a simulated history, what `control` tells of the past, and the guard on what was really served."""

from collections.abc import Sequence
from datetime import UTC, datetime
from functools import cache
from typing import Any

import msgspec
import numpy as np
import pandas as pd
import pytest

from pipeline.decision.budget import case_numbers, case_threshold
from pipeline.decision.policy import FIRST_BLEND, Policy
from pipeline.kafka.records.internal import TrustedRecords, not_counted
from pipeline.kafka.session.quarantine import control_record
from pipeline.learning.regimes import NEVER_US
from pipeline.models.version_history import Tenure, VersionHistory
from pipeline.retraining.challenger import (
    LEAST_RECENT_SCORES,
    Challenge,
    Champion,
    CycleOptions,
    challenge,
    compared_days,
    policy_for,
    scorings,
    trained_until_us,
)
from pipeline.retraining.cluster_reader import AS_OF, BY, ClusterLog, Cycles, cycles_of
from pipeline.retraining.gate import GateLimits
from pipeline.retraining.guard import harm_done
from pipeline.scoring.errors import ModelError
from pipeline.scoring.lightgbm_model import LightGBMModel
from pipeline.settings import Settings
from pipeline.training.cold_start import cold_start
from pipeline.training.fit import TrainingConfig, train
from pipeline.training.served import ServedLog, ServedRows
from schemas.messages import Activation, Assessment, Control, VersionReference
from schemas.records import Record
from schemas.times import US_PER_DAY
from tests.helpers.models import edited_text, small_model
from tests.helpers.served import feature_records, label_records, simulated

HISTORY = simulated(60, seed=2, cards=400, merchants=800)
BUDGET = 15.0
LIMITS = GateLimits(alerts_per_day=BUDGET)
OPTIONS = CycleOptions(maturity_days=7.0, compare_days=10, validation_days=5.0)
FEATURES = ("amount", "card_amount_to_usual", "merchant_fraud_run_seconds", "merchant_unreported_since_fraud", "hour")
NOW_US = int(HISTORY.event_time_us[-1])
START_US = int(HISTORY.event_time_us[0])


@cache
def champion() -> Champion:
    """A version that was trained before the days of the comparison, with a recipe of its own."""
    as_of_us = compared_days(HISTORY.served(small_model()), OPTIONS)[0] - US_PER_DAY
    rows = HISTORY.served(small_model(), as_of_us)
    config = TrainingConfig(trees=60, leaves=7, learning_rate=0.1)
    policy = Policy(0.5, audit_rate=0.01, metadata={"alerts_per_day": BUDGET})
    found = train(
        rows.training_set(as_of_us),
        rows.split(as_of_us, 7 * US_PER_DAY, 5.0),
        config=config,
        features=FEATURES,
        policy=policy,
        alerts_per_day=BUDGET,
    )
    return Champion(found.model, found.policy)


@cache
def accepted() -> Challenge:
    return challenge(HISTORY.served(champion().model), champion(), champion().model, LIMITS, OPTIONS)


def test_a_challenger_takes_over_the_recipe_and_what_the_policy_keeps() -> None:
    found = accepted()
    assert found.judgement.accepted, found.judgement.reason
    model, policy = found.trained.model, found.policy
    for name, value in (("trees", 60), ("leaves", 7), ("learning_rate", 0.1)):
        assert model.metadata["training"][name] == value
    assert model.trained_on == champion().model.trained_on == FEATURES
    assert (policy.audit_rate, policy.blend) == (0.01, champion().policy.blend)
    assert policy.lightgbm_version == model.version
    assert policy.metadata["alerts_per_day"] == BUDGET
    # It has learned what is known by now, of everything that is mature.
    until_us = trained_until_us(model)
    assert until_us == NOW_US
    checked_to = datetime.fromisoformat(model.metadata["periods"]["validation"]["to"]).timestamp() * 1e6
    assert 0 <= NOW_US - 7 * US_PER_DAY - checked_to < US_PER_DAY
    assert found.judgement.figures["compared_days"] == OPTIONS.compare_days


def test_the_first_threshold_and_the_recent_scores_are_those_of_the_newest_week() -> None:
    found = accepted()
    newest = HISTORY.event_time_us >= NOW_US - 7 * US_PER_DAY
    rows = HISTORY.served(found.trained.model).take(newest)
    score, case = rows.score, case_numbers(rows.card, rows.event_time_us)
    highest = pd.Series(score).groupby(case).max()
    cases = int((highest >= found.policy.threshold).sum())
    assert BUDGET * 7 * 0.9 <= cases <= BUDGET * 7 < int((score >= found.policy.threshold).sum())
    hours, scores = zip(*found.policy.metadata["recent_scores"], strict=True)
    np.testing.assert_allclose(sorted(scores), np.sort(highest)[-LEAST_RECENT_SCORES:], rtol=1e-5)
    assert list(hours) == sorted(hours)
    assert hours[-1] <= NOW_US // (US_PER_DAY // 24) < hours[0] + 7 * 24 + 2


def test_behind_a_cold_start_a_version_scores_without_the_online_model() -> None:
    cold = Champion(*cold_start(0.01, 0.5, 0.0))
    assert cold.policy.blend == 1.0
    model = champion().model
    alone = HISTORY.served(model).score
    # The online model alone tells transactions apart: beside trees it would count again what they know.
    rows = with_columns(HISTORY.served(cold.model), score=alone)
    made = policy_for(rows, model, cold, LIMITS)
    assert made.blend == FIRST_BLEND
    week = rows.event_time_us >= NOW_US - 7 * US_PER_DAY
    case = case_numbers(rows.card[week], rows.event_time_us[week])
    days = (NOW_US - rows.event_time_us[week][0]) / US_PER_DAY
    assert made.threshold == case_threshold(alone[week], case, days, BUDGET)
    np.testing.assert_array_equal(scorings(rows, cold, model, None).candidate, alone)


def test_the_gate_judges_a_version_that_knows_nothing_of_the_compared_days() -> None:
    """Nonsense before the comparison is rejected, although a training on all rows would see sense."""
    rows = HISTORY.served(champion().model)
    start_us, _ = compared_days(rows, OPTIONS)
    earlier = np.flatnonzero(rows.event_time_us < start_us)
    features = rows.features.copy()
    # Each earlier row has the features of another one.
    features[earlier] = features[np.random.default_rng(1).permutation(earlier)]
    broken = with_columns(rows, features=features)
    try:
        judgement = challenge(broken, champion(), champion().model, LIMITS, OPTIONS).judgement
    except ModelError as error:
        judgement = None
        sentence = str(error)
    else:
        sentence = judgement.reason
    assert judgement is None or not judgement.accepted
    assert any(part in sentence for part in ("better than chance", "do not mean more fraud", "frauds a day"))


def with_columns(rows: ServedRows, **columns: Any) -> ServedRows:
    fields = {name: getattr(rows, name) for name in ServedRows.__slots__}
    return ServedRows(**{**fields, **columns})


def test_the_age_of_maturity_is_that_of_old_reports_if_there_are_enough() -> None:
    rows = HISTORY.served(champion().model)
    first_us, now_us = START_US, START_US + 2 * (NOW_US - START_US)
    slower = with_columns(rows, event_time_us=first_us + 2 * (rows.event_time_us - first_us))
    options = CycleOptions(fallback_days=9.0, compare_days=10)
    nobody = with_columns(slower, reported_us=np.full(len(rows), NEVER_US))
    assert compared_days(nobody, options)[1] == (now_us - 9 * US_PER_DAY) // US_PER_DAY * US_PER_DAY
    reported_us = np.where(HISTORY.fraud, slower.event_time_us + 3 * US_PER_DAY, NEVER_US)
    start_us, end_us = compared_days(with_columns(slower, reported_us=reported_us), options)
    assert end_us == (now_us - 3 * US_PER_DAY) // US_PER_DAY * US_PER_DAY
    assert end_us - start_us == 10 * US_PER_DAY


def test_too_little_history_and_an_unusable_recipe_are_sentences() -> None:
    rows = HISTORY.served(champion().model)
    with pytest.raises(ModelError, match="holds no decision"):
        challenge(rows.take(slice(0)), champion(), None, LIMITS, OPTIONS)
    with pytest.raises(ModelError, match="give a longer one"):
        challenge(rows.take(slice(500)), champion(), None, LIMITS, OPTIONS)
    odd = LightGBMModel(accepted().trained.model._text, metadata={"training": {"trees": "many"}})
    with pytest.raises(ModelError, match="does not say how it was trained"):
        challenge(rows, Champion(odd, champion().policy), None, LIMITS, OPTIONS)


# ---- control


def reference(name: str, version: str) -> VersionReference:
    return VersionReference(name=name, version=version, digest=version.ljust(64, "0"), offset=0)


def at(second: int) -> datetime:
    return datetime.fromtimestamp(second, UTC)


def activation(second: int, *versions: str, step: str = "publish", by: str = "", **figures: Any) -> Activation:
    named = [reference("policy" if version.startswith("p") else "lightgbm", version) for version in versions]
    return Activation(versions=named, activated_at=at(second), step=step, by=by, figures=figures)


def control(*items: Control) -> VersionHistory:
    records = [Record("control", 0, n, 0, b"", control_record(item).value) for n, item in enumerate(items)]
    history, garbage = VersionHistory(), Record("control", 0, len(items), 0, b"", b"garbage")
    history.take([*records, garbage], TrustedRecords(Settings(), not_counted))
    return history


def test_control_tells_which_versions_served_and_what_the_service_did() -> None:
    found = control(
        activation(1, "a", "p1"),
        activation(2, "p2", step="pace"),
        activation(3, "b", "p3", step="promote", by=BY, **{AS_OF: 30}),
        activation(4, "b"),
        activation(5, "a", "p2", step="rollback", by=BY, **{AS_OF: 50}),
        Assessment(versions=[], outcome="failed", by=BY, reason="", figures={AS_OF: 60}, assessed_at=at(6)),
        Assessment(versions=[], outcome="kept", by="somebody", reason="", figures={AS_OF: 70}, assessed_at=at(7)),
    )
    tenures = found.tenures()
    reported = [(tenure.lightgbm.version, tenure.policy and tenure.policy.version, tenure.step) for tenure in tenures]
    assert reported == [("a", "p2", "publish"), ("b", "p3", "promote"), ("a", "p2", "rollback")]
    assert [tenure.activated_ms for tenure in tenures] == [1_000, 3_000, 5_000]
    assert cycles_of(found) == Cycles(last_us=60, rollback_us=50)
    assert [tenure.given and tenure.given.version for tenure in tenures] == ["p1", "p3", "p2"]


def test_a_rollback_of_a_person_counts_from_the_last_cycle() -> None:
    promoted = activation(3, "b", "p3", step="promote", by=BY, **{AS_OF: 30})
    assert cycles_of(control(promoted, activation(4, "a", "p1", step="rollback", by="dana"))).rollback_us == 30
    assert cycles_of(control(activation(4, "a", "p1", step="rollback", by="dana"))).rollback_us is None


# ---- guard


class Topics(ClusterLog):
    """Served rows, with the contents of some versions."""

    def __init__(self, served: ServedLog, *models: LightGBMModel) -> None:
        self.served = served
        self._of_version = {model.version: model for model in models}

    def model(self, tenure: Tenure) -> LightGBMModel | None:
        return self._of_version.get(tenure.lightgbm.version)

    def policy(self, tenure: Tenure) -> Policy | None:
        return Policy(0.5)


def inverted(model: LightGBMModel, number: int = 0) -> LightGBMModel:
    """A version whose trees say the opposite; one for each number."""

    def turned(line: str) -> str:
        name, _, values = line.partition("=")
        return (
            line if name != "leaf_value" else f"{name}=" + " ".join(f"{-float(value):.17g}" for value in values.split())
        )

    text = "\n".join(map(turned, model._text.split("\n")))
    return LightGBMModel(edited_text(text, "^Tree=0$", "Tree=0"), model.calibration, {"number": number})


def tenures(*activated: tuple[LightGBMModel, int, str]) -> Sequence[Tenure]:
    return [
        Tenure(reference("lightgbm", model.version), None, at_us // 1_000, step) for model, at_us, step in activated
    ]


def served_by(*parts: tuple[LightGBMModel, int]) -> ServedLog:
    """A history whose rows from each time on one version served, with the frauds that are reported by its end."""
    log = ServedLog(Settings())
    firsts = [int(np.searchsorted(HISTORY.event_time_us, from_us)) for _, from_us in parts]
    for (model, _), first, end in zip(parts, firsts, [*firsts[1:], len(HISTORY.fraud)], strict=True):
        log.add_features(feature_records(HISTORY, model, rows=slice(first, end)))
    known = HISTORY.fraud & (HISTORY.event_time_us < NOW_US - 7 * US_PER_DAY)
    log.add_labels(label_records(HISTORY, np.flatnonzero(known).tolist()))
    return log


SWITCH_US = NOW_US - 20 * US_PER_DAY


def test_a_bad_version_that_somebody_activated_is_rolled_back_to_the_one_before() -> None:
    good, bad = champion().model, inverted(champion().model)
    log = served_by((good, START_US), (bad, SWITCH_US))
    versions = tenures((good, START_US, "publish"), (bad, SWITCH_US, "publish"))
    found = harm_done(Topics(log, good, bad), Policy(1.0), versions, BUDGET, whole=True)
    assert found is not None
    decision, to = found
    assert to == versions[0]
    assert "proven to be fewer" in decision.reason
    # Not before anything is known, not without its contents, and not where it was never changed.
    assert harm_done(Topics(log, good), Policy(1.0), versions, BUDGET, whole=False) is None
    assert harm_done(Topics(log, bad), Policy(1.0), versions, BUDGET, whole=True) is None
    assert harm_done(Topics(log, good, bad), Policy(1.0), versions[1:], BUDGET, whole=True) is None
    back = [*versions, *tenures((good, NOW_US, "rollback"))]
    assert harm_done(Topics(log, good, bad), Policy(1.0), back, BUDGET, whole=True) is None


def test_a_renewal_of_the_same_recipe_stays() -> None:
    good, renewed = champion().model, accepted().trained.model
    log = served_by((good, START_US), (renewed, SWITCH_US))
    versions = tenures((good, START_US, "publish"), (renewed, SWITCH_US, "promote"))
    assert harm_done(Topics(log, good, renewed), Policy(1.0), versions, BUDGET, whole=True) is None


def test_harm_of_a_chain_of_renewals_returns_to_the_version_before_it() -> None:
    good = champion().model
    bad = [inverted(good, number) for number in range(10)]
    starts = [SWITCH_US + 2 * number * US_PER_DAY for number in range(10)]
    log = served_by((good, START_US), *zip(bad, starts, strict=True))
    versions = tenures(
        (good, START_US, "publish"), *((item, from_us, "promote") for item, from_us in zip(bad, starts, strict=True))
    )
    found = harm_done(Topics(log, good, *bad), Policy(1.0), versions, BUDGET, whole=True)
    assert found is not None
    # The newest is too young for any report: the chain tells.
    assert found[1] == versions[0]


def test_twice_the_budget_is_harm_at_once() -> None:
    good = champion().model
    loud = LightGBMModel(good._text, msgspec.structs.replace(good.calibration, intercept=9.0), good.metadata)
    log = served_by((good, START_US), (loud, NOW_US - US_PER_DAY // 2))
    versions = tenures((good, START_US, "publish"), (loud, NOW_US - US_PER_DAY // 2, "publish"))
    found = harm_done(Topics(log, good, loud), Policy(0.5), versions, BUDGET, whole=False)
    assert found is not None
    assert "cases within 24 hours" in found[0].reason
    assert found[1] == versions[0]
    # A policy that was paced or set since has another threshold: that is not the version's doing.
    since = [versions[0], versions[1]._replace(given=reference("policy", "p1"))]
    assert harm_done(Topics(log, good, loud), Policy(0.5), since, BUDGET, whole=False) is None
