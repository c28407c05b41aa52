"""The librdkafka configurations of the project's clients.

What the pipeline's guarantees rest on (isolation, commits, idempotence, partitioner) cannot be changed by settings;
everything else that ``settings.kafka_config`` names wins over the tuning here.
"""

import logging
import os
import re
from collections.abc import Mapping
from functools import cache
from typing import Any, Final, Literal

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from pipeline.features.feature_set import KERNEL_REVISION
from pipeline.kafka.cluster.callbacks import callback
from pipeline.kafka.cluster.client_log import librdkafka_log, log_error, log_error_only
from pipeline.kafka.cluster.errors import ConfigError
from pipeline.kafka.cluster.offset_requests import OffsetsClient
from pipeline.settings import Settings

MAX_RECORD_BYTES: Final = 32 * 1024 * 1024
FETCH_BYTES: Final = 1024 * 1024
"""Bytes that are asked of a partition at a time. A broker returns a whole batch all the same."""
LATE_FETCH_BYTES: Final = 32 * 1024
LATE_FETCH_MS: Final = 250
"""Longest wait of a broker, for readers who are in no hurry."""
TRANSACTION_TIMEOUT_MS: Final = 8_000
CALL_TIMEOUT_S: Final = 8.0
"""Longest wait for one transactional call; the broker ends a transaction after as long."""
MAX_POLL_INTERVAL_MS: Final = 3_600_000
METADATA_TIMEOUT_S: Final = 120.0
"""Longest time for which a question is asked again: a cluster may need a minute for another leader or controller."""
ANSWER_S: Final = 5.0
"""Longest wait for one answer: the broker that is asked may stand still, and another one may know."""
CLASSIC_SESSION_TIMEOUT_MS: Final = 10_000
"""A worker that died is replaced after this long; under KIP-848 the broker says how long."""
CLIENT_ID: Final = "fraud-pipeline"
MEMBER_ID: Final = f"{CLIENT_ID}-{KERNEL_REVISION}"
"""Client id of the member of an agent's group: a worker of a release with other kernels must know it."""
READER_GROUP: Final = "fraud-pipeline-reader"
"""Group of readers that join none; a client asks for its coordinator all the same."""

BOOTSTRAP: Final = "bootstrap.servers"

Config = dict[str, Any]
GroupProtocol = Literal["consumer", "classic"]


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
        BOOTSTRAP: bootstrap,
        "client.id": CLIENT_ID,
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
    """Configuration of a consumer in a group.

    Reads committed records only, commits nothing by itself, joins with the range assignor, which keeps co-partitioned
    topics together.

    Args:
        group_id: Full name of the group, prefix included.
        settings: Their ``kafka_config`` wins over the tuning here; None: there is none.
        overrides: Properties of librdkafka that win over everything.
        protocol: ``consumer`` joins by KIP-848. The range assignor of ``classic`` takes all partitions away before it
            gives some back.

    Raises:
        ConfigError: ``kafka_config`` cannot be used, or contradicts what the pipeline relies on.
    """
    tuning = {
        **_common(bootstrap),
        # Has no effect on reading: librdkafka compares other limits with it.
        "fetch.max.bytes": FETCH_BYTES,
        # The following are what `BoundedConsumer` reads by; librdkafka itself fetches nothing.
        "fetch.wait.max.ms": 100,
        "max.partition.fetch.bytes": FETCH_BYTES,
        # Also the largest batch, decompressed, of topics that workers write to.
        "receive.message.max.bytes": 4 * MAX_RECORD_BYTES,
        # More is memory without a gain: job (b) took 130 MiB less with it than with eight times as much, at one rate.
        "queued.max.messages.kbytes": 16 * 1024,
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
    config: Config = {"fetch.min.bytes": LATE_FETCH_BYTES, "fetch.wait.max.ms": late_ms} if late_ms > 0 else {}
    return {name: value for name, value in config.items() if name not in settings.kafka_config}


def producer_config(
    bootstrap: str,
    *,
    transactional_id: str | None = None,
    settings: Settings | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> Config:
    """Configuration of an idempotent producer.

    Keys are placed as Java clients place them (murmur2).

    Args:
        transactional_id: Full name of its transactional id; None: it has no transactions.
        settings: Their ``kafka_config`` wins over the tuning here; None: there is none.
        overrides: Properties of librdkafka that win over everything.

    Raises:
        ConfigError: ``kafka_config`` cannot be used, or contradicts what the pipeline relies on.
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
    """An admin client. It needs no closing, but must be kept for as long as one of its futures is awaited.

    Args:
        settings: Their ``kafka_config`` wins over the tuning here; None: there is none.
        overrides: Properties of librdkafka that win over everything, for the client and the consumers that it asks
            with.
    """
    own = {
        "error_cb": log_error_only,
        # A client asks the broker that it has asked last, for as long as they are connected: one that stands still.
        "socket.timeout.ms": round(ANSWER_S * 1_000),
    }
    reader = consumer_config(
        bootstrap, READER_GROUP, settings=settings, overrides=own | dict(overrides or {}), protocol="classic"
    )
    return OffsetsClient(_merge(_common(bootstrap) | own, {}, settings, overrides), reader)
