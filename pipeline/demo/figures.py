"""The figures of a run: what was sent, what came back, how long it took. Pure: the clock is an argument."""

import json
import math
from collections import deque
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from schemas.messages import Alert

_GROWTH: Final = 1.02
"""Ratio of neighbouring buckets: a percentile is exact to 1 %."""
_SMALLEST_MS: Final = 0.01
_BUCKETS: Final = 1_000
"""Enough to reach past an hour."""

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
    """Events per second over the last few seconds."""

    def __init__(self, window_s: float = 3.0) -> None:
        self._window_s = window_s
        self._readings: deque[tuple[float, int]] = deque()

    def update(self, now_s: float, total: int) -> float:
        """Take in the ``total`` at ``now_s`` (any monotonic clock) and return the present rate."""
        self._readings.append((now_s, total))
        while len(self._readings) > 2 and now_s - self._readings[1][0] >= self._window_s:
            self._readings.popleft()
        first_s, first_total = self._readings[0]
        return (total - first_total) / (now_s - first_s) if now_s > first_s else 0.0


@dataclass(slots=True)
class RunFigures:
    """Everything that the view and the summary show. One thread writes a field; any thread may read it."""

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
