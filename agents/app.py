"""The Faust app: ``faust -A agents.app worker`` and ``fraud-pipeline worker`` both start it.

Faust keeps agents, supervision, signals and logging; its own Kafka clients, tables and acknowledgement are switched off
(``docs/decisions/0003-faust.md`` says why). Nothing connects before the worker starts.
"""

import asyncio
import gc
import importlib
import logging
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, Final, NoReturn

import faust
from faust.app.base import BootStrategy
from faust.types import AgentT
from mode.supervisors import ForfeitOneForOneSupervisor

from agents.channel import BatchChannel, register
from agents.declaration import DeclarationWatch
from agents.loop import AgentLoop, Partitions
from agents.online import OnlineModels
from agents.partitions import Environment
from agents.snapshot_scheduler import SnapshotScheduler
from agents.stopping import FAUST_LOG, PipelineWorker, end_with_any_thread, end_within, silence_faust
from agents.topology import AGENTS, CARD, SCORE, AgentSpec, chosen
from agents.watches import BrokerWatch, UndecidedWatch
from pipeline.broker.provided import ProvidedBroker, provide_broker
from pipeline.engine.partition_state.layout import LAYOUT
from pipeline.engine.scores.active_models import ModelSet
from pipeline.features.catalogue import STATE_VERSION
from pipeline.kafka.checks.kernel_versions import OtherKernels
from pipeline.kafka.checks.startup import check_start
from pipeline.kafka.cluster.admin import ensure_topics, partition_count
from pipeline.kafka.cluster.clients import GroupProtocol, admin_client
from pipeline.kafka.cluster.cluster import ClusterIdentities, group_protocol, topic_identities
from pipeline.kafka.cluster.errors import Stopped
from pipeline.kafka.session.membership import replace_member
from pipeline.kafka.session.quarantine import Quarantines
from pipeline.kafka.writers.unfinished_transactions import end_unfinished
from pipeline.models.active import ModelSubscriber
from pipeline.models.list_log import ListLog
from pipeline.models.published_files import MAPPING, RATES, PublishedFiles
from pipeline.observability.error_text import explained
from pipeline.observability.health import Health
from pipeline.observability.logs import configure_logging, logging_config
from pipeline.observability.metrics import WorkerMetrics
from pipeline.protection.signing import Signer, Trust, snapshot_keys
from pipeline.settings import Settings
from pipeline.settings.mapping_file import own_mapping
from pipeline.settings.rate_table import fitting, read_rates
from pipeline.state.manifest import SnapshotKey
from pipeline.state.snapshots import Refused, SnapshotRepository, log_refused
from pipeline.state.state_directory import StateDirectory, keep_private
from pipeline.state.store import StoreMemory
from schemas.mapping import FieldMapping
from schemas.money import RateTable
from schemas.topics import CONTROL, PROGRESS, Topic, has_order

log = logging.getLogger(__name__)

GC_THRESHOLDS: Final = (100_000, 20, 100)
CRITICAL_FIRST_S: Final = 5.0
"""Longest time for which agents that no alert waits for let the others restore their partitions first."""
_LOOK_S: Final = 0.05
_PREPARED_LOOK_S: Final = 0.5
SWITCH_INTERVAL_S: Final = 0.0005
"""Longest time for which an agent's thread keeps the interpreter while another agent has an answer waiting."""


class AgentsOnly(BootStrategy):  # type: ignore[misc]
    """Agents and sensors, and none of Faust's own Kafka clients or web server."""

    enable_kafka = False
    enable_web = False


