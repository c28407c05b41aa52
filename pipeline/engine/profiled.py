"""The records of ``profiled`` as columns, transactions and labels in one order.

Compiled code reads transactions as the card agent writes them (`pipeline.engine.profiled_scan`). Labels, and what is
written in another way, go through the decoder into the same columns.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, Final

import msgspec
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.engine.columns import name_keys, span_keys
from pipeline.engine.merchants import MerchantLog
from pipeline.engine.profiled_scan import equal_texts, scan_profiled
from pipeline.engine.results import ForeignRecord
from pipeline.engine.subjects import (
    AMOUNT,
    AMOUNT_BASE,
    CARD,
    CASE,
    CASE_SEQUENCE,
    COUNTS,
    CURRENCY,
    EVENT_US,
    ID,
    INGESTED_OFFSET,
    INGESTED_US,
    INPUT,
    INPUT_OFFSET,
    INPUT_PARTITION,
    LOG_OFFSET,
    LOG_PARTITION,
    MERCHANT,
    RATES,
    SAME_RATES,
    SOURCE,
    SOURCE_OFFSET,
    SOURCE_PARTITION,
    STATED_OFFSET,
    STATED_US,
    TYPE,
    Subjects,
)  # fmt: skip
from pipeline.features.catalogue import CARD_FEATURES, FEATURES, KERNEL_VERSION
from pipeline.features.compiled import compiled
from pipeline.features.identity import transaction_hash
from schemas.codec import EARLIEST_US, LATEST_US, MAX_AMOUNT_BASE_MINOR, timestamp_us
from schemas.errors import UNREADABLE
from schemas.messages import ProfiledLabel, ProfiledTransaction, Timestamp
from schemas.records import Record

TRANSACTION, LABEL, REFUSED = range(3)
"""Kinds of records; the first two as the merchants' windows number them."""
KNOWN_CODES: Final = {"fraud": 1, "legitimate": 0}
KNOWN_NONE: Final = 2
_CARD_BYTES: Final = 8 * len(CARD_FEATURES)
_LARGEST: Final = 2**62
"""So that no sum of two times leaves 64 bits."""
_MINUTE: Final = timedelta(minutes=1)


