"""Records of transactions and labels as columns, accepted and refused by the rules of `schemas.codec`.

Compiled code reads what the fast path takes. The decoder itself reads each of the others, into the same
columns.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from typing import Any, Final, NamedTuple, TypeVar

import msgspec
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.engine.encoding.amounts import rate_terms, read_amounts
from pipeline.engine.encoding.json_scanner import AMOUNT, ATTRIBUTES, CURRENCY, TEXTS, TIME, TYPE, offset_min, scan
from pipeline.engine.records.columns import Labels, Reject, Transactions, no_labels, text_buffers
from pipeline.features.attributes import attribute_values, decode_attributes
from pipeline.features.catalogue import ATTRIBUTE_FEATURES
from pipeline.features.clock import hours, weekdays
from pipeline.features.compiled import compiled
from pipeline.learning.labels import KNOWN, known_value, source_rank
from schemas.codec import (
    COUNTING_TYPES,
    MAX_LABEL_BYTES,
    AcceptedTransaction,
    decode_label,
    decode_transaction,
    timestamp_us,
)
from schemas.errors import InvalidMessage
from schemas.messages import Label, Timestamp
from schemas.money import RateTable
from schemas.records import Record

_COLUMNS: Final = (*enumerate(TEXTS), (AMOUNT, "producer_amount"))
"""Places of `scan` that are copied, with the columns of `Transactions` that they become; the last only if asked for."""

T = TypeVar("T")


class ProducerFields(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Fields of a producer's transaction that a decision repeats as they were written."""

    event_time: Timestamp
    amount: Decimal
    currency: str
    transaction_type: str = "purchase"

    @property
    def amount_json(self) -> bytes:
        """The amount as a JSON number."""
        return _encode(self.amount)

    @property
    def offset_min(self) -> int:
        """Minutes of the UTC offset of the event time."""
        return (self.event_time.utcoffset() or timedelta()) // _MINUTE


_MINUTE: Final = timedelta(minutes=1)
_encode: Final = msgspec.json.Encoder(decimal_format="number").encode
decode_producer_fields: Final = msgspec.json.Decoder(ProducerFields).decode

_COUNTING: Final = tuple(
    np.frombuffer(word.encode().ljust(max(map(len, COUNTING_TYPES)), b"\x00"), np.uint8)
    for word in sorted(COUNTING_TYPES)
)
_COUNTING_WORDS: Final = np.ascontiguousarray(np.stack(_COUNTING))
_COUNTING_BYTES: Final = np.array([len(word) for word in sorted(COUNTING_TYPES)], np.int64)


class FastPathTransactions(NamedTuple):
    """The m of n records that the fast path takes, as transactions."""

    on_fast_path: NDArray[np.bool_]
    """Shape (n,): which records these are."""
    rows: Transactions


def record_columns(records: Sequence[Record]) -> tuple[list[bytes | None], NDArray[np.int64]]:
    """Return the values of n records, and when each arrived, in microseconds since 1970; shape (n,)."""
    return [record.value for record in records], np.array([record.arrived_us for record in records], np.int64)


def accept_transactions(
    values: Sequence[bytes | None],
    arrived_us: NDArray[np.int64],
    rates: RateTable,
    future_tolerance_us: int,
    *,
    producer_fields: bool = False,
) -> tuple[Transactions, list[Reject]]:
    """Accept the transactions of n records.

    Args:
        values: The records' values.
        arrived_us: Shape (n,), when each record arrived, in microseconds since 1970.
        rates: Table that converts the amounts.
        future_tolerance_us: How much later than its record's arrival an event may be.
        producer_fields: Whether ``producer_amount`` and ``producer_offset_min`` are wanted.

    Returns:
        The accepted transactions and the refused ones; ``row`` of either is its record's number.
    """
    on_fast_path, rows = read_fast_path(
        values, arrived_us + future_tolerance_us, rates, producer_fields=producer_fields
    )
    if len(rows) == len(values):
        return rows, []
    others, rejects = _decoded(
        np.flatnonzero(~on_fast_path),
        "transaction",
        lambda row: decode_transaction(
            values[row],
            record_timestamp_us=int(arrived_us[row]),
            future_tolerance_us=future_tolerance_us,
            rates=rates,
        ),
    )
    if others:
        decoded = _transactions(others)
        if producer_fields:
            decoded = _with_producer_fields(decoded, [decode_producer_fields(values[row] or b"") for row, _ in others])
        rows = Transactions.concat([rows, decoded])
        rows = rows.take(np.argsort(rows.row))
    return rows, rejects


