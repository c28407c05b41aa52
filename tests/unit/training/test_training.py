import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import lightgbm
import msgspec
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from sklearn.linear_model import LogisticRegression

from pipeline.cli import main
from pipeline.decision.budget import budget_threshold, case_numbers, case_threshold
from pipeline.decision.policy import Policy
from pipeline.features.catalogue import DEFAULT_FEATURES, FEATURES
from pipeline.learning.regimes import NEVER_US, LabelRegime
from pipeline.learning.report_delays import ReportDelays
from pipeline.models.registry import LIGHTGBM, POLICY, Registry
from pipeline.observability.terminal import throttled
from pipeline.replay.messages import event_times_us
from pipeline.scoring.blend import sigmoid
from pipeline.scoring.distributions import distributions_of
from pipeline.scoring.errors import ModelError
from pipeline.scoring.lightgbm_model import LightGBMModel
from pipeline.simulation.simulator import make_profiles, simulate_days
from pipeline.training.audit_rates import audit_within_budget
from pipeline.training.calibration import fit_platt
from pipeline.training.cohorts import Split, TrainingSet, rolling_folds, split_cohorts
from pipeline.training.early_reports import EarlyReports
from pipeline.training.fit import LEAST_AUC, Trained, TrainingConfig, _Trees, train, with_trees_of_folds
from pipeline.training.score_metrics import auc_roc, average_precision, card_precision
from pipeline.training.selection import select_features
from schemas.times import US_PER_DAY
from tests.helpers.features import compute_features, history_of
from tests.helpers.models import matrix, registered, truth

PERIODS = {"label_delay_us": 2 * US_PER_DAY, "validation_us": 7 * US_PER_DAY, "train_from_us": 2 * US_PER_DAY}
SMALL = TrainingConfig(trees=30, leaves=8, rows_per_leaf=20, threads=1)
STEADY = msgspec.structs.replace(SMALL, early_stopping_rounds=0)


def synthetic(rows: int = 6_000, days: int = 30) -> TrainingSet:
    features = matrix(rows, seed=2)
    return TrainingSet(
        features=features,
        fraud=truth(features),
        weight=np.ones(rows),
        event_time_us=np.sort(np.random.default_rng(3).integers(0, days * US_PER_DAY, rows)),
        card=np.random.default_rng(4).integers(0, 200, rows),
        identity=np.arange(rows),
    )


def trained(data: TrainingSet, **arguments: object) -> Trained:
    split = split_cohorts(data.event_time_us, **PERIODS)
    return train(data, split, config=SMALL, **{"features": FEATURES, **arguments})  # type: ignore[arg-type]


def test_a_training_learns_calibrates_and_keeps_the_budget() -> None:
    data = synthetic()
    result = trained(data, alerts_per_day=10.0)
    assert result.metrics["auc_roc"] > 0.9
    assert result.metrics["average_precision"] > 2 * data.fraud.mean()
    # Two days without labels are too few: the validation period chooses the threshold.
    assert result.policy.metadata["threshold_days"] == 7.0
    assert 9.0 < result.metrics["cases_per_day"] <= 10.0 < result.metrics["alerts_per_day"]
    assert result.metrics["expected_to_observed_frauds"] == pytest.approx(1.0, abs=0.05)
    assert result.policy.lightgbm_version == result.model.version
    assert result.policy.threshold == result.metrics["threshold"]
    assert result.model.metadata["periods"]["validation"]["rows"] > 0


def test_the_version_s_scores_of_days_without_labels_choose_the_threshold() -> None:
    data = synthetic()
    known_us = int(data.event_time_us[-1]) - US_PER_DAY
    split = split_cohorts(
        data.event_time_us, label_delay_us=5 * US_PER_DAY, validation_us=4 * US_PER_DAY, known_before_us=known_us
    )
    result = train(data, split, config=SMALL, features=FEATURES, alerts_per_day=10.0)
    assert result.policy.metadata["threshold_days"] == 4.0
    times_us = data.event_time_us
    rows = np.flatnonzero((times_us > known_us - 4 * US_PER_DAY) & (times_us <= known_us))
    score = sigmoid(result.model.logit(data.wide(rows)))
    case = case_numbers(data.card[rows], times_us[rows])
    assert result.policy.threshold == pytest.approx(case_threshold(score, case, 4.0, 10.0))
    # What comes later, and labels of these days, change nothing.
    spoilt = replace(data, fraud=data.fraud ^ (times_us > known_us - 5 * US_PER_DAY))
    again = train(spoilt, split, config=SMALL, features=FEATURES, alerts_per_day=10.0)
    assert again.policy.to_payload() == result.policy.to_payload()


