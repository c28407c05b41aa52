"""Transactions as most producers write them, found by compiled code that needs no interpreter.

A record is plain where nobody could read it in two ways: one object of ASCII without escapes, flat but for the
attributes, each field of the wire contract at most once, times and amounts written in the ordinary way and within
limits that are narrower than the decoder's. Of such a record `scan` finds what `schemas.codec.decode_transaction`
would; of any other it says nothing, and the decoder itself is to be asked. Tests hold the two to each other.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from pipeline.features.compiled import compiled
from schemas.codec import MAX_NAMES
from schemas.messages import Transaction
from schemas.times import US_PER_DAY, US_PER_SECOND

FAST_PATH_TIMES_US: Final = (
    int(datetime(1995, 1, 1, tzinfo=UTC).timestamp()) * 1_000_000,
    int(datetime(2095, 1, 1, tzinfo=UTC).timestamp()) * 1_000_000,
)
"""Between them the decoder takes any time."""
NO_TIME: Final = -(2**63)
"""The mark for a missing time; NumPy's own."""
LONGEST_IDENTIFIER: Final = 256
_LONGEST_VALUE: Final = 16_384
"""Bytes of a value; all of a batch are copied together."""

IntArray = NDArray[np.integer[Any]]

_FIELDS: Final = tuple(field.name for field in msgspec.structs.fields(Transaction))
TEXTS: Final = ("transaction_id", "card_id", "merchant_id", "currency", "transaction_type")
"""Columns of text."""
ID, CARD, MERCHANT, CURRENCY, TYPE = range(len(TEXTS))
TIME, AMOUNT = range(len(TEXTS), len(TEXTS) + 2)
"""Places of what is read as numbers too, behind those of the texts."""
SPAN_FIELDS: Final = (*TEXTS, "event_time", "amount", "attributes")
ATTRIBUTES: Final = len(SPAN_FIELDS) - 1
"""Column of the JSON of the attributes; empty for none."""
# What a value may be, by field.
_OTHER, _TEXT, _IDENTIFIER, _TIME, _LOCAL_TIME, _AMOUNT, _WHOLE, _NESTED = range(8)
"""``_OTHER``: text, number or null, of which nothing is kept; ``_NESTED``: a flat object, or null."""
_KINDS: Final = {
    "transaction_id": _IDENTIFIER, "card_id": _IDENTIFIER, "merchant_id": _IDENTIFIER, "currency": _TEXT,
    "transaction_type": _TEXT, "event_time": _TIME, "local_time": _LOCAL_TIME, "amount": _AMOUNT,
    "schema_version": _WHOLE, "attributes": _NESTED,
}  # fmt: skip
_NEEDED: Final = sum(1 << number for number, field in enumerate(msgspec.structs.fields(Transaction)) if field.required)
DEFAULT_TYPE: Final = next(
    field.default for field in msgspec.structs.fields(Transaction) if field.name == "transaction_type"
)
_LONGEST_NAME: Final = 32
_MOST_DIGITS: Final = 15
_MOST_WHOLE_DIGITS: Final = 9
_MOST_DECIMALS: Final = 3
_MOST_ATTRIBUTE_DECIMALS: Final = 20
"""With `_MOST_DIGITS` before the point an amount is within 64 bits."""
_QUOTE, _BACKSLASH, _SPACE, _COLON, _COMMA, _OPEN, _CLOSE = b'"\\ :,{}'
_POINT, _MINUS, _PLUS, _ZERO, _NINE, _T, _Z, _N = b".-+09TZn"
_NULL: Final = np.frombuffer(b"null", np.uint8)


def _layout() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """(names, padded, shape (f, `_LONGEST_NAME`); of each its length, kind and column of `SPAN_FIELDS` or -1)."""
    names = np.zeros((len(_FIELDS), _LONGEST_NAME), np.uint8)
    fields = np.empty((len(_FIELDS), 3), np.int64)
    for row, name in enumerate(_FIELDS):
        names[row, : len(name)] = np.frombuffer(name.encode(), np.uint8)
        fields[row] = len(name), _KINDS.get(name, _OTHER), SPAN_FIELDS.index(name) if name in SPAN_FIELDS else -1
    return names, fields


FIELD_NAMES, FIELD_LAYOUT = _layout()


class ScanResult(NamedTuple):
    """The scan of n records; rows that are not on the fast path hold anything."""

    text: bytes
    """All that places point into."""
    on_fast_path: NDArray[np.bool_]
    """Shape (n,): which are."""
    spans: NDArray[np.int64]
    """Shape (len(SPAN_FIELDS), n, 2): where each text begins and ends."""
    event_time_us: NDArray[np.int64]
    clock_us: NDArray[np.int64]
    """Shape (n,): what the clock on the wall showed, as if it were UTC."""
    amount: NDArray[np.int64]
    """Shape (n,): its digits without the point, and how many of them are ``decimals``."""
    decimals: NDArray[np.int64]


