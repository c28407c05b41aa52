"""The brokers of a transactional producer: leaders of partitions, and coordinators, found again when they moved."""

import asyncio
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Set
from enum import IntEnum
from typing import Any, Final

from aiokafka.protocol.coordination import FindCoordinatorRequest
from confluent_kafka import KafkaError

from pipeline.kafka.cluster.errors import SessionError
from pipeline.kafka.cluster.retries import PASSING_ERRORS
from pipeline.kafka.records.batch import Partition
from pipeline.kafka.records.raw_fetch import UNANSWERED, Connections, FetchUnanswered, complain
from pipeline.kafka.writers.transaction_protocol import FEATURES, NO_TAGS, KafkaRequest, Protocol, newest_protocol

Address = tuple[str, int]
"""Host and port."""
REQUEST_MS: Final = 4_000
"""Longest wait for one answer: half a transaction's time, so that another broker may be asked within it."""
_DESCRIBED_S: Final = 300.0
"""Time after which topics are described anew, which may have more partitions by then."""
_FIRST_BACKOFF_S, _MOST_BACKOFF_S = 0.002, 0.1
_MOVED: Final = frozenset(
    {KafkaError.COORDINATOR_NOT_AVAILABLE, KafkaError.NOT_COORDINATOR, KafkaError.REQUEST_TIMED_OUT}
)
"""Answers of a broker that coordinates no more, or not yet."""
_BUSY: Final = frozenset({KafkaError.CONCURRENT_TRANSACTIONS, KafkaError.THROTTLING_QUOTA_EXCEEDED})
"""Answers that pass, of a broker that is the right one."""


class Coordinator(IntEnum):
    """Kind of coordinator, as Kafka numbers it."""

    GROUP = 0
    TRANSACTION = 1


class RequestRefused(Exception):
    """A broker's error that does not pass; ``code`` is Kafka's."""

    def __init__(self, code: int) -> None:
        super().__init__(KafkaError(code).str())
        self.code = code


def worst(codes: Iterable[int]) -> int:
    """Return the code that says most: one that does not pass before one that does, and 0 where there is no other.

    >>> worst([0, KafkaError.NOT_COORDINATOR, KafkaError.TOPIC_AUTHORIZATION_FAILED])
    29
    """
    return max(codes, key=_weight, default=0)


def _weight(code: int) -> int:
    if code in (0, KafkaError.OPERATION_NOT_ATTEMPTED):
        return int(code != 0)
    return 2 if code in PASSING_ERRORS else 3


def backoffs() -> Iterator[float]:
    """Yield the seconds between attempts."""
    backoff_s = _FIRST_BACKOFF_S
    while True:
        yield backoff_s
        backoff_s = min(2 * backoff_s, _MOST_BACKOFF_S)


