"""The embedded broker's life: format, start, wait until it serves, notice a death, stop."""

import base64
import contextlib
import fcntl
import os
import shutil
import subprocess
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Self

from pipeline.broker.configuration import (
    controller_properties,
    jvm_arguments,
    log4j_text,
    properties_text,
    server_properties,
)
from pipeline.broker.fencing import SESSION_MS, crashed, end_session
from pipeline.broker.jars import fetched, pinned
from pipeline.broker.java import find_java
from pipeline.broker.local import (
    HOST,
    STATE_NAME,
    connects,
    free_port,
    is_free,
    read_json,
    running_broker,
    serving,
    write_json,
)
from pipeline.broker.process import BrokerError, BrokerInUse, GuardedProcess
from pipeline.kafka.cluster.admin import cluster_is_up

START_TIMEOUT_S: Final = 120.0
NEEDED_BYTES: Final = 512 * 1024 * 1024
"""Free space below which a start is refused: log segments and their indexes would soon not fit."""
QUOTED_LINES: Final = 15
SEARCHED_LINES: Final = 200
PORT_TRIES: Final = 3
"""Free ports are chosen before the broker binds them; another program can be quicker."""
POLL_S: Final = 0.05
RELEASE_S: Final = 2.0
"""A process that ends holds its files, locked ones too, for a moment after it has ceased to be seen."""


