"""What compiled code reads of a transaction is what the decoder reads; what it does not read, the decoder does."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.backtest.input.acceptance import Acceptance
from pipeline.backtest.input.merge import LogPart, Numbering
from pipeline.backtest.input.topic_source import transactions_of
from pipeline.engine.records import accept
from pipeline.engine.records.columns import Reject, Transactions
from pipeline.kafka.readers.replay_reader import RecordColumns
from schemas.codec import LATEST_US, MAX_NAMES
from schemas.money import RateTable
from tests.contract.records import ARRIVED_US, RATES, TOLERANCE_US, TRANSACTION
from tests.contract.test_codec_fuzz import amounts_in_any_currency, changed_messages, plausible_messages, spliced_bytes

RULES = Acceptance(RATES, TOLERANCE_US)

times = st.from_regex(
    r"(19|20)[0-9]{2}-[01][0-9]-[0-3][0-9][T t][0-2][0-9]:[0-6][0-9]:[0-6][0-9]"
    r"(\.[0-9]{0,8})?([Zz]|[+-][0-2][0-9]:[0-6][0-9])?",
    fullmatch=True,
)
texts = st.sampled_from(("", "purchase", "cash", "refund", "x" * 256, "x" * 257, "Müller", 'a"b', "a\\b", "\x7f", "\t"))
fields: dict[str, st.SearchStrategy[Any]] = {
    "event_time": times | st.none(),
    "local_time": times | st.none(),
    "transaction_id": texts,
    "card_id": texts,
    "merchant_id": texts,
    "transaction_type": texts | st.none(),
    "currency": st.sampled_from((*sorted(RATES.currencies), "XXX", "eur", None)),
    "amount": st.sampled_from(
        (0, 1, 0.01, "12.3", "012", "1e3", 10**15, 10**16, -1, 12.345, "999999999999999.99", None)
    ),
    "channel": texts | st.none() | st.just(5),
    "mcc": st.sampled_from((5411, -0.0, 5411.0, 1e22, 1e300, 10**15, 10**400, "5411", True)),
    "attributes": st.none() | st.just({"a": "b"}),
    "schema_version": st.sampled_from((1, 0, -1, 1.0, "1", 10**10, None)),
    "unknown": texts | st.none() | st.sampled_from((True, 7, -0.125, 10**400)),
}
spelled = st.builds(
    lambda changes, separators, ascii_: json.dumps(
        {**TRANSACTION, **changes}, separators=separators, ensure_ascii=ascii_
    ).encode("utf-8", "surrogatepass"),
    st.fixed_dictionaries({}, optional=fields),
    st.sampled_from(((",", ":"), (", ", ": "), (",\n", ": "))),
    st.booleans(),
)
_CLOCK = "(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])T[012][0-9]:[0-5][0-9]:[0-5][0-9]"
fast_path_times = st.builds(
    lambda time, local: json.dumps(
        {**TRANSACTION, "event_time": time, **({"local_time": local} if local else {})}
    ).encode(),
    st.from_regex(rf"(199[5-9]|20[0-8][0-9])-{_CLOCK}(\.[0-9]{{0,7}})?(Z|[+-][012][0-9]:[0-5][0-9])", fullmatch=True),
    st.none() | st.from_regex(rf"20[0-8][0-9]-{_CLOCK}", fullmatch=True),
)


def read(values: Sequence[bytes | None], arrived_us: int = ARRIVED_US) -> tuple[LogPart[Transactions], list[Reject]]:
    n = len(values)
    columns = RecordColumns(2, np.arange(n) * 3, np.full(n, arrived_us // 1_000), list(values))
    rejects: list[Reject] = []
    return transactions_of(columns, RULES, Numbering(4), rejects), rejects


read_fast_path = accept.read_fast_path


def nothing_is_on_the_fast_path(
    values: Sequence[bytes | None], latest_us: NDArray[np.int64], rates: RateTable, **columns: bool
) -> tuple[Any, Any]:
    return read_fast_path([None] * len(values), latest_us, rates, **columns)


def is_plain(values: Sequence[bytes | None]) -> list[bool]:
    return read_fast_path(values, np.full(len(values), LATEST_US), RATES)[0].tolist()


@given(
    st.lists(
        st.one_of(
            plausible_messages, changed_messages, spliced_bytes, amounts_in_any_currency, spelled, fast_path_times
        ),
        max_size=20,
    ),
    st.sampled_from((ARRIVED_US, ARRIVED_US - 10 * TOLERANCE_US, 4 * 10**15)),
)
def test_records_are_read_alike_by_both(values: list[bytes], arrived_us: int) -> None:
    found, refused = read(values, arrived_us)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(accept, "read_fast_path", nothing_is_on_the_fast_path)
        expected, expected_refused = read(values, arrived_us)
    assert refused == expected_refused
    np.testing.assert_array_equal(found.arrived_us, expected.arrived_us)
    for name in Transactions.__dataclass_fields__:
        item, other = getattr(found.rows, name), getattr(expected.rows, name)
        if isinstance(item, pa.Array):
            item.validate(full=True)
            assert item.equals(other), name
        elif item is None:
            assert other is None, name
        elif isinstance(item, dict):
            assert item == other, name
        else:
            assert item.dtype == other.dtype, name
            np.testing.assert_array_equal(item, other, err_msg=name)


def usual() -> list[bytes]:
    """Messages as most producers write them."""
    return [
        json.dumps({**TRANSACTION, **more}, separators=separators).encode()
        for separators in ((",", ":"), (", ", ": "))
        for more in (
            {},
            {"amount": "12.34", "currency": "USD", "transaction_type": "cash"},
            {"event_time": "2024-02-29T23:59:59+01:00", "local_time": "2024-03-01T00:59:59"},
            {"country": "IT", "channel": None, "device_id": "d-1", "mcc": "5411", "schema_version": 1, "more": "x"},
            {"mcc": 5411, "channel": -1.5, "more": 7},
        )
    ]


def many_names(names: int) -> bytes:
    return json.dumps({**TRANSACTION, **{f"k{number}": "" for number in range(names - len(TRANSACTION))}}).encode()


def test_the_scanner_counts_names_as_the_decoder_does() -> None:
    values = [many_names(MAX_NAMES), many_names(MAX_NAMES + 1)]
    assert max(map(len, values)) < 16_384, "longer ones are never plain"
    assert is_plain(values) == [True, False]
    _, rejects = read(values)
    assert [(reject.row, reject.code) for reject in rejects] == [(rejects[0].row, "too_many_fields")]


def test_usual_messages_are_plain() -> None:
    assert all(is_plain(usual()))
    assert not any(is_plain([None, b"", b"{}", b"null", b'"', b"x" * 100_000]))
    assert is_plain([]) == []
