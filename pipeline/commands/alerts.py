"""``fraud-pipeline alerts``: follow the alert topic in a terminal."""

import sys
import textwrap
from itertools import islice

import click
import msgspec
from rich.console import Console
from rich.text import Text

from pipeline.cli import INTERRUPTED
from pipeline.demo.place import ClusterNotFound, find_cluster
from pipeline.demo.text import PLAIN_WIDTH, alert_lines
from pipeline.demo.view import MOST_COLUMNS, wants_colours
from pipeline.kafka.clients import TopicError, read_topic, tail_topic
from pipeline.settings import Settings
from pipeline.terminal import printable, printable_json
from schemas.messages import Alert
from schemas.topics import ALERTS


def write_alert(value: bytes, console: Console | None) -> None:
    """Write one alert to ``console``, or to standard output without any escape code."""
    try:
        alert = msgspec.json.decode(value, type=Alert)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        # Somebody else wrote it: the score agent's own always decode. It is shown rather than dropped.
        lines = [
            Text("A record that is not an alert of this version; see it with --json:"),
            *(Text(f"  {part}") for part in textwrap.wrap(printable(str(error)), PLAIN_WIDTH - 2)),
        ]
    else:
        lines = alert_lines(alert, width=min(console.width, MOST_COLUMNS) if console else PLAIN_WIDTH)
    for line in [*lines, Text()]:
        if console is None:
            click.echo(line.plain)
        else:
            console.print(line, soft_wrap=True)


@click.command()
@click.option("--from-beginning", is_flag=True, help="Start with the oldest alert that the topic holds.")
@click.option("--once", is_flag=True, help="Show what the topic holds, from the beginning, and stop.")
@click.option("--limit", type=click.IntRange(min=1), help="Stop after so many alerts.")
@click.option("--json", "as_json", is_flag=True, help="Print each alert as it is on the topic, one object a line.")
def command(*, from_beginning: bool, once: bool, limit: int | None, as_json: bool) -> None:
    """Follow the alert topic: every alert with its reasons, as it is raised. Ctrl-C ends it."""
    settings = Settings()
    console = Console(highlight=False, markup=False) if wants_colours(sys.stdout) and not as_json else None
    try:
        bootstrap = find_cluster(settings)
        topic = settings.topic(ALERTS.name)
        if once:
            records = read_topic(bootstrap, topic, settings=settings)
        else:
            records = tail_topic(bootstrap, topic, settings=settings, from_beginning=from_beginning)
            click.echo(f"Following {topic} on {bootstrap}; Ctrl-C ends it.", err=True)
        for value in islice((record.value for record in records if record.value is not None), limit):
            if as_json:
                click.echo(printable_json(msgspec.json.format(value, indent=-1).decode()))
            else:
                write_alert(value, console)
    except (ClusterNotFound, TopicError) as error:
        raise click.ClickException(str(error)) from error
    except KeyboardInterrupt:
        # The way that following ends: nothing to report.
        sys.exit(INTERRUPTED)
