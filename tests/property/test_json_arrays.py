"""Objects as arrays of their values: what comes back by the names is what was there, and other objects stay whole."""

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.engine.json_arrays import ObjectValues
from pipeline.features.catalogue import FEATURES
from tests.helpers.json_rows import encode_numbers

NAMES = ("a", "ä", 'with "quotes"', "eight by", "a_name_that_is_longer_than_the_words_in_which_they_are_compared")
SOME = ObjectValues(NAMES)
NUMBERS = st.none() | st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**53), 2**53)
ROWS = st.lists(NUMBERS, min_size=len(NAMES), max_size=len(NAMES))


def taken(objects: list[bytes], values: ObjectValues = SOME) -> list[bytes]:
    return [bytes(one) for one in values.arrays(objects)]


def named(row: list[float | None], names: tuple[str, ...] = NAMES) -> bytes:
    return msgspec.json.encode(dict(zip(names, row, strict=True)))


@given(st.lists(ROWS | st.dictionaries(st.sampled_from([*NAMES, "other"]), NUMBERS), max_size=10))
def test_an_object_of_the_names_is_told_by_its_values_and_any_other_stays(
    rows: list[list[float | None] | dict[str, float | None]],
) -> None:
    objects = [named(row) if isinstance(row, list) else msgspec.json.encode(row) for row in rows]
    expected = [
        msgspec.json.encode(list(row.values()) if isinstance(row, dict) and tuple(row) == NAMES else row)
        for row in rows
    ]
    assert taken(objects) == expected
    assert taken([*map(msgspec.Raw, objects)]) == expected  # type: ignore[list-item]


@pytest.mark.parametrize(
    "other",
    [
        b"{}",
        b"[]",
        b"null",
        b'{"a":1}',
        b'{"b":1,"a":2}',
        b'{"a":1,"b":2,"c":3}',
        b'{"a":1,"c":2}',
        b'{"a":1,"bb":2}',
        b'{"a": 1,"b":2}',
        b'{"a":1 ,"b":2}',
        b'{"a":1,"b":2 }',
        b'{"a":"1","b":2}',
        b'{"a":"1,2","b":2}',
        b'{"a":[1],"b":2}',
        b'{"a":{},"b":2}',
        b'{"a":1,"b":{"c":2}}',
    ],
)
def test_what_has_other_names_or_no_numbers_stays_as_it_is(other: bytes) -> None:
    one = b'{"a":1.5,"b":null}'
    assert taken([one, other, one, other], ObjectValues(["a", "b"])) == [b"[1.5,null]", other, b"[1.5,null]", other]


def test_the_features_that_the_score_agent_writes_lose_their_names() -> None:
    """More rows than are read at once."""
    matrix = np.random.default_rng(5).normal(size=(300, len(FEATURES))).round(3)
    matrix[::7, ::3] = np.nan
    objects = encode_numbers(FEATURES, matrix)
    found = [msgspec.json.decode(row) for row in taken(objects, ObjectValues(FEATURES))]
    assert found == [[None if np.isnan(value) else value for value in row] for row in matrix.tolist()]
