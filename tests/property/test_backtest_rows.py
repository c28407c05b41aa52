"""Rows of columns are accepted, refused and converted exactly as the decoder does records of the same content."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import msgspec
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.backtest.input.acceptance import Acceptance, accept_labels, accept_transactions
from pipeline.engine.records.columns import Reject, digest_keys, identities, name_keys, span_keys, text_buffers
from pipeline.features.xxh3 import transaction_hash
from pipeline.learning.labels import KNOWN, SOURCE_RANK, known_value, source_rank
from schemas.codec import CODES, decode_label, decode_transaction, timestamp_us
from schemas.errors import InvalidMessage
from schemas.messages import Label, Transaction
from tests.contract.records import RATES, hour_and_weekday
from tests.reference.identities import transaction_digest

TOLERANCE_US = 300_000_000
NOW = datetime(2024, 3, 1, 12, tzinfo=UTC)
RULES = Acceptance(RATES, TOLERANCE_US)
NOT_OF_ROWS = {"null_value", "too_large", "not_utf8", "not_json", "too_deep", "too_many_fields", "wrong_type"}
"""Codes of bytes that a row of typed columns cannot be."""

identifiers = st.one_of(st.text(max_size=6), st.sampled_from(("", "x" * 256, "x" * 257, "é", "😀")), st.none())
microseconds = st.integers(0, 130 * 365 * 86_400 * 10**6)
days = microseconds.map(lambda us: datetime(1980, 1, 1, tzinfo=UTC) + timedelta(microseconds=us))
times = st.one_of(
    days.map(datetime.isoformat),
    st.integers(-400, 400).map(lambda seconds: (NOW + timedelta(seconds=seconds)).isoformat()),
    st.sampled_from(
        (
            None, "", "now", "2024-02-30T00:00:00Z", "2024-02-29T23:59:60Z", "2024-02-29T24:00:00Z",
            "2024-02-29T00:00:00.1234567Z", "2024-02-29T00:00:00z", "2024-02-29t00:00:00Z", "2024-02-29 00:00:00Z",
            "2024-02-29T00:00:00+14:00", "2024-02-29T00:00:00-23:59", "2024-02-29T00:00:00+24:00",
            "2024-02-29T00:00:00+01", "2024-02-29T00:00Z", "2024-02-29T00:00:00.5-00:00", "9999-12-31T23:59:59Z",
            "0001-01-01T00:00:00Z", "2024-02-29",
        )
    ),
)  # fmt: skip
amounts = st.one_of(
    st.integers(0, 10**9).map(lambda minor: str(Decimal(minor) / 100)),
    st.decimals(allow_nan=True, allow_infinity=True).map(str),
    st.floats().map(repr),
    st.sampled_from(
        (
            None, "", "0", "0.00", "00.1", "1.", ".5", "+1", "-1", "-0", "1_000", "1e3", "1E-2", "1e400", "0.01",
            "0.001", "1234567890123456.78", "99999999999.99", "100000000000.00", "100000000000.01", "1.2300", "1.2345",
            "1.10000",
        )
    ),
)  # fmt: skip
currencies = st.sampled_from((*sorted(RATES.currencies), "XXX", "eur", "EURO", "", None))
types = st.sampled_from(("purchase", "cash", "refund", "reversal", "verification", "other", "", None))
clocks = st.one_of(
    st.none(),
    days.map(lambda at: at.replace(tzinfo=None).isoformat()),
    st.sampled_from(
        (
            "", "noon", "2024-02-29T08:30", "2024-02-29T08:30:00+05:00", "2024-02-29T24:00:00", "2024-02-29t08:30:00",
            "2024-02-29 08:30:00.250", "2024-02-30T08:30:00", "20240229T083000", "0001-01-01T00:00:00",
        )
    ),
)  # fmt: skip
stamps_us = st.one_of(st.none(), st.integers(-600, 600).map(lambda s: timestamp_us(NOW) + s * 1_000_000 + 123))
transactions = st.fixed_dictionaries(
    {
        "transaction_id": identifiers, "event_time": times, "card_id": identifiers, "merchant_id": identifiers,
        "amount": amounts, "currency": currencies, "transaction_type": types, "local_time": clocks,
    }
)  # fmt: skip
words = st.text(max_size=3)
labels = st.fixed_dictionaries(
    {
        "transaction_id": identifiers, "card_id": identifiers,
        "label": st.one_of(st.sampled_from(("fraud", "legitimate", "disputed", "", "x" * 65, None)), words),
        "source": st.one_of(st.sampled_from((*SOURCE_RANK, "", "x" * 64, None)), words),
        "labelled_at": times,
    }
)  # fmt: skip


def record(kind: type[Transaction | Label], fields: dict[str, Any]) -> bytes:
    """In the contract's order of fields, of which the decoder tells the first that is wrong."""
    names = [name for name in kind.__struct_fields__ if fields.get(name) is not None]
    return msgspec.json.encode({name: fields[name] for name in names})


