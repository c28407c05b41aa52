"""The one acceptance of transactions and labels: by the rules of `schemas.codec`, into the same columns.

Whatever holds transactions has a reader that finds in columns what is written plainly, in narrower limits than the
decoder's: `read_fast_path` in records, `pipeline.backtest.input.acceptance` in tables. The decoder itself reads each of
the others. `ReadTransactions` makes the columns of both.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import timedelta
from operator import attrgetter
from typing import Any, Final, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.engine.encoding.amounts import rate_terms, read_amounts
from pipeline.engine.encoding.json_scanner import (
    AMOUNT,
    ATTRIBUTES,
    CURRENCY,
    TIME,
    ScanResult,
    offset_min,
    scan,
)
from pipeline.engine.records.columns import Labels, Reject, Transactions, no_labels
from pipeline.features.attributes import attribute_values, decode_attributes
from pipeline.features.catalogue import ATTRIBUTE_FEATURES
from pipeline.features.clock import hours, weekdays
from pipeline.features.compiled import compiled
from pipeline.learning.labels import KNOWN, known_value, source_rank
from schemas.codec import MAX_LABEL_BYTES, AcceptedTransaction, decode_label, decode_transaction, timestamp_us
from schemas.errors import InvalidMessage
from schemas.fields import NUMBER_COLUMNS, TEXT_COLUMNS, Kind
from schemas.messages import Label
from schemas.money import RateTable
from schemas.records import Record

T = TypeVar("T")

COUNTING_TYPES: Final = pa.array(["purchase", "cash"])
"""Types of transaction that enter windows."""
_MINUTE: Final = timedelta(minutes=1)
_WHOLE_LIMIT: Final = 2.0**53


class ReadTransactions(NamedTuple):
    """m transactions as a reader found them, all acceptable."""

    row: NDArray[np.int64]
    """Shape (m,): number of each in the input."""
    fields: Mapping[str, pa.Array]
    """Columns of `TEXT_COLUMNS` and `NUMBER_COLUMNS` by name, null for no value."""
    event_time_us: NDArray[np.int64]
    clock_us: NDArray[np.int64]
    """Local time, in microseconds since 1970."""
    amount_minor: NDArray[np.int64]
    amount_base_minor: NDArray[np.int64]
    attributes: NDArray[np.float64] | None
    producer_amount: pa.Array | None = None
    producer_offset_min: NDArray[np.int64] | None = None

    def columns(self) -> Transactions:
        """Return the transactions as kernels take them, in their order."""
        named = {name: column for name, column in self.fields.items() if name in Transactions.__dataclass_fields__}
        return Transactions(
            row=self.row,
            key=self.event_time_us,
            event_time_us=self.event_time_us,
            amount_minor=self.amount_minor,
            amount_base_minor=self.amount_base_minor,
            counts=pc.is_in(self.fields["transaction_type"], COUNTING_TYPES).to_numpy(zero_copy_only=False),
            hour=hours(self.clock_us),
            weekday=weekdays(self.clock_us),
            producer_amount=self.producer_amount,
            producer_offset_min=self.producer_offset_min,
            attributes=self.attributes,
            declared={name: column for name, column in self.fields.items() if name not in named},
            **named,
        )


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
    return (completed(rows, _transactions(others, producer_fields=producer_fields)) if others else rows), rejects


def completed(rows: Transactions, others: Transactions) -> Transactions:
    """Return transactions that were read in two ways in the order of their numbers."""
    found = Transactions.concat([rows, others])
    return found.take(np.argsort(found.row))


def accept_labels(
    values: Sequence[bytes | None],
    arrived_us: NDArray[np.int64],
    future_tolerance_us: int,
    check: Callable[[int, Label], None] | None = None,
    most_bytes: int = MAX_LABEL_BYTES,
) -> tuple[Labels, list[Reject]]:
    """Accept the labels of n records.

    Args:
        values: The records' values.
        arrived_us: Shape (n,), when each record arrived, in microseconds since 1970.
        future_tolerance_us: How much later than its record's arrival ``labelled_at`` may be.
        check: Called with the number of each label that was decoded and the label; raises `InvalidMessage` to refuse
            it. None: all are accepted.
        most_bytes: The longest value that is accepted.

    Returns:
        The accepted labels and the refused ones; ``row`` of either is its record's number.
    """
    if not len(values):
        return no_labels(), []

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
    return label_columns(labels, row, arrived_us[row]), rejects


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
        transaction_id=_strings([label.transaction_id for label in labels]),
        card_id=_strings([label.card_id for label in labels]),
        source=_strings([label.source for label in labels]),
        rank=np.array([source_rank(label.source) for label in labels], np.int8),
        known=np.array([KNOWN.index(known_value(label.label)) for label in labels], np.int8),
        labelled_at_us=labelled_at_us,
        known_at_us=known_at_us,
        word=_strings([label.label for label in labels]),
        fraud_type=_strings([label.fraud_type for label in labels]),
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
    fields = _numbers(found, text, on_fast_path)
    row = np.flatnonzero(on_fast_path)
    copied = [*range(len(TEXT_COLUMNS)), *([AMOUNT] if producer_fields else [])]
    texts = _texts(found, text, row, copied)
    fields |= {field.name: column for field, column in zip(TEXT_COLUMNS, texts, strict=False)}
    event_us, clock_us = found.event_time_us, found.clock_us
    if len(row) < n:
        event_us, clock_us, minor, base = event_us[row], clock_us[row], minor[row], base[row]
    read = ReadTransactions(
        row, fields, event_us, clock_us, minor, base,
        attribute_values(_given(found.text, found.spans[ATTRIBUTES][row].tolist())) if ATTRIBUTE_FEATURES else None,
        texts[-1] if producer_fields else None,
        _offsets_min(text, found.spans[TIME], row) if producer_fields else None,
    )  # fmt: skip
    return FastPathTransactions(on_fast_path, read.columns())


def _numbers(found: ScanResult, text: NDArray[np.uint8], on_fast_path: NDArray[np.bool_]) -> dict[str, pa.Array]:
    """Return the columns of numbers; what lies outside their limits leaves the fast path."""
    row = np.flatnonzero(on_fast_path)
    numbers = range(len(TEXT_COLUMNS), len(TEXT_COLUMNS) + len(NUMBER_COLUMNS))
    columns = [column.cast(pa.float64()) for column in (_texts(found, text, row, numbers) if numbers else ())]
    inside = np.ones(len(row), np.bool_)
    for field, column in zip(NUMBER_COLUMNS, columns, strict=True):
        inside &= within(column, field.least, field.most)
    on_fast_path[row] = inside
    return {field.name: column.filter(pa.array(inside)) for field, column in zip(NUMBER_COLUMNS, columns, strict=True)}


def within(numbers: pa.Array, least: float, most: float) -> NDArray[np.bool_]:
    """Return which of n numbers lie within limits, or are null; shape (n,)."""
    values: NDArray[np.float64] = numbers.to_numpy(zero_copy_only=False)
    inside: NDArray[np.bool_] = np.isnan(values) | ((values >= least) & (values <= most))
    return inside


def _texts(
    found: ScanResult, text: NDArray[np.uint8], row: NDArray[np.int64], columns: Sequence[int]
) -> list[pa.Array]:
    """Return the texts of some rows at columns of spans, null where there is none."""
    copied, m = np.array(columns, np.int64), len(row)
    offsets, given = np.empty((len(columns), m + 1), np.int32), np.empty((len(columns), m), np.bool_)
    data = np.empty(_text_bytes(found.spans, copied, row), np.uint8)
    _copy(text, found.spans, copied, row, data, offsets, given)
    buffer = pa.py_buffer(data)
    return [
        pa.StringArray.from_buffers(m, pa.py_buffer(ends), buffer, None if has.all() else pa.array(has).buffers()[1])
        for ends, has in zip(offsets, given, strict=True)
    ]


def _given(text: bytes, spans: Sequence[tuple[int, int]]) -> list[dict[str, str | float | None] | None]:
    """Return the attributes that lie in ``text`` at each of n spans; None for an empty one."""
    return [decode_attributes(text[first:end]) if end > first else None for first, end in spans]


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


def _transactions(decoded: Sequence[tuple[int, AcceptedTransaction]], *, producer_fields: bool) -> Transactions:
    row, items = zip(*decoded, strict=True)
    messages = [item.message for item in items]
    fields = {}
    for field, values in zip((*TEXT_COLUMNS, *NUMBER_COLUMNS), zip(*map(_columns, messages), strict=True), strict=True):
        if field.kind is Kind.NUMBER:
            fields[field.name] = pa.array(values, pa.float64())
        else:
            fields[field.name] = _strings(map(_text_of, values) if field.stands_for_text else values)
    event_us, clock_us, minor, base = np.array([*zip(*map(_wholes, items), strict=True)], np.int64)
    attributes = attribute_values([message.attributes for message in messages])
    read = ReadTransactions(np.array(row, np.int64), fields, event_us, clock_us, minor, base, attributes)
    if producer_fields:
        offsets = [(message.event_time.utcoffset() or timedelta()) // _MINUTE for message in messages]
        read = read._replace(
            producer_amount=_strings([item.amount_json.decode() for item in items]),
            producer_offset_min=np.array(offsets, np.int64),
        )
    return read.columns()


_columns: Final = attrgetter(*(field.name for field in (*TEXT_COLUMNS, *NUMBER_COLUMNS)))
_wholes: Final = attrgetter("event_time_us", "clock_us", "amount_minor", "amount_base_minor")


def _text_of(value: str | float | None) -> str | None:
    """Return a text, or that which a number stands for."""
    if not isinstance(value, float):
        return value
    return str(int(value)) if value.is_integer() and abs(value) < _WHOLE_LIMIT else repr(value)


def _strings(values: Iterable[str | None]) -> pa.Array:
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
def _copy(text: Any, spans: Any, columns: Any, rows: Any, data: Any, offsets: Any, given: Any) -> None:
    """Copy the texts of ``rows`` into ``data``, one of ``columns`` behind the other; ``given``: which there are."""
    at = 0
    for number, column in enumerate(columns):
        for k in range(len(rows)):
            first, end = spans[column, rows[k], 0], spans[column, rows[k], 1]
            offsets[number, k] = at
            given[number, k] = first >= 0
            for position in range(first, end):
                data[at] = text[position]
                at += 1
        offsets[number, len(rows)] = at
