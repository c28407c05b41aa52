"""``make bench``: measures throughput, latency, scale, recovery, replay and kernels, and holds them to bounds.

Each part goes into ``build/bench.json`` as soon as it is measured; parts that are not asked for stay as they are. Exit
code 1 where an engine failed or gave wrong answers, or where a limit of ``tests/benchmarks/bounds.toml`` is not kept.
"""

import argparse
import signal
import sys
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

from pipeline.broker.local import read_json
from tests.benchmarks import columnar, in_process, kernel_scale, latency, pipeline_scale, recovery, report, throughput
from tests.benchmarks.bounds import check, failures, read_bounds
from tests.benchmarks.engines import ENGINES
from tests.benchmarks.machine import kafka_version, machine, record, versions
from tests.benchmarks.running import ROOT
from tests.benchmarks.tables import COLUMNS, as_text

BUSY: Final = 0.25
"""Load for each core above which the machine does other work too."""
OUTPUT: Final = ROOT / "build/bench.json"
QUICK_SCALE: Final = 0.2
INTERRUPTED: Final = 130
"""As shells have it: 128 and the signal."""

T = TypeVar("T", int, float)
Measure = Callable[[Callable[[str], None]], Mapping[str, Any]]


def measures(given: argparse.Namespace) -> dict[str, Measure]:
    """How each part is measured, by the command line's options."""
    engines = throughput.Options(
        engines=tuple(given.engines or (engine.name for engine in ENGINES)),
        repeats=1 if given.quick else given.repeats,
        scale=QUICK_SCALE * given.scale if given.quick else given.scale,
        bench_python=given.bench_python,
    )
    delays = latency.QUICK if given.quick else latency.Options()
    if given.rates:
        delays = replace(delays, rates=tuple(given.rates))
    if given.seconds:
        delays = replace(delays, seconds=given.seconds)
    pipeline = pipeline_scale.QUICK if given.quick else pipeline_scale.Options()
    return {
        "kernel": lambda _tell: kernel_scale.rows(quick=given.quick),
        "in_process": lambda _tell: in_process.rows(quick=given.quick),
        "replay": lambda _tell: columnar.rows(quick=given.quick),
        "throughput": partial(throughput.measure, engines),
        "latency": partial(latency.measure, delays),
        "scale": partial(pipeline_scale.measure, pipeline),
        "recovery": partial(recovery.measure, recovery.QUICK if given.quick else recovery.Options()),
    }


def run(given: argparse.Namespace) -> int:
    """Measure the parts that were asked for, one after the other; returns the exit code."""
    ways = measures(given)
    wrong: list[str] = []
    for name, tables in report.PARTS.items():
        if name not in given.only:
            continue
        tell(f"==> {name}")
        taken = {
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": machine(),
            "versions": {**versions(sys.executable), "kafka": kafka_version()},
            "quick": given.quick,
        }
        if taken["machine"]["load_average_1min"] > BUSY * taken["machine"]["cores"]:
            tell(f"Others use this machine (load {taken['machine']['load_average_1min']:.1f}): figures will be worse.")
        content = {"taken": taken, **ways[name](tell)}
        record(given.output, name, content)
        for table in tables.values():
            print(f"\n{as_text(table(content))}", flush=True)
        wrong += [f"{name}: {engine} failed: {why}" for engine, why in content.get("failed", {}).items()]
        # A limit of an engine that is not there would otherwise hold nothing.
        wrong += [f"{name}: {engine} was not measured: {why}" for engine, why in content.get("missing", {}).items()]
    outcomes = check(read_json(given.output), read_bounds())
    held = report.bounds(outcomes)
    print(f"\n{as_text(held)}" if held.rows else "\nNo bound is of what was measured.")
    if given.quick:
        print("\nA quick run's figures mean nothing: no limit is held against it.")
    else:
        wrong += failures(outcomes)
    for line in wrong:
        print(textwrap.fill(f"FAILED {line}", COLUMNS, subsequent_indent="  "), file=sys.stderr)
    return 1 if wrong else 0


def tell(text: str) -> None:
    """Progress, apart from the results."""
    print(text, file=sys.stderr, flush=True)


def names(row: Mapping[str, Any]) -> Callable[[str], list[str]]:
    """A parser of names that are separated by commas."""

    def parse(text: str) -> list[str]:
        found = text.split(",")
        if unknown := [name for name in found if name not in row]:
            raise argparse.ArgumentTypeError(f"no such name: {', '.join(unknown)}; there are {', '.join(row)}")
        return found

    return parse


def several(kind: Callable[[str], T], least: T) -> Callable[[str], list[T]]:
    """A parser of numbers that are separated by commas, none below ``least``."""
    return lambda text: [at_least(kind, least)(item) for item in text.split(",")]


def at_least(kind: Callable[[str], T], least: T) -> Callable[[str], T]:
    """A parser of a number not below ``least``."""

    def parse(text: str) -> T:
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is no number") from None
        if not value >= least:
            raise argparse.ArgumentTypeError(f"{text} is less than {least}")
        return value

    return parse


def file(text: str) -> Path:
    """A parser of where a file is, or is to be."""
    if Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"{text} is a directory; name a file")
    return Path(text)


def main() -> None:
    """Parse the command line, run, and end with the exit code."""
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument(
        "--only", type=names(report.PARTS), default=list(report.PARTS), help=f"of {', '.join(report.PARTS)}; all"
    )
    parser.add_argument("--quick", action="store_true", help="small inputs, to see that all of it works")
    parser.add_argument("--output", type=file, default=OUTPUT, help="build/bench.json")
    parser.add_argument(
        "--repeats", type=at_least(int, 1), default=throughput.Options.repeats, help="throughput: of each engine"
    )
    parser.add_argument(
        "--scale", type=at_least(float, 0.01), default=1.0, help="throughput: factor on the numbers of records"
    )
    parser.add_argument(
        "--engines", type=names({engine.name: engine for engine in ENGINES}), help="throughput: which; all"
    )
    parser.add_argument("--bench-python", default=throughput.Options.bench_python, help="of the other engines")
    parser.add_argument("--rates", type=several(int, 1), help="latency: a second")
    parser.add_argument("--seconds", type=at_least(float, 1.0), help="latency: of each rate")
    given = parser.parse_args()
    for number in (signal.SIGTERM, signal.SIGHUP):
        # As Ctrl-C does: an engine lies in a process group of its own and must not outlive the run.
        signal.signal(number, signal.default_int_handler)
    try:
        code = run(given)
    except KeyboardInterrupt:
        tell(f"Interrupted. What was measured whole is in {given.output}.")
        code = INTERRUPTED
    sys.exit(code)


if __name__ == "__main__":
    main()
