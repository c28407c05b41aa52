"""The embedded broker's life: format, start, wait until it serves, notice a death, stop."""

import contextlib
import fcntl
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, Self

import psutil

from pipeline.broker.configuration import jvm_arguments, log4j_text, properties_text, server_properties
from pipeline.broker.errors import BrokerError
from pipeline.broker.jars import class_path
from pipeline.broker.java import find_java
from pipeline.kafka.admin import cluster_is_up
from pipeline.settings import Settings

log = logging.getLogger(__name__)

HOST: Final = "127.0.0.1"
START_TIMEOUT_S: Final = 120.0
STOP_TIMEOUT_S: Final = 25.0
"""Above the guard's own grace, after which it kills the JVM."""
NEEDED_BYTES: Final = 512 * 1024 * 1024
"""Free space below which a start is refused: a log segment and its indexes would soon not fit."""
QUOTED_LINES: Final = 15
PORT_TRIES: Final = 3
"""Free ports are chosen before the broker binds them; another program can be quicker."""
POLL_S: Final = 0.05


class EmbeddedBroker:
    """One Kafka node on this machine, with its data in ``data_dir``.

    ``start`` and ``stop`` may be called again and again: data, cluster id and, unless another program took it, the port stay. Not safe for
    several threads.
    """

    def __init__(self, data_dir: Path, *, port: int | None = None) -> None:
        """``port`` None: the port of the last start in this directory when it is free, else any free one."""
        self.data_dir = data_dir.absolute()
        self._wanted_port = port
        self._port: int | None = None
        self._pid: int | None = None
        self._guard: subprocess.Popen[bytes] | None = None
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
        if self._pid is None:
            raise BrokerError("the embedded broker does not run")
        return self._pid

    @property
    def log_path(self) -> Path:
        """What the broker said since its last start."""
        return self.data_dir / "broker.log"

    @property
    def state_path(self) -> Path:
        """Address and process id, while it serves; for the other processes of the project."""
        return self.data_dir / "broker.json"

    def start(self) -> Self:
        """Start, and wait until it serves. Raises ``BrokerError`` with the reason when it does not."""
        if self._guard is not None:
            raise BrokerError("the embedded broker runs already")
        self._prepare_directory()
        self._take_lock()
        try:
            java = find_java()
            jars = class_path(self.data_dir / "jars")
            for remaining in reversed(range(PORT_TRIES)):
                port, controller_port = self._choose_ports()
                try:
                    self._launch(java, jars, port, controller_port)
                except BrokerError:
                    lost_race = self._wanted_port is None and "already in use" in self._log_end(200)
                    self._end_process()
                    if not (lost_race and remaining):
                        raise
                    self._last_ports_path.unlink(missing_ok=True)
                else:
                    break
        except BaseException:
            self._end_process()
            self._release_lock()
            raise
        return self

    def stop(self) -> None:
        """Stop cleanly, and leave no process; does nothing when it does not run."""
        self._end_process()
        self._release_lock()

    def kill(self) -> None:
        """End the JVM at once, as a crash would; ``start`` may follow."""
        if self._pid is not None and self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL)
        self.stop()

    def poll(self) -> int | None:
        """None while it runs, else its exit code (128 + signal for one that was killed)."""
        return None if self._guard is None else self._guard.poll()

    def check(self) -> None:
        """Raise ``BrokerError``, with the last lines of its log, when it has died."""
        if (code := self.poll()) is not None:
            raise BrokerError(f"the embedded broker died (exit code {code}). {self._explanation()}")

    # -- starting

    @property
    def _log_dir(self) -> Path:
        return self.data_dir / "log"

    @property
    def _last_ports_path(self) -> Path:
        return self.data_dir / "ports.json"

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
                f"no space for the embedded broker: {free_bytes // 2**20} MB free under {self.data_dir}, {NEEDED_BYTES // 2**20} MB needed. "
                "Free some, or choose another directory with FRAUD_PIPELINE_DATA_DIR."
            )

    def _take_lock(self) -> None:
        """Hold the directory; the guard inherits the lock, so that it lasts exactly as long as the processes do."""
        descriptor = os.open(self.data_dir / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise BrokerInUse(
                f"another process runs an embedded broker in {self.data_dir}. Use that one, stop it, "
                "or choose another directory with FRAUD_PIPELINE_DATA_DIR."
            ) from None
        self._lock = descriptor

    def _release_lock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _choose_ports(self) -> tuple[int, int]:
        last_port, last_controller_port = _read_json(self._last_ports_path).get("ports", (None, None))
        if self._wanted_port is not None:
            if not _is_free(self._wanted_port):
                raise BrokerError(
                    f"port {self._wanted_port} of {HOST} is in use by another program. Stop it, choose another port with --port, "
                    "or leave the option out for any free one."
                )
            port = self._wanted_port
        else:
            port = last_port if last_port is not None and _is_free(last_port) else _free_port()
        reusable = last_controller_port not in (None, port) and _is_free(last_controller_port)
        return port, last_controller_port if reusable else _free_port()

    def _launch(self, java: Path, jars: list[Path], port: int, controller_port: int) -> None:
        configuration = self.data_dir / "server.properties"
        log4j = self.data_dir / "log4j2.properties"
        configuration.write_text(
            properties_text(server_properties(self._log_dir, HOST, port, controller_port)), encoding="utf-8"
        )
        log4j.write_text(log4j_text(), encoding="utf-8")
        if self.log_path.exists():
            self.log_path.replace(self.log_path.with_suffix(".log.1"))
        command = [str(java), *jvm_arguments(log4j, self.data_dir), "-cp", os.pathsep.join(map(str, jars))]
        if not (self._log_dir / "meta.properties").exists():
            self._format(command, configuration)
        self._last_ports_path.write_text(json.dumps({"ports": [port, controller_port]}), encoding="utf-8")
        self._spawn([*command, "kafka.Kafka", str(configuration)])
        self._port = port
        self._await_serving()
        self._write_state()

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

    def _spawn(self, command: list[str]) -> None:
        assert self._lock is not None
        guard = Path(__file__).with_name("guard.py")
        self._guard = subprocess.Popen(
            [sys.executable, "-I", "-S", str(guard), str(self.log_path), *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=(self._lock,),
            start_new_session=True,
        )
        assert self._guard.stdout is not None
        with self._guard.stdout as said:
            line = said.readline()
        if not line:
            raise BrokerError(f"cannot run {command[0]}. {self._explanation()}")
        self._pid = int(line)

    def _await_serving(self) -> None:
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while True:
            if (code := self.poll()) is not None:
                raise BrokerError(
                    f"the embedded broker ended while it started (exit code {code}). {self._explanation()}"
                )
            if _connects(self.bootstrap_servers) and cluster_is_up(self.bootstrap_servers):
                return
            if time.monotonic() > deadline_s:
                raise BrokerError(
                    f"the embedded broker did not serve within {START_TIMEOUT_S:.0f} s. {self._explanation()}"
                )
            time.sleep(POLL_S)

    def _write_state(self) -> None:
        state = {
            "bootstrap_servers": self.bootstrap_servers,
            "pid": self.pid,
            "started_s": psutil.Process(self.pid).create_time(),
        }
        partial = self.state_path.with_suffix(".partial")
        partial.write_text(json.dumps(state) + "\n", encoding="utf-8")
        partial.replace(self.state_path)

    # -- ending

    def _end_process(self) -> None:
        guard, self._guard, self._pid = self._guard, None, None
        if guard is None:
            return
        self.state_path.unlink(missing_ok=True)
        assert guard.stdin is not None
        guard.stdin.close()  # the guard's sign to stop the JVM
        try:
            guard.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            log.warning("the embedded broker's guard did not end; killing it, and the JVM with it")
            for process in [*psutil.Process(guard.pid).children(recursive=True), guard]:
                process.kill()
            guard.wait()

    def _log_end(self, lines: int) -> str:
        try:
            text = self.log_path.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return ""
        return "\n".join(text.splitlines()[-lines:])

    def _explanation(self) -> str:
        end = self._log_end(200)
        hint = ""
        if "No space left on device" in end:
            hint = f"There is no space left on the disk of {self.data_dir}: free some and start again. "
        elif "OutOfMemoryError" in end:
            hint = "Its memory did not suffice: use a cluster of your own with KAFKA_BOOTSTRAP_SERVERS for such loads. "
        elif "already in use" in end:
            hint = "A port that it needs is in use by another program. "
        return f"{hint}The end of {self.log_path}:\n{self._log_end(QUOTED_LINES) or '(nothing)'}"


class BrokerInUse(BrokerError):
    """Another process holds the data directory."""


@contextlib.contextmanager
def embedded_broker(data_dir: Path, *, port: int | None = None) -> Iterator[EmbeddedBroker]:
    """A broker with its data in ``data_dir`` for the duration; stopped on every way out."""
    broker = EmbeddedBroker(data_dir, port=port).start()
    try:
        yield broker
    finally:
        broker.stop()


def running_broker(data_dir: Path) -> str | None:
    """Address of the embedded broker that another process runs in ``data_dir``, or None."""
    state = _read_json(data_dir / "broker.json")
    if not state:
        return None
    try:
        started_s = psutil.Process(int(state["pid"])).create_time()
    except psutil.NoSuchProcess:
        return None
    # A process id is used again after a while; a start time is not.
    if abs(started_s - float(state["started_s"])) > 1:
        return None
    address = str(state["bootstrap_servers"])
    return address if _connects(address) else None


@contextlib.contextmanager
def ensure_broker(settings: Settings) -> Iterator[str]:
    """Bootstrap servers for the duration: the given cluster, the running embedded broker, or one that is started here.

    Nothing is started when ``settings.kafka_bootstrap_servers`` is set. Raises ``BrokerError``.
    """
    if settings.kafka_bootstrap_servers is not None:
        yield settings.kafka_bootstrap_servers
        return
    data_dir = settings.data_dir / "kafka"
    broker: EmbeddedBroker | None = None
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while (address := running_broker(data_dir)) is None:
        try:
            broker = EmbeddedBroker(data_dir).start()
        except BrokerInUse:
            # Another process is starting it, or stopping it; what it ends in is told by the next look.
            if time.monotonic() > deadline_s:
                raise
            time.sleep(POLL_S)
        else:
            address = broker.bootstrap_servers
            break
    try:
        yield address
    finally:
        if broker is not None:
            broker.stop()


def _cluster_id() -> str:
    """A Kafka UUID: 16 random bytes in URL-safe base 64; one that starts with a dash would look like an option."""
    import base64
    import uuid

    while True:
        text = base64.urlsafe_b64encode(uuid.uuid4().bytes).rstrip(b"=").decode()
        if not text.startswith("-"):
            return text


def _read_json(path: Path) -> dict[str, Any]:
    """The object in ``path``; empty where there is none or it is not whole."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):  # a file that a killed process left half-written says nothing
        return {}
    return content if isinstance(content, dict) else {}


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        # As the broker binds: a port whose connections still linger in TIME_WAIT is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:  # the answer to the question
            return False
    return True


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
    return port


def _connects(address: str) -> bool:
    host, port = address.rsplit(":", 1)
    try:
        with socket.create_connection((host, int(port)), timeout=1):
            return True
    except OSError:  # the answer to the question
        return False
