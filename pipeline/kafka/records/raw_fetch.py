"""Requests of one's own to brokers: which of them hold a partition, and the bytes of its record batches.

librdkafka shows no batch that it cannot read. These requests show every batch as it is stored, of the leader or of
another replica in sync. They are made with aiokafka's connections, secured as all other clients are.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from typing import Any, Final, NamedTuple, TypeVar

from aiokafka.conn import AIOKafkaConnection, collect_hosts, create_conn
from aiokafka.errors import KafkaError, OffsetOutOfRangeError, for_code
from aiokafka.protocol.fetch import FetchRequest
from aiokafka.protocol.metadata import MetadataRequest

from pipeline.kafka.cluster.clients import BOOTSTRAP
from pipeline.kafka.cluster.connection_security import Security, security_of
from pipeline.kafka.records.batch import Partition

T = TypeVar("T")
READ_UNCOMMITTED, READ_COMMITTED = 0, 1
"""Isolation of a fetch."""
ANSWER_S: Final = 30.0
_REQUEST_MS: Final = 10_000
_LOOK_S: Final = 0.1
_RETRY_S: Final = 0.2
_NO_LEADER: Final = 5
"""Kafka's code of a partition without a leader."""


class FetchUnanswered(RuntimeError):
    """No broker has answered in time."""


class FetchRefused(RuntimeError):
    """A broker answers with an error that does not pass: its own word, which proves nothing about a batch."""


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


class Brokers(NamedTuple):
    """A cluster's brokers and the replicas of some partitions."""

    addresses: Mapping[int, tuple[str, int]]
    """Host and port, by id."""
    replicas: Mapping[Partition, Replicas]


async def connect(security: Security, host: str, port: int) -> AIOKafkaConnection:
    """Return a connection to a broker, to be closed by the caller."""
    return await create_conn(
        host, port, client_id="fraud-pipeline", request_timeout_ms=_REQUEST_MS, **security.arguments
    )


async def describe(connection: AIOKafkaConnection, topics: Sequence[str]) -> Brokers:
    """Return the brokers, and the replicas of the partitions of ``topics`` that have a leader."""
    answer = await connection.send(MetadataRequest(list(topics), allow_auto_topic_creation=False))
    replicas = {
        (topic, number): Replicas(leader, tuple(in_sync))
        for _, topic, _, partitions in answer.topics
        for _, number, leader, _, in_sync, *_ in partitions
        if leader >= 0
    }
    return Brokers({node: (host, port) for node, host, port, _ in answer.brokers}, replicas)


async def fetch(
    connection: AIOKafkaConnection,
    wanted: Sequence[Wanted],
    *,
    isolation: int = READ_COMMITTED,
    max_wait_ms: int = 0,
    min_bytes: int = 1,
    max_bytes: int = 1 << 30,
) -> dict[Partition, Fetched]:
    """Return what a broker has of partitions that it leads, or holds a replica of that is in sync."""
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
    """Connections to a cluster's brokers for one question, made when they are needed."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._hosts = [(host, port) for host, port, _ in collect_hosts(str(config[BOOTSTRAP]))]
        self._security = security_of(config)
        self._open: dict[tuple[str, int], AIOKafkaConnection] = {}

    async def to(self, address: tuple[str, int]) -> AIOKafkaConnection:
        """Return the connection to a broker's host and port."""
        if (known := self._open.get(address)) is None or not known.connected():
            known = self._open[address] = await connect(self._security, *address)
        return known

    async def describe(self, topic: str) -> Brokers:
        """Return `describe` of the first broker that answers."""
        failed: Exception | None = None
        for address in self._hosts:
            try:
                return await describe(await self.to(address), [topic])
            except (OSError, KafkaError, TimeoutError) as error:
                failed = error
        raise failed or FetchUnanswered("no broker is named")

    async def fetch(self, wanted: Wanted, isolation: int = READ_COMMITTED, broker: int | None = None) -> Fetched:
        """Return what ``broker`` has of a partition, its leader by default; raise Kafka's error."""
        known = await self.describe(wanted.partition[0])
        if (replicas := known.replicas.get(wanted.partition)) is None:
            raise for_code(_NO_LEADER)
        connection = await self.to(known.addresses[replicas.leader if broker is None else broker])
        fetched = (await fetch(connection, [wanted], isolation=isolation))[wanted.partition]
        if fetched.error:
            raise for_code(fetched.error)(fetched.error)
        return fetched

    async def aclose(self) -> None:
        """Close all of them."""
        for connection in self._open.values():
            await connection.close()


def ask(
    config: Mapping[str, Any],
    question: Callable[[Connections], Awaitable[T]],
    waiting: Callable[[], None],
    timeout_s: float = ANSWER_S,
) -> T:
    """Return the answer to ``question``, which is repeated while its error may pass.

    Args:
        config: Configuration of a librdkafka client.
        question: Asks brokers.
        waiting: Called while nothing comes, on another thread; may raise.
        timeout_s: Longest wait.

    Raises:
        FetchUnanswered: No broker answers in time.
        FetchRefused: A broker answers with an error that does not pass.
    """

    async def repeated() -> T:
        while True:
            try:
                async with aclosing(Connections(config)) as connections:
                    return await question(connections)
            except OffsetOutOfRangeError as error:
                raise FetchRefused("the log does not hold the offset") from error
            except (KafkaError, OSError, TimeoutError, KeyError) as error:
                if isinstance(error, KafkaError) and not error.retriable:
                    raise FetchRefused(str(error)) from error
                last.append(error)
            await asyncio.sleep(_RETRY_S)

    async def awaited() -> T:
        task = asyncio.ensure_future(repeated())
        try:
            deadline_s = asyncio.get_running_loop().time() + timeout_s
            while not task.done():
                waiting()
                if asyncio.get_running_loop().time() > deadline_s:
                    raise FetchUnanswered(
                        f"no broker has answered for {timeout_s:.0f} s: {last[-1] if last else 'silence'}"
                    )
                await asyncio.wait({task}, timeout=_LOOK_S)
            return task.result()
        finally:
            task.cancel()
            await asyncio.wait({task})

    last: list[Exception] = []
    # In a notebook a loop runs on the caller's own thread.
    with ThreadPoolExecutor(max_workers=1) as thread:
        return thread.submit(asyncio.run, awaited()).result()