def test_the_version_expects_as_many_frauds_on_days_without_labels_as_the_checked_trees() -> None:
    data, until_us = synthetic(), 27 * US_PER_DAY
    split = split_cohorts(
        data.event_time_us, label_delay_us=5 * US_PER_DAY, validation_us=4 * US_PER_DAY, known_before_us=until_us
    )
    version = train(data, split, config=STEADY, features=FEATURES).model
    # Without young rows the version has the calibration of the checked trees.
    calibration = train(data, replace(split, young=split.young[:0]), config=STEADY, features=FEATURES).model.calibration
    rows, _ = split.newest(data.event_time_us)
    checked = LightGBMModel(_Trees(data, STEADY, FEATURES).grown(split.training, STEADY.trees))
    margin = checked.margin(data.wide(rows))
    expected = sigmoid(calibration.slope * margin + calibration.intercept)
    logit = version.logit(data.wide(rows))
    assert sigmoid(logit).sum() == pytest.approx(expected.sum())
    assert sigmoid(logit) @ logit == pytest.approx(expected @ logit)
    # That is so by its own calibration alone.
    by_checked = calibration.slope * (logit - version.calibration.intercept) / version.calibration.slope
    assert sigmoid(by_checked + calibration.intercept).sum() != pytest.approx(expected.sum(), rel=1e-3)


def test_a_training_is_reproducible_and_its_seed_matters() -> None:
    data = synthetic()
    assert trained(data).model.to_payload() == trained(data).model.to_payload()
    split = split_cohorts(data.event_time_us, label_delay_us=2 * US_PER_DAY, validation_us=7 * US_PER_DAY)
    other = TrainingConfig(trees=30, leaves=8, rows_per_leaf=20, threads=1, seed=99)
    assert train(data, split, config=other, features=FEATURES).model.version != trained(data).model.version


def test_a_version_is_grown_on_the_rows_that_checked_it_too() -> None:
    data = synthetic()
    split = split_cohorts(data.event_time_us, label_delay_us=2 * US_PER_DAY, validation_us=7 * US_PER_DAY)
    config = TrainingConfig(trees=30, leaves=8, rows_per_leaf=20, threads=1, row_fraction=1.0)
    model = train(data, split, config=config, features=FEATURES).model
    booster = lightgbm.Booster(model_str=json.loads(model.to_payload())["text"])
    root = booster.dump_model()["tree_info"][0]["tree_structure"]
    assert root["internal_count"] == len(split.training) + len(split.validation)


def reported_early(data: TrainingSet, regime: LabelRegime, as_of_us: int) -> tuple[TrainingSet, EarlyReports]:
    """The rows with what was reported by a time, and how a training takes early reports."""
    known_us = regime.known_at_us(data.event_time_us, data.fraud, np.arange(len(data.fraud), dtype=np.uint64))
    reported_us = np.where(data.fraud, known_us, NEVER_US)
    known = replace(data, fraud=reported_us <= as_of_us, reported_us=reported_us)
    return known, EarlyReports(as_of_us, ReportDelays(regime))


def test_early_reports_grow_the_version_and_leave_its_checks_alone() -> None:
    as_of_us = 27 * US_PER_DAY
    regime = LabelRegime(reported="frauds-only", delay_days=7.0, early_share=0.3)
    data, early = reported_early(synthetic(), regime, as_of_us)
    split = split_cohorts(
        data.event_time_us,
        label_delay_us=7 * US_PER_DAY,
        validation_us=7 * US_PER_DAY,
        known_before_us=as_of_us,
    )
    config = TrainingConfig(trees=30, leaves=8, rows_per_leaf=20, threads=1, row_fraction=1.0, half_life_days=0.0)
    without = train(data, split, config=config, features=FEATURES)
    with_them = train(data, split, config=config, features=FEATURES, early=early)
    # The threshold is that of other trees' scores.
    for name in ("auc_roc", "average_precision", "card_precision_100", "expected_to_observed_frauds"):
        assert with_them.metrics[name] == without.metrics[name]
    # Its calibration is the checked trees', as where no younger rows are there: it has seen the labels of these.
    checked = train(data, replace(split, young=split.young[:0]), config=config, features=FEATURES)
    assert with_them.model.calibration == checked.model.calibration != without.model.calibration
    assert with_them.model.metadata["periods"] == without.model.metadata["periods"]
    young = (data.event_time_us > as_of_us - 7 * US_PER_DAY) & (data.event_time_us <= as_of_us)
    reported = with_them.model.metadata["early"]
    assert reported["rows"] == pytest.approx(young.sum(), rel=0.01)
    assert reported["frauds"] == int(data.fraud[young].sum())
    assert reported["fraud_weight"] == pytest.approx(reported["frauds"] / 0.3, rel=0.1)
    booster = lightgbm.Booster(model_str=json.loads(with_them.model.to_payload())["text"])
    root = booster.dump_model()["tree_info"][0]["tree_structure"]
    assert root["internal_count"] == len(split.training) + len(split.validation) + reported["rows"]
    # Before the first tree every row weighs what it counts for, times p (1 - p) of the share of fraud.
    mature = np.union1d(split.training, split.validation)
    total = len(mature) + reported["weight"]
    share = (data.fraud[mature].sum() + reported["fraud_weight"]) / total
    assert root["internal_weight"] == pytest.approx(total * share * (1 - share), rel=1e-3)
    # What is to come takes no part: neither rows nor reports behind that time.
    later = replace(data, reported_us=np.where(data.reported_us > as_of_us, NEVER_US, data.reported_us))
    in_the_end = replace(data, fraud=data.reported_us < NEVER_US)
    for other in (later, in_the_end):
        again = train(other, split, config=config, features=FEATURES, early=early)
        assert again.model.version == with_them.model.version


