"""The acceptance checks pass on a right record, and each fails on a wrong one."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from pipeline.features.catalogue import FEATURES
from pipeline.replay.messages import event_times_us
from pipeline.scoring.blend import sigmoid
from pipeline.scoring.river_inputs import INPUTS
from pipeline.scoring.river_layer import RiverLayer, Scale
from pipeline.simulation.simulator import Scenario, make_profiles, simulate_days
from tests.evaluation import checks
from tests.evaluation.measures import detection, latency_ms
from tests.evaluation.recorded import Decisions, Versions
from tests.helpers.expected import CARRIED
from tests.helpers.features import compute_features
from tests.helpers.models import small_model
from tests.reference.features import card_outliers

Arguments = tuple[list[tuple[str, str]], list[tuple[str, str]], list[tuple[str, str]], dict[str, int]]
DELAY_US = 7 * 86_400_000_000
BLEND = 0.7


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    scenario = Scenario(merchants_per_day=1, merchant_days=3, cards_per_day=1, card_days=3)
    made = simulate_days(make_profiles(np.random.default_rng(0), 10, 15, scenario), 0, 0, 25)
    return made[made["amount_minor"] > 0].reset_index(drop=True)


@pytest.fixture(scope="module")
def decisions(frame: pd.DataFrame) -> Decisions:
    """What a faultless pipeline would have decided."""
    model, river = small_model(), layer()
    features = compute_features(frame)
    logit = model.logit(features)
    corrected = river.logit(features, logit)
    return Decisions(
        identity=list(zip(frame["card_id"], frame["transaction_id"], strict=True)),
        versions=[Versions(model.version, river.version, "policy")] * len(frame),
        event_time_us=event_times_us(frame),
        score=sigmoid((1.0 - BLEND) * logit + BLEND * corrected),
        lightgbm=sigmoid(logit),
        river=sigmoid(corrected),
        logit=logit,
        alert=np.zeros(len(frame), np.bool_),
        latency_s=np.linspace(0.01, 0.02, len(frame)),
        features=features,
    )


def layer() -> RiverLayer:
    same = RiverLayer.identity()
    scale = Scale(weight=100.0, means=(1.0,) * len(INPUTS), squares=(200.0,) * len(INPUTS))
    return RiverLayer(same.config, tuple(same.weights + 0.1), -0.2, scale, 5)


@pytest.fixture(scope="module")
def card_log(frame: pd.DataFrame) -> pd.DataFrame:
    times = frame["event_time"].dt
    seconds = times.hour * 3_600 + times.minute * 60 + times.second
    return pd.DataFrame(
        {
            "kind": "transaction",
            "card_id": frame["card_id"],
            "merchant_id": frame["merchant_id"],
            "transaction": list(zip(frame["card_id"], frame["transaction_id"], strict=True)),
            "event_time_us": event_times_us(frame),
            "amount_minor": frame["amount_minor"],
            "counts": True,
            "hour": seconds / 3_600,
            "weekday": times.day_of_week.astype(float),
        }
    )


@pytest.fixture(scope="module")
def merchant_log(frame: pd.DataFrame, card_log: pd.DataFrame) -> pd.DataFrame:
    """Transactions and their labels, each label before the first transaction at or after the time it is known."""
    base = card_log.drop(columns=["kind", "hour", "weekday"]).assign(outlier=card_outliers(card_log))
    transactions = base.assign(kind="transaction", known="none", known_at_us=0, at_us=base["event_time_us"], place=1)
    known_at_us = base["event_time_us"] + DELAY_US
    known = np.where(frame["fraud"], "fraud", "legitimate")
    labels = base.assign(kind="label", known=known, known_at_us=known_at_us, at_us=known_at_us, place=0, counts=False)
    log = pd.concat([transactions, labels]).sort_values(["at_us", "place"], kind="stable", ignore_index=True)
    recorded: pd.DataFrame = log[log["at_us"] <= base["event_time_us"].max()].drop(columns=["at_us", "place"])
    return recorded


def identities(decisions: Decisions) -> list[tuple[str, str]]:
    return list(decisions.identity)


def test_every_transaction_once(decisions: Decisions) -> None:
    file = identities(decisions)
    assert checks.every_transaction_once(file, file, file, {}).passed


@pytest.mark.parametrize(
    ("break_it", "problem"),
    [
        (lambda file: (file, file, file[1:], {}), "1 transactions have no decision"),
        (lambda file: (file, file, [*file, file[3]], {}), "more than one decision"),
        (lambda file: (file, file, [*file[1:], ("x", "y")], {}), "decided and never sent"),
        (lambda file: (file, file[1:], file[1:], {}), "of the file are not on the topic"),
        (lambda file: (file, [*file, file[0]], file, {}), "sent more than once"),
        (lambda file: (file[1:], file, file, {}), "are not of the file"),
        (lambda file: (file, file, file, {"amount_zero": 2}), "dead letters"),
    ],
)
def test_a_missing_or_double_transaction_is_found(
    decisions: Decisions, break_it: Callable[[list[tuple[str, str]]], Arguments], problem: str
) -> None:
    check = checks.every_transaction_once(*break_it(identities(decisions)))
    assert not check.passed
    assert any(problem in reported for reported in check.problems), check.problems


def test_right_features_pass(decisions: Decisions, card_log: pd.DataFrame, merchant_log: pd.DataFrame) -> None:
    check = checks.features_equal_the_reference(decisions, card_log, merchant_log)
    assert check.passed, check.problems
    compared = [name for name in FEATURES if name not in CARRIED]
    assert check.figures["values"] == len(card_log) * len(compared)
    known = decisions.features[:, FEATURES.index("merchant_known_fraud_30d")]
    assert known.max() > 0


@pytest.mark.parametrize(
    "feature",
    ["card_sum_7d", "card_std_30d", "merchant_known_fraud_14d", "merchant_newest_label", "merchant_bursts_3d"],
)
def test_one_wrong_value_is_found(
    decisions: Decisions, card_log: pd.DataFrame, merchant_log: pd.DataFrame, feature: str
) -> None:
    features = decisions.features.copy()
    row, column = len(features) // 2, FEATURES.index(feature)
    features[row, column] = np.nan_to_num(features[row, column]) * (1 + 1e-9) + 1e-9
    check = checks.features_equal_the_reference(replace(decisions, features=features), card_log, merchant_log)
    assert not check.passed
    assert check.figures["different_values"] == 1
    assert feature in check.problems[0]


def test_features_that_saw_another_order_are_found(
    decisions: Decisions, card_log: pd.DataFrame, merchant_log: pd.DataFrame
) -> None:
    later = pd.concat(
        [merchant_log[merchant_log["kind"] == "transaction"], merchant_log[merchant_log["kind"] == "label"]]
    )
    assert not checks.features_equal_the_reference(decisions, card_log, later.reset_index(drop=True)).passed
    assert not checks.features_equal_the_reference(decisions, card_log.iloc[:0], merchant_log.iloc[:0]).passed


def test_scores_are_reproduced(decisions: Decisions) -> None:
    river = {layer().version: layer()}
    assert checks.lightgbm_scores_are_reproduced(decisions, lambda _: small_model().to_payload()).passed
    check = checks.blended_scores_are_reproduced(decisions, river, lambda _: BLEND)
    assert check.passed
    assert check.figures["decisions"] == len(decisions.identity)


@pytest.mark.parametrize("field", ["logit", "lightgbm"])
def test_a_lightgbm_score_off_by_one_bit_is_found(decisions: Decisions, field: str) -> None:
    values = getattr(decisions, field).copy()
    values[4] = np.nextafter(values[4], 1.0)
    check = checks.lightgbm_scores_are_reproduced(
        replace(decisions, **{field: values}), lambda _: small_model().to_payload()
    )
    assert not check.passed
    assert "1 of" in check.problems[0]


@pytest.mark.parametrize("field", ["river", "score"])
def test_a_blend_off_by_one_bit_is_found(decisions: Decisions, field: str) -> None:
    values = getattr(decisions, field).copy()
    values[4] = np.nextafter(values[4], 1.0)
    river = {layer().version: layer()}
    wrong = replace(decisions, **{field: values})
    assert not checks.blended_scores_are_reproduced(wrong, river, lambda _: BLEND).passed
    assert not checks.blended_scores_are_reproduced(decisions, river, lambda _: 1.0).passed


def test_versions_that_are_gone_are_counted_and_all_gone_fails(decisions: Decisions) -> None:
    check = checks.blended_scores_are_reproduced(decisions, {}, lambda _: BLEND)
    assert not check.passed
    assert check.figures["decisions_of_versions_not_found"] == len(decisions.identity)


def test_labels_and_folds() -> None:
    assert checks.labels_were_passed_on(7, 7, 0).passed
    assert not checks.labels_were_passed_on(7, 6, 0).passed
    assert not checks.labels_were_passed_on(7, 7, 1).passed
    assert checks.river_is_a_replay(b"{}", b"{}", "v@3", 3).passed
    assert not checks.river_is_a_replay(b"{}", b"{ }", "v@3", 3).passed
    assert not checks.river_is_a_replay(None, None, "v@3", 3).passed


def test_detection_is_measured_within_its_period(decisions: Decisions, frame: pd.DataFrame) -> None:
    frauds = set(zip(frame.loc[frame["fraud"], "card_id"], frame.loc[frame["fraud"], "transaction_id"], strict=True))
    truth = frame["fraud"].to_numpy(np.float64)
    perfect = replace(decisions, score=truth, alert=frame["fraud"].to_numpy(bool))
    middle, last = (int(np.quantile(decisions.event_time_us, share)) for share in (0.5, 1.0))
    measured = detection(perfect, frauds, middle, last + 1)
    late = decisions.event_time_us >= middle
    assert measured["transactions"] == late.sum()
    assert measured["frauds"] == truth[late].sum() > 0
    assert measured["blend"]["average_precision"] == measured["blend"]["auc_roc"] == 1.0
    assert measured["lightgbm"]["average_precision"] < 1.0
    assert measured["alert_precision"] == measured["alert_recall"] == 1.0


def test_latency_percentiles(decisions: Decisions) -> None:
    assert latency_ms(decisions)["p50"] == 15.0
