"""``fraud-pipeline retrain``: renew the active version from the topics, behind a gate, and roll back what does harm."""

import json
import logging
import os
import signal
import sys
import threading
from typing import Final

import click

from pipeline.broker.running import find_cluster
from pipeline.commands.option_groups import declared_options
from pipeline.commands.option_types import FiniteRange
from pipeline.commands.progress import interrupts
from pipeline.kafka.cluster.errors import ClusterUnreachable, FailedRequest, failure_text
from pipeline.models.publish import ServiceEnded
from pipeline.observability.logs import configure_logging
from pipeline.retraining.service import Retrainer, ServiceOptions
from pipeline.settings import Settings

log = logging.getLogger(__name__)

NICE: Final = 10
"""Added to the process's niceness: workers on the same machine go first."""


@click.command("retrain")
@click.option("--once", is_flag=True, help="Run one cycle, print one JSON line, and end.")
@declared_options("options", ServiceOptions)
@click.option(
    "--interval-s",
    type=FiniteRange(min=0.1),
    default=30.0,
    show_default=True,
    help="Seconds between two looks at the topics.",
)
def command(once: bool, options: ServiceOptions, interval_s: float) -> None:
    """Renew the active LightGBM version and its policy from what was served, until stopped.

    A challenger of the same recipe replaces the active version if a gate accepts it; after that the version before is
    kept in the shadow, and returns if the new one does harm. Everything it decides is on `control`. Run one a cluster:
    of two, the one that has written last goes on, and the other one ends. SIGTERM or Ctrl-C ends it, after a training
    that runs.
    """
    stop = threading.Event()
    try:
        settings = Settings()
        configure_logging(settings)
        cycle = options.cycle._replace(fallback_days=settings.maturity_days)
        retrainer = Retrainer(find_cluster(settings), settings, options._replace(cycle=cycle))
        os.nice(NICE)
        if once:
            found = retrainer.look(now=True)
            click.echo(json.dumps(found._asdict()))
            sys.exit(found.outcome == "failed")
        with interrupts(stop, signal.SIGTERM):
            while not stop.is_set():
                _look(retrainer)
                stop.wait(interval_s)
    except ServiceEnded as error:
        # No error: a supervisor that starts it again would make both fight.
        click.echo(str(error), err=True)


def _look(retrainer: Retrainer) -> None:
    """Look, and report what failed: the next look tries again."""
    try:
        retrainer.look()
    except FailedRequest as error:
        log.warning("%s; it is tried again", failure_text(error))
    except ClusterUnreachable as error:
        log.warning("%s; it is tried again", error)
