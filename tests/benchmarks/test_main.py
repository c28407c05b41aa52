"""The one command: what it records, prints and returns, with parts that are not measured but given."""

import argparse
import json
from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks import __main__ as command
from tests.benchmarks import latency, pipeline_scale, report, throughput
from tests.benchmarks.engines import ENGINES
from tests.benchmarks.example import example


def given(output: Path, **changes: Any) -> argparse.Namespace:
    options = {
        "only": list(report.PARTS), "quick": False, "output": output, "repeats": 3, "scale": 1.0, "engines": None,
        "bench_python": "python", "rates": None, "seconds": None,
    }  # fmt: skip
    return argparse.Namespace(**{**options, **changes})


@pytest.fixture
def content(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the parts give; nothing fails, and every limit is kept."""
    found = example()
    for part in found.values():
        del part["taken"]
    found["throughput"]["failed"] = found["throughput"]["missing"] = {}
    rates = {"bare": 50_000.0, "quix": 10_000.0, "faust": 1_000.0, "ours-a": 100_000.0, "ours-b": 80_000.0}
    for name, rate in rates.items():
        found["throughput"]["engines"][name]["rate_per_s"] = rate
    for row in found["latency"]["rows"]:
        if row["decisions_ms"]:
            row["decisions_ms"] = {"p50": 10.0, "p90": 20.0, "p99": 30.0, "p99.9": 40.0, "max": 50.0}
    ways = {name: lambda _tell, part=part: part for name, part in found.items()}
    monkeypatch.setattr(command, "measures", lambda _given: ways)
    return found


@pytest.mark.usefixtures("content")
def test_a_run_records_its_parts_and_prints_their_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "bench.json"
    assert command.run(given(path)) == 0
    written = json.loads(path.read_text())
    assert list(written) == list(report.PARTS)
    assert all(part["taken"]["quick"] is False and part["taken"]["versions"]["kafka"] for part in written.values())
    shown = capsys.readouterr().out
    assert "Throughput: job (a)" in shown
    assert "goal met" in shown
    assert max(map(len, shown.splitlines())) <= 80


@pytest.mark.usefixtures("content")
def test_parts_that_are_not_asked_for_stay(tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    path.write_text('{"latency": {"rows": [], "kept": 1}}')
    assert command.run(given(path, only=["kernel"])) == 0
    assert json.loads(path.read_text())["latency"]["kept"] == 1


def test_a_limit_that_is_not_kept_fails_the_run_unless_it_is_quick(
    content: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content["throughput"]["engines"]["ours-b"]["rate_per_s"] = 5_625.0
    assert command.run(given(tmp_path / "bench.json")) == 1
    assert "is 25% below the limit of 0.15" in " ".join(capsys.readouterr().err.split())
    assert command.run(given(tmp_path / "bench.json", quick=True)) == 0


def test_an_engine_that_failed_fails_the_run(
    content: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content["throughput"]["failed"] = {"quix": "it stood still"}
    assert command.run(given(tmp_path / "bench.json", quick=True)) == 1
    assert "FAILED throughput: quix failed: it stood still" in capsys.readouterr().err


def test_an_engine_that_is_missing_fails_the_run(
    content: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content["throughput"]["missing"] = {"quix": "it cannot be imported"}
    assert command.run(given(tmp_path / "bench.json")) == 1
    assert "FAILED throughput: quix was not measured: it cannot be imported" in capsys.readouterr().err


@pytest.mark.usefixtures("content")
def test_a_part_without_bounds_is_recorded_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.run(given(tmp_path / "bench.json", only=["in_process"])) == 0
    assert "No bound is of what was measured." in capsys.readouterr().out


def test_options_reach_their_parts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[Any] = []
    for module in (throughput, latency, pipeline_scale):
        monkeypatch.setattr(module, "measure", lambda options, _tell: asked.append(options))
    ways = command.measures(given(tmp_path, engines=["bare"], repeats=5, rates=[100], seconds=2.0))
    for name in ("throughput", "latency", "scale"):
        ways[name](print)
    engines, delays, pipeline = asked
    assert (engines.engines, engines.repeats, engines.scale) == (("bare",), 5, 1.0)
    assert (delays.rates, delays.seconds, delays.modes) == ((100,), 2.0, latency.MODES)
    assert pipeline == pipeline_scale.Options()
    asked.clear()
    ways = command.measures(given(tmp_path, quick=True))
    for name in ("throughput", "latency", "scale"):
        ways[name](print)
    assert asked[0].engines == tuple(engine.name for engine in ENGINES)
    assert (asked[0].repeats, asked[0].scale) == (1, command.QUICK_SCALE)
    assert asked[1:] == [latency.QUICK, pipeline_scale.QUICK]


def test_a_name_that_there_is_not_is_refused() -> None:
    assert command.names({"a": 1, "b": 2})("b,a") == ["b", "a"]
    with pytest.raises(argparse.ArgumentTypeError, match="no such name: c; there are a, b"):
        command.names({"a": 1, "b": 2})("a,c")


def test_numbers_that_measure_nothing_are_refused(tmp_path: Path) -> None:
    assert command.at_least(int, 1)("3") == 3
    assert command.several(int, 1)("500,2000") == [500, 2000]
    assert command.file(str(tmp_path / "bench.json")) == tmp_path / "bench.json"
    for parse, text, message in (
        (command.at_least(int, 1), "0", "0 is less than 1"),
        (command.at_least(float, 0.01), "nan", "nan is less than 0.01"),
        (command.several(int, 1), "500,-5", "-5 is less than 1"),
        (command.several(int, 1), "abc", "'abc' is no number"),
        (command.file, str(tmp_path), "is a directory; name a file"),
    ):
        with pytest.raises(argparse.ArgumentTypeError, match=message):
            parse(text)
