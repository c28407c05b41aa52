"""The one acceptance of transactions and labels: by the rules of `schemas.codec`, into the same columns.

Whatever holds transactions has a reader that finds in columns what is written plainly, in narrower limits than the
decoder's: `read_fast_path` in records, `pipeline.backtest.input.acceptance` in tables. The decoder itself reads each of
the others. `transaction_columns` makes the columns of both.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from operator import attrgetter
from typing import Final, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.engine.encoding.amounts import rate_terms, read_amounts
from pipeline.engine.encoding.block_writing import copied_texts
from pipeline.engine.encoding.json_scanner import AMOUNT, ATTRIBUTES, CURRENCY, SPANS, ScanResult, scan
from pipeline.engine.records.columns import Labels, Reject, Transactions, no_labels
from pipeline.features.attributes import READ, AttributeColumns, attribute_columns, decode_attributes, no_attributes
from pipeline.features.clock import hours, weekdays
from pipeline.learning.labels import known_number, source_rank
from schemas.codec import MAX_LABEL_BYTES, AcceptedTransaction, decode_label, decode_transaction, timestamp_us
from schemas.errors import InvalidMessage
from schemas.fields import TEXT_COLUMNS
from schemas.messages import Label
from schemas.money import RateTable
from schemas.records import Record

T = TypeVar("T")

_SPANS_READ: Final = tuple(SPANS.index(field.name) for field in TEXT_COLUMNS)
COUNTING_TYPES: Final = pa.array(["purchase", "cash"])
"""Types of transaction that enter windows."""
_MINUTE: Final = timedelta(minutes=1)
_WHOLE_LIMIT: Final = 2.0**53


def transaction_columns(
    row: NDArray[np.int64],
    fields: Mapping[str, pa.Array],
    event_time_us: NDArray[np.int64],
    clock_us: NDArray[np.int64],
    amounts: tuple[NDArray[np.int64], NDArray[np.int64]],
    attributes: AttributeColumns,
) -> Transactions:
    """Return n transactions as kernels take them, in the order in which a reader found them.

    Args:
        row: Shape (n,): number of each in the input.
        fields: Columns of `TEXT_COLUMNS` by name, null for no value.
        event_time_us: Shape (n,).
        clock_us: Shape (n,): local time, in microseconds since 1970.
        amounts: Minor units of each one's currency, and of the base currency; shape (n,).
        attributes: Those that are declared.
    """
    named = {name: column for name, column in fields.items() if name in Transactions.__dataclass_fields__}
    return Transactions(
        row=row,
        key=event_time_us,
        event_time_us=event_time_us,
        amount_minor=amounts[0],
        amount_base_minor=amounts[1],
        counts=pc.is_in(fields["transaction_type"], COUNTING_TYPES).to_numpy(zero_copy_only=False),
        hour=hours(clock_us),
        weekday=weekdays(clock_us),
        attributes=attributes.numbers,
        declared={name: column for name, column in fields.items() if name not in named} | attributes.texts,
        **named,
    )


def arrivals_us(records: Sequence[Record]) -> NDArray[np.int64]:
    """Return when each of n records arrived, in microseconds since 1970; shape (n,)."""
    return np.array([record.arrived_us for record in records], np.int64)


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
        known=np.array([known_number(label.label) for label in labels], np.int8),
        labelled_at_us=labelled_at_us,
        known_at_us=known_at_us,
        word=_strings([label.label for label in labels]),
        fraud_type=_strings([label.fraud_type for label in labels]),
    )


def read_fast_path(
    values: Sequence[bytes | None], latest_us: NDArray[np.int64], rates: RateTable, *, producer_fields: bool = False
) -> tuple[NDArray[np.bool_], Transactions]:
    """Read the records that compiled code understands and that the decoder would accept.

    ``latest_us`` is the latest event time that each may have; all else is as in `accept_transactions`. Return which of
    the n records the fast path takes, and their transactions; ``row`` is the record's number.
    """
    found, n = scan(values), len(values)
    on_fast_path, minor, base = found.on_fast_path, np.empty(n, np.int64), np.empty(n, np.int64)
    on_fast_path &= found.event_time_us <= latest_us
    read_amounts(
        np.frombuffer(found.text, np.uint8), found.spans[CURRENCY], rate_terms(rates), found.amount, found.decimals,
        on_fast_path, minor, base,
    )  # fmt: skip
    row = np.flatnonzero(on_fast_path)
    texts = _texts(found, row, [*_SPANS_READ, *([AMOUNT] if producer_fields else [])])
    fields = {field.name: column for field, column in zip(TEXT_COLUMNS, texts, strict=False)}
    event_us, clock_us = found.event_time_us, found.clock_us
    if len(row) < n:
        event_us, clock_us, minor, base = event_us[row], clock_us[row], minor[row], base[row]
    given = _given(found.text, found.spans[ATTRIBUTES][row].tolist()) if READ else None
    attributes = no_attributes(len(row)) if given is None else attribute_columns(given)
    read = transaction_columns(row, fields, event_us, clock_us, (minor, base), attributes)
    if producer_fields:
        read = replace(read, producer_amount=texts[-1], producer_offset_min=found.offset_min[row])
    return on_fast_path, read


def _texts(found: ScanResult, row: NDArray[np.int64], columns: Sequence[int]) -> list[pa.Array]:
    """Return the texts of some rows at columns of spans, null where there is none."""
    spans, m = found.spans[np.array(columns, np.intp)[:, np.newaxis], row], len(row)
    firsts = spans[:, :, 0]
    lengths, given = (spans[:, :, 1] - firsts).astype(np.int32), firsts >= 0
    complete: NDArray[np.bool_] = np.logical_and.reduce(given, axis=1)
    data = pa.py_buffer(copied_texts(found.text, firsts, lengths))
    ends = np.zeros(lengths.size + 1, np.int32)
    lengths.cumsum(out=ends[1:])
    return [
        pa.StringArray.from_buffers(
            m, pa.py_buffer(ends[k * m : k * m + m + 1]), data, None if complete[k] else pa.array(given[k]).buffers()[1]
        )
        for k in range(len(columns))
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
    fields = {
        field.name: _strings(map(text_of, values) if field.stands_for_text else values)
        for field, values in zip(TEXT_COLUMNS, zip(*map(_columns, messages), strict=True), strict=True)
    }
    event_us, clock_us, minor, base = np.array([*zip(*map(_wholes, items), strict=True)], np.int64)
    attributes = attribute_columns([message.attributes for message in messages])
    read = transaction_columns(np.array(row, np.int64), fields, event_us, clock_us, (minor, base), attributes)
    if producer_fields:
        offsets = [(message.event_time.utcoffset() or timedelta()) // _MINUTE for message in messages]
        read = replace(
            read,
            producer_amount=_strings([item.amount_json.decode() for item in items]),
            producer_offset_min=np.array(offsets, np.int64),
        )
    return read


_columns: Final = attrgetter(*(field.name for field in TEXT_COLUMNS))
_wholes: Final = attrgetter("event_time_us", "clock_us", "amount_minor", "amount_base_minor")


def text_of(value: str | float | None) -> str | None:
    """Return a text, or that which a number stands for."""
    if not isinstance(value, float):
        return value
    return str(int(value)) if value.is_integer() and abs(value) < _WHOLE_LIMIT else repr(value)


def _strings(values: Iterable[str | None]) -> pa.Array:
    return pa.array(values, pa.string())
