"""Recovery after SIGKILL: the longest time without a decision on any partition, at a steady rate.

Part ``recovery`` of ``make bench``. Two ways: the same instance is started again at once, as a supervisor does it; and
another worker, which runs already, takes over. A gap counts from the last decision of a partition before the kill to
the first one behind it, so that it holds everything: the group's session time-out, the restore, the backlog.
"""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

from pipeline.broker.node import embedded_broker
from pipeline.demo.processes import WorkerProcess, check_alive, start_command, stop_workers
from pipeline.kafka.cluster.admin import ensure_topics
from pipeline.settings import Settings
from tests.benchmarks.alone import scratch
from tests.benchmarks.arrivals import Arrivals
from tests.benchmarks.forests import champion
from tests.benchmarks.load import LOOK_S, STALLED_AFTER_S, Stalled
from tests.benchmarks.open_loop import KafkaSink, running_generator
from tests.benchmarks.traffic import Item, Traffic, a_while_ago, items
from tests.helpers.champion import publish_champion

_DAYS_AGO: Final = 90


@dataclass(frozen=True, slots=True)
class Options:
    """What is measured."""

    kills: int = 5
    """Of each way."""
    rate: int = 500
    """Transactions a second."""
    calm_s: float = 5.0
    """Calm between a recovery and the next kill."""
    most_s: int = 600
    """Seconds for which transactions are prepared."""
    traffic: Traffic = field(default_factory=lambda: Traffic(cards=2_000, merchants=1_000, history_days=5))


QUICK: Final = Options(kills=1, calm_s=1.0, most_s=120)


class Arrival(NamedTuple):
    """A decision that was read."""

    at_s: float
    """When, on the monotonic clock."""
    partitions: tuple[tuple[str, int], ...]
    """That of the card, and that of the merchant."""


def longest_gap_s(arrivals: Sequence[Arrival], killed_s: float) -> float:
    """Return the longest time without a decision on any partition from just before ``killed_s`` on.

    >>> at = [(1.0, "a"), (2.0, "b"), (2.5, "a"), (7.0, "b"), (8.0, "a"), (8.1, "b")]
    >>> longest_gap_s([Arrival(s, ((name, 0),)) for s, name in at], 3.0)
    5.5
    """
    last: dict[tuple[str, int], float] = {}
    longest_s = 0.0
    for arrival in arrivals:
        for partition in arrival.partitions:
            if partition in last and arrival.at_s > killed_s:
                longest_s = max(longest_s, arrival.at_s - last[partition])
            last[partition] = arrival.at_s
    return longest_s


class _Fleet:
    """Workers by instance."""

    def __init__(self, settings: Settings, log_dir: Path) -> None:
        self._settings, self._log_dir = settings, log_dir
        self.workers: dict[str, WorkerProcess] = {}

    def start(self, instance: str) -> None:
        """Start a worker; its log replaces the one before."""
        own = self._settings.model_copy(update={"instance": instance, "metrics_port": 0})
        self.workers[instance] = start_command(own, self._log_dir, "worker")

    def kill(self, instance: str) -> float:
        """Kill a worker; returns when, on the monotonic clock."""
        worker = self.workers.pop(instance)
        worker.process.kill()
        killed_s = time.monotonic()
        worker.process.wait()
        if worker.process.stdin is not None:
            worker.process.stdin.close()
        return killed_s

    def joined(self, instance: str) -> bool:
        """Return whether a worker has restored a partition of each agent that a decision needs."""
        text = self.workers[instance].log.read_text(errors="replace")
        return all(f"{agent}: partition" in text for agent in ("card", "score"))


