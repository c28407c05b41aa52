"""The worker's metrics, for Prometheus: what it counts and how it is.

``docs/metrics.md`` says what each metric means. Agents call the methods once a batch, not once a record.
"""

import math
import threading
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import ArrayLike
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.gc_collector import GCCollector
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from pipeline.observability.endpoint import Endpoint
from pipeline.observability.health import AGENT_STATES, AgentState, Health
from pipeline.observability.metric_declarations import PREFIX, WORKER_METRICS, MetricDeclaration
from pipeline.scoring.prequential import ScoreMeasures

LATENCY: Final = "decision_latency_seconds"
_INPUTS: Final = (
    *(("label", "labels"), ("card", "transactions"), ("card", "rerouted"), ("card", "accepted-labels")),
    *(("score", "profiled"), ("feedback", "accepted-labels"), ("feedback", "features"), ("learn", "examples")),
)


class ArrayHistogram(Collector):
    """A histogram without labels that observes a whole array at once.

    prometheus_client's own histogram takes one value a call, which costs more than scoring the record did.
    """

    def __init__(self, name: str, documentation: str, bounds: Sequence[float], registry: CollectorRegistry) -> None:
        self._name = name
        self._documentation = documentation
        self._bounds = np.asarray(bounds, dtype=np.float64)
        self._counts = np.zeros(len(bounds) + 1, dtype=np.int64)
        self._sum = 0.0
        self._lock = threading.Lock()
        registry.register(self)

    def observe(self, values: ArrayLike) -> None:
        """Count ``values`` (any shape of finite numbers).

        Raises:
            ValueError: a value is NaN or infinite.
        """
        array = np.asarray(values, dtype=np.float64).ravel()
        if not np.isfinite(array).all():
            raise ValueError(f"{self._name} observes finite numbers only.")
        counts = np.bincount(self._bounds.searchsorted(array, side="left"), minlength=len(self._counts))
        with self._lock:
            self._counts += counts
            self._sum += float(array.sum())

    def collect(self) -> Iterator[HistogramMetricFamily]:
        """The cumulative buckets, as Prometheus has them."""
        with self._lock:
            cumulative = self._counts.cumsum()
            total = self._sum
        bounds = [*(float(bound) for bound in self._bounds), math.inf]
        buckets = [
            (str(bound) if math.isfinite(bound) else "+Inf", float(count))
            for bound, count in zip(bounds, cumulative, strict=True)
        ]
        yield HistogramMetricFamily(self._name, self._documentation, buckets=buckets, sum_value=total)


class DeclaredMetrics:
    """The metrics of a table, in a registry of their own. Counting works from any thread.

    Args:
        declared: The metrics by name.
    """

    def __init__(self, declared: Mapping[str, MetricDeclaration]) -> None:
        self.registry = CollectorRegistry()
        self._families: dict[str, Any] = {}
        self._lasting: dict[tuple[str, ...], Any] = {}
        """Series that never end, by name and labels: to look one up costs more than to count."""
        for name, metric in declared.items():
            given, labels = (PREFIX + name, metric.meaning), metric.labels.split()
            if metric.kind == "counter":
                self._families[name] = Counter(*given, labels, registry=self.registry)
            elif metric.kind == "gauge":
                self._families[name] = Gauge(*given, labels, registry=self.registry)
            elif name == LATENCY:
                self._families[name] = ArrayHistogram(*given, metric.buckets, self.registry)
            else:
                self._families[name] = Histogram(*given, labels, registry=self.registry, buckets=metric.buckets)
            for value in metric.known.split():
                self.count(name, value, by=0)

    def count(self, name: str, *labels: str, by: int = 1) -> None:
        """Add to a counter.

        Args:
            name: Its name.
            labels: Values of its labels.
            by: How much.
        """
        self._lasting_series(name, labels).inc(by)

    def show(self, name: str, value: float, *labels: object) -> None:
        """Set a gauge.

        Args:
            name: Its name.
            value: Its value from now on.
            labels: Values of its labels.
        """
        self._series(name, labels).set(value)

    def forget(self, name: str, **labels: object) -> None:
        """End the series of a gauge that have these values of labels: they are another worker's to report."""
        self._families[name].remove_by_labels({label: str(value) for label, value in labels.items()})

    def observe(self, name: str, value: float, *labels: str) -> None:
        """Add a value to a histogram; ``labels`` are the values of its labels."""
        self._lasting_series(name, labels).observe(value)

    def _lasting_series(self, name: str, labels: tuple[str, ...]) -> Any:
        key = (name, *labels)
        if (series := self._lasting.get(key)) is None:
            series = self._lasting[key] = self._series(name, labels)
        return series

    def _series(self, name: str, labels: Sequence[object]) -> Any:
        family = self._families[name]
        return family.labels(*labels) if labels else family


