"""The environment of a run: a directory, a broker, topics, all of them empty."""

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from agents.permissions import DEMO
from agents.topology import DECIDING
from pipeline.broker import ProvidedBroker, provide_broker
from pipeline.broker.local import is_free
from pipeline.broker.running import demo_dir
from pipeline.kafka.cluster.admin import end_offsets, ensure_topics
from pipeline.settings import Settings

KEPT: Final = ("lock", "jars", "ports.json")
"""Files of the last run's broker that stay: the lock that its processes hold, fetched jars, the port."""

FEWEST_PARTITIONS: Final = 2


class RunRefused(RuntimeError):
    """A run cannot begin; the text says what to do."""


@contextmanager
def run_directory(settings: Settings) -> Iterator[Path]:
    """The run's own directory, emptied; raises `RunRefused` while another run holds it."""
    directory = demo_dir(settings)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        (settings.data_dir / ".gitignore").write_text("*\n", encoding="utf-8")
        lock = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise RunRefused(
            f"cannot write to {directory.absolute()}: {error}. Choose another directory with FRAUD_PIPELINE_DATA_DIR."
        ) from error
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunRefused(
                f"another run is going on in {directory.absolute()}. Wait for its end, stop it, or choose another "
                "directory with FRAUD_PIPELINE_DATA_DIR."
            ) from None
        for child in directory.iterdir():
            if child.name == "kafka":
                _empty_broker(child)
            elif child.name != "lock":
                _remove(child)
        yield directory
    finally:
        os.close(lock)


def _empty_broker(directory: Path) -> None:
    """Delete the last run's topics. A broker that still holds the directory is ending: its lock says when it has."""
    with (directory / "lock").open("a", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for child in directory.iterdir():
            if child.name not in KEPT:
                _remove(child)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def run_settings(settings: Settings, directory: Path, now: datetime, workers: int = 1) -> Settings:
    """Return the settings of a run's programs.

    On a cluster of the user's, its topics get a prefix of their own, unless the user gave one. On the embedded broker
    they have no more partitions than the ``workers`` need, unless the user says how many: clients send requests for
    each partition, and brokers pay for each request, on a machine that runs everything.
    """
    counts = {}
    if settings.kafka_bootstrap_servers is None:
        counts = dict.fromkeys(("card_partitions", "merchant_partitions"), max(FEWEST_PARTITIONS, workers))
    prefix = settings.topic_prefix
    if settings.kafka_bootstrap_servers is not None and not prefix:
        prefix = f"{DEMO}{now.astimezone(UTC):%Y%m%d-%H%M%S}-"
    return settings.model_copy(
        update={
            "data_dir": directory,
            "registry_dir": None,
            "topic_prefix": prefix,
            "timestamps": "producer",
            "label_topics": Settings.model_fields["label_topics"].default,
            "mapping_file": None,
            "create_topics": True,
            # What learns has a process of its own.
            "agents": DECIDING,
            **{name: count for name, count in counts.items() if name not in settings.model_fields_set},
            # A run does not fail because something else serves metrics.
            "metrics_port": settings.metrics_port if is_free(settings.metrics_port, settings.metrics_host) else 0,
        }
    )


@contextmanager
def run_cluster(
    given: Settings, stage: Callable[[str], None], workers: int = 1
) -> Iterator[tuple[Settings, ProvidedBroker]]:
    """Yield the settings of a run's programs, and its broker, with all topics, all empty.

    Args:
        given: Settings as the user gave them.
        stage: Called with what is waited for.
        workers: Number of worker processes.

    Raises:
        RunRefused: Another run is going on, or the topics hold records.
        BrokerError: The broker cannot be started.
        TopicError: A topic is another one than it should be.
    """
    with run_directory(given) as directory:
        settings = run_settings(given, directory, datetime.now(UTC), workers)
        if settings.kafka_bootstrap_servers is not None:
            stage(f"connecting to the Kafka cluster at {settings.kafka_bootstrap_servers}")
        else:
            stage("starting a Kafka broker (the first time its 45 MB are fetched, which can take a minute)")
        with provide_broker(settings) as broker:
            servers = broker.bootstrap_servers
            topics = ensure_topics(servers, settings)
            # What was created just now is empty.
            present = [topic.name for topic in topics if topic.action == "present"]
            ends = end_offsets(servers, present, settings=settings) if present else {}
            used = sorted({topic for (topic, _), end in ends.items() if end})
            if used:
                raise RunRefused(
                    f"these topics at {servers} hold records already: {', '.join(used)}. A run needs its own: choose "
                    "an unused FRAUD_PIPELINE_TOPIC_PREFIX, or leave it unset."
                )
            yield settings.model_copy(update={"kafka_bootstrap_servers": servers}), broker
