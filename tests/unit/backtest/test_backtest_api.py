"""Backtests as a notebook asks for them: ranges, warm-up, variants, files, exports, and what cannot be decided."""

import math
import re
import shutil
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from pipeline import Training
from pipeline.backtest import Decisions, delayed_truth, file_tables, frame_tables
from pipeline.backtest.input.order import OutOfOrder
from pipeline.backtest.input.span import RangeError
from pipeline.backtest.report import ReportOptions, build_report
from pipeline.backtest.runner.model_library import ModelLibrary
from pipeline.backtest.runner.outcome import nothing_decided
from pipeline.backtest.runner.result import DECISION_COLUMNS, BacktestResult
from pipeline.backtest.runner.statistics import BacktestProgress, ProgressListener, RunStatistics
from pipeline.exports.intended_contents import Contents, Offsets, contents_path, note_contents
from pipeline.exports.parquet_files import ExportError, Origin
from pipeline.features.built_in import LATENESS_US
from pipeline.features.catalogue import FEATURES, REACH_US
from pipeline.history.canonical_columns import UnusableSource
from pipeline.models.registry import POLICY, Registry, RegistryError
from pipeline.scoring.errors import ModelError
from pipeline.settings import Settings
from schemas.times import US_PER_DAY
from tests.helpers.backtest_inputs import START, backtest_of, simulated_days
from tests.helpers.champion import active, policy
from tests.helpers.models import small_model

DAY = timedelta(days=1)
DAYS = 20


@pytest.fixture(scope="module")
def history() -> pd.DataFrame:
    return simulated_days(DAYS)


def decisions(result: BacktestResult, number: int = 0) -> pd.DataFrame:
    return result.variants[number].decisions


def test_a_range_is_decided_as_it_is_within_the_whole(file: Path, settings: Settings) -> None:
    whole = backtest_of(file, settings=settings, label_delay_s=2 * 86_400.0).run()
    start, end = START + 12 * DAY, START + 15 * DAY
    part = backtest_of(file, start=start, end=end, settings=settings, label_delay_s=2 * 86_400.0).run()
    times = decisions(whole)["event_time"]
    of_range = decisions(whole)[(times >= start) & (times < end)].reset_index(drop=True)
    pd.testing.assert_frame_equal(decisions(part), of_range, check_exact=True)
    assert list(decisions(part).columns) == list(DECISION_COLUMNS)
    assert part.warm_up_from_us == whole.from_us
    assert set(part.labels["transaction_id"]) == set(of_range["transaction_id"])
    assert set(part.labels["source"]) == {"simulator"}
    assert (part.label_mode, part.partial) == ("delay", False)


def test_a_shorter_warm_up_is_what_is_asked_for_and_a_missing_one_is_reported(file: Path, settings: Settings) -> None:
    start = START + 12 * DAY
    short = backtest_of(file, start=start, settings=settings, warm_up_s=3 * 86_400.0).run()
    assert short.warm_up_from_us >= (start - 3 * DAY).timestamp() * 1e6
    (asked,) = short.warnings
    assert f"warmed up for 3 days, and features look back {REACH_US // US_PER_DAY}" in asked
    full = backtest_of(file, start=start, settings=settings).run()
    (warning,) = full.warnings
    assert f"11.9 of {(REACH_US + LATENESS_US) // US_PER_DAY} days" in warning
    assert not decisions(full)["score"].equals(decisions(short)["score"])
    (cold,) = backtest_of(file, settings=settings).run().warnings
    assert "--from" in cold


def test_the_warm_up_is_all_that_features_depend_on(tmp_path: Path, settings: Settings) -> None:
    """What is an outlier now is counted 30 days later, and was one by what lies 30 days before it."""
    begin = datetime(2024, 1, 1, tzinfo=UTC)
    # Five small amounts, and 29 days later one that is an outlier by these alone; it is counted 29 days later again.
    days = [0.0, 0.1, 0.2, 0.3, 0.4, 29.0, 58.0, 59.0]
    amounts = [1.0, 1.0, 1.0, 1.0, 1.0, 90.0, 50.0, 50.0]
    frame = pd.DataFrame(
        {
            "transaction_id": [f"t{number}" for number in range(len(days))],
            "card_id": "c",
            "merchant_id": "m",
            "event_time": [begin + day * DAY for day in days],
            "amount": amounts,
            "fraud": False,
        }
    )
    frame.to_parquet(tmp_path / "outliers.parquet", index=False)
    kept: list[Decisions] = []
    asked = backtest_of(tmp_path / "outliers.parquet", start=begin + 57 * DAY, settings=settings)
    asked.each(lambda _, decisions: kept.append(decisions))
    counts = np.concatenate([item.features[:, FEATURES.index("card_outlier_count_30d")] for item in kept])
    assert counts.tolist() == [1.0, 0.0]
    assert asked.warm_up_us == REACH_US + LATENESS_US


