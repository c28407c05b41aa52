"""``fraud-pipeline worker``: run agents."""

import gc
import sys
from typing import Any

import click

from agents.topology import AGENTS
from pipeline.settings import Settings


@click.command()
@click.argument("agents", nargs=-1, type=click.Choice(sorted(AGENTS)))
@click.option("--instance", help="Stable, unique name of this worker (default: the host's name).")
@click.option("--metrics-port", type=click.IntRange(0, 65535), help="Port of /metrics; 0 for any free one.")
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    help="Least level of log lines.  [default: FRAUD_PIPELINE_LOG_LEVELS]",
)
def command(agents: tuple[str, ...], instance: str | None, metrics_port: int | None, log_level: str | None) -> None:
    """Run AGENTS (all of them by default) until stopped.

    Several workers share the partitions of an agent; give each its own --instance. The first SIGTERM or Ctrl-C
    finishes the batch and leaves the group.
    """
    # Imports make many objects, which stay: looking for garbage among them takes a tenth of a second.
    gc.disable()
    from agents.app import run_worker

    gc.enable()
    _leave_pandas_out()
    changes: dict[str, Any] = {}
    if agents:
        changes["agents"] = ",".join(agents)
    if instance is not None:
        changes["instance"] = instance
    if metrics_port is not None:
        changes["metrics_port"] = metrics_port
    run_worker(Settings(**changes), log_level)


class _NoPandas:
    """A finder of modules that refuses pandas."""

    @staticmethod
    def find_spec(name: str, *_: Any) -> None:
        """Raise `ModuleNotFoundError` for pandas; find nothing else."""
        if name == "pandas":
            raise ModuleNotFoundError(name=name)


def _leave_pandas_out() -> None:
    """Let PyArrow look for pandas in vain, once: with its first array it would import it, to tell series from lists.

    A worker has no series; the import takes a fifth of a second of its start, and 30 MB.
    """
    import pyarrow

    sys.meta_path.insert(0, _NoPandas)
    pyarrow.array([])
    sys.meta_path.remove(_NoPandas)
