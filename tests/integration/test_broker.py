"""The embedded broker: a real one, from pip alone, that leaves nothing behind."""

import fcntl
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from confluent_kafka import Producer

from pipeline.broker import (
    BrokerError,
    EmbeddedBroker,
    embedded_broker,
    provide_broker,
    running_broker,
)
from pipeline.broker import jars as jars_module
from pipeline.broker import node as node_module
from pipeline.broker.fencing import ACTIVE, FENCED
from pipeline.broker.local import STATE_NAME
from pipeline.broker.process import BrokerInUse
from pipeline.kafka.cluster.admin import ensure_topics
from pipeline.kafka.cluster.clients import admin_client, producer_config
from pipeline.kafka.cluster.log_offsets import first_offsets
from pipeline.kafka.cluster.retries import retried
from pipeline.kafka.readers.topic_reader import read_topic
from pipeline.settings import Settings
from schemas.topics import TRANSACTIONS
from tests.helpers.waiting import TIMEOUT_S, eventually
from tests.helpers.worker import ROOT, inherited_environment

pytestmark = pytest.mark.broker


def write(bootstrap: str, topic: str, values: list[bytes]) -> None:
    producer = Producer(producer_config(bootstrap))
    for value in values:
        producer.produce(topic, value, b"key")
    assert producer.flush(TIMEOUT_S) == 0


def values(bootstrap: str, topic: str) -> list[bytes | None]:
    return [record.value for record in read_topic(bootstrap, topic, settings=Settings())]


