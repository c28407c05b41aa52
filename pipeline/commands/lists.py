"""``fraud-pipeline lists``: block, allow and watch lists, and suppressions."""

import csv
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

import click
from msgspec.structs import replace

from pipeline.commands.option_groups import option_group
from pipeline.commands.option_types import Duration, Moment
from pipeline.commands.progress import interrupts
from pipeline.commands.shared_options import (
    Cluster,
    bootstrap_option,
    change_options,
    cluster,
    json_option,
    print_facts,
)
from pipeline.decision.lists import LIST_KINDS, MATCHES, TEXT, entry_id
from pipeline.decision.online_gate import LabelReport
from pipeline.engine.records.accepted_labels import read_accepted, reports_of
from pipeline.features.active import active_declaration
from pipeline.kafka.readers.topic_reader import read_batches
from pipeline.models.changes import ChangeAuthor
from pipeline.models.list_changes import LATE_DAYS, ListChanges, WrittenChange
from pipeline.models.list_traffic import texts_of_last_week
from pipeline.models.publish import changed
from pipeline.models.suppressions import SuppressedHits, keep_caps
from pipeline.observability.logs import configure_logging
from pipeline.observability.terminal import printable
from pipeline.protection.tokens import Tokeniser, TokenKeys
from pipeline.scoring.errors import ModelError
from pipeline.settings import Settings
from schemas.codec import timestamp_us
from schemas.messages import ListDefinition, ListEntry
from schemas.times import US_PER_SECOND, time_of, utc_text
from schemas.topics import ACCEPTED_LABELS, DECISIONS

T = TypeVar("T")
_COLUMNS: Final = ("value", "owner", "reason", "expires", "cap")
_MOST_SHOWN: Final = 100
_ENDLESS_S: Final = 1e12
"""Beyond all years that an entry may expire in."""
_name = click.argument("name")
_tokens = click.option("--tokens", is_flag=True, help="Values of a tokenised field are its tokens already.")


_list_options = option_group(
    click.option("--kind", type=click.Choice(LIST_KINDS), help="Of a new list."),
    click.option("--field", help="Of a new list: text of transactions; of suppressions also rule, by its code."),
    click.option("--match", type=click.Choice(MATCHES), help=f"Of a new list.  [default: {TEXT}]"),
    click.option("--owner", help="Who answers for it.  [default: --by]"),
    click.option("--until", type=Moment(), help="Event time from which it does not hold.  [default: it always does]"),
    click.option("--for", "held_s", type=Duration(), help="Time from now for which it holds, such as 30d."),
    click.option("--cap", help="Sum of the amounts of suppressed hits at which a suppression ends, such as 500.00."),
    _tokens,
)
"""Options of a new list, and of entries that do not say it themselves."""


@click.group()
def command() -> None:
    """Keep lists that overrule rules and scores, or that rules read."""


@command.command()
@click.argument("name", required=False)
@bootstrap_option
def show(name: str | None, bootstrap: str | None) -> None:
    """Show all lists, or the first entries of NAME."""
    changes = ListChanges.on(*cluster(bootstrap))
    contents = changes.contents
    if name is None:
        for each in sorted(contents.definitions.values(), key=lambda each: (LIST_KINDS.index(each.kind), each.name)):
            entries = contents.entries_of(each.name)
            click.echo(f"{each.name}  {each.kind}  {each.field}  {each.match}  entries: {len(entries):,}")
        if changes.version:
            click.echo(f"Version {changes.version} is active.")
        return
    entries = contents.entries_of(name)
    for entry in entries[:_MOST_SHOWN]:
        until = "for ever" if entry.expires_us is None else f"until {utc_text(time_of(entry.expires_us))}"
        cap = "" if entry.cap_minor is None else f"  cap {entry.cap_minor / 100:.2f} ({entry_id(entry)})"
        click.echo(printable(f"{entry.value}  {until}{cap}  {entry.owner}: {entry.reason}"))
    if len(entries) > _MOST_SHOWN:
        click.echo(f"And {len(entries) - _MOST_SHOWN:,} more: see `fraud-pipeline lists export {name}`.")


@command.command()
@_name
@click.argument("values", nargs=-1, required=True)
@_list_options
@change_options
def add(name: str, values: tuple[str, ...], change: ChangeAuthor, at: Cluster, **given: Any) -> None:
    """Add VALUES to list NAME, which is made where there is none.

    Each entry has the reason of the change. An entry of an allow list, or a suppression, expires within 90 days.
    """
    rows = [{"value": value} for value in values]
    _add(name, rows, change, at, replacing=False, **given)