def scan(values: Sequence[bytes | None]) -> ScanResult:
    """Look through n records' ``values``."""
    n = len(values)
    short = [value if value is not None and len(value) <= _LONGEST_VALUE else b"" for value in values]
    text = b"".join((*short, DEFAULT_TYPE.encode()))
    ends = np.cumsum(np.fromiter(map(len, short), np.int64, n))
    on_fast_path = np.zeros(n, np.bool_)
    spans = np.empty((len(SPAN_FIELDS), n, 2), np.int64)
    numbers = np.empty((4, n), np.int64)
    _scan(
        np.frombuffer(text, np.uint8), ends, FIELD_NAMES, FIELD_LAYOUT, on_fast_path, spans, numbers,
        np.empty((len(SPAN_FIELDS), 2), np.int64), np.empty(len(numbers), np.int64),
    )  # fmt: skip
    return ScanResult(text, on_fast_path, spans, *numbers)


@compiled
def _scan(
    text: IntArray, ends: IntArray, names: IntArray, fields: IntArray, on_fast_path: NDArray[np.bool_], spans: IntArray,
    numbers: IntArray, one_spans: IntArray, one_numbers: IntArray,
) -> None:  # fmt: skip
    """Fill the columns; ``one_spans`` and ``one_numbers`` have room for a row."""
    default_first, default_end = (ends[-1] if len(ends) else 0), len(text)
    first = 0
    for row in range(len(ends)):
        end = ends[row]
        one_spans[TYPE, 0], one_spans[TYPE, 1] = default_first, default_end
        one_spans[ATTRIBUTES, 0] = one_spans[ATTRIBUTES, 1] = first
        one_numbers[1] = NO_TIME
        if read_object(text, first, end, names, fields, one_spans, one_numbers) == end:
            on_fast_path[row] = True
            if one_numbers[1] == NO_TIME:
                one_numbers[1] = one_numbers[0]
            for column in range(spans.shape[0]):
                spans[column, row, 0], spans[column, row, 1] = one_spans[column, 0], one_spans[column, 1]
            for column in range(numbers.shape[0]):
                numbers[column, row] = one_numbers[column]
        first = end


@compiled
def read_object(
    text: IntArray, at: int, end: int, names: IntArray, fields: IntArray, spans: IntArray, numbers: IntArray
) -> int:
    """Return where the plain object ends that begins at ``at``, -1 for any other; keep its places and its numbers."""
    if at >= end or text[at] != _OPEN:
        return -1
    at += 1
    seen = names_seen = 0
    while True:
        names_seen += 1
        if names_seen > MAX_NAMES:
            return -1
        at = _past_spaces(text, at, end)
        first, last = _string(text, at, end)
        if first < 0:
            return -1
        at = _past_spaces(text, last + 1, end)
        if at >= end or text[at] != _COLON:
            return -1
        at = _past_spaces(text, at + 1, end)
        if at >= end:
            return -1
        number = _field(text, first, last, names, fields)
        kind = _OTHER
        if number >= 0:
            if seen >> number & 1:
                return -1
            seen |= 1 << number
            kind = fields[number, 1]
        if text[at] == _QUOTE:
            first, last = _string(text, at, end)
            if first < 0 or not _take_text(text, first, last, kind, fields[number, 2], spans, numbers):
                return -1
            at = last + 1
        elif text[at] == _N and kind in (_OTHER, _LOCAL_TIME, _NESTED):
            at = _past_null(text, at, end)
            if at < 0:
                return -1
        elif text[at] == _OPEN and kind == _NESTED:
            first = at
            at, names_seen = _past_flat_object(text, at, end, names_seen)
            if at < 0:
                return -1
            spans[ATTRIBUTES, 0], spans[ATTRIBUTES, 1] = first, at
        elif kind == _OTHER:
            at = _past_number(text, at, end)
            if at < 0:
                return -1
        elif kind in (_AMOUNT, _WHOLE):
            first = at
            while at < end and (text[at] == _POINT or _ZERO <= text[at] <= _NINE):
                at += 1
            if kind == _AMOUNT:
                if not _take_text(text, first, at, kind, fields[number, 2], spans, numbers):
                    return -1
            elif not _whole(text, first, at, _MOST_WHOLE_DIGITS):
                return -1
        else:
            return -1
        at = _past_spaces(text, at, end)
        if at >= end:
            return -1
        if text[at] == _CLOSE:
            return at + 1 if seen & _NEEDED == _NEEDED else -1
        if text[at] != _COMMA:
            return -1
        at += 1


