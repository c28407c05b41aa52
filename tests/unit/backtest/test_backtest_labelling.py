"""How labels come about: as they were recorded, after a delay, or by simulated reviews of a variant's own alerts."""

import math
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from pipeline import Backtest
from pipeline.backtest import Decisions, Learning, delayed_truth, frame_tables, replay
from pipeline.backtest.labels.ground_truth import answered_us
from pipeline.backtest.labels.schedule import LabelMode
from pipeline.backtest.report import ReportOptions, build_report
from pipeline.backtest.runner.model_library import ModelLibrary
from pipeline.backtest.runner.result import DECISION_COLUMNS
from pipeline.engine.scores.active_models import ActiveModels
from pipeline.features.xxh3 import transaction_hash
from pipeline.history.canonical_columns import UnusableSource
from pipeline.history.files import file_tables
from pipeline.learning.regimes import NEVER_US, LabelRegime
from pipeline.replay.label_schedule import LabelSchedule, Truth
from pipeline.settings import Settings
from schemas.messages import ListChange
from tests.helpers.backtest_inputs import backtest_of, simulated_days, with_a_champion
from tests.helpers.features import labels_known
from tests.helpers.lists import MemoryLog, definition, entry, history_of

DAY_US = 86_400_000_000
HOUR_US = DAY_US // 24
DAYS = 16
REVIEWS = {"labels": "simulated-review", "label_delay_s": 5 * 86_400.0, "review_delay_s": 6 * 3_600.0}
LABEL_COLUMNS = ["transaction_id", "card_id", "label", "source", "labelled_at"]


@pytest.fixture(scope="module")
def history() -> pd.DataFrame:
    """Two weeks of a few merchants, so that what is known about them changes what is decided."""
    frame = simulated_days(DAYS, cards=30, merchants=6, seed=5)
    rng = np.random.default_rng(1)
    return frame.assign(fraud=rng.random(len(frame)) < 0.06)


def us(times: pd.Series) -> np.ndarray:
    return np.asarray(times.dt.tz_convert(None).to_numpy("datetime64[us]").astype(np.int64))