class EmbeddedBroker:
    """A Kafka node on this machine, with its data in ``data_dir``.

    ``start`` and ``stop`` may be called again and again: data, cluster id and, unless another program took it, the
    port stay. Not safe for several threads.
    """

    def __init__(self, data_dir: Path, *, port: int | None = None, long_lived: bool = False) -> None:
        """``port`` None: the port of the last start in this directory when it is free, else any free one.

        A broker that is ``long_lived`` is optimised while it runs: slower for its first minutes, and faster later.
        """
        self.data_dir = data_dir.absolute()
        self.log_path = self.data_dir / "broker.log"
        """The broker's log since its last start."""
        self._log_dir = self.data_dir / "log"
        self._ports_path = self.data_dir / "ports.json"
        self._wanted_port = port
        self._long_lived = long_lived
        self._port: int | None = None
        self._process: GuardedProcess | None = None
        self._lock: int | None = None

    @property
    def bootstrap_servers(self) -> str:
        """Address to give to clients, ``host:port``; ``BrokerError`` before the first start."""
        if self._port is None:
            raise BrokerError("the embedded broker has not been started")
        return f"{HOST}:{self._port}"

    @property
    def pid(self) -> int:
        """Process id of the JVM."""
        return self._running().pid

    def start(self) -> Self:
        """Start, and wait until it serves. Raises ``BrokerError`` with the reason when it does not."""
        if self._process is not None:
            raise BrokerError("the embedded broker runs already")
        self._prepare_directory()
        lock = self._take_lock()
        try:
            java = find_java()
            jars = fetched(pinned(), self.data_dir / "jars")
            for remaining in reversed(range(PORT_TRIES)):
                port, controller_port = self._choose_ports()
                try:
                    self._launch(java, jars, port, controller_port, lock)
                    break
                except BrokerError:
                    if not (remaining and self._wanted_port is None and self._says("already in use")):
                        raise
                    self._end(kill=True)
                    self._ports_path.unlink(missing_ok=True)
        except OSError as error:
            self.stop()
            raise BrokerError(
                f"cannot start the embedded broker in {self.data_dir}: {error}. If the disk is full or not yours to "
                "write, choose another directory with FRAUD_PIPELINE_DATA_DIR."
            ) from error
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """Stop cleanly, and leave no process; does nothing when it does not run."""
        try:
            self._end(kill=False)
        finally:
            if self._lock is not None:
                os.close(self._lock)
                self._lock = None

    def kill(self) -> None:
        """End the JVM at once, as a crash would; ``start`` may follow."""
        self._end(kill=True)
        self.stop()

    def hand_over(self) -> None:
        """Let it run until this process ends, whatever image that loads; ``stop`` does nothing from here on."""
        process, self._process = self._running(), None
        process.hand_over()

    def poll(self) -> int | None:
        """None while it runs, else its exit code (128 + signal for one that was killed)."""
        return self._running().poll()

    def check(self) -> None:
        """Raise ``BrokerError``, with the last lines of its log, when it has died."""
        if (code := self.poll()) is not None:
            raise BrokerError(f"the embedded broker died (exit code {code}). {self._explanation()}")

    def _running(self) -> GuardedProcess:
        if self._process is None:
            raise BrokerError("the embedded broker does not run")
        return self._process

    def _prepare_directory(self) -> None:
        try:
            self.data_dir.mkdir(parents=True, exist_ok=True)
            (self.data_dir / ".gitignore").write_text("*\n", encoding="utf-8")
            free_bytes = shutil.disk_usage(self.data_dir).free
        except OSError as error:
            raise BrokerError(
                f"cannot write to {self.data_dir}: {error}. Choose another directory with FRAUD_PIPELINE_DATA_DIR."
            ) from error
        if free_bytes < NEEDED_BYTES:
            raise BrokerError(
                f"no space for the embedded broker: {free_bytes // 2**20} MB free under {self.data_dir}, "
                f"{NEEDED_BYTES // 2**20} MB needed. Free some, or choose another directory with "
                "FRAUD_PIPELINE_DATA_DIR."
            )

    def _take_lock(self) -> int:
        descriptor = os.open(self.data_dir / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            self._await_lock(descriptor)
        except BaseException:
            os.close(descriptor)
            raise
        self._lock = descriptor
        return descriptor

    def _await_lock(self, descriptor: int) -> None:
        deadline_s = time.monotonic() + RELEASE_S
        while not _locked(descriptor):
            if running_broker(self.data_dir) is not None or time.monotonic() > deadline_s:
                address = serving(self.data_dir) or "one that does not serve yet"
                raise BrokerInUse(
                    f"another process runs an embedded broker in {self.data_dir}: {address}. Use that one, stop it, "
                    "or choose another directory with FRAUD_PIPELINE_DATA_DIR."
                )
            time.sleep(POLL_S)

    def _choose_ports(self) -> tuple[int, int]:
        last: dict[str, int] = read_json(self._ports_path)
        if self._wanted_port is not None:
            if not is_free(self._wanted_port):
                raise BrokerError(
                    f"port {self._wanted_port} of {HOST} is in use by another program. Stop it, choose another port "
                    "with --port, or leave the option out for any free one."
                )
            port = self._wanted_port
        else:
            port = _same_or_free(last.get("port"))
        return port, _same_or_free(last.get("controller_port"), unlike=port)

    def _launch(self, java: Path, jars: list[Path], port: int, controller_port: int, lock: int) -> None:
        configuration = self.data_dir / "server.properties"
        log4j = self.data_dir / "log4j2.properties"
        properties = server_properties(self._log_dir, HOST, port, controller_port)
        configuration.write_text(properties_text(properties), encoding="utf-8")
        log4j.write_text(log4j_text(), encoding="utf-8")
        if self.log_path.exists():
            self.log_path.replace(self.log_path.with_suffix(".log.1"))
        class_path = ["-cp", os.pathsep.join(map(str, jars))]
        tool = [str(java), *jvm_arguments(log4j, self.data_dir), *class_path]
        if not (self._log_dir / "meta.properties").exists():
            self._format(tool, configuration)
        write_json(self._ports_path, {"port": port, "controller_port": controller_port})
        if crashed(self._log_dir):
            self._end_session(tool, controller_port, lock)
        node = [str(java), *jvm_arguments(log4j, self.data_dir, long_lived=self._long_lived), *class_path]
        self._process = GuardedProcess([*node, "kafka.Kafka", str(configuration)], self.log_path, lock)
        self._port = port
        self._await_serving()
        state = {"bootstrap_servers": self.bootstrap_servers, "pid": self.pid, "started_s": self._process.started_s}
        write_json(self.data_dir / STATE_NAME, state)

    def _format(self, command: list[str], configuration: Path) -> None:
        # A directory without meta.properties holds at most what an interrupted format left.
        shutil.rmtree(self._log_dir, ignore_errors=True)
        tool = ["kafka.tools.StorageTool", "format", "--standalone", "--config", str(configuration)]
        with self.log_path.open("ab") as output:
            made = subprocess.run(
                [*command, *tool, "--cluster-id", _cluster_id()],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                check=False,
            )
        if made.returncode != 0:
            raise BrokerError(f"cannot prepare the embedded broker's directory {self.data_dir}. {self._explanation()}")

    def _end_session(self, command: list[str], controller_port: int, lock: int) -> None:
        configuration = self.data_dir / "controller.properties"
        properties = controller_properties(self._log_dir, HOST, controller_port, SESSION_MS)
        configuration.write_text(properties_text(properties), encoding="utf-8")
        end_session(command, configuration, self._log_dir, self.log_path, lock)

    def _await_serving(self) -> None:
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while True:
            if (code := self.poll()) is not None:
                raise BrokerError(
                    f"the embedded broker ended while it started (exit code {code}). {self._explanation()}"
                )
            if connects(self.bootstrap_servers) and cluster_is_up(self.bootstrap_servers, settings=None):
                return
            if time.monotonic() > deadline_s:
                raise BrokerError(
                    f"the embedded broker did not serve within {START_TIMEOUT_S:.0f} s. {self._explanation()}"
                )
            time.sleep(POLL_S)

    def _end(self, *, kill: bool) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        (self.data_dir / STATE_NAME).unlink(missing_ok=True)
        if kill:
            process.kill()
        else:
            process.stop()

    def _log_end(self, lines: int) -> str:
        try:
            text = self.log_path.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return ""
        return "\n".join(text.splitlines()[-lines:])

    def _says(self, text: str) -> bool:
        return text in self._log_end(SEARCHED_LINES)

    def _explanation(self) -> str:
        hint = ""
        if self._says("No space left on device"):
            hint = f"There is no space left on the disk of {self.data_dir}: free some and start again. "
        elif self._says("OutOfMemoryError"):
            hint = "Its memory did not suffice: use a cluster of your own with KAFKA_BOOTSTRAP_SERVERS for such loads. "
        elif self._says("already in use"):
            hint = "A port that it needs is in use by another program. "
        elif self._says("UnsupportedVersionException: Can't read version"):
            hint = f"A later Kafka wrote {self.data_dir}: start in another directory, with FRAUD_PIPELINE_DATA_DIR. "
        return f"{hint}The end of {self.log_path}:\n{self._log_end(QUOTED_LINES) or '(nothing)'}"


@contextlib.contextmanager
def embedded_broker(data_dir: Path, *, port: int | None = None, long_lived: bool = False) -> Iterator[EmbeddedBroker]:
    """Run an `EmbeddedBroker`, and stop it on every way out.

    Args:
        data_dir: Directory of its data; made where it is missing.
        port: Port that clients connect to; None: that of the last start in this directory if it is free, else any.
        long_lived: Optimise the broker while it runs: slower for its first minutes, and faster later.

    Raises:
        BrokerError: It does not start.
    """
    broker = EmbeddedBroker(data_dir, port=port, long_lived=long_lived).start()
    try:
        yield broker
    finally:
        broker.stop()


def _locked(descriptor: int) -> bool:
    """Lock the file for this process and those that inherit it; False while another holds it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:  # the answer to the question
        return False
    return True


def _same_or_free(last: int | None, unlike: int | None = None) -> int:
    return last if last is not None and last != unlike and is_free(last) else free_port(unlike)


def _cluster_id() -> str:
    """A Kafka UUID: 16 random bytes in URL-safe base 64; one that starts with a dash would look like an option."""
    while True:
        text = base64.urlsafe_b64encode(uuid.uuid4().bytes).rstrip(b"=").decode()
        if not text.startswith("-"):
            return text
