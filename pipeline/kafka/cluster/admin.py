"""Topics as the pipeline needs them: created, or checked; and where groups and topics stand."""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from confluent_kafka import OFFSET_INVALID, Consumer, IsolationLevel, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, ClusterMetadata, NewTopic, ResourceType

from pipeline.kafka.cluster.clients import ANSWER_S, admin_client, consumer_config
from pipeline.kafka.cluster.cluster import configs_of
from pipeline.kafka.cluster.errors import RIGHTS, ClusterUnreachable, TopicError
from pipeline.kafka.cluster.log_offsets import committed_partitions, fresh_metadata, last_offsets, partition_numbers
from pipeline.kafka.cluster.retention import retention_ms, wanted_problems
from pipeline.kafka.cluster.retries import may_pass, retried
from pipeline.settings import Settings
from schemas.topics import CASE_EVENTS, TRANSACTIONS, Topic

REQUEST_TIMEOUT_S: Final = 30.0
ANSWER_POLL_S: Final = 1.0
"""Longest time between two looks at what brokers have refused."""
CONNECT_TIMEOUT_S: Final = 15.0
FOREVER_MS: Final = 2**63 - 1
_PARTITION_SETTINGS: Final = {
    "cards": "FRAUD_PIPELINE_CARD_PARTITIONS",
    "merchants": "FRAUD_PIPELINE_MERCHANT_PARTITIONS",
}


@dataclass(frozen=True, slots=True)
class TopicState:
    """The action on one topic: ``created`` or ``present``, and in which ways it is not as it should be."""

    name: str
    action: str
    partitions: int
    warnings: tuple[str, ...] = ()


def cluster_is_up(bootstrap: str, timeout_s: float = 2.0, *, settings: Settings | None = None) -> bool:
    """Return whether a broker answers, and counts itself among the cluster's.

    Args:
        timeout_s: Longest wait for an answer, in seconds.
        settings: Settings of the client; None: no ``kafka_config``.
    """
    return failed_answer(bootstrap, timeout_s, settings=settings) is None


def failed_answer(bootstrap: str, timeout_s: float, *, settings: Settings | None = None) -> str | None:
    """Return how no broker answers, as a part of a sentence that may be empty; None where one does.

    A broker that refuses the client for its security settings is not asked again.

    Args:
        timeout_s: Longest time for which brokers are asked, in seconds.
        settings: Settings of the client; None: no ``kafka_config``.
    """
    errors: list[KafkaError] = []
    quiet = {"log_level": 0, "error_cb": errors.append, "socket.timeout.ms": round(ANSWER_POLL_S * 1_000)}
    client, end_s = admin_client(bootstrap, settings=settings, overrides=quiet), time.monotonic() + timeout_s
    while (left_s := end_s - time.monotonic()) > 0:
        try:
            return None if client.list_topics(timeout=min(left_s, ANSWER_POLL_S)).brokers else ""
        except KafkaException:  # the answer to the question
            client.poll(0)
        for error in errors:
            if error.code() in (KafkaError._AUTHENTICATION, KafkaError._SSL):
                return f" to this client ({error.str()})"
    return ""


def reached(client: AdminClient, bootstrap: str) -> ClusterMetadata:
    """Return the cluster's metadata; raises ``ClusterUnreachable`` when no broker answers."""
    try:
        return retried(lambda: client.list_topics(timeout=min(ANSWER_S, CONNECT_TIMEOUT_S)), within_s=CONNECT_TIMEOUT_S)
    except KafkaException as error:
        raise ClusterUnreachable(
            f"no Kafka broker answers at {bootstrap} within {CONNECT_TIMEOUT_S:.0f} s ({error.args[0].str()}): check "
            "KAFKA_BOOTSTRAP_SERVERS, and FRAUD_PIPELINE_KAFKA_CONFIG for its security settings."
        ) from error


def partition_count(topic: Topic, settings: Settings) -> int:
    """Partitions that ``topic`` must have."""
    return {"cards": settings.card_partitions, "merchants": settings.merchant_partitions, "one": 1}[
        topic.partitions_like
    ]


