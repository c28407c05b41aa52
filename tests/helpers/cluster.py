"""Kafka nodes of a test's own: as many as it wants, with properties as it wants them."""

import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Final

from pipeline.broker.configuration import jvm_arguments, log4j_text, properties_text, server_properties
from pipeline.broker.jars import class_path
from pipeline.broker.java import find_java
from pipeline.broker.local import HOST, free_port
from pipeline.broker.process import GuardedProcess
from pipeline.kafka.admin import cluster_is_up
from pipeline.kafka.clients import admin_client
from pipeline.kafka.cluster import brokers

START_TIMEOUT_S: Final = 120.0
POLL_S: Final = 0.1
CLUSTER_ID: Final = "ZnJhdWQtcGlwZWxpbmUtMQ"


class Nodes:
    """Running nodes, all of them brokers and controllers; those of ``processes`` may be killed one by one."""

    def __init__(self, addresses: list[str], processes: list[GuardedProcess]) -> None:
        self.bootstrap_servers = ",".join(addresses)
        self.processes = processes


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
        processes = []
        for number, (port, controller_port) in enumerate(ports, 1):
            process = _start(
                directory / str(number), number, port, controller_port, voters, properties, listeners, stack
            )
            # A node that is asked to stop would wait for a quorum that ends with it.
            stack.callback(process.kill)
            processes.append(process)
        nodes = Nodes([f"{HOST}:{port}" for port, _ in ports], processes)
        _await(nodes.bootstrap_servers, count, directory)
        yield nodes


def _start(
    directory: Path,
    number: int,
    port: int,
    controller_port: int,
    voters: str,
    properties: Mapping[str, str],
    listeners: Mapping[str, tuple[str, str]],
    stack: ExitStack,
) -> GuardedProcess:
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
    jars = os.pathsep.join(map(str, class_path(directory / "jars")))
    small = [option for option in jvm_arguments(log4j, directory) if not option.startswith(("-Xm", "-XX:+Exit"))]
    command = [str(find_java()), "-Xmx384m", *small, "-cp", jars]
    shutil.rmtree(directory / "log", ignore_errors=True)
    tool = ["kafka.tools.StorageTool", "format", "--cluster-id", CLUSTER_ID, "--config", str(configuration)]
    subprocess.run([*command, *tool], stdin=subprocess.DEVNULL, capture_output=True, check=True, timeout=60)
    lock = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    stack.callback(os.close, lock)
    return GuardedProcess([*command, "kafka.Kafka", str(configuration)], directory / "broker.log", lock)


def _await(bootstrap: str, count: int, directory: Path) -> None:
    deadline_s = time.monotonic() + START_TIMEOUT_S
    client = admin_client(bootstrap, overrides={"log_level": 0, "error_cb": lambda _error: None})
    while not (cluster_is_up(bootstrap) and len(brokers(client)) == count):
        if time.monotonic() > deadline_s:
            logs = "\n".join(path.read_text()[-2_000:] for path in sorted(directory.glob("*/broker.log")))
            raise AssertionError(f"{count} nodes did not form a cluster within {START_TIMEOUT_S:.0f} s:\n{logs}")
        time.sleep(POLL_S)
