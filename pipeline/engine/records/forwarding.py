"""Records that an agent forwards as they are, with the position that they were read from in their headers."""

import re
from typing import Final, NamedTuple

from schemas.records import Headers, Output, Record
from schemas.times import US_PER_MS
from schemas.topics import ACCEPTED_LABELS, LABELS, REROUTED, TOPICS, TRANSACTIONS, Topic

_PREFIXES: Final = {REROUTED: "rerouted", ACCEPTED_LABELS: "label"}
"""First word of the headers that an agent adds, by topic."""
KNOWN_AT: Final = "label-known-at-us"
"""Header of `accepted-labels`: from when on the label counts, in microseconds since 1970."""
ORIGINAL: Final = "rerouted-original"
"""Header of `rerouted`: the producer's own bytes, where the value is what a mapping has made of them."""
_DIGITS: Final = 18
_TOPIC_NAME: Final = re.compile(r"[A-Za-z0-9._-]{1,249}")
_MOST_PARTITION: Final = 2**31 - 1
MOST_OFFSETS: Final = 1 << 48
"""More offsets than a partition has."""


class NotForwarded(ValueError):
    """A record of an internal topic does not name its origin; the text says what its sender can do."""


class Forwarded(NamedTuple):
    """A record that was forwarded."""

    record: Record
    value: bytes | None
    """The record's value, or what a mapping has made of it."""
    known_at_us: int | None = None
    """Time from which its label counts, in microseconds since 1970; None for other records."""


def header_names(topic: Topic) -> tuple[str, ...]:
    """Return the headers that name the origin of a record on ``topic``.

    They stand behind the producer's: topic, partition, offset and timestamp of the record, and its key (null: none).
    """
    return tuple(f"{_PREFIXES[topic]}-{what}" for what in ("topic", "partition", "offset", "timestamp-ms", "key"))


def forward(
    record: Record,
    topic: Topic,
    card_id: str,
    partition: int,
    known_at_us: int | None = None,
    value: bytes | None = None,
) -> Output:
    """Return a record on its way to another topic, with its origin in its headers.

    Args:
        record: The record.
        topic: An internal topic that holds forwarded records.
        card_id: Its card, which becomes the key.
        partition: The card's partition of ``topic``.
        known_at_us: Since when a label counts, in microseconds since 1970; None for other records.
        value: What a mapping has made of its value; None: nothing.
    """
    values = (
        record.topic.encode(),
        str(record.partition).encode(),
        str(record.offset).encode(),
        str(record.arrived_us // US_PER_MS).encode(),
        record.key,
    )
    own: Headers = tuple(zip(header_names(topic), values, strict=True))
    if known_at_us is not None:
        own = (*own, (KNOWN_AT, str(known_at_us).encode()))
    if value is not None:
        own = (*own, (ORIGINAL, record.value))
    key = card_id.encode("utf-8", "surrogatepass")
    return Output(topic, key, record.value if value is None else value, (*record.headers, *own), partition)


def origin(record: Record, topic: Topic, topic_prefix: str) -> Forwarded:
    """Return the record that was forwarded as ``record``.

    Args:
        record: A record of ``topic``.
        topic: An internal topic that holds forwarded records.
        topic_prefix: Prefix of the pipeline's topics.

    Raises:
        NotForwarded: The headers do not name an origin.
    """
    names = header_names(topic)
    is_mapped = topic is REROUTED and bool(record.headers) and record.headers[-1][0] == ORIGINAL
    expected = (*names, KNOWN_AT) if topic is ACCEPTED_LABELS else (*names, ORIGINAL) if is_mapped else names
    split = len(record.headers) - len(expected)
    own = record.headers[max(split, 0) :]
    if tuple(name for name, _ in own) != expected:
        raise NotForwarded(f"The record does not end in the headers {', '.join(expected)}; {_advice(topic)}")
    name, *numbers = (value for _, value in own)
    value = numbers.pop() if is_mapped else record.value
    key = numbers.pop(3)
    source = (name or b"").decode(errors="replace")
    if not _is_origin(source, topic, topic_prefix):
        raise NotForwarded(f"{names[0]} is {source!r}, which {topic.writer} does not read; {_advice(topic)}")
    if not all(number is not None and number.isdigit() and len(number) <= _DIGITS for number in numbers):
        numeric = (*names[1:4], *([KNOWN_AT] if topic is ACCEPTED_LABELS else []))
        raise NotForwarded(f"{', '.join(numeric)} are not all whole numbers; {_advice(topic)}")
    if is_mapped and value is None:
        raise NotForwarded(f"{ORIGINAL} has no value; {_advice(topic)}")
    partition, offset, timestamp_ms, *known = (int(number or b"") for number in numbers)
    if partition > _MOST_PARTITION or offset >= MOST_OFFSETS:
        raise NotForwarded(f"{names[1]} or {names[2]} is no position in a log; {_advice(topic)}")
    lay = Record(source, partition, offset, timestamp_ms, key, value, record.headers[:split])
    return Forwarded(lay, record.value, *known)


def _is_origin(name: str, topic: Topic, topic_prefix: str) -> bool:
    """Return whether the agent that writes ``topic`` may have read a topic of this full name."""
    bare = name.removeprefix(topic_prefix)
    if topic is REROUTED:
        return name == topic_prefix + TRANSACTIONS.name
    is_own = any(bare == topic.name for topic in TOPICS if topic is not LABELS)
    return name.startswith(topic_prefix) and not is_own and _TOPIC_NAME.fullmatch(bare) is not None


def _advice(topic: Topic) -> str:
    return f"only the {topic.writer} may write to this topic: send the record to its own topic instead."


class ForwardedBatch(NamedTuple):
    """Records of one kind, as they lay and as they were read: the same, but for those that were forwarded."""

    records: list[Record]
    reads: list[Record]
    values: list[bytes | None]
    """Their values, or what a mapping has made of them."""