class FraudApp(faust.App):  # type: ignore[misc]
    """The app with its boot strategy, and what its worker holds open."""

    BootStrategy = AgentsOnly
    logger = FAUST_LOG

    def __init__(self, name: str, worker: "WorkerContext", **options: Any) -> None:
        super().__init__(name, **options)
        self._worker = worker
        self._crashed_by: BaseException | None = None

    def connect(self) -> None:
        """Find or start the broker, check topics and settings, serve metrics. The first agent does it otherwise."""
        try:
            self._worker.connect()
        except BaseException:
            self._worker.disconnect()
            raise

    def ends_for_good(self) -> bool:
        """As of `WorkerContext`."""
        return self._worker.ends_for_good()

    async def maybe_start_producer(self) -> NoReturn:
        """Refuse to write with Faust, as `faust send TOPIC` does."""
        sys.exit("Error: this app writes nothing with Faust: write to topics with a Kafka producer")

    async def on_first_start(self) -> None:
        """Make the data directory: Faust makes its own below it, and nothing above that; and watch the threads."""
        end_with_any_thread()
        Path(self.conf.datadir).parent.mkdir(parents=True, exist_ok=True)
        await super().on_first_start()

    async def _on_agent_error(self, agent: AgentT, exc: BaseException) -> None:
        end_within(self._worker.shutdown_timeout_s)
        # Faust would start the agent again. Nothing of the batch is committed: whoever
        # holds the partition next reads it again, and an operator must look first.
        if self._crashed_by is None:
            self._crashed_by = exc
            sentence = explained(exc)
            # The text of an error of the program may hold what is in a record.
            hidden = sentence and not log.isEnabledFor(logging.DEBUG)
            where = "" if hidden else "\n" + "".join(traceback.format_tb(exc.__traceback__))
            reasons = "; ".join([sentence or type(exc).__name__, *getattr(exc, "__notes__", ())])
            log.critical("agent %s cannot go on: %s%s", agent.name, reasons, where)
            # That is logged. Faust would log it again for every service that ends with the agent.
            silence_faust()
        await self.crash(exc)

    async def on_stop(self) -> None:
        """Finish the batches, leave the groups, then let go of metrics and broker; and load another image, if asked."""
        await self._worker.close()
        await super().on_stop()
        await asyncio.sleep(0)  # a signal that has come meanwhile may say that there is to be none
        if self._crashed_by is None:
            self._worker.replace()


