"""The worker's metrics, for Prometheus: what it counts and how it is.

``docs/metrics.md`` says what each metric means. Agents call the methods once a batch, not once a record.
"""

import math
import threading
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Final, Literal, TypeVar

import numpy as np
from numpy.typing import ArrayLike
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.gc_collector import GCCollector
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from pipeline.monitoring.metric_meanings import METRIC_MEANINGS
from pipeline.observability.endpoint import Endpoint
from pipeline.observability.health import AGENT_STATES, AgentState, Health
from pipeline.scoring.kinds import BY_NAME
from pipeline.scoring.prequential import ScoreMeasures

PREFIX: Final = "fraud_pipeline_"
M = TypeVar("M", Counter, Gauge, Histogram)

STAGE_BUCKETS_S: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
BATCH_BUCKETS: Final = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000)
LONG_BUCKETS_S: Final = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1_800.0, 3_600.0)
"""Buckets for durations from a moment to an hour: snapshots and restores."""
LATENCY_BUCKETS_S: Final = (
    *(0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0),
)

COUNTERS: Final[dict[str, tuple[str, ...]]] = {
    "records_consumed": ("agent", "topic"),
    "decisions": ("action",),
    "alerts": ("selection",),
    "dead_letters": ("stage", "code"),
    "duplicates": (),
    "labels": ("agent", "outcome"),
    "examples": ("label",),
    "training_updates": ("outcome",),
    "transactions_aborted": ("agent",),
    "model_changes": ("model",),
    "models_refused": ("model",),
    "records_refused": ("topic",),
    "producers_renewed": ("agent",),
    "redelivered": ("agent",),
    "quarantined": ("agent", "topic"),
    "rerouted": ("topic",),
    "snapshots_written": ("agent",),
    "snapshots_failed": ("agent",),
    "snapshots_refused": ("agent", "reason"),
    "records_replayed": ("agent",),
}
"""Names of counters, without prefix and ``_total``, and of their labels."""
GAUGES: Final[dict[str, tuple[str, ...]]] = {
    "lag_records": ("agent", "topic", "partition"),
    "damaged_batches": ("agent", "topic", "partition"),
    "oldest_undecided_seconds": ("agent", "topic", "partition"),
    "assigned_partitions": ("agent",),
    "model_version_info": ("model", "version"),
    "learning_frozen": (),
    "prequential_auc": ("model",),
    "prequential_log_loss": ("model",),
    "snapshot_bytes": ("agent", "partition"),
    "snapshot_timestamp_seconds": ("agent", "partition"),
    "store_entries": ("agent", "partition"),
    "store_bytes": ("agent", "partition"),
}
HEALTH_GAUGES: Final[dict[str, tuple[str, ...]]] = {
    "broker_unreachable_seconds": (),
    "agent_state": ("agent", "state"),
    "ready": (),
}
"""Gauges that are read from the worker's health when Prometheus asks."""
HISTOGRAMS: Final[Mapping[str, tuple[Sequence[float], tuple[str, ...]]]] = {
    "stage_seconds": (STAGE_BUCKETS_S, ("agent", "stage")),
    "batch_records": (BATCH_BUCKETS, ("agent",)),
    "snapshot_seconds": (LONG_BUCKETS_S, ("agent",)),
    "restore_seconds": (LONG_BUCKETS_S, ("agent", "source")),
}
"""Names of histograms, with the bounds of their buckets and the names of their labels."""
_AGENTS: Final = ("label", "card", "score", "feedback", "learn")
_BEGIN_AT_ZERO: Final[Mapping[str, Iterable[str]]] = {
    "decisions": ("allow", "alert"),
    "alerts": ("score", "rule", "audit"),
    "examples": ("fraud", "legitimate", "presumed_legitimate", "withdrawn"),
    "training_updates": ("learned", "corrections", "held"),
    "models_refused": (*BY_NAME, "policy"),
    "model_changes": (*BY_NAME, "policy"),
    "rerouted": ("transactions",),
    **{name: _AGENTS for name, labels in COUNTERS.items() if labels == ("agent",)},
}
"""Counters whose labels are known: a series that first appears at 1 has no increase that Prometheus sees."""
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


