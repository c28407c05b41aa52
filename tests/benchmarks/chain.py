"""Exactly-once end to end on one broker: the pipeline, the same two hops without kernels by client, and Kafka Streams.

Part ``chain`` of ``make bench``. Engines take turns, each alone on the machine, and the turns repeat: what the machine
does otherwise meets all of them, so that ratios to the floor mean something where milliseconds do not.
"""

import itertools
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final, Self

import pandas as pd
from msgspec import Meta

from pipeline.broker.node import EmbeddedBroker, embedded_broker
from pipeline.broker.process import BrokerError
from pipeline.demo.processes import WorkerDied, check_alive, running_workers, settings_environment
from pipeline.kafka.cluster.admin import ensure_topics
from pipeline.settings import Settings
from tests.benchmarks.alone import scratch
from tests.benchmarks.delays import answers
from tests.benchmarks.forests import LEAVES, TREES, champion
from tests.benchmarks.load import Load, Stalled, loaded
from tests.benchmarks.peers.kafka_streams.build import BuildError, command
from tests.benchmarks.report import FLOOR
from tests.benchmarks.running import EngineFailed, end_of, running_process
from tests.benchmarks.traffic import Item, Traffic, a_while_ago, items
from tests.helpers.champion import publish_champion

_DAYS_AGO: Final = 90
WARM_UP_RATE: Final = 2_000

FAULTS: Final = (BrokerError, BuildError, EngineFailed, Stalled, WorkerDied)
"""Errors of an engine, or of its needs; any other is the benchmark's own."""

Check = Callable[[], None]
Start = Callable[[Settings, Path], AbstractContextManager[Check]]
"""Runs an engine with the settings of a worker and a directory of its own; gives what raises once it has ended."""


@contextmanager
def _process(line: list[str], settings: Settings, directory: Path) -> Iterator[Check]:
    log = directory / "log"
    with running_process(line, log, settings_environment(settings)) as process:

        def check() -> None:
            if process.poll() is not None:
                raise EngineFailed(f"it ended with status {process.returncode}: {end_of(log)}")

        yield check


def _hops(writer: str) -> Start:
    """The chain without kernels."""
    return lambda settings, directory: _process(
        [sys.executable, "-m", "tests.benchmarks.two_hops", writer], settings, directory
    )


def _streams(commit_interval_ms: int, state: str) -> Start:
    """Kafka Streams' two hops."""

    def start(settings: Settings, directory: Path) -> AbstractContextManager[Check]:
        places = [settings.kafka_bootstrap_servers or "", settings.topic_prefix, str(directory / "state")]
        return _process(command([*places, str(commit_interval_ms), state], main="TwoHops"), settings, directory)

    return start


@contextmanager
def _worker(settings: Settings, directory: Path) -> Iterator[Check]:
    """The pipeline as it ships."""
    models = champion(TREES, LEAVES)
    publish_champion(settings.kafka_bootstrap_servers or "", settings, models.lightgbm, models.policy)
    with running_workers(settings, 1, directory) as workers:
        yield lambda: check_alive(workers)


@dataclass(frozen=True, slots=True)
class Engine:
    """One that takes part."""

    start: Start
    settings: dict[str, Any] = field(default_factory=dict)
    """Settings of the pipeline that are not the defaults."""
    is_jvm: bool = False


_BATCHED: Final = {"transaction_client": "batched"}
_LIBRDKAFKA: Final = {"transaction_client": "librdkafka"}
ENGINES: Final = {
    FLOOR: Engine(_hops("raw")),
    "writer": Engine(_hops("writer"), _BATCHED),
    "writer-librdkafka": Engine(_hops("writer"), _LIBRDKAFKA),
    "session": Engine(_hops("session"), _BATCHED),
    "pipeline": Engine(_worker, _BATCHED),
    "pipeline-librdkafka": Engine(_worker, _LIBRDKAFKA),
    "streams-10": Engine(_streams(10, "nothing"), is_jvm=True),
    "streams-100": Engine(_streams(100, "nothing"), is_jvm=True),
    "streams-windows-10": Engine(_streams(10, "windows"), is_jvm=True),
    "streams-windows-100": Engine(_streams(100, "windows"), is_jvm=True),
}


@dataclass(frozen=True, slots=True)
class Options:
    """Engines, rates and times of a run."""

    engines: tuple[str, ...] = tuple(ENGINES)
    rates: tuple[int, ...] = (500, 5_000, 10_000)
    rounds: Annotated[int, Meta(ge=1)] = 3
    seconds: float = 3.0
    lead_in_s: float = 0.5
    """Warm-up of each run, before its first measured transaction."""
    warm_up_s: float = 3.0
    """Warm-up of an engine that has just started, behind its history."""
    jvm_warm_up_s: float = 12.0
    """Warm-up of one on a JVM, and of the broker: with cold code Kafka Streams is twice as slow."""
    traffic: Traffic = field(default_factory=lambda: Traffic(cards=10_000, merchants=5_000, history_days=1))

    def __post_init__(self) -> None:
        if unknown := set(self.engines) - set(ENGINES):
            raise ValueError(f"no such engine: {', '.join(sorted(unknown))}; there are {', '.join(ENGINES)}")


