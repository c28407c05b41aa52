"""Gauges of ``fraud-pipeline drift --follow``; ``docs/metrics.md`` says what each metric means."""

import math
from collections.abc import Sequence
from typing import Final

from prometheus_client import CollectorRegistry, Gauge

from pipeline.monitoring.alert_outcomes import AlertFigures
from pipeline.monitoring.drift import DayDrift, drifted
from pipeline.monitoring.metric_meanings import METRIC_MEANINGS
from pipeline.observability.metrics import PREFIX
from schemas.times import US_PER_DAY, US_PER_SECOND

_SECONDS_PER_DAY: Final = US_PER_DAY // US_PER_SECOND


class DriftMetrics:
    """Gauges of drift, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._label_names: dict[str, tuple[str, ...]] = {}
        self._alarm = self._gauge("drift_alarm", "series")
        self._p_value = self._gauge("drift_p_value", "series")
        self._importance = self._gauge("drift_importance", "series")
        self._shown: set[str] = set()
        self._day = self._gauge("drift_day_timestamp_seconds")
        self._precision = self._gauge("alert_precision")
        self._amount = self._gauge("fraud_amount", "outcome")
        # Without an alert that has an example there is no precision; 0 would be one.
        self._precision.set(math.nan)

    def show(self, days: Sequence[DayDrift], importance: dict[str, float]) -> None:
        """Show what `pipeline.monitoring.drift.judge` found; nothing changes where no day could be assessed."""
        if not days:
            return
        newest = days[-1]
        self._day.set(newest.day * _SECONDS_PER_DAY)
        alarmed = {found.name for found in drifted(days, ignored=())}
        shown = newest.p_values.keys() | alarmed
        for name in self._shown - shown:
            for gauge in (self._alarm, self._p_value, self._importance):
                gauge.remove(name)
        self._shown = set(shown)
        for name in shown:
            self._alarm.labels(name).set(name in alarmed)
            self._p_value.labels(name).set(newest.p_values.get(name, 1.0))
            self._importance.labels(name).set(importance.get(name, 1.0))

    def show_outcomes(self, figures: AlertFigures) -> None:
        """Show the outcomes of the newest alerts."""
        self._precision.set(math.nan if figures.precision is None else figures.precision)
        self._amount.labels("alerted").set(figures.alerted_amount)
        self._amount.labels("missed").set(figures.missed_amount)

    def metric_names(self) -> dict[str, str]:
        """Every metric as name -> type."""
        return {family.name: family.type for family in self.registry.collect()}

    def label_names(self) -> dict[str, tuple[str, ...]]:
        """Every metric as name -> names of its labels."""
        return dict(self._label_names)

    def _gauge(self, name: str, *labels: str) -> Gauge:
        self._label_names[PREFIX + name] = labels
        return Gauge(PREFIX + name, METRIC_MEANINGS[name], labels, registry=self.registry)
