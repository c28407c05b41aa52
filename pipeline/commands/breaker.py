"""``fraud-pipeline breaker``: stop rules that exceed their caps."""

import signal
import threading
from contextlib import closing

import click

from pipeline.broker.running import SERVICE_TIMEOUT_S, find_cluster
from pipeline.commands.progress import interrupts
from pipeline.models.breaker import Breaker
from pipeline.observability.logs import configure_logging
from pipeline.settings import Settings


@click.command()
def command() -> None:
    """Stop active rules that exceed a cap in an hour of event time, on all partitions together, until stopped.

    A stopped rule goes on in shadow, and `fraud-pipeline rules activate` brings it back. Decisions of the last two days
    are read from the topic at the start; nothing is kept on disk. A second breaker does no harm.
    """
    stop, settings = threading.Event(), Settings()
    configure_logging(settings)
    bootstrap = find_cluster(settings, SERVICE_TIMEOUT_S)
    with closing(Breaker(bootstrap, settings, stop.is_set)) as breaker, interrupts(stop, signal.SIGTERM):
        breaker.run()
