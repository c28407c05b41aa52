"""Caps on the alerts of rules: a partition stops a rule that has raised so many in an hour of event time."""

from collections import Counter
from collections.abc import Callable
from functools import cache
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from pipeline.decision.rules import RuleSet
from pipeline.learning.event_clock import ClockState, EventClock
from pipeline.scoring.payload import payload_digest

MOST_COUNTED: Final = 150
"""Rules that a partition counts, those with most alerts: counts stand beside a committed offset, in 4,096 bytes."""

Bound = Callable[[RuleSet, NDArray[np.object_], NDArray[np.bool_]], NDArray[np.object_]]
"""Return n rows' hits, in which rules are stopped, from those that lists leave and which rows the score alerts on."""


@cache
def _key(code: str) -> str:
    return payload_digest(code.encode())[:8]


class _Counts(msgspec.Struct, frozen=True, array_like=True):
    clock: ClockState | None = None
    hour: int = 0
    alerts: dict[str, int] = {}
    """By the rule's key."""


class PartitionCaps:
    """Alerts of each rule in the newest event hour of a partition of ``profiled``.

    They depend on the order of the log and on the rules that decided, and not on how rows are cut into batches, as long
    as no more than `MOST_COUNTED` rules with caps alert in an hour: others begin at zero with each batch. Where
    something was decided while a rule raised nothing, it is counted from zero.

    Args:
        saved: The ``state`` of before; None: nothing is counted.
    """

    def __init__(self, saved: Any = None) -> None:
        self._now = self._committed = _Counts() if saved is None else msgspec.convert(saved, _Counts)

    @property
    def state(self) -> Any:
        """The counts, those of the open batch included, for `__init__`; None where there are none."""
        return None if self._now.clock is None else msgspec.to_builtins(self._now)

    def commit(self) -> None:
        """The batch is committed."""
        self._committed = self._now

    def rollback(self) -> None:
        """The batch is not committed: take it back."""
        self._now = self._committed

    def bounded(
        self, rules: RuleSet, hits: NDArray[np.object_], by_score: NDArray[np.bool_], event_time_us: NDArray[np.int64]
    ) -> NDArray[np.object_]:
        """Return the hits of the next n rows of the log, each alert beyond a cap as a hit that raises nothing.

        Args:
            rules: The set that has hit.
            hits: Numbers of its rules that hit each row, ascending, without those that lists overrule.
            by_score: True where the score alerts by itself, so that a rule adds no alert; shape (n,).
            event_time_us: Shape (n,).
        """
        alerting = enumerate(rules.evaluated[: rules.alerting])
        caps = {number: rule.max_alerts_per_hour for number, rule in alerting if rule.max_alerts_per_hour}
        before = self._now.alerts
        if not len(hits) or not (caps or before):
            return hits
        clock = EventClock()
        clock.state = self._now.clock
        hours = clock.hours(event_time_us).tolist()
        rows = np.flatnonzero(rules.alerts(hits) & ~by_score).tolist()
        # Most batches have nothing to count, and a set may have a thousand rules.
        keys = {number: _key(rules.code(number)) for number in caps} if rows or before else {}
        # Who brings a stopped rule back wants it to alert: it is counted from zero.
        alerts = Counter({key: before[key] for key in before.keys() & {*keys.values()}})
        hour, found = self._now.hour, hits.copy()
        for row in rows:
            if hours[row] != hour:
                hour, alerts = hours[row], Counter()
            stopped = {number for number in hits[row] if number in caps and alerts[keys[number]] >= caps[number]}
            alerts.update(keys[number] for number in hits[row] if number in caps and number not in stopped)
            found[row] = rules.capped(hits[row], stopped)
        most = sorted(alerts.items(), key=lambda item: (-item[1], item[0]))[:MOST_COUNTED]
        self._now = _Counts(clock.state, hour, dict(most))
        return found
