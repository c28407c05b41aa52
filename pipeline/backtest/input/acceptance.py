"""Accepted and refused rows of tables, at the speed of columns and with the decoder's own codes and texts.

Rows that are plainly in order are taken as columns. Each of the others is written as the record that a producer would
have sent, and accepted or refused as one: there is no second set of rules, codes and texts.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Final, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.engine.encoding.json_scanner import NO_TIME
from pipeline.engine.records.accept import accept_transactions as accept_records
from pipeline.engine.records.accept import completed
from pipeline.engine.records.columns import Labels, Reject, Transactions
from pipeline.exports.rows import ERROR, VALUE
from pipeline.features.attributes import READ
from pipeline.features.catalogue import ACTIVE
from pipeline.history import table_columns
from pipeline.history.files import SEQUENCE, STAMP
from pipeline.history.mapped_files import RECORD, REFUSED, accept_mapped
from pipeline.learning.label_sources import EVERY_SOURCE, LabelSources
from pipeline.learning.labels import known_number, source_rank
from schemas.codec import decode_label, timestamp_us
from schemas.errors import InvalidMessage
from schemas.fields import READ_FIELDS
from schemas.mapping import Mapper
from schemas.money import RateTable
from schemas.times import US_PER_MS

TRANSACTION_FIELDS: Final = tuple(field.name for field in READ_FIELDS)
"""Fields of a transaction that are read, besides declared attributes."""
LABEL_FIELDS: Final = ("transaction_id", "card_id", "label", "source", "labelled_at")

Rows = TypeVar("Rows", Transactions, Labels)
_LONGEST_WORD: Final = 64
_LONGEST_IDENTIFIER: Final = 256
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
    mapper: Mapper | None = None
    """Maps records of transactions as producers wrote them; None: they wrote the contract's."""

    def records(
        self, values: Sequence[bytes | None], arrived_us: NDArray[np.int64]
    ) -> tuple[Transactions, list[Reject]]:
        """Accept the transactions of n records as the card agent does; ``row`` of each is its record's number.

        Args:
            values: The values, as their producers wrote them.
            arrived_us: Shape (n,), when each arrived, in microseconds since 1970.
        """
        unmapped = dict[int, InvalidMessage]()
        if self.mapper is not None:
            mapped = list[bytes | None]()
            for row, value in enumerate(values):
                try:
                    mapped.append(self.mapper.mapped(value))
                except InvalidMessage as error:
                    # Refused below, as any record without a value.
                    mapped.append(None)
                    unmapped[row] = error
            values = mapped
        rows, rejects = accept_records(values, arrived_us, self.rates, self.future_tolerance_us)
        for number, reject in enumerate(rejects):
            if (why := unmapped.get(reject.row)) is not None:
                rejects[number] = reject._replace(code=why.code, text=str(why))
        return rows, rejects