def test_under_one_delay_early_reports_change_no_byte() -> None:
    as_of_us = 30 * US_PER_DAY
    data, early = reported_early(synthetic(), LabelRegime(reported="frauds-only", delay_days=2.0), as_of_us)
    assert trained(data, early=early).model.to_payload() == trained(data).model.to_payload()


def test_legitimate_rows_are_sampled_and_weighted() -> None:
    data = synthetic()
    split = split_cohorts(data.event_time_us, label_delay_us=2 * US_PER_DAY, validation_us=7 * US_PER_DAY)
    rows = np.union1d(split.training, split.validation)
    frauds = int(data.fraud[rows].sum())
    wanted = 10 * frauds + 700
    assert wanted < len(rows) - frauds
    config = TrainingConfig(trees=30, leaves=8, row_fraction=1.0, legitimate_rows=wanted)
    result = train(data, split, config=config, features=FEATURES)
    booster = lightgbm.Booster(model_str=json.loads(result.model.to_payload())["text"])
    root = booster.dump_model()["tree_info"][0]["tree_structure"]
    assert root["internal_count"] == pytest.approx(frauds + wanted, rel=0.05)
    assert result.metrics["expected_to_observed_frauds"] == pytest.approx(1.0, abs=0.05)
    few = train(data, split, config=msgspec.structs.replace(config, legitimate_rows=1), features=FEATURES)
    booster = lightgbm.Booster(model_str=json.loads(few.model.to_payload())["text"])
    count = booster.dump_model()["tree_info"][0]["tree_structure"]["internal_count"]
    assert count == pytest.approx(11 * frauds, rel=0.05)


def test_older_transactions_weigh_less_in_growing_alone() -> None:
    data = synthetic()
    rows = np.arange(len(data.fraud))
    age_days = (data.event_time_us.max() - data.event_time_us) / US_PER_DAY
    trees = _Trees(data, msgspec.structs.replace(SMALL, half_life_days=3.0), FEATURES)
    grown = trees.dataset(rows, data.weight)
    recency = np.maximum(0.5 ** (age_days / 3.0), 0.05)
    assert recency.min() == 0.05
    assert recency.max() == 1.0
    np.testing.assert_allclose(grown.get_weight(), data.weight * recency, rtol=1e-6)
    np.testing.assert_array_equal(trees.dataset(rows, data.weight, grown).get_weight(), data.weight)
    alike = _Trees(data, msgspec.structs.replace(SMALL, half_life_days=0.0), FEATURES)
    np.testing.assert_array_equal(alike.dataset(rows, data.weight).get_weight(), data.weight)


def test_a_transaction_is_sampled_whatever_the_history_begins_with() -> None:
    data = synthetic()
    later = data.take(slice(2_000, None))
    config = msgspec.structs.replace(SMALL, legitimate_rows=1)

    def drawn(source: TrainingSet, **changes: int) -> set[int]:
        rows = np.arange(len(source.fraud))[-3_000:]
        kept, _ = _Trees(source, msgspec.structs.replace(config, **changes), FEATURES).sampled(rows)
        return {*source.identity[kept].tolist()}

    assert drawn(data) == drawn(later) != drawn(data, seed=1)


