"""``fraud-pipeline drift``: which features, scores, alerts and reports have drifted, and since when."""

import math
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import click
import msgspec

from pipeline.backtest.runner.model_library import ACTIVE, ModelLibrary
from pipeline.broker.running import ANSWER_TIMEOUT_S, find_cluster
from pipeline.commands.option_types import Duration, Moment
from pipeline.kafka.cluster.admin import cluster_is_up
from pipeline.models.registry import RegistryError
from pipeline.monitoring.alert_outcomes import AlertFigures
from pipeline.monitoring.daily import day_text
from pipeline.monitoring.drift import DEFAULT_OPTIONS, DayDrift, DriftOptions, Finding, drifted, judge
from pipeline.monitoring_data.drift import Monitored, MonitoredTopics, count_files
from pipeline.observability.endpoint import Endpoint
from pipeline.observability.health import Health
from pipeline.observability.metric_declarations import DRIFT_METRICS
from pipeline.observability.metrics import DeclaredMetrics
from pipeline.scoring.lightgbm_model import LightGBMModel
from pipeline.settings import Settings
from schemas.codec import timestamp_us
from schemas.times import SECONDS_PER_DAY

DRIFTED: Final = 3
"""Exit code where there is drift."""


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


@click.command("drift")
@click.option("--bootstrap", help="Cluster whose topics are read.  [default: KAFKA_BOOTSTRAP_SERVERS]")
@click.option(
    "--file",
    "directory",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Read what `fraud-pipeline export DIRECTORY features alerts examples` wrote, not a cluster.",
)
@click.option("--lightgbm", default=ACTIVE, show_default=True, help="Version whose features and bins are used.")
@click.option("--from", "start", type=Moment(), help="Start with the first record of this time.")
@click.option(
    "--level",
    type=click.FloatRange(min=0, max=1, min_open=True, max_open=True),
    default=DEFAULT_OPTIONS.level,
    show_default=True,
    help="Share of false findings among the day's findings; lower is quieter.",
)
@click.option("--all", "show_all", is_flag=True, help="Show every day with drift, not only the newest two.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--follow", is_flag=True, help="Serve Prometheus gauges, and look again every --interval.")
@click.option("--interval", type=Duration(), default="10m", show_default=True, help="With --follow: between two looks.")
@click.option("--port", type=click.IntRange(0, 65_535), help="With --follow.  [default: the setting metrics_port]")
def command(
    *,
    bootstrap: str | None,
    directory: Path | None,
    lightgbm: str,
    start: datetime | None,
    level: float,
    show_all: bool,
    as_json: bool,
    follow: bool,
    interval: float,
    port: int | None,
) -> None:
    """Compare each day with the same weekday of the weeks before, feature by feature, and report drift.

    A day is unusual against the series' own past: 28 days come before the first one that is assessed. A day that is
    not over is not assessed. Exit code 0: no drift on the newest two days; 3: drift.
    """
    if directory is not None and (follow or bootstrap or start):
        raise click.UsageError("--file reads exported files: leave out --follow, --bootstrap and --from")
    settings, options = Settings(), DriftOptions(level=level)
    if directory is not None:
        monitored = Monitored(_version(ModelLibrary(settings), lightgbm))
        count_files(directory, monitored)
    else:
        servers = bootstrap or find_cluster(settings)
        monitored = Monitored(_version(ModelLibrary(settings, servers), lightgbm))
        from_ms = None if start is None else timestamp_us(start) // 1_000
        topics = MonitoredTopics(servers, settings, monitored, from_ms)
        if follow:
            _follow(topics, monitored, options, settings, servers, interval, port)
            return
        topics.refresh()
    days = judge(monitored.counts.histories(), monitored.importance, options)
    found = drifted(days, ignored=())
    if as_json:
        click.echo(msgspec.json.encode(_as_json(days, found)))
    else:
        whole_days = len({day for history in monitored.counts.histories() for day in history.days.tolist()})
        for line in _lines(days, found, options, whole_days, show_all=show_all):
            click.echo(line)
    if found:
        sys.exit(DRIFTED)


def _version(library: ModelLibrary, lightgbm: str) -> LightGBMModel | None:
    try:
        return library.lightgbm(lightgbm)
    except RegistryError:
        if lightgbm != ACTIVE:
            raise
        click.echo("no LightGBM version is active: the default features are watched, all as important", err=True)
        return None


def _follow(
    topics: MonitoredTopics,
    monitored: Monitored,
    options: DriftOptions,
    settings: Settings,
    servers: str,
    interval_s: float,
    port: int | None,
) -> None:
    metrics, health = DriftMetrics(), Health()
    where = port if port is not None else settings.metrics_port
    endpoint = Endpoint(settings.metrics_host, where, metrics.registry, health)
    try:
        click.echo(f"Serving http://{settings.metrics_host}:{endpoint.start()}/metrics; Ctrl-C ends it.", err=True)
        while True:
            if cluster_is_up(servers, ANSWER_TIMEOUT_S, settings=settings):
                topics.refresh()
                health.broker_answered()
                metrics.show_drift(
                    judge(monitored.counts.histories(), monitored.importance, options), monitored.importance
                )
                metrics.show_outcomes(monitored.outcomes.figures())
            else:
                health.broker_silent(f"no broker answers at {servers}")
            time.sleep(interval_s)
    finally:
        endpoint.stop()


def _lines(
    days: Sequence[DayDrift], found: Sequence[Finding], options: DriftOptions, whole_days: int, *, show_all: bool
) -> list[str]:
    """Return the report in lines of at most 80 columns."""
    if not days:
        least = 7 * options.least_weeks + options.least_history
        return [f"No day can be assessed yet: {whole_days} whole days are counted, {least} and one more are needed."]
    newest = days[-1]
    head = f"{len(newest.p_values)} series, days {day_text(days[0].day)} to {day_text(newest.day)}: "
    shown = [finding for day in days for finding in day.findings] if show_all else list(found)
    lines = [head + (f"drift in {len(found)}" if found else "no drift on the newest two days")]
    if shown:
        lines += ["", f"{'day':<12}{'series':<34}{'since':<12}{'p-value':>9}{'importance':>13}"]
    for finding in shown:
        lines += [
            f"{day_text(finding.day):<12}{finding.name:<34}{day_text(finding.since):<12}{finding.p_value:>9.0e}{finding.importance:>13.3f}",
            f"{'':12}share of {finding.bin}: {finding.before:.1%} -> {finding.now:.1%}",
        ]
    return lines


def _as_json(days: Sequence[DayDrift], found: Sequence[Finding]) -> dict[str, Any]:
    return {
        "drift": bool(found),
        "judged_from": day_text(days[0].day) if days else None,
        "judged_to": day_text(days[-1].day) if days else None,
        "p_values": days[-1].p_values if days else {},
        "findings": [_finding(finding) for finding in found],
        "days": [
            {"day": day_text(day.day), "findings": [_finding(finding) for finding in day.findings]}
            for day in days
            if day.findings
        ],
    }


def _finding(finding: Finding) -> Mapping[str, Any]:
    return {**finding._asdict(), "day": day_text(finding.day), "since": day_text(finding.since)}
