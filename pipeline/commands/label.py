"""``fraud-pipeline label``: label a transaction as fraud or legitimate."""

import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Annotated, Final

import click
import msgspec

from pipeline.broker.running import find_cluster
from pipeline.commands.lookup import decoded, find_labels, named, searched
from pipeline.commands.shared_options import user_name
from pipeline.commands.show import label_text
from pipeline.demo.text import wrapped
from pipeline.kafka.cluster.errors import ClusterUnreachable, FailedRequest, TopicError
from pipeline.kafka.readers.simulated_clock import simulated_now
from pipeline.kafka.writers.producer import RecordProducer
from pipeline.learning.labels import label_order, too_late
from pipeline.observability.error_text import explained
from pipeline.observability.terminal import printable, printable_json
from pipeline.settings import Settings
from schemas.messages import Label
from schemas.records import Record
from schemas.times import utc_text
from schemas.topics import ALERTS, DECISIONS, TRANSACTIONS, Topic

LABELS_OFFERED: Final = ("fraud", "legitimate", "disputed", "unknown")
SOURCES_OFFERED: Final = ("analyst", "audit", "customer", "chargeback", "issuer", "rule", "simulator")
SEARCHED: Final = (ALERTS, DECISIONS, TRANSACTIONS)
"""Topics searched for a transaction, in order: the smallest first, and it holds what analysts look at."""


class _TransactionHead(msgspec.Struct, frozen=True):
    transaction_id: str
    card_id: str
    event_time: Annotated[datetime, msgspec.Meta(tz=True)] | None = None


@dataclass(frozen=True, slots=True)
class LocatedCard:
    """The card of a transaction, and the topic it was found on."""

    card_id: str
    topic: str = ""
    event_time: datetime | None = None
    """Time of the transaction; None where it was not searched for."""


def contradiction(label: Label, earlier: Iterable[Label]) -> str | None:
    """Return a warning where the ``earlier`` label that held says something else and is not the same person's."""
    named = (label.transaction_id, label.card_id)
    same = [other for other in earlier if (other.transaction_id, other.card_id) == named]
    held = max(same, key=label_order, default=None)
    if held is None or held.label == label.label or (held.source, held.analyst) == (label.source, label.analyst):
        return None
    outcome = "yours takes its place" if label_order(label) > label_order(held) else "it still holds"
    return f"Somebody said otherwise: {label_text(held)}; {outcome}."


def find_card(read: Callable[[Topic], Iterable[Record]], transaction_id: str) -> LocatedCard:
    """Look for ``transaction_id`` in each of `SEARCHED` until one holds it.

    Raises `click.ClickException` when none does, and when that topic has it on several cards.
    """
    for topic in SEARCHED:
        heads = decoded(read(topic), transaction_id, _TransactionHead)
        cards = {head.card_id: head.event_time for head in heads if head.transaction_id == transaction_id}
        if len(cards) > 1:
            listed = ", ".join(sorted(printable(card) for card in cards))
            raise click.ClickException(
                f"Several cards have a transaction {printable(transaction_id)}: {listed}. "
                "Name the card that is meant with --card."
            )
        if cards:
            ((card_id, event_time),) = cards.items()
            return LocatedCard(card_id, topic.name, event_time)
    raise click.ClickException(
        f"No transaction {printable(transaction_id)} in the topics {', '.join(topic.name for topic in SEARCHED)}. "
        "Check the identifier (and FRAUD_PIPELINE_TOPIC_PREFIX), or name its card with --card if the topics no longer "
        "hold it."
    )


def sentence(label: Label, found_in: str | None) -> str:
    """Describe a sent label in a sentence."""
    by = f"{label.source} {printable(label.analyst)}" if label.analyst else label.source
    where = f" (found in {found_in})" if found_in else ""
    return (
        f"Sent: transaction {printable(label.transaction_id)} of card {printable(label.card_id)}{where} "
        f"is {label.label}, says {by}, {utc_text(label.labelled_at)}."
    )


