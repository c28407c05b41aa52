"""Fixtures that all tests share: a real broker for the session, and settings that keep each test to itself on it."""

import logging
import os
import signal
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

# Before anything of the pipeline is imported, here and in all processes that tests start.
os.environ.pop("FRAUD_PIPELINE_REGISTRY_DIR", None)  # the registry of whoever runs them is not theirs
os.environ.setdefault("FRAUD_PIPELINE_FEATURES_FILE", str(Path(__file__).with_name("features.toml")))

import pytest
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings

from pipeline.broker import EmbeddedBroker, embedded_broker
from pipeline.settings import Settings
from tests.helpers.classes import use_archive
from tests.helpers.limits import limit_s, near_limits

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


_limits_s: dict[str, float] = {}
_durations_s: Counter[str] = Counter()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Note the limit of a test."""
    _limits_s[item.nodeid] = limit_s(item)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Add up what a test takes."""
    _durations_s[report.nodeid] += report.duration


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """List the tests that came near their limits: nothing fails, and on a slower machine they would."""
    durations_s = {test: seconds for test, seconds in _durations_s.items() if test in _limits_s}
    for line in near_limits(durations_s, _limits_s):
        terminalreporter.write_line(line)


@pytest.fixture(autouse=True)
def _log_levels() -> Iterator[None]:
    """Undo the levels that a command sets for its process, which here is that of later tests too."""
    before = {logger: logger.level for logger in _own_loggers()}
    yield
    for logger in _own_loggers():
        logger.setLevel(before.get(logger, logging.NOTSET))


def _own_loggers() -> list[logging.Logger]:
    return [logging.getLogger(name) for name in list(logging.root.manager.loggerDict) if name.startswith("pipeline")]


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
