"""What counts as a JSON number is what a JSON parser reads as one."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.engine.records.block_columns import is_number


def reads(text: str) -> bool:
    # What stands before and behind is no part of it.
    whole = np.frombuffer(b"7" + text.encode() + b"7", np.uint8)
    return bool(is_number(whole, 1, len(whole) - 1))


def parses(text: str) -> bool:
    try:
        value = json.loads(text, parse_constant=lambda _: "no number")
    except ValueError:
        return False
    return isinstance(value, int | float) and not isinstance(value, bool) and text == text.strip()


@given(st.text("0123456789+-.eE ", max_size=9) | st.floats(allow_nan=False, allow_infinity=False).map(str))
def test_a_number_is_what_a_parser_reads(text: str) -> None:
    assert reads(text) == parses(text)


@pytest.mark.parametrize("text", ["", "NaN", "Infinity", "-Infinity", "1_0", "0x1", "true", '"1"', "1,2", "[1]"])
def test_other_texts_are_none(text: str) -> None:
    assert not reads(text)