def topic_config(topic: Topic, settings: Settings) -> dict[str, str]:
    """Topic configuration that ``topic`` must have."""
    config = {
        "cleanup.policy": topic.cleanup_policy,
        "retention.ms": str(retention_ms(topic, settings)),
        "max.message.bytes": str(topic.max_message_bytes),
        # Leases of cases go by the brokers' clock, whatever the consoles' clocks say.
        "message.timestamp.type": "LogAppendTime" if topic == CASE_EVENTS else "CreateTime",
    }
    if topic in (TRANSACTIONS, *settings.topics_of_labels):
        if settings.timestamps == "broker":
            config["message.timestamp.type"] = "LogAppendTime"
        else:
            # A simulated clock may stand anywhere; the broker's default refuses an hour ahead of its own.
            config["message.timestamp.after.max.ms"] = str(FOREVER_MS)
            config["message.timestamp.before.max.ms"] = str(FOREVER_MS)
    return config


def ensure_topics(bootstrap: str, settings: Settings, topics: Sequence[Topic] | None = None) -> list[TopicState]:
    """Create the missing topics, if ``settings.create_topics``, and check the others.

    Args:
        settings: Also say how many partitions and replicas topics have, and for how long they keep records.
        topics: Topics to look at; None: all topics of the pipeline.

    Returns:
        The state of each topic, in the order of ``topics``. Differences that stop nothing are its ``warnings``.

    Raises:
        TopicError: A topic has a wrong number of partitions, is missing and may not be created, or
            ``settings.retention_days`` are too short or name a topic that there is not.
        ClusterUnreachable: No broker answers.
    """
    if (problems := wanted_problems(settings)) and not settings.accept_short_retention:
        raise TopicError("\n".join(problems))
    client = admin_client(bootstrap, settings=settings)
    metadata = reached(client, bootstrap)
    names = {settings.topic(topic.name): topic for topic in (settings.topics if topics is None else topics)}
    missing = {name: topic for name, topic in names.items() if name not in metadata.topics}
    wrong = [
        _wrong_count(name, len(metadata.topics[name].partitions), topic, settings)
        for name, topic in names.items()
        if name in metadata.topics and len(metadata.topics[name].partitions) != partition_count(topic, settings)
    ]
    if wrong:
        raise TopicError("\n".join(wrong))
    if missing and not settings.create_topics:
        raise TopicError(
            f"missing topics: {', '.join(missing)}. Create them with `fraud-pipeline topics`, or let workers do it: "
            f"FRAUD_PIPELINE_CREATE_TOPICS=true. If they exist, you may not see them: {RIGHTS}."
        )
    replicas = settings.replication_factor or (3 if len(metadata.brokers) >= 3 else 1)
    created = _create(client, missing, settings, replicas, _insync_replicas(settings, replicas))
    _await_leaders(client, created)
    warnings = _differences(client, {name: topic for name, topic in names.items() if name not in created}, settings)
    return [
        TopicState(
            name,
            "created" if name in created else "present",
            partition_count(topic, settings),
            warnings.get(name, ()),
        )
        for name, topic in names.items()
    ]


def _await_leaders(client: AdminClient, names: Iterable[str]) -> None:
    """Wait until the broker that answers knows the topics and their leaders: it learns of fresh ones a moment later."""
    for name in names:
        numbers = partition_numbers(client, name, appear_s=REQUEST_TIMEOUT_S)
        try:
            # Metadata can name a leader that does not know it yet.
            last_offsets(client, [(name, number) for number in numbers], IsolationLevel.READ_UNCOMMITTED)
        except KafkaException as error:
            raise TopicError(
                f"topic {name} was created, but has no leader ({error.args[0].str()}): see the brokers' log"
            ) from error


def _wrong_count(name: str, found: int, topic: Topic, settings: Settings) -> str:
    expected = partition_count(topic, settings)
    message = f"topic {name} has {found} partitions, but {expected} are expected"
    setting = _PARTITION_SETTINGS.get(topic.partitions_like)
    recreate = (
        "delete the pipeline's topics and create them again (their records are lost), "
        "or choose another FRAUD_PIPELINE_TOPIC_PREFIX"
    )
    if setting is None:
        return f"{message}, because it is one ordered log: {recreate}."
    return (
        f"{message}: set {setting}={found} if every topic keyed like it has {found}, else {recreate}. Do not add "
        "partitions: keys would move, and windows with them."
    )


