"""A transactional producer that asks each broker once for a transaction, on the thread of whoever uses it.

librdkafka sends one Produce request for each partition, and most of what a commit costs is requests. Here one request
carries the batches of all partitions that a broker leads, and the offsets go with it. The calls are those of
`confluent_kafka.Producer` that a session uses, with the same errors.
"""

import asyncio
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, TypeVar, cast

from aiokafka.protocol.transaction import AddOffsetsToTxnRequest, AddPartitionsToTxnRequest, InitProducerIdRequest
from confluent_kafka import KafkaError, KafkaException, TopicPartition

from pipeline.kafka.cluster.retries import PASSING_ERRORS
from pipeline.kafka.records.batch import Partition
from pipeline.kafka.writers.call_loop import CallLoop
from pipeline.kafka.writers.producer_batches import (
    UNKNOWN_OFFSET,
    BatchBuilder,
    PendingRecord,
    ProducerBatch,
    ProducerId,
    Report,
    codec_of,
)
from pipeline.kafka.writers.transaction_brokers import (
    REQUEST_MS,
    Address,
    Coordinator,
    RequestRefused,
    TransactionBrokers,
    backoffs,
    worst,
)
from pipeline.kafka.writers.transaction_protocol import NO_TAGS, V1, V2, GroupMember, KafkaRequest, group_member

_ALL_IN_SYNC: Final = -1
_NO_LEADER_EPOCH: Final = -1
_REPLICAS_MS: Final = 3 * REQUEST_MS // 4
"""Longest time that a leader waits for replicas: it says so before the request is given up."""
T = TypeVar("T")
_UNUSABLE: Final = frozenset(
    {
        KafkaError.INVALID_PRODUCER_EPOCH,
        KafkaError.PRODUCER_FENCED,
        KafkaError.FENCED_INSTANCE_ID,
        KafkaError.INVALID_PRODUCER_ID_MAPPING,
        KafkaError.INVALID_TXN_STATE,
        KafkaError.UNKNOWN_PRODUCER_ID,
        KafkaError.OUT_OF_ORDER_SEQUENCE_NUMBER,
        KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED,
        KafkaError.CLUSTER_AUTHORIZATION_FAILED,
    }
)
"""Errors behind which a producer's id and epoch are good for nothing, not even an abort."""


async def _all(*calls: Awaitable[T]) -> list[T]:
    """Make calls at once, and raise the first error only when all have ended: none is under way behind an abort."""
    found = await asyncio.gather(*calls, return_exceptions=True)
    for error in found:
        if isinstance(error, BaseException):
            raise error
    return cast(list[T], found)


