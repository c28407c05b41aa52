"""``fraud-pipeline alerts``: follow the alert topic in a terminal."""

import math
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from itertools import islice
from typing import Annotated, Final, NamedTuple

import click
import msgspec
from msgspec import Meta
from rich.console import Console
from rich.text import Text

from pipeline.broker.running import cluster_or_last_run, find_cluster
from pipeline.cli import INTERRUPTED
from pipeline.commands.option_groups import declared_options
from pipeline.demo.text import PLAIN_WIDTH, alert_lines
from pipeline.demo.view import MOST_COLUMNS, wants_colours
from pipeline.features.built_in import EPISODE_US
from pipeline.kafka.cluster.admin import end_offsets
from pipeline.kafka.cluster.log_offsets import starts_at
from pipeline.kafka.readers.topic_reader import read_topic, tail_topic
from pipeline.observability.logs import silence_clients
from pipeline.observability.terminal import printable, printable_json
from pipeline.settings import Settings
from schemas.errors import UNREADABLE
from schemas.messages import Alert
from schemas.times import US_PER_SECOND
from schemas.topics import ALERTS

LOST_AFTER_S: Final = 5.0
"""A broker that has not answered for so long has ended, for somebody who looks on."""
EPISODES_COUNTED: Final = 2
"""Lengths of an episode of which earlier alerts are counted: a late one may come long after its first."""


class Shown(NamedTuple):
    """An alert with what only its neighbours show."""

    value: bytes
    alert: Alert | None
    """None for a record that is no alert of this version: somebody else wrote it."""
    error: str
    number: int
    """The alert's number within its case, from 1."""
    late: bool
    """True if an alert of its card with a later event time came before it."""


class Alerts:
    """Counts the alerts of each case, in the order in which they come."""

    def __init__(self) -> None:
        self._of_case: Counter[str] = Counter()
        self._newest: dict[str, datetime] = {}

    def next(self, value: bytes) -> Shown:
        """Read an alert, and place it among those before."""
        try:
            alert = msgspec.json.decode(value, type=Alert)
        except UNREADABLE as error:
            return Shown(value, None, str(error), 0, False)
        self._of_case[alert.case_id] += 1
        newest = self._newest.get(alert.card_id, alert.event_time)
        self._newest[alert.card_id] = max(newest, alert.event_time)
        return Shown(value, alert, "", self._of_case[alert.case_id], alert.event_time < newest)


def write_alert(shown: Shown, console: Console | None) -> None:
    """Write one alert to ``console``, or to standard output without any escape code."""
    if shown.alert is None:
        # Shown rather than dropped: the score agent's own always decode.
        lines = [
            Text("A record that is not an alert of this version; see it with --json:"),
            *(Text(f"  {part}") for part in textwrap.wrap(printable(shown.error), PLAIN_WIDTH - 2)),
        ]
    else:
        width = min(console.width, MOST_COLUMNS) if console else PLAIN_WIDTH
        lines = alert_lines(shown.alert, width=width, number=shown.number, late=shown.late)
    for line in [*lines, Text()]:
        if console is None:
            click.echo(line.plain)
        else:
            console.print(line, soft_wrap=True)


def write_json(value: bytes) -> None:
    """Write a record of the topic on one line; what is no JSON is reported on the standard error."""
    try:
        text = msgspec.json.format(value, indent=-1).decode()
    except UNREADABLE as error:
        click.echo(f"A record that is no JSON is left out ({printable(str(error))}).", err=True)
    else:
        click.echo(printable_json(text))


def held_alerts(bootstrap: str, settings: Settings) -> list[Shown]:
    """Return all alerts that the topic holds, by event time; those of a card come from several partitions."""
    records = read_topic(bootstrap, settings.topic(ALERTS.name), settings=settings)
    read = [Alerts().next(record.value) for record in records if record.value is not None]
    read.sort(key=lambda held: held.alert.event_time.timestamp() if held.alert is not None else math.inf)
    counted = Alerts()
    return [counted.next(held.value) for held in read]


