"""Records of ``transactions`` and ``labels`` as the columns of a replay, accepted and refused by the decoder itself."""

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple, TypeVar

import msgspec
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.backtest.accept import Acceptance, counting
from pipeline.backtest.merged import Part
from pipeline.backtest.plain import read_plain
from pipeline.engine.columns import Labels, Reject, Transactions
from pipeline.features.clock import hours, weekdays
from pipeline.kafka.fold import RecordColumns
from pipeline.learning.labels import KNOWN, known_value, source_rank
from schemas.codec import decode_label, decode_transaction, timestamp_us
from schemas.errors import InvalidMessage
from schemas.messages import Label

_US_PER_MS: Final = 1_000
T = TypeVar("T")


class _Stated(msgspec.Struct, gc=False):
    """What the decoder's answer does not repeat of a transaction."""

    currency: str
    transaction_type: str = "purchase"


_decode_stated = msgspec.json.Decoder(_Stated).decode


class Numbering(NamedTuple):
    """Names a record of a topic by one number, so that rows of all partitions can stand in one column."""

    partitions: int

    def row(self, partition: int, offset: int) -> int:
        """The number of a record."""
        return offset * self.partitions + partition

    def place(self, row: int) -> tuple[int, int]:
        """(partition, offset) of a row."""
        offset, partition = divmod(row, self.partitions)
        return partition, offset


def transactions_of(
    read: RecordColumns, rules: Acceptance, numbering: Numbering, rejects: list[Reject]
) -> Part[Transactions]:
    """Accepted transactions; what is refused goes to ``rejects``, as its dead letter tells it."""
    arrived_us = read.timestamp_ms * _US_PER_MS
    found = read_plain(read.values, rules.rates)
    plain = np.flatnonzero(found.plain)
    in_time = found.event_time_us <= arrived_us[plain] + rules.future_tolerance_us
    rows = Transactions(
        row=_rows(read, plain, numbering),
        key=found.event_time_us,
        transaction_id=found.transaction_id,
        card_id=found.card_id,
        merchant_id=found.merchant_id,
        event_time_us=found.event_time_us,
        currency=found.currency,
        amount_minor=found.amount_minor,
        amount_base_minor=found.amount_base_minor,
        transaction_type=found.transaction_type,
        counts=counting(found.transaction_type),
        hour=hours(found.clock_us),
        weekday=weekdays(found.clock_us),
    )
    kept = plain
    if len(plain) < len(read.values) or not in_time.all():
        kept = plain[in_time]
        others = np.setdiff1d(np.arange(len(read.values)), kept, assume_unique=True)
        decoded, accepted = _decoded(read, others, rules, numbering, rejects)
        rows = Transactions.concat([rows if in_time.all() else rows.take(in_time), decoded])
        kept = np.concatenate([kept, accepted])
        order = np.argsort(kept)
        rows, kept = rows.take(order), kept[order]
    return Part(rows, arrived_us[kept])


def labels_of(
    read: RecordColumns,
    rules: Acceptance,
    numbering: Numbering,
    rejects: list[Reject],
    told: Callable[[Sequence[Label], Sequence[int]], None],
) -> Part[Labels]:
    """Accepted labels; ``told`` is given them, each with when it became known, in microseconds since 1970."""
    kept, items = _accepted(
        read,
        np.arange(len(read.values)),
        "label",
        lambda value, arrived_us: decode_label(
            value, record_timestamp_us=arrived_us, future_tolerance_us=rules.future_tolerance_us
        ),
        numbering,
        rejects,
    )
    labelled_at_us = _numbers([timestamp_us(item.labelled_at) for item in items])
    arrived_us = read.timestamp_ms[kept] * _US_PER_MS
    known_at_us = np.maximum(labelled_at_us, arrived_us)
    told(items, known_at_us.tolist())
    rows = Labels(
        row=_rows(read, kept, numbering),
        key=known_at_us,
        transaction_id=_texts([item.transaction_id for item in items]),
        card_id=_texts([item.card_id for item in items]),
        source=_texts([item.source for item in items]),
        rank=np.array([source_rank(item.source) for item in items], np.int8),
        known=np.array([KNOWN.index(known_value(item.label)) for item in items], np.int8),
        labelled_at_us=labelled_at_us,
        known_at_us=known_at_us,
    )
    return Part(rows, arrived_us)


def _decoded(
    read: RecordColumns, of: NDArray[np.int64], rules: Acceptance, numbering: Numbering, rejects: list[Reject]
) -> tuple[Transactions, NDArray[np.int64]]:
    """The records of numbers ``of`` by the decoder itself; which of them it accepted."""
    kept, items = _accepted(
        read,
        of,
        "transaction",
        lambda value, arrived_us: decode_transaction(
            value,
            record_timestamp_us=arrived_us,
            future_tolerance_us=rules.future_tolerance_us,
            rates=rules.rates,
        ),
        numbering,
        rejects,
    )
    stated = [_decode_stated(read.values[row] or b"") for row in kept.tolist()]
    event_time_us = _numbers([item.event_time_us for item in items])
    rows = Transactions(
        row=_rows(read, kept, numbering),
        key=event_time_us,
        transaction_id=_texts([item.transaction_id for item in items]),
        card_id=_texts([item.card_id for item in items]),
        merchant_id=_texts([item.merchant_id for item in items]),
        event_time_us=event_time_us,
        currency=_texts([one.currency for one in stated]),
        amount_minor=_numbers([item.amount_minor for item in items]),
        amount_base_minor=_numbers([item.amount_base_minor for item in items]),
        transaction_type=_texts([one.transaction_type for one in stated]),
        counts=np.array([item.counts for item in items], np.bool_),
        hour=np.array([item.hour for item in items], np.float64),
        weekday=np.array([item.weekday for item in items], np.float64),
    )
    return rows, kept


def _accepted(
    read: RecordColumns,
    of: NDArray[np.int64],
    kind: str,
    decode: Callable[[bytes | None, int], T],
    numbering: Numbering,
    rejects: list[Reject],
) -> tuple[NDArray[np.int64], list[T]]:
    kept, items = [], []
    arrived_us = (read.timestamp_ms[of] * _US_PER_MS).tolist()
    for row, at_us in zip(of.tolist(), arrived_us, strict=True):
        try:
            items.append(decode(read.values[row], at_us))
        except InvalidMessage as error:
            number = numbering.row(read.partition, int(read.offset[row]))
            rejects.append(Reject(kind, number, error.code, str(error)))
            continue
        kept.append(row)
    return _numbers(kept), items


def _rows(read: RecordColumns, of: NDArray[np.int64], numbering: Numbering) -> NDArray[np.int64]:
    return read.offset[of] * numbering.partitions + read.partition


def _numbers(values: Sequence[int]) -> NDArray[np.int64]:
    return np.array(values, np.int64)


def _texts(values: Sequence[str]) -> pa.Array:
    return pa.array(values, pa.string())
