"""The one command: what it records, prints and returns, with parts that are not measured but given."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.broker.local import read_json
from tests.benchmarks import __main__ as command
from tests.benchmarks import docs, latency, report, throughput


@pytest.fixture
def content() -> dict[str, Any]:
    """What the parts give: the published figures, of which every limit is kept."""
    return {name: {key: part[key] for key in part if key != "taken"} for name, part in read_json(docs.FIGURES).items()}


def run(content: dict[str, Any], output: Path, *only: str, quick: bool = False) -> int:
    modules = {name: SimpleNamespace(measure=lambda _o, _t, part=part: part) for name, part in content.items()}
    options = dict.fromkeys(content)
    return command.run(only or list(content), options, quick=quick, output=output, modules=modules)


def test_a_run_records_its_parts_and_prints_their_tables(
    content: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "bench.json"
    assert run(content, path) == 0
    written = json.loads(path.read_text())
    assert set(written) == set(report.PARTS)
    assert all(part["taken"]["quick"] is False and part["taken"]["versions"]["kafka"] for part in written.values())
    shown = capsys.readouterr().out
    assert "Throughput: job (a)" in shown
    assert "goal met" in shown
    assert max(map(len, shown.splitlines())) <= 80
    path.write_text('{"latency": {"rows": [], "kept": 1}}')
    assert run(content, path, "in_process") == 0
    assert "No bound is of what was measured." in capsys.readouterr().out
    assert json.loads(path.read_text())["latency"]["kept"] == 1


def test_a_limit_that_is_not_kept_fails_the_run_unless_it_is_quick(
    content: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    engines = content["throughput"]["engines"]
    engines["ours-b"]["rate_per_s"] = 0.15 * 0.75 * engines["bare"]["rate_per_s"]
    assert run(content, tmp_path / "bench.json", "throughput") == 1
    assert "is 25% below the limit of 0.15" in " ".join(capsys.readouterr().err.split())
    assert run(content, tmp_path / "bench.json", "throughput", quick=True) == 0


@pytest.mark.parametrize(
    ("key", "message"),
    [("failed", "quix failed: it stood still"), ("missing", "quix was not measured: it stood still")],
)
def test_an_engine_that_failed_or_is_missing_fails_the_run(
    content: dict[str, Any], key: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content["throughput"][key] = {"quix": "it stood still"}
    assert run(content, tmp_path / "bench.json", "throughput", quick=True) == 1
    assert f"FAILED throughput: {message}" in capsys.readouterr().err


def test_options_reach_their_parts() -> None:
    changes = ["latency.rates=100,200", "latency.seconds=2", "throughput.engines=bare", "kernel.models=[[10,7]]"]
    found = command.options_of_parts(False, changes)
    assert found["latency"] == latency.Options(rates=(100, 200), seconds=2.0)
    assert (found["throughput"].engines, found["kernel"].models) == (("bare",), ((10, 7),))
    assert command.options_of_parts(True, [])["throughput"] == throughput.QUICK
    for change, message in (
        ("latency.rate=5", "there is no latency.rate; of latency there are modes, rates"),
        ("delay.rates=5", "of delay there are no options"),
        ("latency.rates=fast", "Expected `int`, got `str`"),
        ("throughput.repeats=0", "Expected `int` >= 1"),
        ("throughput.engines=flink", "no such engine: flink; there are bare"),
    ):
        with pytest.raises(ValueError, match=message):
            command.options_of_parts(False, [change])