def accept_transactions(
    table: pa.Table, acceptance: Acceptance, first_row: int = 0
) -> tuple[Transactions, list[Reject]]:
    """The accepted rows of a table, and the others with their reasons.

    Args:
        table: Columns `TRANSACTION_FIELDS`, and `STAMP` and `SEQUENCE` if there are any. Rows that bear bytes of their
            own (`pipeline.exports.rows`) are accepted or refused by these. Or one of
            `pipeline.history.mapped_files.mapped_tables`.
        acceptance: Rules of the rows; if ``recorded``, the sequence becomes their sort key.
        first_row: Number of the table's first row in the input, from which the others are counted.

    Returns:
        The accepted rows in the order of the table, and the refused ones.

    Raises:
        ValueError: ``recorded`` rows have no sequence, a stamp is no time, or rows of an export lack the bytes that a
            mapping reads.
    """
    if {RECORD, REFUSED} <= set(table.column_names):
        return accept_mapped(table, acceptance.rates, first_row)
    found = table_columns.read_table(table, acceptance.rates, acceptance.time_zone, first_row)
    stamp_us, own = _stamps(table, acceptance), _own_bytes(table)
    fast = found.plain & ~own.given & (found.read.event_time_us <= stamp_us + acceptance.future_tolerance_us)
    if not {VALUE, ERROR} <= set(table.column_names):
        # A table's columns have their own names for what they hold.
        acceptance = acceptance._replace(mapper=None)
    elif acceptance.mapper is not None and not own.given.all():
        raise ValueError(
            "this export lacks the bytes that a mapping reads: export the transactions again, with "
            "FRAUD_PIPELINE_MAPPING_FILE set"
        )
    rows, rest = found.read, np.flatnonzero(~fast)
    rejects = list[Reject]()
    if len(rest):
        values = [
            own.values[row].as_py() if own.given[row] else found.record(row, acceptance.rates) for row in rest.tolist()
        ]
        others, rejects = acceptance.records(values, stamp_us[rest])
        numbers = rest[others.row]
        if READ:
            others = _with_columns(others, rows.take(numbers), own.given[numbers])
        rows = completed(rows.take(fast), replace(others, row=first_row + numbers))
        rejects = [reject._replace(row=first_row + int(rest[reject.row])) for reject in rejects]
    if acceptance.recorded:
        rows = replace(rows, key=_sequence(table)[rows.row - first_row])
    return rows, rejects


def _with_columns(others: Transactions, rows: Transactions, own: NDArray[np.bool_]) -> Transactions:
    """Return transactions with the declared attributes that their tables' rows have, but where they have own bytes."""
    if others.attributes is not None and rows.attributes is not None:
        others.attributes[~own] = rows.attributes[~own]
    given = pa.array(own)
    texts = {
        name: pc.if_else(given, column, rows.declared[name])
        for name, column in others.declared.items()
        if name in ACTIVE.texts
    }
    return replace(others, declared={**others.declared, **texts})


def accept_labels(
    table: pa.Table, acceptance: Acceptance, first_row: int = 0, topic: str | None = None
) -> tuple[Labels, list[Reject]]:
    """The accepted rows of a table, and the others with their reasons.

    Args:
        table: Columns `LABEL_FIELDS`, and `STAMP`, `SEQUENCE` and ``fraud_type`` if there are any. Rows that bear bytes
            of their own (`pipeline.exports.rows`) are accepted or refused by these.
        acceptance: Rules of the rows; if ``recorded``, the sequence becomes their sort key.
        first_row: Number of the table's first row in the input, from which the others are counted.
        topic: Name without prefix of the topic that speaks for the rows' sources. None for a file of no topic: all
            sources are believed.

    Returns:
        The accepted rows in the order of the table, and the refused ones.

    Raises:
        ValueError: ``recorded`` rows have no sequence, or a stamp is no time.
    """
    raw = {name: table_columns.column(table, name) for name in LABEL_FIELDS}
    ids, fast = table_columns.texts_within(raw["transaction_id"], 1, _LONGEST_IDENTIFIER)
    cards, fast_cards = table_columns.texts_within(raw["card_id"], 1, _LONGEST_IDENTIFIER)
    words, fast_words = table_columns.texts_within(raw["label"], 1, _LONGEST_WORD)
    sources, fast_sources = table_columns.texts_within(raw["source"], 1, _LONGEST_WORD)
    labelled_us, fast_times = table_columns.times_us(raw["labelled_at"], acceptance.time_zone)
    stamp_us = _stamps(table, acceptance)
    fast &= fast_cards & fast_words & fast_sources & fast_times
    fast &= labelled_us <= stamp_us + acceptance.future_tolerance_us
    own = _own_bytes(table)
    fast &= ~own.given
    if topic is not None:
        fast &= _coded(sources, lambda source: acceptance.sources.allows(topic, source)).astype(np.bool_)
    rejects, names = [], {"transaction_id": ids, "card_id": cards, "label": words, "source": sources}
    for row in np.flatnonzero(~fast).tolist():
        cells = {
            **{name: (text if text[row].is_valid else raw[name])[row].as_py() for name, text in names.items()},
            "labelled_at": table_columns.time_cell(raw["labelled_at"], labelled_us, row),
        }
        record = table_columns.encode({name: cells[name] for name in LABEL_FIELDS if cells[name] is not None})
        try:
            label = decode_label(
                own.values[row].as_py() if own.given[row] else record,
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
        row=np.arange(first_row, first_row + table.num_rows),
        key=_sequence(table) if acceptance.recorded else known_at_us,
        transaction_id=ids,
        card_id=cards,
        source=sources,
        rank=_coded(sources, source_rank),
        known=_coded(words, known_number),
        labelled_at_us=labelled_us,
        known_at_us=known_at_us,
        word=words,
        fraud_type=fraud_types(table),
    )
    return (accepted.take(fast) if rejects else accepted), rejects