def new_alerts(bootstrap: str, settings: Settings, *, from_beginning: bool) -> Iterator[Shown]:
    """Alerts as they come, for ever.

    Those of the last days are read first, and only counted, so that each new one has its number.
    """
    topic, counted = settings.topic(ALERTS.name), Alerts()
    ends: Mapping[int, int] = {}
    start: Mapping[int, int] = {}
    if not from_beginning:
        since_ms = time.time() * 1_000 - EPISODES_COUNTED * EPISODE_US / US_PER_SECOND * 1_000
        start = starts_at(bootstrap, topic, round(since_ms), settings=settings)
        ends = {number: end for (_, number), end in end_offsets(bootstrap, [topic], settings=settings).items()}
    for record in tail_topic(bootstrap, topic, settings=settings, start=start, lost_after_s=LOST_AFTER_S):
        if record.value is not None:
            shown = counted.next(record.value)
            if record.offset >= ends.get(record.partition, 0):
                yield shown


@dataclass(frozen=True, kw_only=True)
class WantedAlerts:
    """Options that choose alerts; None chooses all."""

    card: Annotated[str | None, Meta(description="Show those of this card.", extra={"metavar": "CARD_ID"})] = None
    merchant: Annotated[
        str | None, Meta(description="Show those at this merchant.", extra={"metavar": "MERCHANT_ID"})
    ] = None
    since: Annotated[datetime | None, Meta(description="Show those of transactions from this time on.")] = None
    min_severity: Annotated[float | None, Meta(ge=0, description="Show those of at least this severity.")] = None

    def accepts(self, alert: Alert | None) -> bool:
        """Return whether an alert is asked for; a record that is none is only where all are."""
        if alert is None:
            return self == WantedAlerts()
        return (
            self.card in (None, alert.card_id)
            and self.merchant in (None, alert.merchant_id)
            and (self.since is None or alert.event_time >= self.since)
            and alert.severity >= (self.min_severity or 0.0)
        )


@click.command()
@click.option("--from-beginning", is_flag=True, help="Start with the oldest alert that the topic holds.")
@click.option("--once", is_flag=True, help="Show what the topic holds, by event time, and stop.")
@declared_options("wanted", WantedAlerts)
@click.option("--limit", type=click.IntRange(min=1), help="Stop after so many alerts.")
@click.option("--json", "as_json", is_flag=True, help="Print each alert as it is on the topic, one object a line.")
def command(*, from_beginning: bool, once: bool, limit: int | None, as_json: bool, wanted: WantedAlerts) -> None:
    """Follow the alert topic: every alert with its reasons, as it is raised. Ctrl-C ends it.

    Alerts of a card may come out of order, since several workers raise them; a later look with --once sorts them.
    """
    settings = Settings()
    silence_clients()
    console = Console(highlight=False, markup=False) if wants_colours(sys.stdout) and not as_json else None
    report = partial(click.echo, err=True)
    try:
        with cluster_or_last_run(settings, report) if once else nullcontext(find_cluster(settings)) as bootstrap:
            alerts: Iterable[Shown]
            if once:
                alerts = held = held_alerts(bootstrap, settings)
                if not any(wanted.accepts(shown.alert) for shown in held):
                    report(f"None of the {len(held):,} alerts on {settings.topic(ALERTS.name)} fits.")
            else:
                alerts = new_alerts(bootstrap, settings, from_beginning=from_beginning)
                report(f"Following {settings.topic(ALERTS.name)} on {bootstrap}; Ctrl-C ends it.")
            for shown in islice((shown for shown in alerts if wanted.accepts(shown.alert)), limit):
                if as_json:
                    write_json(shown.value)
                else:
                    write_alert(shown, console)
    except KeyboardInterrupt:
        # The way that following ends: nothing to report.
        sys.exit(INTERRUPTED)
