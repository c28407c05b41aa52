"""The benchmark of whole backtests runs, small, and counts what it should."""

from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.broker import EmbeddedBroker
from tests.benchmarks import alone, backtests, forests
from tests.benchmarks.traffic import Traffic

SMALL = Traffic(cards=300, merchants=100, history_days=2)
OPTIONS = backtests.Options(rows=3_000, traffic=SMALL, ranges=SMALL, trees=5, leaves=7, training_cards=100)


@pytest.fixture(autouse=True)
def build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of these runs go where the test's do."""
    for module in (alone, forests):
        monkeypatch.setattr(module, "BUILD", tmp_path)


def test_the_longer_range_has_as_many_more_decisions(tmp_path: Path) -> None:
    found = []
    backtests.register(tmp_path, OPTIONS.models())
    for length in backtests.LENGTHS:
        backtests.write_range(tmp_path / "range.parquet", SMALL, length)
        found.append({"length": length, **backtests.memory(tmp_path / "range.parquet", tmp_path)})
    decisions = [row["transactions"] for row in found]
    assert decisions[1] == pytest.approx(4 * decisions[0], rel=0.1)
    assert all(100 < row["anonymous_mib"] < row["resident_mib"] for row in found)
    topics = {"transactions": 1, **alone.Timed(1.0, 1.0).row(1)}
    assert "range x 4: " in backtests.describe({"topics": topics, "ranges": found})


@pytest.mark.broker
def test_topics_are_decided_with_their_history(broker: EmbeddedBroker, tmp_path: Path) -> None:
    row = backtests.from_topics(broker.bootstrap_servers, tmp_path, replace(OPTIONS, partitions=2))
    history = SMALL.history(backtests.a_while_ago(alone.DAYS_AGO))
    assert row["transactions"] == len(history) + OPTIONS.rows
    assert row["us_a_transaction"] > 0
