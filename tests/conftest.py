"""Fixtures that all tests share: a real broker for the session, and settings that keep each test to itself on it."""

import signal
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings

from pipeline.broker import EmbeddedBroker, embedded_broker
from pipeline.settings import Settings
from tests.helpers.classes import use_archive

# The one profile, the same wherever tests run: no test may fail because a machine is busy.
hypothesis_settings.register_profile(
    "project",
    parent=hypothesis_settings.get_profile("default"),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
hypothesis_settings.load_profile("project")


def pytest_configure() -> None:
    """Hear Ctrl-C even where a shell runs the tests in the background: it has it ignored, by their children too."""
    use_archive()
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedBroker]:
    """A real Kafka broker of this test process; tests that stop it must start it again."""
    with embedded_broker(tmp_path_factory.mktemp("broker") / "kafka") as running:
        yield running


@pytest.fixture
def kafka_settings(broker: EmbeddedBroker, tmp_path: Path) -> Settings:
    """Settings of a test with the broker: topics, groups and files of its own, producer timestamps."""
    return Settings(
        kafka_bootstrap_servers=broker.bootstrap_servers,
        topic_prefix=f"t{uuid.uuid4().hex[:12]}-",
        data_dir=tmp_path / "data",
        timestamps="producer",
        metrics_port=0,
        # A worker that ends late ends with an error: a busy machine is not the worker's.
        shutdown_timeout_s=60,
    )
