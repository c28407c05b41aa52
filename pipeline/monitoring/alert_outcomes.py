"""Outcomes of the newest alerts: how many are fraud, and how much fraud they find and miss."""

from typing import Final, NamedTuple

from pipeline.learning.labels import FRAUD
from pipeline.learning.online_updates import WITHDRAWN
from schemas.times import US_PER_DAY

WINDOW_DAYS: Final = 30
"""Days of event time, up to the newest alert or example, that figures are of."""

Key = tuple[str, str]
"""Card and transaction."""


class AlertFigures(NamedTuple):
    """Figures of the newest days, as far as labels say."""

    precision: float | None
    """Share of the alerts with an example that are fraud, by the weights of the examples; None without one."""
    alerted_amount: float
    """Amount of the frauds that raised an alert, in the base currency."""
    missed_amount: float


class _KnownOutcome(NamedTuple):
    event_time_us: int
    is_fraud: bool
    amount: float
    weight: float


class AlertOutcomes:
    """Joins alerts and examples, in any order; a later example of a transaction takes the place of the one before.

    >>> outcomes = AlertOutcomes()
    >>> outcomes.add_alert(("c", "t1"), 0)
    >>> outcomes.add_example(("c", "t1"), 0, "fraud", 40.0, 1.0)
    >>> outcomes.add_example(("c", "t2"), 0, "fraud", 60.0, 1.0)
    >>> outcomes.figures()
    AlertFigures(precision=1.0, alerted_amount=40.0, missed_amount=60.0)
    """

    def __init__(self) -> None:
        self._alerts: dict[Key, int] = {}
        self._examples: dict[Key, _KnownOutcome] = {}
        self._stream_time_us = 0

    def add_alert(self, key: Key, event_time_us: int) -> None:
        """Add an alert; time in microseconds since 1970."""
        self._alerts[key] = event_time_us
        self._stream_time_us = max(self._stream_time_us, event_time_us)

    def add_example(self, key: Key, event_time_us: int, label: str, amount: float, weight: float) -> None:
        """Add an example.

        Args:
            key: Card and transaction.
            event_time_us: Event time of the transaction, in microseconds since 1970.
            label: Label as in `schemas.messages.Example`; a withdrawn one counts with weight 0.
            amount: Major unit of the base currency.
            weight: Inverse of the probability with which an example of this label is kept.
        """
        self._examples[key] = _KnownOutcome(
            event_time_us, label == FRAUD, amount, 0.0 if label == WITHDRAWN else weight
        )
        self._stream_time_us = max(self._stream_time_us, event_time_us)

    def figures(self) -> AlertFigures:
        """Return the figures of all that was added; older alerts, and examples that no alert needs, are forgotten.

        Call it once all alerts are there that were raised before the examples.
        """
        oldest_us = self._stream_time_us - WINDOW_DAYS * US_PER_DAY
        self._alerts = {key: time_us for key, time_us in self._alerts.items() if time_us >= oldest_us}
        self._examples = {
            key: example
            for key, example in self._examples.items()
            if example.event_time_us >= oldest_us and (example.is_fraud or key in self._alerts)
        }
        alerted = [example for key, example in self._examples.items() if key in self._alerts]
        weight = sum(example.weight for example in alerted)
        return AlertFigures(
            precision=sum(example.weight for example in alerted if example.is_fraud) / weight if weight else None,
            alerted_amount=sum(example.amount for example in alerted if example.is_fraud),
            missed_amount=sum(example.amount for key, example in self._examples.items() if key not in self._alerts),
        )
