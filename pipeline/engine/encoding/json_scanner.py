"""Transactions as most producers write them, found by compiled code that needs no interpreter.

A record is plain where nobody could read it in two ways: one object of ASCII without escapes, flat but for the
attributes, each field of `schemas.fields.DECLARED_FIELDS` at most once, times and amounts written in the ordinary
way and within limits that are narrower than the decoder's. Of such a record `scan` finds what
`schemas.codec.decode_transaction` would; of any other it says nothing, and the decoder itself is to be asked. Tests
hold the two to each other.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.features.compiled import compiled
from schemas.codec import MAX_NAMES
from schemas.fields import DECLARED_FIELDS, TEXT_COLUMNS, FieldDeclaration, Kind
from schemas.times import US_PER_DAY, US_PER_SECOND

FAST_PATH_TIMES_US: Final = (
    int(datetime(1995, 1, 1, tzinfo=UTC).timestamp()) * 1_000_000,
    int(datetime(2095, 1, 1, tzinfo=UTC).timestamp()) * 1_000_000,
)
"""Between them the decoder takes any time."""
NO_TIME: Final = -(2**63)
"""The mark for a missing time; NumPy's own."""
_LONGEST_VALUE: Final = 16_384
"""Bytes of a value; all of a batch are copied together."""

IntArray = NDArray[np.integer[Any]]

# What compiled code has as constants comes first: it is kept on disk for all declarations.
SPANS: Final = ("amount", "attributes", *(field.name for field in TEXT_COLUMNS))
"""Names of the columns of spans: those of texts, and of what is read otherwise too."""
AMOUNT, ATTRIBUTES, CURRENCY = map(SPANS.index, ("amount", "attributes", "currency"))
_TEXT, _NUMBER, _TIME, _CLOCK, _AMOUNT, _WHOLE, _ATTRIBUTES = map(int, Kind)
_UNKNOWN: Final = len(Kind)
"""Kind of what has a name that no field has."""
_NULL_TOO, _NUMBER_TOO = 1, 2
_NEEDED: Final = sum(1 << number for number, field in enumerate(DECLARED_FIELDS) if field.required)
"""A bit for each field that a record must have."""
_DEFAULTS: Final = {SPANS.index(field.name): field.default for field in TEXT_COLUMNS if field.default is not None}
_MOST_LENGTH: Final = 2**31
_MOST_DIGITS: Final = 15
_MOST_WHOLE_DIGITS: Final = 9
_MOST_DECIMALS: Final = 3
_MOST_ATTRIBUTE_DECIMALS: Final = 20
"""With `_MOST_DIGITS` before the point an amount is within 64 bits."""
_MOST_ZEROS: Final = 4
"""Zeros behind the point from which Python writes a number below 1 with an exponent."""
_QUOTE, _BACKSLASH, _SPACE, _COLON, _COMMA, _OPEN, _CLOSE = b'"\\ :,{}'
_POINT, _MINUS, _PLUS, _ZERO, _NINE, _T, _Z, _N = b".-+09TZn"
_NULL: Final = np.frombuffer(b"null", np.uint8)


