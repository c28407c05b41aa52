"""Configuration of the embedded broker: one KRaft node on a development machine, quick to start and to stop."""

from pathlib import Path
from typing import Final

NODE_ID: Final = 1
MAX_RECORD_BYTES: Final = 33 * 1024 * 1024
"""Above the largest record of any topic (``models``, 32 MB), with room for its batch's header."""
HEAP: Final = "1g"


def server_properties(log_dir: Path, host: str, port: int, controller_port: int) -> dict[str, str]:
    """Properties of the node, with the reasons for those that are not a matter of taste."""
    return {
        "process.roles": "broker,controller",
        "node.id": str(NODE_ID),
        "controller.quorum.bootstrap.servers": f"{host}:{controller_port}",
        "controller.listener.names": "CONTROLLER",
        "listeners": f"PLAINTEXT://{host}:{port},CONTROLLER://{host}:{controller_port}",
        "advertised.listeners": f"PLAINTEXT://{host}:{port},CONTROLLER://{host}:{controller_port}",
        "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "inter.broker.listener.name": "PLAINTEXT",
        "log.dirs": str(log_dir),
        "auto.create.topics.enable": "false",
        # One node: nothing can be replicated, and few partitions of the internal topics make the first start quick.
        "default.replication.factor": "1",
        "min.insync.replicas": "1",
        "offsets.topic.replication.factor": "1",
        "offsets.topic.num.partitions": "4",
        "transaction.state.log.replication.factor": "1",
        "transaction.state.log.min.isr": "1",
        "transaction.state.log.num.partitions": "4",
        "share.coordinator.state.topic.replication.factor": "1",
        "share.coordinator.state.topic.min.isr": "1",
        "share.coordinator.state.topic.num.partitions": "1",
        # A pipeline that stood still for weeks must find its offsets: without them it would decide everything again.
        "offsets.retention.minutes": str(365 * 24 * 60),
        "log.retention.ms": "-1",
        "message.max.bytes": str(MAX_RECORD_BYTES),
        "replica.fetch.max.bytes": str(MAX_RECORD_BYTES),
        "socket.request.max.bytes": str(4 * MAX_RECORD_BYTES),
        # A replay stamps its simulated clock, which may run ahead of this machine's.
        "log.message.timestamp.after.max.ms": str(2**63 - 1),
        "group.initial.rebalance.delay.ms": "0",
        # A worker that was killed is replaced within seconds instead of 45: about as soon as it can be started again.
        "group.min.session.timeout.ms": "1000",
        "group.consumer.min.session.timeout.ms": "1000",
        "group.consumer.session.timeout.ms": "3000",
        "group.consumer.min.heartbeat.interval.ms": "100",
        "group.consumer.heartbeat.interval.ms": "500",
        # A machine that is busy must not cost the node its leadership for a moment: what loads then loads in part.
        "broker.session.timeout.ms": "9000",
        "broker.heartbeat.interval.ms": "500",
        "transaction.abort.timed.out.transaction.cleanup.interval.ms": "1000",
        # The heap is small: the cleaner's default buffer alone would take an eighth of it.
        "log.cleaner.dedupe.buffer.size": str(16 * 1024 * 1024),
        "num.network.threads": "2",
        "num.io.threads": "4",
        "num.recovery.threads.per.data.dir": "2",
        "background.threads": "2",
        "metric.reporters": "",
    }


def controller_properties(log_dir: Path, host: str, controller_port: int, session_ms: int) -> dict[str, str]:
    """Properties of the same node's controller alone (`pipeline.broker.fencing`)."""
    address = f"CONTROLLER://{host}:{controller_port}"
    return {
        "process.roles": "controller",
        "node.id": str(NODE_ID),
        "controller.quorum.bootstrap.servers": f"{host}:{controller_port}",
        "controller.listener.names": "CONTROLLER",
        "listeners": address,
        "advertised.listeners": address,
        "listener.security.protocol.map": "CONTROLLER:PLAINTEXT",
        "log.dirs": str(log_dir),
        "broker.session.timeout.ms": str(session_ms),
        "broker.heartbeat.interval.ms": str(session_ms // 2),
        "metric.reporters": "",
    }


def properties_text(properties: dict[str, str]) -> str:
    """A Java properties file; backslashes of Windows paths are escaped."""
    return "".join(f"{key}={value}\n".replace("\\", "\\\\") for key, value in properties.items())


def log4j_text() -> str:
    """Logging of the node: warnings and the few lines that say how a start went, to standard output."""
    return """\
status = error
appender.out.type = Console
appender.out.name = out
appender.out.target = SYSTEM_OUT
appender.out.layout.type = PatternLayout
appender.out.layout.pattern = %d{yyyy-MM-dd'T'HH:mm:ss.SSS} %p %c{1}: %m%n
rootLogger.level = warn
rootLogger.appenderRef.out.ref = out
logger.server.name = kafka.server.KafkaRaftServer
logger.server.level = info
logger.fencing.name = org.apache.kafka.controller.ReplicationControlManager
logger.fencing.level = info
logger.configuration.name = org.apache.kafka.common.config
logger.configuration.level = error
"""


QUICK_JIT: Final = "-XX:TieredStopAtLevel=1"
"""Without the optimising compiler, which takes a core from the workers for the first half minute and more."""


def jvm_arguments(log4j: Path, crash_dir: Path, *, long_lived: bool = False) -> list[str]:
    """Arguments of the JVM, before the class path; what is ``long_lived`` is worth being optimised."""
    return [
        f"-Xmx{HEAP}",
        "-Xms600m",
        *([] if long_lived else [QUICK_JIT]),
        # One machine runs everything: a concurrent collector would take the cores from the workers.
        "-XX:+UseSerialGC",
        "-Xmn300m",
        "-XX:+ExitOnOutOfMemoryError",
        f"-XX:ErrorFile={crash_dir / 'jvm-crash-%p.log'}",
        "-Djava.awt.headless=true",
        # Java 24 and later warn of native libraries (zstd, snappy) that load without this.
        "--enable-native-access=ALL-UNNAMED",
        f"-Dlog4j2.configurationFile={log4j.absolute().as_uri()}",
    ]
