"""Small questions to this machine: ports, and files that processes of the project leave for each other."""

import json
import socket
from pathlib import Path
from typing import Any, Final

import psutil

HOST: Final = "127.0.0.1"
STATE_NAME: Final = "broker.json"
"""Address and process id of the broker that serves a directory; for the other processes of the project."""
SAME_START_S: Final = 1.0
"""Start times of one process, read twice, differ by less; a process id is used again after a while."""


def read_json(path: Path) -> dict[str, Any]:
    """The object in ``path``; empty where there is none or it is not whole."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):  # a file that a killed process left half-written says nothing
        return {}
    return content if isinstance(content, dict) else {}


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write ``content`` to ``path``, whole or not at all."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(content) + "\n", encoding="utf-8")
    partial.replace(path)


def serving(data_dir: Path) -> str | None:
    """Address in the state file of ``data_dir``, if the process that it names lives."""
    state = read_json(data_dir / STATE_NAME)
    if not state:
        return None
    try:
        process = psutil.Process(int(state["pid"]))
        started_s, ended = process.create_time(), process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:  # the answer to the question: a killed process left its file
        return None
    same = not ended and abs(started_s - float(state["started_s"])) < SAME_START_S
    return str(state["bootstrap_servers"]) if same else None


def is_free(port: int, host: str = HOST) -> bool:
    """Return True if a server could listen on ``port`` of ``host``."""
    with socket.socket() as probe:
        # As the broker binds: a port whose connections still linger in TIME_WAIT is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:  # the answer to the question
            return False
    return True


def free_port(unlike: int | None = None) -> int:
    """Return a port other than ``unlike`` that no server listens on now."""
    while True:
        with socket.socket() as probe:
            probe.bind((HOST, 0))
            port: int = probe.getsockname()[1]
        # One that was found before is not bound yet: the system may name it again.
        if port != unlike:
            return port


def connects(address: str) -> bool:
    """Return True if a server listens at ``host:port``."""
    host, port = address.rsplit(":", 1)
    try:
        with socket.create_connection((host, int(port)), timeout=1):
            return True
    except OSError:  # the answer to the question
        return False


def running_broker(data_dir: Path) -> str | None:
    """Address of the embedded broker that a process runs in ``data_dir``, or None."""
    address = serving(data_dir)
    return address if address is not None and connects(address) else None