class WorkerMetrics(DeclaredMetrics):
    """All metrics of one worker process.

    Counting works without ``start``.

    Args:
        host: Address at which ``start`` serves ``/metrics``, ``/livez`` and ``/readyz``.
        port: Port there; 0: any free one.
        health: The worker's; it is reported separately. None: one of its own.
    """

    def __init__(self, host: str = "127.0.0.1", port: int = 0, health: Health | None = None) -> None:
        super().__init__(WORKER_METRICS)
        self.health = health if health is not None else Health()
        self._model_versions: dict[str, str] = {}
        self._model_lock = threading.Lock()
        ProcessCollector(registry=self.registry)
        GCCollector(registry=self.registry)
        self._endpoint = Endpoint(host, port, self.registry, self.health)
        self._families["broker_unreachable_seconds"].set_function(self.health.unreachable_s)
        self._families["ready"].set_function(lambda: self.health.ready().ok)
        for agent in self.health.states():
            for state in AGENT_STATES:
                self._families["agent_state"].labels(agent, state).set_function(partial(self._in_state, agent, state))
        self.count("labels", "feedback", "given_up", by=0)
        for agent, topic in _INPUTS:
            self.count("quarantined", agent, topic, by=0)

    def _in_state(self, agent: str, state: AgentState) -> bool:
        return self.health.states()[agent] == state

    def start(self) -> int:
        """Serve metrics and health from threads of their own; returns the port. Raises ``EndpointError``."""
        return self._endpoint.start()

    def stop(self) -> None:
        """Stop serving and free the port; does nothing if nothing is served."""
        self._endpoint.stop()

    @contextmanager
    def stage(self, agent: str, stage: str) -> Iterator[None]:
        """Time the body as ``stage`` of one batch, whether or not it raises."""
        began_s = time.perf_counter()
        try:
            yield
        finally:
            self.observe("stage_seconds", time.perf_counter() - began_s, agent, stage)

    def prequential(self, figures: Mapping[str, ScoreMeasures]) -> None:
        """Show how well each model did on the newest examples; without figures the series end."""
        for name in ("prequential_auc", "prequential_log_loss"):
            self._families[name].clear()
        for model, figure in figures.items():
            if figure.auc is not None:
                self.show("prequential_auc", figure.auc, model)
            self.show("prequential_log_loss", figure.log_loss, model)

    def snapshot_written(
        self, agent: str, partition: int, *, size_bytes: int, seconds: float, taken_at_s: float
    ) -> None:
        """Count a snapshot that was written.

        Args:
            agent: Name of the agent.
            partition: Number of the partition.
            size_bytes: Bytes that were written.
            seconds: Time that it took to write.
            taken_at_s: Time of the state in it, in seconds since 1970.
        """
        self.count("snapshots_written", agent)
        self.observe("snapshot_seconds", seconds, agent)
        self.show("snapshot_bytes", size_bytes, agent, partition)
        self.show("snapshot_timestamp_seconds", taken_at_s, agent, partition)

    def state_restored(
        self,
        agent: str,
        partition: int,
        *,
        source: Literal["snapshot", "log"],
        seconds: float,
        records: int,
        snapshot_at_s: float | None = None,
    ) -> None:
        """Count a restore that is complete.

        Args:
            agent: Name of the agent.
            partition: Number of the partition.
            source: What the state was made of first: a snapshot, or the log alone.
            seconds: Time that the restore took.
            records: Number of records that were replayed.
            snapshot_at_s: When the snapshot was taken, in seconds since 1970. None: there is none, and its age counts
                from now, so that a partition which never gets a snapshot is seen.
        """
        self.observe("restore_seconds", seconds, agent, source)
        self.count("records_replayed", agent, by=records)
        taken_at_s = snapshot_at_s if snapshot_at_s is not None else time.time()
        self.show("snapshot_timestamp_seconds", taken_at_s, agent, partition)

    def forget_state(self, agent: str, partition: int) -> None:
        """The partition's state was let go: its snapshots and its store are another worker's to report."""
        for name in ("snapshot_bytes", "snapshot_timestamp_seconds", "store_entries", "store_bytes"):
            self.forget(name, agent=agent, partition=partition)

    def damaged_batches(self, agent: str, partitions: Collection[tuple[str, int]]) -> None:
        """Show the partitions, by topic and number, in which ``agent`` waits for a whole copy of a damaged batch."""
        self.forget("damaged_batches", agent=agent)
        for topic, partition in partitions:
            self.show("damaged_batches", 1, agent, topic, partition)

    def model_version(self, model: str, version: str) -> None:
        """``version`` of ``model`` is active from now on; the series of the version before it ends."""
        with self._model_lock:
            before = self._model_versions.get(model)
            if before is not None and before != version:
                self.forget("model_version_info", model=model, version=before)
            self._model_versions[model] = version
            self.show("model_version_info", 1, model, version)

    def model_refused(self, model: str) -> None:
        """A published version of ``model`` could not be used; the version before it stays active."""
        self.count("models_refused", model)

    def records_refused(self, topic: str) -> None:
        """A record of the internal topic ``topic`` (full name) was refused; reading went on behind it."""
        self.count("records_refused", topic)

    def decision_latency_seconds(self, seconds: ArrayLike) -> None:
        """Time from ``ingested_at`` to ``decided_at`` of each decision of a batch.

        Raises:
            ValueError: a value is NaN or infinite.
        """
        self._families[LATENCY].observe(seconds)
