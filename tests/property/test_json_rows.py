"""Rows of numbers as JSON: byte for byte what msgspec writes, whatever the numbers are."""

import math

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.engine.json_rows import RowEncoder

NAMES = ("a", "ä", 'with "quotes"', "a_name_that_is_longer_than_those_that_are_copied_in_one_part")
ONE = RowEncoder(["a"])
POWERS_OF_TWO = [math.ldexp(1.0, exponent) for exponent in range(-1074, 1024)]
POWERS_OF_TEN = [float(f"1e{exponent}") for exponent in range(-323, 309)]
ANY_DOUBLE = st.floats() | st.integers(0, 2**64 - 1).map(
    lambda bits: float(np.array([bits], np.uint64).view(np.float64)[0])
)
MONEY = st.integers(-(10**17), 10**17).map(lambda cents: cents / 100)


def written(values: list[float], encoder: RowEncoder = ONE) -> list[bytes]:
    return [bytes(row) for row in encoder.encode(np.array(values, np.float64).reshape(-1, 1))]


def expected(values: list[float]) -> list[bytes]:
    return [msgspec.json.encode({"a": value}) for value in values]


@given(st.lists(ANY_DOUBLE | MONEY | st.integers(-(2**60), 2**60).map(float), max_size=50))
def test_any_number_is_written_as_msgspec_writes_it(values: list[float]) -> None:
    assert written(values) == expected(values)


@given(st.lists(st.lists(ANY_DOUBLE, min_size=len(NAMES), max_size=len(NAMES)), max_size=5))
def test_a_row_is_an_object_of_its_names(rows: list[list[float]]) -> None:
    matrix = np.array(rows, np.float64).reshape(-1, len(NAMES))
    found = [bytes(row) for row in RowEncoder(NAMES).encode(matrix)]
    assert found == [msgspec.json.encode(dict(zip(NAMES, row, strict=True))) for row in rows]


@pytest.mark.parametrize("direction", [-np.inf, 0.0, np.inf])
def test_numbers_at_the_edges_of_exponents_and_formats(direction: float) -> None:
    edges = [0.0, *POWERS_OF_TWO, *POWERS_OF_TEN, 0.01, 1e13, 1e15, 2.0**53, 5e-324, 2.2250738585072014e-308]
    values = [value if direction == 0.0 else float(np.nextafter(value, direction)) for value in edges]
    values += [-value for value in values]
    assert written(values) == expected(values)


def test_random_numbers_of_every_size() -> None:
    values = np.random.default_rng(3).integers(0, 2**64, 100_000, np.uint64).view(np.float64).tolist()
    assert written(values) == expected(values)


def test_more_rows_than_are_written_at_once_stay_as_they_were() -> None:
    values = [number / 7 for number in range(1_000)]
    kept = list(ONE.encode(np.array(values).reshape(-1, 1)))
    assert [bytes(row) for row in kept] == expected(values)


def test_columns_that_are_strided_or_of_another_type() -> None:
    matrix = np.arange(12, dtype=np.int64).reshape(3, 4)[:, ::2]
    found = [bytes(row) for row in RowEncoder(["a", "b"]).encode(matrix)]
    assert found == [b'{"a":0.0,"b":2.0}', b'{"a":4.0,"b":6.0}', b'{"a":8.0,"b":10.0}']


def test_another_number_of_columns_is_refused() -> None:
    with pytest.raises(ValueError, match="rows of 1 columns are wanted"):
        list(ONE.encode(np.zeros((1, 2))))