class TransactionBrokers:
    """Finds and asks brokers; used within one event loop.

    Args:
        config: Configuration of a librdkafka producer, whose ``error_cb`` hears that no broker answers.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._connections = Connections(config, request_ms=REQUEST_MS)
        self._on_error = config["error_cb"]
        self._coordinators: dict[tuple[Coordinator, str], Address] = {}
        self._named_by: dict[tuple[Coordinator, str], Address] = {}
        """The broker that last named each coordinator."""
        self._leaders: dict[Partition, Address] = {}
        self._counts: dict[str, int] = {}
        self._described_s = 0.0
        self.gave_up = False
        """True once a coordinator may still do what nobody waits for any more."""

    async def partition_counts(self, topics: Collection[str]) -> Mapping[str, int] | None:
        """Return the number of partitions of each topic; None where not all topics are known."""
        if time.monotonic() - self._described_s > _DESCRIBED_S or not self._counts.keys() >= set(topics):
            await self._describe(topics)
        return self._counts if self._counts.keys() >= set(topics) else None

    @property
    def led(self) -> Set[Partition]:
        """Partitions that had a leader when a broker last described them."""
        return self._leaders.keys()

    async def find_leaders(self, partitions: Set[Partition]) -> Mapping[Partition, Address]:
        """Return the brokers that lead partitions, as far as they are known."""
        if not self._leaders.keys() >= partitions:
            await self._describe({topic for topic, _ in partitions})
        return self._leaders

    async def _describe(self, topics: Collection[str]) -> None:
        """Describe ``topics`` and all that are known; raise what a broker says of ``topics``, a missing right say."""
        try:
            found = await self._connections.describe(sorted({*topics, *self._counts}))
        except FetchUnanswered:
            self._on_error(KafkaError(KafkaError._ALL_BROKERS_DOWN))
        else:
            addresses = self._connections.addresses
            self._leaders = {at: addresses[held.leader] for at, held in found.items() if held.leader in addresses}
            self._counts |= self._connections.counts
            self._described_s = time.monotonic()
        for topic in topics:
            if (code := self._connections.refused.get(topic, 0)) not in {0, *PASSING_ERRORS}:
                raise RequestRefused(code)

    async def coordinator(self, kind: Coordinator, key: str) -> Address | None:
        """Return the broker that coordinates a group or a transactional id; None where none does at the time."""
        if (known := self._coordinators.get((kind, key))) is not None:
            return known
        for address in self._connections.known():
            answer = await self.answer(address, FindCoordinatorRequest(key, kind))
            if answer is None:
                continue
            if answer.error_code == 0:
                self._coordinators[kind, key] = found = (answer.host, answer.port)
                self._named_by[kind, key] = address
                return found
            if answer.error_code not in PASSING_ERRORS:
                raise RequestRefused(answer.error_code)
            self._connections.doubt(address)
            return None
        self._on_error(KafkaError(KafkaError._ALL_BROKERS_DOWN))
        return None

    async def protocol(self, address: Address) -> Protocol | None:
        """Return the version of transactions that the cluster has agreed on; None where the broker does not answer.

        Raises:
            SessionError: The broker is too old.
        """
        answer = await self.answer(address, KafkaRequest(FEATURES, "fraud-pipeline", "1", NO_TAGS))
        if answer is None:
            return None
        if (found := newest_protocol(answer)) is None:
            raise SessionError(
                "the brokers are older than Kafka 2.8, and cannot write what FRAUD_PIPELINE_TRANSACTION_CLIENT=batched "
                "asks for; set it to librdkafka"
            )
        return found

    async def answer(self, address: Address, request: Any) -> Any:
        """Return a broker's answer; None without one: nobody knows then whether it has done what was asked."""
        try:
            return await (await self._connections.to(address)).send(request)
        except UNANSWERED as error:
            self._connections.failed(address, error)
            for known in [key for key, at in self._coordinators.items() if at == address]:
                del self._coordinators[known]
            self._leaders = {at: leader for at, leader in self._leaders.items() if leader != address}
            return None

    async def ask(self, kind: Coordinator, key: str, request: Any, codes: Callable[[Any], Iterable[int]]) -> Any:
        """Return what a coordinator answers when it is there and not busy; raises `RequestRefused`."""
        for backoff_s in backoffs():
            address = await self.coordinator(kind, key)
            if address is not None:
                answer = await self.answer(address, request)
                if answer is None:
                    self.gave_up = True
                else:
                    code = worst(codes(answer))
                    if code == 0:
                        return answer
                    if code not in PASSING_ERRORS:
                        raise RequestRefused(code)
                    self.coordinator_answered(kind, key, code)
            await asyncio.sleep(backoff_s)
        raise AssertionError

    def coordinator_answered(self, kind: Coordinator, key: str, code: int) -> None:
        """Look for another coordinator the next time, where this one's error says that it is none."""
        if code in _MOVED:
            self._coordinators.pop((kind, key), None)
            self._connections.doubt(self._named_by.get((kind, key)))
            complain(code, f"coordinator of {key}")

    def leader_answered(self, partition: Partition, code: int) -> None:
        """Look for another leader the next time, unless its error says that it is only busy."""
        if code not in _BUSY:
            self._leaders.pop(partition, None)
            self._connections.doubt()
            complain(code, f"{partition[0]} partition {partition[1]}")

    def close(self) -> list[Any]:
        """Begin to close all connections."""
        return list(self._connections.close())