def arrival_us(stamp_us: int | None) -> int:
    return 2**62 if stamp_us is None else stamp_us // 1_000 * 1_000


def table(rows: list[dict[str, Any]], stamps: list[int | None]) -> pa.Table:
    columns = {name: pa.array([row[name] for row in rows], pa.string()) for name in rows[0]}
    return pa.table({**columns, "timestamp": pa.array(stamps, pa.timestamp("us", "UTC"))})


def converted_transaction(fields: dict[str, Any], stamp_us: int | None, row: int) -> tuple[Any, ...]:
    """What the decoder makes of it, or the reject."""
    try:
        value = record(Transaction, fields)
        item = decode_transaction(
            value,
            record_timestamp_us=arrival_us(stamp_us),
            future_tolerance_us=TOLERANCE_US,
            rates=RATES,
        )
    except InvalidMessage as error:
        return Reject("transaction", row, error.code, str(error))
    reported = msgspec.json.decode(value, type=Transaction)
    minor = RATES.currencies[reported.currency].to_minor(reported.amount)
    names = (
        reported.transaction_id,
        reported.card_id,
        reported.merchant_id,
        reported.currency,
        reported.transaction_type,
    )
    return (
        row,
        *names,
        item.event_time_us,
        minor,
        item.amount_base_minor,
        reported.transaction_type in ("purchase", "cash"),
        *hour_and_weekday(item),
    )


@settings(max_examples=60)
@given(st.lists(st.tuples(transactions, stamps_us), min_size=1, max_size=8))
def test_transactions_are_those_of_the_decoder(rows: list[tuple[dict[str, Any], int | None]]) -> None:
    fields, stamps = [row for row, _ in rows], [stamp for _, stamp in rows]
    accepted, rejects = accept_transactions(table(fields, stamps), RULES, 100)
    found = [
        *zip(
            accepted.row.tolist(), accepted.transaction_id.to_pylist(), accepted.card_id.to_pylist(),
            accepted.merchant_id.to_pylist(), accepted.currency.to_pylist(), accepted.transaction_type.to_pylist(),
            accepted.event_time_us.tolist(), accepted.amount_minor.tolist(), accepted.amount_base_minor.tolist(),
            accepted.counts.tolist(), accepted.hour.tolist(), accepted.weekday.tolist(), strict=True,
        ),
        *rejects,
    ]  # fmt: skip
    expected = [converted_transaction(row, stamp, 100 + i) for i, (row, stamp) in enumerate(rows)]
    assert sorted(map(repr, found)) == sorted(map(repr, expected))
    assert accepted.key.tolist() == accepted.event_time_us.tolist()