class WorkerContext:
    """Builds what the agents need, from settings, when the worker starts."""

    def __init__(self, settings: Settings) -> None:
        self._specs = chosen(settings)
        self._settings = settings
        self.shutdown_timeout_s = settings.shutdown_timeout_s
        self._stack = ExitStack()
        self._channels: list[BatchChannel] = []
        self._loops: dict[str, AgentLoop] = {}
        self.health = Health(settings.agent_names, settings.liveness_timeout_s)
        self.metrics = WorkerMetrics(settings.metrics_host, settings.metrics_port, self.health)
        self.bootstrap = ""
        self.check_broker: Callable[[], None] = lambda: None
        self._rates: RateTable
        self._mapping: FieldMapping | None = None
        self._published_files: PublishedFiles
        self._identities: ClusterIdentities
        self._group_protocol: GroupProtocol = "consumer"
        self._undecided: UndecidedWatch
        self._broker: ProvidedBroker
        self._declarations: DeclarationWatch | None = None
        self._directories: dict[str, Path] = {}
        self._store_memory: StoreMemory
        self._repository: SnapshotRepository | None = None
        self._connecting = threading.Lock()
        self._closing = threading.Event()
        self._prepared: dict[bool, Future[None]] = {True: Future(), False: Future()}
        """Done once the kernels are there of the agents that an alert waits for, and of the others."""

    def connect(self) -> None:
        """Serve metrics, find or start the broker, check the topics; the first agent that asks does it for all."""
        with self._connecting:
            if self.bootstrap:
                return
            settings = self._settings
            # A key that cannot be used stops a start, and no agent later.
            Trust.from_settings(settings)
            Signer.from_settings(settings)
            rates_content, self._mapping = read_rates(settings), own_mapping(settings)
            self._rates = fitting(rates_content, settings)  # an unfit table fails here, not by an agent that fails
            for name in settings.agent_names:
                location = self._stack.enter_context(
                    StateDirectory(settings.data_dir, settings.topic(settings.instance), name)
                )
                self._directories[name] = location.directory
            self._store_memory = StoreMemory(settings.store_memory_mb * 1024 * 1024)
            if (address := settings.snapshot_address) is not None:
                self._repository = SnapshotRepository(
                    address,
                    kept=settings.snapshots_kept,
                    irreplaceable=settings.accept_short_retention,
                    keys=snapshot_keys(settings),
                    on_refused=self._snapshot_refused,
                )
            # Before anything that may take long: whoever probes a worker asks what it waits for.
            port = self.metrics.start()
            self._stack.callback(self.metrics.stop)
            log.info("probes and metrics are served at %s:%d", settings.metrics_host, port)
            # Meanwhile: questions to brokers are mostly waiting.
            self._prepared = {True: Future(), False: Future()}
            threading.Thread(target=self._prepare, name="prepare", daemon=True).start()
            self._starting("looks for a broker")
            self._broker = broker = self._stack.enter_context(provide_broker(settings))
            self._check_cluster(broker.bootstrap_servers)
            self._published_files = PublishedFiles(broker.bootstrap_servers, settings, self.metrics.records_refused)
            if CARD.name in settings.agent_names:
                waiting = partial(self._starting, self._reading("rate tables and mappings"))
                self._published_files.publish(RATES, rates_content, waiting)
                if self._mapping is not None:
                    log.info("transactions are read by mapping %s (%s)", self._mapping.version, self._mapping.digest)
                    self._published_files.publish(MAPPING, self._mapping.content, waiting)
            client = admin_client(broker.bootstrap_servers, settings=settings)
            topics = {settings.topic(topic.name) for role in self._specs for topic in _replayed_topics(role)}
            self._identities = topic_identities(client, sorted(topics))
            self._group_protocol = group_protocol(client, settings)
            watch = UndecidedWatch(broker.bootstrap_servers, settings, self.metrics)
            self._undecided = self._stack.enter_context(watch)
            if self._declarations is not None:
                self._stack.enter_context(self._declarations)
            self.check_broker = broker.check
            self.bootstrap = broker.bootstrap_servers
            self.health.starting("joins its group")
            log.info("agents %s on %s, metrics on %s:%d", settings.agents, self.bootstrap, settings.metrics_host, port)

    def _starting(self, step: str) -> None:
        """Let probes hear what the start waits for; `Stopped` once the worker ends."""
        if self._closing.is_set():
            raise Stopped("the worker ends before its agents have started")
        self.health.starting(step)

    def _check_cluster(self, bootstrap: str) -> None:
        """Create or check the topics, end what an earlier process left open, and check everything else."""
        settings, roles = self._settings, self._specs
        self._starting("creates or checks topics")
        for state in ensure_topics(bootstrap, settings):
            log.log(
                logging.WARNING if state.warnings else logging.INFO,
                "topic %s: %s, %d partitions%s",
                state.name,
                state.action,
                state.partitions,
                "".join(f"; {warning}" for warning in state.warnings),
            )
        self._stack.enter_context(BrokerWatch(bootstrap, settings, self.health))
        self._starting("ends transactions that an earlier process of this worker has left open")
        end_unfinished(bootstrap, settings, {role.name: role.producers for role in roles})
        self._follow_declaration(bootstrap)
        self._starting("checks the topics and the groups' offsets")
        for warning in check_start(bootstrap, settings, roles, self.metrics.records_refused):
            log.warning("%s", warning)

    def _reading(self, what: str) -> str:
        """Return the step in which a start waits for transactions that are open on ``control``."""
        return (
            f"reads the {what} that {self._settings.topic(CONTROL.name)} names, behind every transaction that is open "
            "there (docs/operating.md, hanging transactions)"
        )

    def _follow_declaration(self, bootstrap: str) -> None:
        """Learn the declarations of features; start again where another one than this process' is active."""
        self._declarations = watch = DeclarationWatch(bootstrap, self._settings, self.metrics.records_refused)
        waiting = partial(self._starting, self._reading("declarations of features"))
        watch.learn(waiting)
        if CARD.name in self._settings.agent_names:
            watch.publish_first(waiting)
        if (other := watch.other()) is not None:
            self._broker.hand_over()
            watch.replace(other)

    def ends_for_good(self) -> bool:
        """Load no other image after the end; returns False if none was to be loaded."""
        asked = self._declarations is not None and self._declarations.next is not None
        if self._declarations is not None:
            self._declarations.next = None
        return asked

    def replace(self) -> None:
        """Replace this process' image, once all is closed, if another declaration of features has become active."""
        if self._declarations is not None and self._declarations.next is not None:
            self._declarations.replace(self._declarations.next)

    def _prepare(self) -> None:
        """Import the agents and compile or load their kernels, so that none does it when its partitions come.

        Agents that no alert waits for come once the others hold partitions: River's imports alone take a second.
        """
        for critical, prepared in self._prepared.items():
            try:
                if not critical:
                    self._await_critical()
                self._prepare_agents([spec for spec in self._specs if spec.latency_critical == critical])
            except BaseException as error:
                prepared.set_exception(error)
            else:
                prepared.set_result(None)

    def _prepare_agents(self, specs: Sequence[AgentSpec]) -> None:
        if not specs:
            return
        if self._closing.is_set():
            raise Stopped("the worker ends before its agents have started")
        for spec in specs:
            resolve_name(spec.partitions_class)
        # Imported here: a start asks brokers meanwhile.
        preparation = importlib.import_module("agents.preparation")
        directory = self._directories[specs[0].name] / "prepare"
        preparation.prepare_kernels(self._settings, self._rates, directory, [spec.name for spec in specs])

    def _await_prepared(self, spec: AgentSpec) -> None:
        """Wait for `_prepare`, however long it takes: an agent that joins holds partitions. Raises what it raised."""
        prepared = self._prepared[spec.latency_critical]
        while not prepared.done():
            self._starting("compiles its kernels, or loads them (docs/deployment.md)")
            wait([prepared], _PREPARED_LOOK_S)
        prepared.result()

    def partitions(self, spec: AgentSpec, quarantines: Quarantines) -> Partitions:
        """Return the state and core call of an agent."""
        partitions: Partitions = resolve_name(spec.partitions_class)(self._environment(spec, quarantines))
        return partitions

    def _environment(self, spec: AgentSpec, quarantines: Quarantines) -> Environment:
        settings, identities = self._settings, self._identities
        snapshots = None
        if self._repository is not None and spec.snapshots:
            key = SnapshotKey(
                agent=settings.topic(spec.name),  # pipelines that differ in their prefix may share an address
                partition=0,
                cluster_id=identities.cluster_id,
                topic_ids={
                    topic.name: identities.topic_ids[settings.topic(topic.name)] for topic in _replayed_topics(spec)
                },
                partition_count=partition_count(spec.reads[0], settings),
                kernel=f"{STATE_VERSION}.{LAYOUT}",
            )
            snapshots = SnapshotScheduler(self._repository, spec.name, key, settings, self.metrics)
        return Environment(
            agent=spec.name,
            settings=settings,
            directory=self._directories[spec.name],
            store_memory=self._store_memory,
            quarantines=quarantines,
            snapshots=snapshots,
            metrics=self.metrics,
            health=self.health,
            rates=self._rates,
            mapping=self._mapping,
            published_files=self._published_files,
            models=partial(self._models, spec.name),
            other_kernels=partial(self._other_kernels, spec.name),
            learn_declarations=partial(self._learn_declarations, spec.name),
        )

    def channel(self, app: FraudApp, spec: AgentSpec) -> BatchChannel:
        """Return the channel of an agent; its loop is made when the agent first asks for a batch."""

        def new_loop() -> AgentLoop:
            self.connect()
            self._await_prepared(spec)
            quarantines = Quarantines(
                self.bootstrap, self._settings, spec.name, spec.reads, self.metrics.records_refused
            )
            made = AgentLoop(
                spec,
                self.bootstrap,
                self._settings,
                self.metrics,
                self.health,
                self.partitions(spec, quarantines),
                quarantines,
                self.check_broker,
                self._group_protocol,
            )
            if self._group_protocol == "consumer":
                group, directory = self._settings.topic(spec.name), self._directories[spec.name]
                replace_member(self.bootstrap, self._settings, group, made.member_id, directory)
            self._undecided.follow(spec.name, made.positions)
            self._loops[spec.name] = made
            return made

        channel = BatchChannel(app, new_loop, spec.name, spec.reads, spec.help)
        self._channels.append(channel)
        return channel

    def _await_critical(self) -> None:
        """Wait until the agents that an alert waits for hold partitions: restores share the processors."""
        critical = [name for name in self._settings.agent_names if AGENTS[name].latency_critical]
        deadline_s = time.monotonic() + CRITICAL_FIRST_S
        while not all(name in self._loops and self._loops[name].positions() for name in critical):
            if time.monotonic() > deadline_s or self._closing.wait(_LOOK_S):
                return

    async def close(self) -> None:
        """Close the channels, then the metrics, then the broker where this worker started it."""
        self._closing.set()
        try:
            closed = await asyncio.gather(*(channel.close() for channel in self._channels), return_exceptions=True)
        finally:
            self.disconnect()
        for channel, error in zip(self._channels, closed, strict=True):
            if error is not None:
                log.error("agent %s did not close cleanly: %s", channel.name, explained(error) or type(error).__name__)

    def _snapshot_refused(self, refused: Refused) -> None:
        log_refused(refused)
        address = self._repository.url if self._repository is not None else ""
        group = refused.name.removeprefix(f"{address}/").partition("/")[0]
        self.metrics.count("snapshots_refused", group.removeprefix(self._settings.topic_prefix), refused.reason)

    def disconnect(self) -> None:
        """Let go of metrics and broker, which goes on for another image of this process."""
        if self._declarations is not None and self._declarations.next is not None:
            self._broker.hand_over()
        self._stack.close()

    def _models(self, agent: str) -> ModelSubscriber:
        online = OnlineModels(self._settings)
        waiting = partial(self._waiting, agent)
        # Whoever decides nothing reads no lists.
        lists = ListLog(self.bootstrap, self._settings, self.metrics.records_refused, waiting)
        load_lists = lists.load if agent == SCORE.name else None
        model_set = ModelSet(online.first, online.load, load_lists=load_lists, audit_keys=self._settings.audit_keys)
        return ModelSubscriber(self.bootstrap, self._settings, model_set, self.metrics, waiting)

    def _other_kernels(self, agent: str) -> OtherKernels:
        return OtherKernels(self.bootstrap, self._settings, agent, self._closing, lambda: self._waiting(agent))

    def _learn_declarations(self, agent: str) -> None:
        if self._declarations is not None:
            self._declarations.learn(partial(self._waiting, agent))

    def _waiting(self, agent: str) -> None:
        """An agent waits for a broker outside its session."""
        if self._closing.is_set():
            raise Stopped(f"agent {agent}: the worker ends while it waits for a broker")
        self.health.working(agent)


