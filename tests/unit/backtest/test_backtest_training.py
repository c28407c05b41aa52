"""Models that a backtest trains for itself, thresholds for budgets, and drift: nothing of it knows what is to come."""

import json
import re
from collections.abc import Callable
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import pandas as pd
import pytest

from pipeline import Backtest, Training
from pipeline.backtest import delayed_truth, frame_tables
from pipeline.backtest.input.span import RangeError
from pipeline.backtest.report import ReportOptions, build_report
from pipeline.backtest.runner.result import BacktestResult
from pipeline.decision.budget import case_threshold
from pipeline.engine.scores.active_models import ActiveModels
from pipeline.features.catalogue import DEFAULT_FEATURES, FEATURES
from pipeline.history.files import resolve_mapping
from pipeline.learning.regimes import LabelRegime
from pipeline.learning.report_delays import ReportDelays
from pipeline.learning.trained_labels import TrainedLabels
from pipeline.models.registry import LIGHTGBM, POLICY, Registry
from pipeline.scoring.errors import ModelError
from pipeline.scoring.lightgbm_model import LightGBMModel
from pipeline.scoring.river_factory import first_river
from pipeline.scoring.trees import read_trees
from pipeline.settings import Settings
from pipeline.training.cohorts import split_cohorts
from pipeline.training.early_reports import EarlyReports
from pipeline.training.fit import Trained, TrainingConfig, train
from schemas.codec import timestamp_us
from schemas.times import US_PER_DAY
from tests.helpers.backtest_inputs import backtest_of
from tests.helpers.champion import LARGE_AMOUNT, RULES, active, policy
from tests.helpers.features import compute_features, history_of
from tests.helpers.files import load_transactions
from tests.helpers.models import registered, small_model

DAY = timedelta(days=1)
SMALL = TrainingConfig(trees=12, leaves=8, rows_per_leaf=20)
GAP_S = 2 * 86_400.0
Changed = Callable[[pd.DataFrame], pd.DataFrame]


@pytest.fixture
def asked(history: pd.DataFrame, start: datetime, settings: Settings, tmp_path: Path) -> Callable[..., Backtest]:
    """A backtest of the last six days, of a history that may be changed before."""

    def ask(changed: Changed = lambda frame: frame, **more: Any) -> Backtest:
        path = tmp_path / "history.parquet"
        changed(history.copy()).to_parquet(path, index=False)
        given: dict[str, Any] = {
            "start": start + 28 * DAY,
            "warm_up_s": 28 * 86_400.0,
            "label_delay_s": GAP_S,
            "validation_days": 6.0,
            "settings": settings,
        }
        return backtest_of(path, **(given | more))

    return ask


def test_a_backtest_warns_of_a_version_that_was_trained_on_other_labels(asked: Callable[..., Backtest]) -> None:
    text = json.loads(small_model().to_payload())["text"]
    labels = {"regime": {"reported": "all"}, "maturity_days": GAP_S / 86_400.0}
    models = {"other": ActiveModels(LightGBMModel(text, metadata={"labels": labels}), first_river(), policy())}

    def warned(**declared: Any) -> list[str]:
        return [
            warning for warning in asked(models=models, **declared).run().warnings if "was trained where" in warning
        ]

    (warning,) = warned(reported="frauds-only")
    assert "all transactions get labels, and is used where only frauds are reported" in warning
    assert not warned(reported="all")
    (warning,) = warned(reported="all", delay_spread=1.0)
    assert "within 2 days, and is used where they take 7.2" in warning


def training(begin: datetime, **more: Any) -> Training:
    given: dict[str, Any] = {"variants": {"trained": []}, "start": begin + 5 * DAY, "config": SMALL}
    return Training(**(given | more))


def trained_on_file(path: Path, start: datetime, regime: LabelRegime, *, early: bool = False) -> Trained:
    """The training of the file that `asked` wrote, by what is known when its range begins."""
    known_us, gap_us = timestamp_us(start + 28 * DAY), round(regime.maturity_days * US_PER_DAY)
    frame = load_transactions(path, resolve_mapping(path), end=start + 28 * DAY)
    data = history_of(frame, regime).training_set(known_us)
    split = split_cohorts(
        data.event_time_us,
        label_delay_us=gap_us,
        validation_us=6 * US_PER_DAY,
        train_from_us=timestamp_us(start + 5 * DAY),
        known_before_us=known_us,
    )
    labels = TrainedLabels(known_us, gap_us, regime.describe())
    reports = EarlyReports(known_us, ReportDelays(regime)) if early else None
    return train(data, split, config=SMALL, policy=policy(), early=reports, labels=labels)