def accept_each(
    tables: Iterable[pa.Table],
    accept: Callable[[pa.Table, Acceptance, int], tuple[Rows, list[Reject]]],
    acceptance: Acceptance,
    rejects: list[Reject],
) -> Iterator[Rows]:
    """Yield the accepted rows of each table.

    Args:
        tables: Tables of one input, in its order.
        accept: Called with a table, ``acceptance`` and the number of the table's first row, such as `accept_labels`.
        acceptance: Rules of the rows.
        rejects: Refused rows are appended when their table is read.
    """
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


def fraud_types(table: pa.Table) -> pa.Array:
    """Return the type of each row's fraud as text; null for none."""
    types = table_columns.column(table, "fraud_type").dictionary_encode()
    words = [None if word is None else str(word) for word in types.dictionary.to_pylist()]
    return pa.array(words, pa.string()).take(types.indices)


class _OwnBytes(NamedTuple):
    """Records of a table that are accepted or refused by their own bytes."""

    given: NDArray[np.bool_]
    """Shape (n,): which they are."""
    values: pa.Array


def _own_bytes(table: pa.Table) -> _OwnBytes:
    n = table.num_rows
    # Another table's column "value" may be anything.
    if not {VALUE, ERROR} <= set(table.column_names):
        return _OwnBytes(np.zeros(n, np.bool_), pa.nulls(n, pa.binary()))
    values = table_columns.column(table, VALUE)
    return _OwnBytes(
        ~(table_columns.missing(values) & table_columns.missing(table_columns.column(table, ERROR))), values
    )


def _stamps(table: pa.Table, acceptance: Acceptance) -> NDArray[np.int64]:
    """When each record arrived, in whole milliseconds as Kafka keeps it; `_NO_STAMP` where nothing says so."""
    if STAMP not in table.column_names:
        return np.full(table.num_rows, _NO_STAMP)
    values = table_columns.column(table, STAMP)
    moments, _ = table_columns.times_us(values, acceptance.time_zone)
    missing = table_columns.missing(values)
    no_time = np.flatnonzero((moments == NO_TIME) & ~missing)
    if len(no_time):
        row = int(no_time[0])
        raise ValueError(f"the column {STAMP} holds {values[row].as_py()!r}, which is no time; write RFC 3339")
    return np.where(missing, _NO_STAMP, moments // US_PER_MS * US_PER_MS)


def _sequence(table: pa.Table) -> NDArray[np.int64]:
    values = table_columns.column(table, SEQUENCE)
    if not pa.types.is_integer(values.type) or values.null_count:
        raise ValueError(
            f"a recorded order goes by the column {SEQUENCE}, a whole number in every row: add it to transactions and "
            "labels, or replay by event time"
        )
    return np.asarray(values.cast(pa.int64()).to_numpy())


def _coded(texts: pa.Array, code: Callable[[str], int]) -> NDArray[np.int8]:
    encoded = texts.dictionary_encode()
    codes = np.array([*map(code, encoded.dictionary.to_pylist()), 0], np.int8)
    rows: NDArray[np.int64] = pc.fill_null(encoded.indices, len(codes) - 1).to_numpy()
    return codes[rows]
