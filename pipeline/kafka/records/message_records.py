"""What readers take from a log: records, and reports about a partition in their place; and values of records."""

from collections.abc import Callable
from typing import Final, NamedTuple, TypeVar

import msgspec
from confluent_kafka import KafkaError

from pipeline.kafka.records.batch import Partition, UnreadableRange
from schemas.records import Record

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
    """A report about a partition in the place of a record: a broker's error, or the end of the log."""

    partition: Partition
    offset: int
    error: KafkaError


Item = Record | ReadError | UnreadableRange
