"""``fraud-pipeline tokenise``: the gateway that replaces card numbers by tokens."""

import signal
import threading
from typing import Any

import click

from pipeline.broker.running import find_cluster
from pipeline.commands.progress import interrupts
from pipeline.kafka.session.gateway import Gateway, Tokenised
from pipeline.observability.logs import configure_logging
from pipeline.protection.tokens import Tokeniser
from pipeline.settings import Settings
from pipeline.settings.mapping_file import own_mapping
from pipeline.settings.rate_table import load_rates
from schemas.mapping import Mapper
from schemas.topics import TRANSACTIONS


@click.command("tokenise")
@click.argument("topic")
@click.option(
    "--to", "target", default=TRANSACTIONS.name, show_default=True, help="Where to: this, or a topic of labels."
)
@click.option("--instance", help="Stable, unique name of this process.  [default: the host's name]")
@click.option("--limit", type=click.IntRange(min=1), help="Stop once so many records were read.")
def command(topic: str, target: str, instance: str | None, limit: int | None) -> None:
    """Read TOPIC (without prefix), replace the fields of FRAUD_PIPELINE_TOKEN_FIELDS by tokens, and write the messages.

    Each message is written exactly once, with the token of its card as its key. What cannot be tokenised becomes a dead
    letter without its content. Transactions are mapped before, where FRAUD_PIPELINE_MAPPING_FILE says so. SIGTERM or
    Ctrl-C ends it.
    """
    stop = threading.Event()

    def progress(done: Tokenised) -> None:
        if limit is not None and done.written + done.refused >= limit:
            stop.set()

    changes: dict[str, Any] = {} if instance is None else {"instance": instance}
    settings = Settings(**changes)
    configure_logging(settings)
    targets = {topic.name: topic for topic in (TRANSACTIONS, *settings.topics_of_labels)}
    if target not in targets:
        raise click.BadParameter(f"{target!r} is not one of {', '.join(targets)}.", param_hint="--to")
    tokeniser, mapper = Tokeniser.from_settings(settings), None
    if target == TRANSACTIONS.name and (mapping := own_mapping(settings)) is not None:
        mapper = Mapper(mapping, load_rates(settings))
    gateway = Gateway(find_cluster(settings), settings, topic, targets[target], tokeniser, mapper)
    with interrupts(stop, signal.SIGTERM):
        gateway.run(stop, progress)
    click.echo(
        f"{gateway.done.written:,} records written to {settings.topic(target)}, {gateway.done.refused:,} refused"
    )
