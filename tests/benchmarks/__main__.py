"""``make bench``: measures throughput, latency, scale, recovery, replay and kernels, and holds them to bounds.

Each part goes into ``build/bench.json`` as soon as it is measured; parts that are not asked for stay as they are. Exit
code 1 where an engine failed or gave wrong answers, or where a limit of ``tests/benchmarks/bounds.toml`` is not kept.
"""

import argparse
import json
import signal
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any, Final, get_origin, get_type_hints

import msgspec

from pipeline.broker.local import read_json
from tests.benchmarks import (
    chain,
    columnar,
    in_process,
    kernel_scale,
    latency,
    pipeline_scale,
    recovery,
    report,
    throughput,
)
from tests.benchmarks.bounds import check, failures, read_bounds
from tests.benchmarks.machine import kafka_version, machine, record, versions
from tests.benchmarks.running import ROOT
from tests.benchmarks.tables import COLUMNS, as_text

BUSY: Final = 0.25
"""Load for each core above which the machine does other work too."""
OUTPUT: Final = ROOT / "build/bench.json"
INTERRUPTED: Final = 130
"""As shells have it: 128 and the signal."""

MODULES: Final[Mapping[str, ModuleType]] = {
    "kernel": kernel_scale,
    "in_process": in_process,
    "replay": columnar,
    "throughput": throughput,
    "latency": latency,
    "chain": chain,
    "scale": pipeline_scale,
    "recovery": recovery,
}
"""The module of each part: ``Options`` with defaults, ``QUICK`` ones, and ``measure(options, tell)``."""


def options_of_parts(quick: bool, changes: Sequence[str]) -> dict[str, Any]:
    """Return the options of each part, with ``PART.FIELD=VALUE`` as the command line has them.

    Raises:
        ValueError: A part has no such field, or the field no such value.
    """
    found = {name: module.QUICK if quick else module.Options() for name, module in MODULES.items()}
    for change in changes:
        place, _, text = change.partition("=")
        part, _, field = place.partition(".")
        hints = get_type_hints(type(found.get(part)), include_extras=True) if part in found else {}
        if field not in hints:
            raise ValueError(f"there is no {place}; of {part} there are {', '.join(hints) or 'no options'}")
        try:
            value = msgspec.convert(_read(text, hints[field]), hints[field], strict=False)
            found[part] = replace(found[part], **{field: value})
        except ValueError as error:
            raise ValueError(f"{change}: {error}") from error
    return found


def _read(text: str, hint: Any) -> Any:
    if get_origin(hint) is tuple and not text.startswith("["):
        return text.split(",")
    try:
        return json.loads(text)
    except ValueError:  # a word
        return text


def run(
    only: Sequence[str], options: Mapping[str, Any], *, quick: bool, output: Path, modules: Mapping[str, Any] = MODULES
) -> int:
    """Measure the parts that were asked for, one after the other; returns the exit code."""
    wrong: list[str] = []
    for name, tables in report.PARTS.items():
        if name not in only:
            continue
        tell(f"==> {name}")
        taken = {
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": machine(),
            "versions": {**versions(sys.executable), "kafka": kafka_version()},
            "quick": quick,
        }
        if taken["machine"]["load_average_1min"] > BUSY * taken["machine"]["cores"]:
            tell(f"Others use this machine (load {taken['machine']['load_average_1min']:.1f}): figures will be worse.")
        content = {"taken": taken, **modules[name].measure(options[name], tell)}
        record(output, name, content)
        for table in tables.values():
            print(f"\n{as_text(table(content))}", flush=True)
        wrong += [f"{name}: {engine} failed: {why}" for engine, why in content.get("failed", {}).items()]
        # A limit of an engine that is not there would otherwise hold nothing.
        wrong += [f"{name}: {engine} was not measured: {why}" for engine, why in content.get("missing", {}).items()]
    outcomes = check(read_json(output), read_bounds())
    held = report.bounds(outcomes)
    print(f"\n{as_text(held)}" if held.rows else "\nNo bound is of what was measured.")
    if quick:
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


def main() -> None:
    """Parse the command line, run, and end with the exit code."""
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument(
        "--only", type=names(report.PARTS), default=list(report.PARTS), help=f"of {', '.join(report.PARTS)}; all"
    )
    parser.add_argument("--quick", action="store_true", help="small inputs, to see that all of it works")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="build/bench.json")
    parser.add_argument(
        "--set", action="append", default=[], metavar="PART.FIELD=VALUE",
        help="an option of a part, such as latency.rates=500,5000; may be repeated",
    )  # fmt: skip
    given = parser.parse_args()
    if given.output.is_dir():
        parser.error(f"{given.output} is a directory; name a file")
    try:
        options = options_of_parts(given.quick, given.set)
    except ValueError as error:
        parser.error(str(error))
    for number in (signal.SIGTERM, signal.SIGHUP):
        # As Ctrl-C does: an engine lies in a process group of its own and must not outlive the run.
        signal.signal(number, signal.default_int_handler)
    try:
        code = run(given.only, options, quick=given.quick, output=given.output)
    except KeyboardInterrupt:
        tell(f"Interrupted. What was measured whole is in {given.output}.")
        code = INTERRUPTED
    sys.exit(code)


if __name__ == "__main__":
    main()