def _replayed_topics(spec: AgentSpec) -> tuple[Topic, ...]:
    """Return the topics that rebuild the agent's state: its inputs, and the order of several."""
    return (*spec.reads, PROGRESS) if has_order(spec.reads) else spec.reads


def create_app(settings: Settings | None = None, log_level: str | None = None) -> FraudApp:
    """The app of one worker, with the agents that the settings name; ``log_level`` as of `run_worker`."""
    settings = settings or Settings()
    keep_private()
    worker = WorkerContext(settings)
    app = FraudApp(
        f"fraud-pipeline-{settings.topic(settings.instance)}",
        worker,
        broker="kafka://",
        store="memory://",
        web_enabled=False,
        autodiscover=False,
        datadir=str(settings.data_dir / "faust"),
        logging_config=logging_config(settings, log_level),
        # An agent that was started again while the worker ends would wait for ever, and the worker with it.
        agent_supervisor=ForfeitOneForOneSupervisor,
    )
    for spec in chosen(settings):
        register(app, worker.channel(app, spec))
    return app


def run_worker(settings: Settings, log_level: str | None = None) -> None:
    """Run the app until it is stopped, and end the process, with code 1 after an error that no agent may survive.

    What stands in the way of a start (no broker, wrong topics, a port in use, an unfit rate table) is raised before
    any agent runs.

    Args:
        settings: Settings of the worker.
        log_level: Least level of log lines; by default that of the settings.
    """
    configure_logging(settings, log_level)
    # State is many small objects that live long and form no cycles: collecting garbage as often as by default
    # costs a tenth of the time.
    gc.set_threshold(*GC_THRESHOLDS)
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    # Before any thread runs: the first ones are started by the connection.
    end_with_any_thread()
    app = create_app(settings, log_level)
    app.connect()
    worker = PipelineWorker(
        app, shutdown_timeout_s=settings.shutdown_timeout_s, ends_for_good=app.ends_for_good, quiet=True
    )
    worker.execute_from_commandline()


def __getattr__(name: str) -> Any:
    # `faust -A agents.app worker` looks for `app`; importing this module for anything else makes none.
    if name == "app":
        return create_app()
    if name in AGENTS:
        # `faust send @card` looks for the agent here.
        topics = ", ".join(topic.name for topic in AGENTS[name].reads)
        sys.exit(f"Error: agent {name} takes no messages from Faust: write to {topics} with a Kafka producer")
    raise AttributeError(name)
