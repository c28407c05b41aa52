"""The example's command line, and what it says when it cannot begin; the rest is in the integration tests."""

import io
import shlex
from pathlib import Path

from pipeline.demo.backtest_example import command_lines, run_example
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


def test_a_second_run_in_one_directory_is_refused(tmp_path: Path) -> None:
    settings, errors = Settings(data_dir=tmp_path / "data", kafka_bootstrap_servers=None), io.StringIO()
    with run_directory(settings):
        assert run_example(settings, World(), tmp_path, io.StringIO(), errors) == 1
    assert "another run is going on" in errors.getvalue()
