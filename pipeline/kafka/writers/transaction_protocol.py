"""Requests of transactions that aiokafka has no version of: with the group's generation, and for KIP-890.

Version 1 of transactions adds partitions and the group to the transaction, at its coordinator, before it writes to
them. Version 2 (KIP-890) has brokers do so as they write, and gives a producer another epoch with each end.
"""

import struct
from io import BytesIO
from types import SimpleNamespace
from typing import Any, Final, NamedTuple, Self

from aiokafka.protocol.api import RequestHeader_v2, ResponseHeader_v0, ResponseHeader_v1
from aiokafka.protocol.types import (
    Boolean,
    CompactArray,
    CompactBytes,
    CompactString,
    Int16,
    Int32,
    Int64,
    Schema,
    TaggedFields,
)

_TEXT: Final = CompactString()
_TAGS: Final = ("tags", TaggedFields)
NO_TAGS: Final[dict[int, bytes]] = {}
_FEATURES_KEY: Final = 18


class RequestKind(NamedTuple):
    """A kind of request in one version."""

    key: int
    version: int
    fields: Any
    """Schema of the request."""
    answer: Any
    """Schema of the answer."""

    def decode(self, data: BytesIO) -> SimpleNamespace:
        """Return the fields of an answer by their names."""
        return SimpleNamespace(**dict(zip(self.answer.names, self.answer.decode(data), strict=True)))


class KafkaRequest:
    """A request as `aiokafka.conn.AIOKafkaConnection.send` takes it: with all fields, in order."""

    def __init__(self, kind: RequestKind, *values: Any) -> None:
        self.RESPONSE_TYPE, self.values = kind, values
        self.API_KEY, self.API_VERSION = kind.key, kind.version

    def prepare(self, versions: dict[int, tuple[int, int]]) -> Self:
        """Return this request: a connection sends it as it is."""
        del versions
        return self

    def build_request_header(self, correlation_id: int, client_id: str) -> Any:
        """Return what stands in front of the fields."""
        return RequestHeader_v2(self, correlation_id=correlation_id, client_id=client_id)

    def encode(self) -> bytes:
        """Return the fields."""
        encoded: bytes = self.RESPONSE_TYPE.fields.encode(self.values)
        return encoded

    def parse_response_header(self, data: BytesIO) -> Any:
        """Return what stands in front of the answer: of one kind, version 0 whatever the request's is."""
        return (ResponseHeader_v0 if self.API_KEY == _FEATURES_KEY else ResponseHeader_v1).decode(data)


def _by_partition(*fields: tuple[str, Any]) -> tuple[str, Any]:
    """Return the field with some fields for each partition of each topic."""
    partitions = CompactArray(("partition", Int32), *fields, _TAGS)
    return "topics", CompactArray(("topic", _TEXT), ("partitions", partitions), _TAGS)


_PRODUCER: Final = (("producer_id", Int64), ("producer_epoch", Int16))
_WRITTEN: Final = (
    Schema(
        ("transactional_id", _TEXT),
        ("acks", Int16),
        ("timeout_ms", Int32),
        _by_partition(("records", CompactBytes)),
        _TAGS,
    ),
    Schema(
        _by_partition(
            ("error", Int16),
            ("base_offset", Int64),
            ("append_time_ms", Int64),
            ("log_start", Int64),
            ("record_errors", CompactArray(("index", Int32), ("message", _TEXT), _TAGS)),
            ("message", _TEXT),
        ),
        ("throttle_ms", Int32),
        _TAGS,
    ),
)
_OFFSETS: Final = (
    Schema(
        ("transactional_id", _TEXT),
        ("group", _TEXT),
        *_PRODUCER,
        ("generation", Int32),
        ("member", _TEXT),
        ("group_instance", _TEXT),
        _by_partition(("offset", Int64), ("leader_epoch", Int32), ("metadata", _TEXT)),
        _TAGS,
    ),
    Schema(("throttle_ms", Int32), _by_partition(("error", Int16)), _TAGS),
)
_END: Final = Schema(("transactional_id", _TEXT), *_PRODUCER, ("commits", Boolean), _TAGS)
_ENDED: Final = (("throttle_ms", Int32), ("error", Int16))


