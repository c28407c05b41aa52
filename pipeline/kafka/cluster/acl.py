"""Access rules of a cluster, made by its admin client."""

from collections.abc import Sequence
from functools import partial
from typing import Final, NamedTuple

from confluent_kafka import KafkaException
from confluent_kafka.admin import (
    AclBinding,
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    ResourcePatternType,
    ResourceType,
)

from pipeline.kafka.cluster.admin import REQUEST_TIMEOUT_S, reached
from pipeline.kafka.cluster.clients import admin_client
from pipeline.kafka.cluster.errors import failure_text
from pipeline.kafka.cluster.retries import retried
from pipeline.settings import Settings

_KINDS: Final = {
    "topic": ResourceType.TOPIC,
    "group": ResourceType.GROUP,
    "transactional_id": ResourceType.TRANSACTIONAL_ID,
    "cluster": ResourceType.BROKER,
}
EVERY_HOST: Final = "*"


class AclError(RuntimeError):
    """The cluster does not let access rules be made; the text says why."""


class AclRule(NamedTuple):
    """A principal may do one operation on one resource, from every host."""

    principal: str
    resource: str
    """Resource type: ``topic``, ``group``, ``transactional_id`` or ``cluster``."""
    name: str
    operation: str
    prefixed: bool
    """True if all resources are meant whose names begin with ``name``."""


def create_rules(bootstrap: str, settings: Settings, rules: Sequence[AclRule]) -> int:
    """Create access rules that are missing; return how many these are.

    Args:
        settings: Its ``kafka_config`` names a user that may alter the cluster.
        rules: All that there should be; other rules of the cluster stay.

    Raises:
        AclError: The brokers refuse it.
        ClusterUnreachable: No broker answers.
    """
    client = admin_client(bootstrap, settings=settings)
    reached(client, bootstrap)
    every = AclBindingFilter(
        ResourceType.ANY, None, ResourcePatternType.ANY, None, None, AclOperation.ANY, AclPermissionType.ANY
    )
    try:
        present = retried(lambda: client.describe_acls(every, request_timeout=REQUEST_TIMEOUT_S).result())
        missing = [binding for binding in map(_binding, rules) if binding not in present]
        if missing:
            made = partial(client.create_acls, missing, request_timeout=REQUEST_TIMEOUT_S)
            retried(lambda: [future.result() for future in made().values()])
    except KafkaException as error:
        raise AclError(
            f"{failure_text(error)}. The user of FRAUD_PIPELINE_KAFKA_CONFIG must be one that may alter the cluster, "
            "and the brokers need an authorizer (authorizer.class.name)."
        ) from error
    return len(missing)


def _binding(rule: AclRule) -> AclBinding:
    return AclBinding(
        _KINDS[rule.resource],
        rule.name,
        ResourcePatternType.PREFIXED if rule.prefixed else ResourcePatternType.LITERAL,
        rule.principal,
        EVERY_HOST,
        AclOperation[rule.operation.upper()],
        AclPermissionType.ALLOW,
    )
