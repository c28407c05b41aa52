"""Numbers and times as JSON has them, by compiled code: the bytes that msgspec writes.

The shortest decimal that reads as a double is found with Schubfach: Raffaello Giulietti, "The Schubfach way to render
doubles" (2020), whose names of quantities the code keeps. Numbers that are whole or have few decimals need none of it.
"""

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pipeline.features.compiled import compiled, inlined, wide_product
from schemas.times import US_PER_DAY, US_PER_SECOND

LONGEST_VALUE: Final = 40
"""More bytes than a number (sign, 17 digits, point, ``e-308``), a whole number or a time has."""

# Where a decimal is written out; beyond these exponents it has an ``e``, as msgspec writes it.
_LEAST_PLAIN_EXPONENT: Final = -5
_MOST_PLAIN_EXPONENT: Final = 15

_LEAST_POWER: Final = -292
_MOST_POWER: Final = 324
_WHOLE_LIMIT: Final = 1e15
_FEW_DECIMALS: Final = 100.0
_FEW_DIGITS_LIMIT: Final = 1e13
_SIGNIFICAND_BITS: Final = np.uint64(52)
_HIDDEN_BIT: Final = np.uint64(1 << 52)
_SIGNIFICAND: Final = np.uint64((1 << 52) - 1)
_EXPONENT: Final = np.uint64(0x7FF)
_EXPONENT_BIAS: Final = 1075
_NONE: Final = np.uint64(0)
_ONE: Final = np.uint64(1)
_TWO: Final = np.uint64(2)
_THREE: Final = np.uint64(3)
_FOUR: Final = np.uint64(4)
_TEN: Final = np.uint64(10)
_FORTY: Final = np.uint64(40)
_HUNDRED: Final = np.uint64(100)
_TEN_TO_15: Final = np.uint64(10**15)
_TEN_TO_16: Final = np.uint64(10**16)
_MINUTE_S: Final = np.uint64(60)
_HOUR_S: Final = np.uint64(3_600)
_US_PER_MINUTE: Final = 60 * US_PER_SECOND
_ZERO_DIGIT, _POINT, _MINUS, _PLUS, _E, _T, _Z, _COLON = (np.uint64(ord(sign)) for sign in "0.-+eTZ:")