def by_the_replays_schedule(
    decisions: pd.DataFrame, truth: dict[tuple[str, str], bool], *, a_day: int, delay_us: int, review_us: int
) -> pd.DataFrame:
    """The labels that `fraud-pipeline replay` would send if analysts looked at the best alerts of each day."""
    schedule = LabelSchedule(delay_us, reviews=True)
    rows = list(zip(decisions["card_id"], decisions["transaction_id"], us(decisions["event_time"]), strict=True))
    for card, name, time_us in rows:
        if (card, name) in truth:
            schedule.add(Truth(name, card, int(time_us), truth[card, name], None, int(time_us) + delay_us))
    alerts = [(row, score) for row, (score, action) in enumerate(zip(decisions["score"], decisions["action"], strict=True)) if action == "alert"]  # fmt: skip  # noqa: E501
    of_day: dict[int, list[tuple[float, int]]] = {}
    for row, score in alerts:
        of_day.setdefault(int(rows[row][2]) // DAY_US, []).append((-score, row))
    for day, found in of_day.items():
        for row in sorted(row for _, row in sorted(found)[:a_day]):
            card, name, time_us = rows[row]
            schedule.review(card, name, f"a{row}", max(int(time_us) + review_us, (day + 1) * DAY_US))
    labels = []
    while (due := schedule.pop(NEVER_US - 1)) is not None:
        at = datetime.fromtimestamp(0, UTC) + timedelta(microseconds=due.due_us)
        reported = "fraud" if due.truth.fraud else "legitimate"
        source = "simulator" if due.alert_id is None else "analyst"
        labels.append((due.truth.transaction_id, due.truth.card_id, reported, source, at))
    return pd.DataFrame(labels, columns=LABEL_COLUMNS)


def replayed(
    asked: Backtest, models: ActiveModels, history: pd.DataFrame, labels: pd.DataFrame, learning: Learning | None = None
) -> pd.DataFrame:
    parts = replay(
        models, frame_tables(history), frame_tables(labels), options=asked.card_options(1), learning=learning
    )
    return pd.concat([part.frame() for part in parts], ignore_index=True)[list(DECISION_COLUMNS)]


def truth_of(history: pd.DataFrame) -> dict[tuple[str, str], bool]:
    names = zip(history["card_id"], history["transaction_id"], strict=True)
    return dict(zip(names, history["fraud"].tolist(), strict=True))


@pytest.mark.parametrize("learn", [False, True])
def test_labels_are_those_that_reviews_of_the_variants_own_alerts_would_give(
    history: pd.DataFrame, file: Path, settings: Settings, learn: bool
) -> None:
    asked = backtest_of(
        file, models=["active"], thresholds=[0.02, 0.5], learn=learn, reviews_a_day=3, settings=settings, **REVIEWS
    )
    result = asked.run()
    truth = truth_of(history)
    for variant, candidate in zip(result.variants, asked.candidates().values(), strict=True):
        schedule = by_the_replays_schedule(
            variant.decisions, truth, a_day=3, delay_us=5 * DAY_US, review_us=6 * HOUR_US
        )
        again = replayed(asked, candidate.models, history, schedule, candidate.learning)
        pd.testing.assert_frame_equal(again.astype(variant.decisions.dtypes), variant.decisions, check_exact=True)
        assert variant.reviewed is not None
        answers = schedule[schedule["source"] == "analyst"]
        assert list(variant.reviewed.answers["transaction_id"]) == list(answers["transaction_id"])
        assert list(variant.reviewed.answers["known_at"]) == list(answers["labelled_at"])
        assert variant.reviewed.unanswered == 0
        assert 2 < len(answers) <= variant.reviewed.alerts <= 3 * DAYS
    # Each saw labels of its own: other alerts, other features of merchants, other scores.
    low, high = (variant.decisions for variant in result.variants)
    assert not low["score"].equals(high["score"])
    # Each transaction has one label: a report does not follow a review.
    outcomes = {name: count for name, count in result.counts.items() if name.startswith("labels")}
    assert outcomes == {f"labels of {variant.name}: first": len(history) for variant in result.variants}


def test_nothing_is_known_before_its_day_is_over(
    history: pd.DataFrame, file: Path, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What comes later changes nothing that was decided, and neither does how rows are cut."""
    asked = {"settings": settings, "reviews_a_day": 2, "models": ["active"], "thresholds": [0.02], **REVIEWS}
    whole = backtest_of(file, **asked).run().variants[0].decisions
    half = history.iloc[: len(history) // 2 + 3]
    part = tmp_path / "part.parquet"
    half.to_parquet(part, index=False)
    cut = backtest_of(part, **asked).run().variants[0].decisions
    pd.testing.assert_frame_equal(cut, whole.iloc[: len(cut)], check_exact=True)
    monkeypatch.setattr(
        "pipeline.backtest.input.file_source.file_tables", lambda *source: file_tables(*source, chunk_rows=7)
    )
    small = backtest_of(file, **asked).run()
    pd.testing.assert_frame_equal(small.variants[0].decisions, whole, check_exact=True)
    assert small.variants[0].reviewed is not None
    over = small.variants[0].reviewed.answers["known_at"]
    source = whole.set_index("transaction_id")["event_time"].loc[small.variants[0].reviewed.answers["transaction_id"]]
    assert (us(over) >= (us(source.reset_index(drop=True)) // DAY_US + 1) * DAY_US).all()


@pytest.mark.parametrize(("delay_s", "learn"), [(0.0, False), (3_600.0, True), (4 * 86_400.0, True)])
def test_a_truth_is_known_after_its_delay(
    history: pd.DataFrame, file: Path, settings: Settings, delay_s: float, learn: bool
) -> None:
    asked = backtest_of(file, labels="delay", learn=learn, label_delay_s=delay_s, settings=settings)
    result = asked.run()
    (candidate,) = asked.candidates().values()
    parts = replay(
        candidate.models, frame_tables(history, 100), delayed_truth(frame_tables(history, 64), delay_s),
        options=asked.card_options(1), learning=candidate.learning,
    )  # fmt: skip
    expected = pd.concat([part.frame() for part in parts], ignore_index=True)[list(DECISION_COLUMNS)]
    decisions = result.variants[0].decisions
    pd.testing.assert_frame_equal(decisions, expected.astype(decisions.dtypes), check_exact=True)
    assert result.counts["labels: first"] == len(history)
    late_us = us(result.labels["labelled_at"]) - us(decisions["event_time"])
    assert set(late_us.tolist()) == {round(delay_s * 1e6)}
    assert (result.label_mode, result.parameters["labels"]) == ("delay", "delay")


def labelled(history: pd.DataFrame) -> tuple[pd.DataFrame, dict[tuple[str, str], bool]]:
    """Recorded labels, with corrections, withdrawals and rules among them, and what they say in the end."""
    rng = np.random.default_rng(2)
    emitted, final = [], {}
    for row in history.itertuples(index=False):
        if rng.random() > (0.9 if row.fraud else 0.3):
            continue
        at = row.event_time.to_pydatetime() + timedelta(hours=float(rng.integers(1, 200)))
        reported, key = "fraud" if row.fraud else "legitimate", (row.card_id, row.transaction_id)
        kind = int(rng.integers(5))
        if kind == 0:
            emitted.append(
                (row.transaction_id, row.card_id, "legitimate", "customer", at - timedelta(minutes=30), None)
            )
        if kind == 1:
            emitted.append((row.transaction_id, row.card_id, "fraud", "rule", at + timedelta(days=1), None))
        if kind == 2:
            emitted.append((row.transaction_id, row.card_id, "disputed", "audit", at + timedelta(days=2), None))
        emitted.append((row.transaction_id, row.card_id, reported, "chargeback", at, "card" if row.fraud else None))
        if kind != 2:
            final[key] = bool(row.fraud)
    frame = pd.DataFrame(emitted, columns=[*LABEL_COLUMNS, "fraud_type"])
    return frame.sort_values("labelled_at", kind="stable", ignore_index=True), final


def test_the_share_of_reports_in_time_is_that_of_the_declared_regime(tmp_path: Path, history: pd.DataFrame) -> None:
    settings = with_a_champion(tmp_path).model_copy(update={"maturity_days": 0.25, "reported_share": 0.6})
    history.to_parquet(file := tmp_path / "history.parquet", index=False)
    pd.DataFrame([], columns=LABEL_COLUMNS).to_parquet(reported := tmp_path / "labels.parquet", index=False)

    def share(**options: Any) -> float:
        return backtest_of(file, settings=settings, **options).feedback_config().reported_share

    assert share(labels="delay", label_delay_s=7 * 86_400.0, early_share=0.3) == 0.3
    assert share(labels="delay", label_delay_s=3_600.0) == 1.0
    assert share(labels="recorded", label_file=reported) == 0.6


@pytest.mark.parametrize("labels", ["delay", "simulated-review"])
def test_each_transaction_is_decided_by_the_lists_of_its_time(
    history: pd.DataFrame, file: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch, labels: str
) -> None:
    log, changes, merchants = MemoryLog(), list[tuple[str, int]](), sorted(history["merchant_id"].unique())
    for size, merchant in enumerate(merchants, 1):
        given = [definition("bad", "block", "merchant_id")], [entry("bad", merchant)]
        before = changes[-1][0] if changes else ""
        changes.append((log.write(ListChange(change="", before=before, definitions=given[0], entries=given[1])), size))
    first_us, step_us = int(us(history["event_time"])[0]), 2 * DAY_US + 1
    lists = history_of(log, changes, start_us=first_us, step_us=step_us)
    monkeypatch.setattr(ModelLibrary, "list_history", lists)
    parts: dict[str, list[pd.DataFrame]] = {}
    asked = backtest_of(
        file, models=["active"], thresholds=[0.3, 0.9], reviews_a_day=3, settings=settings,
        **(REVIEWS | {"labels": labels}),
    )  # type: ignore[arg-type]  # fmt: skip
    asked.each(lambda name, decisions: parts.setdefault(name, []).append(decisions.frame()))
    assert len(parts) == 2
    for found in map(pd.concat, parts.values()):
        assert len(found) == len(history)
        there = (us(found["event_time"]) - first_us) // step_us
        listed = [merchants.index(name) < size for name, size in zip(found["merchant_id"], there, strict=True)]
        assert [len(names) for names in found["list_hits"]] == listed
        assert 0 < sum(listed) < len(listed)
        assert (found["selection"] == "list").tolist() == listed
        assert found["lists_version"].nunique() == len(merchants) + 1


@pytest.mark.parametrize("labels", ["delay", "simulated-review"])
def test_the_truth_of_recorded_labels_is_what_they_say_in_the_end(
    history: pd.DataFrame, file: Path, settings: Settings, tmp_path: Path, labels: str
) -> None:
    frame, final = labelled(history)
    path = tmp_path / "labels.csv"
    frame.to_csv(path, index=False, date_format="%Y-%m-%dT%H:%M:%S.%f%z")
    asked = backtest_of(
        file, label_file=path, models=["active"], thresholds=[0.02], reviews_a_day=3, settings=settings,
        **(REVIEWS | {"labels": labels}),
    )  # type: ignore[arg-type]  # fmt: skip
    result = asked.run()
    (variant,) = result.variants
    looked_at = 3 if labels == "simulated-review" else 0
    rules = {"a_day": looked_at, "delay_us": 5 * DAY_US, "review_us": 6 * HOUR_US}
    expected = by_the_replays_schedule(variant.decisions, final, **rules)
    (candidate,) = asked.candidates().values()
    again = replayed(asked, candidate.models, history, expected)
    pd.testing.assert_frame_equal(again.astype(variant.decisions.dtypes), variant.decisions, check_exact=True)
    label = result.labels.set_index(["card_id", "transaction_id"])["label"]
    assert {key: word == "fraud" for key, word in label.items()} == final
    assert set(result.labels["source"]) == {"chargeback"}
    assert set(result.labels.loc[result.labels["label"] == "fraud", "fraud_type"]) == {"card"}
    if labels == "simulated-review":
        assert variant.reviewed is not None
        assert 0 < variant.reviewed.unanswered < variant.reviewed.alerts
        text = build_report(result, ReportOptions(replicates=0, top=3)).text
        assert f"about {variant.reviewed.unanswered} nobody knows the truth" in " ".join(text.split())
    recorded = backtest_of(file, label_file=path, models=["active"], thresholds=[0.02], settings=settings).run()
    assert recorded.label_mode == "recorded"
    assert not recorded.variants[0].decisions["score"].equals(variant.decisions["score"])
    assert len(recorded.labels) == len(frame)


def test_answers_are_joined_to_their_decisions() -> None:
    decisions = pd.DataFrame({"transaction_id": ["t", "t", "u"], "card_id": ["one", "two", "one"]})
    at = pd.to_datetime([7, 5], unit="us", utc=True)
    answers = pd.DataFrame({"transaction_id": ["t", "t"], "card_id": ["two", "two"], "known_at": at})
    assert answered_us(decisions, answers).tolist() == [NEVER_US, 5, NEVER_US]
    assert answered_us(decisions, answers[:0]).tolist() == [NEVER_US] * 3


def test_labels_that_cannot_be_had_are_refused(
    history: pd.DataFrame, file: Path, settings: Settings, tmp_path: Path
) -> None:
    def ask(path: Path | None = file, **more: Any) -> Backtest:
        return backtest_of(path, settings=settings, **more)

    with pytest.raises(ValueError, match="no labels were recorded with history"):
        ask(labels="recorded")
    unknown = tmp_path / "unknown.parquet"
    history.drop(columns=["fraud", "fraud_type"]).to_parquet(unknown, index=False)
    for labels in ("delay", "simulated-review"):
        with pytest.raises(ValueError, match="nothing tells what the transactions of unknown"):
            ask(unknown, labels=labels)
        with pytest.raises(ValueError, match="nothing can be compared with it"):
            ask(None, bootstrap="127.0.0.1:1", labels=labels, compare_live=True)
        with pytest.raises(ValueError, match="the recorded order has no place for them"):
            ask(None, bootstrap="127.0.0.1:1", labels=labels, order="recorded")
    assert ask(unknown).labels is LabelMode.RECORDED
    assert ask(unknown).run().labels.empty
    with pytest.raises(ValueError, match="'guessed' is not a valid LabelMode"):
        ask(labels="guessed")
    for wrong in ({"review_delay_s": -1.0}, {"label_delay_s": math.inf}, {"reviews_a_day": 0}):
        with pytest.raises(ValueError, match="must be"):
            ask(labels="simulated-review", **wrong)
    with pytest.raises(ValueError, match="reviews are of what a threshold alerts"):
        ask(labels="simulated-review", budgets=[3])
    spoilt = tmp_path / "spoilt.parquet"
    history.assign(fraud="perhaps").to_parquet(spoilt, index=False)
    with pytest.raises(UnusableSource, match="'perhaps', which is neither 0 nor 1"):
        ask(spoilt).run()


def test_a_partial_backtest_knows_the_truth_of_what_it_decided(file: Path, settings: Settings) -> None:
    calls: list[Decisions] = []

    def stopped() -> bool:
        calls.append(None)  # type: ignore[arg-type]
        return len(calls) > 4

    asked = backtest_of(file, settings=settings, models=["active"], thresholds=[0.02], **REVIEWS)
    result = asked.run(stopped=stopped)
    assert result.partial
    assert set(result.labels["transaction_id"]) == set(result.variants[0].decisions["transaction_id"])


@pytest.mark.parametrize(
    ("regime", "learn"),
    [
        (LabelRegime(reported="frauds-only", delay_days=2.0), True),
        (LabelRegime(reported="frauds-only", delay_days=2.0, delay_spread=0.8, never_reported=0.2), False),
        (LabelRegime(delay_days=1.0, delay_spread=0.8), True),
        (LabelRegime(reported="frauds-only", delay_days=2.0, early_share=0.4), False),
        (LabelRegime(reported="mixed", delay_days=2.0, legitimate_share=0.3), True),
        (LabelRegime(delay_days=2.0, corrected_share=0.2, correction_days=3.0), True),
        (LabelRegime(reported="frauds-only", delay_days=2.0, delay_spread=0.8, corrected_share=0.2), False),
    ],
)
def test_a_regime_gives_the_labels_that_it_says(
    history: pd.DataFrame, file: Path, settings: Settings, regime: LabelRegime, learn: bool
) -> None:
    """Written down as they come, and read as a label file, they give the same decisions."""
    asked = backtest_of(
        file,
        models=["active"],
        thresholds=[0.02],
        learn=learn,
        labels="delay",
        label_delay_s=regime.delay_days * 86_400.0,
        reported=regime.reported,
        legitimate_share=regime.legitimate_share,
        delay_spread=regime.delay_spread,
        early_share=regime.early_share,
        early_hours=regime.early_hours,
        never_reported=regime.never_reported,
        corrected_share=regime.corrected_share,
        correction_days=regime.correction_days,
        settings=settings,
    )
    result = asked.run()
    (variant,) = result.variants
    identity = np.array(list(map(transaction_hash, history["card_id"], history["transaction_id"])), np.uint64)
    fraud = history["fraud"].to_numpy(bool)
    known_us = regime.known_at_us(us(history["event_time"]), fraud, identity)
    due = labels_known(known_us, fraud, regime.corrected_at_us(known_us, identity))
    frame = pd.DataFrame(
        {
            "transaction_id": history["transaction_id"].iloc[due.row],
            "card_id": history["card_id"].iloc[due.row],
            "label": np.where(due.fraud, "fraud", "legitimate"),
            "source": "simulator",
            "labelled_at": pd.to_datetime(due.known_at_us, unit="us", utc=True),
        }
    )
    frauds_alone = regime.reported == "frauds-only" and not regime.corrected_share
    assert set(frame["label"]) == {"fraud"} if frauds_alone else {"fraud", "legitimate"}
    (candidate,) = asked.candidates().values()
    again = replayed(asked, candidate.models, history, frame, candidate.learning)
    pd.testing.assert_frame_equal(again.astype(variant.decisions.dtypes), variant.decisions, check_exact=True)
    outcomes = {name: count for name, count in result.counts.items() if name.startswith("labels")}
    corrected = int(frame.duplicated(["card_id", "transaction_id"]).sum())
    assert (corrected > 0) == (regime.corrected_share > 0)
    expected = {"labels: first": len(frame) - corrected, "labels: changed": corrected}
    assert outcomes == {name: count for name, count in expected.items() if count}
    assert result.parameters["reported"] == regime.reported


def test_reviews_answer_alerts_that_nobody_would_report(history: pd.DataFrame, file: Path, settings: Settings) -> None:
    asked = backtest_of(
        file,
        models=["active"],
        thresholds=[0.02],
        reported="frauds-only",
        reviews_a_day=3,
        settings=settings,
        **REVIEWS,
    )
    (variant,) = asked.run().variants
    assert variant.reviewed is not None
    truth = truth_of(history)
    answers = variant.reviewed.answers
    reported = [truth[key] for key in zip(answers["card_id"], answers["transaction_id"], strict=True)]
    assert False in reported
    assert True in reported


def test_recorded_labels_have_no_regime(file: Path, settings: Settings, tmp_path: Path) -> None:
    reported = tmp_path / "labels.parquet"
    pd.DataFrame([], columns=LABEL_COLUMNS).to_parquet(reported)
    with pytest.raises(ValueError, match="recorded labels say themselves"):
        backtest_of(file, models=["active"], label_file=reported, reported="frauds-only", settings=settings)
