"""``fraud-pipeline worker``: run agents."""

import click

from agents.topology import AGENTS
from pipeline.settings import Settings


@click.command()
@click.argument("agents", nargs=-1, type=click.Choice(sorted(AGENTS)))
@click.option("--instance", help="Stable, unique name of this worker (default: the host's name).")
@click.option("--metrics-port", type=click.IntRange(0, 65535), help="Port of /metrics; 0 for any free one.")
@click.option(
    "--log-level", type=click.Choice(["debug", "info", "warning", "error"]), default="info", show_default=True
)
def command(agents: tuple[str, ...], instance: str | None, metrics_port: int | None, log_level: str) -> None:
    """Run AGENTS (all of them by default) until stopped.

    Several workers share the partitions of an agent; give each its own --instance. The first SIGTERM or Ctrl-C
    finishes the batch and leaves the group.
    """
    from agents.app import run_worker

    changes: dict[str, object] = {}
    if agents:
        changes["agents"] = ",".join(agents)
    if instance is not None:
        changes["instance"] = instance
    if metrics_port is not None:
        changes["metrics_port"] = metrics_port
    run_worker(Settings(**changes), log_level)  # type: ignore[arg-type]
