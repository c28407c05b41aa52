"""One broker, and engines that are run on it one after the other, watched from outside.

What an engine did is read off its output topic, whose records the broker stamps, and its processes' clocks.
"""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import psutil
from confluent_kafka import Consumer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from pipeline.kafka.cluster.retries import retried
from tests.benchmarks.job.check import WrongAnswers
from tests.benchmarks.job.definition import PARTITIONS
from tests.benchmarks.measured import Measurement, Sample, measurement
from tests.benchmarks.peers.arguments import Arguments
from tests.helpers.waiting import retried as repeated

ROOT: Final = Path(__file__).resolve().parents[2]
SAMPLE_EVERY_S: Final = 0.2
QUIET_S: Final = 5.0
"""An engine is through when its output has enough records and has not grown for so long: transactions add markers."""
STALLED_S: Final = 120.0
STOP_S: Final = 30.0
QUOTED_BYTES: Final = 2_000
CLIENT: Final = {"log_level": 2}
"""Of the runner's own clients: what goes wrong is raised, and a broker that stops is no news."""


class EngineFailed(RuntimeError):
    """An engine ended or stood still before it was through."""


@dataclass(frozen=True)
class Prepared:
    """What lies ready for a run, and how its answers are judged."""

    input: str
    """Topic."""
    decisions: int
    """That the engine must write."""
    verified: Callable[[str], npt.NDArray[np.int64]]
    """Given the output topic: when each decision was appended (ms, in order), all being right; else ``WrongAnswers``"""
    partitions: int = PARTITIONS
    """Of the output topic."""


@dataclass
class Bench:
    """A running broker, and the job's files."""

    bootstrap: str
    broker_pid: int
    directory: Path
    project_python: str
    bench_python: str
    """Interpreter of the virtual environment that holds the other engines (``requirements-bench.lock``)."""
    retry_s: float = 0.0
    """Time after the last decision within which answers may still become right: labels may be on their way."""
    kept: dict[str, Prepared] = field(default_factory=dict)
    """Inputs that serve several runs, by topic."""
    runs: int = 0

    def __post_init__(self) -> None:
        self.admin = AdminClient({**CLIENT, "bootstrap.servers": self.bootstrap})
        self.workdir = self.directory / "job"

    def create(self, topic: str, config: dict[str, str], partitions: int = PARTITIONS) -> None:
        """Create ``topic``."""
        new = NewTopic(topic, num_partitions=partitions, replication_factor=1, config=config)
        for future in self.admin.create_topics([new]).values():
            future.result(30)

    def clear(self) -> None:
        """Delete all topics but kept inputs and the broker's own: what a run left behind."""
        found = self.admin.list_topics(timeout=30).topics
        gone = [name for name in found if name not in self.kept and name[:2] != "__"]
        for future in self.admin.delete_topics(gone).values() if gone else ():
            future.result(30)

    def run(self, name: str, command: "Command", prepare: Callable[["Bench", str], Prepared]) -> Measurement:
        """Run an engine once; ``prepare`` gets the run's own name. Raises ``EngineFailed`` and ``WrongAnswers``."""
        self.runs += 1
        run = f"run{self.runs:03d}-{name}"
        try:
            return measurement(*self.answers(run, command, prepare(self, run)))
        finally:
            self.clear()

    def answers(self, run: str, command: "Command", prepared: Prepared) -> tuple[npt.NDArray[np.int64], list[Sample]]:
        """Times at which each decision was appended (ms), all being right, and what was sampled meanwhile."""
        output, scratch, log = f"{run}-decisions", self.directory / run, self.directory / f"{run}.log"
        scratch.mkdir()
        try:
            # First, because whoever finds the topic takes it as it is: its records must bear the broker's time.
            self.create(output, {"message.timestamp.type": "LogAppendTime"}, prepared.partitions)
            arguments = Arguments(self.bootstrap, prepared.input, output, run, self.workdir, scratch)
            with running_process(command(self, arguments), log) as process:
                samples = self.watch(process, output, prepared, log)
                return repeated(lambda: prepared.verified(output), WrongAnswers, within_s=self.retry_s), samples
        finally:
            shutil.rmtree(scratch)

    def watch(self, process: psutil.Popen, output: str, prepared: Prepared, log: Path) -> list[Sample]:
        """Sample until all decisions are there. Raises ``EngineFailed``."""
        broker = psutil.Process(self.broker_pid)
        reader = Consumer({**CLIENT, "bootstrap.servers": self.bootstrap, "group.id": "watch"})
        partitions = [TopicPartition(output, number) for number in range(prepared.partitions)]
        samples: list[Sample] = []
        seen, grew_s = 0, time.monotonic()
        while seen < prepared.decisions or time.monotonic() - grew_s < QUIET_S:
            time.sleep(SAMPLE_EVERY_S)
            if process.poll() is not None:
                raise EngineFailed(f"it ended with status {process.returncode}: {end_of(log)}")
            if time.monotonic() - grew_s > STALLED_S:
                raise EngineFailed(f"it stood still at {seen:,} of {prepared.decisions:,} decisions: {end_of(log)}")
            samples.append(_sample(process, broker))
            now = sum(
                retried(partial(reader.get_watermark_offsets, partition, timeout=30))[1] for partition in partitions
            )
            if now != seen:
                seen, grew_s = now, time.monotonic()
        reader.close()
        return samples


Command = Callable[[Bench, Arguments], list[str]]
"""The command line of an engine, which begins at the earliest offset and works until SIGTERM."""


@contextmanager
def running_process(command: list[str], log: Path, variables: Mapping[str, str] = {}) -> Iterator[psutil.Popen]:
    """A running command in a process group of its own, which is ended on the way out.

    ``variables`` go into its environment.
    """
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", **variables}
    with log.open("wb") as reported:
        process = psutil.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=reported,
            stderr=reported,
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
    for item in (process, *process.children(recursive=True)):
        try:
            times, memory = item.cpu_times(), item.memory_info()
        except psutil.NoSuchProcess:  # a helper process that has ended since
            continue
        cpu_s, rss_bytes = cpu_s + times.user + times.system, rss_bytes + memory.rss
    used = broker.cpu_times()
    return Sample(1_000 * time.time(), cpu_s, used.user + used.system, rss_bytes)


def end_of(log: Path) -> str:
    """The last lines of a log."""
    return log.read_bytes()[-QUOTED_BYTES:].decode(errors="replace").strip() or "it said nothing"
