"""The engines that ``throughput`` compares: how each is started, on how many records, and what it promises."""

import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.benchmarks.job.check import verified
from tests.benchmarks.job.prepare import transactions, write_input
from tests.benchmarks.job.reference import decisions
from tests.benchmarks.ours.job import prepare_pipeline
from tests.benchmarks.peers.arguments import Arguments
from tests.benchmarks.running import Bench, Command, Prepared

LARGE: Final = 400_000
MIDDLE: Final = 200_000
SMALL: Final = 20_000


def prepare_one_hop(bench: Bench, run: str, records: int) -> Prepared:
    """Job (a): its input topic, made when it is first asked for, and the reference."""
    topic = f"transactions-{records}"
    if topic not in bench.kept:
        bench.create(topic, {})
        frame = transactions(records)
        write_input(frame, bench.bootstrap, topic)
        reference = decisions(frame, bench.workdir)
        bench.kept[topic] = Prepared(topic, records, lambda output: verified(bench.bootstrap, output, reference))
    return bench.kept[topic]


@dataclass(frozen=True)
class Engine:
    """An engine: ``command`` gives the process that works until SIGTERM."""

    name: str
    delivery: str
    """What holds after a crash, in a few words."""
    records: int
    """Of its input; slow engines get fewer, of as many days and as much state for each card."""
    command: Command
    missing: Callable[[str], str | None] = lambda _bench_python: None
    """Why it cannot run here, given the benchmark's interpreter; None when it can."""
    prepare: Callable[[Bench, str, int], Prepared] = prepare_one_hop
    """Given the run's name and a number of records."""


def process(module: str, *arguments: str, own_environment: bool = False) -> Command:
    """The command of a module in ``tests/benchmarks``; in the project's environment, or in the benchmark's."""

    def command(bench: Bench, task: Arguments) -> list[str]:
        python = bench.bench_python if own_environment else bench.project_python
        return [
            *(python, "-m", f"tests.benchmarks.{module}"),
            *("--bootstrap-servers", task.bootstrap_servers, "--input", task.input, "--output", task.output),
            *("--group", task.group, "--workdir", str(task.workdir), "--scratch", str(task.scratch)),
            *arguments,
        ]

    return command


def needs(package: str) -> Callable[[str], str | None]:
    """Whether ``package`` can be imported in the benchmark's environment."""

    def missing(bench_python: str) -> str | None:
        if not Path(bench_python).exists():
            return f"there is no {bench_python}; `make bench` installs it"
        found = subprocess.run([bench_python, "-c", f"import {package}"], capture_output=True, text=True, check=False)
        if found.returncode == 0:
            return None
        return f"{package} cannot be imported in its environment: {found.stderr.strip().splitlines()[-1]}"

    return missing


ENGINES: Final = (
    Engine("bare", "at-least-once, state lost on restart", LARGE, process("peers.bare")),
    Engine(
        "bytewax",
        "at-least-once, state in SQLite each 10 s",
        LARGE,
        process("peers.bytewax_flow", own_environment=True),
        needs("bytewax"),
    ),
    Engine(
        "quix",
        "at-least-once, state in RocksDB and changelog",
        MIDDLE,
        process("peers.quix", own_environment=True),
        needs("quixstreams"),
    ),
    Engine(
        "quix-batched",
        "at-least-once, state in RocksDB and changelog",
        MIDDLE,
        process("peers.quix_batched", own_environment=True),
        needs("quixstreams"),
    ),
    Engine(
        "faust",
        "at-least-once, state in changelog",
        SMALL,
        process("peers.faust_idiomatic", own_environment=True),
        needs("faust"),
    ),
    Engine("kafka-streams", "at-least-once, state in RocksDB and changelog", LARGE, process("peers.kafka_streams")),
    Engine("ours-a", "at-least-once, state in snapshots and the log", LARGE, process("ours.one_hop")),
    Engine(
        "ours-b",
        "job (b): exactly-once, state in snapshots and log",
        LARGE,
        process("ours.pipeline"),
        prepare=prepare_pipeline,
    ),
    Engine(
        "ours-b-2",
        "the same with two workers",
        LARGE,
        process("ours.pipeline", "--workers", "2"),
        prepare=prepare_pipeline,
    ),
)
