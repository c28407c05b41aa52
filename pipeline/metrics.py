"""The worker's metrics, for Prometheus: what it counts, and the endpoint that serves it.

``docs/metrics.md`` says what each metric means. Agents call the methods once a batch, not once a record.
"""

import errno
import math
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final
from wsgiref.simple_server import WSGIServer

import numpy as np
from numpy.typing import ArrayLike
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.gc_collector import GCCollector
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

PREFIX: Final = "fraud_pipeline_"

STAGE_BUCKETS_S: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
BATCH_BUCKETS: Final = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000)
LATENCY_BUCKETS_S: Final = (
    *(0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0),
)


class MetricsError(RuntimeError):
    """The metrics endpoint cannot be served; the text says what to change."""


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


class WorkerMetrics:
    """All metrics of one worker process, in a registry of their own.

    ``host`` and ``port`` (0: any free one) are where ``start`` serves ``/metrics``. Counting works without
    ``start``, from any thread. Amounts of time are seconds.
    """

    def __init__(self, host: str = "127.0.0.1", port: int = 0) -> None:
        self._host = host
        self._port = port
        self._server: tuple[WSGIServer, threading.Thread] | None = None
        self._label_names: dict[str, tuple[str, ...]] = {}
        self._model_versions: dict[str, str] = {}
        self._model_lock = threading.Lock()
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        GCCollector(registry=self.registry)

        def counter(name: str, documentation: str, *labels: str) -> Counter:
            self._label_names[f"{PREFIX}{name}_total"] = labels
            return Counter(PREFIX + name, documentation, labels, registry=self.registry)

        def gauge(name: str, documentation: str, *labels: str) -> Gauge:
            self._label_names[PREFIX + name] = labels
            return Gauge(PREFIX + name, documentation, labels, registry=self.registry)

        def histogram(name: str, documentation: str, bounds: Sequence[float], *labels: str) -> Histogram:
            self._label_names[PREFIX + name] = labels
            return Histogram(PREFIX + name, documentation, labels, buckets=bounds, registry=self.registry)

        self._records = counter("records_consumed", "Records that an agent has committed.", "agent", "topic")
        self._decisions = counter("decisions", "Decisions, by action.", "action")
        self._alerts = counter("alerts", "Alerts, by what selected the transaction.", "selection")
        self._dead_letters = counter("dead_letters", "Records that could not be accepted.", "stage", "code")
        self._duplicates = counter("duplicates", "Repeated transactions, which emit nothing.")
        self._labels = counter("labels", "Labels, by what became of them.", "agent", "outcome")
        self._examples = counter("examples", "Examples for learning, by label.", "label")
        self._lessons = counter("lessons", "Examples read by the learn agent, by what became of them.", "outcome")
        self._aborted = counter("transactions_aborted", "Kafka transactions aborted and processed again.", "agent")
        self._stages = histogram(
            "stage_seconds", "Time that one batch spends in a stage of an agent.", STAGE_BUCKETS_S, "agent", "stage"
        )
        self._batches = histogram("batch_records", "Records in one batch.", BATCH_BUCKETS, "agent")
        self._lag = gauge(
            "lag_records", "Records between a batch's end and the partition's.", "agent", "topic", "partition"
        )
        self._assigned = gauge("assigned_partitions", "Partitions that an agent owns.", "agent")
        self._models = gauge("model_version_info", "1 for the active version of each model.", "model", "version")
        self._refused = counter("models_refused", "Published model versions that this worker refused.", "model")
        latency = PREFIX + "decision_latency_seconds"
        self._label_names[latency] = ()
        self._latency = ArrayHistogram(
            latency, "Time from a transaction's ingestion to its decision.", LATENCY_BUCKETS_S, self.registry
        )

        # A series that first appears at 1 has no increase that Prometheus could see.
        for family, values in (
            (self._decisions, ("allow", "alert")),
            (self._alerts, ("score", "rule", "audit")),
            (self._examples, ("fraud", "legitimate", "presumed_legitimate")),
            (self._refused, ("lightgbm", "river", "policy")),
            (self._aborted, ("card", "score", "feedback", "learn")),
        ):
            for value in values:
                family.labels(value)

    def start(self) -> int:
        """Serve ``/metrics`` from a thread of its own; returns the port.

        Raises:
            MetricsError: the endpoint is served already, or its address cannot be bound.
        """
        if self._server is not None:
            raise MetricsError("The metrics endpoint is served already; stop it before you start it again.")
        try:
            server, thread = start_http_server(self._port, self._host, self.registry)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise MetricsError(
                    f"Port {self._port} of {self._host} is in use, so metrics cannot be served there. "
                    "Set FRAUD_PIPELINE_METRICS_PORT to a free port, or to 0 for any; "
                    "each worker of a machine needs its own."
                ) from error
            raise MetricsError(
                f"Metrics cannot be served at {self._host}:{self._port} ({error}). "
                "Set FRAUD_PIPELINE_METRICS_HOST to an address of this machine, such as 127.0.0.1."
            ) from error
        self._server = (server, thread)
        return int(server.server_port)

    def stop(self) -> None:
        """Stop serving and free the port; does nothing if nothing is served."""
        if self._server is None:
            return
        server, thread = self._server
        self._server = None
        server.shutdown()
        server.server_close()
        thread.join()

    def records_consumed(self, agent: str, topic: str, records: int) -> None:
        """``agent`` has committed ``records`` more records of ``topic``."""
        self._records.labels(agent, topic).inc(records)

    def decisions(self, counts: Mapping[str, int]) -> None:
        """Decisions, as action -> number."""
        _count(self._decisions, counts)

    def alerts(self, counts: Mapping[str, int]) -> None:
        """Alerts, as selection (``score``, ``rule``, ``audit``) -> number."""
        _count(self._alerts, counts)

    def dead_letters(self, stage: str, code: str, records: int = 1) -> None:
        """``records`` records went to the dead-letter topic at ``stage`` for the reason ``code``."""
        self._dead_letters.labels(stage, code).inc(records)

    def duplicates(self, records: int) -> None:
        """``records`` transactions repeated an earlier one."""
        self._duplicates.inc(records)

    def labels(self, agent: str, counts: Mapping[str, int]) -> None:
        """What became of labels at ``agent``, as outcome -> number."""
        for outcome, count in counts.items():
            self._labels.labels(agent, outcome).inc(count)

    def examples(self, counts: Mapping[str, int]) -> None:
        """Examples published, as label -> number."""
        _count(self._examples, counts)

    def lessons(self, counts: Mapping[str, int]) -> None:
        """What became of examples at the learn agent, as outcome -> number."""
        _count(self._lessons, counts)

    def transaction_aborted(self, agent: str) -> None:
        """``agent`` aborted a Kafka transaction; its batch is processed again."""
        self._aborted.labels(agent).inc()

    def stage_seconds(self, agent: str, stage: str, seconds: float) -> None:
        """One batch spent ``seconds`` in ``stage``."""
        self._stages.labels(agent, stage).observe(seconds)

    @contextmanager
    def stage(self, agent: str, stage: str) -> Iterator[None]:
        """Time the body as ``stage`` of one batch, whether or not it raises."""
        began_s = time.perf_counter()
        try:
            yield
        finally:
            self.stage_seconds(agent, stage, time.perf_counter() - began_s)

    def batch_records(self, agent: str, records: int) -> None:
        """A batch of ``records`` records was formed."""
        self._batches.labels(agent).observe(records)

    def lag_records(self, agent: str, topic: str, partition: int, records: int) -> None:
        """``records`` records of the partition are still to be read."""
        self._lag.labels(agent, topic, str(partition)).set(records)

    def forget_partition(self, agent: str, topic: str, partition: int) -> None:
        """The partition was revoked: its lag is another worker's to tell."""
        self._lag.remove_by_labels({"agent": agent, "topic": topic, "partition": str(partition)})

    def assigned_partitions(self, agent: str, partitions: int) -> None:
        """``agent`` owns ``partitions`` partitions from now on."""
        self._assigned.labels(agent).set(partitions)

    def model_version(self, model: str, version: str) -> None:
        """``version`` of ``model`` is active from now on; the series of the version before it ends."""
        with self._model_lock:
            before = self._model_versions.get(model)
            if before is not None and before != version:
                self._models.remove(model, before)
            self._model_versions[model] = version
            self._models.labels(model, version).set(1)

    def model_refused(self, model: str) -> None:
        """A published version of ``model`` could not be used; the version before it stays active."""
        self._refused.labels(model).inc()

    def decision_latency_seconds(self, seconds: ArrayLike) -> None:
        """Time from ``ingested_at`` to ``decided_at`` of each decision of a batch.

        Raises:
            ValueError: a value is NaN or infinite.
        """
        self._latency.observe(seconds)

    def metric_names(self) -> dict[str, str]:
        """Every metric of the registry as name -> type; counters with their ``_total``."""
        return {
            f"{family.name}_total" if family.type == "counter" else family.name: family.type
            for family in self.registry.collect()
        }

    def label_names(self) -> dict[str, tuple[str, ...]]:
        """Every ``fraud_pipeline_`` metric as name -> names of its labels; counters with their ``_total``."""
        return dict(self._label_names)


def _count(counter: Counter, counts: Mapping[str, int]) -> None:
    for label, count in counts.items():
        counter.labels(label).inc(count)