@pytest.mark.parametrize("early", [True, False])
def test_a_model_takes_early_reports_as_the_training_of_a_file_does(
    asked: Callable[..., Backtest], start: datetime, tmp_path: Path, early: bool
) -> None:
    declared: dict[str, Any] = {"reported": "frauds-only", "delay_spread": 0.4, "early_share": 0.3}
    backtest = asked(training=training(start, early_reports=early), **declared)
    backtest.run()
    regime = LabelRegime(delay_days=GAP_S / 86_400.0, **declared)
    expected = trained_on_file(tmp_path / "history.parquet", start, regime, early=early).model
    assert ("early" in expected.metadata) == early
    assert backtest.trained["trained"].model.version == expected.version


def test_a_model_is_the_one_that_the_training_of_a_file_makes(
    asked: Callable[..., Backtest], start: datetime, tmp_path: Path
) -> None:
    backtest = asked(training=training(start))
    result = backtest.run()
    expected = trained_on_file(tmp_path / "history.parquet", start, LabelRegime(delay_days=GAP_S / 86_400.0))
    found = backtest.trained["trained"]
    assert found.model.version == expected.model.version
    assert found.policy.version == expected.policy.version
    (variant,) = result.variants
    assert variant.models["lightgbm"] == found.model.version
    assert variant.threshold == found.policy.threshold
    names = ", ".join(DEFAULT_FEATURES)
    assert variant.parameters["features"] == f"{len(DEFAULT_FEATURES)} of {len(FEATURES)}: {names}"
    # And it decides as it would if it had been registered before.
    registry = Registry(backtest.settings.registry_path)
    assert [entry.version for entry in registry.entries(LIGHTGBM)] == [small_model().version]
    registry.register(LIGHTGBM, expected.model.to_payload())
    registry.register(POLICY, expected.policy.to_payload())
    again = asked(models={"trained": expected.model.version}, river="untrained").run()
    pd.testing.assert_frame_equal(again.variants[0].decisions, variant.decisions, check_exact=True)
    assert again.variants[0].models == variant.models


def test_what_is_still_to_come_changes_nothing_that_is_trained(asked: Callable[..., Backtest], start: datetime) -> None:
    def spoilt_from(at: datetime, column: str) -> Changed:
        def change(frame: pd.DataFrame) -> pd.DataFrame:
            late = frame["event_time"] >= at
            frame.loc[late, column] = ~frame.loc[late, column] if column == "fraud" else frame.loc[late, column] + 500
            return frame

        return change

    def version(changed: Changed = lambda frame: frame) -> str:
        backtest = asked(changed, training=training(start))
        backtest.run()
        return backtest.trained["trained"].model.version

    known, gap = start + 28 * DAY, timedelta(seconds=GAP_S)
    as_it_was = version()
    assert version() == as_it_was
    assert version(spoilt_from(known, "amount")) == as_it_was
    # Labels of the last days before it are not known yet.
    assert version(spoilt_from(known - gap + timedelta(seconds=1), "fraud")) == as_it_was
    assert version(spoilt_from(known - gap - DAY, "fraud")) != as_it_was


