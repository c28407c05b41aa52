"""``fraud-pipeline pace``: keep alerts to a budget, and the online model in the score while it helps."""

import json
import signal
import threading
from contextlib import closing

import click

from pipeline.broker.running import SERVICE_TIMEOUT_S, find_cluster
from pipeline.commands.option_types import FiniteRange
from pipeline.commands.progress import interrupts
from pipeline.decision.budget import LOWEST_THRESHOLD
from pipeline.decision.pacing import PacingOptions
from pipeline.models.pacer import NothingActive, Pacer, Proposal
from pipeline.models.publish import ServiceEnded
from pipeline.observability.logs import configure_logging
from pipeline.settings import Settings


@click.command()
@click.option(
    "--budget-per-day",
    type=FiniteRange(min=0, min_open=True),
    required=True,
    help="Cases a day, each counted by its first alert.",
)
@click.option(
    "--critical",
    type=FiniteRange(LOWEST_THRESHOLD, 1),
    help="Scores from here on alert whatever the budget says.  [default: none does]",
)
@click.option(
    "--gate/--no-gate",
    default=True,
    show_default=True,
    help="Let reported frauds take the online model out of the score, and back in.",
)
@click.option("--once", is_flag=True, help="Decide once, print it as one JSON line, and publish nothing.")
def command(*, budget_per_day: float, critical: float | None, gate: bool, once: bool) -> None:
    """Set the policy's threshold anew each hour of event time, so that alerts keep to a budget, until stopped.

    Decisions and labels of the last days are read from the topics at the start; nothing is kept on disk. Run one pace a
    cluster: of two, the one that has set a threshold last goes on, and the other one ends.
    """
    stop = threading.Event()
    try:
        settings = Settings()
        configure_logging(settings)
        options = PacingOptions(budget_per_day, critical)
        bootstrap = find_cluster(settings, SERVICE_TIMEOUT_S)
        with closing(Pacer(bootstrap, settings, options, gate=gate, stopped=stop.is_set)) as pacer:
            if once:
                click.echo(json.dumps(_line(pacer.once())))
            else:
                with interrupts(stop, signal.SIGTERM):
                    pacer.run()
    except NothingActive:
        raise  # an error, though the service ends of it
    except ServiceEnded as error:
        # No error: a supervisor that starts it again would make both fight.
        click.echo(str(error), err=True)


def _line(proposal: Proposal) -> dict[str, object]:
    return {
        "policy": proposal.policy.version,
        "would_publish": proposal.news,
        "reason": proposal.reason,
        **proposal.figures,
    }
