"""Backtests whose online model learns: the gate decides whether it takes part in the score, as in live traffic."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from pipeline.decision import online_gate
from pipeline.decision.online_gate import BothScores, Gate, LabelReport
from pipeline.decision.policy import FIRST_BLEND, Policy
from pipeline.learning.labels import KNOWN, source_rank
from pipeline.settings import Settings
from schemas.times import US_PER_DAY, US_PER_HOUR
from tests.helpers.backtest_inputs import START, backtest_of, simulated_days, with_a_champion
from tests.helpers.champion import policy

DAY = timedelta(days=1)


@pytest.fixture(scope="module")
def history() -> pd.DataFrame:
    return simulated_days(20, cards=60)


@pytest.fixture(autouse=True)
def _few_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compare the five highest scores of a day, and let one win open: a small world has few frauds."""
    monkeypatch.setattr(online_gate, "TOP", 5)
    monkeypatch.setattr(online_gate, "OPENS", 0.5)


def microseconds(times: "pd.Series[pd.Timestamp]") -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return np.asarray(times.dt.as_unit("us").astype("int64"), np.int64)


def expected_blends(rows: pd.DataFrame, history: pd.DataFrame, blend: float) -> list[float]:
    """The blend of each row: hour by hour, from frames; each label comes a day after its transaction."""
    gate, found, reported = Gate(), [], 0
    times_us, known_us = microseconds(rows["event_time"]), microseconds(history["event_time"]) + US_PER_DAY
    names = list(zip(rows["card_id"], rows["transaction_id"], strict=True))
    labelled = list(zip(history["card_id"], history["transaction_id"], history["fraud"], strict=True))
    for number, (_, of_hour) in enumerate(rows.groupby(times_us // US_PER_HOUR)):
        first = int(of_hour.index[0])
        while reported < len(labelled) and known_us[reported] <= times_us[first]:
            card, transaction, fraud = labelled[reported]
            at_us, known = int(known_us[reported]), KNOWN.index("fraud" if fraud else "legitimate")
            gate.report(LabelReport((card, transaction), source_rank("simulator"), known, at_us, at_us))
            reported += 1
        blend = gate.decide(blend).blend if number else blend
        end = first + len(of_hour)
        scores = (of_hour["river"].to_numpy(), of_hour["lightgbm"].to_numpy())
        gate.add(BothScores(times_us[first:end], *scores, names[first:end]))
        found += [blend] * len(of_hour)
    return found


def kept(file: Path, settings: Settings, **changes: Any) -> list[pd.DataFrame]:
    """The decisions of each variant."""
    frames: dict[str, list[pd.DataFrame]] = {}
    asked = backtest_of(file, settings=settings, label_delay_s=86_400.0, learn=True, river="untrained", **changes)
    asked.each(lambda name, decisions: frames.setdefault(name, []).append(decisions.frame()))
    return [pd.concat(frame, ignore_index=True) for frame in frames.values()]


def test_each_hour_has_the_blend_that_reports_of_before_decide(
    file: Path, history: pd.DataFrame, settings: Settings, tmp_path: Path
) -> None:
    (always,) = kept(file, settings, blend=1.0)
    np.testing.assert_array_equal(always["score"], always["river"])
    for before in (0.0, 1.0):
        (gated,) = kept(file, with_a_champion(tmp_path / f"other-{before}", policy(blend=before)), blend=None)
        expected = np.array(expected_blends(always, history, before))
        # The online model goes in and out.
        assert set(expected.tolist()) == {0.0, 1.0}
        np.testing.assert_array_equal(gated["river"], always["river"])
        np.testing.assert_array_equal(gated["score"], np.where(expected == 1.0, always["river"], always["lightgbm"]))
        assert gated["policy_version"].nunique() == 2


def test_a_blend_that_is_asked_for_holds(file: Path, settings: Settings) -> None:
    (out,) = kept(file, settings, blend=0.0)
    np.testing.assert_array_equal(out["score"], out["lightgbm"])
    assert (out["river"] != out["lightgbm"]).any()
    with pytest.raises(ValueError, match="blend must be from 0 to 1"):
        backtest_of(file, settings=settings, blend=1.5)


def test_paced_and_chosen_thresholds_take_the_blend_over(file: Path, tmp_path: Path) -> None:
    settings = with_a_champion(tmp_path / "other", policy(blend=1.0))
    found = kept(file, settings, start=START + 9 * DAY, validation_days=3.0, thresholds=[0.5], budgets=[3.0], pace=3.0)
    fixed = found[0]
    assert 0 < (fixed["score"] == fixed["lightgbm"]).sum() < len(fixed)
    for row in found[1:]:
        np.testing.assert_array_equal(row["score"], fixed["score"])
        assert ((row["selection"] == "score") == (row["score"] >= row["threshold"])).all()


def test_a_new_policy_leaves_the_online_model_to_the_gate() -> None:
    assert Policy(0.5).blend == FIRST_BLEND == 0.0
