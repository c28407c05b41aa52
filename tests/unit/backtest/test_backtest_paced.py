"""Backtests whose threshold is set anew each hour: by the controller, from earlier hours alone."""

from collections import Counter
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from pipeline import Backtest
from pipeline.backtest import Decisions
from pipeline.backtest.report import build_report
from pipeline.backtest.runner.arguments import Thresholds
from pipeline.backtest.runner.thresholds import parsed_thresholds
from pipeline.decision.pacing import Pacing, PacingOptions, ScoredRows, is_news
from pipeline.settings import Settings
from schemas.times import US_PER_DAY, US_PER_HOUR
from tests.helpers.backtest_inputs import START, backtest_of, simulated_days

DAY = timedelta(days=1)
BUDGET = 6.0
DAYS = 20
FROM, TO = START + 9 * DAY, START + 19 * DAY


@pytest.fixture(scope="module")
def history() -> pd.DataFrame:
    return simulated_days(DAYS)


def kept(asked: Backtest) -> tuple[dict[str, pd.DataFrame], list[Decisions]]:
    """Frames of each variant, and the parts in which its decisions were told."""
    frames: dict[str, list[pd.DataFrame]] = {}
    parts: list[Decisions] = []

    def take(name: str, decisions: Decisions) -> None:
        frames.setdefault(name, []).append(decisions.frame())
        parts.append(decisions)

    asked.each(take)
    return {name: pd.concat(frame, ignore_index=True) for name, frame in frames.items()}, parts


def asked(file: Path, settings: Settings, **changes: Any) -> Backtest:
    fields: dict[str, Any] = {"start": FROM, "end": TO, "models": {"now": "active"}, "pace": BUDGET, **changes}
    return backtest_of(file, settings=settings, validation_days=3.0, **fields)


def reference(rows: pd.DataFrame, threshold: float) -> list[float]:
    """The threshold of each row, hour by hour from frames, without anything of a backtest."""
    pacing, changed, found = Pacing(PacingOptions(BUDGET)), None, []
    hours = rows["event_time"].astype("int64") // US_PER_HOUR
    for hour, of_hour in rows.groupby(hours.to_numpy()):
        pace = pacing.decide(threshold, int(hour))
        if is_news(threshold, pace, changed):
            threshold, changed = pace.threshold, int(hour)
        times_us = of_hour["event_time"].astype("int64").to_numpy()
        score = of_hour["score"].to_numpy()
        alert = (score >= threshold) | (of_hour["selection"] == "rule").to_numpy(bool)
        pacing.add(ScoredRows(times_us, score, alert, of_hour["case_id"].tolist()))
        found += [threshold] * len(of_hour)
    return found


def test_each_hour_is_decided_by_a_policy_of_earlier_hours(file: Path, settings: Settings) -> None:
    watched, _ = kept(asked(file, settings, start=FROM - 3 * DAY, pace=None))
    rows = watched["now"].assign(event_time=lambda row: row["event_time"].dt.as_unit("us"))
    expected = np.array(reference(rows, rows["threshold"][0]))[(rows["event_time"] >= FROM).to_numpy()]
    frames, parts = kept(asked(file, settings))
    (paced,) = frames.values()
    assert list(frames) == ["now paced at 6 a day"]
    np.testing.assert_array_equal(paced["threshold"].to_numpy(), expected)
    assert len(set(expected.tolist())) > 5
    assert paced["policy_version"].nunique() > 5
    by_score = paced["score"] >= paced["threshold"]
    assert ((paced["selection"] == "score") == by_score).all()
    # A part is of one policy, and of one hour.
    assert all(len(set(part.transactions.event_time_us // US_PER_HOUR)) == 1 for part in parts)


def test_how_a_file_is_cut_changes_nothing(file: Path, settings: Settings, tmp_path: Path) -> None:
    pieces = tmp_path / "pieces.parquet"
    pq.write_table(pq.read_table(file), pieces, row_group_size=37)
    (whole,), (cut,) = (list(kept(asked(item, settings))[0].values()) for item in (file, pieces))
    pd.testing.assert_frame_equal(whole, cut, check_exact=True)


def test_a_report_tells_how_the_budget_was_kept(file: Path, settings: Settings) -> None:
    result = asked(file, settings, thresholds=[0.5]).run()
    assert [variant.name for variant in result.variants] == ["now at 0.5", "now paced at 6 a day"]
    fixed, paced = build_report(result).content.variants
    assert fixed.paced is None
    assert paced.paced is not None
    frames, _ = kept(asked(file, settings))
    (rows,) = frames.values()
    alerts = rows[(rows["action"] == "alert")]
    first = alerts[~alerts["case_id"].duplicated()]
    by_day = Counter((first["event_time"].dt.as_unit("us").astype("int64") // US_PER_DAY).tolist())
    assert paced.paced.days == 10
    # A case of the day before the range may have alerted already.
    assert sum(by_day.values()) - 3 <= round((paced.paced.alerts_per_day or 0.0) * 10) <= sum(by_day.values())
    assert paced.paced.alerts_per_day == pytest.approx(BUDGET, rel=0.25)
    text = build_report(result).text
    assert "Paced at 6.0 alerts a day, the first alert of each case" in " ".join(text.split())
    assert "Paced at 6.0 alerts a day" in build_report(result).html


def test_critical_scores_alert_whatever_the_budget_says(file: Path, settings: Settings) -> None:
    (usual,), (critical,) = (kept(asked(file, settings, critical=item))[0].values() for item in (None, 0.3))
    assert usual["threshold"].max() > 0.3 >= critical["threshold"].max()
    assert (critical["action"] == "alert")[critical["score"] >= 0.3].all()


def test_what_cannot_be_paced_is_refused(file: Path, settings: Settings) -> None:
    for changes, words in (
        ({"labels": "simulated-review"}, "name a threshold"),
        ({"pace": 0.0}, "pace must be more than 0"),
        ({"pace": None, "critical": 0.5}, "belongs to a pace"),
        ({"critical": 0.001}, "from 0.005 to 1"),
    ):
        with pytest.raises(ValueError, match=words):
            asked(file, settings, **changes)
    live = settings.model_copy(update={"kafka_bootstrap_servers": "127.0.0.1:1"})
    with pytest.raises(ValueError, match="leave --pace out"):
        backtest_of(None, settings=live, pace=5.0, compare_live=True)
    with pytest.raises(ValueError, match="order of event time"):
        backtest_of(None, settings=live, pace=5.0, order="recorded")
    assert [threshold.suffix for threshold in parsed_thresholds(Thresholds(fixed=[0.5], budgets=[5.0], pace=5.0))] == [
        " at 0.5",
        " at 5 a day",
        " paced at 5 a day",
    ]