@settings(max_examples=60)
@given(st.lists(st.tuples(labels, stamps_us), min_size=1, max_size=8))
def test_labels_are_those_of_the_decoder(rows: list[tuple[dict[str, Any], int | None]]) -> None:
    accepted, rejects = accept_labels(table([row for row, _ in rows], [stamp for _, stamp in rows]), RULES)
    found: list[Any] = [
        *zip(
            accepted.row.tolist(), accepted.transaction_id.to_pylist(), accepted.card_id.to_pylist(),
            accepted.source.to_pylist(), accepted.rank.tolist(), [KNOWN[known] for known in accepted.known.tolist()],
            accepted.labelled_at_us.tolist(), accepted.known_at_us.tolist(), strict=True,
        ),
        *rejects,
    ]  # fmt: skip
    expected: list[Any] = []
    for row, (fields, stamp_us) in enumerate(rows):
        arrived_us = arrival_us(stamp_us)
        try:
            label = decode_label(
                record(Label, fields), record_timestamp_us=arrived_us, future_tolerance_us=TOLERANCE_US
            )
        except InvalidMessage as error:
            expected.append(Reject("label", row, error.code, str(error)))
            continue
        labelled_us = timestamp_us(label.labelled_at)
        known_at_us = labelled_us if stamp_us is None else max(labelled_us, arrived_us)
        ranked = (label.source, source_rank(label.source), known_value(label.label))
        expected.append((row, label.transaction_id, label.card_id, *ranked, labelled_us, known_at_us))
    assert sorted(map(repr, found)) == sorted(map(repr, expected))


FINE = {
    "transaction_id": "t", "event_time": NOW.isoformat(), "card_id": "c", "merchant_id": "m", "amount": "1.23",
    "currency": "EUR", "transaction_type": None, "local_time": None,
}  # fmt: skip
LABEL = {"transaction_id": "t", "card_id": "c", "label": "fraud", "source": "analyst", "labelled_at": NOW.isoformat()}


def test_every_code_that_rows_can_have_is_given() -> None:
    changes: list[dict[str, Any]] = [
        {"amount": None}, {"currency": "XXX"}, {"amount": "-1"}, {"amount": "NaN"}, {"amount": "1e30"},
        {"amount": "1.234"}, {"amount": "0"}, {"event_time": "1980-01-01T00:00:00Z"}, {"card_id": ""},
        {"event_time": (NOW + timedelta(hours=1)).isoformat()},
    ]  # fmt: skip
    stamps: list[int | None] = [timestamp_us(NOW)] * len(changes)
    accepted, rejects = accept_transactions(table([{**FINE, **change} for change in changes], stamps), RULES)
    reported = [{"labelled_at": (NOW + timedelta(hours=1)).isoformat()}, {"labelled_at": "1980-01-01T00:00:00Z"}]
    kept, more = accept_labels(table([{**LABEL, **change} for change in reported], stamps[:2]), RULES)
    assert len(accepted) == len(kept) == 0
    assert {reject.code for reject in [*rejects, *more]} == CODES - NOT_OF_ROWS


def typed(**columns: Any) -> pa.Table:
    """One fine row, with some columns of other types."""
    return pa.table({**{name: [value] for name, value in FINE.items() if value is not None}, **columns})


@pytest.mark.parametrize(
    ("amount", "minor"),
    [
        (pa.array([12.34]), 1234),
        (pa.array([12.340000000000002]), 1234),
        (pa.array([0.1 + 0.2]), 30),
        (pa.array([1.005]), "amount_too_many_decimals"),
        (pa.array([float("nan")]), "amount_not_finite"),
        (pa.array([float("-inf")]), "amount_not_finite"),
        (pa.array([-0.5]), "amount_negative"),
        (pa.array([1e300]), "amount_too_large"),
        (pa.array([3], pa.int16()), 300),
        (pa.array([Decimal("12.3400")]), 1234),
        (pa.array([Decimal("12.34000000")]), 1234),
        (pa.array([Decimal("12.34000001")]), "amount_too_many_decimals"),
        (pa.array([True]), "wrong_type"),
        (pa.array([None], pa.float64()), "missing_field"),
    ],
)
def test_amounts_of_other_types(amount: pa.Array, minor: int | str) -> None:
    accepted, rejects = accept_transactions(typed(amount=amount), RULES)
    found = accepted.amount_minor.tolist() or [reject.code for reject in rejects]
    assert found == [minor]


