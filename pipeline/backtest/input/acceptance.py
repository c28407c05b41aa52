"""Accepted and refused rows, at the speed of columns and with the decoder's own codes and texts.

Rows that are plainly in order are taken as columns. Each of the others is written as the record that a producer would
have sent, and `schemas.codec` decides: there is no second set of rules, codes and texts.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple, TypeVar

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.backtest.input import wire
from pipeline.engine.encoding.json_scanner import NO_TIME
from pipeline.engine.records.accept import counting
from pipeline.engine.records.columns import Labels, Reject, Transactions
from pipeline.exports.rows import ERROR, VALUE
from pipeline.features.attributes import attribute_values
from pipeline.features.clock import hours, weekdays
from pipeline.learning.label_sources import EVERY_SOURCE, LabelSources
from pipeline.learning.labels import KNOWN, known_value, source_rank
from schemas.codec import decode_label, decode_transaction, timestamp_us
from schemas.errors import InvalidMessage
from schemas.messages import Transaction
from schemas.money import RateTable
from schemas.times import US_PER_MS

STAMP: Final = "timestamp"
"""Column of the columnar form: when the record arrived, as Kafka stamps it; absent or null: at its own time."""
SEQUENCE: Final = "sequence"
"""Column of the columnar form: whole number by which a recorded order goes."""
TRANSACTION_FIELDS: Final = (
    "transaction_id", "event_time", "card_id", "merchant_id", "amount", "currency", "transaction_type", "local_time",
)  # fmt: skip
"""Fields of a transaction that are read, besides declared attributes; other columns of the wire contract decide
nothing."""
LABEL_FIELDS: Final = ("transaction_id", "card_id", "label", "source", "labelled_at")

Rows = TypeVar("Rows", Transactions, Labels)
_LONGEST_WORD: Final = 64
_encode = msgspec.json.Encoder(decimal_format="number").encode
_DEFAULTS: Final = {field.name: field.default for field in msgspec.structs.fields(Transaction)}
_NO_STAMP: Final = 2**62


class Acceptance(NamedTuple):
    """The rules for rows, as the card agent's for records."""

    rates: RateTable
    future_tolerance_us: int
    time_zone: str = "UTC"
    """Time zone of times without an offset."""
    recorded: bool = False
    """True if the order goes by the column ``sequence`` and not by times."""
    sources: LabelSources = EVERY_SOURCE
    """Sources that the topics of labels speak for."""


def accept_transactions(
    table: pa.Table, acceptance: Acceptance, first_row: int = 0
) -> tuple[Transactions, list[Reject]]:
    """The accepted rows of ``table`` (`TRANSACTION_FIELDS`, `STAMP`, `SEQUENCE`), and the others with their reasons.

    Rows that bear bytes of their own (`pipeline.exports.rows`) are accepted or refused by these. ``first_row`` is the
    number of its first row. Raises ValueError where ``recorded`` rows have no sequence.
    """
    raw = {name: wire.column(table, name) for name in TRANSACTION_FIELDS}
    ids, fast = wire.identifiers(raw["transaction_id"])
    cards, fast_cards = wire.identifiers(raw["card_id"])
    merchants, fast_merchants = wire.identifiers(raw["merchant_id"])
    event_us, fast_times = wire.times_us(raw["event_time"], acceptance.time_zone)
    currency, fast_currencies = wire.texts(raw["currency"])
    minor, base, fast_amounts = wire.amounts(raw["amount"], currency, acceptance.rates)
    type_names, fast_types = wire.texts(raw["transaction_type"])
    fast_types |= wire.missing(raw["transaction_type"])
    types = pc.fill_null(type_names, _DEFAULTS["transaction_type"])
    local_us, fast_clocks = wire.wall_clock_us(raw["local_time"])
    without_clock = wire.missing(raw["local_time"])
    stamp_us = _stamps(table, acceptance)
    fast &= fast_cards & fast_merchants & fast_times & fast_currencies & fast_amounts & fast_types
    fast &= (minor > 0) & (fast_clocks | without_clock) & (event_us <= stamp_us + acceptance.future_tolerance_us)
    clock_us = np.where(without_clock, event_us, local_us)
    hour, weekday, counts = hours(clock_us), weekdays(clock_us), counting(types)
    texts = {
        "transaction_id": ids, "card_id": cards, "merchant_id": merchants, "currency": currency,
        "transaction_type": type_names,
    }  # fmt: skip
    own = _own_bytes(table)
    fast &= ~own.given
    attributes = wire.attributes(table)
    rejects = []
    for row in np.flatnonzero(~fast).tolist():
        rate = acceptance.rates.currencies.get(currency[row].as_py())
        cells = {
            **_names(texts, raw, row),
            "local_time": raw["local_time"][row].as_py(),
            "event_time": wire.time_cell(raw["event_time"], event_us, row),
            "amount": wire.amount_cell(raw["amount"][row].as_py(), None if rate is None else rate.digits),
        }
        try:
            item = decode_transaction(
                own.record(row, cells, TRANSACTION_FIELDS),
                record_timestamp_us=int(stamp_us[row]),
                future_tolerance_us=acceptance.future_tolerance_us,
                rates=acceptance.rates,
            )
        except InvalidMessage as error:
            rejects.append(Reject("transaction", first_row + row, error.code, str(error)))
            continue
        fast[row] = True
        event_us[row], base[row], counts[row] = item.event_time_us, item.amount_base_minor, item.counts
        hour[row], weekday[row], minor[row] = item.hour, item.weekday, item.amount_minor
        if own.given[row] and (values := attribute_values([item.attributes])) is not None and attributes is not None:
            attributes[row] = values[0]
    accepted = Transactions(
        row=np.arange(first_row, first_row + table.num_rows), key=_keys(table, event_us, acceptance),
        transaction_id=ids,
        card_id=cards, merchant_id=merchants, event_time_us=event_us, currency=currency, amount_minor=minor,
        amount_base_minor=base, transaction_type=types, counts=counts, hour=hour, weekday=weekday,
        attributes=attributes,
    )  # fmt: skip
    return (accepted.take(fast) if rejects else accepted), rejects


