"""End-to-end latency at fixed rates: from when a transaction was due to when a consumer had its decision or alert.

Part ``latency`` of ``make bench``. One embedded broker, one worker with all agents, an open-loop generator
(`tests.benchmarks.open_loop`) and a reader with ``read_committed`` share the machine.
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import psutil

from pipeline.broker.node import EmbeddedBroker, embedded_broker
from pipeline.demo.processes import WorkerProcess, check_alive, running_workers
from pipeline.kafka.cluster.admin import end_offsets, ensure_topics
from pipeline.kafka.readers.topic_reader import read_batches
from pipeline.settings import Settings
from schemas.topics import ACCEPTED_LABELS, DECISION_FEATURES, PROFILED, TRANSACTIONS, Topic
from tests.benchmarks.alone import scratch
from tests.benchmarks.arrivals import Stamps
from tests.benchmarks.delays import summarise
from tests.benchmarks.forests import LEAVES, TREES, champion
from tests.benchmarks.load import LOOK_S, STALLED_AFTER_S, Load, Stalled, loaded
from tests.benchmarks.traffic import Item, Traffic, a_while_ago, items
from tests.helpers.champion import publish_champion
from tests.helpers.offsets import group_lag

Mode = Literal["exactly_once", "at_least_once"]
MODES: tuple[Mode, ...] = get_args(Mode)
RATES = (500, 2_000, 5_000, 10_000)
BROKER_WARM_UP_RATE = 5_000
_DAYS_AGO = 90
"""Event times lie in the past, within the horizon of labels."""


@dataclass(frozen=True, slots=True)
class Options:
    """What is measured."""

    modes: tuple[Mode, ...] = MODES
    rates: tuple[int, ...] = RATES
    seconds: float = 20.0
    warm_up_s: float = 5.0
    """Before each rate is measured."""
    broker_warm_up_s: float = 60.0
    """Before the first rate of a mode: for about so long the JVM's optimising compiler takes up to a quarter of a core
    from what is measured, which it does not from a broker that has run for some time."""
    traffic: Traffic = field(default_factory=Traffic)
    trees: int = TREES
    leaves: int = LEAVES
    kafka_config: tuple[tuple[str, str], ...] = ()
    """Properties of all clients."""


QUICK = Options(
    modes=("exactly_once",),
    rates=(500,),
    seconds=3.0,
    warm_up_s=1.0,
    broker_warm_up_s=0.0,
    traffic=Traffic(cards=1_000, merchants=500, history_days=2),
)


def rows(options: Options, tell: Callable[[str], None]) -> list[dict[str, Any]]:
    """One row for each mode and rate."""
    starts = a_while_ago(_DAYS_AGO)
    counts = [round(BROKER_WARM_UP_RATE * options.broker_warm_up_s)]
    counts += [round(rate * (options.warm_up_s + options.seconds)) for rate in options.rates]
    tell("preparing transactions")
    history = list(items(options.traffic.history(starts), options.traffic.seed))
    measured = options.traffic.measured(starts, sum(counts))
    parts, first = [], 0
    for count in counts:
        part = list(items(measured.iloc[first : first + count], options.traffic.seed, first_number=first))
        parts.append((part, measured["transaction_id"].iloc[first : first + count].tolist()))
        first += count
    found = []
    with scratch("latency-") as directory, embedded_broker(directory / "kafka", long_lived=True) as broker:
        for mode in options.modes:
            with _pipeline(broker, directory, mode, options) as run:
                tell(f"{mode}: {len(history):,} records of history")
                run.fill(history)
                if parts[0][0]:
                    tell(f"{mode}: {len(parts[0][0]):,} records to warm the broker")
                    run.warm_broker(parts[0][0])
                for rate, (part, identities) in zip(options.rates, parts[1:], strict=True):
                    found.append(run.at(rate, part, identities))
                    tell(describe_short(found[-1]))
    return found


def measure(options: Options, tell: Callable[[str], None]) -> dict[str, Any]:
    """What goes into ``build/bench.json``."""
    settings = asdict(options)
    del settings["modes"], settings["rates"]
    return {"settings": settings, "rows": rows(options, tell)}


@contextmanager
def _pipeline(broker: EmbeddedBroker, directory: Path, mode: Mode, options: Options) -> Iterator["_Run"]:
    """What is measured: its topics, its processes and a reader of its answers. Another program would be another one."""
    settings = Settings(
        kafka_bootstrap_servers=broker.bootstrap_servers,
        topic_prefix=f"{mode.replace('_', '-')}-",
        data_dir=directory / mode,
        delivery=mode,
        metrics_port=0,
        kafka_config=dict(options.kafka_config),
    )
    ensure_topics(broker.bootstrap_servers, settings)
    models = champion(options.trees, options.leaves)
    publish_champion(broker.bootstrap_servers, settings, models.lightgbm, models.policy)
    with running_workers(settings, 1, directory / "logs" / mode) as workers:

        def check() -> None:
            check_alive(workers)
            broker.check()

        with loaded(settings, directory / "generator", check) as load:
            yield _Run(broker, settings, mode, workers, load, options)


class _Run:
    """One mode's topics, worker and load."""

    def __init__(
        self,
        broker: EmbeddedBroker,
        settings: Settings,
        mode: Mode,
        workers: Sequence[WorkerProcess],
        load: Load,
        options: Options,
    ) -> None:
        self._broker, self._settings, self._mode, self._workers = broker, settings, mode, workers
        self._load, self._options = load, options
        self._servers = broker.bootstrap_servers

    def fill(self, history: Sequence[Item]) -> None:
        """Let the history be decided, as fast as it goes, and the feedback agent catch up."""
        self._load.fill(history)
        self._await_feedback()

    def warm_broker(self, part: Sequence[Item]) -> None:
        """Let the pipeline run at a rate, and measure nothing."""
        self._load.run(part, BROKER_WARM_UP_RATE)
        self._await_feedback()

    def at(self, rate: int, part: Sequence[Item], identities: Sequence[str]) -> dict[str, Any]:
        """Measure one rate."""
        options, load = self._options, self._load
        before = {topic: self._ends(topic) for topic in (TRANSACTIONS, PROFILED)}
        offset_ns = time.time_ns() - time.monotonic_ns()
        with load.sending(part, rate) as (generator, started_ns):
            measured_from_ns = started_ns + round(1e9 * options.warm_up_s)
            load.sleep_until(measured_from_ns)
            used_before = self._cpu_s(generator)
            load.sleep_until(measured_from_ns + round(1e9 * options.seconds))
            used = {name: s - used_before[name] for name, s in self._cpu_s(generator).items()}
        drained = load.drained(len(identities))
        sent = load.sent()
        numbers = {identity: number for number, identity in enumerate(identities)}
        measured = sent.scheduled_ns >= measured_from_ns
        result = summarise(
            sent,
            measured,
            *load.arrivals.take(),
            numbers,
            self._stamps(TRANSACTIONS, before[TRANSACTIONS]),
            self._stamps(PROFILED, before[PROFILED]),
            offset_ns,
            rate,
        )
        transactions = max(1, int(measured.sum()))
        result["cpu_us_a_transaction"] = {name: round(1e6 * s / transactions, 1) for name, s in used.items()}
        result["cpu_share"] = {name: round(s / options.seconds, 3) for name, s in used.items()}
        # A step of the wall clock during the run would show in the stages alone.
        result["clock_drift_ms"] = round((time.time_ns() - time.monotonic_ns() - offset_ns) / 1e6, 3)
        result["drained"] = drained
        self._await_feedback()
        return {"mode": self._mode, "rate": rate, "seconds": options.seconds, **result}

    def _await_feedback(self) -> None:
        settings = self._settings
        topics = [settings.topic(topic.name) for topic in (DECISION_FEATURES, ACCEPTED_LABELS)]
        # Behind a partition's last record stand the marker of its transaction and, as two producers take turns, that of
        # the one before.
        markers, before, moved_s = 2 * len(topics) * settings.card_partitions, -1, time.monotonic()
        while (lag := sum(group_lag(self._servers, settings.topic("feedback"), topics, settings=settings).values())) > (
            markers
        ):
            check_alive(self._workers)
            if lag != before:
                before, moved_s = lag, time.monotonic()
            elif time.monotonic() - moved_s > STALLED_AFTER_S:
                raise Stalled(f"the feedback agent stands {lag} records behind; read {self._workers[0].log}")
            time.sleep(10 * LOOK_S)

    def _ends(self, topic: Topic) -> dict[int, int]:
        name = self._settings.topic(topic.name)
        found = end_offsets(self._servers, [name], settings=self._settings)
        return {number: end for (_, number), end in found.items()}

    def _stamps(self, topic: Topic, start: dict[int, int]) -> Stamps:
        places: dict[int, tuple[list[int], list[int]]] = {}
        for records in read_batches(
            self._servers, self._settings.topic(topic.name), settings=self._settings, start=start
        ):
            for record in records:
                offsets, stamps_ms = places.setdefault(record.partition, ([], []))
                offsets.append(record.offset)
                stamps_ms.append(record.timestamp_ms)
        return Stamps({number: (np.array(at), np.array(stamps)) for number, (at, stamps) in places.items()})

    def _cpu_s(self, generator: int) -> dict[str, float]:
        processes = {
            "worker": self._workers[0].process.pid,
            "broker": self._broker.pid,
            "generator": generator,
            "reader": os.getpid(),
        }
        used = {}
        for name, pid in processes.items():
            times = psutil.Process(pid).cpu_times()
            used[name] = float(times.user + times.system)
        return used


def describe_short(row: dict[str, Any]) -> str:
    """A run in one line."""
    if not row["keeps_up"]:
        return (
            f"{row['mode']:13} {row['rate']:6,}/s: does not keep up ({row['behind_at_end']:,} behind at the end, "
            f"{row['answered']:.1%} answered)"
        )
    return f"{row['mode']:13} {row['rate']:6,}/s: {_numbers(row['decisions_ms'])} ms"


def _numbers(quantiles: dict[str, float] | None) -> str:
    if quantiles is None:
        return "  too few"
    return "".join(f" {value:8.1f}" for value in quantiles.values())