def test_rows_that_the_pilot_takes_for_fraud_are_sampled_more_often_and_weigh_less() -> None:
    data = synthetic()
    rows, wanted = np.arange(len(data.fraud)), int(2 * data.fraud.sum())
    config = msgspec.structs.replace(SMALL, legitimate_rows=wanted)
    trees = _Trees(data, config, FEATURES)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.training.fit.LEGITIMATE_PER_FRAUD", 1)
        kept, weight = trees.sampled(rows)
        evenly, even_weight = _Trees(data, msgspec.structs.replace(config, pilot_trees=0), FEATURES).sampled(rows)
    assert trees.pilot is not None
    score = trees.pilot.scores(data, rows)
    np.testing.assert_array_equal(score, sigmoid(trees.pilot.trees.margin(data.wide(rows))))
    legitimate = ~data.fraud
    for found, weights in ((kept, weight), (evenly, even_weight)):
        assert set(rows[data.fraud]) <= set(found)
        assert np.count_nonzero(legitimate[found]) == pytest.approx(wanted, rel=0.15)
        assert weights[legitimate[found]].sum() == pytest.approx(np.count_nonzero(legitimate), rel=0.15)
        np.testing.assert_array_equal(weights[data.fraud[found]], 1.0)
    assert score[kept][legitimate[kept]].mean() > 1.5 * score[evenly][legitimate[evenly]].mean()
    assert np.corrcoef(score[kept][legitimate[kept]], weight[legitimate[kept]])[0, 1] < -0.5


def test_the_number_of_trees_of_rolling_folds_belongs_to_the_recipe() -> None:
    data, delay_us = synthetic(), 2 * US_PER_DAY
    split = split_cohorts(data.event_time_us, label_delay_us=delay_us, validation_us=5 * US_PER_DAY)
    folds = rolling_folds(data.event_time_us, split, delay_us, 3)
    assert folds[0][1][-1] == split.validation[-1]
    for training, checked in folds:
        first_us = data.event_time_us[checked].min()
        assert data.event_time_us[training].max() < first_us - delay_us + US_PER_DAY // 100
        assert np.ptp(data.event_time_us[checked]) < 5 * US_PER_DAY
    config = with_trees_of_folds(data, split, SMALL, FEATURES, delay_us, 3)
    assert config.early_stopping_rounds == 0
    curve = np.mean([_Trees(data, SMALL, FEATURES).precision_by_trees(*fold) for fold in folds], axis=0)
    assert config.trees == np.argmax(curve) + 1
    fixed = train(data, split, config=config, features=FEATURES).model
    assert fixed.trees == config.trees == fixed.metadata["training"]["trees"]
    with pytest.raises(ModelError, match="too short for 9 folds"):
        with_trees_of_folds(data, split, SMALL, FEATURES, delay_us, 9)


def test_trees_that_tell_nothing_are_refused() -> None:
    data = synthetic()
    constant = replace(data, features=np.zeros_like(data.features))
    with pytest.raises(ModelError, match="one score"):
        trained(constant)
    by_chance = np.random.default_rng(6).permutation(data.fraud)
    with pytest.raises(ModelError, match="hardly better than chance"):
        trained(replace(data, fraud=by_chance))
    # Somebody may want to see it all the same; of one score for all there is nothing to see.
    assert trained(replace(data, fraud=by_chance), force=True).metrics["auc_roc"] < LEAST_AUC
    with pytest.raises(ModelError, match="one score"):
        trained(constant, force=True)


def test_a_training_keeps_how_its_features_were_distributed_and_uses_no_others() -> None:
    data = synthetic()
    split = split_cohorts(data.event_time_us, **PERIODS)
    whole = trained(data).model
    rows = np.union1d(split.training, split.validation)
    assert whole.distributions == distributions_of(data.features[rows], data.weight[rows])
    names = select_features(["*", "-merchant_*", "-amount"])
    part = train(data, split, config=SMALL, features=names).model
    assert part.trained_on == names
    spoilt = data.features.copy()
    # Outcomes are told apart by two features, whether trees may ask for them or not.
    kept = {*names, "amount", "merchant_seconds_since_first"}
    spoilt[:, [column for column, name in enumerate(FEATURES) if name not in kept]] = 1e9
    np.testing.assert_array_equal(part.logit(spoilt), part.logit(data.features))
    assert train(replace(data, features=spoilt), split, config=SMALL, features=names).model.version == part.version
    assert not np.array_equal(whole.logit(spoilt), whole.logit(data.features))


