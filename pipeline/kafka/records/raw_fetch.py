"""Requests of one's own to brokers: which of them hold a partition, and the bytes of its record batches.

They show every batch as it is stored, of the leader or of another replica in sync. They are made with aiokafka's
connections, secured as all other clients are.
"""

import asyncio
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from aiokafka.conn import AIOKafkaConnection, collect_hosts, create_conn
from aiokafka.errors import KafkaError, for_code
from aiokafka.protocol.fetch import FetchRequest
from aiokafka.protocol.metadata import MetadataRequest
from confluent_kafka import KafkaError as KafkaErrorCode

from pipeline.kafka.cluster.client_log import errors_log
from pipeline.kafka.cluster.clients import BOOTSTRAP
from pipeline.kafka.cluster.connection_security import security_of
from pipeline.kafka.records.batch import Partition

READ_UNCOMMITTED, READ_COMMITTED = 0, 1
"""Isolation of a fetch."""
_REQUEST_MS: Final = 10_000
_FAILED_S: Final = 60.0
"""Time for which a broker that failed is asked behind the others."""


class FetchUnanswered(RuntimeError):
    """No broker answers, or none of those that do leads the partition."""


UNANSWERED: Final = (OSError, KafkaError, TimeoutError, FetchUnanswered)
"""Errors that pass, once other brokers or the same ones answer."""


class Wanted(NamedTuple):
    """A partition to fetch from, and how much."""

    partition: Partition
    offset: int
    max_bytes: int = 1
    """A broker returns a whole batch all the same."""


class Fetched(NamedTuple):
    """A broker's answer about one partition."""

    error: int
    """Kafka's code; 0 without one."""
    log_start: int
    stable_end: int
    """Offset behind what readers of committed records can read."""
    high_watermark: int
    aborted: Sequence[tuple[int, int]]
    """Producer's id and first offset of each aborted transaction that overlaps, for readers of committed records."""
    data: bytes
    """Batches. The first one may begin before the offset, and the last one may be cut off."""


class Replicas(NamedTuple):
    """Ids of the brokers that hold a partition."""

    leader: int
    in_sync: tuple[int, ...]


async def fetch(
    connection: AIOKafkaConnection,
    wanted: Sequence[Wanted],
    *,
    isolation: int = READ_COMMITTED,
    max_wait_ms: int = 0,
    min_bytes: int = 1,
    max_bytes: int = 1 << 30,
) -> dict[Partition, Fetched]:
    """Return what a broker has of partitions that it leads, or holds a replica of that is in sync.

    Args:
        connection: Connection to the broker.
        wanted: The partitions, each with its first offset and most bytes.
        isolation: `READ_COMMITTED` or `READ_UNCOMMITTED`.
        max_wait_ms: Longest time in ms that the broker collects bytes before it answers.
        min_bytes: Bytes that it waits for.
        max_bytes: Most bytes of the whole answer.

    Returns:
        The answers by full topic name and partition number.
    """
    topics: dict[str, list[tuple[int, int, int]]] = {}
    for (topic, number), offset, most in wanted:
        topics.setdefault(topic, []).append((number, offset, most))
    request = FetchRequest(max_wait_ms, min_bytes, max_bytes, isolation, list(topics.items()))
    answer = await connection.send(request)
    return {
        (topic, number): Fetched(error, log_start, stable_end, high_watermark, aborted or (), data or b"")
        for topic, partitions in answer.topics
        for number, error, high_watermark, stable_end, log_start, aborted, _, data in partitions
    }