def accept_labels(
    values: Sequence[bytes | None],
    arrived_us: NDArray[np.int64],
    future_tolerance_us: int,
    check: Callable[[int, Label], None] | None = None,
    most_bytes: int = MAX_LABEL_BYTES,
) -> tuple[Labels, list[Reject], list[Label]]:
    """Accept the labels of n records.

    Args:
        values: The records' values.
        arrived_us: Shape (n,), when each record arrived, in microseconds since 1970.
        future_tolerance_us: How much later than its record's arrival ``labelled_at`` may be.
        check: Called with the number of each label that was decoded and the label; raises `InvalidMessage` to refuse
            it. None: all are accepted.
        most_bytes: The longest value that is accepted.

    Returns:
        The accepted labels, the refused ones, and the accepted ones as messages; ``row`` is the record's number.
    """
    if not len(values):
        return no_labels(), [], []

    def decode(row: int) -> Label:
        label = decode_label(
            values[row],
            record_timestamp_us=int(arrived_us[row]),
            future_tolerance_us=future_tolerance_us,
            most_bytes=most_bytes,
        )
        if check is not None:
            check(row, label)
        return label

    accepted, rejects = _decoded(np.arange(len(values)), "label", decode)
    labels = [label for _, label in accepted]
    row = np.array([row for row, _ in accepted], np.int64)
    return label_columns(labels, row, arrived_us[row]), rejects, labels


def label_columns(labels: Sequence[Label], row: NDArray[np.int64], arrived_us: NDArray[np.int64]) -> Labels:
    """Return checked labels as columns.

    Args:
        labels: m labels.
        row: Shape (m,), the number of each.
        arrived_us: Shape (m,), when each arrived: a label counts from this time or its own, whichever is later.

    Returns:
        The m labels.
    """
    labelled_at_us = np.array([timestamp_us(label.labelled_at) for label in labels], np.int64)
    known_at_us = np.maximum(labelled_at_us, arrived_us)
    return Labels(
        row=row,
        key=known_at_us,
        transaction_id=_texts([label.transaction_id for label in labels]),
        card_id=_texts([label.card_id for label in labels]),
        source=_texts([label.source for label in labels]),
        rank=np.array([source_rank(label.source) for label in labels], np.int8),
        known=np.array([KNOWN.index(known_value(label.label)) for label in labels], np.int8),
        labelled_at_us=labelled_at_us,
        known_at_us=known_at_us,
    )


def read_fast_path(
    values: Sequence[bytes | None], latest_us: NDArray[np.int64], rates: RateTable, *, producer_fields: bool = False
) -> FastPathTransactions:
    """Read the records that compiled code understands and that the decoder would accept.

    Args:
        values: n records' values.
        latest_us: Shape (n,), the latest event time that each may have, in microseconds since 1970.
        rates: Table that converts the amounts.
        producer_fields: As of `accept_transactions`.

    Returns:
        Which records the fast path takes, and their transactions; ``row`` is the record's number.
    """
    found, n = scan(values), len(values)
    on_fast_path, text = found.on_fast_path, np.frombuffer(found.text, np.uint8)
    minor, base = np.empty(n, np.int64), np.empty(n, np.int64)
    on_fast_path &= found.event_time_us <= latest_us
    read_amounts(
        text, found.spans[CURRENCY], rate_terms(rates), found.amount, found.decimals, on_fast_path, minor, base
    )
    row = np.flatnonzero(on_fast_path)
    m = len(row)
    columns = _COLUMNS if producer_fields else _COLUMNS[: len(TEXTS)]
    copied = np.array([column for column, _ in columns], np.int64)
    offsets = np.empty((len(columns), m + 1), np.int32)
    data = np.empty(_text_bytes(found.spans, copied, row), np.uint8)
    _copy(text, found.spans, copied, row, data, offsets)
    buffer = pa.py_buffer(data)
    attributes = (
        attribute_values(_given(found.text, found.spans[ATTRIBUTES][row].tolist())) if ATTRIBUTE_FEATURES else None
    )
    texts = {
        name: pa.StringArray.from_buffers(m, pa.py_buffer(ends), buffer)
        for (_, name), ends in zip(columns, offsets, strict=True)
    }
    counts = counting(texts[TEXTS[TYPE]])
    event_us, clock_us = found.event_time_us, found.clock_us
    if m < n:
        event_us, clock_us, minor, base = event_us[row], clock_us[row], minor[row], base[row]
    rows = Transactions(
        row=row, key=event_us, event_time_us=event_us, amount_minor=minor, amount_base_minor=base, counts=counts,
        hour=hours(clock_us), weekday=weekdays(clock_us),
        producer_offset_min=_offsets_min(text, found.spans[TIME], row) if producer_fields else None,
        attributes=attributes, **texts,
    )  # fmt: skip
    return FastPathTransactions(on_fast_path, rows)