@pytest.mark.parametrize(
    ("patterns", "chosen"),
    [
        ([], DEFAULT_FEATURES),
        (["*"], FEATURES),
        (["+weekday", "-card_*", "-merchant_*"], ("amount", "hour", "weekday")),
        (["hour", "amount"], ("amount", "hour")),
        (["card_count_*", "-*_30d"], ("card_count_1h", "card_count_1d", "card_count_7d")),
        (["-card_*", "-merchant_*", " card_usual_amount"], ("amount", "hour", "card_usual_amount")),
    ],
)
def test_features_are_chosen_by_patterns(patterns: list[str], chosen: tuple[str, ...]) -> None:
    assert select_features(patterns) == chosen
    assert select_features(["+hour", "-amount"], ["amount", "weekday"]) == ("hour", "weekday")


def test_patterns_that_choose_nothing_are_refused() -> None:
    with pytest.raises(ModelError, match=r"'device_\*' matches no feature"):
        select_features(["amount", "device_*"])
    with pytest.raises(ModelError, match="leaves no feature"):
        select_features(["amount", "-*"])


def test_the_new_policy_keeps_blend_and_audit() -> None:
    policy = trained(synthetic(), policy=Policy(0.9, blend=0.7, audit_rate=0.01)).policy
    assert (policy.blend, policy.audit_rate) == (0.7, 0.01)


def test_sampled_negatives_are_calibrated_back() -> None:
    data = synthetic(20_000)
    kept = data.fraud | (np.random.default_rng(5).random(len(data.fraud)) < 0.2)
    weighted = replace(data, weight=np.where(data.fraud, 1.0, 5.0))
    result = trained(weighted.take(kept))
    everywhere = sigmoid(result.model.logit(data.features))
    assert everywhere.sum() / data.fraud.sum() == pytest.approx(1.0, abs=0.15)


def test_a_period_without_frauds_is_explained() -> None:
    data = synthetic()
    with pytest.raises(ModelError, match="holds 0 frauds"):
        trained(replace(data, fraud=np.zeros_like(data.fraud)))


@pytest.mark.parametrize("weighted", [False, True])
def test_platt_finds_the_maximum_that_another_solver_finds(weighted: bool) -> None:
    random = np.random.default_rng(6)
    margin = random.normal(-2, 2, 4_000)
    fraud = random.random(4_000) < sigmoid(0.6 * margin - 1.0)
    weight = np.where(fraud, 1.0, 4.0) if weighted else np.ones(4_000)
    reference = LogisticRegression(C=np.inf, tol=1e-10).fit(margin[:, None], fraud, sample_weight=weight)
    found = fit_platt(margin, fraud, weight)
    assert found.slope == pytest.approx(reference.coef_[0, 0], abs=0.01)
    assert found.intercept == pytest.approx(reference.intercept_[0], abs=0.02)


def test_platt_refuses_what_cannot_be_calibrated() -> None:
    margin = np.linspace(-1, 1, 100)
    with pytest.raises(ModelError, match="learned nothing"):
        fit_platt(margin, margin < 0, np.ones(100))
    with pytest.raises(ModelError, match="both kinds"):
        fit_platt(margin, np.zeros(100, bool), np.ones(100))
    with pytest.raises(ModelError, match="did not converge in 1 steps"):
        fit_platt(margin, np.random.default_rng(0).random(100) < sigmoid(3 * margin), np.ones(100), iterations=1)


def test_only_labels_known_by_then_are_targets() -> None:
    times = np.arange(100) * US_PER_DAY
    split = split_cohorts(
        times, label_delay_us=7 * US_PER_DAY, validation_us=10 * US_PER_DAY, known_before_us=60 * US_PER_DAY
    )
    assert split.validation.tolist() == list(range(43, 54))
    assert split.training.tolist() == list(range(43))
    early = split_cohorts(times, label_delay_us=0, validation_us=US_PER_DAY, train_from_us=90 * US_PER_DAY)
    assert early.training.tolist() == list(range(90, 98))
    with pytest.raises(ModelError, match="longer one"):
        split_cohorts(times, label_delay_us=200 * US_PER_DAY, validation_us=US_PER_DAY)
    with pytest.raises(ModelError, match="no transaction"):
        split_cohorts(times[:0], label_delay_us=0, validation_us=1)


def test_card_precision_counts_cards_once_a_day() -> None:
    day = np.array([0, 0, 0, 0, 1, 1]) * US_PER_DAY
    card = np.array([1, 1, 2, 3, 1, 2])
    score = np.array([0.9, 0.8, 0.7, 0.1, 0.2, 0.9])
    fraud = np.array([False, True, False, True, True, False])
    # Day 0: cards 1 (a fraud) and 2; day 1: cards 2 and 1 (a fraud).
    assert card_precision(fraud, score, day, card, top=2) == 0.5
    assert card_precision(fraud, score, day, card, top=1) == 0.5
    assert card_precision(fraud[:0], score[:0], day[:0], card[:0]) is None