def test_identifiers_may_be_numbers_and_dictionaries() -> None:
    cards = pa.array(["c", "c"]).dictionary_encode()[:1]
    accepted, rejects = accept_transactions(typed(transaction_id=pa.array([7]), card_id=cards), RULES)
    assert (accepted.transaction_id.to_pylist(), accepted.card_id.to_pylist(), rejects) == (["7"], ["c"], [])
    # Though the row must be shown to the decoder for another reason.
    shown = typed(transaction_id=pa.array([7]), transaction_type=pa.array([3]), amount=pa.array(["1e1"]))
    accepted, rejects = accept_transactions(shown, RULES)
    assert (accepted.transaction_id.to_pylist(), accepted.transaction_type.to_pylist(), rejects) == (["7"], ["3"], [])
    large = typed(
        card_id=pa.array(["c"], pa.large_string()), event_time=pa.array([FINE["event_time"]], pa.large_string())
    )
    accepted, rejects = accept_transactions(large, RULES)
    assert (accepted.card_id.to_pylist(), rejects) == (["c"], [])
    _, rejects = accept_transactions(typed(transaction_id=pa.array([7.5])), RULES)
    assert [reject.code for reject in rejects] == ["wrong_type"]


@pytest.mark.parametrize("kind", ["timestamp", "text"])
def test_times_without_an_offset_are_of_the_time_zone(kind: str) -> None:
    naive = pd.Timestamp("2024-07-01 10:00:00.5")
    times = pa.array([naive.to_pydatetime()]) if kind == "timestamp" else pa.array([str(naive)])
    accepted, _ = accept_transactions(typed(event_time=times), RULES._replace(time_zone="Europe/Brussels"))
    assert accepted.event_time_us.tolist() == [timestamp_us(datetime(2024, 7, 1, 8, 0, 0, 500_000, tzinfo=UTC))]
    # Though the row must be shown to the decoder for another reason.
    other = typed(event_time=times, amount=pa.array(["1e1"]))
    again, rejects = accept_transactions(other, RULES._replace(time_zone="Europe/Brussels"))
    assert (again.event_time_us.tolist(), rejects) == (accepted.event_time_us.tolist(), [])


def test_times_of_a_column_in_another_zone_are_the_same_instants() -> None:
    at = datetime(2024, 7, 1, 10, 0, 0, 500_000, tzinfo=UTC)
    times = pa.array([at], pa.timestamp("us", "Asia/Kolkata"))
    accepted, _ = accept_transactions(typed(event_time=times), RULES)
    assert accepted.event_time_us.tolist() == [timestamp_us(at)]


def test_nanoseconds_are_cut_off_and_times_out_of_reach_are_refused() -> None:
    times = pa.array(np.array(["2024-07-01T10:00:00.123456789"], "datetime64[ns]")).cast(pa.timestamp("ns", "UTC"))
    accepted, _ = accept_transactions(typed(event_time=times), RULES)
    assert accepted.event_time_us.tolist() == [timestamp_us(datetime(2024, 7, 1, 10, 0, 0, 123_456, tzinfo=UTC))]
    far = pa.array([2**62], pa.int64()).cast(pa.timestamp("us", "UTC"))
    _, rejects = accept_transactions(typed(event_time=far), RULES)
    assert [reject.code for reject in rejects] == ["event_time_impossible"]


def test_an_arrival_that_is_no_time_is_an_error_of_the_file() -> None:
    with pytest.raises(ValueError, match="timestamp holds 'noon'"):
        accept_transactions(typed(timestamp=pa.array(["noon"])), RULES)


@settings(max_examples=60)
@given(st.lists(st.tuples(st.text(), st.text()), max_size=5))
def test_hashes_are_those_of_the_kernels(names: list[tuple[str, str]]) -> None:
    cards, ids = (pa.array([pair[k] for pair in names], pa.string()) for k in (0, 1))
    digests = b"".join(transaction_digest(*pair) for pair in names)
    assert digest_keys(cards, ids).astype(">i8").tobytes() == digests
    assert identities(cards, ids).tolist() == [transaction_hash(*pair) for pair in names]
    hashes = b"".join(xxhash.xxh3_128_digest(card.encode()) for card, _ in names)
    assert name_keys(cards).astype("<i8").tobytes() == hashes
    data, ends = text_buffers(cards)
    assert span_keys(data, np.stack([ends[:-1], ends[1:]], axis=1)).tolist() == name_keys(cards).tolist()
