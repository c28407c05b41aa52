"""The figures of a run: what was sent, what came back, how long it took. Pure: records and clock are arguments."""

import json
import math
import threading
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

import msgspec

from pipeline.learning.labels import FRAUD, LEGITIMATE
from schemas.errors import UNREADABLE
from schemas.messages import Alert

_GROWTH: Final = 1.02
"""Ratio of neighbouring buckets: a percentile is exact to 1 %."""
_SMALLEST_MS: Final = 0.01
_BUCKETS: Final = 1_000
"""Enough to reach past an hour."""

RATE_WINDOW_S: Final = 3.0
LATEST_ALERTS: Final = 5


class LatencyHistogram:
    """Latencies in buckets of equal ratio, so that a run without end needs no more memory than a short one."""

    def __init__(self) -> None:
        self._counts = [0] * _BUCKETS
        self.count = 0

    def add(self, latency_ms: float) -> None:
        """Count one latency in milliseconds; below 0.01 counts as 0.01."""
        bucket = int(math.log(max(latency_ms, _SMALLEST_MS) / _SMALLEST_MS, _GROWTH))
        self._counts[min(bucket, _BUCKETS - 1)] += 1
        self.count += 1

    def percentile_ms(self, share: float) -> float | None:
        """The latency that ``share`` (0 to 1) of all stay within, in milliseconds; None without any."""
        if self.count == 0:
            return None
        wanted = max(1, math.ceil(share * self.count))
        seen = 0
        for bucket, count in enumerate(self._counts):
            seen += count
            if seen >= wanted:
                return float(_SMALLEST_MS * _GROWTH ** (bucket + 0.5))
        raise AssertionError("the buckets hold fewer latencies than were counted")


class RateMeter:
    """Events per second over the last `RATE_WINDOW_S`."""

    def __init__(self) -> None:
        self._readings: deque[tuple[float, int]] = deque()

    def update(self, now_s: float, total: int) -> float:
        """Take in the ``total`` at ``now_s`` (any monotonic clock) and return the present rate."""
        self._readings.append((now_s, total))
        while len(self._readings) > 2 and now_s - self._readings[1][0] >= RATE_WINDOW_S:
            self._readings.popleft()
        first_s, first_total = self._readings[0]
        return (total - first_total) / (now_s - first_s) if now_s > first_s else 0.0


class _Head(msgspec.Struct, frozen=True):
    """The parts of records that are needed; reading only these keeps the monitor out of the workers' way."""

    transaction_id: str = ""
    action: str = ""
    label: str | None = None
    name: str = ""
    """Name of a model; empty for a control record."""
    version: str = ""


_decode_head: Final = msgspec.json.Decoder(_Head).decode
_decode_alert: Final = msgspec.json.Decoder(Alert).decode


