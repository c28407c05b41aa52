"""The measurement of detection on a small file."""

import json
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner, Result

from pipeline.features.catalogue import DEFAULT_FEATURES, FEATURES
from pipeline.training.fit import TrainingConfig
from tests.evaluation import attacks, budget, compared, detection, over_time, quality, selection, variants
from tests.evaluation.detection import Variant
from tests.evaluation.gate import gated
from tests.evaluation.histories import History
from tests.evaluation.parts import Unit
from tests.evaluation.worlds import renewals
from tests.evaluation.worlds.families import FAMILIES
from tests.evaluation.worlds.population import Size
from tests.helpers.handbook import handbook_frame

SMALL = TrainingConfig(trees=20, leaves=6)


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "transactions.parquet"
    frame = handbook_frame(40, seed=3)
    number = np.arange(len(frame))
    frame.assign(TRANSACTION_ID=number, TX_FRAUD_SCENARIO=frame["TX_FRAUD"] * (1 + number % 2)).to_parquet(path)
    first = frame["TX_DATETIME"].min().normalize()
    days = [f"{first + np.timedelta64(day, 'D'):%Y-%m-%d}" for day in (24, 32, 37, 39)]
    monkeypatch.setattr(detection, "FOLDS", ((days[0], days[1]), (days[1], days[3])))
    monkeypatch.setattr(detection, "TRAIN_FROM", f"{first:%Y-%m-%d}")
    monkeypatch.setattr(detection, "FINAL", ((days[1], days[3]),))
    made = (
        Variant("default", config=SMALL),
        Variant("the same", config=SMALL),
        Variant("frauds-only", detection.FRAUDS, config=SMALL),
        Variant("amounts alone", features=("amount", "card_amount_to_regular"), config=SMALL),
        Variant("renewed", config=SMALL, renewed_days=(4,), learns=True),
        Variant("late", detection.LATE, config=SMALL, trained_under=detection.FRAUDS),
    )
    monkeypatch.setattr(variants, "VARIANTS", made)
    items = tuple(variant.name for variant in made)
    monkeypatch.setitem(quality.PARTS, "variants", variants.PART._replace(items=items))
    monkeypatch.setattr(attacks, "DAYS", (days[2], days[3]))
    monkeypatch.setattr(over_time, "NEW", (days[2], days[3]))
    monkeypatch.setattr(over_time, "MONTHS", {"May": (days[1], days[3])})
    return path


