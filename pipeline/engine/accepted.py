"""Transactions accepted a batch at a time: what `schemas.codec.decode_transaction` makes of those that are plain."""

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.engine.scanned import CARD, CURRENCY, ID, MERCHANT, TYPE, Scanned, scan
from pipeline.features.clock import hours, weekdays
from schemas.codec import COUNTING_TYPES, MAX_AMOUNT_BASE_MINOR, AcceptedTransaction
from schemas.money import CurrencyRate, RateTable

Mask = NDArray[np.bool_]

_PLAIN_FACTOR: Final = 2**61
_CODE_LENGTH: Final = 3
FEW: Final = 64
"""So few are decoded one by one: columns would take longer."""


class RateTerms(NamedTuple):
    """The `schemas.money.CurrencyRate` of each of n rows; of shape (n,)."""

    digits: NDArray[np.int64]
    numerator: NDArray[np.int64]
    denominator: NDArray[np.int64]


def accepted_at_once(values: Sequence[bytes | None], rates: RateTable) -> list[AcceptedTransaction | None]:
    """A transaction for each record's value that is plain; None where the decoder is to be asked.

    That a time lies in its record's future is left to the caller.
    """
    found = scan(values)
    rows = np.flatnonzero(found.plain)
    every: list[AcceptedTransaction | None] = [None] * len(values)
    terms, known = _terms(found, rows, rates)
    minor, base, plain = plain_money(found.amount[rows], found.decimals[rows], terms)
    clock_us = found.clock_us[rows]
    # Plain ones are ASCII; in others each byte is some character too, so that places are the same.
    text = found.text.decode("latin-1")
    built = map(
        AcceptedTransaction,
        *([text[first:end] for first, end in found.spans[column, rows].tolist()] for column in (ID, CARD, MERCHANT)),
        found.event_time_us[rows].tolist(),
        minor.tolist(),
        base.tolist(),
        [text[first:end] in COUNTING_TYPES for first, end in found.spans[TYPE, rows].tolist()],
        hours(clock_us).tolist(),
        weekdays(clock_us).tolist(),
    )
    for row, sound, one in zip(rows.tolist(), (known & plain).tolist(), built, strict=True):
        if sound:
            every[row] = one
    return every


def terms_of(rates: Sequence[CurrencyRate | None], of: NDArray[np.int64]) -> tuple[RateTerms, Mask]:
    """Terms of row i, those of ``rates[of[i]]``; plain where there is one that is not too large to be multiplied.

    None of them where ``of`` is the number of rates.
    """
    fits = [rate is not None and max(rate.numerator, rate.denominator) < _PLAIN_FACTOR for rate in rates]
    terms = [
        (rate.digits, rate.numerator, rate.denominator) if rate is not None and fit else (0, 1, 1)
        for rate, fit in zip(rates, fits, strict=True)
    ]
    return RateTerms(*np.array([*terms, (0, 1, 1)], np.int64)[of].T), np.array([*fits, False])[of]


def base_minor(minor: NDArray[np.int64], terms: RateTerms) -> tuple[NDArray[np.int64], Mask]:
    """(minor units of the base currency, whether ``minor`` is small enough to tell), rounded half to even."""
    within = minor < _PLAIN_FACTOR // terms.numerator
    base, rest = np.divmod(np.where(within, minor, 0) * terms.numerator, terms.denominator)
    # As `CurrencyRate.to_base_minor`; twice the rest is within 64 bits.
    base += (2 * rest > terms.denominator) | ((2 * rest == terms.denominator) & (base % 2 == 1))
    return base, within


def plain_money(
    amount: NDArray[np.int64], decimals: NDArray[np.int64], terms: RateTerms
) -> tuple[NDArray[np.int64], NDArray[np.int64], Mask]:
    """(minor units, minor units of the base currency, whether they are told) of ``amount`` / 10 ** ``decimals``."""
    missing = terms.digits - decimals
    plain = missing >= 0
    minor = amount * 10 ** np.where(plain, missing, 0)
    base, within = base_minor(minor, terms)
    return minor, base, plain & within & (minor > 0) & (base <= MAX_AMOUNT_BASE_MINOR)


def _terms(found: Scanned, rows: NDArray[np.int64], rates: RateTable) -> tuple[RateTerms, Mask]:
    """Of the rows' currencies; plain where there is a rate."""
    first, end = found.spans[CURRENCY, rows].T
    fits = end - first == _CODE_LENGTH
    text = np.frombuffer(found.text, np.uint8)
    code = np.zeros(len(rows), np.int64)
    for place in range(_CODE_LENGTH):
        code = code << 8 | text[np.where(fits, first + place, 0)]
    codes, of = np.unique(code, return_inverse=True)
    names = [one.to_bytes(_CODE_LENGTH, "big").decode("latin-1") for one in codes.tolist()]
    terms, plain = terms_of([rates.currencies.get(name) for name in names], of)
    return terms, plain & fits
