"""Metrics of an agent's batches and of its lag."""

import time
from collections import Counter
from functools import partial
from typing import Final

from pipeline.engine.results import Result
from pipeline.kafka.batch import Batch
from pipeline.kafka.session import Session
from pipeline.metrics import WorkerMetrics

LAG_INTERVAL_S: Final = 1.0


class Counts:
    """Counts what the batches of one agent came to."""

    def __init__(self, agent: str, metrics: WorkerMetrics) -> None:
        self._agent, self._metrics = agent, metrics
        self._lag_at_s = 0.0
        self._lags: set[tuple[str, int]] = set()

    def batch(self, batch: Batch, result: Result) -> None:
        """Count a committed batch and its result."""
        metrics, agent = self._metrics, self._agent
        metrics.batch_records(agent, len(batch.records))
        for topic, count in Counter(record.topic for record in batch.records).items():
            metrics.records_consumed(agent, topic, count)
        by_kind: dict[str, dict[str, int]] = {}
        for (kind, detail), count in result.counts.items():
            by_kind.setdefault(kind, {})[detail] = count
        metrics.decisions(by_kind.get("decision", {}))
        metrics.alerts(by_kind.get("alert", {}))
        metrics.labels(agent, by_kind.get("label", {}))
        metrics.examples(by_kind.get("example", {}))
        metrics.lessons(by_kind.get("lesson", {}))
        for code, count in by_kind.get("dead_letter", {}).items():
            metrics.dead_letters(agent, code, count)
        for topic, count in by_kind.get("rerouted", {}).items():
            metrics.rerouted(topic, count)
        for topic, count in by_kind.get("set_aside", {}).items():
            metrics.set_aside(agent, topic, count)
        if duplicates := by_kind.get("duplicate"):
            (metrics.duplicates if agent == "card" else partial(metrics.repeats, agent))(sum(duplicates.values()))
        if result.latencies_s:
            metrics.decision_latency_seconds(result.latencies_s)

    def lag(self, session: Session) -> bool:
        """Report assigned partitions and lag, once a second at most; return whether it did."""
        now_s = time.monotonic()
        if now_s - self._lag_at_s < LAG_INTERVAL_S:
            return False
        self._lag_at_s = now_s
        metrics, agent = self._metrics, self._agent
        metrics.assigned_partitions(agent, len(session.assigned))
        lags = session.lag()
        for topic, partition in self._lags - lags.keys():
            metrics.forget_partition(agent, topic, partition)
        for (topic, partition), records in lags.items():
            metrics.lag_records(agent, topic, partition, records)
        self._lags = set(lags)
        return True
