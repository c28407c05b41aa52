"""The workers' HTTP endpoints from outside: what their metrics say, and clients that are slow on purpose."""

import http.client
import re
import socket
import time
from collections.abc import Iterable
from contextlib import ExitStack, suppress

LISTENS = re.compile(r"metrics on (\S+):(\d+)")
AGE = re.compile(r"^fraud_pipeline_oldest_undecided_seconds\{(.*)\} (\S+)$", re.MULTILINE)
STATE = re.compile(r"^fraud_pipeline_snapshot_timestamp_seconds\{", re.MULTILINE)
LABEL = re.compile(r'(\w+)="([^"]*)"')
CONNECTIONS = 100
ROUNDS = 4
ROUND_S = 1.0
PROBE_S = 10.0
"""Longest time that a probe may take; orchestrators wait for 1 s to 10 s."""
METRICS_S = 2.0
PROBES = ("/livez", "/readyz", "/metrics")

Address = tuple[str, int]


class NotThere(RuntimeError):
    """Nobody listens at the address that the worker's log names."""


def address(name: str) -> Address | None:
    """Where a worker listens that has said this; None before it does."""
    found = LISTENS.search(name)
    return (found[1], int(found[2])) if found else None


def oldest_undecided(addresses: Iterable[Address], topic: str, partition: int) -> float | None:
    """The largest age that any worker tells of a partition (topic: full name); None: nobody tells one."""
    ages = []
    for where in addresses:
        with suppress(OSError, http.client.HTTPException):
            for labels, value in AGE.findall(_get(where, "/metrics", METRICS_S)[1]):
                named = dict(LABEL.findall(labels))
                if (named.get("topic"), named.get("partition")) == (topic, str(partition)):
                    ages.append(float(value))
    return max(ages, default=None)


def holds_state(where: Address) -> bool:
    """Return True if a worker reports the age of a snapshot, as it does while it holds a partition."""
    with suppress(OSError, http.client.HTTPException):
        return STATE.search(_get(where, "/metrics", METRICS_S)[1]) is not None
    return False


def besiege(where: Address) -> list[str]:
    """Hold `CONNECTIONS` that send nothing, or a byte a second, and probe meanwhile; what was not answered.

    Raises `NotThere` where not even the first connection is taken.
    """
    unanswered = []
    with ExitStack() as stack:
        clients = []
        for number in range(CONNECTIONS):
            try:
                clients.append(stack.enter_context(socket.create_connection(where, PROBE_S)))
            except OSError as error:
                if not number:
                    raise NotThere(str(error)) from error
                unanswered.append(f"connection {number}: {error}")
        for turn in range(ROUNDS):
            for client in clients[::2]:
                # What the server has cut off by now cannot be written to.
                with suppress(OSError):
                    client.sendall(b"GET / HTTP/1.1\r\n"[turn : turn + 1])
            for path in PROBES:
                try:
                    status, _ = _get(where, path, PROBE_S)
                except (OSError, http.client.HTTPException) as error:
                    unanswered.append(f"{path}: {type(error).__name__}: {error}")
                else:
                    if status not in (http.client.OK, http.client.SERVICE_UNAVAILABLE):
                        unanswered.append(f"{path}: {status}")
            time.sleep(ROUND_S)
    return unanswered


def _get(where: Address, path: str, timeout_s: float) -> tuple[int, str]:
    connection = http.client.HTTPConnection(*where, timeout=timeout_s)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()
