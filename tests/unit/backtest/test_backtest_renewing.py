"""Models that are renewed within a range: each knows what was known by then, and decides from then on."""

from collections.abc import Callable
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pandas as pd
import pytest

from pipeline import Backtest, Training
from pipeline.backtest.input.spill import NumberColumn
from pipeline.backtest.report import ReportOptions, build_report
from pipeline.backtest.runner.result import BacktestResult, TrainedVersion, Variant
from pipeline.engine.scores.decisions import Decisions
from pipeline.models.registry import LIGHTGBM, Registry
from pipeline.settings import Settings
from pipeline.training.fit import TrainingConfig
from tests.helpers.backtest_inputs import DAYS, backtest_of

DAY = timedelta(days=1)
BEGIN, EVERY = 22, 4
"""Days of the history at which the range begins, and between two trainings."""
ENDS = (*range(BEGIN, DAYS, EVERY), DAYS)
SMALL = TrainingConfig(trees=12, leaves=8, rows_per_leaf=20, legitimate_rows=2_000)
GAP_S = 2 * 86_400.0
RENEWED = "one every 4 days"
Changed = Callable[[pd.DataFrame], pd.DataFrame]
REGIMES: dict[str, dict[str, Any]] = {
    "all": {},
    "late frauds": {"reported": "frauds-only", "delay_spread": 0.4, "never_reported": 0.1},
}


@pytest.fixture
def asked(history: pd.DataFrame, start: datetime, settings: Settings, tmp_path: Path) -> Callable[..., Backtest]:
    """A backtest of a range of days, by models that are trained on the sixth day and later."""

    def ask(
        first: int = BEGIN, end: int = DAYS, changed: Changed = lambda frame: frame, *,
        train: dict[str, Any] | None = None, **more: Any,
    ) -> Backtest:  # fmt: skip
        path = tmp_path / "history.parquet"
        changed(history.copy()).to_parquet(path, index=False)
        given: dict[str, Any] = {"variants": {"one": []}, "config": SMALL}
        asked: dict[str, Any] = {
            "start": start + first * DAY,
            "end": start + end * DAY,
            "warm_up_s": 40 * 86_400.0,
            "label_delay_s": GAP_S,
            "validation_days": 6.0,
            "settings": settings,
            "training": Training(**({"start": start + 5 * DAY} | given | (train or {}))),
        }
        return backtest_of(path, **(asked | more))

    return ask


def variant_of(result: BacktestResult, name: str = RENEWED) -> Variant:
    return next(variant for variant in result.variants if variant.name == name)


def versions(result: BacktestResult, name: str = RENEWED) -> list[str | None]:
    return [version.lightgbm for version in variant_of(result, name).versions]


def timeless(variant: Variant) -> list[TrainedVersion]:
    return [msgspec.structs.replace(version, seconds=0.0) for version in variant.versions]


@pytest.mark.parametrize("regime", REGIMES.values(), ids=REGIMES)
def test_a_renewed_range_is_decided_as_its_pieces_are_by_models_of_their_own(
    asked: Callable[..., Backtest], regime: dict[str, Any]
) -> None:
    variants = {"one": [], "two": ["amount", "hour", "card_*"]}
    renewed = asked(train={"variants": variants, "renew_days": [EVERY, 2 * EVERY]}, **regime).run()
    names = [f"{name}{every}" for name in variants for every in ("", " every 4 days", " every 8 days")]
    assert [variant.name for variant in renewed.variants] == names
    pieces = [asked(first, end, train={"variants": variants}, **regime).run() for first, end in pairwise(ENDS)]
    for name in variants:
        found, by_piece = variant_of(renewed, f"{name} every 4 days"), [variant_of(piece, name) for piece in pieces]
        together = pd.concat([result.decisions for result in by_piece], ignore_index=True)
        pd.testing.assert_frame_equal(found.decisions, together, check_exact=True)
        assert timeless(found) == [version for item in by_piece for version in timeless(item)]
        assert len({version.lightgbm for version in found.versions}) == len(pieces)
        assert sum(version.decisions for version in found.versions) == len(together)
        assert len({version.metrics["threshold"] for version in found.versions}) > 1
        # Schedules that meet share the training.
        slower = variant_of(renewed, f"{name} every 8 days").versions
        assert [models.lightgbm for models in slower] == [found.versions[at].lightgbm for at in (0, 2)]
        assert slower[1].seconds == found.versions[2].seconds
        once = variant_of(renewed, name)
        assert [version.lightgbm for version in once.versions] == [found.versions[0].lightgbm]
        before = (once.decisions["event_time"] < by_piece[1].decisions["event_time"].iloc[0]).to_numpy()
        pd.testing.assert_frame_equal(once.decisions[before], found.decisions[before], check_exact=True)
        assert not once.decisions["score"].equals(found.decisions["score"])


