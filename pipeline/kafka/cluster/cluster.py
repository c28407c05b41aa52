"""Metadata of a cluster: brokers, topics, configuration, identities, and the group protocol that it offers."""

import time
from collections.abc import Sequence
from itertools import cycle
from typing import Final, NamedTuple

from confluent_kafka import KafkaError, KafkaException, TopicCollection
from confluent_kafka.admin import AdminClient, ClusterMetadata, ConfigResource, ResourceType, TopicDescription

from pipeline.kafka.cluster.clients import ANSWER_S, GroupProtocol, admin_client
from pipeline.kafka.cluster.errors import TopicError
from pipeline.kafka.cluster.log_offsets import APPEAR_S, fresh_metadata, missing_topic, partition_numbers
from pipeline.kafka.cluster.retries import retried
from pipeline.settings import Settings

_PROTOCOLS: Final = "group.coordinator.rebalance.protocols"
_OLD: Final = ("zookeeper.connect", "inter.broker.protocol.version")
"""Properties of brokers before 4.0, none of which offers KIP-848 for production."""


class ClusterIdentities(NamedTuple):
    """The identities that a snapshot belongs to: another cluster, or a topic made anew, has other ids."""

    cluster_id: str
    topic_ids: dict[str, str]
    """Full name -> Kafka's id of the topic."""


def topic_identities(client: AdminClient, names: Sequence[str]) -> ClusterIdentities:
    """The ids of the cluster and of the topics ``names`` (full). Raises ``TopicError``, ``KafkaException``."""
    cluster_id = str(_metadata(client).cluster_id)
    topics = describe_topics(client, names)
    return ClusterIdentities(cluster_id, {name: str(topics[name].topic_id) for name in names})


def group_protocol(client: AdminClient, settings: Settings) -> GroupProtocol:
    """Choose the group protocol: as the settings say, else ``consumer`` (KIP-848) where the brokers offer it.

    Brokers that do not let themselves be asked are taken to offer it.
    """
    if settings.group_protocol != "auto":
        return settings.group_protocol
    config, _ = broker_config(client)
    offered = config.get(_PROTOCOLS)
    if offered is not None:
        return "consumer" if "consumer" in offered.split(",") else "classic"
    return "classic" if any(name in config for name in _OLD) else "consumer"


def brokers(client: AdminClient) -> list[int]:
    """Numbers of the brokers that are up, sorted."""
    return sorted(_metadata(client).brokers)


def describe_topics(
    client: AdminClient, names: Sequence[str], *, missing_ok: bool = False
) -> dict[str, TopicDescription]:
    """Partitions, replicas and id of each topic, in the order of ``names``.

    Args:
        client: Asks the brokers.
        names: Full names of the topics.
        missing_ok: Leave out topics that do not exist.

    Raises:
        TopicError: A topic does not exist, and ``missing_ok`` is false.
    """
    appears_s = time.monotonic() + APPEAR_S

    def ask() -> dict[str, TopicDescription]:
        found = {}
        for name, future in client.describe_topics(TopicCollection(list(names)), request_timeout=ANSWER_S).items():
            try:
                found[name] = future.result()
            except KafkaException as error:
                if error.args[0].code() != KafkaError.UNKNOWN_TOPIC_OR_PART:
                    raise
                if not missing_ok and time.monotonic() > appears_s:
                    raise missing_topic(name) from error
                if not missing_ok:
                    raise
        return {name: found[name] for name in names if name in found}

    return retried(ask)


def configs_of(
    client: AdminClient, kind: ResourceType, names: Sequence[str]
) -> tuple[dict[str, dict[str, str | None]], list[str]]:
    """Configuration of topics or brokers by name, and a warning for each that may not be read.

    Args:
        client: Asks the brokers.
        kind: ``TOPIC`` or ``BROKER``.
        names: Full names of topics, or ids of brokers as text.

    Returns:
        Values by property for each name, without those that may not be read; and the warnings, as sentences.
    """
    return retried(lambda: _configs(client, kind, names))


def broker_config(client: AdminClient) -> tuple[dict[str, str | None], list[str]]:
    """Configuration of the first broker that answers, and a warning if it may not be read."""
    numbers = cycle(map(str, brokers(client)))

    def ask() -> tuple[dict[str, str | None], list[str]]:
        configs, warnings = _configs(client, ResourceType.BROKER, [next(numbers)])
        return next(iter(configs.values()), {}), warnings

    return retried(ask)


def _configs(
    client: AdminClient, kind: ResourceType, names: Sequence[str]
) -> tuple[dict[str, dict[str, str | None]], list[str]]:
    configs: dict[str, dict[str, str | None]] = {}
    warnings = []
    asked = [ConfigResource(kind, name) for name in names]
    with fresh_metadata(client):
        for resource, future in client.describe_configs(asked, request_timeout=ANSWER_S).items():
            try:
                configs[resource.name] = {entry.name: entry.value for entry in future.result().values()}
            except KafkaException as error:
                if error.args[0].code() not in _DENIED:
                    raise
                warnings.append(
                    f"the configuration of {kind.name.lower()} {resource.name} cannot be checked "
                    f"({error.args[0].str()}): allow DESCRIBE_CONFIGS to this user, or check it yourself"
                )
    return configs, warnings


def stamped_by_producers(client: AdminClient, topic: str, otherwise: bool) -> bool:
    """Return True if a topic keeps its producers' timestamps.

    Args:
        client: Asks the brokers.
        topic: Full name of the topic.
        otherwise: The answer where the brokers do not say.
    """
    configs, _ = configs_of(client, ResourceType.TOPIC, [topic])
    kind = configs.get(topic, {}).get("message.timestamp.type")
    return otherwise if kind is None else kind == "CreateTime"


def require_producer_timestamps(bootstrap: str, settings: Settings, topics: list[str]) -> None:
    """Check that topics exist and keep their producers' timestamps.

    Args:
        topics: Full names of the topics.

    Raises:
        TopicError: A topic is missing, stamps records on arrival, or does not show its configuration to this user.
    """
    client = admin_client(bootstrap, settings=settings)
    for topic in topics:
        partition_numbers(client, topic)
    configs, denied = configs_of(client, ResourceType.TOPIC, topics)
    if denied:
        raise TopicError(denied[0])
    for topic, config in configs.items():
        if (stamp := config["message.timestamp.type"]) != "CreateTime":
            raise TopicError(
                f"topic {topic} stamps records when they arrive ({stamp}): a simulated clock cannot be kept; "
                "use topics created under FRAUD_PIPELINE_TIMESTAMPS=producer, with another FRAUD_PIPELINE_TOPIC_PREFIX"
            )


_DENIED: Final = frozenset({KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.CLUSTER_AUTHORIZATION_FAILED})


def _metadata(client: AdminClient) -> ClusterMetadata:
    # Any broker answers this. What asks the controller (describe_cluster) fails for half a minute after a broker died.
    return retried(lambda: client.list_topics(timeout=ANSWER_S))