def _insync_replicas(settings: Settings, replicas: int) -> int:
    """``min.insync.replicas`` of topics with ``replicas``: one broker may be away, and a record is on two."""
    insync = settings.min_insync_replicas or (2 if replicas >= 3 else 1)
    if insync > replicas:
        raise TopicError(
            f"FRAUD_PIPELINE_MIN_INSYNC_REPLICAS is {insync}, but topics are created with {replicas} replicas, so that "
            "nothing could be written: lower it, or raise FRAUD_PIPELINE_REPLICATION_FACTOR."
        )
    return insync


def _create(client: AdminClient, missing: dict[str, Topic], settings: Settings, replicas: int, insync: int) -> set[str]:
    """Create ``missing``; names of those that this call created."""
    if not missing:
        return set()
    request = [
        NewTopic(
            name,
            num_partitions=partition_count(topic, settings),
            replication_factor=replicas,
            config={**topic_config(topic, settings), "min.insync.replicas": str(insync)},
        )
        for name, topic in missing.items()
    ]
    created = set()

    def create() -> None:
        left = [topic for topic in request if topic.topic not in created]
        limits = {"operation_timeout": REQUEST_TIMEOUT_S, "request_timeout": REQUEST_TIMEOUT_S}
        for name, future in client.create_topics(left, **limits).items():
            try:
                with fresh_metadata(client):
                    future.result()
            except KafkaException as error:
                if may_pass(error.args[0]):
                    raise
                # Workers that start together create together.
                if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                    raise TopicError(_creation_failed(name, error.args[0], replicas)) from error
                found = len(partition_numbers(client, name, appear_s=REQUEST_TIMEOUT_S))
                if found != partition_count(missing[name], settings):
                    raise TopicError(_wrong_count(name, found, missing[name], settings)) from error
            else:
                created.add(name)

    retried(create, within_s=2 * REQUEST_TIMEOUT_S)
    return created


def _creation_failed(name: str, error: KafkaError, replicas: int) -> str:
    as_administrator = (
        "create the topics as an administrator (docs/broker.md lists them) and set FRAUD_PIPELINE_CREATE_TOPICS=false"
    )
    remedy = {
        KafkaError.INVALID_REPLICATION_FACTOR: "set FRAUD_PIPELINE_REPLICATION_FACTOR to fewer than " + str(replicas),
        KafkaError.TOPIC_AUTHORIZATION_FAILED: as_administrator,
        KafkaError.CLUSTER_AUTHORIZATION_FAILED: as_administrator,
        KafkaError.POLICY_VIOLATION: as_administrator,
    }.get(error.code())
    return f"cannot create topic {name}: {error.str()}" + (f"; {remedy}" if remedy else "")


def _differences(client: AdminClient, topics: dict[str, Topic], settings: Settings) -> dict[str, tuple[str, ...]]:
    """Configuration that is not as it should be, by topic, as sentences."""
    if not topics:
        return {}
    configs, _ = configs_of(client, ResourceType.TOPIC, list(topics))
    return {
        name: tuple(
            f"{key} is {configs[name].get(key)}, should be {value}" + (" or more" if key in _AT_LEAST else "")
            for key, value in topic_config(topic, settings).items()
            if not _satisfies(key, configs[name].get(key), value)
        )
        if name in configs
        else ("its configuration cannot be checked: allow DESCRIBE_CONFIGS to this user",)
        for name, topic in topics.items()
    }


_AT_LEAST: Final = frozenset({"max.message.bytes", "message.timestamp.after.max.ms", "message.timestamp.before.max.ms"})


def _satisfies(key: str, actual: Any, expected: str) -> bool:
    if actual is None:
        # A broker before 3.6 has no such property, and accepts every timestamp.
        return key.startswith("message.timestamp.")
    if key in _AT_LEAST:
        return int(actual) >= int(expected)
    return str(actual) == expected