def test_recorded_labels_renew_by_what_held_at_each_boundary(
    history: pd.DataFrame, asked: Callable[..., Backtest], start: datetime, tmp_path: Path
) -> None:
    frauds = history.loc[history["fraud"], ["transaction_id", "card_id", "event_time"]]
    reported = frauds.assign(label="fraud", source="analyst", labelled_at=frauds["event_time"] + DAY)
    some = reported[np.random.default_rng(4).random(len(reported)) < 0.6]
    # They are taken back at the second boundary, and told again behind it.
    at = start + ENDS[1] * DAY
    back = some[some["labelled_at"] < at].assign(label="legitimate", source="audit", labelled_at=at)
    again = back.assign(label="fraud", labelled_at=at + DAY)
    path = tmp_path / "labels.parquet"
    labels = pd.concat([reported, back, again]).drop(columns="event_time")
    labels.sort_values("labelled_at", kind="stable").to_parquet(path, index=False)
    given = {"label_file": path, "train": {"gap_s": GAP_S}}
    renewed = asked(**given | {"train": {"gap_s": GAP_S, "renew_days": [EVERY]}}).run()
    pieces = [asked(first, end, **given).run() for first, end in pairwise(ENDS)]
    assert versions(renewed) == [version for piece in pieces for version in versions(piece, "one")]
    together = pd.concat([piece.variants[0].decisions for piece in pieces], ignore_index=True)
    pd.testing.assert_frame_equal(variant_of(renewed).decisions, together, check_exact=True)
    frauds_trained_on = [version.frauds for version in variant_of(renewed).versions]
    assert frauds_trained_on[1] < frauds_trained_on[0] < frauds_trained_on[2]


def test_the_online_model_is_kept_when_another_lightgbm_version_comes(asked: Callable[..., Backtest]) -> None:
    found: list[Decisions] = []

    def keep(name: str, decisions: Decisions) -> None:
        if name == RENEWED:
            found.append(decisions)

    # Several boundaries of both kinds lie in one chunk.
    learning = asked(train={"renew_days": [EVERY]}, learn=True, publish_every_s=20_000.0)
    learning.each(keep)
    offsets = [
        (item.models.lightgbm.version, int(item.models.river.version.split("@")[1])) for item in found if len(item)
    ]
    assert [number for _, number in offsets] == sorted(number for _, number in offsets)
    by_version = dict.fromkeys(version for version, _ in offsets)
    assert list(by_version) == versions(asked(train={"renew_days": [EVERY]}).run())
    # It goes on behind a boundary from what it had learned before it.
    first_of_second = next(number for version, number in offsets if version == list(by_version)[1])
    assert first_of_second > offsets[0][1] > 0
    assert any((item.river_logit != item.logit).any() for item in found)


def test_reviews_of_alerts_enter_the_features_of_each_candidate_s_trainings(asked: Callable[..., Backtest]) -> None:
    reviewed: dict[str, Any] = {"labels": "simulated-review", "review_delay_s": 3_600.0, "label_delay_s": 6 * 86_400.0}
    given: dict[str, Any] = {"train": {"renew_days": [EVERY], "gap_s": GAP_S}, "thresholds": [0.01, 1.0]}
    plain = asked(**given | {"label_delay_s": 6 * 86_400.0}).run()
    found = asked(**given, **reviewed).run()
    names = ["one at 0.01", "one at 1", f"{RENEWED} at 0.01", f"{RENEWED} at 1"]
    assert [variant.name for variant in found.variants] == names
    assert [variant.threshold for variant in found.variants] == [0.01, 1.0, 0.01, 1.0]
    # Frauds are known sooner where many alerts are looked at; nearly nothing is alerted at 1.
    often, seldom, never = (variant_of(result, name).versions for result, name in zip(
        (found, found, plain), (names[2], names[3], names[3]), strict=True
    ))  # fmt: skip
    assert often[0].lightgbm == seldom[0].lightgbm == never[0].lightgbm
    assert often[1].frauds > seldom[1].frauds >= never[1].frauds


