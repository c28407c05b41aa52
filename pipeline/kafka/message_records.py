"""Records made from the messages of the Kafka client, and values that their readers can decode."""

from collections.abc import Callable
from typing import Final, TypeVar

import msgspec
from confluent_kafka import Message

from schemas.records import Headers, Record

T = TypeVar("T")
_encode: Final = msgspec.json.Encoder().encode


def readable_value(message: T, decode: Callable[[bytes], T]) -> bytes:
    """Return a message as the value of a record; raises `msgspec.ValidationError` where its readers would refuse it.

    Encoding checks nothing: an offset below 0 would be written, and what names it would never be believed.
    """
    value = _encode(message)
    decode(value)
    return value


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