@command.command("import")
@_name
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--replace", "replacing", is_flag=True, help="Remove what the list has besides.")
@_list_options
@change_options
def import_file(name: str, file: Path, replacing: bool, change: ChangeAuthor, at: Cluster, **given: Any) -> None:
    """Add the entries of FILE to list NAME, in one change.

    FILE is CSV with a header. It needs the column value, and may have owner, reason, expires and cap; the options say
    what it does not.
    """
    try:
        with file.open(encoding="utf-8-sig", newline="") as opened:
            reader = csv.DictReader(opened, restval="", strict=True)
            names, rows = reader.fieldnames or (), [{**row, "at": f"line {reader.line_num}, "} for row in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise click.UsageError(f"{file} is no CSV in UTF-8: {error}") from None
    if "value" not in names or not {*_COLUMNS}.issuperset(names) or len({*names}) < len(names):
        raise click.UsageError(
            f"{file} needs the column value, and may have {', '.join(_COLUMNS[1:])}, each once; its header is "
            f"{','.join(names)!r}"
        )
    if long := next((row for row in rows if None in row), None):
        raise click.UsageError(f"{file}: {long['at']}the row of {long['value']!r} has more cells than the header")
    _add(name, rows, change, at, replacing=replacing, **given)


@command.command()
@_name
@click.argument("values", nargs=-1)
@click.option(
    "--expired", is_flag=True, help=f"Those that expired {LATE_DAYS} days ago, which late events need no more."
)
@_tokens
@change_options
def remove(name: str, values: tuple[str, ...], expired: bool, tokens: bool, change: ChangeAuthor, at: Cluster) -> None:
    """Remove VALUES from list NAME."""
    bootstrap, settings = at()
    expired_us = timestamp_us(datetime.now(UTC) - timedelta(days=LATE_DAYS)) if expired else None

    def removed(changes: ListChanges) -> WrittenChange:
        stored = _stored(settings, changes.contents.definition(name), tokens, make=False)
        return changes.remove(name, map(stored, values), change, expired_us=expired_us)

    _report(_changed(bootstrap, settings, removed))


@command.command()
@_name
@bootstrap_option
def export(name: str, bootstrap: str | None) -> None:
    """Print the entries of list NAME as CSV, as `import` reads them."""
    writer = csv.writer(sys.stdout)
    writer.writerow(_COLUMNS)
    for entry in ListChanges.on(*cluster(bootstrap)).contents.entries_of(name):
        expires = "" if entry.expires_us is None else time_of(entry.expires_us).isoformat()
        cap = "" if entry.cap_minor is None else f"{entry.cap_minor / 100:.2f}"
        writer.writerow((entry.value, entry.owner, entry.reason, expires, cap))


@command.command("used-in")
@_name
@bootstrap_option
def used_in(name: str, bootstrap: str | None) -> None:
    """Name the rules that read list NAME."""
    rules = ListChanges.on(*cluster(bootstrap)).used_in(name)
    for rule in rules:
        click.echo(printable(f"{rule.code}  {rule.state}  {rule.expression}"))
    if not rules:
        click.echo("No rule reads it.")


@command.command()
@click.argument("version")
@change_options
def approve(version: str, change: ChangeAuthor, at: Cluster) -> None:
    """Make the proposed change VERSION active, as somebody else than who has proposed it."""
    _report(_changed(*at(), lambda changes: changes.approve(version, change)))


@command.command()
@bootstrap_option
@json_option
def missed(bootstrap: str | None, as_json: bool) -> None:
    """Say what lists have overruled: hits and their amounts, and among them the frauds that got no alert.

    Frauds are those that labels say by now. Amounts are in the base currency.
    """
    servers, settings = cluster(bootstrap)
    hits, reports = SuppressedHits(), list[LabelReport]()
    for batch in read_batches(servers, settings.topic(DECISIONS.name), settings=settings):
        hits.add(batch)
    for batch in read_batches(servers, settings.topic(ACCEPTED_LABELS.name), settings=settings):
        reports += reports_of(read_accepted(batch, settings.topic_prefix).labels)
    totals = hits.totals(reports)
    value = {name: asdict(total) for name, total in sorted(totals.items())}
    lines = (
        f"{name}  hits: {each.hits:,}  amount: {each.amount_minor / 100:,.2f}  "
        f"frauds missed: {each.frauds:,}  their amount: {each.fraud_minor / 100:,.2f}"
        for name, each in sorted(totals.items())
    )
    print_facts(as_json, value, lines)


@command.command()
@bootstrap_option
@click.option("--once", is_flag=True, help="End once what is decided by now is counted.")
def caps(bootstrap: str | None, once: bool) -> None:
    """End suppressions whose suppressed hits have reached their caps, until stopped. Run one a cluster."""
    stop, (servers, settings) = threading.Event(), cluster(bootstrap)
    configure_logging(settings)
    with interrupts(stop, signal.SIGTERM):
        for name, total in keep_caps(servers, settings, stop.is_set, once=once):
            click.echo(f"{name} has ended: hits of {total.amount_minor / 100:,.2f} were suppressed.")


def _add(
    name: str,
    rows: Sequence[dict[str, str]],
    change: ChangeAuthor,
    at: Cluster,
    *,
    replacing: bool,
    kind: str | None,
    field: str | None,
    match: str | None,
    owner: str | None,
    until: datetime | None,
    held_s: float | None,
    cap: str | None,
    tokens: bool,
) -> None:
    if until is not None and held_s is not None:
        raise click.UsageError("give --until or --for, not both")
    if (kind is None) is not (field is None):
        raise click.UsageError("a new list needs --kind and --field")
    if not rows:
        raise click.UsageError("there is no entry to add")
    (bootstrap, settings), now_us = at(), timestamp_us(datetime.now(UTC))
    expires_us = None if until is None else timestamp_us(until)
    if held_s is not None:
        expires_us = now_us + round(min(held_s, _ENDLESS_S) * US_PER_SECOND)

    def entry_of(row: dict[str, str], stored: Callable[[str], str]) -> ListEntry:
        try:
            own_us = timestamp_us(Moment().convert(row["expires"], None, None)) if row.get("expires") else expires_us
            return ListEntry(
                list=name,
                value=stored(row["value"]),
                owner=row.get("owner") or owner or change.by,
                reason=row.get("reason") or change.reason,
                expires_us=own_us,
                cap_minor=_minor(row.get("cap") or cap),
                added_us=now_us,
            )
        except click.UsageError as error:
            raise click.UsageError(f"{row.get('at', '')}entry {row['value']!r}: {error.message}") from None

    def added(changes: ListChanges) -> tuple[WrittenChange, list[ListEntry]]:
        if kind is None or field is None:
            definition = changes.contents.definition(name)
            definition = replace(definition, match=match or definition.match)
        else:
            definition = ListDefinition(name=name, kind=kind, field=field, match=match or TEXT)
        stored = _stored(settings, definition, tokens, make=True)
        entries = [entry_of(row, stored) for row in rows]
        return changes.add(definition, entries, change, replacing=replacing), entries

    written, entries = _changed(bootstrap, settings, added)
    _report(written)
    if past := sum(entry.expires_us is not None and entry.expires_us <= now_us for entry in entries):
        click.echo(f"{past:,} expired already: they hold for transactions of before, which come late or are replayed.")


def _changed(bootstrap: str, settings: Settings, decide: Callable[[ListChanges], T]) -> T:
    traffic = partial(texts_of_last_week, bootstrap, settings)
    return changed(partial(ListChanges.on, traffic=traffic), bootstrap, settings, decide)


def _stored(settings: Settings, definition: ListDefinition, tokens: bool, *, make: bool) -> Callable[[str], str]:
    """Return what makes an entry's value of a given one: of a tokenised field its token."""
    declared = active_declaration().fields.get(definition.field)
    name = definition.field if declared is None else f"attributes.{definition.field}"
    tokenised = definition.field in settings.token_names if declared is None else declared.personal
    if settings.token_secret_file is None or not tokenised or tokens:
        return str
    if definition.match != TEXT:
        raise ModelError(f"{definition.field} is tokenised: its tokens have no networks or prefixes; use --match text")
    keys = TokenKeys.from_settings(settings)
    if make:
        tokeniser = Tokeniser(keys)
        return lambda value: tokeniser.token(name, value)
    return lambda value: keys.token((name, value)) or value


def _report(written: WrittenChange) -> None:
    if written.proposed:
        click.echo(
            f"Change {written.version} is proposed, since {written.why}: somebody else has to run "
            f"`fraud-pipeline lists approve {written.version}`."
        )
    else:
        click.echo(f"Version {written.version} is active (entries: {written.entries:,}).")


def _minor(cap: str | None) -> int | None:
    if not cap:
        return None
    try:
        minor = Decimal(cap).scaleb(2)
        if 0 < minor < 2**53 and minor == int(minor):
            return int(minor)
    except ArithmeticError:
        pass
    raise click.UsageError(f"{cap!r} is no amount with two decimals above 0; write 500.00")