def test_the_days_that_a_budget_is_chosen_on_are_as_warm_as_the_range(file: Path, settings: Settings) -> None:
    asked = {"start": START + 12 * DAY, "settings": settings, "warm_up_s": 2 * 86_400.0, "validation_days": 3.0}
    chosen = backtest_of(file, budgets=[5], **asked)
    assert chosen.span.from_us - chosen.span.warm_up_from_us == 5 * US_PER_DAY
    other = backtest_of(file, thresholds=[0.5], **asked)
    assert other.span.from_us - other.span.warm_up_from_us == 2 * US_PER_DAY


def test_variants_decide_about_the_same_in_one_pass(file: Path, settings: Settings) -> None:
    result = backtest_of(file, models={"now": "active"}, thresholds=[0.2, 0.9], settings=settings).run()
    assert [(variant.name, variant.threshold) for variant in result.variants] == [
        ("now at 0.2", 0.2),
        ("now at 0.9", 0.9),
    ]
    low, high = (decisions(result, number) for number in (0, 1))
    assert low["score"].equals(high["score"])
    assert (low["action"] == "alert").sum() > (high["action"] == "alert").sum()
    alone = backtest_of(file, thresholds=[0.9], settings=settings).run()
    pd.testing.assert_frame_equal(decisions(alone), high, check_exact=True)
    explained = result.variants[0]
    assert explained.reasons is not None
    assert 0 < explained.explained <= len(explained.reasons)


def test_a_learning_model_decides_otherwise_than_a_frozen_one_beside_it(file: Path, settings: Settings) -> None:
    asked = {"settings": settings, "label_delay_s": 3_600.0, "river": "untrained"}
    frozen = backtest_of(file, **asked).run()
    learning = backtest_of(file, models=["active"], thresholds=[0.1, 0.6], learn=True, **asked).run()
    assert not decisions(learning, 1)["score"].equals(decisions(frozen)["score"])
    # What each learned does not depend on who alerts: the scores of both are one.
    assert decisions(learning, 0)["score"].equals(decisions(learning, 1)["score"])
    assert "versions" in learning.variants[0].models["river"]
    figures = learning.variants[0].prequential
    assert list(figures) == ["lightgbm", "river", "blend"]
    # With blend 1 the online model decides.
    assert figures["blend"].log_loss == pytest.approx(figures["river"].log_loss)
    assert figures["lightgbm"] != figures["river"]
    report = build_report(learning, ReportOptions(replicates=20))
    assert [variant.model for variant in report.content.variants[0].prequential] == list(figures)
    assert "before they were learned" in report.html
    assert frozen.variants[0].prequential == {}


def test_models_may_be_handed_over(file: Path, settings: Settings) -> None:
    result = backtest_of(file, models={"mine": active(threshold=0.4)}, settings=settings).run()
    assert result.variants[0].models["policy"] == policy(0.4).version
    assert result.parameters["source"] == "history.parquet"


def export(history: pd.DataFrame, directory: Path, partitions: int, shuffled_by: timedelta) -> None:
    """Write transactions and labels as exported topics, each partition a little out of order."""
    reported = pa.concat_tables(delayed_truth(frame_tables(history), 2 * 86_400.0)).to_pandas()
    for name, frame, time in (("transactions", history, "event_time"), ("labels", reported, "labelled_at")):
        frame = frame.drop(columns=["fraud", "fraud_type"], errors="ignore")  # noqa: PLW2901
        number = frame["card_id"].map(lambda card: crc32(str(card).encode()) % partitions)
        late = pd.to_timedelta(frame.index % 5 * shuffled_by.total_seconds(), unit="s")
        frame = frame.assign(partition=number, timestamp=frame[time] + late)  # noqa: PLW2901
        for partition, source in frame.groupby("partition"):
            ordered = source.sort_values("timestamp", kind="stable").assign(offset=range(len(source)))
            path = directory / name / f"partition={partition}" / "0.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            ordered.to_parquet(path, index=False)


