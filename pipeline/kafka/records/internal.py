"""Reading topics that belong to the pipeline, where a record that is none of its messages stops nobody."""

import hashlib
import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Final, TypeVar

import msgspec

from pipeline.engine.encoding.blocks import BlockError
from pipeline.engine.scores.feature_blocks import FeatureRows, read_features
from pipeline.kafka.cluster.client_log import OncePerWhile
from pipeline.protection.signing import SIGNATURE, Trust
from pipeline.settings import Settings
from schemas.errors import UNREADABLE
from schemas.records import Record
from schemas.topics import CONTROL

log = logging.getLogger(__name__)
# The first word of a line is the topic: of many refused records of one topic, one every few seconds is reported.
log.addFilter(OncePerWhile())

T = TypeVar("T")
OnRefused = Callable[[str], None]
"""Counts a refused record; called with the topic's full name."""


_encode: Final = msgspec.json.Encoder().encode
_MOST_REFUSED: Final = 100_000
_refused: set[tuple[str, int, int, OnRefused]] = set()
"""Refused records that were counted, and by what."""


def not_counted(topic: str) -> None:
    """Count nothing: for programs without metrics."""


def refuse(record: Record, reason: object, on_refused: OnRefused) -> None:
    """Report a record that a reader skips because it cannot be read or must not be believed.

    Args:
        record: The record.
        reason: Why, for the log; shown by ``str``.
        on_refused: Called with the topic's full name; not again for a record that is met again (`_MOST_REFUSED` are
            remembered).
    """
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
    """Yield each record with its decoded value; records that cannot be decoded are refused, and reading goes on.

    Args:
        records: Records of an internal topic.
        decode: Decodes a value; empty bytes for a record without one. Its decoding errors (`UNREADABLE`) refuse the
            record.
        on_refused: Counts refused records.
    """
    for record in records:
        try:
            message = decode(record.value or b"")
        except UNREADABLE as error:
            refuse(record, error, on_refused)
        else:
            yield record, message


class TrustedRecords:
    """Reader of internal topics whose records the settings may want to be signed; for one reader of each.

    Raises:
        KeyFileError: A key that the settings name cannot be read.
    """

    def __init__(self, settings: Settings, on_refused: OnRefused) -> None:
        self.on_refused = on_refused
        self._trust = Trust.from_settings(settings)
        self._control = settings.topic(CONTROL.name)
        self._first: dict[bytes, int] = {}
        """Offset on ``control`` of each value that was signed, by its digest."""

    def readable(self, records: Iterable[Record], decode: Callable[[bytes], T]) -> Iterator[tuple[Record, T]]:
        """Yield what `readable` yields of the records that are trusted; the others are refused."""
        return readable(self._trusted(records), decode, self.on_refused)

    def signer(self, record: Record) -> str | None:
        """Return the id of the key that has signed a record which `readable` yielded; None without keys."""
        return self._trust.signer(record)

    def _trusted(self, records: Iterable[Record]) -> Iterator[Record]:
        for record in records:
            reason = self._trust.refusal(record) or self._repeated(record)
            if reason is None:
                yield record
            else:
                refuse(record, reason, self.on_refused)

    def _repeated(self, record: Record) -> str | None:
        """Return why a signed record of ``control`` is a copy: it would activate again what was active before."""
        if record.topic != self._control or all(name != SIGNATURE for name, _ in record.headers):
            return None
        # By the value: one signature can be written in many ways, and each is true.
        first = self._first.setdefault(hashlib.sha256(record.value or b"").digest(), record.offset)
        return f"it is a copy of the record at offset {first}" if first != record.offset else None


def readable_features(records: Iterable[Record], on_refused: OnRefused) -> Iterator[tuple[Record, FeatureRows]]:
    """Yield each record of ``features`` with its rows; records that are no blocks are refused, and reading goes on."""
    for record in records:
        try:
            rows = read_features(record)
        except BlockError as error:
            refuse(record, error, on_refused)
        else:
            yield record, rows


def readable_value(message: T, decode: Callable[[bytes], T]) -> bytes:
    """Return a message as the value of a record; raises `msgspec.ValidationError` where its readers would refuse it.

    Encoding checks nothing: an offset below 0 would be written, and what names it would never be believed.
    """
    value = _encode(message)
    decode(value)
    return value