class TransactionalClient:
    """Transactions of one transactional id; used from one thread, on which no event loop runs.

    A call that takes too long raises an error that is ``retriable``: the same call then goes on where it stood.

    Args:
        config: Configuration of a librdkafka producer with a ``transactional.id``.
        waiting: Called now and then while a call waits for brokers; what it raises ends the call.
    """

    def __init__(self, config: Mapping[str, Any], waiting: Callable[[], None]) -> None:
        self._id = str(config["transactional.id"])
        self._timeout_ms = int(config["transaction.timeout.ms"])
        self._most_bytes = int(config["message.max.bytes"])
        self._brokers = TransactionBrokers(config)
        self._builder = BatchBuilder(codec_of(config), min(int(config["batch.size"]), self._most_bytes))
        self._loop = CallLoop(waiting)
        self._newest, self._protocol = V1, V1
        """Versions of transactions: of the cluster, and of the transaction that is open."""
        self._producer = ProducerId(-1, -1)
        self._failure: KafkaError | None = None
        """The reason for which the transaction, or this producer, cannot go on."""
        self._is_open = False
        self._records: list[PendingRecord] = []
        self._batches: dict[Partition, deque[ProducerBatch]] = {}
        """Batches that no broker has acknowledged."""
        self._offsets: dict[str, list[tuple[int, int, int, str, dict[int, bytes]]]] | None = None
        """Offsets that no broker has acknowledged, by topic; None until there are any."""
        self._member = GroupMember("")
        self._registered: set[Partition | str] = set()
        """Partitions, and the group, that the coordinator knows to be of the transaction; version 1 alone."""
        self._is_written = False
        """True once a broker may have anything of the transaction."""

    @property
    def may_be_late(self) -> bool:
        """True where an offset or an end that was given up could still count, for the next transaction.

        Under version 1 that one has the same epoch.
        """
        return self._newest is V1 and self._brokers.gave_up

    # --- The calls of a producer -------------------------------------------------------------------------------

    def init_transactions(self, timeout_s: float) -> None:
        """Fence earlier users of the transactional id, and end what they have left open."""
        self._run("init_transactions", self._initialise(), timeout_s)

    def begin_transaction(self) -> None:
        """Begin a transaction, of which no broker hears yet."""
        if self._failure is not None:
            raise KafkaException(self._failure)
        if self._is_open:
            raise KafkaException(KafkaError(KafkaError._STATE, "the transaction before has not ended"))
        self._is_open = True
        self._builder.number_for(self._producer)

    def produce(
        self,
        topic: str,
        value: bytes | None,
        key: bytes | None,
        partition: int,
        report: Report | None,
        _callback: None,
        timestamp_ms: int,
        headers: list[tuple[str, bytes | None]] | None,
    ) -> None:
        """Add a record to the transaction, before anything of it is written; arguments as confluent-kafka has them."""
        if self._is_written:
            raise KafkaException(KafkaError(KafkaError._STATE, "the records before are written already"))
        if len(value or b"") + len(key or b"") > self._most_bytes:
            raise KafkaException(KafkaError(KafkaError.MSG_SIZE_TOO_LARGE))
        stamp_ms = timestamp_ms or time.time_ns() // 1_000_000
        self._records.append(PendingRecord(topic, partition, key, value, headers or [], stamp_ms, report))

    def send_offsets_to_transaction(self, offsets: Sequence[TopicPartition], metadata: bytes, timeout_s: float) -> None:
        """Write the records and these offsets."""
        if self._offsets is None:
            self._member, self._offsets = group_member(metadata), {}
            for at in offsets:
                # confluent-kafka writes the zero behind C's texts too, and reads beyond a text that lacks it.
                metadata_text = f"{at.metadata}\0" if at.metadata else ""
                line = (at.partition, at.offset, _NO_LEADER_EPOCH, metadata_text, NO_TAGS)
                self._offsets.setdefault(at.topic, []).append(line)
        self._run("send_offsets_to_transaction", self._send(), timeout_s)

    def commit_transaction(self, timeout_s: float) -> None:
        """Write what is not written yet, and commit."""
        self._run("commit_transaction", self._commit(), timeout_s)

    def abort_transaction(self, timeout_s: float) -> None:
        """Abort the transaction."""
        self._run("abort_transaction", self._abort(), timeout_s)

    def poll(self, timeout_s: float) -> int:
        """Do nothing: reports are made as brokers acknowledge records."""
        del timeout_s
        return 0

    def close(self) -> None:
        """Close all connections. A transaction that is open is left to the broker, or to its id's next holder."""
        self._loop.close(self._brokers.close())

    # --- One call ----------------------------------------------------------------------------------------------

    def _run(self, what: str, call: Coroutine[Any, Any, None], timeout_s: float) -> None:
        """Make a call, and raise its error as confluent-kafka does."""
        try:
            self._loop.run(what, call, timeout_s)
        except RequestRefused as error:
            raise KafkaException(self._failed(error.code)) from error

    def _failed(self, code: int) -> KafkaError:
        """Return the error of the transaction, which can be aborted unless a broker may still write of it.

        Under version 1 the next transaction has the same epoch: what comes late would be taken for a part of it.
        """
        sent = any(batch.is_sent for batches in self._batches.values() for batch in batches)
        aborts = code not in _UNUSABLE and not (sent and self._protocol is V1)
        self._failure = KafkaError(code, None, fatal=not aborts, txn_requires_abort=aborts)
        return self._failure

    async def _initialise(self) -> None:
        request = InitProducerIdRequest(self._id, self._timeout_ms)
        answer = await self._brokers.ask(Coordinator.TRANSACTION, self._id, request, lambda found: [found.error_code])
        self._producer = ProducerId(answer.producer_id, answer.producer_epoch)
        self._failure = None
        self._forget()
        for backoff_s in backoffs():
            address = await self._brokers.coordinator(Coordinator.TRANSACTION, self._id)
            if address is not None and (found := await self._brokers.protocol(address)) is not None:
                self._newest = self._protocol = found
                self._brokers.gave_up = False
                return
            await asyncio.sleep(backoff_s)

    # --- Records and offsets -----------------------------------------------------------------------------------

    async def _send(self) -> None:
        """Write the records and the offsets, those of one broker in one exchange."""
        if self._records:
            self._batches, self._records = await self._build(), []
        if not self._batches and not self._offsets:
            return
        if not self._is_written:
            self._protocol = self._newest
        self._is_written = True
        if self._protocol is V1:
            await self._register()
        if self._protocol is V1 or await self._concerns_one_broker():
            await _all(self._produce(), self._commit_offsets())
        else:
            await self._produce()
            await self._commit_offsets()

    async def _concerns_one_broker(self) -> bool:
        """Return whether one broker gets all, and does it in order.

        Under version 2 several would add to the transaction at once. The coordinator has all but one of them wait, and
        brokers wait for 20 ms before they try again.
        """
        leaders = await self._brokers.find_leaders(self._batches.keys())
        found = {leaders.get(partition) for partition in self._batches}
        if self._offsets:
            found.add(await self._brokers.coordinator(Coordinator.GROUP, self._member.group))
        return len(found) == 1

    async def _build(self) -> dict[Partition, deque[ProducerBatch]]:
        topics = {record.topic for record in self._records}
        for backoff_s in backoffs():
            if (counts := await self._brokers.partition_counts(topics)) is not None:
                return self._builder.build(self._records, counts, self._brokers.led)
            await asyncio.sleep(backoff_s)
        raise AssertionError

    async def _register(self) -> None:
        """Let the coordinator know what the transaction writes to, as version 1 wants it before."""
        asked: list[Coroutine[Any, Any, None]] = []
        if added := [at for at in self._batches if at not in self._registered]:
            asked.append(self._register_partitions(added))
        if self._offsets and self._member.group not in self._registered:
            asked.append(self._register_group())
        await _all(*asked)

    async def _register_partitions(self, partitions: Sequence[Partition]) -> None:
        topics: dict[str, list[int]] = {}
        for topic, number in partitions:
            topics.setdefault(topic, []).append(number)
        request = AddPartitionsToTxnRequest(self._id, *self._producer, list(topics.items()))
        await self._brokers.ask(Coordinator.TRANSACTION, self._id, request, lambda answer: _codes(answer.errors))
        self._registered |= set(partitions)

    async def _register_group(self) -> None:
        request = AddOffsetsToTxnRequest(self._id, *self._producer, self._member.group)
        await self._brokers.ask(Coordinator.TRANSACTION, self._id, request, lambda answer: [answer.error_code])
        self._registered.add(self._member.group)

    async def _commit_offsets(self) -> None:
        if not self._offsets:
            return
        group, *member = self._member
        topics = [(topic, lines, NO_TAGS) for topic, lines in self._offsets.items()]
        request = KafkaRequest(
            self._protocol.commit_offsets, self._id, group, *self._producer, *member, topics, NO_TAGS
        )
        await self._brokers.ask(Coordinator.GROUP, group, request, lambda answer: _codes(answer.topics))
        self._offsets = {}

    async def _produce(self) -> None:
        """Write the batches, one after the other of a partition, until all are acknowledged."""
        pauses_s = backoffs()
        while self._batches:
            led, sizes = dict[Address, list[ProducerBatch]](), Counter[Address]()
            leaders = await self._brokers.find_leaders(self._batches.keys())
            for partition, (batch, *_) in self._batches.items():
                leader = leaders.get(partition)
                if leader is not None and (not sizes[leader] or sizes[leader] + len(batch.data) <= self._most_bytes):
                    led.setdefault(leader, []).append(batch)
                    sizes[leader] += len(batch.data)
            if self._protocol is V1:
                codes = await _all(*(self._produce_to(leader, batches) for leader, batches in led.items()))
            else:
                codes = [await self._produce_to(leader, batches) for leader, batches in led.items()]
            if (code := worst(codes)) and code not in PASSING_ERRORS:
                raise RequestRefused(code)
            if code or not led:
                await asyncio.sleep(next(pauses_s))

    async def _produce_to(self, leader: Address, batches: Sequence[ProducerBatch]) -> int:
        """Write one batch of each partition that a broker leads; return its worst error."""
        topics: dict[str, list[tuple[int, bytes, dict[int, bytes]]]] = {}
        for batch in batches:
            topic, number = batch.partition
            topics.setdefault(topic, []).append((number, batch.data, NO_TAGS))
            batch.is_sent = True
        lines = [(topic, partitions, NO_TAGS) for topic, partitions in topics.items()]
        request = KafkaRequest(self._protocol.produce, self._id, _ALL_IN_SYNC, _REPLICAS_MS, lines, NO_TAGS)
        answer = await self._brokers.answer(leader, request)
        if answer is None:
            return int(KafkaError.NETWORK_EXCEPTION)
        asked, codes = {batch.partition: batch for batch in batches}, []
        for topic, partitions, _ in answer.topics:
            for number, code, base_offset, *_ in partitions:
                batch = asked[topic, number]
                if code in (KafkaError.NO_ERROR, KafkaError.DUPLICATE_SEQUENCE_NUMBER):
                    self._acknowledged(batch, UNKNOWN_OFFSET if code else base_offset)
                    continue
                codes.append(code)
                if code in PASSING_ERRORS:
                    self._brokers.leader_answered(batch.partition, code)
        return worst(codes)

    def _acknowledged(self, batch: ProducerBatch, base_offset: int) -> None:
        batches = self._batches[batch.partition]
        batches.popleft()
        if not batches:
            del self._batches[batch.partition]
        self._builder.count(batch)
        batch.acknowledge(base_offset)

    # --- The end -----------------------------------------------------------------------------------------------

    async def _commit(self) -> None:
        await self._send()
        await self._end(commits=True)

    async def _abort(self) -> None:
        await self._end(commits=False)
        self._failure = None

    async def _end(self, *, commits: bool) -> None:
        """End the transaction, if any broker may have heard of it."""
        if self._is_written:
            request = KafkaRequest(self._protocol.end, self._id, *self._producer, commits, NO_TAGS)
            try:
                answer = await self._brokers.ask(
                    Coordinator.TRANSACTION, self._id, request, lambda found: [found.error]
                )
            except RequestRefused as error:
                # Nobody knows how it ended, or whether.
                self._failure = KafkaError(error.code, None, fatal=True)
                raise KafkaException(self._failure) from error
            if self._protocol is V2:
                self._producer = ProducerId(answer.producer_id, answer.producer_epoch)
        self._forget()

    def _forget(self) -> None:
        """Know nothing of a transaction any more."""
        self._records, self._batches, self._offsets = [], {}, None
        self._registered.clear()
        self._is_open = self._is_written = False


def _codes(topics: Iterable[Sequence[Any]]) -> Iterator[int]:
    """Yield the error of each partition in an answer."""
    for topic in topics:
        for partition in topic[1]:
            yield partition[1]
