"""The example's command line, and what it says when it cannot begin; the rest is in the integration tests."""

import io
import shlex
from datetime import UTC, datetime
from pathlib import Path

from pipeline.demo.backtest_example import ExampleOptions, command_lines, run_example
from pipeline.demo.environment import run_directory
from pipeline.demo.text import PLAIN_WIDTH
from pipeline.demo.world import World
from pipeline.settings import Settings


def test_the_command_can_be_pasted_and_fits_a_terminal() -> None:
    asked = [(f"--option-{number}", "a value" if number % 3 else "x" * 30) for number in range(9)]
    lines = command_lines(asked)
    assert len(lines) > 3
    assert max(map(len, lines)) <= PLAIN_WIDTH
    assert shlex.split("\n".join(lines).replace("\\\n", "")) == [
        "FRAUD_PIPELINE_TIMESTAMPS=producer",
        "fraud-pipeline",
        "backtest",
        *(word for pair in asked for word in pair),
    ]


def test_the_range_is_the_end_of_the_history() -> None:
    options = ExampleOptions(world=World(history_days=90), range_days=20)
    assert options.world.first_streamed() == datetime(2018, 6, 30, tzinfo=UTC)
    assert options.range_from == datetime(2018, 6, 10, tzinfo=UTC)


def test_a_second_run_in_one_directory_is_refused(tmp_path: Path) -> None:
    settings, errors = Settings(data_dir=tmp_path / "data", kafka_bootstrap_servers=None), io.StringIO()
    with run_directory(settings):
        assert run_example(settings, ExampleOptions(output=tmp_path), io.StringIO(), errors) == 1
    assert "another run is going on" in errors.getvalue()
