"""``fraud-pipeline audit``: the frauds that nobody reports, and the recall of alerts."""

import math
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import click
import msgspec

from pipeline.broker.running import find_cluster
from pipeline.commands.option_types import Moment
from pipeline.monitoring.audit_estimate import AuditOptions, AuditReport, Interval, assess
from pipeline.monitoring.daily import day_text
from pipeline.monitoring_data.audited import outcomes_of_files, outcomes_of_topics
from pipeline.settings import Settings
from schemas.codec import timestamp_us
from schemas.times import US_PER_DAY

_DEFAULTS: Final = AuditOptions()


@click.command("audit")
@click.option("--bootstrap", help="Cluster whose topics are read.  [default: KAFKA_BOOTSTRAP_SERVERS]")
@click.option(
    "--file",
    "directory",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Read what `fraud-pipeline export DIRECTORY decisions labels` wrote, not a cluster.",
)
@click.option("--from", "start", type=Moment(), help="Event time to begin with.  [default: the first audit]")
@click.option(
    "--mature-days",
    type=click.FloatRange(min=0, min_open=True),
    default=_DEFAULTS.mature_days,
    show_default=True,
    help="Age from which an unreported fraud counts as never reported.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(
    *, bootstrap: str | None, directory: Path | None, start: datetime | None, mature_days: float, as_json: bool
) -> None:
    """Say how many frauds nobody reports, and which share of all frauds raises an alert.

    Both are intervals that hold with 95 % each. They rest on what the policy's audit selected and on labels with the
    sources `audit` and `analyst`; labels of other sources are reports.
    """
    if directory is not None and bootstrap is not None:
        raise click.UsageError("--file reads exported files: leave out --bootstrap")
    settings = Settings()
    if directory is not None:
        outcomes = outcomes_of_files(directory, settings)
    else:
        outcomes = outcomes_of_topics(bootstrap or find_cluster(settings), settings)
    if outcomes.oldest_us is None:
        raise click.ClickException("there is no decision: run workers first, or check the topic prefix")
    first_us = outcomes.oldest_us if outcomes.first_audit_us is None else outcomes.first_audit_us
    from_us = first_us if start is None else timestamp_us(start)
    options = AuditOptions(mature_days=mature_days, least_age_days=min(_DEFAULTS.least_age_days, mature_days))
    report = assess(outcomes.rows(from_us), outcomes.stream_time_us, options)
    decisions, unaudited = outcomes.decisions(from_us)
    if as_json:
        click.echo(msgspec.json.encode(_as_json(report, decisions, unaudited, from_us, outcomes.stream_time_us)))
        return
    for line in _lines(report, options, decisions, unaudited, from_us, outcomes.stream_time_us):
        click.echo(line)


def _lines(
    report: AuditReport, options: AuditOptions, decisions: int, unaudited: int, from_us: int, stream_time_us: int
) -> list[str]:
    """Return the report in lines of at most 80 columns."""
    never, age = report.never_reported, f"{options.mature_days:g}"
    unanswered = f", {report.unanswered:,} without an answer" if report.unanswered else ""
    lines = [
        f"{decisions:,} decisions from {day_text(from_us // US_PER_DAY)} to {day_text(stream_time_us // US_PER_DAY)},",
        f"those of {options.least_age_days:g} days and older:",
        "",
        f"  {report.alerted:,} frauds raised an alert by score or rule{unanswered}",
        f"  {report.missed:,} frauds raised none and were reported so far",
        f"  {report.unreported.audited:,} audited transactions have an answer, "
        f"{report.unreported.unanswered:,} have none",
        f"  {report.unreported.found:,} of them are frauds that nobody has reported",
        "",
        f"Never reported, of the frauds of {age} days and older that raised no alert:",
        f"  {_never(report)}",
        "Recall of the alerts:",
        f"  of all frauds: {_recall(report)}",
        f"  of those that are alerted on or reported: {_range(report.recall_of_reported)}",
    ]
    if unaudited:
        lines += ["", f"{unaudited:,} of the decisions could not be audited: their policy had no audit."]
        lines.append("Unreported frauds among them are in no figure; begin later with --from.")
    if never.audited == 0:
        lines += ["", "Set an audit in the policy (docs/models.md), and label what it selects with"]
        lines.append("`fraud-pipeline label --source audit`.")
    return lines


def _never(report: AuditReport) -> str:
    never = report.never_reported
    if never.audited == 0:
        return "unknown: no audited transaction is that old and has an answer"
    if never.frauds.low == 0:
        most = "no bound" if math.isinf(never.frauds.high) else f"at most {never.frauds.high:,.0f}"
        return f"unknown, {most} ({report.never_reported_share.high:.0%} of them)"
    low, high = never.frauds
    share = _range(report.never_reported_share)
    return f"{share}: {low:,.0f} to {high:,.0f} frauds" if math.isfinite(high) else f"{share}, no bound"


def _recall(report: AuditReport) -> str:
    if report.unreported.audited == 0:
        return f"unknown, at most {report.recall.high:.0%}"
    return _range(report.recall)


def _range(interval: Interval) -> str:
    low, high = f"{interval.low:.0%}", f"{interval.high:.0%}"
    return low if low == high else f"{low} to {high}"


def _as_json(report: AuditReport, decisions: int, unaudited: int, from_us: int, stream_time_us: int) -> dict[str, Any]:
    return {
        "from": day_text(from_us // US_PER_DAY),
        "to": day_text(stream_time_us // US_PER_DAY),
        "decisions": decisions,
        "decisions_without_audit": unaudited,
        "alerted": report.alerted,
        "alerts_unanswered": report.unanswered,
        "missed_reported": report.missed,
        "missed_in_time": _pair(report.missed_in_time),
        "audited": report.unreported.audited,
        "audits_unanswered": report.unreported.unanswered,
        "unreported_found": report.unreported.found,
        "unreported": _pair(report.unreported.frauds),
        "never_reported_found": report.never_reported.found,
        "never_reported": _pair(report.never_reported.frauds),
        "never_reported_share": _pair(report.never_reported_share),
        "recall": _pair(report.recall),
        "recall_of_reported": _pair(report.recall_of_reported),
    }


def _pair(interval: Interval) -> list[float | None]:
    """Return both ends, null for one that is infinite."""
    return [end if math.isfinite(end) else None for end in interval]
