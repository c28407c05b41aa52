"""Reading topics that belong to the pipeline, where a record that is none of its messages stops nobody."""

import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Final, TypeVar

import msgspec

from schemas.records import Record

log = logging.getLogger(__name__)

T = TypeVar("T")
OnRefused = Callable[[str], None]
"""Counts a refused record; called with the topic's full name."""
UNREADABLE: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""Everything that msgspec raises for bytes that are not the message asked for."""


def not_counted(topic: str) -> None:
    """Count nothing: for programs without metrics."""


def refuse(record: Record, reason: object, on_refused: OnRefused) -> None:
    """Report a record that a reader skips because it cannot be read or must not be believed."""
    log.error(
        "%s partition %d offset %d is refused: %s; only this pipeline's programs may write to that topic",
        record.topic, record.partition, record.offset, reason,
    )  # fmt: skip
    on_refused(record.topic)


def readable(
    records: Iterable[Record], decode: Callable[[bytes], T], on_refused: OnRefused
) -> Iterator[tuple[Record, T]]:
    """Yield each record with its decoded value; records that cannot be decoded are refused, and reading goes on."""
    for record in records:
        try:
            message = decode(record.value or b"")
        except UNREADABLE as error:
            refuse(record, error, on_refused)
        else:
            yield record, message