def test_metrics_without_both_kinds_are_not_numbers() -> None:
    assert auc_roc(np.zeros(3, bool), np.ones(3), np.ones(3)) is None
    assert average_precision(np.zeros(3, bool), np.ones(3), np.ones(3)) is None


@pytest.mark.parametrize(
    ("scores", "weights", "days", "per_day", "alerts"),
    [
        ([0.9, 0.8, 0.7, 0.6], [1, 1, 1, 1], 1, 2, 2),
        ([0.9, 0.8, 0.8, 0.6], [1, 1, 1, 1], 1, 2, 1),
        ([0.9, 0.8, 0.7, 0.6], [1, 1, 1, 1], 2, 2, 4),
        ([0.9, 0.8, 0.7, 0.6], [1, 10, 1, 1], 1, 5, 1),
        ([0.9, 0.9], [1, 1], 1, 1, 0),
        ([0.9, 0.001], [1, 1], 1, 100, 1),
    ],
)
def test_the_threshold_keeps_the_budget(
    scores: list[float], weights: list[float], days: float, per_day: float, alerts: int
) -> None:
    score = np.array(scores)
    threshold = budget_threshold(score, np.array(weights, float), days, per_day)
    assert int((score >= threshold).sum()) == alerts


def history(days: int = 30) -> pd.DataFrame:
    return simulate_days(make_profiles(np.random.default_rng(1), cards=200, merchants=300), 1, 0, days)


def test_a_history_is_taught_with_the_kernel_s_own_features() -> None:
    frame = history(12)
    data = history_of(frame, LabelRegime(delay_days=1.0)).training_set()
    np.testing.assert_array_equal(data.features, compute_features(frame, label_delay_s=86_400.0))
    np.testing.assert_array_equal(data.fraud, frame["fraud"])
    with pytest.raises(ModelError, match="no labels"):
        history_of(frame.drop(columns="fraud"), LabelRegime())


@pytest.mark.parametrize(("early_us", "counts"), [(0, True), (1, False)])
def test_a_fraud_counts_from_the_instant_at_which_it_is_reported(early_us: int, counts: bool) -> None:
    frame = history(12)
    row = int(np.flatnonzero(frame["fraud"])[5])
    reported_us = int(event_times_us(frame)[row]) + US_PER_DAY
    data = history_of(frame, LabelRegime(delay_days=1.0)).training_set(reported_us - early_us)
    assert data.fraud[row] == counts
    assert not data.fraud[data.event_time_us > data.event_time_us[row]].any()