class Protocol(NamedTuple):
    """The kinds of requests of one version of transactions."""

    produce: RequestKind
    """One record batch for each of some partitions."""
    commit_offsets: RequestKind
    """Offsets of a group, from one of its members as it was in a generation (KIP-447)."""
    end: RequestKind
    """The commit, or the abort."""


V1: Final = Protocol(
    RequestKind(0, 9, *_WRITTEN), RequestKind(28, 3, *_OFFSETS), RequestKind(26, 3, _END, Schema(*_ENDED, _TAGS))
)
"""Requests that brokers answer since Kafka 2.8."""
V2: Final = Protocol(
    RequestKind(0, 12, *_WRITTEN),
    RequestKind(28, 5, *_OFFSETS),
    RequestKind(26, 5, _END, Schema(*_ENDED, *_PRODUCER, _TAGS)),
)
"""Brokers add partitions and the group to the transaction, and its end gives the producer another epoch."""

FEATURES: Final = RequestKind(
    _FEATURES_KEY,
    3,
    Schema(("software", _TEXT), ("version", _TEXT), _TAGS),
    Schema(
        ("error", Int16),
        ("versions", CompactArray(("api_key", Int16), ("lowest", Int16), ("highest", Int16), _TAGS)),
        ("throttle_ms", Int32),
        _TAGS,
    ),
)
"""Request for the versions that a broker offers; the features of the cluster are tagged fields of its answer."""
_FINALISED: Final = 2
"""Tag of the features that a cluster has agreed on."""
_LEVELS: Final = CompactArray(("name", _TEXT), ("highest", Int16), ("lowest", Int16), _TAGS)
_LEAST_LEVEL: Final = 2


def newest_protocol(answer: Any) -> Protocol | None:
    """Return the version of transactions that a cluster has agreed on, from an answer about `FEATURES`; None: none."""
    offered = {key: range(lowest, highest + 1) for key, lowest, highest, _ in answer.versions}
    if any(kind.version not in offered.get(kind.key, ()) for kind in V2):
        return V1 if all(kind.version in offered.get(kind.key, ()) for kind in V1) else None
    levels = _LEVELS.decode(BytesIO(answer.tags.get(_FINALISED, b"\0"))) or []
    return V2 if any(name == "transaction.version" and level >= _LEAST_LEVEL for name, level, *_ in levels) else V1


class GroupMember(NamedTuple):
    """A member of a group as it was in one generation."""

    group: str
    generation: int = -1
    member: str = ""
    group_instance: str | None = None


_MAGIC: Final = b"CGMDv2:"
_GENERATION: Final = struct.Struct("=i")


def group_member(metadata: bytes) -> GroupMember:
    r"""Return what `confluent_kafka.Consumer.consumer_group_metadata` holds.

    Raises:
        ValueError: librdkafka writes them in another form by now.

    >>> group_member(b"CGMDv2:\x07\x00\x00\x00card\x00member-1\x00\x01")
    GroupMember(group='card', generation=7, member='member-1', group_instance=None)
    """
    start = len(_MAGIC) + _GENERATION.size
    texts = metadata[start:].split(b"\0", 2)
    if not metadata.startswith(_MAGIC) or len(texts) < 3 or texts[2][:1] not in (b"\0", b"\1"):
        raise ValueError("this release of librdkafka writes a group's metadata in a form that is not known")
    (generation,) = _GENERATION.unpack_from(metadata, len(_MAGIC))
    group, member, rest = texts
    instance = None if rest[:1] == b"\1" else rest[1:].rstrip(b"\0").decode()
    return GroupMember(group.decode(), generation, member.decode(), instance)