def test_a_window_leaves_older_transactions_out(asked: Callable[..., Backtest], start: datetime) -> None:
    window = {"window_days": 15.0, "start": start}
    renewed = asked(train={"renew_days": [EVERY], **window}).run()
    alone = [asked(end - EVERY, end, train={"start": start + (end - EVERY - 15) * DAY}).run() for end in ENDS[1:-1]]
    assert versions(renewed)[:2] == [version for item in alone for version in versions(item, "one")]
    assert versions(renewed) != versions(asked(train={"renew_days": [EVERY]}).run())


def test_a_training_that_ends_before_the_range_is_followed_by_renewals(
    asked: Callable[..., Backtest], start: datetime
) -> None:
    early = {"end": start + 18 * DAY, "start": start}
    renewed = asked(train={"renew_days": [EVERY], **early}).run()
    assert versions(renewed)[0] == versions(asked(train=early).run(), "one")[0]
    assert versions(renewed)[1] == versions(asked(ENDS[1], train={"start": start}).run(), "one")[0]


def test_a_renewal_that_is_refused_leaves_the_version_before(asked: Callable[..., Backtest], start: datetime) -> None:
    def no_fraud_later(frame: pd.DataFrame) -> pd.DataFrame:
        return frame.assign(fraud=frame["fraud"] & (frame["event_time"] < start + 22 * DAY))

    result = asked(changed=no_fraud_later, train={"renew_days": [EVERY]}).run()
    first, second, third = variant_of(result).versions
    assert second.lightgbm is not None
    assert third.lightgbm is None
    assert "the validation period holds" in third.refused
    assert first.decisions + second.decisions == len(result.variants[0].decisions)
    assert any("1 of 2 trainings within the range were refused" in warning for warning in result.warnings)
    page = build_report(result, ReportOptions(replicates=2))
    assert "the validation period holds" in page.html


def test_days_without_a_transaction_are_not_trained_for(asked: Callable[..., Backtest], start: datetime) -> None:
    def paused(frame: pd.DataFrame) -> pd.DataFrame:
        day = (frame["event_time"] - start) / DAY
        return frame[(day < 25) | (day > 31)]

    known = [
        datetime.fromisoformat(version.known_time)
        for version in variant_of(asked(changed=paused, train={"renew_days": [EVERY]}).run()).versions
    ]
    assert [item - known[0] for item in known] == [0 * DAY, 8 * DAY]


def test_every_version_is_registered_where_that_is_asked_for(asked: Callable[..., Backtest]) -> None:
    backtest = asked(train={"renew_days": [EVERY], "register": True, "variants": {"one": []}})
    result = backtest.run()
    kept = {entry.version for entry in Registry(backtest.settings.registry_path).entries(LIGHTGBM)}
    assert kept.issuperset(versions(result))


def test_the_report_lists_the_versions(asked: Callable[..., Backtest]) -> None:
    result = asked(train={"renew_days": [EVERY]}).run()
    report = build_report(result, ReportOptions(replicates=2))
    (_, variant) = report.content.variants
    assert [version.lightgbm for version in variant.versions] == versions(result)
    assert [str(version.first_decision)[:10] for version in variant.versions] == [
        version.known_time[:10] for version in variant.versions
    ]
    assert all(version.frauds > 0 and version.rows > version.frauds for version in variant.versions)
    for version in variant.versions:
        assert str(version.lightgbm) in report.html
    assert f"{RENEWED}: 3 versions, by what was known from" in report.text
    # Drift is from the first training, of the whole range.
    assert [(drift.lightgbm, drift.variants) for drift in report.content.drift] == [
        (versions(result)[0], ["one", RENEWED])
    ]
    counted = sum(result.drift[0].now[0].counts)
    assert counted == len(result.variants[0].decisions)


def test_what_cannot_be_renewed_is_refused(asked: Callable[..., Backtest]) -> None:
    with pytest.raises(ValueError, match="leave --budget and --pace out"):
        asked(train={"renew_days": [EVERY]}, budgets=[5])
    with pytest.raises(ValueError, match="renew_days must be more than 0"):
        asked(train={"renew_days": [7.0, 0.0]})
    with pytest.raises(ValueError, match="two variants are called one every day"):
        asked(train={"renew_days": [1.0], "variants": {"one": [], "one every day": []}})
    with pytest.raises(ValueError, match="widen --train-window"):
        asked(train={"window_days": 7.0})


def test_a_column_can_be_read_while_it_grows() -> None:
    column = NumberColumn(np.int64)
    assert column.so_far().tolist() == []
    column.add(np.arange(3))
    before = column.so_far()
    column.add(np.arange(2))
    assert before.tolist() == [0, 1, 2]
    assert column.so_far().tolist() == [0, 1, 2, 0, 1]
    assert column.finish().tolist() == [0, 1, 2, 0, 1]