@compiled
def _take_text(
    text: IntArray, first: int, last: int, kind: int, column: int, spans: IntArray, numbers: IntArray
) -> bool:
    """Keep what a string, or a number, says of a field of ``kind``; whether the fast path takes it."""
    if kind == _OTHER:
        return True
    if column >= 0:
        spans[column, 0], spans[column, 1] = first, last
    if kind in (_TEXT, _IDENTIFIER):
        return kind == _TEXT or 0 < last - first <= LONGEST_IDENTIFIER
    if kind == _TIME:
        numbers[0] = event_us = read_time(text, first, last, True)
        on_fast_path: bool = FAST_PATH_TIMES_US[0] <= event_us < FAST_PATH_TIMES_US[1]
        return on_fast_path
    if kind == _LOCAL_TIME:
        numbers[1] = clock_us = read_time(text, first, last, False)
        clock_on_fast_path: bool = FAST_PATH_TIMES_US[0] <= clock_us < FAST_PATH_TIMES_US[1]
        return clock_on_fast_path
    return kind == _AMOUNT and _amount(text, first, last, numbers)


@compiled
def _past_flat_object(text: IntArray, at: int, end: int, names_seen: int) -> tuple[int, int]:
    """Return where an object of plain strings, plain numbers and nulls ends, and the names so far; -1 for any other."""
    at = _past_spaces(text, at + 1, end)
    if at < end and text[at] == _CLOSE:
        return at + 1, names_seen
    while True:
        names_seen += 1
        if names_seen > MAX_NAMES:
            return -1, names_seen
        first, last = _string(text, at, end)
        if first < 0:
            return -1, names_seen
        at = _past_spaces(text, last + 1, end)
        if at >= end or text[at] != _COLON:
            return -1, names_seen
        at = _past_spaces(text, at + 1, end)
        if at < end and text[at] == _QUOTE:
            first, last = _string(text, at, end)
            at = last + 1 if first >= 0 else -1
        elif at < end and text[at] == _N:
            at = _past_null(text, at, end)
        else:
            at = _past_number(text, at, end)
        if at < 0:
            return -1, names_seen
        at = _past_spaces(text, at, end)
        if at >= end or text[at] not in (_COMMA, _CLOSE):
            return -1, names_seen
        at += 1
        if text[at - 1] == _CLOSE:
            return at, names_seen
        at = _past_spaces(text, at, end)


@compiled
def _past_null(text: IntArray, at: int, end: int) -> int:
    """Return where the null ends that begins at ``at``; -1 for none."""
    for letter in range(4):
        if at + letter >= end or text[at + letter] != _NULL[letter]:
            return -1
    return at + 4


@compiled
def _past_number(text: IntArray, at: int, end: int) -> int:
    """Return where the plain number ends that begins at ``at``: digits, and decimals behind a point; -1 for none."""
    if at < end and text[at] == _MINUS:
        at += 1
    first = at
    while at < end and _ZERO <= text[at] <= _NINE:
        at += 1
    if not _whole(text, first, at, _MOST_DIGITS):
        return -1
    if at < end and text[at] == _POINT:
        first = at + 1
        at = first
        while at < end and _ZERO <= text[at] <= _NINE:
            at += 1
        if not 0 < at - first <= _MOST_ATTRIBUTE_DECIMALS:
            return -1
    return at


@compiled
def _past_spaces(text: IntArray, at: int, end: int) -> int:
    while at < end and text[at] == _SPACE:
        at += 1
    return at


@compiled
def _string(text: IntArray, at: int, end: int) -> tuple[int, int]:
    """Return begin and end of a string of ASCII without escapes, without its quotes; (-1, -1) where there is none."""
    if at >= end or text[at] != _QUOTE:
        return -1, -1
    first = at + 1
    at = first
    while at < end:
        byte = text[at]
        if byte == _QUOTE:
            return first, at
        if byte < _SPACE or byte > 126 or byte == _BACKSLASH:
            return -1, -1
        at += 1
    return -1, -1


@compiled
def _field(text: IntArray, first: int, last: int, names: IntArray, fields: IntArray) -> int:
    """The number of a name among `_FIELDS`, -1 for one that is not among them."""
    for number in range(len(fields)):
        if fields[number, 0] == last - first:
            same = True
            for position in range(last - first):
                if names[number, position] != text[first + position]:
                    same = False
                    break
            if same:
                return number
    return -1


