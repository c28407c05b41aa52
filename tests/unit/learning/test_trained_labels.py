"""The labels of a training in a version's metadata, and the warning where it is used under others."""

import json
from typing import Any

import numpy as np
import pytest

from pipeline.features.catalogue import DEFAULT_FEATURES, FEATURES, LEGITIMATE_LABEL_FEATURES
from pipeline.learning.regimes import LabelRegime
from pipeline.learning.reporting import Reported
from pipeline.learning.trained_labels import LABELS, TrainedLabels, warning_of_labels, warning_of_share
from pipeline.scoring.lightgbm_model import LightGBMModel
from pipeline.training.cohorts import split_cohorts
from pipeline.training.early_reports import EarlyReports
from pipeline.training.fit import TrainingConfig, train
from schemas.times import US_PER_DAY
from tests.helpers.models import small_model
from tests.unit.training.test_training import reported_early, synthetic

FRAUDS = LabelRegime(reported="frauds-only", delay_days=7.0, early_share=0.3)


def trained_under(described: Any) -> LightGBMModel:
    """A version whose trees may ask for all features."""
    text = json.loads(small_model().to_payload())["text"]
    return LightGBMModel(text, metadata={} if described is None else {LABELS: described})


def described(regime: LabelRegime) -> dict[str, Any]:
    labels = TrainedLabels(0, round(regime.maturity_days * US_PER_DAY), regime.describe())
    return labels.describe(np.zeros(0, np.int64), np.zeros(0, np.bool_))


def test_estimated_delays_are_reported_by_source_where_there_are_some() -> None:
    by_source = {"all": {"reports": 90, "half_days": 3.0, "nine_tenths_days": 8.0}}
    none = np.zeros(0, np.int64), np.zeros(0, np.bool_)
    assert TrainedLabels(0, US_PER_DAY, {}, by_source).describe(*none)["report_delays"] == by_source
    assert "report_delays" not in TrainedLabels(0, US_PER_DAY, {}).describe(*none)


def test_a_version_says_which_labels_it_was_trained_on() -> None:
    as_of_us = 30 * US_PER_DAY
    data, early = reported_early(synthetic(), FRAUDS, as_of_us)
    split = split_cohorts(
        data.event_time_us, label_delay_us=7 * US_PER_DAY, validation_us=7 * US_PER_DAY, known_before_us=as_of_us
    )
    labels = TrainedLabels(as_of_us, 7 * US_PER_DAY, FRAUDS.describe())
    config = TrainingConfig(trees=20, leaves=8, rows_per_leaf=20)

    def described(early: EarlyReports | None) -> dict[str, Any]:
        model = train(data, split, config=config, features=FEATURES, early=early, labels=labels).model
        found: dict[str, Any] = LightGBMModel.from_payload(model.to_payload()).metadata[LABELS]
        return found

    found, without = described(early), described(None)
    assert found["regime"] == {"delay_days": 7.0, "reported": "frauds-only", "early_share": 0.3, "early_hours": 6.0}
    assert found["maturity_days"] == 7.0
    ages = (as_of_us - data.event_time_us) / US_PER_DAY
    week = (ages >= 1) & (ages < 7)
    assert found["frauds_by_age_days"]["1-7"] == np.count_nonzero(data.fraud & week) > 0
    assert found["others_by_age_days"]["1-7"] == np.count_nonzero(~data.fraud & week)
    assert without["frauds_by_age_days"] == found["frauds_by_age_days"] | {"0-1": 0, "1-7": 0}
    rows = np.union1d(split.training, split.validation)
    assert sum(without["others_by_age_days"].values()) == np.count_nonzero(~data.fraud[rows])


@pytest.mark.parametrize(
    ("trained", "used", "words"),
    [
        ("all", "frauds-only", "all transactions get labels, and is used where only frauds are reported"),
        ("frauds-only", "all", "only frauds are reported, and is used where all transactions get labels"),
        ("mixed", "all", "some legitimate transactions get labels, and is used where all"),
        ("all", "all", None),
    ],
)
def test_a_version_of_another_regime_is_warned_about(trained: Reported, used: Reported, words: str | None) -> None:
    warning = warning_of_labels(trained_under(described(LabelRegime(reported=trained))), used)
    assert (warning is None) == (words is None)
    assert words is None or words in (warning or "")


def test_a_version_that_counts_no_legitimate_label_scores_alike_everywhere() -> None:
    assert not set(DEFAULT_FEATURES) & set(LEGITIMATE_LABEL_FEATURES)
    data = synthetic()
    split = split_cohorts(data.event_time_us, label_delay_us=2 * US_PER_DAY, validation_us=7 * US_PER_DAY)
    labels = TrainedLabels(30 * US_PER_DAY, 2 * US_PER_DAY, LabelRegime(reported="all", delay_days=2.0).describe())
    config = TrainingConfig(trees=20, leaves=8, rows_per_leaf=20)
    names = tuple(name for name in FEATURES if name not in LEGITIMATE_LABEL_FEATURES)
    alike = train(data, split, config=config, features=names, labels=labels).model
    assert warning_of_labels(alike, "frauds-only") is None
    counting = train(data, split, config=config, features=FEATURES, labels=labels).model
    assert "merchant_newest_label" in (warning_of_labels(counting, "frauds-only") or "")


def test_other_delays_are_warned_about_where_they_are_known() -> None:
    model = trained_under(described(LabelRegime(delay_days=7.0)))
    assert warning_of_labels(model, "all") is None
    assert warning_of_labels(model, "all", 10.0) is None
    assert "within 7 days, and is used where they take 18" in (warning_of_labels(model, "all", 18.0) or "")
    assert warning_of_labels(model, "all", 1.0) is not None


def test_another_share_of_reports_in_time_is_warned_about() -> None:
    model, six_hours_us = trained_under(described(FRAUDS)), US_PER_DAY // 4
    assert warning_of_share(model, 7 * US_PER_DAY, 1.0) is None
    assert warning_of_share(model, six_hours_us, 0.3) is None
    assert "trained where 30% of the reports come within 0.25 days, and FRAUD_PIPELINE_REPORTED_SHARE is 1" in (
        warning_of_share(model, six_hours_us, 1.0) or ""
    )
    assert warning_of_share(model, 7 * US_PER_DAY, 0.3) is not None


@pytest.mark.parametrize("described", [None, {}, [], "all", {"regime": "all"}, {"regime": {"reported": ["all"]}}])
def test_a_version_that_does_not_say_is_not_warned_about(described: Any) -> None:
    assert warning_of_labels(trained_under(described), "frauds-only", 3.0) is None
    assert warning_of_share(trained_under(described), US_PER_DAY, 1.0) is None