def test_labels_count_as_they_were_known_at_the_end(
    history: pd.DataFrame, asked: Callable[..., Backtest], start: datetime, tmp_path: Path
) -> None:
    known = start + 28 * DAY
    rng = np.random.default_rng(4)
    frauds = history.loc[history["fraud"], ["transaction_id", "card_id", "event_time"]]
    reported = frauds.assign(label="fraud", source="analyst", labelled_at=frauds["event_time"] + DAY)

    def version(labels: pd.DataFrame) -> str:
        path = tmp_path / "labels.parquet"
        labels.drop(columns="event_time").sort_values("labelled_at", kind="stable").to_parquet(path, index=False)
        # Times of labels are those of their arrival: nothing else tells it.
        backtest = asked(label_file=path, training=training(start, gap_s=GAP_S))
        backtest.run()
        return backtest.trained["trained"].model.version

    as_it_was = version(reported)
    some = reported[rng.random(len(reported)) < 0.5]
    later = some.assign(label="legitimate", source="audit", labelled_at=known + timedelta(seconds=1))
    assert version(pd.concat([reported, later])) == as_it_was
    bought = history.loc[~history["fraud"], ["transaction_id", "card_id", "event_time"]].iloc[::20]
    by_rule = bought.assign(label="fraud", source="rule", labelled_at=bought["event_time"] + DAY)
    assert version(pd.concat([reported, by_rule])) == as_it_was
    assert version(pd.concat([reported, by_rule.assign(source="customer")])) != as_it_was
    outranked = some.assign(label="legitimate", source="customer", labelled_at=some["labelled_at"] + DAY)
    assert version(pd.concat([reported, outranked])) == as_it_was
    corrected = outranked.assign(source="audit")
    assert version(pd.concat([reported, corrected])) != as_it_was


def test_exported_topics_of_several_partitions_train_what_their_file_trains(
    history: pd.DataFrame, asked: Callable[..., Backtest], start: datetime, settings: Settings, tmp_path: Path
) -> None:
    of_file = asked(training=training(start))
    of_file.run()
    directory = tmp_path / "export"
    reported = pd.concat(table.to_pandas() for table in delayed_truth(frame_tables(history), GAP_S))
    for name, frame, time in (("transactions", history, "event_time"), ("labels", reported, "labelled_at")):
        number = frame["card_id"].map(lambda card: crc32(str(card).encode()) % 3)
        placed = frame.drop(columns=["fraud", "fraud_type"], errors="ignore")
        placed = placed.assign(partition=number, timestamp=frame[time], offset=range(len(frame)))
        (directory / name).mkdir(parents=True)
        placed.to_parquet(directory / name / "0.parquet", index=False)
    of_export = backtest_of(
        directory,
        start=start + 28 * DAY,
        warm_up_s=28 * 86_400.0,
        validation_days=6.0,
        settings=settings,
        training=training(start, gap_s=GAP_S),
    )
    of_export.run()
    found, expected = (json.loads(item.trained["trained"].model.to_payload()) for item in (of_export, of_file))
    # Recorded labels declare no regime; all else is the same.
    assert found["metadata"]["labels"].pop("regime") == {}
    assert expected["metadata"]["labels"].pop("regime") == {"delay_days": 2.0, "reported": "all"}
    assert found == expected


def test_the_gap_of_recorded_labels_is_the_time_in_which_they_mature(
    history: pd.DataFrame, asked: Callable[..., Backtest], start: datetime, settings: Settings, tmp_path: Path
) -> None:
    labels = tmp_path / "labels.parquet"
    frauds = history[history["fraud"]]
    frauds[["transaction_id", "card_id"]].assign(
        label="fraud", source="issuer", labelled_at=frauds["event_time"]
    ).to_parquet(labels, index=False)
    matures = settings.model_copy(update={"maturity_days": 9.0})
    assert asked(label_file=labels, settings=matures, training=training(start)).period.gap_us == 9 * US_PER_DAY
    assert asked(settings=matures, training=training(start)).period.gap_us == 2 * US_PER_DAY


def test_a_changed_feature_set_is_trained_on_and_on_nothing_else(
    asked: Callable[..., Backtest], start: datetime
) -> None:
    variants = {"all": ["*"], "no merchants": ["-merchant_*"], "few": ["amount", "merchant_known_*"]}
    backtest = asked(models={"now": "active"}, training=training(start, variants=variants))
    result = backtest.run()
    assert [variant.name for variant in result.variants] == ["now", *variants]
    for name, allowed in (
        ("all", set(FEATURES)),
        ("no merchants", {name for name in DEFAULT_FEATURES if not name.startswith("merchant_")}),
        ("few", {"amount", *(name for name in FEATURES if name.startswith("merchant_known_"))}),
    ):
        model = backtest.trained[name].model
        assert set(model.trained_on) == allowed
        assert {distribution.name for distribution in model.distributions} == allowed
        asks = {FEATURES[feature] for tree in read_trees(text(model), FEATURES) for feature in tree.feature}
        assert asks
        assert asks <= allowed
    few = result.variants[-1]
    known = [f"merchant_known_{name}" for name in ("count_14d", "fraud_14d", "count_30d", "fraud_30d")]
    assert few.parameters["features"] == f"5 of {len(FEATURES)}: {', '.join(['amount', *known])}"
    assert few.parameters["trained by what was known at"] == f"{start + 28 * DAY:%Y-%m-%d %H:%M:%S}"
    scores = [variant.decisions["score"] for variant in result.variants]
    assert not scores[1].equals(scores[3])


