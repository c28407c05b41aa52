"""``fraud-pipeline forget``: destroy the key of a card's token, and say what remains where."""

import sqlite3
from collections.abc import Iterator
from typing import Final

import click

from pipeline.console.tables import database_file, forget_value
from pipeline.kafka.cluster.admin import topic_retentions
from pipeline.kafka.cluster.errors import ClusterUnreachable, ConfigError, TopicError
from pipeline.protection.tokens import CARD_ID, TokenKeys
from pipeline.settings import Settings
from pipeline.state.objects import shown_url
from schemas.times import MS_PER_DAY
from schemas.topics import CONTROL, MODELS, PROGRESS

HOLD_NO_CARD: Final = (MODELS, CONTROL, PROGRESS)


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
        # Made before the key is gone: afterwards nobody can find what the console holds.
        token = keys.token(name)
        found = keys.forget(name)
    if not found:
        raise click.ClickException(f"the token database {settings.token_database} has no key for this {field}")
    click.echo(
        "The key is destroyed: nobody can link the token to the card any more, and the card gets a new one if it "
        "is used again."
    )
    if token is not None and database_file(settings).exists():
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


def remains(settings: Settings, retentions: dict[str, int]) -> Iterator[str]:
    """Yield what still holds the token or the card's number; retentions are in milliseconds, -1 for ever."""
    yield "Records under the token remain, which say nothing of the card:"
    for topic in settings.topics:
        name = settings.topic(topic.name)
        if topic not in HOLD_NO_CARD and name in retentions:
            days = retentions[name] / MS_PER_DAY
            yield f"  {name}: {'for ever' if days < 0 else f'for {days:g} days'}"
    if settings.snapshot_address is not None:
        address = shown_url(settings.snapshot_address)
        yield f"  snapshots in {address}: until the windows have passed and {settings.snapshots_kept} newer ones exist"
    yield "  notes of analysts, in their events and labels: whatever people wrote there about the card"
    yield "Remove these yourself where they exist, since they may hold the card's number or the destroyed key:"
    yield "  the topic that `fraud-pipeline tokenise` reads, for as long as its retention.ms says"
    yield f"  backups and copies of {settings.token_database}"
    yield "  exports, reports and files of producers from before tokens"