class WorkerMetrics:
    """All metrics of one worker process, in a registry of their own.

    ``host`` and ``port`` (0: any free one) are where ``start`` serves ``/metrics``, ``/livez`` and ``/readyz``.
    ``health`` is the worker's; it is reported separately. Counting works without ``start``, from any thread.
    """

    def __init__(self, host: str = "127.0.0.1", port: int = 0, health: Health | None = None) -> None:
        self.health = health if health is not None else Health()
        self._model_versions: dict[str, str] = {}
        self._model_lock = threading.Lock()
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        GCCollector(registry=self.registry)
        self._endpoint = Endpoint(host, port, self.registry, self.health)

        def made(kind: type[M], name: str, labels: tuple[str, ...], **options: Any) -> M:
            return kind(PREFIX + name, METRIC_MEANINGS[name], labels, registry=self.registry, **options)

        self._counters = {name: made(Counter, name, labels) for name, labels in COUNTERS.items()}
        self._gauges = {name: made(Gauge, name, labels) for name, labels in (GAUGES | HEALTH_GAUGES).items()}
        self._histograms = {
            name: made(Histogram, name, labels, buckets=bounds) for name, (bounds, labels) in HISTOGRAMS.items()
        }
        latency = "decision_latency_seconds"
        self._latency = ArrayHistogram(PREFIX + latency, METRIC_MEANINGS[latency], LATENCY_BUCKETS_S, self.registry)
        self._label_names = {
            **{f"{PREFIX}{name}_total": labels for name, labels in COUNTERS.items()},
            **{PREFIX + name: labels for name, labels in (GAUGES | HEALTH_GAUGES).items()},
            **{PREFIX + name: labels for name, (_, labels) in HISTOGRAMS.items()},
            PREFIX + latency: (),
        }
        for name, values in _BEGIN_AT_ZERO.items():
            for value in values:
                self.count(name, value, by=0)
        self._gauges["broker_unreachable_seconds"].set_function(self.health.unreachable_s)
        self._gauges["ready"].set_function(lambda: self.health.ready().ok)
        for agent in self.health.states():
            for state in AGENT_STATES:
                self._gauges["agent_state"].labels(agent, state).set_function(partial(self._in_state, agent, state))
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

    def count(self, name: str, *labels: str, by: int = 1) -> None:
        """Add to a counter of `COUNTERS`.

        Args:
            name: Its name.
            labels: Values of its labels.
            by: How much.
        """
        _series(self._counters[name], labels).inc(by)

    def show(self, name: str, value: float, *labels: object) -> None:
        """Set a gauge of `GAUGES`.

        Args:
            name: Its name.
            value: Its value from now on.
            labels: Values of its labels.
        """
        _series(self._gauges[name], labels).set(value)

    def forget(self, name: str, **labels: object) -> None:
        """End the series of a gauge that have these values of labels: they are another worker's to report."""
        self._gauges[name].remove_by_labels({label: str(value) for label, value in labels.items()})

    def observe(self, name: str, value: float, *labels: str) -> None:
        """Add a value to a histogram of `HISTOGRAMS`; ``labels`` are the values of its labels."""
        self._histograms[name].labels(*labels).observe(value)

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
            self._gauges[name].clear()
        for model, figure in figures.items():
            if figure.auc is not None:
                self.show("prequential_auc", figure.auc, model)
            self.show("prequential_log_loss", figure.log_loss, model)

    def snapshot_written(
        self, agent: str, partition: int, *, size_bytes: int, seconds: float, taken_at_s: float
    ) -> None:
        """A snapshot of the state as of ``taken_at_s`` (seconds since 1970) took ``seconds`` to write."""
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
        """The state of ``partition`` is complete after ``seconds``, after a replay of ``records``.

        ``snapshot_at_s`` is when the snapshot used was taken, in seconds since 1970; without one its age counts from
        now, so that a partition which never gets a snapshot is seen.
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


def _series(family: M, labels: Sequence[object]) -> M:
    return family.labels(*labels) if labels else family