def text(model: LightGBMModel) -> str:
    return str(model._booster.model_to_string())


def test_what_was_trained_is_kept_where_that_is_asked_for(asked: Callable[..., Backtest], start: datetime) -> None:
    backtest = asked(training=training(start, variants={"few": ["amount", "hour"]}, register=True))
    backtest.run()
    registry = Registry(backtest.settings.registry_path)
    trained = backtest.trained["few"]
    assert registered(registry, trained.model.version).trained_on == ("amount", "hour")
    assert registry.load_policy(trained.policy.version).lightgbm_version == trained.model.version
    details = registry.entry(LIGHTGBM, trained.model.version).details
    assert details["metrics"]["auc_roc"] > 0.5
    assert details["features"] == ["amount", "hour"]
    assert registry.active(LIGHTGBM) == small_model().version


def test_without_a_model_in_force_one_can_be_trained(
    asked: Callable[..., Backtest], start: datetime, tmp_path: Path
) -> None:
    empty = Settings(data_dir=tmp_path / "nothing", kafka_bootstrap_servers=None)
    result = asked(training=training(start), settings=empty).run()
    assert [variant.name for variant in result.variants] == ["trained"]
    assert not (tmp_path / "nothing").exists()


def test_progress_tells_what_comes_before_the_range(asked: Callable[..., Backtest], start: datetime) -> None:
    steps = []
    asked(training=training(start), end=start + 33 * DAY).run(steps.append)
    stages = list(dict.fromkeys(step.stage for step in steps))
    assert stages == ["reading what to train on", "growing the trees of trained", ""]
    assert all(0.0 <= step.share <= 1.0 for step in steps if step.share is not None)


def test_a_training_that_is_stopped_decides_nothing(asked: Callable[..., Backtest], start: datetime) -> None:
    with pytest.raises(RangeError, match="stopped before it had trained"):
        asked(training=training(start)).run(stopped=lambda: True)


def test_a_training_that_cannot_be_is_reported(asked: Callable[..., Backtest], start: datetime, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="still to come"):
        asked(training=training(start, end=start + 29 * DAY))
    with pytest.raises(ValueError, match="what lies before the range"):
        asked(start=None, training=training(start))
    with pytest.raises(RangeError, match="2 days go to the labels' delay and 6 to the validation"):
        asked(training=training(start, start=start + 21 * DAY))
    with pytest.raises(ModelError, match="'card_colour' matches no feature"):
        asked(training=training(start, variants={"odd": ["card_colour"]}))
    with pytest.raises(ValueError, match="two variants are called active"):
        asked(models=["active"], training=training(start, variants={"active": []}))
    long_ago = training(start, start=start - 90 * DAY, end=start - 60 * DAY)
    with pytest.raises(RangeError, match="no transaction to train on from 2018-01-01 00:00:00 to 2018-01-29"):
        asked(training=long_ago).run()
    with pytest.raises(ValueError, match="only in the order of event time"):
        backtest_of(order="recorded", bootstrap="127.0.0.1:1", start=start, training=training(start))
    with pytest.raises(ValueError, match="only in the order of event time"):
        backtest_of(order="recorded", bootstrap="127.0.0.1:1", budgets=[5])


