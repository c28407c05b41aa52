"""Metrics of an agent's batches and of its lag."""

import logging
import time
from collections import Counter
from collections.abc import Mapping
from functools import partial
from typing import Final

from pipeline.engine.records.results import Result
from pipeline.engine.records.whole_amounts import LEAST_AMOUNTS, AmountCounts, suspicion, suspicious
from pipeline.kafka.records.batch import Batch
from pipeline.kafka.session.session import Session
from pipeline.observability.metrics import WorkerMetrics

log = logging.getLogger(__name__)

LAG_INTERVAL_S: Final = 1.0
STATUS_INTERVAL_S: Final = 60.0
"""Time between two log lines that report what an agent did."""
DEAD_LETTERS_INTERVAL_S: Final = 60.0
"""Time for which dead letters of one code are not logged again; the line after it has their number."""


class Counts:
    """Counts what the batches of one agent came to."""

    def __init__(self, agent: str, metrics: WorkerMetrics) -> None:
        self._agent, self._metrics = agent, metrics
        self._lag_at_s = 0.0
        self._lags: set[tuple[str, int]] = set()
        self._status_at_s = time.monotonic()
        self._done: Counter[str] = Counter()
        self._refused: Counter[str] = Counter()
        self._refused_at_s: dict[str, float] = {}
        self._amounts: AmountCounts = Counter()
        self._suspected: set[str] = set()

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
        if result.given_up:
            metrics.labels(agent, {"given_up": len(result.given_up)})
            log.warning(
                "%s gave up %d labels while a partition of profiled stands still, at topic, partition and offset: %s",
                agent, len(result.given_up), "; ".join(result.given_up),
            )  # fmt: skip
        metrics.examples(by_kind.get("example", {}))
        metrics.training_updates(by_kind.get("training_update", {}))
        for code, count in by_kind.get("dead_letter", {}).items():
            metrics.dead_letters(agent, code, count)
        self._done.update(records=len(batch.records), decisions=sum(by_kind.get("decision", {}).values()))
        self._done.update(alerts=sum(by_kind.get("alert", {}).values()))
        self._refused.update(by_kind.get("dead_letter", {}))
        for topic, count in by_kind.get("rerouted", {}).items():
            metrics.rerouted(topic, count)
        for topic, count in by_kind.get("quarantined", {}).items():
            metrics.quarantined(agent, topic, count)
        if duplicates := by_kind.get("duplicate"):
            (metrics.duplicates if agent == "card" else partial(metrics.redelivered, agent))(sum(duplicates.values()))
        self._amounts += result.amounts
        for currency in suspicious(self._amounts):
            if currency not in self._suspected:
                self._suspected.add(currency)
                log.warning("%s: %s", agent, suspicion(currency, self._amounts[currency, False]))
        for currency, _ in result.amounts:
            # One amount with decimals hides no more than the amounts of its time.
            if self._amounts[currency, False] + self._amounts[currency, True] >= LEAST_AMOUNTS:
                del self._amounts[currency, False], self._amounts[currency, True]
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
        metrics.damaged_batches(agent, session.damaged)
        self._log_dead_letters(now_s)
        if now_s - self._status_at_s >= STATUS_INTERVAL_S:
            self._log_status(lags, now_s)
        return True

    def _log_dead_letters(self, now_s: float) -> None:
        for code in [code for code, count in self._refused.items() if count]:
            if now_s - self._refused_at_s.get(code, -DEAD_LETTERS_INTERVAL_S) >= DEAD_LETTERS_INTERVAL_S:
                count = self._refused.pop(code)
                log.warning(
                    "%s: %d %s: %s (see `fraud-pipeline dead-letters list --code %s`)",
                    self._agent, count, "dead letter" if count == 1 else "dead letters", code, code,
                )  # fmt: skip
                self._refused_at_s[code] = now_s

    def _log_status(self, lags: Mapping[tuple[str, int], int], now_s: float) -> None:
        seconds = now_s - self._status_at_s
        found = {what: count for what, count in self._done.items() if what != "records" and count}
        log.info(
            "%s: %d records in %.0f s (%.0f a second)%s; %d wait on %d partitions",
            self._agent, self._done["records"], seconds, self._done["records"] / seconds,
            "".join(f", {count} {what}" for what, count in found.items()), sum(lags.values()), len(lags),
        )  # fmt: skip
        self._done.clear()
        self._status_at_s = now_s
