"""Records of ``transactions`` and ``labels`` as the columns of a replay, accepted and refused by the decoder itself."""

from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple, TypeVar

import msgspec
import numpy as np
import pyarrow as pa

from pipeline.backtest.accept import Acceptance
from pipeline.backtest.columns import Labels, Reject, Transactions
from pipeline.backtest.merged import Part
from pipeline.backtest.resolved import KNOWN
from pipeline.learning.labels import known_value, source_rank
from schemas.codec import decode_label, decode_transaction, timestamp_us
from schemas.errors import InvalidMessage
from schemas.messages import Label
from schemas.records import Record

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
    records: Sequence[Record], rules: Acceptance, numbering: Numbering, rejects: list[Reject]
) -> Part[Transactions]:
    """Accepted transactions; what is refused goes to ``rejects``, as its dead letter tells it."""
    kept, items = _accepted(
        records,
        "transaction",
        lambda record: decode_transaction(
            record.value,
            record_timestamp_us=record.timestamp_ms * _US_PER_MS,
            future_tolerance_us=rules.future_tolerance_us,
            rates=rules.rates,
        ),
        numbering,
        rejects,
    )
    stated = [_decode_stated(record.value or b"") for record in kept]
    event_time_us = _numbers([item.event_time_us for item in items])
    rows = Transactions(
        row=_numbers([numbering.row(record.partition, record.offset) for record in kept]),
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
    return Part(rows, _arrived_us(kept))


def labels_of(
    records: Sequence[Record],
    rules: Acceptance,
    numbering: Numbering,
    rejects: list[Reject],
    told: Callable[[Sequence[Label], Sequence[int]], None],
) -> Part[Labels]:
    """Accepted labels; ``told`` is given them, each with when it became known, in microseconds since 1970."""
    kept, items = _accepted(
        records,
        "label",
        lambda record: decode_label(
            record.value,
            record_timestamp_us=record.timestamp_ms * _US_PER_MS,
            future_tolerance_us=rules.future_tolerance_us,
        ),
        numbering,
        rejects,
    )
    labelled_at_us = _numbers([timestamp_us(item.labelled_at) for item in items])
    known_at_us = np.maximum(labelled_at_us, _arrived_us(kept))
    told(items, known_at_us.tolist())
    rows = Labels(
        row=_numbers([numbering.row(record.partition, record.offset) for record in kept]),
        key=known_at_us,
        transaction_id=_texts([item.transaction_id for item in items]),
        card_id=_texts([item.card_id for item in items]),
        source=_texts([item.source for item in items]),
        rank=np.array([source_rank(item.source) for item in items], np.int8),
        known=np.array([KNOWN.index(known_value(item.label)) for item in items], np.int8),
        labelled_at_us=labelled_at_us,
        known_at_us=known_at_us,
    )
    return Part(rows, _arrived_us(kept))


def _accepted(
    records: Sequence[Record],
    kind: str,
    decode: Callable[[Record], T],
    numbering: Numbering,
    rejects: list[Reject],
) -> tuple[list[Record], list[T]]:
    kept, items = [], []
    for record in records:
        try:
            items.append(decode(record))
        except InvalidMessage as error:
            rejects.append(Reject(kind, numbering.row(record.partition, record.offset), error.code, str(error)))
            continue
        kept.append(record)
    return kept, items


def _arrived_us(records: Sequence[Record]) -> Any:
    return _numbers([record.timestamp_ms for record in records]) * _US_PER_MS


def _numbers(values: Sequence[int]) -> Any:
    return np.array(values, np.int64)


def _texts(values: Sequence[str]) -> pa.Array:
    return pa.array(values, pa.string())
