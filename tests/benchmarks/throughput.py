"""Throughput of job (a), this pipeline's and other engines', on one machine and one broker, in one run.

Run ``make bench``, or ``python -m tests.benchmarks.throughput``. Engines take turns and each repeats; every decision of
every run is compared with the reference, and an engine that gave a wrong one is not listed. Rates come from the times
at which the broker appended decisions, not from what an engine says.
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pandas as pd
import psutil
from confluent_kafka import Consumer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from pipeline.broker import embedded_broker
from tests.benchmarks.engines import ENGINES, Engine, Task
from tests.benchmarks.job.check import WrongAnswers
from tests.benchmarks.job.definition import PARTITIONS
from tests.benchmarks.job.prepare import SEED, transactions, write_input, write_job
from tests.benchmarks.job.reference import decisions
from tests.benchmarks.machine import machine, record, versions
from tests.benchmarks.measured import WARM_UP, Measurement, Sample, Unmeasurable, measurement, ratios, summary, table

ROOT: Final = Path(__file__).resolve().parents[2]
SAMPLE_EVERY_S: Final = 0.2
QUIET_S: Final = 2.0
"""An engine is through when its output has enough records and has not grown for so long: transactions add markers."""
STALLED_S: Final = 120.0
STOP_S: Final = 30.0
BUSY: Final = 0.25
"""Load for each core above which the machine does other work too."""
QUOTED_BYTES: Final = 2_000
CLIENT: Final = {"log_level": 2}
"""Of the runner's own clients: what goes wrong is raised, and a broker that stops is no news."""


class EngineFailed(RuntimeError):
    """An engine ended or stood still before it was through."""


@dataclass(frozen=True)
class Prepared:
    """An input topic, and the right answers."""

    topic: str
    reference: pd.DataFrame


@dataclass
class Bench:
    """A running broker, the job's files, and the inputs made so far."""

    bootstrap: str
    broker_pid: int
    directory: Path
    project_python: str
    bench_python: str
    inputs: dict[int, Prepared] = field(default_factory=dict)
    runs: int = 0

    def __post_init__(self) -> None:
        self.admin = AdminClient({**CLIENT, "bootstrap.servers": self.bootstrap})
        self.workdir = self.directory / "job"

    def input(self, records: int) -> Prepared:
        """The topic of ``records`` transactions, made when it is first asked for."""
        if records not in self.inputs:
            topic = f"transactions-{records}"
            self.create(topic, {})
            frame = transactions(records)
            write_input(frame, self.bootstrap, topic)
            self.inputs[records] = Prepared(topic, decisions(frame, self.workdir))
        return self.inputs[records]

    def create(self, topic: str, config: dict[str, str]) -> None:
        """Create ``topic``."""
        new = NewTopic(topic, num_partitions=PARTITIONS, replication_factor=1, config=config)
        for future in self.admin.create_topics([new]).values():
            future.result(30)

    def clear(self, keep: set[str]) -> None:
        """Delete all topics but ``keep`` and the broker's own: what a run left behind."""
        gone = [name for name in self.admin.list_topics(timeout=30).topics if name not in keep and name[:2] != "__"]
        for future in self.admin.delete_topics(gone).values() if gone else ():
            future.result(30)

    def run(self, engine: Engine, records: int) -> Measurement:
        """Run ``engine`` once. Raises ``EngineFailed`` and ``WrongAnswers``."""
        assert engine.command is not None
        prepared = self.input(records)
        self.runs += 1
        name = f"run{self.runs:03d}-{engine.name}"
        output, scratch = f"{name}-decisions", self.directory / name
        scratch.mkdir()
        self.create(output, {"message.timestamp.type": "LogAppendTime"})
        task = Task(
            self.bootstrap,
            prepared.topic,
            output,
            name,
            self.workdir,
            scratch,
            self.project_python,
            self.bench_python,
        )
        try:
            with _process(engine.command(task), self.directory / f"{name}.log") as process:
                samples = self._watch(process, output, records, self.directory / f"{name}.log")
            appended_ms = engine.verified(self.bootstrap, output, prepared.reference)
        finally:
            self.clear({one.topic for one in self.inputs.values()})
            shutil.rmtree(scratch)
        return measurement(appended_ms, samples)

    def _watch(self, process: psutil.Popen, output: str, records: int, log: Path) -> list[Sample]:
        """Sample until all decisions are there."""
        broker = psutil.Process(self.broker_pid)
        reader = Consumer({**CLIENT, "bootstrap.servers": self.bootstrap, "group.id": "watch"})
        partitions = [TopicPartition(output, number) for number in range(PARTITIONS)]
        samples: list[Sample] = []
        seen, grew_s = 0, time.monotonic()
        while seen < records or time.monotonic() - grew_s < QUIET_S:
            time.sleep(SAMPLE_EVERY_S)
            if process.poll() is not None:
                raise EngineFailed(f"it ended with status {process.returncode}: {_end(log)}")
            if time.monotonic() - grew_s > STALLED_S:
                raise EngineFailed(f"it stood still at {seen:,} of {records:,} decisions: {_end(log)}")
            samples.append(_sample(process, broker))
            now = sum(reader.get_watermark_offsets(one, timeout=30)[1] for one in partitions)
            if now != seen:
                seen, grew_s = now, time.monotonic()
        reader.close()
        return samples