def run(file: Path, part: str, *arguments: str) -> Result:
    output = file.with_name(f"{part}.json")
    command = [str(file), "--part", part, "--output", str(output), *arguments]
    result = CliRunner().invoke(quality.command, command, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result


def newest(file: Path, part: str) -> dict[str, object]:
    found: dict[str, object] = json.loads(file.with_name(f"{part}.json").read_text())["readings"][-1]
    return found


def test_variants_are_compared_day_by_day(file: Path) -> None:
    result = run(file, "variants")
    run(file, "variants", "--final", "--only", "default")
    readings = json.loads(file.with_name("variants.json").read_text())["readings"]
    assert [reading["final"] for reading in readings] == [False, True]
    assert all(reading["commit"] and reading["seconds"] > 0 for reading in readings)
    units = readings[0]["units"]
    first_fold, _ = detection.FOLDS
    row = {name: units[f"{name}, {first_fold[0]} to {first_fold[1]}"] for name in ("default", "frauds-only", "renewed")}
    # None of the default features needs a legitimate label.
    assert row["frauds-only"]["frauds-only"]["average_precision"] == row["default"]["default"]["average_precision"]
    assert 0 < np.mean(row["default"]["default"]["card_precision"]) < 0.2
    # It is measured as it is trained once, too; without River it is the default.
    assert row["renewed"]["renewed"] == row["default"]["default"]
    once, renewed = row["renewed"]["renewed"], row["renewed"]["renewed every 4 days"]
    assert renewed["average_precision"] != once["average_precision"]
    river = row["renewed"]["renewed every 4 days, with River"]
    assert river["average_precision"] != renewed["average_precision"]
    gated_row = row["renewed"]["renewed every 4 days, with River behind its gate"]
    assert gated_row["average_precision"][0] == renewed["average_precision"][0], "a new policy begins without it"
    kinds = row["default"]["default"]["kinds"]
    assert set(kinds) == {"amount", "merchant"}
    assert all(0 <= found <= of_all for kind in kinds.values() for found, of_all in zip(*kind.values(), strict=True))
    lines = result.output.splitlines()
    assert next(line for line in lines if line.startswith("| the same |")).count("[+0.0000, +0.0000]") == 3
    assert "[" not in next(line for line in lines if line.startswith("| default |"))
    assert "late" in result.output


def test_schedules_are_compared_under_an_attack(file: Path) -> None:
    names = [name for name in attacks.PART.items if name.startswith("bursts 1")]
    result = run(file, "attacks", *(word for name in names for word in ("--only", name)))
    units = newest(file, "attacks")["units"]
    assert isinstance(units, dict)
    assert list(units) == names
    frozen, daily = units["bursts 1, frozen"], units["bursts 1, daily"]
    first_day = slice(0, 1)
    assert frozen["alone"]["average_precision"][first_day] == daily["alone"]["average_precision"][first_day]
    assert frozen["alone"]["average_precision"] != daily["alone"]["average_precision"]
    assert frozen["alone"]["average_precision"] != frozen["with River"]["average_precision"]
    assert set(frozen["alone"]["kinds"]) == {"9", "amount", "merchant"}
    afterwards = attacks.share_found(units["bursts 1, afterwards, early reports"]["alone"])
    assert afterwards is not None
    assert afterwards > (attacks.share_found(frozen["alone"]) or 0.0)
    assert "| daily, early reports | 1 |" in result.output
    assert "by seed: bursts" in result.output


def test_the_budget_part_counts_cases_of_the_days_that_are_scored(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "TOP", 5)
    result = run(file, "budget", "--only", "all labels", "--only", "frauds early")
    units = newest(file, "budget")["units"]
    assert isinstance(units, dict)
    start, end = detection.FOLDS[0]
    assert next(iter(units)) == f"all labels, {start} to {end}"
    assert len(units) == 4
    for source in units.values():
        assert set(source) == {"fixed", "paced"}
        assert 0 < np.mean(source["paced"]["cases"]) < 10
    history = History(detection.Data.from_file(file), detection.ALL)
    model, threshold = history.version(detection.at(start))
    rows = history.rows(detection.at(start), detection.at(end))
    alert = 1 / (1 + np.exp(-history.logit(model, rows))) >= threshold
    cards_a_day = pd.Series(history.data.card[rows][alert]).groupby(history.data.times[rows][alert] // 86_400_000_000)
    fixed = units[f"all labels, {start} to {end}"]["fixed"]["cases"]
    assert len(fixed) == (detection.at(end) - detection.at(start)).days
    # A case may begin on the day before, and then is none of this day.
    assert 0.6 * cards_a_day.nunique().sum() < sum(fixed) <= cards_a_day.nunique().sum()
    assert f"| all labels, {start} to {end} |" in result.output


def test_an_attack_adds_frauds_and_changes_nothing_else() -> None:
    made = handbook_frame(38, seed=3)
    frame = made.assign(TRANSACTION_ID=np.arange(len(made)), TX_FRAUD_SCENARIO=made["TX_FRAUD"])
    start = detection.at(f"{frame['TX_DATETIME'].min():%Y-%m-%d}") + timedelta(days=34)
    attack = attacks.Attack(a_day=5)
    found = attacks.attacked(frame, attack, start, start + timedelta(days=3))
    added = found["TX_FRAUD_SCENARIO"] == attacks.ATTACK
    assert added.sum() == 15
    assert found.loc[added, "TX_FRAUD"].all()
    pd.testing.assert_frame_equal(found[~added].reset_index(drop=True), frame)
    assert found["TX_DATETIME"].is_monotonic_increasing
    days = (found.loc[added, "TX_DATETIME"] - start.replace(tzinfo=None)).dt.days
    assert np.bincount(days).tolist() == [5, 5, 5]
    pd.testing.assert_frame_equal(found, attacks.attacked(frame, attack, start, start + timedelta(days=3)))


def test_the_gate_lets_the_online_model_in_where_reports_speak_for_it(file: Path) -> None:
    data = detection.Data(file)
    rows = np.arange(len(data.fraud))
    blind = np.where(data.fraud, -9.0, -5.0) + np.linspace(0, 1e-3, len(rows))
    telling = np.where(data.fraud, 0.0, -5.0)
    helped = gated(data, attacks.REGIME, rows, blind, telling)
    harmed = gated(data, attacks.REGIME, rows, telling, blind)
    # A new policy begins without the online model.
    assert np.array_equal(helped[:20], blind[:20])
    assert np.array_equal(helped[len(rows) // 2 :], telling[len(rows) // 2 :])
    assert np.array_equal(harmed, telling)


def test_candidates_are_added_to_the_default(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection, "SMALLER", SMALL)
    monkeypatch.setattr(selection, "SEEDS", (1,))
    added = {"default": DEFAULT_FEATURES, "with weekday": FEATURES, "without hour": DEFAULT_FEATURES[2:]}
    monkeypatch.setattr(selection, "sets", lambda: added)
    family = FAMILIES["collusion"]
    monkeypatch.setitem(FAMILIES, "collusion", family._replace(size=Size(900, 900, 63)))
    output = run(file, "features", "--only", "collusion", "--only", "folds").output
    assert "| features | collusion | folds | p | enters |" in output
    assert "| with weekday | " in output
    assert list(newest(file, "features")["units"])[-1] == "collusion 1"


def test_the_online_model_is_measured_on_daily_renewal(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(renewals, "SMALLER", SMALL)
    monkeypatch.setattr(renewals, "DAYS", timedelta(days=3))
    family = FAMILIES["collusion"]
    monkeypatch.setitem(FAMILIES, "collusion", family._replace(size=Size(900, 900, 63)))
    output = run(file, "river", "--only", "collusion 2").output
    units = newest(file, "river")["units"]
    assert isinstance(units, dict)
    (found,) = units.values()
    assert len(found["alone"]["average_precision"]) == 3
    assert found["with River"]["average_precision"] != found["alone"]["average_precision"]
    behind_gate = found["with River behind its gate"]["average_precision"]
    assert behind_gate[0] == found["alone"]["average_precision"][0], "the gate begins shut"
    assert f"| collusion | 1 | {np.nanmean(found['alone']['average_precision']):.4f} | " in output


def test_sets_add_candidates_and_leave_features_out() -> None:
    assert {"merchant_surge", "weekday", "card_amount_deviation"} <= set(selection.candidates())
    for name, features in selection.sets().items():
        assert (name == "default") == (features == DEFAULT_FEATURES)
        assert len(features) - len(DEFAULT_FEATURES) == {"with": 1, "without": -1, "default": 0}[name.split()[0]]
        assert "amount" in features


def test_a_candidate_enters_that_helps_somewhere_and_harms_nowhere() -> None:
    days = np.random.default_rng(1).normal(0, 0.0005, (3, 60))
    level, much = np.full(60, 0.5), days[0] + 0.01
    columns = {
        "collusion": {"default": level, "with a": level + much, "with b": level + much, "with c": level + days[1]},
        "folds": {"default": level, "with a": level + days[2], "with b": level - 0.01, "with c": level + 0.01},
    }
    results = selection.admissions(columns)
    assert {name: admission.enters for name, admission in results.items()} == {
        "with a": True, "with b": False, "with c": False,
    }  # fmt: skip
    assert results["with a"].p < 0.001 < results["with c"].p
    assert selection.holm(np.array([0.01, 0.04, 0.03, 0.5])).tolist() == pytest.approx([0.04, 0.09, 0.09, 0.5])


def test_months_and_ages_are_measured(file: Path) -> None:
    assert "| May | " in run(file, "months").output
    assert "| 28 days | " in run(file, "cold-start", "--only", "28 days", "--only", "21 days").output


def test_published_protocols_stand_beside_what_is_measured(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, (start, _) = detection.FOLDS
    first: datetime = detection.at(start)
    monkeypatch.setitem(compared._SPLITS, compared.SINGLE, (first, 1))
    result = run(file, "published", "--final", "--only", compared.SINGLE)
    assert "| XGBoost, published | 0.862 | 0.639 | 0.273 |" in result.output
    alone, river = (line.split(" | ")[1:] for line in result.output.splitlines() if line.startswith("| LightGBM"))
    assert alone != river


def test_a_name_that_no_part_has_is_refused(file: Path) -> None:
    result = CliRunner().invoke(quality.command, [str(file), "--part", "months", "--only", "Mai"])
    assert result.exit_code == 2
    assert "there is no Mai; these are there: May, June" in result.output


def test_a_file_without_rows_or_columns_is_refused_in_a_sentence(file: Path, tmp_path: Path) -> None:
    frame = pd.read_parquet(file).head(0)
    for name, given, sentence in (
        ("header.csv", frame, "has no rows: give the Handbook's transactions"),
        ("other.csv", frame.drop(columns="CUSTOMER_ID"), "no column is known for "),
    ):
        given.to_csv(tmp_path / name, index=False)
        result = CliRunner().invoke(quality.command, [str(tmp_path / name)])
        assert (result.exit_code, sentence in result.stderr) == (1, True), result.output


def test_units_run_in_processes_too() -> None:
    ((number, found, seconds),) = quality.measured([Unit("seven", divmod, (7, 3))], 2)
    assert (number, found) == (0, (2, 1))
    assert seconds >= 0
