"""The simulated world: workers with the real agents, the clients and the clock that they get, and what befalls them."""

import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from datetime import datetime, tzinfo
from itertools import count
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, Final

import pytest

import agents.counts
import agents.failures
import agents.learn
import agents.loop
import agents.partitions
import agents.snapshot_scheduler
import pipeline.kafka.cluster.client_log
import pipeline.kafka.cluster.clients
import pipeline.kafka.cluster.log_offsets
import pipeline.kafka.cluster.retries
import pipeline.kafka.readers.group_client
import pipeline.kafka.readers.log_consumer
import pipeline.kafka.readers.replay_reader
import pipeline.kafka.readers.topic_reader
import pipeline.kafka.session.session
import pipeline.kafka.session.steps
import pipeline.kafka.writers.transactional_producers
import pipeline.kafka.writers.transactions
from agents.app import WorkerContext
from agents.loop import AgentLoop, Partitions
from agents.topology import AgentSpec
from pipeline.engine.records.results import Result
from pipeline.kafka.cluster.cluster import ClusterIdentities
from pipeline.kafka.records.batch import Batch
from pipeline.kafka.session.quarantine import Quarantines
from pipeline.models.published_files import PublishedFiles
from pipeline.settings import Settings
from pipeline.settings.rate_table import fitting, read_rates
from pipeline.state.snapshots import SnapshotRepository
from pipeline.state.store import MINIMUM_BYTES, StoreMemory
from schemas.records import Record
from tests.helpers.logs import START, microseconds
from tests.simulation.digest import models_digest, state_digest
from tests.simulation.model_kafka import (
    CLUSTERS,
    Cluster,
    Committed,
    Died,
    Fate,
    SimAdmin,
    SimBoundedConsumer,
    SimConsumer,
    SimProducer,
)
from tests.simulation.names import AGENT_NAMES, LABEL_TOPICS, NAMED, PARTITIONS, PREFIX, SPECS
from tests.simulation.reading import decode_decision, messages, written
from tests.simulation.versions import Versions, active_versions, learning_is_frozen, newest_river

MEMORY: Final = "/dev/shm" if Path("/dev/shm").is_dir() else None
"""Where files take no time: RocksDB waits for the disk each time that it opens a store."""
_NUMBERS = count()
_TIMED: Final[tuple[ModuleType, ...]] = (
    agents.counts,
    agents.failures,
    agents.snapshot_scheduler,
    agents.learn,
    agents.loop,
    agents.partitions,
    pipeline.kafka.cluster.client_log,
    pipeline.kafka.readers.replay_reader,
    pipeline.kafka.readers.log_consumer,
    pipeline.kafka.cluster.log_offsets,
    pipeline.kafka.cluster.retries,
    pipeline.kafka.session.session,
    pipeline.kafka.readers.topic_reader,
    pipeline.kafka.writers.transactional_producers,
    pipeline.kafka.writers.transactions,
)
"""Modules whose ``time`` is the simulation's."""
Observed = tuple[str, int, tuple[int, ...], str]
"""Agent, partition number, committed offsets of its inputs; what else decides about a learn agent's state."""


class Clock:
    """The time of a world, which passes where somebody lets it pass, or sleeps."""

    def __init__(self) -> None:
        self.now_us = microseconds(START)
        self._ticks_s = 0.0

    def monotonic(self) -> float:
        """Seconds; each question takes a moment, so that nobody waits for ever."""
        self._ticks_s += 1e-4
        return self.now_us / 1e6 + self._ticks_s

    def sleep(self, seconds: float) -> None:
        self.now_us += round(seconds * 1e6)

    def now(self, zone: tzinfo) -> datetime:
        return datetime.fromtimestamp(self.now_us / 1e6, zone)


