"""The measurement of detection on a small file."""

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from pipeline.training.fit import TrainingConfig
from tests.evaluation import quality
from tests.helpers.handbook import handbook_frame

SMALL = TrainingConfig(trees=20, leaves=6)


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "transactions.parquet"
    frame = handbook_frame(40, seed=3)
    frame.assign(TX_FRAUD_SCENARIO=frame["TX_FRAUD"] * (1 + frame.index % 2)).to_parquet(path)
    first = frame["TX_DATETIME"].min().normalize()
    days = [f"{first + np.timedelta64(day, 'D'):%Y-%m-%d}" for day in (24, 32, 39)]
    monkeypatch.setattr(quality, "FOLDS", ((days[0], days[1]), (days[1], days[2])))
    monkeypatch.setattr(quality, "TRAIN_FROM", f"{first:%Y-%m-%d}")
    monkeypatch.setattr(quality, "FINAL", ((days[1], days[2]),))
    variants = (
        quality.Variant("default", config=SMALL),
        quality.Variant("the same", config=SMALL),
        quality.Variant("frauds-only", quality.FRAUDS, config=SMALL),
        quality.Variant("amounts alone", features=("amount", "card_amount_to_regular"), config=SMALL),
        quality.Variant("renewed", config=SMALL, renewed_days=(4,), learns=True),
        quality.Variant("late", quality.LATE, config=SMALL, trained_under=quality.FRAUDS),
    )
    monkeypatch.setattr(quality, "VARIANTS", variants)
    return path


def test_variants_are_compared_day_by_day(file: Path, tmp_path: Path) -> None:
    output = tmp_path / "quality.json"
    arguments = [str(file), "--output", str(output)]
    result = CliRunner().invoke(quality.command, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    again = CliRunner().invoke(quality.command, [*arguments, "--final"], catch_exceptions=False)
    assert again.exit_code == 0
    readings = json.loads(output.read_text())["readings"]
    assert [reading["final"] for reading in readings] == [False, True]
    assert all(reading["commit"] for reading in readings)
    rows = {row["variant"]: row for row in readings[0]["rows"]}
    same = rows["the same"]["differences"]["average_precision"]
    assert (same["mean"], same["low"], same["high"]) == (0.0, 0.0, 0.0)
    # None of the default features needs a legitimate label.
    assert rows["frauds-only"]["average_precision"] == rows["default"]["average_precision"]
    other = rows["amounts alone"]["differences"]["average_precision"]
    assert other["low"] < other["mean"] < other["high"]
    assert rows["default"]["average_precision"] > 0.2
    assert set(rows["default"]["recall_by_kind"]) == {"amount", "merchant"}
    assert 0 < rows["default"]["card_precision"] < 0.2
    assert "| amounts alone |" in result.stdout
    # It is measured as it is trained once, too; without River it is the default.
    assert rows["renewed"] == rows["default"] | {"variant": "renewed"}
    assert rows["renewed every 4 days"]["average_precision"] != rows["renewed"]["average_precision"]
    assert rows["renewed every 4 days, with River"]["average_precision"] > 0
    assert "Recall among the top 100, default: amount " in result.stdout