def accept_labels(
    table: pa.Table, acceptance: Acceptance, first_row: int = 0, topic: str | None = None
) -> tuple[Labels, list[Reject]]:
    """The accepted rows of ``table`` (`LABEL_FIELDS`, `STAMP`, `SEQUENCE`), and the others with their reasons.

    Rows that bear bytes of their own (`pipeline.exports.rows`) are accepted or refused by these. ``first_row`` is the
    number of its first row. ``topic``, without prefix, speaks for the rows' sources; in a file of no topic all are
    believed. Raises ValueError where ``recorded`` rows have no sequence.
    """
    raw = {name: wire.column(table, name) for name in LABEL_FIELDS}
    ids, fast = wire.identifiers(raw["transaction_id"])
    cards, fast_cards = wire.identifiers(raw["card_id"])
    words, fast_words = wire.identifiers(raw["label"], _LONGEST_WORD)
    sources, fast_sources = wire.identifiers(raw["source"], _LONGEST_WORD)
    labelled_us, fast_times = wire.times_us(raw["labelled_at"], acceptance.time_zone)
    stamp_us = _stamps(table, acceptance)
    fast &= fast_cards & fast_words & fast_sources & fast_times
    fast &= labelled_us <= stamp_us + acceptance.future_tolerance_us
    own = _own_bytes(table)
    fast &= ~own.given
    if topic is not None:
        fast &= _coded(sources, lambda source: acceptance.sources.allows(topic, source)).astype(np.bool_)
    rejects = []
    for row in np.flatnonzero(~fast).tolist():
        cells = {
            **_names({"transaction_id": ids, "card_id": cards, "label": words, "source": sources}, raw, row),
            "labelled_at": wire.time_cell(raw["labelled_at"], labelled_us, row),
        }
        try:
            label = decode_label(
                own.record(row, cells, LABEL_FIELDS),
                record_timestamp_us=int(stamp_us[row]),
                future_tolerance_us=acceptance.future_tolerance_us,
            )
            if topic is not None:
                acceptance.sources.check(topic, label.source)
        except InvalidMessage as error:
            rejects.append(Reject("label", first_row + row, error.code, str(error)))
            continue
        fast[row] = True
        labelled_us[row] = timestamp_us(label.labelled_at)
    known_at_us = np.where(stamp_us == _NO_STAMP, labelled_us, np.maximum(labelled_us, stamp_us))
    accepted = Labels(
        row=np.arange(first_row, first_row + table.num_rows), key=_keys(table, known_at_us, acceptance),
        transaction_id=ids,
        card_id=cards, source=sources, rank=_coded(sources, source_rank),
        known=_coded(words, lambda word: KNOWN.index(known_value(word))), labelled_at_us=labelled_us,
        known_at_us=known_at_us,
    )  # fmt: skip
    return (accepted.take(fast) if rejects else accepted), rejects


