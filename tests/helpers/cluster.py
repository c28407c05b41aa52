"""Kafka nodes of a test's own: as many as it wants, with properties as it wants them."""

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Final

from confluent_kafka.admin import AdminClient

from pipeline.broker.configuration import jvm_arguments, log4j_text, properties_text, server_properties
from pipeline.broker.jars import fetched, pinned
from pipeline.broker.java import find_java
from pipeline.broker.local import HOST, free_port
from pipeline.broker.process import BrokerError, GuardedProcess
from pipeline.kafka.cluster.admin import cluster_is_up
from pipeline.kafka.cluster.clients import admin_client
from pipeline.kafka.cluster.retries import retried
from tests.helpers.waiting import TIMEOUT_S

POLL_S: Final = 0.1
ASK_S: Final = 10.0
CLUSTER_ID: Final = "ZnJhdWQtcGlwZWxpbmUtMQ"
REPLICATED: Final = {
    "offsets.topic.replication.factor": "3",
    "transaction.state.log.replication.factor": "3",
    "transaction.state.log.min.isr": "2",
}
"""Properties with which three nodes survive the loss of one."""


class Node:
    """One node, broker and controller; ``data_dir`` holds its log as the embedded broker's does."""

    def __init__(self, number: int, address: str, data_dir: Path, command: list[str], lock: int) -> None:
        self.number, self.bootstrap_servers, self.data_dir = number, address, data_dir
        self._command, self._lock = command, lock
        self._process: GuardedProcess | None = None

    @property
    def pid(self) -> int:
        """Process id of the JVM."""
        return self._running().pid

    def start(self) -> None:
        """Start it, without waiting until it serves."""
        self._process = GuardedProcess(self._command, self.data_dir / "broker.log", self._lock)

    def stop(self) -> None:
        """Let it hand over what it leads, and end."""
        self._running().stop()

    def kill(self) -> None:
        """End it at once, as a crash would; ``start`` may follow."""
        self._running().kill()

    def check(self) -> None:
        """Raise ``BrokerError``, with the end of its log, when it has died."""
        if (code := self._running().poll()) is not None:
            end = (self.data_dir / "broker.log").read_text(encoding="utf-8", errors="replace")[-2_000:]
            raise BrokerError(f"node {self.number} died (exit code {code}):\n{end}")

    def _running(self) -> GuardedProcess:
        assert self._process is not None
        return self._process


class Nodes:
    """Nodes of one cluster, each of which may be killed and started again."""

    def __init__(self, nodes: list[Node]) -> None:
        self.nodes = nodes
        self.bootstrap_servers = ",".join(node.bootstrap_servers for node in nodes)

    def leader(self, topic: str, partition: int) -> Node:
        """The node that leads a partition (topic: full name)."""
        metadata = retried(lambda: self._client.list_topics(topic, timeout=ASK_S))
        return self.nodes[metadata.topics[topic].partitions[partition].leader - 1]

    def controller(self) -> Node:
        """The active controller: no broker names it to clients, and each node notes it on its disk."""
        noted = [node.data_dir / "log/__cluster_metadata-0/quorum-state" for node in self.nodes]
        states = [json.loads(path.read_text(encoding="utf-8")) for path in noted]
        _, leader = max((state["leaderEpoch"], state["leaderId"]) for state in states)
        return self.nodes[leader - 1]

    def whole(self) -> bool:
        """True if all nodes serve, and every replica of every topic is in sync.

        Each is asked by itself: a controller notices the death of one seconds later, and calls all in sync until then.
        """
        if not all(cluster_is_up(node.bootstrap_servers) for node in self.nodes):
            return False
        metadata = retried(lambda: self._client.list_topics(timeout=ASK_S))
        if len(metadata.brokers) < len(self.nodes):
            return False
        partitions = [partition for topic in metadata.topics.values() for partition in topic.partitions.values()]
        return all(set(partition.isrs) == set(partition.replicas) for partition in partitions)

    @cached_property
    def _client(self) -> AdminClient:
        return admin_client(self.bootstrap_servers, overrides={"log_level": 0, "error_cb": lambda _error: None})


@contextmanager
def kafka_nodes(
    directory: Path,
    count: int,
    properties: Mapping[str, str],
    listeners: Mapping[str, tuple[str, str]] = MappingProxyType({}),
) -> Iterator[Nodes]:
    """``count`` nodes that form one cluster, with ``properties`` over the embedded broker's; ended on the way out.

    ``listeners``: protocol and address of those that a single node has besides, by name.
    """
    free: set[int] = set()
    while len(free) < 2 * count:
        free.add(free_port())
    ports = [(free.pop(), free.pop()) for _ in range(count)]
    voters = ",".join(f"{number}@{HOST}:{controller}" for number, (_, controller) in enumerate(ports, 1))
    with ExitStack() as stack:
        started = []
        for number, (port, controller_port) in enumerate(ports, 1):
            node = _prepared(
                directory / str(number), number, port, controller_port, voters, properties, listeners, stack
            )
            node.start()
            # A node that is asked to stop would wait for a quorum that ends with it.
            stack.callback(node.kill)
            started.append(node)
        nodes = Nodes(started)
        _await(nodes, directory)
        yield nodes


def _prepared(
    directory: Path,
    number: int,
    port: int,
    controller_port: int,
    voters: str,
    properties: Mapping[str, str],
    listeners: Mapping[str, tuple[str, str]],
    stack: ExitStack,
) -> Node:
    directory.mkdir(parents=True)
    configuration, log4j = directory / "server.properties", directory / "log4j2.properties"
    own = {**server_properties(directory / "log", HOST, port, controller_port), "node.id": str(number)}
    del own["controller.quorum.bootstrap.servers"]
    own |= {"controller.quorum.voters": voters, **properties}
    for name, (protocol, address) in listeners.items():
        for key in ("listeners", "advertised.listeners"):
            own[key] += f",{name}://{address}"
        own["listener.security.protocol.map"] += f",{name}:{protocol}"
    configuration.write_text(properties_text(own), encoding="utf-8")
    log4j.write_text(log4j_text(), encoding="utf-8")
    jars = os.pathsep.join(map(str, fetched(pinned(), directory / "jars")))
    small = [option for option in jvm_arguments(log4j, directory) if not option.startswith(("-Xm", "-XX:+Exit"))]
    command = [str(find_java()), "-Xmx384m", *small, "-cp", jars]
    shutil.rmtree(directory / "log", ignore_errors=True)
    tool = ["kafka.tools.StorageTool", "format", "--cluster-id", CLUSTER_ID, "--config", str(configuration)]
    subprocess.run([*command, *tool], stdin=subprocess.DEVNULL, capture_output=True, check=True, timeout=TIMEOUT_S)
    lock = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    stack.callback(os.close, lock)
    return Node(number, f"{HOST}:{port}", directory, [*command, "kafka.Kafka", str(configuration)], lock)


def _await(nodes: Nodes, directory: Path) -> None:
    deadline_s = time.monotonic() + TIMEOUT_S
    while not nodes.whole():
        if time.monotonic() > deadline_s:
            logs = "\n".join(path.read_text()[-2_000:] for path in sorted(directory.glob("*/broker.log")))
            raise AssertionError(f"{len(nodes.nodes)} nodes did not form a cluster within {TIMEOUT_S:.0f} s:\n{logs}")
        time.sleep(POLL_S)
