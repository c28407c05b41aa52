"""Metrics of an agent's batches and of its lag."""

import logging
import time
from collections import Counter
from collections.abc import Mapping
from typing import Final

from agents.topology import CARD
from pipeline.engine.records.results import Result
from pipeline.engine.records.whole_amounts import LEAST_AMOUNTS, AmountCounts, suspicion, suspicious
from pipeline.kafka.records.batch import Batch
from pipeline.kafka.session.session import Session
from pipeline.observability.metrics import WorkerMetrics

log = logging.getLogger(__name__)

COUNTED: Final = {
    "decision": "decisions",
    "alert": "alerts",
    "example": "examples",
    "training_update": "training_updates",
    "rerouted": "rerouted",
    "active_hit": "rule_hits",
    "shadow_hit": "shadow_rule_hits",
    "capped_hit": "capped_rule_hits",
    "list_hit": "list_hits",
    "overruled": "overruled_decisions",
}
"""Counters by the kind of `pipeline.engine.records.results.Result.counts`; the detail is their label."""
COUNTED_BY_AGENT: Final = {"label": "labels", "dead_letter": "dead_letters", "quarantined": "quarantined"}
"""Counters whose labels are the agent and the detail."""
REPEATED: Final = "duplicate"
"""Kind of what repeats: transactions at the card agent, records that were read again at the others."""
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
        metrics.observe("batch_records", len(batch.records), agent)
        for topic, count in Counter(record.topic for record in batch.records).items():
            metrics.count("records_consumed", agent, topic, by=count)
        self._done["records"] += len(batch.records)
        for (kind, detail), count in result.counts.items():
            if (name := COUNTED.get(kind)) is not None:
                metrics.count(name, detail, by=count)
            elif (name := COUNTED_BY_AGENT.get(kind)) is not None:
                metrics.count(name, agent, detail, by=count)
            elif kind == REPEATED:
                if agent == CARD.name:
                    metrics.count("duplicates", by=count)
                else:
                    metrics.count("redelivered", agent, by=count)
            if kind in ("decision", "alert"):
                self._done[f"{kind}s"] += count
            elif kind == "dead_letter":
                self._refused[detail] += count
        if result.given_up:
            metrics.count("labels", agent, "given_up", by=len(result.given_up))
            log.warning(
                "%s gave up %d labels while a partition of profiled stands still, at topic, partition and offset: %s",
                agent, len(result.given_up), "; ".join(result.given_up),
            )  # fmt: skip
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
        metrics.show("assigned_partitions", len(session.assigned), agent)
        lags = session.lag()
        for topic, partition in self._lags - lags.keys():
            metrics.forget("lag_records", agent=agent, topic=topic, partition=partition)
        for (topic, partition), records in lags.items():
            metrics.show("lag_records", records, agent, topic, partition)
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
        found = {what: self._done[what] for what in ("decisions", "alerts") if self._done[what]}
        log.info(
            "%s: %d records in %.0f s (%.0f a second)%s; %d wait on %d partitions",
            self._agent, self._done["records"], seconds, self._done["records"] / seconds,
            "".join(f", {count} {what}" for what, count in found.items()), sum(lags.values()), len(lags),
        )  # fmt: skip
        self._done.clear()
        self._status_at_s = now_s