def accept_each(
    tables: Iterable[pa.Table],
    accept: Callable[[pa.Table, Acceptance, int], tuple[Rows, list[Reject]]],
    acceptance: Acceptance,
    rejects: list[Reject],
) -> Iterator[Rows]:
    """Yield the accepted rows of each table; reasons of the others go to ``rejects``."""
    first_row = 0
    for table in tables:
        rows, refused = accept(table, acceptance, first_row)
        first_row += table.num_rows
        rejects += refused
        yield rows


def first_reasons(rejects: Iterable[Reject]) -> dict[str, str]:
    """Return the first reason of each code for which a transaction was refused."""
    reasons: dict[str, str] = {}
    for reject in rejects:
        if reject.kind == "transaction":
            reasons.setdefault(reject.code, reject.text)
    return reasons


def reasons_text(reasons: Mapping[str, str]) -> str:
    """Write codes with their reasons.

    >>> reasons_text({"too_old": "It is of 1970.", "not_json": "Send JSON."})
    'too_old (It is of 1970.), not_json (Send JSON.)'
    """
    return ", ".join(f"{code} ({text})" for code, text in reasons.items())


def all_refused(name: str, reasons: Mapping[str, str]) -> str:
    """Return the sentence for a history of which no transaction was accepted."""
    return f"{name}: every transaction was refused: {reasons_text(reasons)}"


class _OwnBytes(NamedTuple):
    """Records of a table that are accepted or refused by their own bytes."""

    given: NDArray[np.bool_]
    """Shape (n,): which they are."""
    values: pa.Array

    def record(self, row: int, cells: Mapping[str, Any], fields: Sequence[str]) -> bytes | None:
        """The bytes of a row: its own, or as a producer would write its cells."""
        if not self.given[row]:
            return _record(cells, fields)
        value: bytes | None = self.values[row].as_py()
        return value


def _own_bytes(table: pa.Table) -> _OwnBytes:
    n = table.num_rows
    # Another table's column "value" may be anything.
    if not {VALUE, ERROR} <= set(table.column_names):
        return _OwnBytes(np.zeros(n, np.bool_), pa.nulls(n, pa.binary()))
    values = wire.column(table, VALUE)
    return _OwnBytes(~(wire.missing(values) & wire.missing(wire.column(table, ERROR))), values)


def _stamps(table: pa.Table, acceptance: Acceptance) -> NDArray[np.int64]:
    """When each record arrived, in whole milliseconds as Kafka keeps it; `_NO_STAMP` where nothing says so."""
    if STAMP not in table.column_names:
        return np.full(table.num_rows, _NO_STAMP)
    values = wire.column(table, STAMP)
    moments, _ = wire.times_us(values, acceptance.time_zone)
    missing = wire.missing(values)
    no_time = np.flatnonzero((moments == NO_TIME) & ~missing)
    if len(no_time):
        row = int(no_time[0])
        raise ValueError(f"the column {STAMP} holds {values[row].as_py()!r}, which is no time; write RFC 3339")
    return np.where(missing, _NO_STAMP, moments // US_PER_MS * US_PER_MS)


def _keys(table: pa.Table, times_us: NDArray[np.int64], acceptance: Acceptance) -> NDArray[np.int64]:
    if not acceptance.recorded:
        return times_us
    values = wire.column(table, SEQUENCE)
    if not pa.types.is_integer(values.type) or values.null_count:
        raise ValueError(
            f"a recorded order goes by the column {SEQUENCE}, a whole number in every row: add it to transactions and "
            "labels, or replay by event time"
        )
    return np.asarray(values.cast(pa.int64()).to_numpy())


def _names(names: Mapping[str, pa.Array], raw: Mapping[str, pa.Array], row: int) -> dict[str, Any]:
    """Identifiers as a producer would write them: whole numbers as text, else what the column holds."""
    return {
        name: texts[row].as_py() if texts[row].is_valid else raw[name][row].as_py() for name, texts in names.items()
    }


def _record(cells: Mapping[str, Any], fields: Sequence[str]) -> bytes:
    """A row as a producer would write it; what is missing is absent.

    In the contract's order of fields: of several that are wrong the decoder tells the first.
    """
    return _encode({name: cells[name] for name in fields if cells[name] is not None})


def _coded(texts: pa.Array, code: Callable[[str], int]) -> NDArray[np.int8]:
    encoded = texts.dictionary_encode()
    codes = np.array([*map(code, encoded.dictionary.to_pylist()), 0], np.int8)
    rows: NDArray[np.int64] = pc.fill_null(encoded.indices, len(codes) - 1).to_numpy()
    return codes[rows]