def _layout(fields: Sequence[FieldDeclaration]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return names of f fields, padded, and their layout.

    The layout has shape (f, 6): length of the name, kind, column of `SPANS` or -1, least and most characters of a
    text, and what may stand in place of the value.
    """
    names = np.zeros((len(fields), max(len(field.name) for field in fields)), np.uint8)
    layout = np.empty((len(fields), 6), np.int64)
    for row, (name, kind, required, default, least, most, for_text, *_) in enumerate(fields):
        names[row, : len(name)] = np.frombuffer(name.encode(), np.uint8)
        instead = _NULL_TOO * (not required and default is None and kind != _WHOLE) + _NUMBER_TOO * for_text
        span = SPANS.index(name) if name in SPANS else -1
        layout[row] = len(name), kind, span, max(least, 0), min(most, _MOST_LENGTH), instead
    return names, layout


FIELD_NAMES, FIELD_LAYOUT = _layout(DECLARED_FIELDS)


class ScanResult(NamedTuple):
    """The scan of n records; rows that are not on the fast path hold anything."""

    text: bytes
    """All that places point into."""
    on_fast_path: NDArray[np.bool_]
    """Shape (n,): which are."""
    spans: NDArray[np.int64]
    """Shape (len(SPANS), n, 2): where each value begins and ends; -1 twice for none."""
    event_time_us: NDArray[np.int64]
    clock_us: NDArray[np.int64]
    """Shape (n,): what the clock on the wall showed, as if it were UTC."""
    amount: NDArray[np.int64]
    """Shape (n,): its digits without the point, and how many of them are ``decimals``."""
    decimals: NDArray[np.int64]
    offset_min: NDArray[np.int64]
    """Shape (n,): minutes of the UTC offset of ``event_time_us``."""


def scan(values: Sequence[bytes | None]) -> ScanResult:
    """Look through n records' ``values``."""
    n = len(values)
    short = [value if value is not None and len(value) <= _LONGEST_VALUE else b"" for value in values]
    ends = np.cumsum(np.fromiter(map(len, short), np.int64, n))
    end, absent = int(ends[-1]) if n else 0, np.full((len(SPANS), 2), -1)
    for column, default in _DEFAULTS.items():
        absent[column] = end, end + len(default)
        end += len(default)
        short.append(default.encode())
    text = b"".join(short)
    on_fast_path = np.zeros(n, np.bool_)
    spans, numbers = np.empty((len(SPANS), n, 2), np.int64), np.empty((5, n), np.int64)
    _scan(
        np.frombuffer(text, np.uint8), ends, FIELD_NAMES, FIELD_LAYOUT, on_fast_path, spans, numbers, absent,
        np.empty_like(absent), np.empty(len(numbers), np.int64), _NEEDED,
    )  # fmt: skip
    return ScanResult(text, on_fast_path, spans, *numbers)


@compiled
def _scan(
    text: IntArray, ends: IntArray, names: IntArray, fields: IntArray, on_fast_path: NDArray[np.bool_], spans: IntArray,
    numbers: IntArray, absent: IntArray, one_spans: IntArray, one_numbers: IntArray, needed: int,
) -> None:  # fmt: skip
    """Fill the columns; ``absent`` are the spans of what is not there, and those before ``needed`` have room for a row.

    Nothing of the declaration is compiled in, so that fields need no compiling.
    """
    first = 0
    for row in range(len(ends)):
        end = ends[row]
        for column in range(spans.shape[0]):
            one_spans[column, 0], one_spans[column, 1] = absent[column, 0], absent[column, 1]
        one_numbers[1] = NO_TIME
        if _read_object(text, first, end, names, fields, one_spans, one_numbers, needed) == end:
            on_fast_path[row] = True
            if one_numbers[1] == NO_TIME:
                one_numbers[1] = one_numbers[0]
            for column in range(spans.shape[0]):
                spans[column, row, 0], spans[column, row, 1] = one_spans[column, 0], one_spans[column, 1]
            for column in range(numbers.shape[0]):
                numbers[column, row] = one_numbers[column]
        first = end


@compiled
def _read_object(
    text: IntArray,
    at: int,
    end: int,
    names: IntArray,
    fields: IntArray,
    spans: IntArray,
    numbers: IntArray,
    needed: int,
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
        kind, column, instead = _UNKNOWN, -1, _NULL_TOO | _NUMBER_TOO
        if number >= 0:
            if seen >> number & 1:
                return -1
            seen |= 1 << number
            kind, column, instead = fields[number, 1], fields[number, 2], fields[number, 5]
        if text[at] == _QUOTE:
            first, last = _string(text, at, end)
            if first < 0:
                return -1
            at = last + 1
            if kind == _TEXT and not fields[number, 3] <= last - first <= fields[number, 4]:
                return -1
            if kind not in (_TEXT, _UNKNOWN) and not _take_text(text, first, last, kind, numbers):
                return -1
        elif text[at] == _N:
            at = _past_null(text, at, end)
            if at < 0 or not instead & _NULL_TOO:
                return -1
            column = -1
        elif text[at] == _OPEN and kind == _ATTRIBUTES:
            first = at
            at, names_seen = _past_flat_object(text, at, end, names_seen)
            last = at
        elif kind in (_AMOUNT, _WHOLE):
            first = at
            while at < end and (text[at] == _POINT or _ZERO <= text[at] <= _NINE):
                at += 1
            last = at
            if kind == _AMOUNT:
                if not _amount(text, first, at, numbers):
                    return -1
            elif not _whole(text, first, at, _MOST_WHOLE_DIGITS):
                return -1
        elif kind == _NUMBER or instead & _NUMBER_TOO:
            first = at
            at = _past_number(text, at, end)
            last = at
            if at >= 0 and column >= 0 and not _is_own_text(text, first, last):
                return -1
        else:
            return -1
        if at < 0:
            return -1
        if column >= 0:
            spans[column, 0], spans[column, 1] = first, last
        at = _past_spaces(text, at, end)
        if at >= end:
            return -1
        if text[at] == _CLOSE:
            return at + 1 if seen & needed == needed else -1
        if text[at] != _COMMA:
            return -1
        at += 1


@compiled
def _take_text(text: IntArray, first: int, last: int, kind: int, numbers: IntArray) -> bool:
    """Keep what a string says of a field that is no text; return whether the fast path takes it."""
    if kind == _AMOUNT:
        return _amount(text, first, last, numbers)
    if kind not in (_TIME, _CLOCK):
        return False
    time_us = read_time(text, first, last, kind == _TIME)
    numbers[kind - _TIME] = time_us
    if kind == _TIME:
        numbers[4] = _offset_min(text, last)
    on_fast_path: bool = FAST_PATH_TIMES_US[0] <= time_us < FAST_PATH_TIMES_US[1]
    return on_fast_path


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
def _is_own_text(text: IntArray, first: int, last: int) -> bool:
    """Return True if Python writes a plain number as it stands: without a needless zero, and not with an exponent."""
    start = first + (text[first] == _MINUS)
    point = start
    while point < last and text[point] != _POINT:
        point += 1
    if point == last:
        return bool(text[start] != _ZERO) or start == first
    if text[last - 1] == _ZERO or last - start > _MOST_DIGITS + 1:
        return False
    zeros = 0
    while text[point + 1 + zeros] == _ZERO:
        zeros += 1
    return bool(text[start] != _ZERO) or zeros < _MOST_ZEROS


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
    """The number of a name among ``names``, -1 for one that is not among them."""
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
def _offset_min(text: IntArray, last: int) -> int:
    """The minutes of the UTC offset of a plain time that ends at ``last``."""
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
