"""Job (a) as an agent of this project's engine: everything of a live agent but its kernel and its topics.

A Faust agent on a batch channel, a session with at-least-once delivery, state in mapped files, snapshots on, dead
letters, metrics counted: ``agents`` and ``pipeline.kafka`` as they are. Only `tests.benchmarks.ours.kernel` is other.
"""

import gc
import logging
from collections.abc import AsyncIterator, Sequence
from datetime import datetime
from typing import Any

from mode.supervisors import ForfeitOneForOneSupervisor

from agents.app import GC_THRESHOLDS, FraudApp
from agents.channel import BatchChannel
from agents.loop import AgentLoop
from agents.partitions import Environment, KernelPartitions, StateLocation, by_partition
from agents.snapshot_scheduler import SnapshotScheduler
from agents.stopping import PipelineWorker
from agents.topology import AgentSpec
from pipeline.engine.partition_state.layout import LAYOUT
from pipeline.engine.partition_state.state import LoadedState
from pipeline.engine.records.results import Result, merged
from pipeline.features.catalogue import KERNEL_VERSION
from pipeline.kafka.cluster.admin import ensure_topics
from pipeline.kafka.cluster.clients import admin_client
from pipeline.kafka.cluster.cluster import group_protocol, topic_identities
from pipeline.kafka.records.batch import Batch
from pipeline.kafka.records.internal import not_counted
from pipeline.kafka.session.quarantine import Quarantines
from pipeline.observability.health import Health
from pipeline.observability.metrics import WorkerMetrics
from pipeline.settings import Settings
from pipeline.state.manifest import SnapshotKey
from pipeline.state.snapshots import SnapshotRepository
from pipeline.state.store import StoreMemory
from schemas.messages import ProcessingConfig
from schemas.records import Record
from schemas.topics import CONTROL, Topic
from tests.benchmarks.job.definition import PARTITIONS
from tests.benchmarks.ours.kernel import Models, OneHopPartition
from tests.benchmarks.peers.arguments import Arguments, arguments


class OneHopPartitions(KernelPartitions[OneHopPartition]):
    """The kernel of every partition that this process holds."""

    uses_store = False

    def __init__(self, environment: Environment, models: Models, output: Topic) -> None:
        super().__init__(environment)
        self._models, self._output = models, output

    def new(self, partition: int, location: StateLocation, loaded: LoadedState | None) -> OneHopPartition:
        """The kernel of one partition."""
        return OneHopPartition(self._models, self._output, location.storage, loaded)

    def replay_into(self, state: OneHopPartition, records: Sequence[Record], config: ProcessingConfig | None) -> None:
        """Let committed records enter the state."""
        state.replay(records)

    def process(self, records: Sequence[Record], now: datetime) -> Result:
        """Decide a batch."""
        return merged(self._held[partition].process(part) for partition, part in by_partition(records).items())


class OneHopWorker:
    """What `agents.app.WorkerContext` is to the pipeline's agents."""

    def __init__(self, options: Arguments) -> None:
        self.settings = Settings(
            kafka_bootstrap_servers=options.bootstrap_servers,
            data_dir=options.scratch,
            delivery="at_least_once",
            instance=options.group,
            metrics_port=0,
        )
        self.shutdown_timeout_s = self.settings.shutdown_timeout_s
        self._options = options
        self._input = Topic(options.input, "card_id", object, "benchmark", "cards")
        self._output = Topic(options.output, "card_id", object, options.group, "cards")
        self.spec = AgentSpec(options.group, (self._input,), "tests.benchmarks.ours.kernel", (self._output,))
        self._metrics = WorkerMetrics(self.settings.metrics_host, self.settings.metrics_port)
        self.channel: BatchChannel

    def source(self) -> AgentLoop:
        """The agent's source; called on its thread when it first asks for a batch."""
        settings, spec, metrics = self.settings, self.spec, self._metrics
        bootstrap = self._options.bootstrap_servers
        ensure_topics(bootstrap, settings, [CONTROL])
        client = admin_client(bootstrap, settings=settings)
        identities = topic_identities(client, [self._input.name])
        ids, kernel = dict(identities.topic_ids), f"{KERNEL_VERSION}.{LAYOUT}"
        key = SnapshotKey(settings.topic(spec.name), 0, identities.cluster_id, ids, PARTITIONS, kernel)
        repository = SnapshotRepository(str(settings.snapshot_address))
        quarantines, health = Quarantines(bootstrap, settings, spec.name, spec.reads, not_counted), Health((spec.name,))
        unused: dict[str, Any] = dict.fromkeys(("rates", "mapping", "published_files", "models", "other_kernels"))
        environment = Environment(
            agent=spec.name,
            settings=settings,
            directory=self._options.scratch / "state",
            store_memory=StoreMemory(settings.store_memory_mb * 1024 * 1024),
            quarantines=quarantines,
            snapshots=SnapshotScheduler(repository, spec.name, key, settings, metrics),
            metrics=metrics,
            health=health,
            **unused,
        )
        return AgentLoop(
            spec,
            bootstrap,
            settings,
            metrics,
            health,
            OneHopPartitions(environment, Models(self._options.workdir), self._output),
            quarantines,
            check_broker=lambda: None,
            group_protocol=group_protocol(client, settings),
        )

    def connect(self) -> None:
        """Serve metrics, as every worker does."""
        self._metrics.start()

    async def close(self) -> None:
        """Finish the batch and leave the group."""
        await self.channel.close()
        self.disconnect()

    def disconnect(self) -> None:
        """Let go of metrics."""
        self._metrics.stop()


def main(options: Arguments) -> None:
    """Run the agent until SIGTERM."""
    logging.basicConfig(level=logging.INFO)
    gc.set_threshold(*GC_THRESHOLDS)
    worker = OneHopWorker(options)
    app = FraudApp(
        options.group,
        worker,
        broker="kafka://",
        store="memory://",
        web_enabled=False,
        autodiscover=False,
        datadir=str(options.scratch / "faust"),
        agent_supervisor=ForfeitOneForOneSupervisor,
    )
    worker.channel = channel = BatchChannel(app, worker.source, options.group)

    @app.agent(channel, name=options.group)
    async def decide(batches: AsyncIterator[Batch]) -> None:
        async for batch in batches:
            await channel.work(batch)

    app.connect()
    PipelineWorker(
        app, shutdown_timeout_s=worker.settings.shutdown_timeout_s, loglevel="INFO", quiet=True
    ).execute_from_commandline()


if __name__ == "__main__":
    main(arguments())
