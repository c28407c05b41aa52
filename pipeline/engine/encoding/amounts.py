"""Amounts in whole minor units, as columns: what `schemas.money` computes of those that 64-bit integers can hold."""

from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.features.compiled import compiled, inlined
from schemas.codec import MAX_AMOUNT_BASE_MINOR
from schemas.money import RateTable

_FACTOR_LIMIT: Final = 2**61
_CODE_BYTES: Final = 3
_MOST_TABLES: Final = 64
NOT_CONVERTED: Final = -1
"""Base amount where 64-bit integers cannot hold it."""


class RateTerms(NamedTuple):
    """Rates of k currencies whose terms are small enough to be multiplied, sorted by code; shape (k,) each."""

    code: NDArray[np.int64]
    """The three letters as a big-endian number."""
    digits: NDArray[np.int64]
    numerator: NDArray[np.int64]
    denominator: NDArray[np.int64]


_made: dict[int, tuple[RateTable, RateTerms]] = {}


def rate_terms(rates: RateTable) -> RateTerms:
    """Return the terms of ``rates``; those of a table are made once."""
    held = _made.get(id(rates))
    if held is None or held[0] is not rates:
        if len(_made) >= _MOST_TABLES:
            _made.clear()
        held = _made[id(rates)] = rates, _terms(rates)
    return held[1]


def _terms(rates: RateTable) -> RateTerms:
    rows = sorted(
        (int.from_bytes(code.encode(), "big"), rate.digits, rate.numerator, rate.denominator)
        for code, rate in rates.currencies.items()
        if len(code) == _CODE_BYTES and code.isascii() and max(rate.numerator, rate.denominator) < _FACTOR_LIMIT
    )
    return RateTerms(*(np.array(column, np.int64) for column in zip(*rows, strict=True)))


@compiled
def convert(minor: Any, row: Any, terms: Any, base: Any) -> None:
    """Convert amounts to minor units of the base currency.

    Args:
        minor: Shape (n,), whole minor units of each amount's currency, at least 0.
        row: Shape (n,), the row of ``terms`` of each amount; -1 for none.
        terms: `RateTerms`.
        base: Shape (n,), filled; `NOT_CONVERTED` where there is no rate or a number is too large.
    """
    for i in range(len(minor)):
        base[i] = NOT_CONVERTED if row[i] < 0 else _base_minor(minor[i], row[i], terms)


@compiled
def read_amounts(
    text: Any, spans: Any, terms: Any, amount: Any, decimals: Any, on_fast_path: Any, minor: Any, base: Any
) -> None:
    """Fill ``minor`` and ``base`` with the scanned amounts of n records.

    Args:
        text: Bytes that ``spans`` point into.
        spans: Shape (n, 2): where the code of each currency begins and ends in ``text``.
        terms: `RateTerms`.
        amount: Shape (n,): digits of each amount, without the point.
        decimals: Shape (n,): how many of the digits stand behind the point.
        on_fast_path: Shape (n,): which amounts to read. Becomes False for those without a rate, with more decimals than
            their currency has, not above 0, or too large.
        minor: Shape (n,), filled on the fast path: minor units of the amount's own currency.
        base: Shape (n,), filled on the fast path: minor units of the base currency.
    """
    for i in range(len(on_fast_path)):
        if not on_fast_path[i]:
            continue
        on_fast_path[i] = False
        row = _currency(text, spans[i, 0], spans[i, 1], terms)
        if row < 0:
            continue
        missing = terms.digits[row] - decimals[i]
        if missing < 0:
            continue
        scale = 1
        for _ in range(missing):
            scale *= 10
        if amount[i] <= 0 or amount[i] >= _FACTOR_LIMIT // scale:
            continue
        minor[i] = amount[i] * scale
        base[i] = _base_minor(minor[i], row, terms)
        on_fast_path[i] = 0 <= base[i] <= MAX_AMOUNT_BASE_MINOR


@inlined
def _base_minor(minor: Any, row: Any, terms: Any) -> Any:
    """`schemas.money.CurrencyRate.to_base_minor`: rounded half to even."""
    numerator, denominator = terms.numerator[row], terms.denominator[row]
    if minor >= _FACTOR_LIMIT // numerator:
        return NOT_CONVERTED
    product = minor * numerator
    base = product // denominator
    # Twice the rest is within 64 bits.
    twice = 2 * (product - base * denominator)
    if twice > denominator or (twice == denominator and base % 2 == 1):
        base += 1
    return base


@inlined
def _currency(text: Any, first: Any, end: Any, terms: Any) -> Any:
    """The row of a code among ``terms``; -1 where it is not there."""
    if end - first != _CODE_BYTES:
        return -1
    code = (np.int64(text[first]) << 16) | (np.int64(text[first + 1]) << 8) | np.int64(text[first + 2])
    row = np.searchsorted(terms.code, code)
    if row < len(terms.code) and terms.code[row] == code:
        return row
    return -1
