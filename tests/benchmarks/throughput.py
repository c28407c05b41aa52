"""Throughput of this pipeline and of other engines, on one machine and one broker, in one run.

Part ``throughput`` of ``make bench``. Engines take turns and each repeats; every decision of every run is compared with
the reference, and an engine that gave a wrong one is not listed. Rates come from the times at which the broker appended
decisions, not from what an engine says.
"""

import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta

from pipeline.broker import embedded_broker
from tests.benchmarks.engines import ENGINES, Engine
from tests.benchmarks.job.check import WrongAnswers
from tests.benchmarks.job.definition import PARTITIONS
from tests.benchmarks.job.prepare import SEED, write_job
from tests.benchmarks.machine import versions
from tests.benchmarks.measured import WARM_UP, Measurement, Unmeasurable, ratios, summary
from tests.benchmarks.running import ROOT, Bench, EngineFailed

WARMER = "ours-b"
FAULTS = (EngineFailed, Unmeasurable, WrongAnswers)
"""Of an engine; anything else is the benchmark's own."""


@dataclass(frozen=True)
class Options:
    """What is measured."""

    engines: tuple[str, ...] = tuple(engine.name for engine in ENGINES)
    repeats: Annotated[int, Meta(ge=1)] = 3
    scale: Annotated[float, Meta(ge=0.01)] = 1.0
    """Factor on the engines' numbers of records."""
    bench_python: str = str(ROOT / "build/bench-venv/bin/python")
    directory: Path = ROOT / "build/bench"
    """Emptied first."""

    def __post_init__(self) -> None:
        known = [engine.name for engine in ENGINES]
        if unknown := set(self.engines) - set(known):
            raise ValueError(f"no such engine: {', '.join(sorted(unknown))}; there are {', '.join(known)}")


QUICK = Options(repeats=1, scale=0.2)


@contextmanager
def bench_on_broker(directory: Path, bench_python: str) -> Iterator[Bench]:
    """A broker of its own, with the job's models; ``directory`` is emptied before, and the broker's part after."""
    if directory.exists():
        shutil.rmtree(directory)
    directory.mkdir(parents=True)
    write_job(directory / "job")
    with embedded_broker(directory / "kafka", long_lived=True) as broker:
        yield Bench(broker.bootstrap_servers, broker.pid, directory, sys.executable, bench_python)
    shutil.rmtree(directory / "kafka")


def run(
    bench: Bench, engines: Sequence[Engine], repeats: int, scale: float, tell: Callable[[str], None]
) -> tuple[dict[str, list[Measurement]], dict[str, str]]:
    """Measure ``engines`` in turns; returns their runs, and the faults of those that have none."""
    failed: dict[str, str] = {}
    runs: dict[str, list[Measurement]] = {engine.name: [] for engine in engines}
    # Before the first turn one engine runs for nothing, the one that asks most of the broker: its code is not compiled
    # yet, and compiling takes a fifth of a core for the first minute.
    warmer = [engine for engine in engines if engine.name == WARMER] or engines[:1]
    for turn in range(-1 if repeats > 1 else 0, repeats):
        for engine in engines if turn >= 0 else warmer:
            if engine.name in failed:
                continue
            prepare = partial(engine.prepare, records=round(scale * engine.records))
            try:
                run = bench.run(engine.name, engine.command, prepare)
            except FAULTS as error:
                failed[engine.name] = " ".join(str(error).split())
                runs.pop(engine.name)
                tell(f"{engine.name}: {error}")
                continue
            if turn >= 0:
                runs[engine.name].append(run)
                tell(f"{turn + 1}/{repeats} {engine.name:16}{run.rate_per_s:>10,.0f}/s")
    return {name: measured for name, measured in runs.items() if measured}, failed


def measure(options: Options, tell: Callable[[str], None]) -> dict[str, Any]:
    """Start a broker, measure, and return what goes into ``build/bench.json``."""
    chosen = [engine for engine in ENGINES if engine.name in options.engines]
    missing = {engine.name: why for engine in chosen if (why := engine.missing(options.bench_python)) is not None}
    able = [engine for engine in chosen if engine.name not in missing]
    with bench_on_broker(options.directory, options.bench_python) as bench:
        runs, failed = run(bench, able, options.repeats, options.scale, tell)
    summaries = {name: summary(measured) for name, measured in runs.items()}
    return {
        "peers": versions(options.bench_python),
        "settings": {
            "repeats": options.repeats,
            "scale": options.scale,
            "warm_up": WARM_UP,
            "partitions": PARTITIONS,
            "seed": SEED,
        },
        "engines": summaries,
        "rates_per_s": {name: [item.rate_per_s for item in measured] for name, measured in runs.items()},
        "ratios": ratios(summaries),
        "deliveries": {engine.name: engine.delivery for engine in chosen},
        "missing": missing,
        "failed": failed,
    }