def parsed_time(context: click.Context, parameter: click.Parameter, value: str | None) -> datetime | None:
    """The time of ``--at``; a time without an offset could be any zone's, so it is refused."""
    del context
    if value is None:
        return None
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        raise click.BadParameter(f"{value!r} is no time; write it as 2026-03-01T09:30:00Z", param=parameter) from None
    if moment.tzinfo is None:
        raise click.BadParameter(
            f"{value!r} has no offset; write it as {moment.isoformat()}Z for UTC or {moment.isoformat()}+02:00",
            param=parameter,
        )
    return moment


@click.command()
@click.argument("transaction_id", callback=named)
@click.argument("label", type=click.Choice(LABELS_OFFERED))
@click.option("--source", type=click.Choice(SOURCES_OFFERED), default="analyst", show_default=True, help="Who says so.")
@click.option(
    "--analyst",
    metavar="NAME",
    callback=named,
    help="Your name.  [default: the user's, for --source analyst]",
)
@click.option("--note", metavar="TEXT", help="Whatever the next person should know.")
@click.option("--fraud-type", metavar="TYPE", help="The kind of fraud.")
@click.option(
    "--card", metavar="CARD_ID", callback=named, help="The transaction's card, which is not searched for then."
)
@click.option(
    "--at",
    metavar="TIME",
    callback=parsed_time,
    help="When it was established, RFC 3339.  [default: now, on the clock of the topics]",
)
def command(
    *,
    transaction_id: str,
    label: str,
    source: str,
    analyst: str | None,
    note: str | None,
    fraud_type: str | None,
    card: str | None,
    at: datetime | None,
) -> None:
    """Label TRANSACTION_ID as fraud or legitimate; its card is found.

    A later label of the same source corrects an earlier one.
    """
    settings = Settings()
    topic_of_label = settings.label_sources.topic_for(source)
    bootstrap = find_cluster(settings)

    found = LocatedCard(card) if card else find_card(partial(searched, bootstrap, settings), transaction_id)
    now = datetime.now(UTC)
    simulated = None if at else simulated_now(bootstrap, settings, now)
    message = Label(
        transaction_id=transaction_id,
        card_id=found.card_id,
        label=label,
        source=source,
        labelled_at=at or simulated or now,
        label_id=uuid.uuid4().hex,
        fraud_type=fraud_type,
        analyst=analyst or (user_name() if source == "analyst" else None),
        note=note,
    )
    value = checked(message)
    with RecordProducer(bootstrap, settings) as producer:
        # On topics that a producer stamps, the record's time is when the label became known.
        known_at = max(message.labelled_at, simulated or now)
        known_ms = int(known_at.timestamp() * 1_000)
        producer.produce(settings.topic(topic_of_label), found.card_id.encode(), value, known_ms)
    late = too_late(found.event_time, known_at, settings.label_grace_days)
    for text in (sentence(message, found.topic), late or _said_before(bootstrap, settings, message)):
        for line in wrapped(text):
            click.echo(line)
    if simulated:
        click.echo("The topics run on a simulated clock; the label bears its time.")
    click.echo(printable_json(value.decode()))


def _said_before(bootstrap: str, settings: Settings, sent: Label) -> str:
    """Return what others said of the transaction, where that differs; the label is sent, whatever comes of it."""
    try:
        earlier = find_labels(bootstrap, settings, sent.transaction_id)
    except (ClusterUnreachable, FailedRequest, TopicError) as error:
        return f"Whether somebody said otherwise cannot be seen: {explained(error)}"
    return contradiction(sent, (label for label in earlier if label.label_id != sent.label_id)) or ""


def checked(label: Label) -> bytes:
    """``label`` as bytes that the pipeline will accept; a usage error where it breaks the wire contract."""
    try:
        value = msgspec.json.encode(label)
        msgspec.json.decode(value, type=Label)
    except (msgspec.ValidationError, UnicodeEncodeError) as error:
        raise click.UsageError(f"this label would not be accepted: {error}") from error
    return value
