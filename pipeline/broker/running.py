"""Finds the cluster that runs, for the commands of analysts."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from pipeline.broker import provide_broker, running_broker
from pipeline.kafka.cluster.admin import failed_answer
from pipeline.settings import Settings

ANSWER_TIMEOUT_S: Final = 10.0
SERVICE_TIMEOUT_S: Final = 60.0
"""Longest wait of a service, which starts beside others while the broker is busy."""


class ClusterNotFound(RuntimeError):
    """No cluster was named, or nobody answers there."""


def demo_dir(settings: Settings) -> Path:
    """Directory of a run's own broker and state; each run begins by emptying it."""
    return settings.data_dir / "demo"


def find_cluster(settings: Settings, timeout_s: float = ANSWER_TIMEOUT_S) -> str:
    """Bootstrap servers: those of the settings, else the data directory's embedded broker, else that of a run there.

    Raises ``ClusterNotFound`` when there is none or none of them answers.
    """
    address = settings.kafka_bootstrap_servers
    if address is None:
        address = running_broker(settings.data_dir / "kafka") or running_broker(demo_dir(settings) / "kafka")
    if address is None:
        raise ClusterNotFound(
            f"No embedded broker runs for {settings.data_dir.absolute()}. Start one there (`make run-pipeline`, "
            "`fraud-pipeline broker`), or name a cluster with KAFKA_BOOTSTRAP_SERVERS."
        )
    if (failed := failed_answer(address, timeout_s, settings=settings)) is not None:
        raise ClusterNotFound(
            f"No broker answers at {address}{failed}. Check that the cluster runs, KAFKA_BOOTSTRAP_SERVERS, and "
            "FRAUD_PIPELINE_KAFKA_CONFIG for its security settings."
        )
    return address


@contextmanager
def cluster_or_last_run(settings: Settings, report: Callable[[str], None]) -> Iterator[str]:
    """Yield the address that `find_cluster` returns; where no broker runs, that of one over what the last run kept.

    Args:
        settings: The settings.
        report: Called with a sentence if a broker is started, which ends with the context.

    Raises:
        ClusterNotFound: There is neither.
        BrokerError: The broker cannot be started.
    """
    kept = demo_dir(settings)
    try:
        address = find_cluster(settings)
    except ClusterNotFound:
        if settings.kafka_bootstrap_servers is not None or not (kept / "kafka" / "log").is_dir():
            raise
        report(f"No broker runs: starting one on what the last run kept in {kept}.")
        with provide_broker(settings.model_copy(update={"data_dir": kept})) as broker:
            yield broker.bootstrap_servers
        return
    yield address