class _Stated(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Fields of the producer's own record that a decision repeats."""

    event_time: Timestamp
    amount: Decimal
    currency: str
    transaction_type: str = "purchase"


_decode = msgspec.json.Decoder(ProfiledTransaction | ProfiledLabel).decode
_decode_stated = msgspec.json.Decoder(_Stated).decode
_encode = msgspec.json.Encoder(decimal_format="number").encode


def read_profiled(value: bytes | None) -> ProfiledTransaction | ProfiledLabel:
    """Return the message of a record of ``profiled``; every reader of the topic skips what this raises for.

    Raises:
        msgspec.MsgspecError, UnicodeDecodeError, RecursionError: It is no such message.
        ValueError: It has numbers that no card agent writes, and that the windows could not hold.
    """
    message: ProfiledTransaction | ProfiledLabel = _decode(value or b"")
    _check(message)
    return message


def _check(message: ProfiledTransaction | ProfiledLabel) -> None:
    if not EARLIEST_US <= message.event_time_us < LATEST_US:
        raise ValueError(f"event_time_us is {message.event_time_us}, which is not between 1990 and 2100")
    if isinstance(message, ProfiledLabel):
        if abs(message.known_at_us) > _LARGEST:
            raise ValueError(f"known_at_us is {message.known_at_us}, which is no time")
        return
    if message.kernel == KERNEL_VERSION and len(message.card_features) != _CARD_BYTES:
        raise ValueError(f"card_features has {len(message.card_features)} bytes, not {_CARD_BYTES}")
    if not 0 <= message.amount_base_minor <= MAX_AMOUNT_BASE_MINOR:
        raise ValueError(f"amount_base_minor is {message.amount_base_minor}, more or less than any amount is")
    for number in (message.case_sequence, message.source.partition, (message.read or message.source).partition):
        if abs(number) > _LARGEST:
            raise ValueError(f"case_sequence or a partition is {number}, more or less than any is")


@dataclass(frozen=True, slots=True)
class ProfiledRows:
    """Records as columns of n rows; what concerns transactions alone is undefined in other rows."""

    records: Sequence[Record]
    kinds: NDArray[np.uint8]
    """Shape (n,): `TRANSACTION`, `LABEL` or `REFUSED`."""
    subjects: Subjects
    features: NDArray[np.float64]
    """Shape (n, len(FEATURES)): those of the card; those of the merchant have room."""
    log: MerchantLog
    """Columns that the merchants' windows take."""
    follows: NDArray[np.bool_]
    """Shape (n,): whether a transaction is of the row before's batch of one input, and has a higher offset."""
    decoded: dict[int, ProfiledTransaction]
    """Transactions that only the decoder could read, by row."""
    refused: dict[int, Exception]
    """Why a record was refused, by row."""

    def told(self, rows: NDArray[np.intp]) -> Subjects:
        """Return transactions with all that decisions name.

        Raises:
            ForeignRecord: What a producer wrote cannot be read in one of them.
        """
        subjects = self.subjects
        if self.decoded:
            subjects = self._with_stated(subjects, set(rows.tolist()))
        subjects.wholes[LOG_PARTITION] = [record.partition for record in self.records]
        subjects.wholes[LOG_OFFSET] = [record.offset for record in self.records]
        return subjects if len(rows) == len(self.records) else subjects.take(rows)

    def _with_stated(self, subjects: Subjects, rows: set[int]) -> Subjects:
        writing = _Writing(subjects)
        for row, message in self.decoded.items():
            if row not in rows:
                continue
            try:
                stated = _decode_stated(message.transaction)
            except UNREADABLE as error:
                raise ForeignRecord(f"what a producer wrote cannot be read in it: {error}") from error
            if not stated.amount.is_finite():
                raise ForeignRecord(f"its amount is {stated.amount}, which no card agent accepts")
            writing.put(row, AMOUNT, _encode(stated.amount))
            writing.put(row, CURRENCY, stated.currency.encode())
            writing.put(row, TYPE, stated.transaction_type.encode())
            subjects.wholes[[STATED_US, STATED_OFFSET], row] = _moment(stated.event_time)
        return writing.done()

    def identity(self, row: int) -> int:
        """Return the `transaction_hash` of a row."""
        card, transaction = (self._string(column, row) for column in (CARD, ID))
        return transaction_hash(card, transaction)

    def input(self, row: int) -> tuple[str, int]:
        """Return the topic and the partition that the card agent read a transaction from."""
        return self._string(INPUT, row), int(self.subjects.wholes[INPUT_PARTITION, row])

    def _string(self, column: int, row: int) -> str:
        first, end = self.subjects.spans[column, row].tolist()
        return self.subjects.text[first:end].decode()


def read_rows(records: Sequence[Record]) -> ProfiledRows:
    """Read records of ``profiled``, of any partitions, in their order."""
    n = len(records)
    features = np.empty((n, len(FEATURES)))
    subjects, plain = scan_profiled([record.value for record in records], features)
    kinds = np.zeros(n, np.uint8)
    labels: dict[int, ProfiledLabel] = {}
    decoded: dict[int, ProfiledTransaction] = {}
    refused: dict[int, Exception] = {}
    others = np.flatnonzero(~plain)
    if len(others):
        subjects.spans[:, others], subjects.wholes[:, others] = 0, 0
        for row in others.tolist():
            try:
                message = read_profiled(records[row].value)
            except (*UNREADABLE, ValueError) as error:
                refused[row], kinds[row] = error, REFUSED
                continue
            if isinstance(message, ProfiledLabel):
                labels[row], kinds[row] = message, LABEL
            else:
                decoded[row] = message
        if decoded:
            subjects = _with_decoded(subjects, features, decoded)
    follows = np.empty(n, np.bool_)
    _follow(np.frombuffer(subjects.text, np.uint8), subjects.spans, subjects.wholes, kinds, follows)
    return ProfiledRows(records, kinds, subjects, features, _log(subjects, kinds, labels), follows, decoded, refused)


def _log(subjects: Subjects, kinds: NDArray[np.uint8], labels: dict[int, ProfiledLabel]) -> MerchantLog:
    n = subjects.rows
    merchants = span_keys(np.frombuffer(subjects.text, np.uint8), subjects.spans[MERCHANT])
    if labels:
        merchants[[*labels]] = name_keys(pa.array([label.merchant_id for label in labels.values()], pa.string()))
    identity, known = np.zeros(n, np.uint64), np.zeros(n, np.int8)
    event_time_us, known_at_us = subjects.wholes[EVENT_US], np.zeros(n, np.int64)
    for row, label in labels.items():
        identity[row] = transaction_hash(label.card_id, label.transaction_id)
        event_time_us[row], known_at_us[row] = label.event_time_us, label.known_at_us
        known[row] = KNOWN_CODES.get(label.known, KNOWN_NONE)
    return MerchantLog(
        kinds,
        merchants,
        identity,
        event_time_us,
        subjects.wholes[AMOUNT_BASE],
        subjects.wholes[COUNTS].astype(np.bool_),
        known,
        known_at_us,
    )


class _Writing:
    """Texts that are added to those of subjects."""

    def __init__(self, subjects: Subjects) -> None:
        self._subjects, self._added, self._end = subjects, [subjects.text], len(subjects.text)

    def put(self, row: int, column: int, text: bytes) -> None:
        self._subjects.spans[column, row] = self._end, self._end + len(text)
        self._added.append(text)
        self._end += len(text)

    def done(self) -> Subjects:
        return self._subjects._replace(text=b"".join(self._added))


def _with_decoded(
    subjects: Subjects, features: NDArray[np.float64], decoded: dict[int, ProfiledTransaction]
) -> Subjects:
    """Fill the rows of decoded transactions, but for what their producer wrote."""
    writing, wholes = _Writing(subjects), subjects.wholes
    for row, message in decoded.items():
        read = message.read or message.source
        texts = {
            ID: message.transaction_id, CARD: message.card_id, MERCHANT: message.merchant_id,
            RATES: message.rates_version, CASE: message.case_id, INPUT: read.topic,
        }  # fmt: skip
        for column, text in texts.items():
            writing.put(row, column, text.encode())
        writing.put(row, SOURCE, _encode(message.source))
        numbers = {
            EVENT_US: message.event_time_us, AMOUNT_BASE: message.amount_base_minor, COUNTS: message.counts,
            CASE_SEQUENCE: message.case_sequence, SOURCE_PARTITION: message.source.partition,
            SOURCE_OFFSET: message.source.offset, INPUT_PARTITION: read.partition, INPUT_OFFSET: read.offset,
            SAME_RATES: row,
        }  # fmt: skip
        for column, number in numbers.items():
            wholes[column, row] = number
        wholes[[INGESTED_US, INGESTED_OFFSET], row] = _moment(message.ingested_at)
        if message.kernel == KERNEL_VERSION:
            features[row, : len(CARD_FEATURES)] = np.frombuffer(message.card_features, "<f8")
    return writing.done()


def _moment(time: datetime) -> tuple[int, int]:
    """Microseconds since 1970, and minutes of offset."""
    return timestamp_us(time), (time.utcoffset() or timedelta()) // _MINUTE


@compiled
def _follow(text: Any, spans: Any, wholes: Any, kinds: Any, follows: Any) -> None:
    for row in range(len(kinds)):
        follows[row] = (
            row > 0
            and kinds[row] == TRANSACTION
            and kinds[row - 1] == TRANSACTION
            and wholes[INPUT_OFFSET, row] > wholes[INPUT_OFFSET, row - 1]
            and wholes[INPUT_PARTITION, row] == wholes[INPUT_PARTITION, row - 1]
            and wholes[INGESTED_US, row] == wholes[INGESTED_US, row - 1]
            and equal_texts(text, spans[INPUT, row], spans[INPUT, row - 1])
        )