def test_the_command_trains_registers_and_activates(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("FRAUD_PIPELINE_REGISTRY_DIR", str(tmp_path / "registry"))
    file = tmp_path / "history.parquet"
    history(30).to_parquet(file)
    arguments = [str(file), "--trees", "10", "--threads", "1", "--budget-per-day", "5"]
    run = CliRunner().invoke(main, ["train", *arguments])
    assert run.exit_code == 0, run.output
    report = json.loads(run.stdout)
    registry = Registry(tmp_path / "registry")
    assert registry.active(LIGHTGBM) == report["lightgbm"]
    assert registry.load_policy(registry.active(POLICY) or "").lightgbm_version == report["lightgbm"]
    assert registry.entry(LIGHTGBM, report["lightgbm"]).details["metrics"]["auc_roc"] > 0.6
    assert registered(registry, report["lightgbm"]).trained_on == DEFAULT_FEATURES
    again = json.loads(CliRunner().invoke(main, ["train", *arguments]).stdout)
    assert again["lightgbm"] == report["lightgbm"]
    cutoff = datetime(2018, 4, 25, tzinfo=UTC).isoformat()
    earlier = json.loads(
        CliRunner()
        .invoke(main, ["train", *arguments, "--known-before", cutoff, "--no-activate", "--validation-days", "4"])
        .stdout
    )
    assert earlier["periods"]["validation"]["to"] < "2018-04-18T00:00:01Z"
    fewer = CliRunner().invoke(main, ["train", *arguments, "--no-activate", "--features", "amount,merchant_*"])
    assert registered(registry, json.loads(fewer.stdout)["lightgbm"]).trained_on == (
        select_features(["amount", "merchant_*"])
    )
    assert registry.active(LIGHTGBM) == report["lightgbm"]
    monkeypatch.setenv("FRAUD_PIPELINE_AUDIT_KEYS", '{"k1": "secret"}')
    share = ["--audit-share", "0.2", "--audit-key-id", "k1"]
    audited = CliRunner().invoke(main, ["train", *arguments, "--no-activate", *share])
    policy = registry.load_policy(json.loads(audited.stdout)["policy"])
    assert policy.audit is not None
    assert (policy.audit.key_id, policy.audit_rate) == ("k1", 0.0)
    assert policy.threshold >= registry.load_policy(report["policy"]).threshold


def test_the_command_refuses_an_audit_key_that_is_not_there() -> None:
    for arguments, why in (
        (("--audit-share", "0.1", "--audit-key-id", "k2"), "has no key 'k2'"),
        (("--audit-key-id", "k2"), "give its --audit-share"),
    ):
        run = CliRunner().invoke(main, ["train", "--from-topics", *arguments])
        assert run.exit_code == 2
        assert why in run.output


def test_an_audit_keeps_within_its_budget() -> None:
    random = np.random.default_rng(4)
    rows, days = 40_000, 10
    features = np.full((rows, len(FEATURES)), np.nan)
    features[:, FEATURES.index("merchant_surge")] = random.lognormal(0, 1, rows)
    features[:, FEATURES.index("merchant_seconds_since_first")] = random.uniform(0, 200, rows) * 86_400
    split = Split(np.arange(0), np.arange(rows), days * US_PER_DAY)
    numbers = np.arange(rows)
    data = TrainingSet(
        features=features,
        fraud=np.zeros(rows, bool),
        weight=np.ones(rows),
        event_time_us=numbers,
        card=numbers,
        identity=numbers,
    )
    audit = audit_within_budget(data, split, audits_per_day=20.0)
    expected = audit.probabilities(features).sum() / days
    assert 19.5 < expected < 20.5
    assert audit.rate == pytest.approx(10 / (rows / days))
    assert [stratum.rate > 5 * audit.rate for stratum in audit.strata] == [True, True]
    assert audit_within_budget(data, split, audits_per_day=1e9).rate == 1.0
    features[:] = np.nan
    assert audit_within_budget(data, split, audits_per_day=20.0).strata == ()


def test_the_command_takes_early_reports_of_a_declared_regime(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("FRAUD_PIPELINE_REGISTRY_DIR", str(tmp_path / "registry"))
    file = tmp_path / "history.parquet"
    history(30).to_parquet(file)

    def version(*more: str) -> str:
        run = CliRunner().invoke(main, ["train", str(file), "--trees", "10", "--budget-per-day", "5", *more])
        assert run.exit_code == 0, run.output
        found: str = json.loads(run.stdout)["lightgbm"]
        return found

    # Without a date it knows what was known when the history ended, and no later report.
    late, ended = ["--delay-spread", "1", "--label-delay-days", "2"], history(30)["event_time"].max()
    item, other = (
        version(*late, *more) for more in ((), ("--known-before", (ended + pd.Timedelta("1us")).isoformat()))
    )
    assert item != other  # by their arguments alone
    registry = Registry(tmp_path / "registry")
    assert registered(registry, item).metadata["frauds"] == registered(registry, other).metadata["frauds"]
    early = version("--early-share", "0.3")
    assert early != version("--early-share", "0.3", "--no-early-reports")
    plain, without = (json.loads(registry.load(LIGHTGBM, version(*more))) for more in ((), ("--no-early-reports",)))
    # Metadata keep the arguments.
    assert [plain[name] for name in ("text", "calibration")] == [without[name] for name in ("text", "calibration")]
    assert registered(registry, early).metadata["early"]["frauds"] > 0


def test_the_command_warns_of_labels_that_workers_do_not_have(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("FRAUD_PIPELINE_REGISTRY_DIR", str(tmp_path / "registry"))
    monkeypatch.setenv("FRAUD_PIPELINE_LABEL_REGIME", "frauds-only")
    file = tmp_path / "history.parquet"
    history(30).to_parquet(file)
    arguments = [str(file), "--trees", "10", "--budget-per-day", "5", "--features", "*"]
    other = CliRunner().invoke(main, ["train", *arguments])
    assert other.exit_code == 0, other.output
    assert "warning: LightGBM" in other.stderr
    assert "is used where only frauds are reported" in other.stderr
    same = CliRunner().invoke(main, ["train", *arguments, "--reported", "frauds-only"])
    assert "warning" not in same.stderr
    version = json.loads(same.stdout)["lightgbm"]
    labels = Registry(tmp_path / "registry").entry(LIGHTGBM, version).details["labels"]
    assert labels["regime"] == {"delay_days": 7.0, "reported": "frauds-only"}
    assert sum(labels["frauds_by_age_days"].values()) > 0


def test_the_command_says_what_it_leaves_out_and_converts(tmp_path, monkeypatch) -> None:
    """That features and rows are those of a backtest: `tests/property/test_training_features.py`."""
    monkeypatch.setenv("FRAUD_PIPELINE_REGISTRY_DIR", str(tmp_path / "registry"))
    monkeypatch.setenv("FRAUD_PIPELINE_DEDUPLICATION_DAYS", "9")
    currencies = {code: {"digits": 2, "rate": rate} for code, rate in (("EUR", "1"), ("USD", "0.5"))}
    rates = {"version": "of this test", "base": "EUR", "currencies": currencies}
    (tmp_path / "rates.json").write_text(json.dumps(rates))
    monkeypatch.setenv("FRAUD_PIPELINE_RATES_FILE", str(tmp_path / "rates.json"))
    frame = history(30)
    # Repeats within the horizon, and others that are transactions of their own again.
    repeats, others = (
        frame.iloc[rows].assign(event_time=lambda row, days=days: row["event_time"] + timedelta(days=days))
        for rows, days in (([400, 410], 8), ([500, 510], 10))
    )
    accepted = pd.concat([frame, others]).sort_values("event_time", kind="stable", ignore_index=True)
    worse = frame.assign(shop_floor=1)
    dollars = worse.index[::3]
    worse.loc[dollars, "currency"] = "USD"
    for column in ("amount", "amount_minor"):
        worse.loc[dollars, column] *= 2
    nothing = frame.iloc[[100, 700]].assign(transaction_id=["nothing", "no more"], amount=0.0, amount_minor=0)
    worse = pd.concat([worse, others, repeats, nothing]).sort_values("event_time", kind="stable", ignore_index=True)
    versions = []
    for name, source in (("accepted", accepted), ("all", worse)):
        source.to_parquet(tmp_path / f"{name}.parquet", index=False)
        arguments = [str(tmp_path / f"{name}.parquet"), "--trees", "10", "--threads", "1", "--budget-per-day", "5"]
        run = CliRunner().invoke(main, ["train", *arguments])
        assert run.exit_code == 0, run.output
        left_out = "left out 4 transactions that workers refuse (amount_zero 2, repeat_differs 2); the first is row "
        for said in (left_out, "amounts in USD are converted to EUR", "shop_floor"):
            assert (said in run.stderr) == (name == "all"), run.stderr
        versions.append(json.loads(run.stdout)["lightgbm"])
    assert versions[0] == versions[1]


def test_the_command_says_why_workers_would_refuse_every_row(tmp_path) -> None:
    history(2).assign(currency="XXX").to_parquet(tmp_path / "dollars.parquet", index=False)
    refused = CliRunner().invoke(main, ["train", str(tmp_path / "dollars.parquet")])
    assert refused.exit_code == 1
    assert "workers would refuse all of them: currency_unknown (" in refused.stderr


def test_progress_is_reported_as_it_goes() -> None:
    names: list[str] = []
    data = history_of(history(30), LabelRegime(delay_days=7.0), report=names.append).training_set()
    say = throttled(names.append, 0.0)
    split = split_cohorts(data.event_time_us, label_delay_us=7 * US_PER_DAY, validation_us=7 * US_PER_DAY)
    train(data, split, alerts_per_day=5, config=TrainingConfig(trees=3, threads=1), report=say)
    text = "\n".join(names)
    for part in ("features of 12,0", "3 trees of at most 3", "trees on both periods"):
        assert part in text
    never = throttled(names.append, 1e9)
    never("nothing of this")
    assert "nothing of this" not in names


def test_the_command_says_what_is_missing(tmp_path, monkeypatch) -> None:
    monkeypatch.delenv("KAFKA_BOOTSTRAP_SERVERS", raising=False)
    monkeypatch.setenv("FRAUD_PIPELINE_REGISTRY_DIR", str(tmp_path / "registry"))
    assert "name a FILE or give --from-topics" in CliRunner().invoke(main, ["train"]).output
    assert "--bootstrap" in CliRunner().invoke(main, ["train", "--from-topics"]).output
    file = tmp_path / "short.parquet"
    history(3).to_parquet(file)
    run = CliRunner().invoke(main, ["train", str(file)])
    assert run.exit_code == 1
    assert "give a longer one" in run.output