class _Inline:
    """A thread, or a pool of them, that works at once and on the caller's thread."""

    def __init__(self, *_: Any, **__: Any) -> None:
        """Take what the original takes."""

    def call(self, what: str, function: Callable[[], Any], timeout_s: float = 0.0) -> Any:
        return function()

    def end(self) -> None:
        """Nothing runs."""

    def submit(self, function: Callable[..., Any], *args: Any, **options: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(function(*args, **options))
        except Exception as error:
            future.set_exception(error)
        return future

    def shutdown(self, **_: Any) -> None:
        """Nothing runs."""

    def acquire(self, timeout: float = 0.0) -> bool:
        return True

    def release(self) -> None:
        """Nobody else waits."""


def _install(patch: pytest.MonkeyPatch, clock: Clock) -> None:
    """Put the model's clients, the clock and inline threads in their places."""
    kafka = pipeline.kafka
    for module in (kafka.cluster.admin, kafka.readers.group_client):
        patch.setattr(module, "Consumer", SimConsumer)
    for name in ("Producer", "TransactionalClient"):
        patch.setattr(kafka.writers.transactional_producers, name, SimProducer)
    for name in ("AdminClient", "OffsetsClient"):
        patch.setattr(kafka.cluster.clients, name, SimAdmin)
    for module in (kafka.readers.group_client, kafka.writers.transactional_producers):
        patch.setattr(module, "CallThread", _Inline)
    patch.setattr(agents.snapshot_scheduler, "ThreadPoolExecutor", _Inline)
    patch.setattr(kafka.session.steps, "_ALONE", _Inline())
    for module in _TIMED:
        patch.setattr(module, "time", clock)
    for module in (agents.failures, agents.loop):
        patch.setattr(module, "datetime", clock)
    for module in (kafka.readers.group_client, kafka.readers.log_consumer):
        patch.setattr(module, "BoundedConsumer", SimBoundedConsumer)
    # Whoever waits for records of producers hears at once that there are none.
    patch.setattr(kafka.readers.group_client, "time", SimpleNamespace(monotonic=count().__next__))


class World:
    """A cluster and its workers."""

    def __init__(self, slots: int = 2, *, snapshots: bool = True) -> None:
        self._patch = pytest.MonkeyPatch()
        self.clock = Clock()
        _install(self._patch, self.clock)
        self._scratch = tempfile.TemporaryDirectory(prefix="simulation-", dir=MEMORY, ignore_cleanup_errors=True)
        self.directory = Path(self._scratch.name)
        self.address = f"simulated-{next(_NUMBERS)}"
        counts = {"one": 1, "cards": PARTITIONS, "merchants": PARTITIONS}
        self.cluster = Cluster(
            self.address, {PREFIX + topic.name: counts[topic.partitions_like] for topic in NAMED.topics}
        )
        self.workers: list[Worker | None] = [None] * slots
        self.snapshots = snapshots
        self.digests: dict[Observed, str] = {}
        self.failed_once: set[tuple[str, str, int, int]] = set()
        """Records that made an agent fail once, and will not again."""

    def tick(self, seconds: float) -> None:
        self.clock.sleep(seconds)
        self.cluster.now_ms = self.clock.now_us // 1_000

    def settings(self, name: str, **changes: Any) -> Settings:
        """Return the settings of a worker; short retention, so that a simulation reaches beyond them."""
        return Settings(
            kafka_bootstrap_servers=self.address,
            kafka_config={"client.id": name},
            topic_prefix=PREFIX,
            instance=name,
            label_topics=LABEL_TOPICS,
            card_partitions=PARTITIONS,
            merchant_partitions=PARTITIONS,
            data_dir=self.directory / name,
            snapshot_url=str(self.directory / "snapshots") if self.snapshots else "",
            snapshot_interval_s=600.0,
            feedback_interval_s=0.0,
            river_publish_interval_s=30.0,
            quarantine_after=2,
            quarantine_limit=1_000_000,
            **{
                "deduplication_days": 20.0,
                "label_grace_days": 10.0,
                "maturity_days": 5.0,
                "negative_sample_rate": 0.5,
                **changes,
            },
        )

    def start(self, slot: int, **changes: Any) -> None:
        """Start a worker where there is none."""
        self.workers[slot] = Worker(self, f"w{slot}", self.settings(f"w{slot}", **changes))

    def stop(self, slot: int) -> None:
        """End a worker in order."""
        if (worker := self.workers[slot]) is not None:
            self.workers[slot] = None
            worker.close()

    def kill(self, slot: int) -> None:
        """Let a process die: nothing of it works on, and its members leave the groups when their sessions time out."""
        if (worker := self.workers[slot]) is not None:
            self.workers[slot] = None
            for group in self.cluster.groups.values():
                for member in [member for member in group.members if member.client == worker.name]:
                    group.leave(member)
            worker.drop()

    def step(self, slot: int, agent: str, *, stall: bool = False) -> bool:
        """Let an agent poll and work once; return whether it worked."""
        worker = self.workers[slot]
        if worker is None:
            return False
        try:
            worked = worker.step(agent, stall=stall)
        except Died:
            self.kill(slot)
            worked = True
        self.cluster.fate = Fate.COMMIT
        return worked

    def drain(self) -> None:
        """Let the workers, of which there must be one, work until nothing is left to do."""
        self.cluster.fetch = 1 << 20
        for _ in range(300):
            if all(worker is None for worker in self.workers):
                self.start(0)
            worked = [self.step(slot, agent) for slot in range(len(self.workers)) for agent in AGENT_NAMES]
            if not any(worked) and self.idle():
                return
        raise AssertionError("the workers do not come to rest")

    def idle(self) -> bool:
        """Return whether every record of an input is committed, and every partition is held by whom it is given to."""
        for spec in SPECS.values():
            group = self.cluster.group(PREFIX + spec.name)
            if group.owner != group.target or len(group.owner) < self.cluster.partitions[PREFIX + spec.reads[0].name]:
                return False
            for topic in spec.reads:
                for number in range(self.cluster.partitions[PREFIX + topic.name]):
                    partition = (PREFIX + topic.name, number)
                    if self.cluster.logs[partition].at(group.committed.get(partition, (0, ""))[0]) is not None:
                        return False
        return True

    def observe(self, agent: str, handler: Partitions, loop: AgentLoop) -> None:
        """Compare the state of each partition held with what it was at the same offsets before (8, 11)."""
        offsets: dict[int, list[int]] = {}
        for (_, number), offset in sorted(loop.positions().items()):
            offsets.setdefault(number, []).append(offset)
        published = newest_river(self.cluster) if agent == "learn" else ""
        for number, at in offsets.items():
            digest = state_digest(handler, number)
            if digest is not None:
                before = self.digests.setdefault((agent, number, tuple(at), published), digest)
                assert digest == before, f"{agent} partition {number} at {at}: the state is another than before"

    def close(self) -> None:
        """End everything."""
        for slot in range(len(self.workers)):
            self.kill(slot)
        del CLUSTERS[self.address]
        self._patch.undo()
        self._scratch.cleanup()


class Worker:
    """The agents of one process, made as `agents.app` makes them."""

    def __init__(self, world: World, name: str, settings: Settings) -> None:
        self.name, self._world, self.settings = name, world, settings
        self.context = made_context(world, settings)
        self.loops: dict[str, AgentLoop] = {}
        self.handlers: dict[str, Partitions] = {}
        self._stalled: dict[str, Batch] = {}
        self._versions: Versions | None = None
        for spec in SPECS.values():
            quarantines = Quarantines(world.address, settings, spec.name, spec.reads, lambda _: None)
            handler = self.context.partitions(spec, quarantines)
            setattr(handler, "process", self._faulty(spec, handler.process))  # noqa: B010
            self.handlers[spec.name] = handler
            self.loops[spec.name] = AgentLoop(
                spec, world.address, settings, self.context.metrics, self.context.health, handler, quarantines,
                lambda: None,
            )  # fmt: skip

    def step(self, agent: str, *, stall: bool = False) -> bool:
        """Poll and work; a batch that ``stall`` leaves is worked on at the next step, whatever has happened since."""
        loop, cluster = self.loops[agent], self._world.cluster
        batch = self._stalled.pop(agent, None)
        if batch is None:
            batch = loop.poll()
            if agent == "learn":
                assert batch is None or not learning_is_frozen(cluster), "21: frozen, and it learns"
            self._world.observe(agent, self.handlers[agent], loop)
            if agent == "score" and batch is not None:
                self._versions = active_versions(cluster)
            if batch is not None and stall:
                self._stalled[agent] = batch
                return True
        if batch is not None:
            done, handler = len(cluster.transactions), self.handlers[agent]
            models = models_digest(handler) if agent == "score" else ""
            loop.work(batch)
            self._world.observe(agent, handler, loop)
            if agent == "score":
                assert models_digest(handler) == models, "13: scoring changed a model"
                self._check_versions(cluster.transactions[done:])
        return batch is not None

    def _check_versions(self, transactions: Sequence[Committed]) -> None:
        """All decisions of a batch are of the versions that were active when it was read (16, 17)."""
        for transaction in transactions:
            for _, message in messages(transaction.outputs, "decisions", decode_decision):
                used = (message.versions.lightgbm, message.versions.policy, message.versions.river)
                assert used == self._versions, f"16, 17: {used} decided, {self._versions} are active"

    def close(self) -> None:
        for loop in self.loops.values():
            loop.close()

    def drop(self) -> None:
        """Let go of what the operating system takes back from a process that died."""
        for handler in self.handlers.values():
            handler.close()

    def _faulty(
        self, spec: AgentSpec, process: Callable[[Sequence[Record], datetime], Result]
    ) -> Callable[[Sequence[Record], datetime], Result]:
        """Let what a record asks for befall its agent, once its batch is in the state."""
        name, failed = spec.name.encode(), self._world.failed_once

        def work(records: Sequence[Record], now: datetime) -> Result:
            result = process(records, now)
            for record in records:
                value, at = written(record), (spec.name, record.topic, record.partition, record.offset)
                if b"!kill-" + name in value:
                    raise Died
                if b"!fail-" + name in value or (b"!once-" + name in value and at not in failed):
                    failed.add(at)
                    raise ValueError(f"{record.topic} {record.partition} {record.offset} makes {spec.name} fail")
            return result

        return work


def made_context(world: World, settings: Settings) -> WorkerContext:
    """Return what builds a worker's agents, with what its start would have found on the cluster."""
    context = WorkerContext(settings)
    names = {topic.name for spec in SPECS.values() for topic in spec.reads} | {"progress"}
    wired = SimpleNamespace(
        _rates=fitting(read_rates(settings), settings),
        _published_files=PublishedFiles(world.address, settings),
        _identities=ClusterIdentities("simulated", {PREFIX + name: name for name in names}),
        _directories={name: settings.data_dir / name for name in AGENT_NAMES},
        _store_memory=StoreMemory(MINIMUM_BYTES),
        _repository=SnapshotRepository(settings.snapshot_address) if settings.snapshot_address else None,
        bootstrap=world.address,
    )
    context.__dict__.update(vars(wired))
    return context
