"""The engines that ``throughput`` compares: how each is started, on how many records, and what it promises."""

import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from tests.benchmarks.job.check import verified

LARGE: Final = 400_000
MIDDLE: Final = 200_000
SMALL: Final = 20_000


@dataclass(frozen=True)
class Task:
    """One run of an engine: what it reads and writes, and with which interpreters."""

    bootstrap_servers: str
    input: str
    output: str
    group: str
    """Unique to the run; the engine begins at the earliest offset."""
    workdir: Path
    """Holds ``model.txt``, ``river.json`` and ``job.json``."""
    scratch: Path
    """Empty, for the engine's own state."""
    project_python: str
    bench_python: str
    """Of the virtual environment that holds the other engines (``requirements-bench.lock``)."""


@dataclass(frozen=True)
class Engine:
    """An engine: ``command`` gives the process that works until SIGTERM, None where there is none yet."""

    name: str
    delivery: str
    """What holds after a crash, in a few words."""
    records: int
    """Of its input; slow engines get fewer, of as many days and as much state for each card."""
    command: Callable[[Task], list[str]] | None
    missing: Callable[[str], str | None] = lambda _bench_python: None
    """Why it cannot run here, given the benchmark's interpreter; None when it can."""
    verified: Callable[[str, str, pd.DataFrame], npt.NDArray[np.int64]] = verified
    """Given bootstrap servers, output topic and reference: when each decision was appended, or ``WrongAnswers``."""


def peer(module: str, *, own_environment: bool) -> Callable[[Task], list[str]]:
    """The command of a peer in ``tests/benchmarks/peers``; in the project's environment, or in the benchmark's."""

    def command(task: Task) -> list[str]:
        python = task.bench_python if own_environment else task.project_python
        return [
            *(python, "-m", f"tests.benchmarks.peers.{module}"),
            *("--bootstrap-servers", task.bootstrap_servers, "--input", task.input, "--output", task.output),
            *("--group", task.group, "--workdir", str(task.workdir), "--scratch", str(task.scratch)),
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
    Engine("bare", "at-least-once, state lost on restart", LARGE, peer("bare", own_environment=False)),
    Engine(
        "bytewax",
        "at-least-once, state in SQLite each 10 s",
        LARGE,
        peer("bytewax_flow", own_environment=True),
        needs("bytewax"),
    ),
    Engine(
        "quix",
        "at-least-once, state in RocksDB and changelog",
        MIDDLE,
        peer("quix", own_environment=True),
        needs("quixstreams"),
    ),
    Engine(
        "quix-batched",
        "at-least-once, state in RocksDB and changelog",
        MIDDLE,
        peer("quix_batched", own_environment=True),
        needs("quixstreams"),
    ),
    Engine(
        "faust",
        "at-least-once, state in changelog",
        SMALL,
        peer("faust_idiomatic", own_environment=True),
        needs("faust"),
    ),
    Engine(
        "kafka-streams",
        "at-least-once, state in RocksDB and changelog",
        LARGE,
        peer("kafka_streams", own_environment=False),
    ),
    Engine("ours-a", "at-least-once", LARGE, None),
    Engine("ours-b", "exactly-once, job (b)", LARGE, None),
)
