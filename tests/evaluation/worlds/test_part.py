"""The table of a world: figures of cases, features of the comparison, and who is measured when."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from schemas.times import US_PER_DAY
from tests.evaluation.detection import Data
from tests.evaluation.worlds import part, rivals
from tests.evaluation.worlds.afternoon import FURTHER, HANDBOOK, afternoon_features
from tests.evaluation.worlds.families import CHOOSING, FAMILIES, JUDGING
from tests.evaluation.worlds.population import Size
from tests.helpers.handbook import handbook_frame

SMALL = Size(900, 600, 63)


def frame_of(rows: list[tuple[str, str, str, float, bool]]) -> pd.DataFrame:
    time, card, merchant, amount, fraud = zip(*rows, strict=True)
    return pd.DataFrame(
        {
            "transaction_id": [f"T{k}" for k in range(len(rows))],
            "event_time": pd.to_datetime(list(time), utc=True).astype("datetime64[us, UTC]"),
            "card_id": card, "merchant_id": merchant, "amount": amount,
            "amount_minor": [round(value * 100) for value in amount],
            "currency": "EUR", "fraud": fraud,
        }
    )  # fmt: skip


def test_families_that_judge_are_measured_by_final_alone(tmp_path: Path) -> None:
    only = ("file", *FAMILIES)
    assert set(only) < set(part.PART.items)
    assert [unit.name for unit in part.units(tmp_path, False, ("collusion 2", "drift 1"))] == ["collusion 2"]
    plain = {unit.name.rpartition(" ")[0] for unit in part.units(tmp_path, False, only)} - {""}
    final = {unit.name.rpartition(" ")[0] for unit in part.units(tmp_path, True, only)} - {""}
    assert plain == {family.name for family in CHOOSING}
    assert final == {family.name for family in (*CHOOSING, *JUDGING)}


def test_half_as_many_cases_are_opened_as_cards_have_fraud(tmp_path: Path) -> None:
    frame = frame_of(
        [
            ("2024-01-01 10:00", "A", "M", 10.0, True),
            ("2024-01-01 11:00", "A", "M", 20.0, True),
            ("2024-01-01 12:00", "B", "M", 500.0, True),
            ("2024-01-01 13:00", "C", "M", 7.0, False),
            ("2024-01-02 10:00", "C", "M", 7.0, False),
        ]
    )
    frame.to_parquet(path := tmp_path / "transactions.parquet")
    found = part.measure(Data(path), np.arange(5), np.array([0.1, 0.9, 0.5, 0.8, 0.2]))
    assert found["frauds"] == [2.0, 0.0]
    assert found["money"] == [30.0, 0.0]
    assert found["frauds_of_day"] == [3.0, 0.0]
    assert found["money_of_day"] == [530.0, 0.0]
    assert found["average_precision"][0] == pytest.approx((1 + 2 / 3 + 3 / 4) / 3)
    assert np.isnan(found["average_precision"][1])


def test_features_of_an_afternoon_are_those_of_a_loop() -> None:
    frame = FAMILIES["moving ring"].frame(1, Size(300, 400, 20)).iloc[:3_000].reset_index(drop=True)
    found = pd.DataFrame(afternoon_features(frame), columns=[*HANDBOOK, *FURTHER])
    rows = np.random.default_rng(0).choice(len(frame), 60, replace=False)
    for row in rows:
        now, before = frame.iloc[row], frame.iloc[:row]
        of_card = before[before["card_id"] == now["card_id"]]
        of_merchant = before[before["merchant_id"] == now["merchant_id"]]

        def within(history: pd.DataFrame, span: str, now: pd.Series = now) -> pd.DataFrame:
            return history[history["event_time"] > now["event_time"] - pd.Timedelta(span)]

        value = found.iloc[row]
        assert value["card count 1h"] == len(within(of_card, "1h")) + 1
        assert value["new at the merchant"] == (now["merchant_id"] not in set(of_card["merchant_id"]))
        assert value["merchant's count of the day"] == len(within(of_merchant, "1D")) + 1
        least = min([now["amount"], *within(of_card, "1D")["amount"]])
        assert value["card's least amount of a day"] == pytest.approx(least)
        if len(of_merchant):
            assert value["amount to the merchant's mean"] == pytest.approx(now["amount"] / of_merchant["amount"].mean())
        if len(of_card):
            since = (now["event_time"] - of_card["event_time"].iloc[-1]).total_seconds()
            assert value["seconds since the card's last"] == pytest.approx(since)
        if len(of_card) >= 5:
            angle, own = (
                (time.dt.hour * 3_600 + time.dt.minute * 60 + time.dt.second) / 43_200 * np.pi
                for time in (of_card["event_time"], frame["event_time"].iloc[[row]])
            )
            mean = np.arctan2(np.sin(angle).sum(), np.cos(angle).sum())
            assert value["distance from the card's hours"] == pytest.approx(1 - np.cos(own.iloc[0] - mean), abs=1e-9)


def test_a_world_and_a_file_have_the_same_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rivals, "_TREES", 20)
    monkeypatch.setattr(rivals, "_RIVER_EXAMPLES", 200)
    monkeypatch.setattr(rivals, "_RIVER_SCORES", 700)
    family = FAMILIES["card testing"]
    monkeypatch.setitem(FAMILIES, "card testing", family._replace(size=SMALL))
    (unit,) = part.units(tmp_path, False, ("card testing 1",))
    found = dict.fromkeys((unit.name, part.FILE), unit.measure(*unit.arguments))
    of_file, of_family, calibrated = part.tables(found)
    assert of_file.lines == of_family.lines
    assert [line.split(" | ")[0] for line in of_file.lines[2:]] == [f"| {name}" for name in ("default", *rivals.RIVALS)]
    models = found[part.FILE]["models"]
    precision = {name: np.mean(row["average_precision"]) for name, row in models.items()}
    assert min(precision["default"], precision["ceiling"]) > precision["amount alone"]
    assert len({tuple(row["average_precision"]) for row in models.values()}) == len(models)
    assert [line.split(" | ")[0] for line in calibrated.lines[2:]] == ["| card testing 1", "| file"]


def test_rivals_that_learn_row_by_row_wait_for_the_labels_and_skip_days(monkeypatch: pytest.MonkeyPatch) -> None:
    history = part.history_of_world(FAMILIES["card testing"].frame(1, Size(300, 400, 63)))
    data, (start, end) = history.data, part.scored_days(history.data)
    task = rivals.Task.of(history, part.begin_of(data), start, end)
    monkeypatch.setattr(rivals, "_RIVER_SCORES", len(task.scored) // 3 + 1)
    number = {tuple(row): place for place, row in enumerate(task.features[:, : len(HANDBOOK)].tolist())}
    learned: list[int] = []

    def score(row: rivals.Example) -> float:
        now_us = data.times[number[tuple(row.values())]]
        assert data.times[learned[-1]] <= now_us - 7 * US_PER_DAY
        assert data.times[learned[-1]] > now_us - 8 * US_PER_DAY
        return 0.5

    found = rivals._prequential(task, lambda row, fraud: learned.append(number[tuple(row.values())]), score)
    days = pd.Series(found).groupby(data.times[task.scored] // US_PER_DAY)
    assert days.count().gt(0).tolist() == [day % 3 == 0 for day in range(28)]
    assert data.fraud[learned].sum() == data.fraud[task.past[0] : learned[-1] + 1].sum()
    figures = part.measure(data, task.scored, found)
    assert np.isfinite(figures["frauds"]).tolist() == [day % 3 == 0 for day in range(28)]


def test_alerts_that_mean_what_they_say_are_below_the_limit() -> None:
    score = np.random.default_rng(1).beta(1, 2, 3_000)
    fraud = np.random.default_rng(2).random(3_000) < score
    calibrated, high = part.calibration(score, fraud), part.calibration(np.minimum(score * 1.3, 1), fraud)
    assert calibrated["error"] < calibrated["limit"] < 0.05
    assert high["error"] > high["limit"]
    assert part.calibration(score[:5], fraud[:5]) == {}


def test_an_interval_over_seeds_is_wider_where_seeds_differ() -> None:
    days = np.random.default_rng(1).normal(0, 1, (5, 28))
    days -= days.mean(axis=1, keepdims=True)
    low, high = part.interval_of_seeds(days)
    assert -0.3 < low < 0 < high < 0.3
    apart = part.interval_of_seeds(days + np.array([[-2], [-1], [0], [1], [2]]))
    assert apart[0] < -1 < 1 < apart[1]
    days[:, ::2] = np.nan
    assert np.isfinite(part.interval_of_seeds(days)).all()


def test_only_final_reads_the_last_weeks_of_the_handbook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frame = handbook_frame(40, seed=3)
    frame.assign(TRANSACTION_ID=np.arange(len(frame))).to_parquet(path := tmp_path / "transactions.parquet")
    middle = frame["TX_DATETIME"].min().normalize() + pd.Timedelta(days=20)
    monkeypatch.setattr(part, "FOLDS", (("", f"{middle:%Y-%m-%d}"),))
    monkeypatch.setattr(part, "of_frame", lambda frame: {"newest": frame["event_time"].max()})
    assert part.of_file(path, False)["newest"] < pd.Timestamp(middle, tz="UTC")
    assert part.of_file(path, True)["newest"] > pd.Timestamp(middle, tz="UTC") + pd.Timedelta(days=15)