@dataclass(slots=True, eq=False)
class RunFigures:
    """Everything that the view and the summary show, from the records of one run.

    The alerts of the warm-up are not counted: the first model has learned from those very transactions. One thread
    writes a field; any thread may read it, and `sent` may be called by another one than the rest. Memory grows with the
    transactions in flight and the alerts.
    """

    transactions: int = 0
    """Records that were sent to ``transactions``, the warm-up's included."""
    warm_up_transactions: int = 0
    decisions: int = 0
    repeated_decisions: int = 0
    """Decisions beyond the first of a transaction, or of a transaction that was never sent here."""
    alerts: int = 0
    dead_letters: int = 0
    refused: int = 0
    """Transactions of this run among the dead letters; they get no decision."""
    labels: int = 0
    labelled_alerts: int = 0
    """Alerts whose label (fraud or legitimate) has come."""
    confirmed_alerts: int = 0
    """Those that the label calls fraud."""
    river_version: str | None = None
    river_versions: int = 0
    """Versions of the River model that were published after the first."""
    latencies: LatencyHistogram = field(default_factory=LatencyHistogram)
    """Latencies from the producer's send to the decision read with read_committed; without the warm-up."""
    latest_alerts: deque[Alert] = field(default_factory=lambda: deque(maxlen=LATEST_ALERTS))
    alerts_decided: int = 0
    """Decisions read whose action is an alert: so many alerts there must be."""
    _sent_s: dict[str, float | None] = field(default_factory=dict)
    """Transactions without a decision: when they were sent (None in the warm-up, which is not timed)."""
    _alerted: set[str] = field(default_factory=set)
    """Transactions with an alert whose label has not come."""
    _early_labels: dict[str, str] = field(default_factory=dict)
    """Labels that were read before the decision on their transaction."""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def undecided(self) -> int:
        """Transactions sent that have neither a decision nor been refused, as far as was read."""
        return max(0, self.transactions - self.decided)

    @property
    def decided(self) -> int:
        """Transactions that have a decision or were refused, as far as was read."""
        return self.refused + self.decisions - self.repeated_decisions

    @property
    def precision(self) -> float | None:
        """Share of the alerts with a label that are fraud; None before the first label of an alert."""
        return self.confirmed_alerts / self.labelled_alerts if self.labelled_alerts else None

    def sent(self, transaction_id: str, now_s: float, *, warm_up: bool = False) -> None:
        """Enter a transaction that is about to be sent.

        Args:
            transaction_id: Identifier of the transaction.
            now_s: Seconds on any monotonic clock, the same in all calls.
            warm_up: It belongs to the warm-up: its latency, and the label of its alert, do not count.
        """
        with self._lock:
            self._sent_s[transaction_id] = None if warm_up else now_s
        self.transactions += 1
        self.warm_up_transactions += warm_up

    def decision(self, value: bytes, now_s: float) -> None:
        """Enter a decision that was read at ``now_s`` (the clock of `sent`)."""
        self.decisions += 1
        try:
            head = _decode_head(value)
        except UNREADABLE:
            self.repeated_decisions += 1
            return
        with self._lock:
            known = head.transaction_id in self._sent_s
            sent_s = self._sent_s.pop(head.transaction_id, None)
        if not known:
            self.repeated_decisions += 1
            return
        if sent_s is not None:
            self.latencies.add((now_s - sent_s) * 1_000)
        label = self._early_labels.pop(head.transaction_id, None)
        self.alerts_decided += head.action == "alert"
        if head.action == "alert" and sent_s is not None:
            self._alerted.add(head.transaction_id)
            if label is not None:
                self._judge(head.transaction_id, label)

    def label(self, value: bytes) -> None:
        """Enter a label, whatever its source; anybody may write one that is none."""
        self.labels += 1
        try:
            head = _decode_head(value)
        except UNREADABLE:
            return
        if head.transaction_id in self._alerted:
            self._judge(head.transaction_id, head.label or "")
        elif head.transaction_id in self._sent_s:
            self._early_labels[head.transaction_id] = head.label or ""

    def alert(self, value: bytes) -> None:
        """Enter an alert."""
        self.alerts += 1
        # Somebody else may have written it.
        with suppress(*UNREADABLE):
            self.latest_alerts.append(_decode_alert(value))

    def dead_letter(self, value: bytes) -> None:
        """Count a dead letter; ``value`` is that of the record that was quarantined: no decision will come on it."""
        self.dead_letters += 1
        try:
            head = _decode_head(value)
        except UNREADABLE:
            # Not JSON, or not a message: none of the transactions that were sent here.
            return
        if head.label is not None:
            return
        with self._lock:
            known = head.transaction_id in self._sent_s
            self._sent_s.pop(head.transaction_id, None)
        self.refused += known

    def model(self, value: bytes) -> None:
        """Enter a published model version."""
        head = _decode_head(value)
        if head.name == "river":
            self.river_versions += self.river_version is not None
            self.river_version = head.version

    def missing(self, limit: int) -> list[str]:
        """At most ``limit`` transactions that were sent and have no decision, oldest first."""
        with self._lock:
            return [transaction_id for transaction_id, _ in zip(self._sent_s, range(limit), strict=False)]

    def _judge(self, transaction_id: str, label: str) -> None:
        if label not in {FRAUD, LEGITIMATE}:
            return
        self._alerted.discard(transaction_id)
        self.labelled_alerts += 1
        self.confirmed_alerts += label == FRAUD


@dataclass(slots=True)
class RunState:
    """The present stage and the figures. ``started_s`` and all other seconds are of one monotonic clock."""

    started_s: float
    stage: str = "starting"
    """The current step or wait, in words for a newcomer."""
    days: int = 0
    """Simulated days to stream; 0 for a run without end."""
    day: int = 0
    """The day that is streaming, from 1; 0 before."""
    day_share: float = 0.0
    """Share of that day's transactions that have been sent."""
    simulated: datetime | None = None
    """Event time of the newest transaction sent."""
    transactions_per_s: float = 0.0
    workers: int = 0
    """Worker processes that run."""
    topic_prefix: str = ""
    figures: RunFigures = field(default_factory=RunFigures)

    @property
    def share(self) -> float | None:
        """Share of all days that has been streamed; None in a run without end or before the first day."""
        if self.days == 0 or self.day == 0:
            return None
        return min(1.0, (self.day - 1 + self.day_share) / self.days)


def summary_json(figures: RunFigures) -> str:
    """The last line of a run: one JSON object; a figure that does not exist is null."""
    return json.dumps(
        {
            "transactions": figures.transactions,
            "decisions": figures.decisions,
            "alerts": figures.alerts,
            "dead_letters": figures.dead_letters,
            "labels": figures.labels,
            "river_version": figures.river_version,
            "p50_ms": _rounded(figures.latencies.percentile_ms(0.50)),
            "p99_ms": _rounded(figures.latencies.percentile_ms(0.99)),
        }
    )


def _rounded(latency_ms: float | None) -> float | None:
    return None if latency_ms is None else round(latency_ms, 1)