@compiled
def _whole(text: IntArray, first: int, last: int, most: int) -> bool:
    """Return True if these are 1 to ``most`` digits, of which the first is no needless zero."""
    if not 0 < last - first <= most or (text[first] == _ZERO and last - first > 1):
        return False
    others = 0
    for position in range(first, last):
        others += not _ZERO <= text[position] <= _NINE
    return others == 0


@compiled
def _amount(text: IntArray, first: int, last: int, numbers: IntArray) -> bool:
    """Keep a plain decimal as a whole number and how many decimals it has."""
    point = last
    for position in range(first, last):
        if text[position] == _POINT:
            point = position
            break
    decimals = max(last - point - 1, 0)
    if not _whole(text, first, point, _MOST_DIGITS) or decimals > _MOST_DECIMALS or (point < last and decimals == 0):
        return False
    value = 0
    for position in range(first, last):
        if position != point:
            if not _ZERO <= text[position] <= _NINE:
                return False
            value = 10 * value + (text[position] - _ZERO)
    numbers[2], numbers[3] = value, decimals
    return True


@compiled
def _digits(text: IntArray, first: int, count: int) -> int:
    """The number that ``count`` digits say; a large negative one where they are none."""
    value = 0
    for position in range(first, first + count):
        if not _ZERO <= text[position] <= _NINE:
            return -1_000_000
        value = 10 * value + (text[position] - _ZERO)
    return value


@compiled
def read_time(text: IntArray, first: int, last: int, zoned: bool) -> int:
    """Microseconds since 1970 of YYYY-MM-DDThh:mm:ss with up to six decimals, and Z or an offset; `NO_TIME` else."""
    if last - first < 19:
        return NO_TIME
    if (
        text[first + 4] != _MINUS
        or text[first + 7] != _MINUS
        or text[first + 10] != _T
        or text[first + 13] != _COLON
        or text[first + 16] != _COLON
    ):
        return NO_TIME
    year, month, day = _digits(text, first, 4), _digits(text, first + 5, 2), _digits(text, first + 8, 2)
    hour, minute, second = _digits(text, first + 11, 2), _digits(text, first + 14, 2), _digits(text, first + 17, 2)
    if not (year >= 1 and 1 <= month <= 12 and 1 <= day <= 28 + _days_more(year, month)):
        return NO_TIME
    if not (0 <= hour <= 23 and 0 <= minute <= 59 and 0 <= second <= 59):
        return NO_TIME
    at = first + 19
    micro = 0
    if at < last and text[at] == _POINT:
        at += 1
        count = 0
        while at < last and _ZERO <= text[at] <= _NINE:
            micro = 10 * micro + (text[at] - _ZERO)
            at += 1
            count += 1
        if not 1 <= count <= 6:
            return NO_TIME
        for _ in range(6 - count):
            micro *= 10
    offset_min = 0
    if zoned:
        if at >= last:
            return NO_TIME
        if text[at] == _Z:
            at += 1
        elif (text[at] == _PLUS or text[at] == _MINUS) and last - at == 6 and text[at + 3] == _COLON:
            hours, minutes = _digits(text, at + 1, 2), _digits(text, at + 4, 2)
            if not (0 <= hours <= 23 and 0 <= minutes <= 59):
                return NO_TIME
            offset_min = 60 * hours + minutes
            if text[at] == _MINUS:
                offset_min = -offset_min
            at += 6
        else:
            return NO_TIME
    if at != last:
        return NO_TIME
    of_day_s = (60 * hour + minute - offset_min) * 60 + second
    moment_us: int = _day(year, month, day) * US_PER_DAY + of_day_s * US_PER_SECOND + micro
    return moment_us


@compiled
def offset_min(text: IntArray, last: int) -> int:
    """Return the minutes of the UTC offset of a plain time that ends at ``last``."""
    if text[last - 1] == _Z:
        return 0
    minutes: int = 60 * _digits(text, last - 5, 2) + _digits(text, last - 2, 2)
    return -minutes if text[last - 6] == _MINUS else minutes


@compiled
def _days_more(year: int, month: int) -> int:
    """Days of a month besides 28."""
    if month == 2:
        leap = year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)
        return 1 if leap else 0
    return 2 if month in (4, 6, 9, 11) else 3


@compiled
def _day(year: int, month: int, day: int) -> int:
    """Days since 1970-01-01 (Hinnant, "chrono-Compatible Low-Level Date Algorithms": days_from_civil)."""
    if month <= 2:
        year -= 1
    era = year // 400
    year_of_era = year - era * 400
    day_of_year = (153 * (month + (-3 if month > 2 else 9)) + 2) // 5 + day - 1
    day_of_era = year_of_era * 365 + year_of_era // 4 - year_of_era // 100 + day_of_year
    return era * 146_097 + day_of_era - 719_468
