"""Money in whole minor units, and a versioned table of rates into one base currency. Exact: no floats.

An amount travels as a decimal in the currency's major unit; windows hold whole minor units of the base
currency. Whoever reads the table's file passes its bytes to `load`.
"""

import hashlib
from collections.abc import Mapping
from decimal import Context, Decimal, Inexact, InvalidOperation
from fractions import Fraction
from types import MappingProxyType
from typing import Final

import msgspec

MAX_DIGITS: Final = 4
"""No currency in ISO 4217 has more minor-unit digits."""

_MAX_EXPONENT: Final = 20
"""Bound on the power of ten of a rate: without one, ``1e999999999`` would build a number that fills the memory."""

_DIGEST_LENGTH: Final = 16

_EXACT: Final = Context(prec=28, traps=[Inexact, InvalidOperation])


class InvalidRates(ValueError):
    """A rate table that cannot be used; the text says which entry is wrong and what it should be."""


class InexactAmount(ValueError):
    """An amount with more decimals than its currency has."""


class CurrencyRate(msgspec.Struct, frozen=True, kw_only=True):
    """A currency of a rate table.

    ``numerator / denominator`` is the number of *minor* base units that one *minor* unit is worth, in lowest terms.
    """

    digits: int
    scale: Decimal
    """Minor units in a major one: 10 ** ``digits``."""
    numerator: int
    denominator: int

    def to_minor(self, amount: Decimal) -> int:
        """Whole minor units of ``amount`` (finite, major units).

        Raises `InexactAmount` when it has more decimals than the currency, or more than 28 digits.

        >>> CurrencyRate(digits=2, scale=Decimal(100), numerator=1, denominator=1).to_minor(Decimal("12.50"))
        1250
        """
        try:
            scaled = _EXACT.multiply(amount, self.scale)
        except Inexact:
            scaled = None
        # A tiny remainder would leave an exact product that is not whole.
        if scaled is None or scaled != scaled.to_integral_value():
            raise InexactAmount(f"The amount has more than the {self.digits} decimals of its currency.")
        return int(scaled)

    def to_base_minor(self, amount_minor: int) -> int:
        """Minor base units of ``amount_minor``, rounded half to even.

        >>> CurrencyRate(digits=0, scale=Decimal(1), numerator=1, denominator=2).to_base_minor(3)
        2
        """
        if self.numerator == self.denominator:
            return amount_minor
        quotient, remainder = divmod(amount_minor * self.numerator, self.denominator)
        twice = 2 * remainder
        if twice > self.denominator or (twice == self.denominator and quotient & 1):
            quotient += 1
        return quotient


class RateTable(msgspec.Struct, frozen=True, kw_only=True):
    """Rates into ``base``, all of one ``version``; built by `load`."""

    version: str
    base: str
    """ISO 4217 code of the base currency."""
    currencies: Mapping[str, CurrencyRate]

    @property
    def digest(self) -> str:
        """16 hexadecimal digits that stand for all that an amount depends on, and for the version; not for notes."""
        rates = {code: (rate.digits, f"{rate.numerator}/{rate.denominator}") for code, rate in self.currencies.items()}
        content = msgspec.json.encode((self.version, self.base, rates), order="sorted")
        return hashlib.sha256(content).hexdigest()[:_DIGEST_LENGTH]

    @property
    def base_scale(self) -> int:
        """Minor units in one major unit of the base currency."""
        return int(self.currencies[self.base].scale)


class _Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    digits: int
    rate: str


class _Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    version: str
    base: str
    currencies: dict[str, _Entry]
    indicative: bool = False
    note: str = ""


_decode_table = msgspec.json.Decoder(_Table).decode


def load(data: bytes) -> RateTable:
    """Read a rate table from JSON.

    ``{"version": "...", "base": "EUR", "currencies": {"EUR": {"digits": 2, "rate": "1"}, ...}}``, where ``rate`` is
    what one major unit is worth in major base units, as a decimal string. ``indicative`` and ``note`` are for
    people. Raises `InvalidRates`.
    """
    try:
        table = _decode_table(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRates(f"The rate table does not have the expected shape: {error}.") from error
    if not table.version:
        raise InvalidRates("The rate table has no version; every decision names the version it was made with.")
    if table.base not in table.currencies:
        raise InvalidRates(f"The rate table lacks its own base currency {table.base!r}; add it with rate 1.")
    rates = {code: _fraction(code, entry) for code, entry in table.currencies.items()}
    if rates[table.base] != 1:
        raise InvalidRates(f"The rate of the base currency {table.base!r} must be 1.")
    base_digits = table.currencies[table.base].digits
    currencies = {}
    for code, entry in table.currencies.items():
        minor = rates[code] * Fraction(10**base_digits, 10**entry.digits)
        currencies[code] = CurrencyRate(
            digits=entry.digits,
            scale=Decimal(10**entry.digits),
            numerator=minor.numerator,
            denominator=minor.denominator,
        )
    return RateTable(version=table.version, base=table.base, currencies=MappingProxyType(currencies))


def _fraction(code: str, entry: _Entry) -> Fraction:
    if not (len(code) == 3 and code.isascii() and code.isalpha() and code.isupper()):
        raise InvalidRates(f"{code!r} is not an ISO 4217 code (three capital letters).")
    if not 0 <= entry.digits <= MAX_DIGITS:
        raise InvalidRates(f"{code}: digits is {entry.digits}; ISO 4217 has 0 to {MAX_DIGITS}.")
    try:
        rate = Decimal(entry.rate)
    except InvalidOperation as error:
        raise InvalidRates(f"{code}: rate {entry.rate!r} is not a decimal number.") from error
    if not rate.is_finite() or rate <= 0:
        raise InvalidRates(f"{code}: rate is {entry.rate}; it must be above zero.")
    if abs(rate.adjusted()) > _MAX_EXPONENT or len(entry.rate) > 40:
        raise InvalidRates(f"{code}: the rate has more digits than a rate can have; check it.")
    return Fraction(rate)
