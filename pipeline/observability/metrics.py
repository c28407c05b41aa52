"""The worker's metrics, for Prometheus: what it counts and how it is.

``docs/metrics.md`` says what each metric means. Agents call the methods once a batch, not once a record.
"""

import math
import threading
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final, Literal

import numpy as np
from numpy.typing import ArrayLike
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.gc_collector import GCCollector
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from pipeline.monitoring.metric_meanings import METRIC_MEANINGS
from pipeline.observability.endpoint import Endpoint
from pipeline.observability.health import Health, HealthCollector
from pipeline.scoring.kinds import BY_NAME
from pipeline.scoring.prequential import ScoreMeasures

PREFIX: Final = "fraud_pipeline_"

STAGE_BUCKETS_S: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
BATCH_BUCKETS: Final = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000)
LONG_BUCKETS_S: Final = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1_800.0, 3_600.0)
"""Buckets for durations from a moment to an hour: snapshots and restores."""
LATENCY_BUCKETS_S: Final = (
    *(0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0),
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
    ``health`` is the worker's; it is reported separately. Counting works without ``start``, from any thread. Amounts of
    time are seconds.
    """

    def __init__(self, host: str = "127.0.0.1", port: int = 0, health: Health | None = None) -> None:
        self.health = health if health is not None else Health()
        self._label_names: dict[str, tuple[str, ...]] = {}
        self._model_versions: dict[str, str] = {}
        self._model_lock = threading.Lock()
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        GCCollector(registry=self.registry)
        of_health = HealthCollector(self.health, PREFIX)
        self.registry.register(of_health)
        self._label_names |= of_health.label_names()
        self._endpoint = Endpoint(host, port, self.registry, self.health)

        def counter(name: str, *labels: str) -> Counter:
            self._label_names[f"{PREFIX}{name}_total"] = labels
            return Counter(PREFIX + name, METRIC_MEANINGS[name], labels, registry=self.registry)

        def gauge(name: str, *labels: str) -> Gauge:
            self._label_names[PREFIX + name] = labels
            return Gauge(PREFIX + name, METRIC_MEANINGS[name], labels, registry=self.registry)

        def histogram(name: str, bounds: Sequence[float], *labels: str) -> Histogram:
            self._label_names[PREFIX + name] = labels
            return Histogram(PREFIX + name, METRIC_MEANINGS[name], labels, buckets=bounds, registry=self.registry)

        self._records = counter("records_consumed", "agent", "topic")
        self._decisions = counter("decisions", "action")
        self._alerts = counter("alerts", "selection")
        self._dead_letters = counter("dead_letters", "stage", "code")
        self._duplicates = counter("duplicates")
        self._labels = counter("labels", "agent", "outcome")
        self._examples = counter("examples", "label")
        self._training_updates = counter("training_updates", "outcome")
        self._aborted = counter("transactions_aborted", "agent")
        self._stages = histogram("stage_seconds", STAGE_BUCKETS_S, "agent", "stage")
        self._batches = histogram("batch_records", BATCH_BUCKETS, "agent")
        self._lag = gauge("lag_records", "agent", "topic", "partition")
        self._damaged = gauge("damaged_batches", "agent", "topic", "partition")
        self._undecided = gauge("oldest_undecided_seconds", "agent", "topic", "partition")
        self._assigned = gauge("assigned_partitions", "agent")
        self._models = gauge("model_version_info", "model", "version")
        self._changes = counter("model_changes", "model")
        self._refused = counter("models_refused", "model")
        self._frozen = gauge("learning_frozen")
        self._auc = gauge("prequential_auc", "model")
        self._log_loss = gauge("prequential_log_loss", "model")
        self._unreadable = counter("records_refused", "topic")
        self._renewed = counter("producers_renewed", "agent")
        self._redelivered = counter("redelivered", "agent")
        self._quarantined = counter("quarantined", "agent", "topic")
        self._rerouted = counter("rerouted", "topic")
        self._written = counter("snapshots_written", "agent")
        self._failed = counter("snapshots_failed", "agent")
        self._unfit = counter("snapshots_refused", "agent", "reason")
        self._snapshot_seconds = histogram("snapshot_seconds", LONG_BUCKETS_S, "agent")
        self._snapshot_bytes = gauge("snapshot_bytes", "agent", "partition")
        self._snapshot_time = gauge("snapshot_timestamp_seconds", "agent", "partition")
        self._restore_seconds = histogram("restore_seconds", LONG_BUCKETS_S, "agent", "source")
        self._replayed = counter("records_replayed", "agent")
        self._store_entries = gauge("store_entries", "agent", "partition")
        self._store_bytes = gauge("store_bytes", "agent", "partition")
        latency = PREFIX + "decision_latency_seconds"
        self._label_names[latency] = ()
        self._latency = ArrayHistogram(
            latency, METRIC_MEANINGS["decision_latency_seconds"], LATENCY_BUCKETS_S, self.registry
        )
        self._begin_series()

    def _begin_series(self) -> None:
        """Let series whose labels are known begin at 0: one that first appears at 1 has no increase to see."""
        for family, values in (
            (self._decisions, ("allow", "alert")),
            (self._alerts, ("score", "rule", "audit")),
            (self._examples, ("fraud", "legitimate", "presumed_legitimate", "withdrawn")),
            (self._training_updates, ("learned", "corrections", "held")),
            (self._refused, (*BY_NAME, "policy")),
            (self._changes, (*BY_NAME, "policy")),
            (self._rerouted, ("transactions",)),
            *(
                (family, ("label", "card", "score", "feedback", "learn"))
                for family in (
                    self._aborted,
                    self._renewed,
                    self._redelivered,
                    self._written,
                    self._failed,
                    self._replayed,
                )
            ),
        ):
            for value in values:
                family.labels(value)
        self._labels.labels("feedback", "given_up")
        for agent, topic in (
            *(("label", "labels"), ("card", "transactions"), ("card", "rerouted"), ("card", "accepted-labels")),
            *(("score", "profiled"), ("feedback", "accepted-labels"), ("feedback", "features"), ("learn", "examples")),
        ):
            self._quarantined.labels(agent, topic)

    def start(self) -> int:
        """Serve metrics and health from threads of their own; returns the port. Raises ``EndpointError``."""
        return self._endpoint.start()

    def stop(self) -> None:
        """Stop serving and free the port; does nothing if nothing is served."""
        self._endpoint.stop()

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
        """Count labels at ``agent``, given as outcome -> number."""
        for outcome, count in counts.items():
            self._labels.labels(agent, outcome).inc(count)

    def examples(self, counts: Mapping[str, int]) -> None:
        """Examples published, as label -> number."""
        _count(self._examples, counts)

    def training_updates(self, counts: Mapping[str, int]) -> None:
        """Count examples at the learn agent, given as outcome -> number."""
        _count(self._training_updates, counts)

    def prequential(self, figures: Mapping[str, ScoreMeasures]) -> None:
        """Show how well each model did on the newest examples; without figures the series end."""
        self._auc.clear()
        self._log_loss.clear()
        for model, figure in figures.items():
            if figure.auc is not None:
                self._auc.labels(model).set(figure.auc)
            self._log_loss.labels(model).set(figure.log_loss)

    def transaction_aborted(self, agent: str) -> None:
        """``agent`` aborted a Kafka transaction; its batch is processed again."""
        self._aborted.labels(agent).inc()

    def producer_renewed(self, agent: str) -> None:
        """``agent`` replaced a producer that could not go on."""
        self._renewed.labels(agent).inc()

    def redelivered(self, agent: str, records: int) -> None:
        """``agent`` passed over ``records`` records or rows that it had worked on before (at-least-once delivery)."""
        self._redelivered.labels(agent).inc(records)

    def quarantined(self, agent: str, topic: str, records: int = 1) -> None:
        """``records`` records of ``topic`` failed too often at ``agent``; they are passed over from now on."""
        self._quarantined.labels(agent, topic).inc(records)

    def rerouted(self, topic: str, records: int) -> None:
        """``records`` records of ``topic`` lay in another partition than their card's and were passed on."""
        self._rerouted.labels(topic).inc(records)

    def snapshot_written(
        self, agent: str, partition: int, *, size_bytes: int, seconds: float, taken_at_s: float
    ) -> None:
        """A snapshot of the state as of ``taken_at_s`` (seconds since 1970) took ``seconds`` to write."""
        self._written.labels(agent).inc()
        self._snapshot_seconds.labels(agent).observe(seconds)
        self._snapshot_bytes.labels(agent, str(partition)).set(size_bytes)
        self._snapshot_time.labels(agent, str(partition)).set(taken_at_s)

    def snapshot_failed(self, agent: str) -> None:
        """A snapshot could not be written."""
        self._failed.labels(agent).inc()

    def snapshot_refused(self, agent: str, reason: str) -> None:
        """A snapshot was found and not used; ``reason`` is one word, such as ``damaged`` or ``version``."""
        self._unfit.labels(agent, reason).inc()

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
        self._restore_seconds.labels(agent, source).observe(seconds)
        self._replayed.labels(agent).inc(records)
        taken_at_s = snapshot_at_s if snapshot_at_s is not None else time.time()
        self._snapshot_time.labels(agent, str(partition)).set(taken_at_s)

    def store(self, agent: str, partition: int, *, entries: int, size_bytes: int) -> None:
        """Set the size of a partition's store."""
        self._store_entries.labels(agent, str(partition)).set(entries)
        self._store_bytes.labels(agent, str(partition)).set(size_bytes)

    def forget_state(self, agent: str, partition: int) -> None:
        """The partition's state was let go: its snapshots and its store are another worker's to report."""
        for family in (self._snapshot_bytes, self._snapshot_time, self._store_entries, self._store_bytes):
            family.remove_by_labels({"agent": agent, "partition": str(partition)})

    def stage_seconds(self, agent: str, stage: str, seconds: float) -> None:
        """Observe that one batch spent ``seconds`` in ``stage``."""
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
        """The partition was revoked: its lag is another worker's to report."""
        self._lag.remove_by_labels({"agent": agent, "topic": topic, "partition": str(partition)})

    def damaged_batches(self, agent: str, partitions: Collection[tuple[str, int]]) -> None:
        """Show the partitions, by topic and number, in which ``agent`` waits for a whole copy of a damaged batch."""
        self._damaged.remove_by_labels({"agent": agent})
        for topic, partition in partitions:
            self._damaged.labels(agent, topic, str(partition)).set(1)

    def oldest_undecided(self, agent: str, topic: str, partition: int, seconds: float) -> None:
        """The oldest record of the partition that ``agent`` has not committed is ``seconds`` old; 0 without one."""
        self._undecided.labels(agent, topic, str(partition)).set(seconds)

    def forget_undecided(self, agent: str, topic: str, partition: int) -> None:
        """The partition was revoked: its oldest record is another worker's to report."""
        self._undecided.remove_by_labels({"agent": agent, "topic": topic, "partition": str(partition)})

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

    def model_changed(self, model: str) -> None:
        """Another version of ``model`` decides from now on."""
        self._changes.labels(model).inc()

    def model_refused(self, model: str) -> None:
        """A published version of ``model`` could not be used; the version before it stays active."""
        self._refused.labels(model).inc()

    def learning_frozen(self, frozen: bool) -> None:
        """Learning is frozen, or is not, from now on."""
        self._frozen.set(float(frozen))

    def records_refused(self, topic: str) -> None:
        """A record of the internal topic ``topic`` (full name) was refused; reading went on behind it."""
        self._unreadable.labels(topic).inc()

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