def run(
    bench: Bench, engines: Sequence[Engine], repeats: int, scale: float
) -> tuple[dict[str, list[Measurement]], dict[str, str]]:
    """Measure ``engines`` in turns; returns their runs, and the reasons why some have none."""
    left_out = {engine.name: reason for engine in engines if (reason := _missing(engine, bench.bench_python))}
    able = [engine for engine in engines if engine.name not in left_out]
    runs: dict[str, list[Measurement]] = {engine.name: [] for engine in able}
    for turn in range(-1 if repeats > 1 else 0, repeats):
        # Before the first turn the first engine runs once for nothing: the broker's code is not compiled yet.
        for engine in able if turn >= 0 else able[:1]:
            if engine.name in left_out:
                continue
            try:
                one = bench.run(engine, round(scale * engine.records))
            except (EngineFailed, Unmeasurable, WrongAnswers) as error:
                left_out[engine.name] = " ".join(str(error).split())
                runs.pop(engine.name)
                print(f"{engine.name}: {error}", file=sys.stderr, flush=True)
                continue
            if turn >= 0:
                runs[engine.name].append(one)
                print(f"{turn + 1}/{repeats} {engine.name:16}{one.rate_per_s:>10,.0f}/s", file=sys.stderr, flush=True)
    return {name: measured for name, measured in runs.items() if measured}, left_out


def bench_throughput(arguments: argparse.Namespace) -> dict[str, Any]:
    """Start a broker, measure, and return what goes into ``build/bench.json``."""
    directory: Path = arguments.directory
    if directory.exists():
        shutil.rmtree(directory)
    directory.mkdir(parents=True)
    write_job(directory / "job")
    chosen = [engine for engine in ENGINES if not arguments.engines or engine.name in arguments.engines]
    before = machine()
    if before["load_average_1min"] > BUSY * before["cores"]:
        print(f"Others use this machine (load {before['load_average_1min']:.1f}): rates will be low.", file=sys.stderr)
    with embedded_broker(directory / "kafka") as broker:
        bench = Bench(broker.bootstrap_servers, broker.pid, directory, sys.executable, arguments.bench_python)
        runs, left_out = run(bench, chosen, arguments.repeats, arguments.scale)
    shutil.rmtree(directory / "kafka")
    summaries = {name: summary(measured) for name, measured in runs.items()}
    return {
        "machine": before,
        "versions": {"project": versions(sys.executable), "peers": versions(arguments.bench_python)},
        "settings": {
            "repeats": arguments.repeats,
            "scale": arguments.scale,
            "warm_up": WARM_UP,
            "partitions": PARTITIONS,
            "seed": SEED,
        },
        "engines": summaries,
        "rates_per_s": {name: [one.rate_per_s for one in measured] for name, measured in runs.items()},
        "ratios": ratios(summaries),
        "deliveries": {engine.name: engine.delivery for engine in chosen},
        "left_out": left_out,
    }


@contextmanager
def _process(command: list[str], log: Path) -> Iterator[psutil.Popen]:
    """A running command in a process group of its own, which is ended on the way out."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    with log.open("wb") as said:
        process = psutil.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            if process.poll() is None:
                process.terminate()
            try:
                process.wait(STOP_S)
            except psutil.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def _sample(process: psutil.Popen, broker: psutil.Process) -> Sample:
    cpu_s, rss_bytes = 0.0, 0
    for one in (process, *process.children(recursive=True)):
        try:
            times, memory = one.cpu_times(), one.memory_info()
        except psutil.NoSuchProcess:  # a helper process that has ended since
            continue
        cpu_s, rss_bytes = cpu_s + times.user + times.system, rss_bytes + memory.rss
    used = broker.cpu_times()
    return Sample(1_000 * time.time(), cpu_s, used.user + used.system, rss_bytes)


def _missing(engine: Engine, bench_python: str) -> str | None:
    return "it has no command yet" if engine.command is None else engine.missing(bench_python)


def _end(log: Path) -> str:
    return log.read_bytes()[-QUOTED_BYTES:].decode(errors="replace").strip() or "it said nothing"


def main() -> None:
    """Measure, print the table, write the file; the status is 1 when an engine failed or gave wrong answers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--scale", type=float, default=1.0, help="factor on the engines' numbers of records")
    parser.add_argument("--engines", type=lambda text: text.split(","), help="names, with commas; all by default")
    parser.add_argument("--bench-python", default=str(ROOT / "build/bench-venv/bin/python"))
    parser.add_argument("--directory", type=Path, default=ROOT / "build/bench", help="emptied first")
    parser.add_argument("--output", type=Path, default=ROOT / "build/bench.json")
    arguments = parser.parse_args()
    unknown = set(arguments.engines or ()) - {engine.name for engine in ENGINES}
    if unknown:
        parser.error(f"no such engine: {', '.join(sorted(unknown))}; there are {', '.join(e.name for e in ENGINES)}")
    for number in (signal.SIGTERM, signal.SIGHUP):
        # As Ctrl-C does: an engine lies in a process group of its own and must not outlive the run.
        signal.signal(number, signal.default_int_handler)
    result = bench_throughput(arguments)
    record(arguments.output, "throughput", result)
    print(table(result["engines"], result["deliveries"], result["left_out"]))
    failed = [name for name in result["left_out"] if _missing_by_name(name, arguments.bench_python) is None]
    sys.exit(1 if failed else 0)


def _missing_by_name(name: str, bench_python: str) -> str | None:
    return _missing(next(engine for engine in ENGINES if engine.name == name), bench_python)


if __name__ == "__main__":
    main()
