"""Rows of numbers as JSON: byte for byte what msgspec writes, whatever the numbers are."""

import math
from collections.abc import Sequence
from datetime import datetime, timedelta, timezone
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.engine.encoding.json_rows import Rows, RowWriter, encoded, number, one_of, same, text, timestamp, whole
from schemas.codec import timestamp_us

NAMES = ("a", "ä", 'with "quotes"', "a_name_that_is_longer_than_those_that_are_copied_in_one_part")
ONE = RowWriter({"a": number(0)})
POWERS_OF_TWO = [math.ldexp(1.0, exponent) for exponent in range(-1074, 1024)]
POWERS_OF_TEN = [float(f"1e{exponent}") for exponent in range(-323, 309)]
ANY_DOUBLE = st.floats() | st.integers(0, 2**64 - 1).map(
    lambda bits: float(np.array([bits], np.uint64).view(np.float64)[0])
)
MONEY = st.integers(-(10**17), 10**17).map(lambda cents: cents / 100)


def numbers(matrix: NDArray[Any]) -> Rows:
    """Columns of numbers alone."""
    n = len(matrix)
    return Rows(b"", np.empty((0, n, 2), np.int64), np.empty((0, n), np.int64), matrix)


def encode_numbers(names: Sequence[str], matrix: NDArray[Any]) -> list[bytes]:
    """One object a row, of ``names``."""
    return list(RowWriter({name: number(column) for column, name in enumerate(names)}).write(numbers(matrix)))


def written(values: list[float]) -> list[bytes]:
    return list(ONE.write(numbers(np.array(values, np.float64).reshape(-1, 1))))


def expected(values: list[float]) -> list[bytes]:
    return [msgspec.json.encode({"a": value}) for value in values]


@given(st.lists(ANY_DOUBLE | MONEY | st.integers(-(2**60), 2**60).map(float), max_size=50))
def test_any_number_is_written_as_msgspec_writes_it(values: list[float]) -> None:
    assert written(values) == expected(values)


@given(st.lists(st.lists(ANY_DOUBLE, min_size=len(NAMES), max_size=len(NAMES)), max_size=5))
def test_a_row_is_an_object_of_its_names(rows: list[list[float]]) -> None:
    matrix = np.array(rows, np.float64).reshape(-1, len(NAMES))
    found = encode_numbers(NAMES, matrix)
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
    assert written(values) == expected(values)


def test_columns_that_are_strided_or_of_another_type() -> None:
    matrix = np.arange(12, dtype=np.int64).reshape(3, 4)[:, ::2]
    found = encode_numbers(["a", "b"], matrix)
    assert found == [b'{"a":0.0,"b":2.0}', b'{"a":4.0,"b":6.0}', b'{"a":8.0,"b":10.0}']


TEXT = st.text(max_size=30) | st.sampled_from(['"', "\\", "\n", "\x7f", "\x00", "ä", "plain"])
TIME = st.datetimes(
    datetime(1970, 1, 2),  # noqa: DTZ001
    datetime(2100, 1, 1),  # noqa: DTZ001
    timezones=st.integers(-1_439, 1_439).map(lambda minutes: timezone(timedelta(minutes=minutes))),
)
MIXED = RowWriter(
    {
        "text": text(0),
        "known": b"[1,2]",
        "nested": {"time": timestamp(0), "whole": whole(2), "json": encoded(1)},
        "same": same(0),
        "either": one_of(3),
        "number": number(0),
        "again": text(0),
        "joined": (b"<", text(0), b"-", whole(2)),
        "last": (whole(2), b">"),
    }
)


@given(st.lists(st.tuples(TEXT, TIME, st.integers(-(2**62), 2**63 - 1), st.booleans(), ANY_DOUBLE), max_size=20))
def test_columns_of_every_kind_are_written_as_msgspec_writes_them(
    rows: list[tuple[str, datetime, int, bool, float]],
) -> None:
    json = [msgspec.json.encode([row[0], None]) for row in rows]
    texts = [row[0].encode() for row in rows] + json
    ends = np.cumsum([0, *map(len, texts)])
    spans = np.stack([ends[:-1], ends[1:]], axis=1).reshape(2, len(rows), 2)
    moments = [(timestamp_us(row[1]), (row[1].utcoffset() or timedelta()) // timedelta(minutes=1)) for row in rows]
    wholes = [(*moment, row[2], 1 + row[3]) for moment, row in zip(moments, rows, strict=True)]
    columns = Rows(
        b"".join(texts),
        spans,
        np.array(wholes, np.int64).reshape(-1, 4).T,
        np.array([row[4] for row in rows], np.float64).reshape(-1, 1),
        [b'"constant"', b"null", b"{}"],
    )
    expected = [
        {
            "text": name,
            "known": [1, 2],
            "nested": {"time": time, "whole": count, "json": [name, None]},
            "same": "constant",
            "either": {} if either else None,
            "number": value,
            "again": name,
            "joined": f"<{name}-{count}",
            "last": f"{count}>",
        }
        for name, time, count, either, value in rows
    ]
    assert list(MIXED.write(columns)) == [*map(msgspec.json.encode, expected)]
