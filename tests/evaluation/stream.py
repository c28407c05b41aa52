"""The run itself: workers as processes, the file replayed at them, and the moment at which everything was decided."""

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
import psutil
from confluent_kafka import ConsumerGroupState, KafkaError, KafkaException
from confluent_kafka.admin import ConsumerGroupDescription

from pipeline.broker import ProvidedBroker
from pipeline.demo.processes import WorkerProcess, check_alive, running_workers
from pipeline.kafka.cluster.admin import GroupLag, end_offsets, ensure_topics
from pipeline.kafka.cluster.clients import admin_client
from pipeline.kafka.readers.topic_reader import read_batches
from pipeline.replay.replayer import Replay, ReplayOptions, ReplayProgress
from pipeline.settings import Settings
from schemas.topics import ACCEPTED_LABELS, DECISION_FEATURES, EXAMPLES, LABELS, PROFILED, TRANSACTIONS
from tests.helpers.offsets import group_lag

LOOK_S = 0.05
STALLED_AFTER_S = 120.0
TAIL_RECORDS = 1_000
STATEMENT_INTERVAL_S = 5.0

NOT_YET = frozenset(
    {
        KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
        KafkaError.COORDINATOR_NOT_AVAILABLE,
        KafkaError.NOT_COORDINATOR,
        KafkaError.GROUP_ID_NOT_FOUND,
    }
)
"""What a broker answers about a group while its coordinator is still coming up."""


class Stalled(RuntimeError):
    """The agents have not read everything, and nothing moves any more."""


@dataclass(slots=True)
class StreamReport:
    """What a run took. Times are of the wall clock, from the first transaction handed to the Kafka client."""

    transactions: int = 0
    labels: int = 0
    sent_s: float = 0.0
    """Until the last transaction was handed over."""
    decided_s: float = 0.0
    """Until the last decision was committed."""
    cpu_s: dict[str, float] = field(default_factory=dict)
    """Processor time by process until then; the replay's own is this process's."""
    feedback_lag: int = 0
    """Records that the feedback agent had not read when the last decision was committed: labels, and blocks."""


class CommitWatch:
    """Samples, on a thread, up to where the score agents have committed ``profiled``."""

    def __init__(self, bootstrap: str, settings: Settings) -> None:
        profiled = settings.topic(PROFILED.name)
        self._lag = GroupLag(bootstrap, settings, profiled, settings.topic("score"))
        self._samples: list[tuple[float, int]] = []
        self._ended = threading.Event()
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="commit-watch", daemon=True)

    def __enter__(self) -> "CommitWatch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def reached(self, committed: int) -> float | None:
        """When the sum of the commits was first seen at ``committed`` or above (monotonic clock), or None."""
        if self._error is not None:
            raise self._error
        return next((at_s for at_s, total in self._samples if total >= committed), None)

    @property
    def committed(self) -> int:
        """The latest sum of the commits."""
        return self._samples[-1][1] if self._samples else 0

    def _run(self) -> None:
        try:
            while not self._ended.wait(LOOK_S):
                _, committed = self._lag.measure()
                self._samples.append((time.monotonic(), committed))
        except Exception as error:
            # Whoever asks next is told.
            self._error = error


@contextmanager
def prepared(broker: ProvidedBroker, settings: Settings, workers: int, log_dir: Path) -> Iterator[list[WorkerProcess]]:
    """Topics and running workers, which wait for a first model."""
    servers = broker.bootstrap_servers
    ensure_topics(servers, settings)
    with running_workers(
        settings.model_copy(update={"kafka_bootstrap_servers": servers}), workers, log_dir
    ) as processes:
        yield processes