def _given(text: bytes, spans: Sequence[tuple[int, int]]) -> list[dict[str, str | float | None] | None]:
    """Return the attributes that lie in ``text`` at each of n spans; None for an empty one."""
    return [decode_attributes(text[first:end]) if end > first else None for first, end in spans]


def counting(types: pa.Array) -> NDArray[np.bool_]:
    """Return which of n types of transaction enter windows (`COUNTING_TYPES`); none is null."""
    counts = np.empty(len(types), np.bool_)
    _find(*text_buffers(types), _COUNTING_WORDS, _COUNTING_BYTES, counts)
    return counts


def _decoded(
    rows: NDArray[np.int64], kind: str, decode: Callable[[int], T]
) -> tuple[list[tuple[int, T]], list[Reject]]:
    """Return what the decoder accepts of the records of numbers ``rows``, with their numbers, and the rejects."""
    accepted, rejects = [], []
    for row in rows.tolist():
        try:
            accepted.append((row, decode(row)))
        except InvalidMessage as error:
            rejects.append(Reject(kind, row, error.code, str(error)))
    return accepted, rejects


def _transactions(decoded: Sequence[tuple[int, AcceptedTransaction]]) -> Transactions:
    items = [item for _, item in decoded]
    event_time_us = np.array([item.event_time_us for item in items], np.int64)
    return Transactions(
        row=np.array([row for row, _ in decoded], np.int64),
        key=event_time_us,
        transaction_id=_texts([item.transaction_id for item in items]),
        card_id=_texts([item.card_id for item in items]),
        merchant_id=_texts([item.merchant_id for item in items]),
        event_time_us=event_time_us,
        currency=_texts([item.currency for item in items]),
        amount_minor=np.array([item.amount_minor for item in items], np.int64),
        amount_base_minor=np.array([item.amount_base_minor for item in items], np.int64),
        transaction_type=_texts([item.transaction_type for item in items]),
        counts=np.array([item.counts for item in items], np.bool_),
        hour=np.array([item.hour for item in items], np.float64),
        weekday=np.array([item.weekday for item in items], np.float64),
        attributes=attribute_values([item.attributes for item in items]),
    )


def _with_producer_fields(rows: Transactions, producer_fields: Sequence[ProducerFields]) -> Transactions:
    amounts = pa.array([amount.amount_json.decode() for amount in producer_fields], pa.string())
    offsets_min = np.array([transaction.offset_min for transaction in producer_fields], np.int64)
    return replace(rows, producer_amount=amounts, producer_offset_min=offsets_min)


def _texts(values: Sequence[str]) -> pa.Array:
    return pa.array(values, pa.string())


def _offsets_min(text: NDArray[np.uint8], spans: NDArray[np.int64], rows: NDArray[np.int64]) -> NDArray[np.int64]:
    found = np.empty(len(rows), np.int64)
    _fill_offsets(text, spans, rows, found)
    return found


@compiled
def _fill_offsets(text: Any, spans: Any, rows: Any, found: Any) -> None:
    for k in range(len(rows)):
        found[k] = offset_min(text, spans[rows[k], 1])


@compiled
def _text_bytes(spans: Any, columns: Any, rows: Any) -> int:
    """Bytes of the texts of ``rows`` in ``columns``."""
    size = 0
    for column in columns:
        for row in rows:
            size += spans[column, row, 1] - spans[column, row, 0]
    return size


@compiled
def _copy(text: Any, spans: Any, columns: Any, rows: Any, data: Any, offsets: Any) -> None:
    """Copy the texts of ``rows`` into ``data``, one of ``columns`` behind the other."""
    at = 0
    for number, column in enumerate(columns):
        for k in range(len(rows)):
            first, end = spans[column, rows[k], 0], spans[column, rows[k], 1]
            offsets[number, k] = at
            for position in range(first, end):
                data[at] = text[position]
                at += 1
        offsets[number, len(rows)] = at


@compiled
def _find(text: Any, offsets: Any, words: Any, word_bytes: Any, among: Any) -> None:
    """Fill ``among``: which texts are among ``words``."""
    for row in range(len(among)):
        among[row] = _is_among(text, offsets[row], offsets[row + 1], words, word_bytes)


@compiled
def _is_among(text: Any, first: int, end: int, words: Any, word_bytes: Any) -> bool:
    for word in range(len(word_bytes)):
        if word_bytes[word] == end - first:
            same = True
            for position in range(end - first):
                if words[word, position] != text[first + position]:
                    same = False
                    break
            if same:
                return True
    return False
