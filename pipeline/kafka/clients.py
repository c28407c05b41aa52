"""The librdkafka configurations of the project, and reading of a topic without a group.

What the pipeline's guarantees rest on (isolation, commits, idempotence, partitioner) cannot be changed by settings;
everything else that ``settings.kafka_config`` names wins over the tuning here.
"""

import logging
import os
import re
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from functools import cache, partial
from typing import Any, Final, Literal, TypeAlias, TypeVar

from confluent_kafka import (
    OFFSET_BEGINNING,
    Consumer,
    IsolationLevel,
    KafkaError,
    KafkaException,
    Message,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient, OffsetSpec

from pipeline.kafka import log_consumer as logs
from pipeline.kafka.callbacks import callback
from pipeline.protection.signing import Trust
from pipeline.settings import Settings
from schemas.records import Headers, Record

log = logging.getLogger(__name__)
librdkafka_log = logging.getLogger("pipeline.kafka.librdkafka")

REPEAT_S: Final = 10.0
"""Seconds for which a complaint of one kind is not logged again: a broker that is away is tried many times a second."""


class OncePerWhile(logging.Filter):
    """Lets the first of several records of one kind through, then one every ``REPEAT_S``.

    The kind is the first word of librdkafka's own lines, and the code of an error that a callback reports.
    """

    def __init__(self) -> None:
        super().__init__()
        self._logged_s: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Return True if ``record`` is logged."""
        kind = getattr(record, "kafka_error", None) or record.getMessage().partition(" ")[0]
        now_s = time.monotonic()
        if now_s - self._logged_s.get(kind, -REPEAT_S) < REPEAT_S:
            return False
        self._logged_s[kind] = now_s
        return True


librdkafka_log.addFilter(OncePerWhile())
errors_log = logging.getLogger("pipeline.kafka.errors")
errors_log.addFilter(OncePerWhile())

MAX_RECORD_BYTES: Final = 32 * 1024 * 1024
FETCH_BYTES: Final = 64 * 1024
LATE_FETCH_MS: Final = 250
"""Longest wait of a broker, for readers who are in no hurry."""
TRANSACTION_TIMEOUT_MS: Final = 8_000
MAX_POLL_INTERVAL_MS: Final = 3_600_000
METADATA_TIMEOUT_S: Final = 30.0
RETRY_INTERVAL_S: Final = 0.1
CLASSIC_SESSION_TIMEOUT_MS: Final = 10_000
"""A worker that died is replaced after this long; under KIP-848 the broker says how long."""
READ_BATCH: Final = 10_000
"""Records taken from librdkafka at a time; each call costs as much as decoding a record."""
READER_GROUP: Final = "fraud-pipeline-reader"
"""Group of readers that join none; a client asks for its coordinator all the same."""
QUEUE_OF_BLOCKS: Final = {"queued.max.messages.kbytes": 4 * 1024}
"""Tuning of a reader of blocks, which are large and expand to many rows: it reads less far ahead."""
READ_POLL_S: Final = 0.1
STABLE_END_WAIT_S: Final = 2.0
"""Longest wait for the markers of a committed transaction; they take milliseconds."""
EARLY_END_S: Final = 60.0
"""Longest time without a record below the end that is read to, once a reader has met an earlier end."""
STABLE_END_POLL_S: Final = 0.005
PRESENCE_S: Final = 2.0
"""Time between two questions whether a broker is there, and the longest wait for the answer."""

PASSING_ERRORS: Final = frozenset(
    {
        KafkaError.NOT_LEADER_FOR_PARTITION,
        KafkaError.LEADER_NOT_AVAILABLE,
        KafkaError.UNKNOWN_LEADER_EPOCH,
        KafkaError.FENCED_LEADER_EPOCH,
        KafkaError.UNKNOWN_TOPIC_OR_PART,
        KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
        KafkaError.COORDINATOR_NOT_AVAILABLE,
        KafkaError.NOT_COORDINATOR,
        KafkaError.REQUEST_TIMED_OUT,
        KafkaError._TRANSPORT,
        KafkaError._ALL_BROKERS_DOWN,
        KafkaError._TIMED_OUT,
        KafkaError._TIMED_OUT_QUEUE,  # a broker that stood still and lets nothing be sent
        KafkaError._NOENT,  # the client knows no leader: "Failed to query partition leaders"
    }
)
"""Errors of a fresh topic, a moving leader or a restarting broker, for a while; the client does not retry these."""

Config = dict[str, Any]
GroupProtocol = Literal["consumer", "classic"]
T = TypeVar("T")


TopicError = logs.TopicError


class ClusterUnreachable(RuntimeError):
    """No broker answers; the text says what to check."""


FailedRequest: TypeAlias = KafkaException
"""Raised by the client where brokers refuse a request, or do not answer in time."""


def failure_text(error: FailedRequest) -> str:
    """Return a failed request as a sentence for people."""
    return f"Kafka: {error.args[0].str()}; see whether the brokers are well"


class ConfigError(ValueError):
    """``settings.kafka_config`` contradicts what the pipeline relies on."""


def _log_client_error(error: KafkaError, what_next: str) -> None:
    errors_log.warning(
        "Kafka client: %s (%s)%s", error.str(), error.name(), what_next, extra={"kafka_error": error.name()}
    )


def log_error(error: KafkaError) -> None:
    """Error callback: logs what librdkafka recovers from by itself, raises ``KafkaException`` for what it does not.

    The exception leaves the ``poll``, ``consume`` or ``flush`` that served the callback.
    """
    if error.fatal():
        raise KafkaException(error)
    _log_client_error(error, "; retrying")


def log_error_only(error: KafkaError) -> None:
    """Error callback of clients whose calls report their own failures."""
    _log_client_error(error, "")


@cache
def _check_given(given: tuple[tuple[str, str], ...]) -> None:
    """Raise `ConfigError` for properties that librdkafka does not know or cannot use; no value is shown."""
    for name, value in given:
        # librdkafka would not say why, nor which file it is.
        if name.endswith(".location") and value not in ("", "probe") and not os.access(value, os.R_OK):
            raise ConfigError(
                f"FRAUD_PIPELINE_KAFKA_CONFIG cannot be used: {name} names a file that is missing, or that this user "
                "may not read"
            )
    try:
        AdminClient({**dict(given), "logger": logging.getLogger("pipeline.kafka.unused")})
    except KafkaException as error:
        text = error.args[0].str()
        for value in sorted((value for _, value in given if value), key=len, reverse=True):
            # Not as a part of a property's name.
            text = re.sub(rf'"?(?<![\w.]){re.escape(value)}(?![\w.])"?', "its value", text)
        raise ConfigError(f"FRAUD_PIPELINE_KAFKA_CONFIG cannot be used: {text}") from None


def _merge(
    tuning: Config, invariants: Config, settings: Settings | None, overrides: Mapping[str, Any] | None
) -> Config:
    given = settings.kafka_config if settings is not None else {}
    _check_given(tuple(sorted(given.items())))
    for name, value in given.items():
        if name in invariants and value.lower() != str(invariants[name]).lower():
            raise ConfigError(
                f"FRAUD_PIPELINE_KAFKA_CONFIG sets {name}, but the pipeline relies on {invariants[name]!r}: remove it"
            )
    config = {**tuning, **given, **invariants, **(overrides or {})}
    return {name: callback(value) if callable(value) else value for name, value in config.items()}


def _common(bootstrap: str) -> Config:
    return {
        "bootstrap.servers": bootstrap,
        "client.id": "fraud-pipeline",
        "logger": librdkafka_log,
        "error_cb": log_error,
        "socket.nagle.disable": True,
        # A broker that restarts is found again at once; the default waits up to ten seconds.
        "reconnect.backoff.ms": 50,
        "reconnect.backoff.max.ms": 1_000,
    }


def consumer_config(
    bootstrap: str,
    group_id: str,
    *,
    settings: Settings | None = None,
    overrides: Mapping[str, Any] | None = None,
    protocol: GroupProtocol = "consumer",
) -> Config:
    """Configuration of a consumer in group ``group_id`` (its full name, prefix included).

    Reads committed records only, commits nothing by itself, joins with the range assignor, which keeps co-partitioned
    topics together: by KIP-848, or by the ``classic`` protocol, whose range assignor takes all partitions away before
    it gives some back. ``overrides`` win over everything. Raises ``ConfigError``.
    """
    tuning = {
        **_common(bootstrap),
        "fetch.wait.max.ms": 100,
        "fetch.error.backoff.ms": 50,
        # A full local queue is looked at again soon: the default of a second shows as a stall under load.
        "fetch.queue.backoff.ms": 5,
        # What one answer holds expands before anything of it can be looked at: zstd by 31,000, gzip by 1,000. A batch
        # that is larger still comes, alone.
        "fetch.max.bytes": FETCH_BYTES,
        "max.partition.fetch.bytes": FETCH_BYTES,
        # Also the largest batch, decompressed, that librdkafka accepts of zstd: a third of it, where the frame does not
        # say its size and the buffer grows by steps of three. Of other codecs it accepts any.
        "receive.message.max.bytes": 4 * MAX_RECORD_BYTES,
        "queued.min.messages": 50_000,
        # More is memory without a gain: job (b) took 130 MiB less with it than with eight times as much, at one rate.
        "queued.max.messages.kbytes": 16 * 1024,
        "check.crcs": True,
        "topic.metadata.refresh.interval.ms": 60_000,
        "allow.auto.create.topics": False,
    }
    invariants = {
        "group.id": group_id,
        "group.protocol": protocol,
        "isolation.level": "read_committed",
        "enable.auto.commit": False,
        "enable.auto.offset.store": False,
        # Reading and working share a thread: a long replay is no reason to lose the partitions it is for.
        "max.poll.interval.ms": MAX_POLL_INTERVAL_MS,
        "auto.offset.reset": "earliest",
    }
    if protocol == "consumer":
        invariants["group.remote.assignor"] = "range"
    else:
        invariants["partition.assignment.strategy"] = "range"
        tuning["session.timeout.ms"] = CLASSIC_SESSION_TIMEOUT_MS
    config = _merge(tuning, invariants, settings, overrides)
    # A limit of producers, which librdkafka compares with what a consumer fetches.
    return {**config, "message.max.bytes": min(FETCH_BYTES, int(config["fetch.max.bytes"]))}


def late_fetch_config(late_ms: int, settings: Settings) -> Config:
    """Return how a reader in no hurry fetches, to be put over `consumer_config`.

    Each small batch that is fetched alone costs a broker as much as a large one.

    Args:
        late_ms: How long a broker may collect records before it answers; 0: it answers at once.
        settings: Their ``kafka_config`` wins.
    """
    config: Config = {"fetch.min.bytes": FETCH_BYTES // 2, "fetch.wait.max.ms": late_ms} if late_ms > 0 else {}
    return {name: value for name, value in config.items() if name not in settings.kafka_config}


def producer_config(
    bootstrap: str,
    *,
    transactional_id: str | None = None,
    settings: Settings | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> Config:
    """Configuration of an idempotent producer, transactional where ``transactional_id`` is given.

    Keys are placed as Java clients place them (murmur2). Raises ``ConfigError``.
    """
    tuning = {
        **_common(bootstrap),
        # Flushing, and so a commit, does not wait for it.
        "linger.ms": 5 if transactional_id is not None else 2,
        # zstd leaves half of lz4's bytes, but takes 10 us of the processor more for each transaction's way through.
        "compression.type": "lz4",
        "batch.size": 1024 * 1024,
        "queue.buffering.max.messages": 500_000,
        "message.max.bytes": MAX_RECORD_BYTES,
        "allow.auto.create.topics": False,
    }
    invariants: Config = {"enable.idempotence": True, "acks": "all", "partitioner": "murmur2_random"}
    if transactional_id is not None:
        invariants["transactional.id"] = transactional_id
        tuning |= {
            "transaction.timeout.ms": TRANSACTION_TIMEOUT_MS,
            # A transaction that follows another at once is asked to retry; the default of 100 ms would be its latency.
            "retry.backoff.ms": 2,
            "retry.backoff.max.ms": 5,
        }
    return _merge(tuning, invariants, settings, overrides)


def admin_client(
    bootstrap: str, *, settings: Settings | None = None, overrides: Mapping[str, Any] | None = None
) -> AdminClient:
    """An admin client. It needs no closing, but must be kept for as long as one of its futures is awaited."""
    tuning = {**_common(bootstrap), "error_cb": log_error_only}
    return AdminClient(_merge(tuning, {}, settings, overrides))


def record_of(message: Message, topic: str | None = None) -> Record:
    """The record in a message without an error; ``topic`` is its topic, where many share the one string."""
    try:
        headers = message.headers()
        return _record(message, topic, tuple(headers) if headers else ())
    except (SystemError, UnicodeDecodeError):
        # The client decodes a header's name as UTF-8, and leaves its error for whatever is called next. Such headers
        # say nothing to anybody: the record is read without them.
        return _record(message, topic, ())


def _record(message: Message, topic: str | None, headers: Headers) -> Record:
    return Record(
        message.topic() if topic is None else topic,
        message.partition(),
        message.offset(),
        message.timestamp()[1],
        message.key(),
        message.value(),
        headers,
    )


def partition_numbers(client: Consumer | AdminClient, topic: str) -> list[int]:
    """Partitions of ``topic``, sorted; raises ``TopicError`` when it does not exist."""
    metadata = client.list_topics(topic, timeout=METADATA_TIMEOUT_S).topics.get(topic)
    if metadata is None or metadata.error is not None or not metadata.partitions:
        raise TopicError(
            f"there is no topic {topic}: create it with `fraud-pipeline topics`, or check the topic prefix"
        )
    return sorted(metadata.partitions)


def retried(call: Callable[[], T]) -> T:
    """Repeat ``call`` for as long as its ``KafkaException`` may pass, up to ``METADATA_TIMEOUT_S``."""
    deadline_s = time.monotonic() + METADATA_TIMEOUT_S
    while True:
        try:
            return call()
        except KafkaException as error:
            if error.args[0].code() not in PASSING_ERRORS or time.monotonic() > deadline_s:
                raise
            time.sleep(RETRY_INTERVAL_S)


def last_offsets(
    client: AdminClient, partitions: Sequence[tuple[str, int]], isolation: IsolationLevel
) -> dict[tuple[str, int], int]:
    """Return the end offset of each partition (topic, number) that a reader with ``isolation`` can reach now."""
    return _offsets(client, partitions, OffsetSpec.latest(), isolation)


def first_offsets(client: AdminClient, partitions: Sequence[tuple[str, int]]) -> dict[tuple[str, int], int]:
    """The offset at which the log of each partition (topic, number) begins."""
    return _offsets(client, partitions, OffsetSpec.earliest(), IsolationLevel.READ_UNCOMMITTED)


def _offsets(
    client: AdminClient, partitions: Sequence[tuple[str, int]], spec: OffsetSpec, isolation: IsolationLevel
) -> dict[tuple[str, int], int]:
    asked = {TopicPartition(topic, number): spec for topic, number in partitions}
    futures = client.list_offsets(asked, isolation_level=isolation, request_timeout=METADATA_TIMEOUT_S)
    try:
        return {(at.topic, at.partition): future.result().offset for at, future in futures.items()}
    except KafkaException as error:
        if error.args[0].code() == KafkaError.FENCED_LEADER_EPOCH:
            # librdkafka goes on asking with the leader epoch that it knew before the broker's restart.
            client.list_topics(timeout=METADATA_TIMEOUT_S)
        raise


def offsets_at(
    client: AdminClient, partitions: Sequence[tuple[str, int]], timestamp_ms: int
) -> dict[tuple[str, int], int]:
    """Return each partition's (topic, number) first offset whose record bears ``timestamp_ms`` or a later one.

    The end of the log where there is none. Timestamps are milliseconds since 1970.
    """
    found = _offsets(client, partitions, OffsetSpec.for_timestamp(timestamp_ms), IsolationLevel.READ_UNCOMMITTED)
    ends = last_offsets(client, partitions, IsolationLevel.READ_UNCOMMITTED)
    return {at: ends[at] if offset < 0 else offset for at, offset in found.items()}


def starts_at(bootstrap: str, topic: str, timestamp_ms: int, *, settings: Settings | None = None) -> dict[int, int]:
    """Return `offsets_at` of every partition of a topic, by partition number.

    Raises:
        TopicError: The topic does not exist.
        KafkaException: The brokers report an error that does not pass.
    """
    client = admin_client(bootstrap, settings=settings)
    partitions = [(topic, number) for number in partition_numbers(client, topic)]
    found = retried(lambda: offsets_at(client, partitions, max(timestamp_ms, 0)))
    return {number: offset for (_, number), offset in found.items()}


def stable_ends(bootstrap: str, settings: Settings | None, topic: str, numbers: Sequence[int]) -> dict[int, int]:
    """Ends to read to: behind everything that was committed before the call.

    A commit returns before the transaction's markers are in the log, and until then its records cannot be read. So
    this waits for the readable end to pass the log's end of now, but not for long: a transaction may stay open.
    """
    client = admin_client(bootstrap, settings=settings)
    # A client whose first request is for offsets waits up to three seconds in a tenth of the cases; else it never does.
    retried(lambda: client.list_topics(topic, timeout=METADATA_TIMEOUT_S))
    partitions = [(topic, number) for number in numbers]
    written = retried(lambda: last_offsets(client, partitions, IsolationLevel.READ_UNCOMMITTED))
    deadline_s = time.monotonic() + STABLE_END_WAIT_S
    while True:
        readable = retried(lambda: last_offsets(client, partitions, IsolationLevel.READ_COMMITTED))
        if time.monotonic() > deadline_s or all(readable[at] >= written[at] for at in partitions):
            return {number: readable[topic, number] for number in numbers}
        time.sleep(STABLE_END_POLL_S)


def log_consumer(
    bootstrap: str,
    settings: Settings | None,
    own: Mapping[str, Any] | None = None,
    waiting: Callable[[], None] = lambda: None,
    *,
    skip_unreadable: bool = False,
    skip_refused: bool = True,
) -> logs.LogConsumer:
    """Return a consumer without a group, with ``own`` over its configuration, that reports ends of partitions."""
    config = consumer_config(bootstrap, READER_GROUP, settings=settings)
    own = {"enable.partition.eof": True, **(own or {})}
    prefix = settings.topic_prefix if settings is not None else ""
    of_settings = {} if settings is None else {"inputs": settings.inputs}
    trust = Trust.from_settings(settings) if settings is not None else Trust([], {})
    return logs.LogConsumer(
        config, prefix, own, waiting, skip_unreadable=skip_unreadable, skip_refused=skip_refused,
        trusted=lambda message: trust.refusal(record_of(message)) is None, **of_settings,
    )  # fmt: skip


def read_batches(
    bootstrap: str,
    topic: str,
    *,
    settings: Settings | None = None,
    partitions: list[int] | None = None,
    start: Mapping[int, int] | None = None,
    skip_unreadable: bool = False,
    tuning: Mapping[str, Any] | None = None,
) -> Generator[list[Record], None, None]:
    """Yield committed records of ``topic`` from the beginning up to the end at the time of the call, in lists.

    Order holds within a partition only.

    Args:
        bootstrap: Addresses of brokers.
        topic: Full name of the topic.
        settings: Settings of the client.
        partitions: Numbers of partitions; all of them by default.
        start: First offsets, by partition number.
        skip_unreadable: Skip unreadable batches that nobody has quarantined too: for readers that only look.
        tuning: Configuration of the client, over that of every reader.

    Raises:
        TopicError: The topic is missing, or a part of it cannot be read.
        KafkaException: The brokers report an error that does not pass.
    """
    reader = log_consumer(bootstrap, settings, tuning, skip_unreadable=skip_unreadable)
    try:
        numbers = partitions if partitions is not None else partition_numbers(reader.consumer, topic)
        found = stable_ends(bootstrap, settings, topic, numbers)
        ends = {number: end for number, end in found.items() if (start or {}).get(number, 0) < end}
        reader.assign([TopicPartition(topic, n, (start or {}).get(n, OFFSET_BEGINNING)) for n in ends])
        early: dict[int, int] = {}
        deadline_s = time.monotonic() + EARLY_END_S
        while ends:
            records = []
            for message in reader.take(READ_POLL_S, READ_BATCH):
                number = message.partition()
                if number not in ends:
                    continue
                if (error := message.error()) is not None:
                    _raise_unless_end(error)
                    if message.offset() < ends[number]:
                        # A new leader may not know yet how much is committed: the rest is still to come.
                        early[number] = message.offset()
                        deadline_s = time.monotonic() + EARLY_END_S
                        continue
                elif message.offset() < ends[number]:
                    records.append(record_of(message))
                    if message.offset() + 1 < ends[number]:
                        continue
                # The partition's end: its last offset, one past it, or, behind transaction markers, librdkafka's word.
                del ends[number]
                early.pop(number, None)
                reader.consumer.incremental_unassign([TopicPartition(topic, number)])
            if records:
                yield records
                deadline_s = time.monotonic() + EARLY_END_S
            elif early and time.monotonic() > deadline_s:
                number = min(early)
                raise ends_early(topic, number, early[number], ends[number])
    finally:
        reader.close()


def ends_early(topic: str, number: int, log_end: int, end: int) -> TopicError:
    """Return the error for a partition whose readers get no further than ``log_end``, below the ``end`` committed."""
    return TopicError(
        f"topic {topic} partition {number} ends at offset {log_end} for its readers, and records up to {end} were "
        "committed: its leader lacks them, or a transaction is open; see the brokers' log"
    )


def read_topic(
    bootstrap: str,
    topic: str,
    *,
    settings: Settings | None = None,
    partitions: list[int] | None = None,
    start: Mapping[int, int] | None = None,
) -> Iterator[Record]:
    """``read_batches``, record by record."""
    for batch in read_batches(bootstrap, topic, settings=settings, partitions=partitions, start=start):
        yield from batch


def tail_topic(
    bootstrap: str,
    topic: str,
    *,
    settings: Settings | None = None,
    from_beginning: bool = False,
    start: Mapping[int, int] | None = None,
    stopped: threading.Event | Callable[[], bool] | None = None,
    lost_after_s: float | None = None,
) -> Iterator[Record]:
    """Committed records of ``topic`` as they come, until ``stopped`` says so; the generator may also be closed.

    From the end, as it is when the first record is asked for, or from the beginning.

    Args:
        bootstrap: Addresses of brokers.
        topic: Full name of the topic.
        settings: Settings of the client.
        from_beginning: Begin with the oldest record.
        start: First offsets, by partition number, in place of the end.
        stopped: Whether to stop.
        lost_after_s: Give up once no broker has answered for so long; None: wait for one for ever.

    Raises:
        TopicError: The topic is missing, or a part of it cannot be read.
        ClusterUnreachable: No broker answers any more.
        KafkaException: The brokers report an error that does not pass.
    """
    is_stopped = stopped.is_set if isinstance(stopped, threading.Event) else stopped
    reader = log_consumer(bootstrap, settings)
    try:
        numbers = partition_numbers(reader.consumer, topic)
        positions = [TopicPartition(topic, number, OFFSET_BEGINNING) for number in numbers]
        for at in () if from_beginning else positions:
            if start is not None:
                at.offset = start[at.partition]
                continue
            # Asked for now: a position that is known shows whether the partition stands still.
            ask = partial(reader.consumer.get_watermark_offsets, at, timeout=METADATA_TIMEOUT_S)
            _, at.offset = retried(ask)
        reader.assign(positions)
        presence = _Presence(reader.consumer, bootstrap, topic, lost_after_s)
        while is_stopped is None or not is_stopped():
            presence.check()
            for message in reader.take(READ_POLL_S, READ_BATCH):
                if (error := message.error()) is not None:
                    _raise_unless_end(error)
                    continue
                yield record_of(message)
    finally:
        reader.close()


def _raise_unless_end(error: KafkaError) -> None:
    if error.code() != KafkaError._PARTITION_EOF:
        raise KafkaException(error)


class _Presence:
    """Asks now and then whether a broker still answers a reader, who does not notice when the last one ends."""

    def __init__(self, consumer: Consumer, bootstrap: str, topic: str, lost_after_s: float | None) -> None:
        self._consumer, self._bootstrap, self._topic = consumer, bootstrap, topic
        self._lost_after_s = lost_after_s
        self._asked_s = self._answered_s = time.monotonic()

    def check(self) -> None:
        """Raise `ClusterUnreachable` once no broker has answered for too long."""
        now_s = time.monotonic()
        if self._lost_after_s is None or now_s - self._asked_s < PRESENCE_S:
            return
        try:
            self._consumer.list_topics(self._topic, timeout=PRESENCE_S)
            self._answered_s = time.monotonic()
        except KafkaException as error:
            if now_s - self._answered_s >= self._lost_after_s:
                raise ClusterUnreachable(
                    f"no broker answers at {self._bootstrap} any more: it has ended, or the network is cut"
                ) from error
        self._asked_s = time.monotonic()