def test_exported_topics_that_are_out_of_order_give_what_the_file_gives(
    history: pd.DataFrame, file: Path, settings: Settings, tmp_path: Path
) -> None:
    directory = tmp_path / "export"
    export(history, directory, 3, timedelta(0))
    asked = {"start": START + 10 * DAY, "settings": settings}
    of_file = backtest_of(file, label_delay_s=2 * 86_400.0, **asked).run()
    of_export = backtest_of(directory, **asked).run()
    order = ["event_time", "transaction_id"]
    row, other = (decisions(result).sort_values(order, ignore_index=True) for result in (of_file, of_export))
    pd.testing.assert_frame_equal(row, other, check_exact=True)
    assert of_export.label_mode == "recorded"

    shuffled = tmp_path / "shuffled"
    export(history, shuffled, 3, timedelta(hours=1))
    found = backtest_of(shuffled, **asked).run()
    assert decisions(found)["event_time"].is_monotonic_increasing
    assert sorted(decisions(found)["transaction_id"]) == sorted(row["transaction_id"])
    late = backtest_of(shuffled, lateness_s=3_600.0, **asked).run()
    assert late.counts["refused transactions: late_beyond_margin"] > 0
    assert len(decisions(late)) < len(row)


def test_an_export_is_read_no_further_than_its_span(history: pd.DataFrame, settings: Settings, tmp_path: Path) -> None:
    """What lies before the warm-up, or behind the range, has no part in any count, as if it were not there."""
    spoilt = history.assign(amount=history["amount"].where(np.arange(len(history)) % 50 != 0, -1.0))
    # Some happened before the warm-up and arrived in it: these are read, and not decided.
    export(spoilt, tmp_path / "whole", 3, timedelta(hours=1))
    start, end, warm_up = START + 8 * DAY, START + 16 * DAY, 4 * DAY
    begin, behind = start - warm_up, end + DAY
    asked = {"start": start, "end": end, "settings": settings, "warm_up_s": warm_up.total_seconds()}
    asked["lateness_s"] = DAY.total_seconds()
    found = backtest_of(tmp_path / "whole", **asked).run()
    for path in sorted((tmp_path / "whole").rglob("*.parquet")):
        frame = pd.read_parquet(path)
        late = timedelta(seconds=settings.future_tolerance_s)
        kept = frame["timestamp"] >= begin - late
        if "labels" not in str(path):
            kept &= frame["timestamp"] <= behind
        part = tmp_path / "part" / path.relative_to(tmp_path / "whole")
        part.parent.mkdir(parents=True)
        frame[kept].to_parquet(part, index=False)
    again = backtest_of(tmp_path / "part", **asked).run()
    assert found.counts == again.counts
    assert found.warnings == again.warnings
    pd.testing.assert_frame_equal(found.labels, again.labels)
    pd.testing.assert_frame_equal(decisions(found), decisions(again), check_exact=True)
    # There is something to be counted that a whole export has more of, and something that the span cuts through.
    whole = backtest_of(tmp_path / "whole", settings=settings, lateness_s=DAY.total_seconds()).run().counts
    refused = "refused transactions: amount_negative"
    assert 0 < found.counts[refused] < whole[refused]
    assert found.counts["labels: transaction_not_read"] > 0
    assert "refused labels: label_without_transaction" not in found.counts
    # Those of transactions that were refused.
    assert whole["refused labels: label_without_transaction"] > 0


def test_a_label_is_refused_where_its_transaction_can_only_lie_in_what_was_read(
    history: pd.DataFrame, file: Path, settings: Settings, tmp_path: Path
) -> None:
    begin, grace, retention = START + 2 * DAY, 7 * DAY, 2 * DAY
    last = begin + retention + grace
    known = [last - 2 * DAY, last - timedelta(seconds=1), last, last + DAY]
    reported = {
        "transaction_id": "nobody's",
        "card_id": "c",
        "label": "fraud",
        "source": "analyst",
        "labelled_at": known,
    }
    pd.DataFrame(reported).to_parquet(tmp_path / "labels.parquet", index=False)
    asked = {
        "settings": settings.model_copy(update={"label_grace_days": 2.0}),
        "label_file": tmp_path / "labels.parquet",
    }
    found = backtest_of(file, start=START + 3 * DAY, warm_up_s=86_400.0, **asked).run().counts
    assert found["labels: transaction_not_read"] == 2
    assert found["refused labels: label_without_transaction"] == 2
    # Where all was read, all of them are wrong.
    whole = backtest_of(file, **asked).run().counts
    assert whole["refused labels: label_without_transaction"] == 4
    assert "labels: transaction_not_read" not in whole