def delete_before(bootstrap: str, topic: str, offsets: Mapping[int, int], *, settings: Settings | None = None) -> None:
    """Delete the first records of partitions of a topic.

    Args:
        topic: Full name of the topic.
        offsets: First offset to stay, by partition number; other partitions are left as they are.
        settings: Settings of the client; None: no ``kafka_config``.

    Raises:
        TopicError: The brokers refuse it.
    """
    client = admin_client(bootstrap, settings=settings)
    ends = [TopicPartition(topic, number, offset) for number, offset in offsets.items()]
    try:
        retried(lambda: [f.result() for f in client.delete_records(ends, request_timeout=REQUEST_TIMEOUT_S).values()])
    except KafkaException as error:
        raise TopicError(f"records of topic {topic} cannot be deleted: {error.args[0].str()}") from error


def end_offsets(
    bootstrap: str, topics: Sequence[str], *, settings: Settings | None = None
) -> dict[tuple[str, int], int]:
    """Last stable offset of every partition of topics.

    That is one past the last offset that a ``read_committed`` consumer can reach.

    Args:
        topics: Full names of the topics.
        settings: Settings of the client; None: no ``kafka_config``.

    Returns:
        Offsets by (full name of the topic, partition number).
    """
    client = admin_client(bootstrap, settings=settings)
    partitions = [(topic, number) for topic in topics for number in partition_numbers(client, topic)]
    return last_offsets(client, partitions, IsolationLevel.READ_COMMITTED)


def group_consumer(bootstrap: str, group: str, *, settings: Settings | None = None, stable: bool = False) -> Consumer:
    """A consumer that asks for the offsets of a group and never joins it.

    An admin client's question ends the process where the coordinator has moved since it was found: librdkafka (2.16,
    its issue 5040) then looks for the group that only a consumer has.

    Args:
        group: Full name of the group.
        settings: Settings of the client; None: no ``kafka_config``.
        stable: Wait for what a transaction that is still open will commit; else its offsets do not count.
    """
    overrides = {} if stable else {"isolation.level": "read_uncommitted"}
    return Consumer(consumer_config(bootstrap, group, settings=settings, overrides=overrides, protocol="classic"))


def committed_by_group(consumer: Consumer, partitions: Sequence[tuple[str, int]]) -> dict[tuple[str, int], int]:
    """Return the next offset of partitions (topic, number), of those with a commit, as a `group_consumer` knows it."""
    found = retried(lambda: committed_partitions(consumer, partitions))
    return {(at.topic, at.partition): at.offset for at in found if at.offset != OFFSET_INVALID}


class GroupLag:
    """Measures by how many records a group's commits are behind the end of one topic.

    Where the group has committed nothing, it counts from the end as it was when this object was made: what an absent
    group never read before is not this program's to wait for.

    Args:
        topic: Full name of the topic.
        group: Full name of the group.
    """

    def __init__(self, bootstrap: str, settings: Settings, topic: str, group: str) -> None:
        # The same clients for all measurements: making one costs threads and connections.
        self._client = admin_client(bootstrap, settings=settings)
        self._consumer = group_consumer(bootstrap, group, settings=settings)
        self._partitions = [(topic, number) for number in partition_numbers(self._client, topic)]
        self._base = self._ends()

    def measure(self) -> tuple[int, int]:
        """Records between the commits and the ends; and the sum of the commits, which grows with the group's work."""
        ends, committed = self._ends(), committed_by_group(self._consumer, self._partitions)
        lag = sum(max(0, end - committed.get(at, self._base[at])) for at, end in ends.items())
        return lag, sum(committed.values())

    def _ends(self) -> dict[tuple[str, int], int]:
        return last_offsets(self._client, self._partitions, IsolationLevel.READ_UNCOMMITTED)


def topic_retentions(settings: Settings) -> dict[str, int]:
    """Return for how long topics of the pipeline keep records, by full name, in milliseconds; -1 for ever.

    As the cluster says, of the topics that it has; as they would be created, where the settings name no cluster.

    Raises:
        ClusterUnreachable: No broker answers.
    """
    names = {settings.topic(topic.name): topic for topic in settings.topics}
    bootstrap = settings.kafka_bootstrap_servers
    if bootstrap is None:
        return {name: retention_ms(topic, settings) for name, topic in names.items()}
    client = admin_client(bootstrap, settings=settings)
    there = [name for name in names if name in reached(client, bootstrap).topics]
    configs, _ = configs_of(client, ResourceType.TOPIC, there)
    return {name: int(config.get("retention.ms") or -1) for name, config in configs.items()}
