"""Reading topics that belong to the pipeline, where a record that is none of its messages stops nobody."""

import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Final, TypeVar

from pipeline.engine.blocks import BlockError
from pipeline.engine.feature_blocks import FeatureRows, read_features
from pipeline.kafka.clients import OncePerWhile
from schemas.errors import UNREADABLE
from schemas.records import Record

log = logging.getLogger(__name__)
# The first word of a line is the topic: of many refused records of one topic, one every few seconds is reported.
log.addFilter(OncePerWhile())

T = TypeVar("T")
OnRefused = Callable[[str], None]
"""Counts a refused record; called with the topic's full name."""


_MOST_REFUSED: Final = 100_000
_refused: set[tuple[str, int, int, OnRefused]] = set()
"""Refused records that were counted, and by what."""


def not_counted(topic: str) -> None:
    """Count nothing: for programs without metrics."""


def refuse(record: Record, reason: object, on_refused: OnRefused) -> None:
    """Report a record that a reader skips because it cannot be read or must not be believed."""
    log.error(
        "%s partition %d offset %d is refused: %s; only this pipeline's programs may write to that topic",
        record.topic, record.partition, record.offset, reason,
    )  # fmt: skip
    at = (record.topic, record.partition, record.offset, on_refused)
    # A restore, and a look at the ends of a log, meet the same record again: that is no news.
    if at not in _refused:
        if len(_refused) >= _MOST_REFUSED:
            _refused.clear()
        _refused.add(at)
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


def readable_features(records: Iterable[Record], on_refused: OnRefused) -> Iterator[tuple[Record, FeatureRows]]:
    """Yield each record of ``features`` with its rows; records that are no blocks are refused, and reading goes on."""
    for record in records:
        try:
            rows = read_features(record)
        except BlockError as error:
            refuse(record, error, on_refused)
        else:
            yield record, rows