def _powers_of_ten() -> NDArray[np.uint64]:
    """The first 128 bits of each power of ten, rounded up: shape (powers, 2), the high word first.

    The paper's ``g`` with two bits more, so that a product needs no shift after it.
    """
    table = []
    for power in range(_LEAST_POWER, _MOST_POWER + 1):
        if power >= 0:
            value = 10**power
            shift = value.bit_length() - 128
            bits = value << -shift if shift <= 0 else -(-value >> shift)
        else:
            divisor = 10**-power
            bits = -(-(1 << (127 + divisor.bit_length())) // divisor)
            if bits.bit_length() > 128:
                bits = -(-bits >> 1)
        table.append((bits >> 64, bits & (2**64 - 1)))
    return np.array(table, np.uint64)


POWERS: Final = _powers_of_ten()


@compiled
def write_whole(value: Any, out: Any, at: Any) -> Any:
    """Write a whole number of 64 bits; return where it ends.

    Args:
        value: Signed.
        out: Bytes, with room for `LONGEST_VALUE` of them behind ``at``, which nothing checks.
        at: Position in ``out`` to write from, of type uint64, as the one that is returned.
    """
    if value < 0:
        out[at] = _MINUS
        at += _ONE
        value = -value
    return _write_digits(np.uint64(value), out, at)


@compiled
def write_time(time_us: Any, offset_min: Any, out: Any, at: Any) -> Any:
    """Write RFC 3339, ``Z`` where there is no offset; return where it ends."""
    clock_us = time_us + offset_min * _US_PER_MINUTE
    day = clock_us // US_PER_DAY
    of_day_us = clock_us - day * US_PER_DAY
    second, micro = np.uint64(of_day_us // US_PER_SECOND), np.uint64(of_day_us % US_PER_SECOND)
    # Hinnant, "chrono-Compatible Low-Level Date Algorithms": civil_from_days.
    days = day + 719_468
    era = days // 146_097
    day_of_era = days - era * 146_097
    year_of_era = (day_of_era - day_of_era // 1_460 + day_of_era // 36_524 - day_of_era // 146_096) // 365
    day_of_year = day_of_era - (365 * year_of_era + year_of_era // 4 - year_of_era // 100)
    shifted = (5 * day_of_year + 2) // 153
    month = shifted + (3 if shifted < 10 else -9)
    year = np.uint64(era * 400 + year_of_era + (1 if month <= 2 else 0))
    at = _write_padded(year, 4, out, at)
    out[at] = _MINUS
    at = _write_padded(np.uint64(month), 2, out, at + _ONE)
    out[at] = _MINUS
    at = _write_padded(np.uint64(day_of_year - (153 * shifted + 2) // 5 + 1), 2, out, at + _ONE)
    out[at] = _T
    at = _write_padded(second // _HOUR_S, 2, out, at + _ONE)
    out[at] = _COLON
    at = _write_padded(second // _MINUTE_S % _MINUTE_S, 2, out, at + _ONE)
    out[at] = _COLON
    at = _write_padded(second % _MINUTE_S, 2, out, at + _ONE)
    if micro:
        out[at] = _POINT
        at = _write_padded(micro, 6, out, at + _ONE)
    if offset_min == 0:
        out[at] = _Z
        return at + _ONE
    out[at] = _MINUS if offset_min < 0 else _PLUS
    minutes = np.uint64(abs(offset_min))
    at = _write_padded(minutes // _MINUTE_S, 2, out, at + _ONE)
    out[at] = _COLON
    return _write_padded(minutes % _MINUTE_S, 2, out, at + _ONE)


@inlined
def _write_padded(value: Any, digits: Any, out: Any, at: Any) -> Any:
    """A whole number in as many digits, zeros before it."""
    for position in range(digits - 1, -1, -1):
        out[at + np.uint64(position)] = _ZERO_DIGIT + value % _TEN
        value //= _TEN
    return at + np.uint64(digits)


@inlined
def write_number(value: Any, bits: Any, powers: Any, out: Any, at: Any) -> Any:
    """Write a double, ``null`` where it is not finite; return where it ends. ``powers`` are `POWERS`."""
    if not np.isfinite(value):
        out[at], out[at + _ONE], out[at + _TWO], out[at + _THREE] = 110, 117, 108, 108  # null
        return at + _FOUR
    if bits >> np.uint64(63):
        out[at] = _MINUS
        at += _ONE
        value = -value
    if value < _WHOLE_LIMIT and np.floor(value) == value:
        at = _write_digits(np.uint64(value), out, at)
        out[at], out[at + _ONE] = _POINT, _ZERO_DIGIT
        return at + _TWO
    if 0.01 <= value < _FEW_DIGITS_LIMIT:
        # Fifteen digits or fewer: where they read as the same double, no other decimal that short does.
        hundredths = np.floor(value * _FEW_DECIMALS + 0.5)
        if hundredths / _FEW_DECIMALS == value:
            return _write_hundredths(np.uint64(hundredths), out, at)
    digits, exponent = _shortest(bits, powers)
    return _write_decimal(digits, exponent, out, at)


@inlined
def _write_digits(number: Any, out: Any, at: Any) -> Any:
    """A whole number, all its digits."""
    end = at + _count_digits(number)
    position = end
    while number >= _HUNDRED:
        rest = number // _HUNDRED
        pair = number - rest * _HUNDRED
        tens = pair // _TEN
        out[position - _ONE] = _ZERO_DIGIT + (pair - tens * _TEN)
        out[position - _TWO] = _ZERO_DIGIT + tens
        position -= _TWO
        number = rest
    tens = number // _TEN
    out[position - _ONE] = _ZERO_DIGIT + (number - tens * _TEN)
    if tens:
        out[position - _TWO] = _ZERO_DIGIT + tens
    return end


@inlined
def _count_digits(number: Any) -> Any:
    """Return the number of digits of a whole number of up to 19."""
    count, limit = (np.uint64(16), _TEN_TO_16) if number >= _TEN_TO_15 else (_ONE, _TEN)
    while number >= limit:
        count += _ONE
        limit *= _TEN
    return count


@inlined
def _write_hundredths(number: Any, out: Any, at: Any) -> Any:
    """A number of hundredths that is no whole number."""
    whole = number // _HUNDRED
    rest = number - whole * _HUNDRED
    tenths = rest // _TEN
    at = _write_digits(whole, out, at)
    out[at], out[at + _ONE] = _POINT, _ZERO_DIGIT + tenths
    if rest == tenths * _TEN:
        return at + _TWO
    out[at + _TWO] = _ZERO_DIGIT + (rest - tenths * _TEN)
    return at + _THREE


@compiled
def _write_decimal(digits: Any, exponent: Any, out: Any, at: Any) -> Any:
    """``digits`` x 10 ** ``exponent``, without trailing zeros, plain or with an ``e``."""
    while digits % _TEN == _NONE:
        digits //= _TEN
        exponent += 1
    count = _count_digits(digits)
    point = np.int64(count) + exponent
    if not _LEAST_PLAIN_EXPONENT < point <= _MOST_PLAIN_EXPONENT + 1:
        return _write_scientific(digits, count, point - 1, out, at)
    if point <= 0:
        out[at], out[at + _ONE] = _ZERO_DIGIT, _POINT
        at += _TWO
        for _ in range(-point):
            out[at] = _ZERO_DIGIT
            at += _ONE
        return _write_digits(digits, out, at)
    if exponent >= 0:
        at = _write_digits(digits, out, at)
        for _ in range(exponent):
            out[at] = _ZERO_DIGIT
            at += _ONE
        out[at], out[at + _ONE] = _POINT, _ZERO_DIGIT
        return at + _TWO
    return _write_pointed(digits, count, np.uint64(point), out, at)


@inlined
def _write_pointed(digits: Any, count: Any, point: Any, out: Any, at: Any) -> Any:
    """Digits with a point behind the first ``point`` of them, 0 < ``point`` < ``count``."""
    _write_digits(digits, out, at + _ONE)
    for _ in range(point):
        out[at] = out[at + _ONE]
        at += _ONE
    out[at] = _POINT
    return at + _ONE + (count - point)


@inlined
def _write_scientific(digits: Any, count: Any, exponent: Any, out: Any, at: Any) -> Any:
    at = _write_digits(digits, out, at) if count == _ONE else _write_pointed(digits, count, _ONE, out, at)
    out[at] = _E
    at += _ONE
    if exponent < 0:
        out[at] = _MINUS
        at += _ONE
        exponent = -exponent
    return _write_digits(np.uint64(exponent), out, at)


@compiled
def _shortest(bits: Any, powers: Any) -> Any:
    """(digits, exponent) of the shortest decimal within the rounding interval of a double, the closest of several.

    ``bits`` are those of a finite double above zero; the sign does not count.
    """
    significand, exponent = bits & _SIGNIFICAND, np.int64((bits >> _SIGNIFICAND_BITS) & _EXPONENT)
    if exponent:
        c, q = significand | _HIDDEN_BIT, exponent - _EXPONENT_BIAS
    else:
        c, q = significand, np.int64(1 - _EXPONENT_BIAS)
    odd = c & _ONE
    closer = significand == _NONE and exponent > 1
    middle = c << _TWO
    left = middle - (_ONE if closer else _TWO)
    right = middle + _TWO
    k = (q * 1_262_611 - (524_031 if closer else 0)) >> 22
    h = np.uint64(q + ((-k * 1_741_647) >> 19) + 1)
    high, low = powers[-k - _LEAST_POWER, 0], powers[-k - _LEAST_POWER, 1]
    lower = _round_to_odd(high, low, left << h) + odd
    value = _round_to_odd(high, low, middle << h)
    upper = _round_to_odd(high, low, right << h) - odd
    s = value >> _TWO
    if s >= _TEN:
        tenth = s // _TEN
        tens = _FORTY * tenth
        down_inside, up_inside = lower <= tens, tens + _FORTY <= upper
        if down_inside != up_inside:
            return tenth + (_ONE if up_inside else _NONE), k + 1
    quarters = s << _TWO
    down_inside, up_inside = lower <= quarters, quarters + _FOUR <= upper
    if down_inside != up_inside:
        return s + (_ONE if up_inside else _NONE), k
    half = quarters + _TWO
    up = value > half or (value == half and (s & _ONE) != _NONE)
    return s + (_ONE if up else _NONE), k


@inlined
def _round_to_odd(high: Any, low: Any, factor: Any) -> Any:
    """The high word of a 192-bit product; its last bit is set where anything was cut off."""
    carry, _ = wide_product(low, factor)
    top, bottom = wide_product(high, factor)
    total = bottom + carry
    if total < carry:
        top += _ONE
    return top | (_ONE if total > _ONE else _NONE)