QUICK: Final = Options(
    rates=(500,),
    rounds=1,
    seconds=1.0,
    warm_up_s=1.0,
    jvm_warm_up_s=1.0,
    traffic=Traffic(cards=1_000, merchants=500, history_days=1),
)


@dataclass(frozen=True)
class Records:
    """Input of every engine, encoded; of parts also the places of their transactions by identity."""

    history: list[Item]
    warm_up: list[Item]
    parts: dict[int, tuple[list[Item], dict[str, int]]]
    """Parts by rate."""

    @classmethod
    def of(cls, options: Options) -> Self:
        """Make them."""
        starts, seed = a_while_ago(_DAYS_AGO), options.traffic.seed
        counts = {rate: round(rate * (options.lead_in_s + options.seconds)) for rate in options.rates}
        warm_up = round(WARM_UP_RATE * options.jvm_warm_up_s)
        frame = options.traffic.measured(starts, warm_up + sum(counts.values()))

        def encoded(rows: pd.DataFrame) -> list[Item]:
            return list(items(rows, seed, labelled=0.0))

        parts, first = {}, warm_up
        for rate, count in counts.items():
            part = frame.iloc[first : first + count]
            parts[rate] = encoded(part), {identity: place for place, identity in enumerate(part["transaction_id"])}
            first += count
        return cls(encoded(options.traffic.history(starts)), encoded(frame.iloc[:warm_up]), parts)


@contextmanager
def running_engine(name: str, broker: EmbeddedBroker, directory: Path) -> Iterator[Load]:
    """An engine on topics of its own, named after ``directory``, under its load."""
    directory.mkdir()
    settings = Settings(
        kafka_bootstrap_servers=broker.bootstrap_servers,
        topic_prefix=f"{directory.name}-",
        data_dir=directory / "data",
        metrics_port=0,
        **ENGINES[name].settings,
    )
    ensure_topics(broker.bootstrap_servers, settings)
    with ENGINES[name].start(settings, directory) as check_engine:

        def check() -> None:
            broker.check()
            check_engine()

        with loaded(settings, directory / "generator", check) as load:
            yield load


def _turn(load: Load, records: Records, options: Options, warm_up_s: float) -> dict[int, dict[str, Any]]:
    """Return the results of one run of an engine, by rate."""
    load.fill(records.history)
    load.run(records.warm_up[: round(WARM_UP_RATE * warm_up_s)], WARM_UP_RATE)
    found = {}
    for rate, (part, numbers) in records.parts.items():
        with load.sending(part, rate) as (_, started_ns):
            measured_from_ns = started_ns + round(1e9 * options.lead_in_s)
            load.sleep_until(measured_from_ns + round(1e9 * options.seconds))
        load.drained(len(numbers))
        sent = load.sent()
        measured = sent.scheduled_ns >= measured_from_ns
        found[rate] = answers(sent, measured, *load.arrivals.take(), numbers, rate)
    return found


def measure(options: Options, tell: Callable[[str], None]) -> dict[str, Any]:
    """Return the part of ``build/bench.json``: for each rate and engine the medians of its rounds."""
    tell("preparing transactions")
    records = Records.of(options)
    runs = {(rate, name): list[dict[str, Any]]() for rate in options.rates for name in options.engines}
    failed: dict[str, str] = {}
    with scratch("chain-") as directory, embedded_broker(directory / "kafka", long_lived=True) as broker:
        tell("warming the broker")
        with running_engine(FLOOR, broker, directory / "warm-up") as load:
            _turn(load, records, options, options.jvm_warm_up_s)
        for number, name in itertools.product(range(1, options.rounds + 1), options.engines):
            if name in failed:
                continue
            warm_up_s = options.jvm_warm_up_s if ENGINES[name].is_jvm else options.warm_up_s
            try:
                with running_engine(name, broker, directory / f"{name}-{number}") as load:
                    found = _turn(load, records, options, warm_up_s)
            except FAULTS as error:
                failed[name] = " ".join(str(error).split())
                tell(f"{name}: {error}")
                continue
            for rate, run in found.items():
                runs[rate, name].append(run)
                tell(f"{number}/{options.rounds} {rate:6,}/s {name:20} {_shown(run)}")
    rows = [{"rate": rate, "engine": name, **_medians(it)} for (rate, name), it in runs.items() if name not in failed]
    settings = {"rounds": options.rounds, "seconds": options.seconds, "jvm_warm_up_s": options.jvm_warm_up_s}
    return {"settings": settings, "rows": rows, "failed": failed}


def _medians(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Medians over rounds; None where the engine did not keep up in one of them."""
    found: dict[str, Any] = {"rounds": [{name: run[name] for name in ("answered", "decisions_ms")} for run in runs]}
    for quantile in ("p50", "p99"):
        values = [run["decisions_ms"][quantile] for run in runs if run["decisions_ms"] is not None]
        found[f"{quantile}_ms"] = statistics.median(values) if len(values) == len(runs) else None
    return found


def _shown(run: dict[str, Any]) -> str:
    if run["decisions_ms"] is None:
        return f"does not keep up ({run['behind_at_end']:,} behind at the end, {run['answered']:.1%} answered)"
    return f"p50 {run['decisions_ms']['p50']:8.1f} ms, p99 {run['decisions_ms']['p99']:8.1f} ms"
