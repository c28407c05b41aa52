"""The short form of ``python -m tests.chaos.parity``."""

from pathlib import Path

import pytest

from pipeline.broker import EmbeddedBroker
from tests.chaos.parity import ParityRun, wrong

pytestmark = pytest.mark.broker


def test_a_recorded_backtest_hits_what_was_hit_live_through_kills_changes_and_rollbacks(
    broker: EmbeddedBroker, tmp_path: Path
) -> None:
    with ParityRun(broker.bootstrap_servers, tmp_path, rows=4_000, seconds=10.0, kills=2, seed=1) as run:
        found = run.run()
    assert wrong(found) == [], f"{found}"