def test_an_export_of_which_something_is_missing_is_refused_or_warned_of(
    history: pd.DataFrame, settings: Settings, tmp_path: Path
) -> None:
    directory = tmp_path / "export"
    export(history, directory, 3, timedelta(0))
    asked = {"start": START + 10 * DAY, "settings": settings, "warm_up_s": 86_400.0}
    of_the_warm_up = backtest_of(directory, **asked).run().warnings
    assert not any("labels" in warning for warning in of_the_warm_up)
    reported = directory / "labels"
    note_contents(reported, Contents(Origin("cluster", "labels", "id", 3), {1: Offsets(0, 5)}))
    shutil.rmtree(reported)
    with pytest.raises(ExportError, match="labels lacks offsets 0 to 5 of partition 1"):
        backtest_of(directory, **asked).run()
    contents_path(reported).unlink()
    (warning,) = set(backtest_of(directory, **asked).run().warnings) - set(of_the_warm_up)
    assert "holds no labels/" in warning
    next(directory.rglob("*.parquet")).write_bytes(b"PAR1")
    with pytest.raises(ExportError, match="is damaged"):
        backtest_of(directory, **asked).run()


def test_a_backtest_that_is_stopped_has_what_it_decided(file: Path, settings: Settings) -> None:
    steps = []
    result = backtest_of(file, end=START + 30 * DAY, settings=settings).run(steps.append, lambda: True)
    assert result.partial
    assert len(steps) == 1
    assert steps[0].transactions == len(decisions(result))
    assert 0.0 < (steps[0].share or 0.0) <= 1.0


