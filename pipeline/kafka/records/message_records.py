"""What readers take from a Kafka client: records, and what is to be said of a partition in their place.

And values of records that their readers can decode.
"""

from collections.abc import Callable
from typing import Final, NamedTuple, TypeVar

import msgspec
from confluent_kafka import KafkaError, Message

from pipeline.kafka.records.batch import Partition, UnreadableRange
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


class ReadError(NamedTuple):
    """A client's report about a partition in the place of a record."""

    partition: Partition
    offset: int
    error: KafkaError


Item = Record | ReadError | UnreadableRange


def item_of(message: Message) -> Record | ReadError:
    """Return the record in a message, or the error."""
    error = message.error()
    if error is not None:
        return ReadError((message.topic() or "", message.partition() or 0), message.offset(), error)
    try:
        headers = message.headers()
        return _record(message, tuple(headers) if headers else ())
    except (SystemError, UnicodeDecodeError):
        # The client decodes a header's name as UTF-8, and leaves its error for whatever is called next. Such headers
        # say nothing to anybody: the record is read without them.
        return _record(message, ())


def _record(message: Message, headers: Headers) -> Record:
    return Record(
        message.topic(),
        message.partition(),
        message.offset(),
        message.timestamp()[1],
        message.key(),
        message.value(),
        headers,
    )
