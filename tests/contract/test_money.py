"""Conversion is exact, and a rate table that cannot be used says why."""

import json
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.money import InexactAmount, InvalidRates, RateTable, load

SHIPPED = (Path(__file__).resolve().parents[2] / "pipeline/data/rates.json").read_bytes()


def table(base: str = "EUR", **currencies: tuple[int, str]) -> RateTable:
    return load(document(base, **currencies))


def document(base: str = "EUR", **currencies: tuple[int, str]) -> bytes:
    entries: dict[str, Any] = {code: {"digits": digits, "rate": rate} for code, (digits, rate) in currencies.items()}
    return json.dumps({"version": "v", "base": base, "currencies": entries}).encode()


def test_the_shipped_table_is_marked_as_indicative_and_loads() -> None:
    assert json.loads(SHIPPED)["indicative"] is True
    rates = load(SHIPPED)
    assert rates.base == "EUR"
    assert rates.base_scale == 100
    digits = {code: rate.digits for code, rate in rates.currencies.items()}
    assert {code for code, n in digits.items() if n == 0} == {"CLP", "ISK", "JPY", "KRW", "VND"}
    assert {code for code, n in digits.items() if n == 3} == {"BHD", "KWD", "TND"}
    assert len(digits) >= 30


@pytest.mark.parametrize(("minor", "base_minor"), [(1, 0), (2, 1), (3, 2), (5, 2), (7, 4), (-1, 0), (-3, -2)])
def test_halves_round_to_even(minor: int, base_minor: int) -> None:
    assert table(EUR=(2, "1"), USD=(2, "0.5")).currencies["USD"].to_base_minor(minor) == base_minor


@given(st.integers(0, 10**15), st.integers(0, 4), st.integers(0, 4), st.integers(1, 10**9))
def test_conversion_is_the_exact_product_rounded_once(minor: int, digits: int, base_digits: int, rate: int) -> None:
    rates = table("EUR", EUR=(base_digits, "1"), XYZ=(digits, f"{Decimal(rate).scaleb(-6):f}"))
    exact = Fraction(minor, 10**digits) * Fraction(rate, 10**6) * 10**base_digits
    currency = rates.currencies["XYZ"]
    assert currency.to_base_minor(minor) == round(exact)
    assert currency.to_minor(Decimal(minor).scaleb(-digits)) == minor


@pytest.mark.parametrize("amount", ["0.001", "1E-30", "10000000000.000000000000000000000000000001"])
def test_more_decimals_than_the_currency_has_are_not_rounded_away(amount: str) -> None:
    with pytest.raises(InexactAmount, match="2 decimals"):
        table(EUR=(2, "1")).currencies["EUR"].to_minor(Decimal(amount))


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (b"", "shape"),
        (b"\xff", "shape"),
        (b"[" * 100_000, "shape"),
        (b'{"version":"v","base":"EUR"}', "currencies"),
        (b'{"version":"v","base":"EUR","currencies":{},"rates":{}}', "rates"),
        (document(USD=(2, "1")), "lacks its own base"),
        (document(EUR=(2, "1.0001")), "must be 1"),
        (document(EUR=(2, "1")).replace(b'"v"', b'""'), "version"),
        (document(EUR=(2, "1"), usd=(2, "1")), "ISO 4217"),
        (document(EUR=(2, "1"), USD=(5, "1")), "digits"),
        (document(EUR=(2, "1"), USD=(-1, "1")), "digits"),
        (document(EUR=(2, "1"), USD=(2, "0")), "above zero"),
        (document(EUR=(2, "1"), USD=(2, "-1")), "above zero"),
        (document(EUR=(2, "1"), USD=(2, "NaN")), "above zero"),
        (document(EUR=(2, "1"), USD=(2, "one")), "not a decimal"),
        (document(EUR=(2, "1"), USD=(2, "1e999999999")), "digits"),
    ],
)
def test_a_table_that_cannot_be_used_says_why(data: bytes, complaint: str) -> None:
    with pytest.raises(InvalidRates, match=complaint):
        load(data)