def test_progress_tells_the_warm_up_from_the_range(
    file: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.backtest.input.file_source.file_tables", partial(file_tables, chunk_rows=50))
    steps: list[BacktestProgress] = []
    start = START + 12 * DAY
    backtest_of(file, start=start, settings=settings).run(steps.append)
    assert [step.stage for step in steps] == [
        "warming the windows up" if step.event_time_us < start.timestamp() * 1e6 else "" for step in steps
    ]
    assert {step.stage for step in steps} == {"warming the windows up", ""}


def test_what_cannot_be_decided_is_reported(file: Path, settings: Settings, tmp_path: Path) -> None:
    late = START + 100 * DAY
    with pytest.raises(RangeError, match=r"history\.parquet has no transaction to decide from 2024-06-09"):
        backtest_of(file, start=late, settings=settings).run()
    with pytest.raises(RangeError, match="the range is empty"):
        backtest_of(file, start=late, end=late.replace(tzinfo=None), settings=settings)
    with pytest.raises(UnusableSource, match="no file or directory"):
        backtest_of(tmp_path / "nothing.parquet", settings=settings)
    with pytest.raises(UnusableSource, match="no Parquet file below transactions/"):
        backtest_of(tmp_path, settings=settings).run()
    with pytest.raises(ValueError, match="leave the file out"):
        backtest_of(file, order="recorded", settings=settings)
    with pytest.raises(ValueError, match="leave the file out"):
        backtest_of(file, compare_live=True, settings=settings)
    with pytest.raises(ValueError, match="name a file"):
        backtest_of(settings=settings)
    with pytest.raises(RegistryError, match="has no lightgbm version 0123456789ab"):
        backtest_of(file, models=["0123456789ab"], settings=settings).run()
    with pytest.raises(RegistryError, match="fraud-pipeline train"):
        backtest_of(file, settings=settings.model_copy(update={"data_dir": tmp_path / "empty"})).run()
    with pytest.raises(ModelError, match="a file has no topics: name a cluster with --bootstrap, or choose --river"):
        backtest_of(file, river="0123456789ab@7", settings=settings).run()


@pytest.mark.parametrize(
    ("asked", "text"),
    [
        ({"budgets": [-5]}, "budgets must be more than 0, not -5"),
        ({"budgets": [0]}, "budgets must be more than 0, not 0"),
        ({"budgets": [math.nan]}, "budgets must be more than 0, not nan"),
        ({"budgets": [math.inf]}, "budgets must be more than 0, not inf"),
        ({"budgets": [10, 10.0]}, "the budget 10 is named twice"),
        ({"thresholds": [1.5]}, "fixed must be from 0 to 1, not 1.5"),
        ({"thresholds": [math.nan]}, "fixed must be from 0 to 1, not nan"),
        ({"thresholds": [0.5, 0.5]}, "the threshold 0.5 is named twice"),
        ({"models": ["active", "active"]}, "the model active is named twice"),
        ({"models": "active"}, r"write \['active'\] for one"),
        ({"warm_up_s": -5}, "warm_up_s must be at least 0, not -5"),
        ({"publish_every_s": -1}, "publish_every_s must be more than 0, not -1"),
        ({"lateness_s": -5}, "lateness_s must be at least 0, not -5"),
        ({"lateness_s": math.nan}, "lateness_s must be at least 0, not nan"),
        ({"validation_days": math.inf}, "validation_days must be more than 0, not inf"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_read(
    file: Path, settings: Settings, asked: dict[str, Any], text: str
) -> None:
    with pytest.raises(ValueError, match=text):
        backtest_of(file, settings=settings, **asked)


@pytest.mark.parametrize("name", ["start", "end"])
def test_times_are_no_texts(file: Path, settings: Settings, name: str) -> None:
    with pytest.raises(TypeError, match=f"{name} must be a datetime, not '2024-03-05'"):
        backtest_of(file, settings=settings, **{name: "2024-03-05"})


def test_variants_have_names_of_their_own(file: Path, settings: Settings) -> None:
    near = backtest_of(file, thresholds=[0.12345678, 0.12345679, 0.5], settings=settings)
    assert list(near.candidates()) == ["active at 0.12345678", "active at 0.12345679", "active at 0.5"]
    budgets = backtest_of(file, budgets=[10.0000001, 10], settings=settings)
    assert list(budgets.candidates()) == ["active at 10.0000001 a day", "active at 10 a day"]


def reported_in(warnings: Sequence[str]) -> list[str]:
    return [warning for warning in warnings if re.search("refused|repeat|neither|none of", warning)]


def test_refusals_and_repeats_are_warned_about_where_they_are_many(
    history: pd.DataFrame, file: Path, settings: Settings, tmp_path: Path
) -> None:
    rows = len(history)
    assert reported_in(backtest_of(file, settings=settings).run().warnings) == []
    strange = tmp_path / "strange.parquet"
    odd = history["currency"].where(np.arange(rows) % 2 == 0, "XXX")
    history.assign(currency=odd).to_parquet(strange, index=False)
    (refused,) = reported_in(backtest_of(strange, settings=settings).run().warnings)
    half = f"{rows // 2:,}"
    assert refused == f"{half} of {rows:,} transactions were refused, and not decided: currency_unknown {half}"
    of_labels = history[["transaction_id", "card_id"]].assign(
        label="banana", source="analyst", labelled_at=history["event_time"] + timedelta(hours=1)
    )
    label_file = tmp_path / "labels.parquet"
    of_labels.to_parquet(label_file, index=False)
    (senseless,) = reported_in(backtest_of(file, label_file=label_file, settings=settings).run().warnings)
    assert senseless == f"{rows:,} of {rows:,} labels say neither fraud nor legitimate, and count as none"
    of_labels.assign(transaction_id="of another file").to_parquet(label_file, index=False)
    (wrong,) = reported_in(backtest_of(file, label_file=label_file, settings=settings).run().warnings)
    assert wrong == f"none of {rows:,} labels has its transaction among those that were read"
    of_labels.assign(labelled_at="now").to_parquet(label_file, index=False)
    (timeless,) = reported_in(backtest_of(file, label_file=label_file, settings=settings).run().warnings)
    assert timeless == f"{rows:,} of {rows:,} labels were refused: invalid_value {rows:,}"
    # Labels of what was not read are no error of theirs.
    of_labels.assign(label="fraud").to_parquet(label_file, index=False)
    late = backtest_of(file, start=START + 12 * DAY, warm_up_s=86_400.0, label_file=label_file, settings=settings).run()
    assert late.counts["labels: transaction_not_read"] > rows / 3
    assert "refused labels: label_without_transaction" not in late.counts
    assert reported_in(late.warnings) == []
    twice = tmp_path / "twice.parquet"
    same = history.assign(transaction_id="t", card_id="c")
    same.to_parquet(twice, index=False)
    (repeated,) = reported_in(backtest_of(twice, settings=settings).run().warnings)
    assert repeated.startswith(f"{rows - 1:,} of {rows:,} transactions were refused, and not decided: repeat_differs")
    pd.concat([history.iloc[:1]] * 3).to_parquet(twice, index=False)
    (repeated,) = reported_in(backtest_of(twice, settings=settings).run().warnings)
    assert repeated == "2 of 3 transactions repeat others, and were not decided"


@pytest.mark.parametrize("changes", [{}, {"training": Training(variants={"fresh": []}, start=START)}])
def test_a_file_without_a_row_is_reported_as_such(
    history: pd.DataFrame, settings: Settings, tmp_path: Path, changes: dict[str, Any]
) -> None:
    path = tmp_path / "empty.parquet"
    history.iloc[:0].to_parquet(path, index=False)
    with pytest.raises(RangeError, match=r"^empty\.parquet holds no transaction at all"):
        backtest_of(path, settings=settings, start=START + 19 * DAY, **changes).run()


@pytest.mark.parametrize("changes", [{}, {"training": Training(variants={"fresh": []}, start=START)}])
def test_a_file_of_refused_rows_says_why_and_not_to_choose_another_range(
    history: pd.DataFrame, settings: Settings, tmp_path: Path, changes: dict[str, Any]
) -> None:
    path = tmp_path / "refused.parquet"
    history.assign(currency=["usd", *["XXX"] * (len(history) - 1)]).to_parquet(path, index=False)
    refused = (
        r"^refused\.parquet: every transaction was refused: invalid_value \(.+\), currency_unknown \([^)]*XXX[^)]*\)$"
    )
    with pytest.raises(RangeError, match=refused):
        backtest_of(path, settings=settings, start=START + 19 * DAY, **changes).run()


def test_a_recorded_order_without_decisions_says_what_is_missing(settings: Settings) -> None:
    on_topics = settings.model_copy(update={"kafka_bootstrap_servers": "nowhere:9092"})
    request = backtest_of(order="recorded", settings=on_topics)
    statistics = RunStatistics(request.span, 0, ProgressListener(None, lambda: False))
    assert "what live workers wrote to progress, profiled and decisions" in nothing_decided(request, statistics)


def test_a_file_that_is_out_of_order_is_refused(history: pd.DataFrame, settings: Settings, tmp_path: Path) -> None:
    path = tmp_path / "backwards.csv"
    history.iloc[::-1].to_csv(path, index=False)
    behind = rf"^{path}: the transaction of row 2 stands behind a later one: sort the input by event_time$"
    with pytest.raises(OutOfOrder, match=behind):
        backtest_of(path, settings=settings).run()


def test_a_url_is_no_history(settings: Settings) -> None:
    with pytest.raises(UnusableSource, match="is a URL: copy it to a disk of this machine"):
        backtest_of("s3://bucket/history", settings=settings)


def test_the_policy_is_the_one_that_was_made_for_the_model(settings: Settings) -> None:
    registry = Registry(settings.registry_path)
    other = policy().replace(threshold=0.3)
    registry.register(POLICY, other.to_payload())
    registry.register(POLICY, policy(lightgbm_version="0123456789ab").to_payload())
    library = ModelLibrary(settings)
    # The active one comes first, if it fits.
    assert library.policy_for(small_model().version).version == policy().version
    assert library.policy_for("0123456789ab").lightgbm_version == "0123456789ab"
    registry.activate(POLICY, registry.register(POLICY, policy(lightgbm_version="ba9876543210").to_payload()))
    assert ModelLibrary(settings).policy_for(small_model().version).version == other.version


def test_a_threshold_of_another_model_is_warned_about(file: Path, settings: Settings) -> None:
    registry = Registry(settings.registry_path)
    version = registry.register(POLICY, policy(lightgbm_version="0123456789ab").to_payload())
    result = backtest_of(file, policy=version, settings=settings).run()
    assert any("was chosen for LightGBM 0123456789ab" in warning for warning in result.warnings)
