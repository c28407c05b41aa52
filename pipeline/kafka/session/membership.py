"""The membership of a worker in a group, which outlives its process until the session times out.

The same worker, started again, leaves the group for the process before: only one process at a time may hold a
`StateDirectory`, so that whoever finds a member's id there knows that this member is dead.
"""

import logging
from pathlib import Path
from typing import Final

from aiokafka.protocol.types import CompactString, Int16, Int32, Schema, TaggedFields
from confluent_kafka import KafkaError, KafkaException

from pipeline.kafka.cluster.clients import consumer_config
from pipeline.kafka.writers.call_loop import CallLoop
from pipeline.kafka.writers.transaction_brokers import Coordinator, RequestRefused, TransactionBrokers
from pipeline.kafka.writers.transaction_protocol import NO_TAGS, KafkaRequest, RequestKind
from pipeline.settings import Settings

log = logging.getLogger(__name__)

LEAVE_S: Final = 2.0
"""Longest time for which a coordinator is asked: then the session's time-out is waited for."""
_LEAVING_EPOCH: Final = -1
_TEXT: Final = CompactString()
_GONE: Final = frozenset({KafkaError.UNKNOWN_MEMBER_ID, KafkaError.GROUP_ID_NOT_FOUND})
_HEARTBEAT: Final = RequestKind(
    68,
    0,
    Schema(
        ("group", _TEXT),
        ("member", _TEXT),
        ("epoch", Int32),
        ("group_instance", _TEXT),
        ("rack", _TEXT),
        ("rebalance_timeout_ms", Int32),
        # Lists, which are null here: a text that is null has the same bytes.
        ("topics", _TEXT),
        ("assignor", _TEXT),
        ("partitions", _TEXT),
        ("tags", TaggedFields),
    ),
    Schema(("throttle_ms", Int32), ("error", Int16), ("message", _TEXT)),
)
"""ConsumerGroupHeartbeat of KIP-848; of its answer, what says whether it was taken."""


def replace_member(bootstrap: str, settings: Settings, group: str, member: str, directory: Path) -> None:
    """Leave a group for the process before, and note the member that this process is.

    Args:
        bootstrap: Addresses of brokers.
        settings: Settings of the worker.
        group: Full name of the group; its members join by KIP-848.
        member: Id of this process's member.
        directory: State directory of the agent, held by this process.
    """
    note = directory.with_suffix(".member")
    before = note.read_text(encoding="utf-8").strip() if note.exists() else ""
    if before:
        leave(bootstrap, settings, group, before)
    note.write_text(f"{member}\n", encoding="utf-8")


def leave(bootstrap: str, settings: Settings, group: str, member: str) -> None:
    """Let a dead member leave its group; where that cannot be done, the group waits for its session's time-out."""
    request = KafkaRequest(_HEARTBEAT, group, member, _LEAVING_EPOCH, None, None, -1, None, None, None, NO_TAGS)
    brokers, loop = TransactionBrokers(consumer_config(bootstrap, group, settings=settings)), CallLoop(lambda: None)
    try:
        asked = brokers.ask(Coordinator.GROUP, group, request, lambda answer: [answer.error])
        loop.run("leaving the group", asked, LEAVE_S)
    except (RequestRefused, KafkaException) as error:
        if not isinstance(error, RequestRefused) or error.code not in _GONE:
            log.info("group %s waits for the session of a process before: %s", group, error)
    finally:
        loop.close(brokers.close())