class Connections:
    """Connections to a cluster's brokers, made when they are needed; used within one event loop.

    Args:
        config: Configuration of a librdkafka client.
        request_ms: Longest wait for an answer.
    """

    def __init__(self, config: Mapping[str, Any], request_ms: int = _REQUEST_MS) -> None:
        self._client_id, self._request_ms = str(config["client.id"]), request_ms
        self._hosts = [(host, port) for host, port, _ in collect_hosts(str(config[BOOTSTRAP]))]
        self._security = security_of(config)
        self._open: dict[tuple[str, int], AIOKafkaConnection] = {}
        self._failed_s: dict[tuple[str, int], float] = {}
        """Time at which each broker last failed, on the monotonic clock."""
        self._doubted_s: dict[tuple[str, int], float] = {}
        """Time at which what a broker had said of others last proved wrong."""
        self._described_by: tuple[str, int] | None = None
        self._opening: defaultdict[tuple[str, int], asyncio.Lock] = defaultdict(asyncio.Lock)
        self.addresses: Mapping[int, tuple[str, int]] = {}
        """Host and port of each broker, by id, as one has last named them."""
        self.refused: Mapping[str, int] = {}
        """Kafka's code for each topic of which a broker would last not say anything."""
        self.counts: Mapping[str, int] = {}
        """Number of partitions of each topic that a broker has last described, with and without a leader."""

    async def to(self, address: tuple[str, int]) -> AIOKafkaConnection:
        """Return the connection to a broker's host and port."""
        async with self._opening[address]:
            if (known := self._open.get(address)) is None or not known.connected():
                known = self._open[address] = await create_conn(
                    *address,
                    client_id=self._client_id,
                    request_timeout_ms=self._request_ms,
                    **self._security.arguments,
                )
            return known

    def known(self) -> list[tuple[str, int]]:
        """Return the addresses of all brokers that are known, those that failed lately at the end."""
        lately_s = time.monotonic() - _FAILED_S

        def order(address: tuple[str, int]) -> tuple[float, float]:
            return max(self._failed_s.get(address, 0.0), lately_s), self._doubted_s.get(address, 0.0)

        return sorted({*self.addresses.values(), *self._hosts}, key=order)

    def doubt(self, address: tuple[str, int] | None = None) -> None:
        """Ask others before ``address``, by default the one that described topics last: what it said does not hold.

        A broker that is cut off from the controllers goes on to name leaders and coordinators of before.
        """
        if (doubted := address or self._described_by) is not None:
            self._doubted_s[doubted] = time.monotonic()

    async def describe(self, topics: Sequence[str]) -> Mapping[Partition, Replicas]:
        """Return the replicas of the partitions of ``topics`` that have a leader; raises `FetchUnanswered`.

        Topics that a broker answers with an error, a missing right for one, are ``refused``.
        """
        for address in self.known():
            try:
                answer = await (await self.to(address)).send(
                    MetadataRequest(list(topics), allow_auto_topic_creation=False)
                )
            except UNANSWERED as error:
                self.failed(address, error)
                continue
            self._described_by = address
            self.addresses = {node: (host, port) for node, host, port, _ in answer.brokers}
            self.refused = {topic: error for error, topic, *_ in answer.topics if error}
            self.counts = {topic: len(partitions) for error, topic, _, partitions in answer.topics if not error}
            return {
                (topic, number): Replicas(leader, tuple(in_sync))
                for _, topic, _, partitions in answer.topics
                for _, number, leader, _, in_sync, *_ in partitions
                if leader >= 0
            }
        raise FetchUnanswered("no broker answers")

    async def fetch_from(self, broker: int, wanted: Wanted, isolation: int = READ_COMMITTED) -> Fetched:
        """Return what a broker has of one partition; raises Kafka's error."""
        fetched = (await fetch(await self.to(self.addresses[broker]), [wanted], isolation=isolation))[wanted.partition]
        if fetched.error:
            raise for_code(fetched.error)(fetched.error)
        return fetched

    def failed(self, address: tuple[str, int], error: Exception) -> None:
        """Make another connection to a broker the next time."""
        self._failed_s[address] = time.monotonic()
        text = str(error) or type(error).__name__
        complain(KafkaErrorCode._TRANSPORT, f"{address[0]}:{address[1]}: {text}")
        if (broken := self._open.pop(address, None)) is not None:
            broken.close()

    def close(self) -> list[asyncio.Future[None]]:
        """Begin to close all of them."""
        return [connection.close() for connection in self._open.values()]


def complain(code: int, text: str) -> None:
    """Log, now and then, what keeps brokers from answering."""
    name = KafkaErrorCode(code).name()
    errors_log.warning("Kafka client: %s (%s); retrying", text, name, extra={"kafka_error": name})