@pytest.fixture
def command(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts ``fraud-pipeline broker`` without any Java on the path; ends what is left of it."""
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str, program: str = "from pipeline.cli import main; main()") -> subprocess.Popen[str]:
        environment = {name: value for name, value in inherited_environment().items() if not name.startswith("JAVA_")}
        environment |= {"PATH": str(tmp_path), "FRAUD_PIPELINE_DATA_DIR": str(tmp_path / "data")}
        process = subprocess.Popen(
            [sys.executable, "-c", program, *arguments],
            env=environment,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


def family(process: subprocess.Popen[str]) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def lives(process: psutil.Process) -> bool:
    """Whether a process runs; one that only waits to be reaped does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_the_command_runs_without_java_and_leaves_no_process(
    command: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    process = command("broker")
    assert process.stdout is not None
    address = process.stdout.readline().strip()
    assert running_broker(tmp_path / "data" / "kafka") == address
    descendants = family(process)
    assert any("kafka.Kafka" in item.cmdline() for item in descendants)

    process.send_signal(signal.SIGTERM)
    _, reported = process.communicate(timeout=TIMEOUT_S)

    assert process.returncode == 0, reported
    assert "Stopped." in reported
    assert [item for item in descendants if lives(item)] == []
    assert running_broker(tmp_path / "data" / "kafka") is None


def test_a_directory_that_stays_held_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_module, "RELEASE_S", 0.0)
    with (tmp_path / "lock").open("a+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(BrokerInUse, match=r"one that does not serve yet\. Use that one, stop it"):
            EmbeddedBroker(tmp_path).start()


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel ends the children of a killed guard on Linux alone")
def test_a_killed_guard_takes_the_broker_with_it_and_its_last_words_are_reported(
    command: Callable[..., subprocess.Popen[str]],
) -> None:
    process = command("broker")
    assert process.stdout is not None
    process.stdout.readline()
    guard, java = family(process)

    # The command stands still, so that it is not the one that ends the broker.
    process.send_signal(signal.SIGSTOP)
    guard.kill()
    eventually(lambda: not lives(java))
    process.send_signal(signal.SIGCONT)
    _, reported = process.communicate(timeout=TIMEOUT_S)

    assert process.returncode == 1
    assert f"the embedded broker died (exit code {128 + signal.SIGKILL})" in reported
    assert "Kafka Server started" in reported
    assert "Traceback" not in reported


def test_a_port_in_use_is_a_clear_error(command: Callable[..., subprocess.Popen[str]]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        process = command("broker", "--port", str(port))
        _, reported = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 1
    assert f"port {port} of 127.0.0.1 is in use by another program" in reported
    assert "Traceback" not in reported


def test_too_little_space_is_a_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_module, "NEEDED_BYTES", 2**62)
    with pytest.raises(BrokerError, match=r"no space for the embedded broker: \d+ MB free"):
        EmbeddedBroker(tmp_path / "kafka").start()


def test_a_directory_that_cannot_be_made_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(BrokerError, match=r"cannot write to .* FRAUD_PIPELINE_DATA_DIR"):
        EmbeddedBroker(tmp_path / "file" / "kafka").start()


def test_data_and_port_survive_a_killed_command_a_stop_and_a_crash(
    command: Callable[..., subprocess.Popen[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(data_dir=tmp_path / "data", card_partitions=1)
    directory = tmp_path / "data" / "kafka"
    process = command("broker")
    assert process.stdout is not None
    process.stdout.readline()
    descendants = family(process)
    assert len(descendants) == 2
    process.kill()
    eventually(lambda: not any(lives(item) for item in descendants))
    assert (directory / STATE_NAME).exists()
    assert running_broker(directory) is None

    with embedded_broker(directory) as broker:
        address = broker.bootstrap_servers
        assert running_broker(directory) == address
        # One directory has one broker, which processes share.
        with provide_broker(settings) as found:
            assert (found.embedded, found.bootstrap_servers) == (None, address)
            with pytest.raises(BrokerError, match=rf"another process runs .*{address}"):
                EmbeddedBroker(directory).start()
            found.check()
            ensure_topics(address, settings, [TRANSACTIONS])
            write(address, "transactions", [b"before"])
            older, place = admin_client(address), ("transactions", 0)
            begins = first_offsets(older, [place])

            broker.stop()
            with pytest.raises(BrokerError, match="is gone"):
                found.check()
        # Of another process, which has ended and still holds the directory for a moment.
        held = (directory / "lock").open("a+")
        fcntl.flock(held, fcntl.LOCK_EX)
        attempts: list[bool] = []
        lock = fcntl.flock

        def attempt(descriptor: int, operation: int) -> None:
            try:
                lock(descriptor, operation)
            except BlockingIOError:
                held.close()
                attempts.append(False)
                raise

        with monkeypatch.context() as patched:
            patched.setattr(fcntl, "flock", attempt)
            broker.start()
        assert (attempts, broker.bootstrap_servers) == ([False], address)
        # A client from before the restart knows an older leader epoch, and asks with it until it is told.
        assert retried(lambda: first_offsets(older, [place])) == begins
        assert values(address, "transactions") == [b"before"]
        assert FENCED not in broker.log_path.read_text()

        write(address, "transactions", [b"after a stop"])
        broker.kill()
        with pytest.raises(BrokerError, match="does not run"):
            broker.check()
        broker.start()
        assert broker.bootstrap_servers == address
        assert values(address, "transactions") == [b"before", b"after a stop"]
        # It led nothing until its old session was over: coordinators do not stand a change of leaders while they load.
        controller, _, node = broker.log_path.read_text().partition(FENCED)
        assert (ACTIVE in controller, ACTIVE in node) == (True, True)

    with socket.create_server(("127.0.0.1", int(address.split(":")[1]))), embedded_broker(directory) as broker:
        assert broker.bootstrap_servers != address
        assert values(broker.bootstrap_servers, "transactions") == [b"before", b"after a stop"]


def test_a_given_cluster_is_used_and_nothing_is_started(tmp_path: Path) -> None:
    settings = Settings(kafka_bootstrap_servers="kafka.example:9092", data_dir=tmp_path / "data")
    with provide_broker(settings) as found:
        assert found.bootstrap_servers == "kafka.example:9092"
    assert not (tmp_path / "data").exists()


def test_git_ignores_the_data(tmp_path: Path) -> None:
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    broker = EmbeddedBroker(tmp_path / "anywhere" / "kafka")
    broker._prepare_directory()
    (broker.data_dir / "log").mkdir()
    (broker.data_dir / "log" / "segment").write_bytes(b"data")
    status = subprocess.run(
        ["git", "-C", str(tmp_path), "status", "--porcelain"], check=True, capture_output=True, text=True
    )
    assert status.stdout == ""


def test_a_jar_that_was_changed_in_the_store_is_fetched_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jar = min(jars_module.pinned(), key=lambda jar: jar.size_bytes)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    [path] = jars_module.fetched([jar], tmp_path)
    whole = path.read_bytes()
    path.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
    assert jars_module.fetched([jar], tmp_path) == [path]
    assert path.read_bytes() == whole


def test_a_jar_that_is_not_the_pinned_one_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    jar = jars_module.pinned()[-1]
    forged = jars_module.Jar(jar.group, jar.artifact, jar.version, jar.size_bytes, "0" * 64)
    with pytest.raises(BrokerError, match="is not the file that this project pins"):
        jars_module.fetched([forged], tmp_path / "fallback")
    assert list((tmp_path / "fraud-pipeline" / "jars").rglob("*.jar")) == []
