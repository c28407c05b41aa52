"""``fraud-pipeline retrain``: renew the active version from the topics, behind a gate, and roll back what does harm."""

import json
import logging
import os
import signal
import sys
import threading
from typing import Final

import click

from pipeline.broker.running import ClusterNotFound, find_cluster
from pipeline.commands.numbers import FiniteRange
from pipeline.commands.progress import interrupts
from pipeline.kafka.errors import ClusterUnreachable, ConfigError, FailedRequest, TopicError, failure_text
from pipeline.kafka.producer import DeliveryFailed
from pipeline.models.sole import ServiceEnded
from pipeline.observability.logs import configure_logging
from pipeline.retraining.challenger import CycleOptions
from pipeline.retraining.service import CycleOutcome, Retrainer, ServiceOptions
from pipeline.settings import Settings
from pipeline.training.fit import DEFAULT_BUDGET
from pipeline.training.served import WINDOW_DAYS

log = logging.getLogger(__name__)

NICE: Final = 10
"""Added to the process's niceness: workers on the same machine go first."""
_CYCLE: Final = CycleOptions()


@click.command("retrain")
@click.option("--once", is_flag=True, help="Run one cycle, print one JSON line, and end.")
@click.option(
    "--every-days",
    type=FiniteRange(min=0, min_open=True),
    default=1.0,
    show_default=True,
    help="Event time between two challengers.",
)
@click.option(
    "--window-days",
    type=FiniteRange(min=0, min_open=True),
    default=WINDOW_DAYS,
    show_default=True,
    help="Train on decisions of the newest days; a million of them take 0.7 GB, and twice that for a moment.",
)
@click.option(
    "--maturity-days",
    type=FiniteRange(min=0),
    help="Age at which a transaction without a reported fraud is legitimate; no younger one teaches then.  "
    "[default: as old reports tell it, else the setting maturity_days]",
)
@click.option(
    "--early-reports/--no-early-reports",
    default=True,
    show_default=True,
    help="Train on younger transactions too, as far as the delays of old reports allow.",
)
@click.option(
    "--compare-days",
    type=click.IntRange(min=2),
    default=_CYCLE.compare_days,
    show_default=True,
    help="Newest days of matured transactions on which the gate compares.",
)
@click.option(
    "--validation-days",
    type=FiniteRange(min=0, min_open=True),
    default=_CYCLE.validation_days,
    show_default=True,
    help="Last days of a training, which stop and calibrate it.",
)
@click.option(
    "--budget-per-day",
    type=FiniteRange(min=0, min_open=True),
    help=f"Alerts a day that analysts can look at.  [default: that of the active policy, else {DEFAULT_BUDGET:g}]",
)
@click.option("--threads", type=click.IntRange(min=1), default=_CYCLE.threads, show_default=True, help="To train.")
@click.option(
    "--interval-s",
    type=FiniteRange(min=0.1),
    default=30.0,
    show_default=True,
    help="Seconds between two looks at the topics.",
)
def command(
    once: bool,
    every_days: float,
    window_days: float,
    maturity_days: float | None,
    early_reports: bool,
    compare_days: int,
    validation_days: float,
    budget_per_day: float | None,
    threads: int,
    interval_s: float,
) -> None:
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
        cycle = CycleOptions(
            maturity_days, settings.maturity_days, early_reports, compare_days, validation_days, threads
        )
        options = ServiceOptions(every_days, budget_per_day, window_days, cycle)
        retrainer = Retrainer(find_cluster(settings), settings, options)
        os.nice(NICE)
        if once:
            sys.exit(_report(retrainer.look(now=True)))
        signal.signal(signal.SIGTERM, lambda *_: stop.set())
        with interrupts(stop):
            while not stop.is_set():
                _look(retrainer)
                stop.wait(interval_s)
    except FailedRequest as error:
        raise click.ClickException(failure_text(error)) from error
    except ServiceEnded as error:
        # No error: a supervisor that starts it again would make both fight.
        click.echo(str(error), err=True)
    except (ClusterNotFound, ClusterUnreachable, ConfigError, DeliveryFailed, TopicError) as error:
        raise click.ClickException(str(error)) from error


def _look(retrainer: Retrainer) -> None:
    """Look, and report what failed: the next look tries again."""
    try:
        retrainer.look()
    except FailedRequest as error:
        log.warning("%s; it is tried again", failure_text(error))
    except ClusterUnreachable as error:
        log.warning("%s; it is tried again", error)


def _report(found: CycleOutcome) -> int:
    """Print an outcome as one JSON line; returns the exit code."""
    click.echo(json.dumps(found._asdict()))
    return 1 if found.outcome == "failed" else 0
