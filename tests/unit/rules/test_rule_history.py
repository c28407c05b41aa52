"""A rule on an export: what it would have hit, compared with pandas over the records that were exported."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from pipeline.cli import main
from pipeline.commands.rule_figures import worth_lines
from pipeline.decision.rules import RuleSet
from pipeline.exports.parquet_files import ExportError
from pipeline.features.catalogue import FEATURES, KERNEL_VERSION
from pipeline.learning.labels import FRAUD, LEGITIMATE
from pipeline.rules.histories import read_history
from pipeline.rules.hits import HitHistory, Hits
from pipeline.rules.set_report import SetReport
from pipeline.rules.trial import HELD_OUT_DAYS, Figures, Trial
from pipeline.scoring.errors import ModelError
from pipeline.settings import Settings
from schemas.messages import RecordPosition, Versions
from schemas.topics import DECISION_FEATURES, DECISIONS, LABELS, TRANSACTIONS
from tests.helpers.backtest_inputs import simulated_days, with_a_champion
from tests.helpers.blocks import features_block
from tests.helpers.champion import rule
from tests.helpers.exported import export
from tests.helpers.logs import START, after, decision, feature_row, label, transaction

DAYS, A_DAY = 60, 20
HELD_OUT_FROM = DAYS - HELD_OUT_DAYS
COUNTS = "card_count_1h"
CONDITION = f"amount > 50 and country = 'FR' and {COUNTS} >= 2"
OLD_KERNEL = KERNEL_VERSION + "-before"
"""A kernel of the same revision, whose declaration had no windows of cards."""


def simulated(seed: int = 1) -> pd.DataFrame:
    """60 days of decisions with their labels; the first five are from before a feature was declared."""
    rng, n = np.random.default_rng(seed), DAYS * A_DAY
    frame = pd.DataFrame({"day": np.arange(n) // A_DAY, "amount": np.round(rng.uniform(0, 120, n), 2)})
    frame["country"] = rng.choice(np.array(["FR", "DE", None], object), n, p=[0.5, 0.3, 0.2])
    frame[COUNTS] = np.where(rng.random(n) < 0.1, np.nan, rng.integers(1, 4, n))
    frame.loc[frame["day"] < 5, COUNTS] = np.nan
    frame["card"] = [f"c{number}" for number in rng.integers(0, 50, n)]
    frame["score"] = rng.random(n)
    others = rng.choice(np.array(["rule", None], object), n, p=[0.1, 0.9])
    frame["selection"] = np.where(frame["score"] > 0.8, "score", others)
    frame["known"] = rng.choice(np.array([FRAUD, LEGITIMATE, None], object), n, p=[0.3, 0.3, 0.4])
    frame["others"] = [["other"] if number % 7 == 0 else [] for number in range(n)]
    texts = frame[["country", "selection", "known"]].astype(object)
    return frame.assign(**texts.where(texts.notna(), None))


def exported(directory: Path, frame: pd.DataFrame) -> Path:
    values: dict[Any, list[bytes]] = {TRANSACTIONS: [], DECISION_FEATURES: [], DECISIONS: [], LABELS: []}
    rows: Any = frame.itertuples()
    for row in rows:
        at, names = after(row.day, seconds=row.Index % A_DAY), {"card_id": row.card}
        extra = {"surprise": 1} if row.Index % 3 == 0 else {}
        paid = transaction(row.Index, at, amount=row.amount, country=row.country, **names, **extra)
        values[TRANSACTIONS].append(paid)
        features: dict[str, float | None] = dict.fromkeys(FEATURES) | {"amount": row.amount}
        count = getattr(row, COUNTS)
        features[COUNTS] = None if np.isnan(count) else count
        kernel = OLD_KERNEL if row.day < 5 else KERNEL_VERSION
        versions = Versions(lightgbm="base", river="r@0", policy="p", kernel=kernel, rates="1")
        same = {"amount_base": row.amount, "score": row.score, "versions": versions, **names}
        block = feature_row(row.Index, at, features=features, **same)
        values[DECISION_FEATURES].append(features_block([block]))
        outcome = {"selection": row.selection, "rule_hits": row.others, "shadow_hits": ["tried"]}
        values[DECISIONS].append(decision(row.Index, at, **same, **outcome))
        if row.known is not None:
            values[LABELS].append(label(row.Index, at, row.known, **names))
            # Rules know nothing.
            values[LABELS].append(label(row.Index, after(row.day + 1), FRAUD, source="rule", **names))
    for topic, records in values.items():
        export(directory, topic, records)
    return directory


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    return simulated()


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory, frame: pd.DataFrame) -> Path:
    return exported(tmp_path_factory.mktemp("history"), frame)


def tried(history: Path, condition: str, settings: Settings | None = None, **changes: Any) -> Callable[..., Figures]:
    """Return what gives the figures of a condition."""
    trial = Trial(rule("tried", condition))
    return partial(trial.figures, read_history(trial, str(history), settings or Settings(**changes), lambda: ""))


def meant(frame: pd.DataFrame, first: int, end: int, maturity_days: int = 30) -> dict[str, Any]:
    """The figures of `CONDITION`, from its definition."""
    days = frame[(frame["day"] >= first) & (frame["day"] < end)]
    parts = {
        "amount > 50": days["amount"] > 50,
        "country = 'FR'": days["country"] == "FR",
        f"{COUNTS} >= 2": days[COUNTS] >= 2,
    }
    false = (days["amount"] <= 50) | (days["country"] == "DE") | (days[COUNTS] < 2)
    hit = np.logical_and.reduce([*parts.values()])
    near = {
        name: int((~holds & np.logical_and.reduce([other for key, other in parts.items() if key != name])).sum())
        for name, holds in parts.items()
    }
    hits = days[hit]
    newest = frame["day"].max() + (A_DAY - 1) / 86_400
    mature = hits[hits["day"] + hits.index % A_DAY / 86_400 <= newest - maturity_days]
    frauds, new = mature[mature["known"] == FRAUD], hits[hits["selection"].isna()]
    return {
        "days": end - first,
        "transactions": len(days),
        "null": int((~hit & ~false).sum()),
        "hits": len(hits),
        "near_misses": near,
        "mature": len(mature),
        "frauds": len(frauds),
        "legitimate": int((mature["known"] == LEGITIMATE).sum()),
        "fraud_money": round(frauds["amount"].sum(), 2),
        "new": len(new),
        "new_cards": new["card"].nunique(),
        "new_frauds": int(frauds["selection"].isna().sum()),
        "new_fraud_money": round(frauds.loc[frauds["selection"].isna(), "amount"].sum(), 2),
        "selected": hits["selection"].dropna().value_counts().sort_index().to_dict(),
        "other_rules": {"other": int(hits["others"].map(len).sum())},
    }


def as_meant(figures: Figures, wanted: dict[str, Any]) -> None:
    assert {name: getattr(figures, name) for name in wanted} == wanted


def test_the_figures_are_those_of_pandas_and_leave_the_newest_days_out(history: Path, frame: pd.DataFrame) -> None:
    found = tried(history, CONDITION)
    figures = found()
    as_meant(figures, meant(frame, 5, HELD_OUT_FROM))
    assert figures.not_computed == 5 * A_DAY
    assert figures.first_day == (START - START.fromtimestamp(0, START.tzinfo)).days + 5
    newest = found(held_out=True)
    as_meant(newest, meant(frame, HELD_OUT_FROM, DAYS))
    assert (newest.not_computed, newest.mature, newest.precision) == (0, 0, None)
    assert newest.hits > 0


def test_intervals_are_those_of_days(history: Path, frame: pd.DataFrame) -> None:
    figures = tried(history, CONDITION, maturity_days=15)()
    assert figures.precision is not None
    assert figures.hits_a_day is not None
    assert figures.precision.value == figures.frauds / figures.mature
    assert figures.hits_a_day.value == figures.hits / figures.days
    for estimate in (figures.precision, figures.hits_a_day, figures.fraud_money_a_day, figures.new_a_day):
        assert estimate is not None
        assert 0 < estimate.low < estimate.value < estimate.high
    # The mean of so many days is about normal: two standard errors to each side.
    hits = frame[(frame["amount"] > 50) & (frame["country"] == "FR") & (frame[COUNTS] >= 2)]
    daily = hits.groupby("day").size().reindex(range(5, HELD_OUT_FROM), fill_value=0)
    width = figures.hits_a_day.high - figures.hits_a_day.low
    assert width == pytest.approx(2 * 1.96 * daily.std() / len(daily) ** 0.5, rel=0.15)


def test_examples_hold_but_for_one_part_and_show_what_was_read(history: Path, frame: pd.DataFrame) -> None:
    found = tried(history, CONDITION)().examples
    assert {example.fails for example in found} == {"", "amount > 50", "country = 'FR'", f"{COUNTS} >= 2"}
    for example in found:
        row = frame.loc[int(example.transaction_id[1:])]
        assert example.values["amount"] == row["amount"]
        assert example.values["country"] == row["country"]
        holds = {
            "amount > 50": row["amount"] > 50,
            "country = 'FR'": row["country"] == "FR",
            f"{COUNTS} >= 2": row[COUNTS] >= 2,
        }
        assert [part for part, true in holds.items() if not true] == ([example.fails] if example.fails else [])


def test_days_that_are_asked_for_never_reach_into_those_held_out(
    history: Path, frame: pd.DataFrame, tmp_path: Path
) -> None:
    figures = tried(history, CONDITION)
    first = (START - START.fromtimestamp(0, START.tzinfo)).days
    as_meant(figures(first=first + 10, end=first + 20), meant(frame, 10, 20))
    assert figures(first=first, end=first + DAYS) == figures()
    for asked, reason in (
        ({"first": first + HELD_OUT_FROM}, "among the newest 14 of the history"),
        ({"end": first}, "of the 0 transactions of these days, none has"),
        ({"end": first + 5}, f"of the {5 * A_DAY} transactions of these days, none has"),
    ):
        with pytest.raises(ModelError, match=reason):
            figures(**asked)
    with pytest.raises(ModelError, match="among the newest 14 of the history"):
        tried(exported(tmp_path / "few", frame[frame["day"] < HELD_OUT_DAYS]), "score > 0.5")()
    with pytest.raises(ModelError, match="the history has no decided transaction"):
        Trial(rule("tried", "score > 0.5")).figures(HitHistory(Hits(*[np.empty(0)] * 8), 0, frozenset()))


def test_scores_are_those_of_then_and_a_rule_without_features_was_always_computed(
    history: Path, frame: pd.DataFrame
) -> None:
    figures = tried(history, "score > 0.8 or (lightgbm > 0.24 and lightgbm < 0.26 and card_id = 'c7')")()
    days = frame[frame["day"] < HELD_OUT_FROM]
    assert figures.hits == int(((days["score"] > 0.8) | (days["card"] == "c7")).sum())
    assert (figures.not_computed, figures.days, figures.near_misses) == (0, HELD_OUT_FROM, {})


def test_a_set_is_worth_what_no_score_and_no_other_rule_finds(history: Path, frame: pd.DataFrame) -> None:
    texts = {"dear": ("amount > 80", "active"), "french": (CONDITION, "active"), "likely": ("score > 0.5", "shadow")}
    counted = SetReport(RuleSet([rule(code, text, state=state) for code, (text, state) in texts.items()]))
    read = read_history(counted, str(history), Settings(maturity_days=10), lambda: "")
    worth = {each.code: each for each in counted.worth(read, {("dear", "active"): "2024-03-01T00:00:00Z"})}
    hits = {
        "dear": frame["amount"] > 80,
        "french": (frame["amount"] > 50) & (frame["country"] == "FR") & (frame[COUNTS] >= 2),
        "likely": frame["score"] > 0.5,
    }
    mature = frame["day"] + frame.index % A_DAY / 86_400 <= DAYS - 1 + (A_DAY - 1) / 86_400 - 10
    fraud = mature & (frame["known"] == FRAUD)
    for code, others in {"dear": ["french"], "french": ["dear"], "likely": ["dear", "french"]}.items():
        alone = hits[code] & (frame["selection"] != "score") & ~np.logical_or.reduce([hits[other] for other in others])
        found = worth[code]
        assert (found.hits, found.mature) == (hits[code].sum(), (hits[code] & mature).sum())
        assert (found.frauds, found.frauds_alone) == ((hits[code] & fraud).sum(), (alone & fraud).sum())
        assert found.money == round(frame.loc[hits[code] & fraud, "amount"].sum(), 2)
        assert found.money_alone == round(frame.loc[alone & fraud, "amount"].sum(), 2)
        assert found.false_alone == (alone & mature & ~fraud).sum() > 0
        assert found.state == texts[code][1]
    assert worth["dear"].since == "2024-03-01T00:00:00Z"
    first = (START - START.fromtimestamp(0, START.tzinfo)).days
    chosen = {each.code: each for each in counted.worth(read, {}, first=first + 10, end=first + 12)}
    assert chosen["dear"].hits == (hits["dear"] & frame["day"].isin([10, 11])).sum()


def test_a_report_says_what_a_test_says_of_precision_and_of_what_was_not_computed(
    history: Path, frame: pd.DataFrame
) -> None:
    missing = f"{COUNTS} is null and score < 0.9"
    texts = {"french": CONDITION, "missing": missing, "likely": "score > 0.5", "never": "amount > 1000"}
    counted, settings = SetReport(RuleSet([rule(code, text) for code, text in texts.items()])), Settings()
    read = read_history(counted, str(history), settings, lambda: "")
    end = (START - START.fromtimestamp(0, START.tzinfo)).days + HELD_OUT_FROM
    worth = {each.code: each for each in counted.worth(read, {}, end=end)}
    for code, text in texts.items():
        figures = tried(history, text)()
        assert worth[code].precision == figures.precision, code
        assert (worth[code].hits, worth[code].not_computed) == (figures.hits, figures.not_computed), code
    days = frame["day"].between(5, HELD_OUT_FROM - 1)
    assert worth["missing"].hits == (days & frame[COUNTS].isna() & (frame["score"] < 0.9)).sum() > 0
    assert [worth[code].not_computed for code in texts] == [5 * A_DAY, 5 * A_DAY, 0, 0]
    assert worth["never"].precision is None
    lines = "\n".join(worth_lines([worth["missing"]], START))
    assert f"  not computed: {5 * A_DAY} transactions, from before a feature was declared" in lines
    found = worth["missing"].precision
    assert found is not None
    assert f"  precision: {found.value:.1%} [{found.low:.1%}, {found.high:.1%}]" in lines


def test_an_export_that_lacks_a_topic_or_a_position_says_so(history: Path, tmp_path: Path, frame: pd.DataFrame) -> None:
    empty = tmp_path / "empty"
    export(empty, DECISION_FEATURES, [])
    with pytest.raises(ExportError, match="decisions/"):
        tried(empty, CONDITION)
    few = exported(tmp_path / "few", frame[frame["day"] < 20])
    assert tried(few, "country is null")().hits == int(frame.loc[frame["day"] < 6, "country"].isna().sum())


def test_positions_of_sources_join_partitions(tmp_path: Path) -> None:
    """Two records at one offset of two partitions are two transactions."""
    features = dict.fromkeys(FEATURES) | {"amount": 10.0}
    rows = [
        feature_row(0, after(number * 20), source=RecordPosition(topic="t", partition=number, offset=0))
        for number in range(2)
    ]
    versions = Versions(lightgbm="b", river="r@0", policy="p", kernel=KERNEL_VERSION, rates="1")
    blocks = [msgspec.structs.replace(row, features=features, versions=versions) for row in rows]
    export(tmp_path, DECISION_FEATURES, [features_block([block]) for block in blocks])
    outcomes = [
        decision(0, after(number * 20), source=row.source, selection=why)
        for number, (row, why) in enumerate(zip(rows, ("score", None), strict=True))
    ]
    export(tmp_path, DECISIONS, outcomes)
    export(tmp_path, LABELS, [label(0)])
    found = tried(tmp_path, "amount > 5")
    assert (found().selected, found(held_out=True).selected) == ({"score": 1}, {})


def test_a_file_is_decided_by_the_active_model_and_has_its_own_truth(tmp_path: Path) -> None:
    days = simulated_days(40)
    path = tmp_path / "file.parquet"
    days.to_parquet(path)
    settings = with_a_champion(tmp_path / "data")
    found = tried(path, "amount > 40 and merchant_id <> 'M1'", settings)()
    day = (days["event_time"] - pd.Timestamp(days["event_time"].max().date(), tz="UTC")).dt.days
    hits = days[(days["amount"] > 40) & (days["merchant_id"] != "M1") & (day <= -HELD_OUT_DAYS)]
    assert len(hits) > 100
    assert (found.hits, found.mature, found.frauds) == (len(hits), len(hits), int(hits["fraud"].sum()))
    assert found.legitimate == len(hits) - found.frauds
    assert found.fraud_money == round(hits.loc[hits["fraud"].astype(bool), "amount"].sum(), 2)
    (example, *_) = [each for each in found.examples if not each.fails]
    assert example.values["amount"] == days.set_index("transaction_id").loc[example.transaction_id, "amount"]


def test_the_command_says_what_of_a_file_it_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_a_champion(tmp_path / "data")
    monkeypatch.setenv("FRAUD_PIPELINE_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.delenv("KAFKA_BOOTSTRAP_SERVERS", raising=False)
    path, file = tmp_path / "file.parquet", tmp_path / "tried.sql"
    file.write_text("-- code: tried\n-- owner: dana\n-- reason: A test.\namount > 40\n")
    days = simulated_days(40)
    days["amount"] = days["amount"].where(days.index != 5, 0.0)
    pd.concat([days.iloc[:1], days]).to_parquet(path)
    result = CliRunner().invoke(main, ["rules", "test", str(file), "--on", str(path)])
    assert result.exit_code == 0, result.output
    left_out = "Refused: 1 transaction (amount_zero 1). Left out since they repeat others: 1 transaction."
    assert left_out in result.stderr.splitlines()


def test_the_command_shows_the_figures_and_refuses_a_dropped_field(
    history: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FRAUD_PIPELINE_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.delenv("KAFKA_BOOTSTRAP_SERVERS", raising=False)
    file = tmp_path / "tried.sql"
    file.write_text(f"-- code: tried\n-- owner: dana\n-- reason: A test.\n{CONDITION}\n")
    arguments = ["rules", "test", str(file), "--on", str(history)]
    result = CliRunner().invoke(main, arguments)
    figures = tried(history, CONDITION)()
    assert result.exit_code == 0, result.output
    assert f"41 days, {41 * A_DAY} transactions" in result.stdout
    assert f"  hits: {figures.hits}, {figures.hits / 41:.2f} [" in result.stdout
    near = figures.near_misses["country = 'FR'"]
    assert f"  not computed: {5 * A_DAY} transactions" in result.stdout
    assert f"country = 'FR' {near}" in result.stdout
    assert "Not recorded" in result.stdout
    days = ["--from", f"{after(10):%Y-%m-%d}", "--to", f"{after(20):%Y-%m-%d}"]
    chosen = CliRunner().invoke(main, [*arguments, *days])
    assert f"10 days, {10 * A_DAY} transactions" in chosen.stdout
    reversed_days = CliRunner().invoke(main, [*arguments, "--from", days[3], "--to", days[1]])
    assert (reversed_days.exit_code, "there is no day from --from" in reversed_days.output) == (2, True)
    monkeypatch.setenv("FRAUD_PIPELINE_DROPPED_FIELDS", "country")
    refused = CliRunner().invoke(main, arguments)
    assert refused.exit_code == 1
    assert "rules read country, which FRAUD_PIPELINE_DROPPED_FIELDS keeps out" in refused.output
