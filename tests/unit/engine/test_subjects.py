"""The score agent reads of a producer's bytes the texts that acceptance has read of them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.engine.encoding import row_columns as col
from pipeline.engine.records.accept import accept_transactions
from pipeline.engine.records.columns import EXTRA_TEXTS
from pipeline.engine.records.subjects import Subjects
from tests.contract.records import RATES

START = (
    '{"transaction_id":"t","event_time":"2024-03-01T20:15:30Z","card_id":"c","merchant_id":"m","amount":5,'
    '"currency":"EUR"'
)
VALUES = (
    '"web"',
    '"5411"',
    "5411",
    "5411.0",
    "0.10",
    "1e3",
    "-7",
    "-1.5",
    "0.0001",
    "0.00001",
    "0.00012",
    "0.00099",
    "-0",
    "0",
    "0.0",
    "1.50",
    "-0.5",
    "123456789012345.25",
    "12345678901234.2",
    "1234567890123.25",
    "null",
    '"\\u00e9\\n"',
    '"東京"',
    '""',
    "9007199254740993",
)
NAMES = [name for name in EXTRA_TEXTS if name != "attributes"]


def texts_of(values: list[bytes]) -> dict[str, list[str | None]]:
    n = len(values)
    own = {col.ID: [b"t"] * n, col.CARD: [b"c"] * n, col.MERCHANT: [b"m"] * n, col.TYPE: [b"purchase"] * n}
    subjects = Subjects.from_columns({**own, col.CURRENCY: [b"EUR"] * n, col.ORIGINAL: values}, {})
    return subjects.text_lists(["card_id", "merchant_id", "currency", "transaction_type", *NAMES])


def accepted(values: list[bytes]) -> dict[str, list[str | None]]:
    taken, refused = accept_transactions(values, np.full(len(values), 1_709_330_000_000_000), RATES, 300_000_000)
    assert refused == []
    return taken.text_lists(["card_id", "merchant_id", "currency", "transaction_type", *NAMES])


@pytest.mark.parametrize("name", NAMES)
def test_each_way_to_write_a_text_is_read_alike(name: str) -> None:
    values = [f'{START},"{name}":{value}}}'.encode() for value in VALUES]

    assert texts_of(values) == accepted(values)


@given(st.lists(st.dictionaries(st.sampled_from(NAMES), st.sampled_from(VALUES)), min_size=1, max_size=5))
def test_texts_of_a_batch_are_read_alike(drawn: list[dict[str, str]]) -> None:
    values = [(START + "".join(f',"{name}":{value}' for name, value in row.items()) + "}").encode() for row in drawn]

    assert texts_of(values) == accepted(values)


def test_numbers_that_stand_for_texts_are_plain_where_their_text_is_as_written() -> None:
    from pipeline.engine.records.accept import text_of
    from tests.property.test_backtest_fast_path import is_plain

    numbers = [value for value in VALUES if value[0] not in '"n' and "e" not in value]
    plain = is_plain([f'{START},"mcc":{value}}}'.encode() for value in numbers])

    taken = [value for value, is_taken in zip(numbers, plain, strict=True) if is_taken]
    assert taken == [text_of(float(value)) for value in taken]
    assert {"5411", "-7", "-1.5", "0.0001", "0.00099", "0", "-0.5", "1234567890123.25"} <= {*taken}