class Streaming:
    """Replays frames at workers and waits until every transaction is decided."""

    def __init__(
        self, broker: ProvidedBroker, settings: Settings, workers: Sequence[WorkerProcess], options: ReplayOptions
    ) -> None:
        self._broker, self._settings, self._workers, self._options = broker, settings, workers, options
        self._servers = broker.bootstrap_servers
        self._started_s = 0.0
        self._reported_s = time.monotonic()

    def await_joined(self) -> None:
        """Wait until every worker has joined the groups of the agents that a transaction passes.

        Agents join when they can score: interpreter, compiled kernels and model are loaded then.
        """
        client = admin_client(self._servers, settings=self._settings)
        groups = [self._settings.topic(agent) for agent in ("label", "card", "score", "feedback")]
        deadline_s = time.monotonic() + STALLED_AFTER_S
        while True:
            self._check()
            if all(self._has_joined(future) for future in client.describe_consumer_groups(groups).values()):
                return
            if time.monotonic() > deadline_s:
                raise Stalled(f"not all workers have joined {', '.join(groups)}; read the workers' logs")
            time.sleep(LOOK_S)

    def run(self, frames: Iterable[pd.DataFrame]) -> StreamReport:
        """Send ``frames``; raises ``Stalled``, ``WorkerDied`` and what the replay raises."""
        settings, report = self._settings, StreamReport()
        labels, accepted, transactions = (
            GroupLag(self._servers, settings, settings.topic(topic.name), settings.topic(agent))
            for topic, agent in ((LABELS, "label"), (ACCEPTED_LABELS, "card"), (TRANSACTIONS, "card"))
        )
        cpu_s = self._cpu_s()
        with CommitWatch(self._servers, settings) as watch:
            progress = Replay(settings, self._servers, self._timed(frames), self._options, report=self._report).run()
            report.sent_s = time.monotonic() - self._started_s
            self._await(watch, lambda: labels.measure()[0] == transactions.measure()[0] == 0)
            # Behind the last accepted label of a partition stands the marker of its transaction.
            self._await(watch, lambda: accepted.measure()[0] <= settings.card_partitions)
            # All that the card agents make of the input is in `profiled` now.
            last = self._committed_when_done()
            self._await(watch, lambda: watch.reached(last) is not None)
            report.decided_s = (watch.reached(last) or 0.0) - self._started_s
        report.cpu_s = {name: round(used - cpu_s.get(name, 0.0), 2) for name, used in self._cpu_s().items()}
        report.transactions, report.labels = progress.transactions, progress.labels
        topics = [settings.topic(topic.name) for topic in (DECISION_FEATURES, ACCEPTED_LABELS)]
        report.feedback_lag = sum(
            group_lag(self._servers, settings.topic("feedback"), topics, settings=settings).values()
        )
        return report

    def await_learned(self) -> None:
        """Wait until the feedback agent has read everything that there is; markers of transactions stay behind it."""
        settings = self._settings
        topics = [settings.topic(topic.name) for topic in (DECISION_FEATURES, ACCEPTED_LABELS)]
        examples = settings.topic(EXAMPLES.name)
        before, moved_s = -1, time.monotonic()
        while True:
            self._check()
            lag = sum(group_lag(self._servers, settings.topic("feedback"), topics, settings=settings).values())
            ends = sum(end_offsets(self._servers, [examples], settings=settings).values())
            if lag <= len(topics) * settings.card_partitions:
                return
            if ends + lag != before:
                before, moved_s = ends + lag, time.monotonic()
            elif time.monotonic() - moved_s > STALLED_AFTER_S:
                raise Stalled(f"the feedback agent is {lag} records behind and stands still; read the workers' logs")
            time.sleep(10 * LOOK_S)

    def _has_joined(self, description: "Future[ConsumerGroupDescription]") -> bool:
        try:
            group = description.result()
        except KafkaException as error:
            if error.args[0].code() not in NOT_YET:
                raise
            return False
        return group.state == ConsumerGroupState.STABLE and len(group.members) == len(self._workers)

    def _timed(self, frames: Iterable[pd.DataFrame]) -> Iterator[pd.DataFrame]:
        for frame in frames:
            self._started_s = self._started_s or time.monotonic()
            yield frame

    def _report(self, progress: ReplayProgress) -> None:
        self._check()
        now_s = time.monotonic()
        if now_s - self._reported_s >= STATEMENT_INTERVAL_S and progress.simulated_time is not None:
            self._reported_s = now_s
            rate = progress.transactions / max(now_s - self._started_s, 1e-9)
            print(
                f"  {progress.simulated_time:%Y-%m-%d}  {progress.transactions:,} transactions ({rate:,.0f}/s), "
                f"{progress.labels:,} labels",
                flush=True,
            )

    def _check(self) -> None:
        check_alive(self._workers)
        self._broker.check()

    def _await(self, watch: CommitWatch, done: Callable[[], bool]) -> None:
        committed, moved_s = -1, time.monotonic()
        while not done():
            self._check()
            if watch.committed != committed:
                committed, moved_s = watch.committed, time.monotonic()
            elif time.monotonic() - moved_s > STALLED_AFTER_S:
                raise Stalled(
                    f"the agents have committed nothing for {STALLED_AFTER_S:.0f} s and have not read everything; "
                    "read the workers' logs"
                )
            time.sleep(LOOK_S / 5)

    def _committed_when_done(self) -> int:
        """Sum of the offsets that follow the last record of each partition of ``profiled``, markers aside."""
        topic, total = self._settings.topic(PROFILED.name), 0
        ends = end_offsets(self._servers, [topic], settings=self._settings)
        for (_, number), end in ends.items():
            start, last = end, -1
            while start > 0 and last < 0:
                start = max(0, start - TAIL_RECORDS)
                for records in read_batches(
                    self._servers, topic, settings=self._settings, partitions=[number], start={number: start}
                ):
                    last = max(last, records[-1].offset)
            total += last + 1
        return total

    def _cpu_s(self) -> dict[str, float]:
        """Processor seconds of the workers, the embedded broker and this process so far."""
        used = {worker.name: _times(psutil.Process(worker.process.pid)) for worker in self._workers}
        own = psutil.Process()
        used["replay"] = _times(own)
        for child in own.children(recursive=True):
            if child.name() == "java":
                used["broker"] = _times(child)
        return used


def _times(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)
