"""How the pipeline as it ships grows with partitions and with workers, on one machine: job (b), each setting once.

Part ``scale`` of ``make bench``. What grows in the kernels (cards, windows, models, state) is `kernel_scale`'s.
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tests.benchmarks.engines import process
from tests.benchmarks.job.definition import PARTITIONS
from tests.benchmarks.ours.job import prepare_pipeline
from tests.benchmarks.running import ROOT, Bench
from tests.benchmarks.throughput import FAULTS, bench_on_broker


@dataclass(frozen=True)
class Options:
    """What is measured."""

    partitions: tuple[int, ...] = (1, 2, 4, 8, 16)
    """With one worker."""
    workers: tuple[int, ...] = (1, 2, 4)
    """With `PARTITIONS` partitions."""
    records: int = 200_000
    directory: Path = ROOT / "build/bench-scale"
    """Emptied first."""


QUICK = Options(partitions=(1,), workers=(2,), records=60_000)


def settings(options: Options) -> Iterator[tuple[int, int]]:
    """(partitions, workers) of each run; the one that both series have comes once."""
    made = [(number, 1) for number in options.partitions] + [(PARTITIONS, count) for count in options.workers]
    yield from dict.fromkeys(made)


def measure(options: Options, tell: Callable[[str], None]) -> dict[str, Any]:
    """One row for each setting, for ``build/bench.json``."""
    rows, failed = [], {}
    with bench_on_broker(options.directory, bench_python="") as bench:
        for partitions, workers in settings(options):
            name = f"{partitions}-partitions-{workers}-workers"
            try:
                row = _row(bench, name, partitions, workers, options.records)
            except FAULTS as error:
                failed[name] = " ".join(str(error).split())
                tell(f"{name}: {error}")
                continue
            rows.append(row)
            tell(f"{name}: {row['rate_per_s']:,.0f}/s")
    return {"settings": {"records": options.records}, "rows": rows, "failed": failed}


def _row(bench: Bench, name: str, partitions: int, workers: int, records: int) -> dict[str, Any]:
    command = process("ours.pipeline", "--workers", str(workers), "--partitions", str(partitions))
    prepare = partial(prepare_pipeline, records=records, partitions=partitions)
    return {"partitions": partitions, "workers": workers, **asdict(bench.run(name, command, prepare))}