def test_a_budget_s_threshold_is_the_one_that_keeps_it_on_the_days_before(
    asked: Callable[..., Backtest], start: datetime
) -> None:
    def with_large_amounts(frame: pd.DataFrame) -> pd.DataFrame:
        return frame.assign(amount=np.where(frame.index % 300 == 7, LARGE_AMOUNT, frame["amount"]))

    now = active(rules=RULES)
    result = asked(with_large_amounts, budgets=[2, 20], models={"now": now}).run()
    assert [variant.name for variant in result.variants] == ["now at 2 a day", "now at 20 a day"]
    parts: list[pd.DataFrame] = []
    asked(with_large_amounts, start=start + 22 * DAY, end=start + 28 * DAY, models={"now": "active"}).each(
        lambda name, decisions: parts.append(decisions.frame())
    )
    before = pd.concat(parts)
    case, _ = pd.factorize(before["case_id"])
    assert len(before) > len(set(case.tolist()))
    for budget, variant in zip((2, 20), result.variants, strict=True):
        expected = case_threshold(before["score"].to_numpy(), case, 6.0, budget)
        assert variant.threshold == expected
        scored = variant.decisions["score"] >= expected
        assert ((variant.decisions["selection"] == "score") == scored).all()
        assert variant.parameters["alerts a day"] == budget
    few, many = ((variant.decisions["action"] == "alert").sum() for variant in result.variants)
    assert 0 < few < many
    # Rules raise theirs whatever the budget.
    assert (result.variants[0].decisions["selection"] == "rule").sum() > 0


def test_days_that_a_budget_lacks_are_reported(asked: Callable[..., Backtest], start: datetime) -> None:
    result = asked(budgets=[5], start=start + 3 * DAY).run()
    assert any("chosen on 3.0 days before the range, not on 6" in warning for warning in result.warnings)
    with pytest.raises(ValueError, match="there is no transaction"):
        asked(budgets=[5], start=None).run()


def test_a_budget_below_the_number_of_equal_highest_scores_is_reported(
    asked: Callable[..., Backtest], start: datetime
) -> None:
    result = asked(budgets=[0.1, 20], models={"now": "active"}).run()
    (warning,) = [warning for warning in result.warnings if "with the highest score before the range" in warning]
    assert re.match(r"now at 0\.1 a day: [\d,]+ cases? with the highest score", warning)
    before = asked(start=start + 22 * DAY, end=start + 28 * DAY).run().variants[0].decisions["score"]
    decisions = result.variants[0].decisions
    # A higher one than any before may come; none of those that are equal to the highest is selected.
    selected = decisions["selection"] == "score"
    assert (selected == (decisions["score"] > before.max())).all()


def quick(result: BacktestResult) -> Any:
    return build_report(result, ReportOptions(replicates=5))


def test_features_of_a_range_are_counted_in_the_bins_of_each_training(
    history: pd.DataFrame, asked: Callable[..., Backtest], start: datetime
) -> None:
    names = {"one": ["-hour"], "two": ["amount", "hour"]}
    backtest = asked(models={"old": "active"}, thresholds=[0.2, 0.4], training=training(start, variants=names))
    result = backtest.run()
    old, models, two = result.drift
    assert old.lightgbm == small_model().version
    assert old.variants == ("old at 0.2", "old at 0.4")
    assert (old.before, old.now) == ((), ())
    assert models.variants == ("one at 0.2", "one at 0.4")
    assert [entry.name for entry in models.now] == [name for name in DEFAULT_FEATURES if name != "hour"]
    assert [entry.name for entry in two.now] == ["amount", "hour"]

    frame = history.assign(amount_minor=(history["amount"] * 100).round().astype("int64"))
    features = compute_features(frame, label_delay_s=GAP_S)[(history["event_time"] >= start + 28 * DAY).to_numpy()]
    for entry in models.now:
        column = features[:, FEATURES.index(entry.name)]
        edges = [-np.inf, *entry.edges, np.inf]
        expected = [((low <= column) & (column < high)).sum() for low, high in pairwise(edges)]
        assert list(entry.counts) == [*expected, np.isnan(column).sum()], entry.name
    assert models.before == backtest.trained["one"].model.distributions

    report = quick(result)
    reported = {drift.lightgbm: drift for drift in report.content.drift}
    assert not reported[old.lightgbm].known
    assert reported[models.lightgbm].known
    assert len(reported[two.lightgbm].features) == 2
    words = " ".join(report.text.split())
    assert f"LightGBM {old.lightgbm} (old at 0.2, old at 0.4) does not tell how features were distributed" in words
    assert f"Since the training of LightGBM {models.lightgbm} (one at 0.2, one at 0.4)" in words
    assert f"LightGBM {old.lightgbm} (old at 0.2, old at 0.4) does not tell" in report.html
