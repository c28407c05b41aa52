"""Gauges of ``fraud-pipeline drift --follow``; ``docs/metrics.md`` says what each metric means."""

import math
from collections.abc import Sequence

from pipeline.monitoring.alert_outcomes import AlertFigures
from pipeline.monitoring.drift import DayDrift, drifted
from pipeline.observability.metric_declarations import DRIFT_METRICS
from pipeline.observability.metrics import DeclaredMetrics
from schemas.times import SECONDS_PER_DAY


class DriftMetrics(DeclaredMetrics):
    """Gauges of drift."""

    def __init__(self) -> None:
        super().__init__(DRIFT_METRICS)
        self._shown: set[str] = set()
        # Without an alert that has an example there is no precision; 0 would be one.
        self.show("alert_precision", math.nan)

    def show_drift(self, days: Sequence[DayDrift], importance: dict[str, float]) -> None:
        """Show what `pipeline.monitoring.drift.judge` found; nothing changes where no day could be assessed."""
        if not days:
            return
        newest = days[-1]
        self.show("drift_day_timestamp_seconds", newest.day * SECONDS_PER_DAY)
        alarmed = {found.name for found in drifted(days, ignored=())}
        shown = newest.p_values.keys() | alarmed
        for name in self._shown - shown:
            for gauge in ("drift_alarm", "drift_p_value", "drift_importance"):
                self.forget(gauge, series=name)
        self._shown = set(shown)
        for name in shown:
            self.show("drift_alarm", name in alarmed, name)
            self.show("drift_p_value", newest.p_values.get(name, 1.0), name)
            self.show("drift_importance", importance.get(name, 1.0), name)

    def show_outcomes(self, figures: AlertFigures) -> None:
        """Show the outcomes of the newest alerts."""
        self.show("alert_precision", math.nan if figures.precision is None else figures.precision)
        self.show("fraud_amount", figures.alerted_amount, "alerted")
        self.show("fraud_amount", figures.missed_amount, "missed")