def measure(options: Options, tell: Callable[[str], None]) -> dict[str, Any]:
    """Kill and wait; returns what goes into ``build/bench.json``."""
    starts = a_while_ago(_DAYS_AGO)
    history = list(items(options.traffic.history(starts), options.traffic.seed))
    part = list(items(options.traffic.measured(starts, options.rate * options.most_s), options.traffic.seed))
    with scratch("recovery-") as directory, embedded_broker(directory / "kafka", long_lived=True) as broker:
        settings = Settings(
            kafka_bootstrap_servers=broker.bootstrap_servers, data_dir=directory / "data", metrics_port=0
        )
        ensure_topics(broker.bootstrap_servers, settings)
        models = champion()
        publish_champion(broker.bootstrap_servers, settings, models.lightgbm, models.policy)
        sink = KafkaSink(broker.bootstrap_servers, settings)
        for item in history:
            sink.produce(item)
            sink.poll()
        sink.flush()
        with _running(settings, directory, part, options) as run:
            rows = [
                _row("restart", [run.restart() for _ in range(options.kills)]),
                _row("takeover", [run.takeover() for _ in range(options.kills)]),
            ]
    for row in rows:
        tell(f"{row['how']}: p50 {row['p50_s']:.1f} s, longest {row['longest_s']:.1f} s")
    return {"settings": {"rate": options.rate}, "rows": rows}


@contextmanager
def _running(settings: Settings, directory: Path, part: Sequence[Item], options: Options) -> Iterator["_Run"]:
    fleet, reader = _Fleet(settings, directory / "logs"), Arrivals(settings.kafka_bootstrap_servers or "", settings)
    reader.start()
    try:
        fleet.start("worker-1")
        with running_generator(settings, directory / "generator", part, options.rate):
            run = _Run(fleet, reader, options.calm_s)
            run.await_work(time.time())
            yield run
    finally:
        reader.end()
        stop_workers(list(fleet.workers.values()))


class _Run:
    """One kill after the other."""

    def __init__(self, fleet: _Fleet, reader: Arrivals, calm_s: float) -> None:
        self._fleet, self._reader, self._calm_s = fleet, reader, calm_s
        self._arrivals: list[Arrival] = []
        self._ingested_s: dict[tuple[str, int], float] = {}
        """When the card agent read the newest decided transaction of each partition, seconds since 1970."""

    def restart(self) -> float:
        """Kill the only worker and start it again; returns the longest gap in seconds."""
        wall_s = time.time()
        killed_s = self._fleet.kill("worker-1")
        self._fleet.start("worker-1")
        return self._gap_s(killed_s, wall_s)

    def takeover(self) -> float:
        """Kill one of two workers; returns the longest gap in seconds."""
        if "worker-2" not in self._fleet.workers:
            self._fleet.start("worker-2")
            self._await(lambda: self._fleet.joined("worker-2"), "worker-2 gets no partitions")
            self.await_work(time.time())
        wall_s = time.time()
        killed_s = self._fleet.kill("worker-2")
        return self._gap_s(killed_s, wall_s)

    def await_work(self, wall_s: float) -> None:
        """Wait until every partition has decided what came in after ``wall_s``, and for some calm behind that."""
        self._await(lambda: self._decided(wall_s), "not every partition decides")
        calm_s = time.time() + self._calm_s
        self._await(lambda: self._decided(calm_s), "not every partition decides")

    def _gap_s(self, killed_s: float, wall_s: float) -> float:
        self.await_work(wall_s)
        return longest_gap_s(self._arrivals, killed_s)

    def _decided(self, wall_s: float) -> bool:
        read, _ = self._reader.take()
        columns = (read.received_ns, read.partition, read.log_partition, read.ingested_us)
        for received_ns, card, merchant, ingested_us in zip(*(item.tolist() for item in columns), strict=True):
            arrival = Arrival(received_ns / 1e9, (("card", card), ("merchant", merchant)))
            self._arrivals.append(arrival)
            for at in arrival.partitions:
                self._ingested_s[at] = max(ingested_us / 1e6, self._ingested_s.get(at, 0.0))
        return len(self._ingested_s) > 1 and min(self._ingested_s.values()) > wall_s

    def _await(self, holds: Callable[[], bool], otherwise: str) -> None:
        deadline_s = time.monotonic() + STALLED_AFTER_S
        while not holds():
            check_alive(list(self._fleet.workers.values()))
            self._reader.check()
            if time.monotonic() > deadline_s:
                raise Stalled(f"{otherwise} for {STALLED_AFTER_S:.0f} s")
            time.sleep(LOOK_S)


def _row(how: str, gaps_s: Sequence[float]) -> dict[str, Any]:
    return {
        "how": how,
        "gaps_s": [round(gap_s, 3) for gap_s in gaps_s],
        "p50_s": round(statistics.median(gaps_s), 3),
        "longest_s": round(max(gaps_s), 3),
    }
