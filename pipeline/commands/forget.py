"""``fraud-pipeline forget``: destroy the key of a card's token, and say what remains where."""

import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Final
from uuid import uuid4

import click

from pipeline.broker.running import ClusterNotFound, find_cluster
from pipeline.commands.shared_options import user_name
from pipeline.console.case_events import FORGOTTEN
from pipeline.console.cases import forget_value
from pipeline.console.tables import database_file
from pipeline.kafka.cluster.admin import topic_retentions
from pipeline.kafka.cluster.errors import ClusterUnreachable, ConfigError, TopicError
from pipeline.kafka.writers.producer import RecordProducer
from pipeline.models.changes import ChangeAuthor
from pipeline.models.list_changes import ListChanges
from pipeline.models.list_log import ListLog
from pipeline.models.publish import changed
from pipeline.protection.tokens import CARD_ID, TokenKeys
from pipeline.settings import Settings
from pipeline.state.objects import shown_url
from schemas.codec import encode, timestamp_us
from schemas.messages import CaseEvent
from schemas.times import MS_PER_DAY, US_PER_MS
from schemas.topics import CASE_EVENTS, CONTROL, LISTS, MODELS, PROGRESS

HOLD_NO_CARD: Final = (MODELS, CONTROL, PROGRESS, LISTS)


@click.command("forget")
@click.argument("value", required=False, metavar="[CARD_ID]")
@click.option("--field", default=CARD_ID, show_default=True, help="Field whose value it is.")
def command(value: str | None, field: str) -> None:
    """Destroy the key of the token of CARD_ID, and say what remains where.

    Without CARD_ID it is asked for and not shown: arguments are seen by other users of the machine, and stay in the
    history of the shell. The token itself is not shown either, since it would link what remains to the card.
    """
    settings = Settings()
    with TokenKeys.from_settings(settings) as keys:
        name = (field, value if value is not None else click.prompt(field, hide_input=True))
        # Made before the key is gone: afterwards nobody can find what consoles hold.
        token = keys.token(name)
        bootstrap, listed = _find_cluster(settings), 0
        if bootstrap is not None:
            if token is not None and field == CARD_ID:
                report_to_consoles(bootstrap, settings, token)
            listed = forget_listed(bootstrap, settings, field, {name[1], token or name[1]})
        if listed:
            click.echo(f"{listed} entries of lists and their removals are taken out of the lists.")
        if token is None:
            if listed:
                return
            raise click.ClickException(f"the token database {settings.token_database} has no key for this {field}")
        keys.forget(name)
    click.echo(
        "The key is destroyed: nobody can link the token to the card any more, and the card gets a new one if it "
        "is used again."
    )
    if bootstrap is None and field == CARD_ID:
        click.echo(
            "No cluster was found, so that consoles are not told: one that reads the topics anew holds the cases again."
        )
    if bootstrap is None:
        click.echo(
            "No cluster was found, so that lists keep the token, and the value until you run this again where one is."
        )
    if database_file(settings).exists():
        try:
            cases = forget_value(database_file(settings), field, token)
        except sqlite3.Error as error:
            raise click.ClickException(
                f"the key is destroyed, but {database_file(settings)} still holds cases of the {field} under its token "
                f"({error}): delete the file, and the console makes it anew"
            ) from error
        click.echo(f"The console's database on this machine has forgotten {cases} cases of it.")
    try:
        retentions = topic_retentions(settings)
    except (ClusterUnreachable, ConfigError, TopicError) as error:
        raise click.ClickException(f"what remains where is not known: {error}") from error
    for line in remains(settings, retentions):
        click.echo(line)


def report_to_consoles(bootstrap: str, settings: Settings, token: str) -> None:
    """Write to ``case-events`` that a card is forgotten; raises `DeliveryFailed` where it was not written."""
    now = datetime.now(UTC)
    event = CaseEvent(
        event_id=uuid4().hex, case_id=token, card_id=token, kind=FORGOTTEN, by=user_name() or "forget", at=now
    )
    with RecordProducer(bootstrap, settings) as producer:
        topic = settings.topic(CASE_EVENTS.name)
        producer.produce(topic, token.encode(), encode(event), timestamp_us(now) // US_PER_MS)


def forget_listed(bootstrap: str, settings: Settings, field: str, values: set[str]) -> int:
    """Take a token, and what it stands for, out of all lists of their field.

    An entry is the value itself where somebody wrote it who lacked the secret.

    Returns:
        How often they were there.

    Raises:
        DeliveryFailed: It was not written.
    """
    log, name = ListLog(bootstrap, settings), field.removeprefix("attributes.")
    if not (log.forgotten() or any(log.without(name, values))):
        return 0
    author = ChangeAuthor(user_name() or "forget", "A value was forgotten.")
    count: int = changed(ListChanges.on, bootstrap, settings, lambda changes: changes.forget(name, values, author))
    return count


def _find_cluster(settings: Settings) -> str | None:
    """Return the address of the cluster; None where none is named and none runs here.

    Raises:
        ClusterNotFound: One is named and does not answer.
    """
    try:
        return find_cluster(settings)
    except ClusterNotFound:
        if settings.kafka_bootstrap_servers is not None:
            raise
        return None


def remains(settings: Settings, retentions: dict[str, int]) -> Iterator[str]:
    """Yield what still holds the token or the card's number; retentions are in milliseconds, -1 for ever."""
    yield "Records under the token remain, which say nothing of the card:"
    for topic in settings.topics:
        name = settings.topic(topic.name)
        if topic not in HOLD_NO_CARD and name in retentions:
            days = retentions[name] / MS_PER_DAY
            yield f"  {name}: {'for ever' if days < 0 else f'for {days:g} days'}"
    yield f"  {settings.topic(LISTS.name)}: entries that were taken out, until the brokers compact it"
    if settings.snapshot_address is not None:
        address = shown_url(settings.snapshot_address)
        yield f"  snapshots in {address}: until the windows have passed and {settings.snapshots_kept} newer ones exist"
    yield "  notes of analysts, in their events and labels: whatever people wrote there about the card"
    yield "Remove these yourself where they exist, since they may hold the card's number or the destroyed key:"
    yield "  the topic that `fraud-pipeline tokenise` reads, for as long as its retention.ms says"
    yield f"  backups and copies of {settings.token_database}"
    yield "  exports, reports and files of producers from before tokens"
