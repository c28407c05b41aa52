"""The runner's arithmetic, its registry and its table."""

import sys
from pathlib import Path

import numpy as np
import pytest

from tests.benchmarks.engines import ENGINES, needs
from tests.benchmarks.measured import Measurement, Sample, Unmeasurable, measurement, ratios, summary
from tests.benchmarks.peers.arguments import Arguments
from tests.benchmarks.running import Bench

HERE = Path(__file__).parent


def samples(end_ms: int) -> list[Sample]:
    """An engine that uses half a core and a broker that uses a tenth, from 1,000 ms on."""
    return [Sample(at, 0.5 * (at - 1_000) / 1_000, 0.1 * (at - 1_000) / 1_000, at) for at in range(1_000, end_ms, 200)]


def test_a_steady_engine_is_measured_after_its_warm_up() -> None:
    appended = np.concatenate([1_000 + 5 * np.arange(200), 2_000 + np.arange(800)])
    found = measurement(appended, samples(3_200))
    assert found.rate_per_s == pytest.approx(1_000, rel=0.01)
    assert found.engine_cpu_us == pytest.approx(500, rel=0.01)
    assert found.broker_cpu_us == pytest.approx(100, rel=0.01)
    assert (found.records, found.peak_rss_bytes) == (1_000, 3_000)


def test_bursts_count_from_the_end_of_one_to_the_end_of_another() -> None:
    appended = np.repeat(1_000 * np.arange(1, 11), 100)
    assert measurement(appended, samples(10_600)).rate_per_s == pytest.approx(100)


@pytest.mark.parametrize("bursts", [1, 2, 4])
def test_a_run_in_few_bursts_says_what_to_do(bursts: int) -> None:
    with pytest.raises(Unmeasurable, match="give the engine more records"):
        measurement(np.repeat(1_000 * np.arange(1, bursts + 1), 100), samples(5_600))


def test_a_summary_has_medians_and_the_spread() -> None:
    runs = [Measurement(10, rate, 1.0, 2.0, int(rate)) for rate in (100.0, 90.0, 120.0)]
    found = summary(runs)
    assert (found["rate_per_s"], found["spread"], found["peak_rss_bytes"], found["runs"]) == (100, 0.3, 120, 3)
    assert ratios({"a": found, "b": {**found, "rate_per_s": 50.0}})["a"] == {"b": 2.0}


def test_the_registry_s_commands_start_files_that_exist(tmp_path: Path) -> None:
    names = [engine.name for engine in ENGINES]
    assert len(set(names)) == len(names)
    assert {"bare", "ours-a", "ours-b"} <= set(names)
    bench = Bench("127.0.0.1:1", 0, tmp_path, "ours", "theirs")
    task = Arguments(bench.bootstrap, "in", "out", "g", tmp_path, tmp_path)
    for engine in ENGINES:
        python, _, module, *_ = engine.command(bench, task)
        place = HERE.joinpath(*module.removeprefix("tests.benchmarks.").split("."))
        assert place.with_suffix(".py").exists() or (place / "__main__.py").exists()
        assert (python == "theirs") == (engine.missing(str(tmp_path / "none")) is not None)


def test_an_engine_that_is_not_installed_says_so(tmp_path: Path) -> None:
    assert needs("msgspec")(sys.executable) is None
    assert "no_such_package" in (needs("no_such_package")(sys.executable) or "")
    assert "make bench" in (needs("msgspec")(str(tmp_path / "python")) or "")
