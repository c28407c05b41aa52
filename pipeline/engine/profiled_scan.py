"""Transactions on ``profiled`` as the card agent writes them, found by compiled code that needs no interpreter.

A record is plain where it has the names of `ProfiledTransaction` in their order, texts of ASCII without escapes,
numbers and times written in the ordinary way, and a producer's own bytes that are plain too
(`pipeline.engine.scanned`). Of any other record, labels among them, `scan_profiled` says nothing: ask the decoder.
"""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pipeline.engine import scanned
from pipeline.engine.json_bytes import ALPHABET
from pipeline.engine.scanned import DEFAULT_TYPE, KEPT, NAMES, SAID, read_object, read_time
from pipeline.engine.subjects import (
    AMOUNT,
    AMOUNT_BASE,
    CARD,
    CASE,
    CASE_SEQUENCE,
    COUNTS,
    CURRENCY,
    EVENT_US,
    ID,
    INGESTED_OFFSET,
    INGESTED_US,
    INPUT,
    INPUT_OFFSET,
    INPUT_PARTITION,
    MERCHANT,
    RATES,
    SAME_RATES,
    SOURCE,
    SOURCE_OFFSET,
    SOURCE_PARTITION,
    STATED_OFFSET,
    STATED_US,
    TEXTS,
    TYPE,
    WHOLES,
    Subjects,
)  # fmt: skip
from pipeline.features.catalogue import CARD_FEATURES, KERNEL_VERSION
from pipeline.features.compiled import compiled, inlined
from pipeline.features.words import WORD_BYTES, masked_words, word_at
from schemas.codec import EARLIEST_US, LATEST_US, MAX_AMOUNT_BASE_MINOR

IntArray = NDArray[np.integer[Any]]

_LONGEST_PLAIN: Final = 32_768
"""Bytes of a value; all of a batch are copied together."""
_MOST_DIGITS: Final = 18
_CARD_BYTES: Final = 8 * len(CARD_FEATURES)
_SPACE, _QUOTE, _BACKSLASH, _ZERO, _NINE, _PLUS, _MINUS, _Z, _T, _F, _N, _EQUALS, _OPEN = b' "\\09+-Ztfn={'
_PARTS: Final = (
    b'{"kind":"transaction","schema_version":1,"transaction_id":"',
    b'","card_id":"',
    b'","merchant_id":"',
    b'","event_time_us":',
    b',"amount_base_minor":',
    b',"rates_version":"',
    b'","counts":',
    b',"card_features":"',
    b'","kernel":"' + KERNEL_VERSION.encode() + b'","case_id":"',
    b'","case_sequence":',
    b',"source":',
    b',"ingested_at":"',
    b'","transaction":',
    b',"read":',
    b"}",
    b'{"topic":"',
    b'","partition":',
    b',"offset":',
    b"true",
    b"false",
    b"null",
)
(
    _AT_ID, _AT_CARD, _AT_MERCHANT, _AT_EVENT, _AT_AMOUNT, _AT_RATES, _AT_COUNTS, _AT_FEATURES, _AT_CASE, _AT_SEQUENCE,
    _AT_SOURCE, _AT_INGESTED, _AT_TRANSACTION, _AT_READ, _AT_END, _AT_TOPIC, _AT_PARTITION, _AT_OFFSET, _TRUE, _FALSE,
    _NULL,
) = range(len(_PARTS))  # fmt: skip
_STATED_TIME, _STATED_AMOUNT, _STATED_CURRENCY, _STATED_TYPE = (
    scanned.TIME, scanned.AMOUNT, scanned.CURRENCY, scanned.TYPE,
)  # fmt: skip
_PART_WORDS, _PART_MASKS = masked_words(_PARTS)
_WIDEST: Final = WORD_BYTES * _PART_WORDS.shape[1]
_PART_BYTES: Final = np.array([*map(len, _PARTS)], np.int64)


def _base64_values() -> NDArray[np.uint8]:
    values = np.full(256, 255, np.uint8)
    values[np.frombuffer(ALPHABET, np.uint8)] = np.arange(64)
    return values


_BASE64: Final = _base64_values()


def scan_profiled(values: Sequence[bytes | None], features: NDArray[np.float64]) -> tuple[Subjects, NDArray[np.bool_]]:
    """Look through n records' ``values``: their columns, and which of them are plain, shape (n,).

    Rows that are not plain hold anything. Card features become the first columns of ``features``, which has n rows.
    """
    n = len(values)
    short = [value if value is not None and len(value) <= _LONGEST_PLAIN else b"" for value in values]
    # What is compared with names may reach beyond the last record.
    text = b"".join((*short, DEFAULT_TYPE.encode(), bytes(_WIDEST)))
    ends = np.cumsum(np.fromiter(map(len, short), np.int64, n))
    plain = np.zeros(n, np.bool_)
    spans, wholes = np.empty((len(TEXTS), n, 2), np.int64), np.empty((len(WHOLES), n), np.int64)
    _scan(
        np.frombuffer(text, np.uint8), ends, (_PART_WORDS, _PART_MASKS, _PART_BYTES, _BASE64), (NAMES, SAID), plain,
        spans, wholes, features, features.view(np.uint8), np.empty((len(KEPT), 2), np.int64), np.empty(4, np.int64),
    )  # fmt: skip
    return Subjects(text, spans, wholes), plain


@compiled
def _scan(
    text: Any, ends: Any, known: Any, contract: Any, plain: Any, spans: Any, wholes: Any, features: Any, packed: Any,
    stated_spans: Any, stated_numbers: Any,
) -> None:  # fmt: skip
    """Fill the columns; ``stated`` has room for what a producer's record says."""
    first, before = 0, -1
    for row in range(len(ends)):
        end = ends[row]
        plain[row] = _read(
            text, first, end, known, contract, row, spans, wholes, features, packed, stated_spans, stated_numbers
        )
        if plain[row]:
            same = before >= 0 and equal_texts(text, spans[RATES, row], spans[RATES, before])
            wholes[SAME_RATES, row] = wholes[SAME_RATES, before] if same else row
            before = row
        first = end


@compiled
def _read(
    text: Any, at: Any, end: Any, known: Any, contract: Any, row: Any, spans: Any, wholes: Any, features: Any,
    packed: Any, stated_spans: Any, stated_numbers: Any,
) -> Any:  # fmt: skip
    """Return whether the record from ``at`` to ``end`` is plain."""
    at = _text(text, _past(text, at, end, known, _AT_ID), end, spans, ID, row)
    at = _text(text, _past(text, at, end, known, _AT_CARD), end, spans, CARD, row)
    at = _text(text, _past(text, at, end, known, _AT_MERCHANT), end, spans, MERCHANT, row)
    at = _whole(text, _past(text, at, end, known, _AT_EVENT), end, wholes, EVENT_US, row)
    at = _whole(text, _past(text, at, end, known, _AT_AMOUNT), end, wholes, AMOUNT_BASE, row)
    at = _text(text, _past(text, at, end, known, _AT_RATES), end, spans, RATES, row)
    at = _past(text, at, end, known, _AT_COUNTS)
    if at < 0:
        return False
    counts = text[at] == _T
    wholes[COUNTS, row] = counts
    at = _past(text, at, end, known, _TRUE if counts else _FALSE)
    at = _features(text, _past(text, at, end, known, _AT_FEATURES), end, known[3], packed, row)
    at = _text(text, _past(text, at, end, known, _AT_CASE), end, spans, CASE, row)
    at = _whole(text, _past(text, at, end, known, _AT_SEQUENCE), end, wholes, CASE_SEQUENCE, row)
    source = _past(text, at, end, known, _AT_SOURCE)
    at = _position(text, source, end, known, spans, wholes, SOURCE, SOURCE_PARTITION, row)
    spans[INPUT, row, 0], spans[INPUT, row, 1] = spans[SOURCE, row, 0], spans[SOURCE, row, 1]
    spans[SOURCE, row, 0], spans[SOURCE, row, 1] = source, at
    wholes[INPUT_PARTITION, row], wholes[INPUT_OFFSET, row] = wholes[SOURCE_PARTITION, row], wholes[SOURCE_OFFSET, row]
    at = _utc(text, _past(text, at, end, known, _AT_INGESTED), end, wholes, row)
    at = _stated(
        text, _past(text, at, end, known, _AT_TRANSACTION), end, contract, spans, wholes, row, stated_spans,
        stated_numbers,
    )  # fmt: skip
    at = _past(text, at, end, known, _AT_READ)
    if at < 0:
        return False
    if text[at] == _N:
        at = _past(text, at, end, known, _NULL)
    else:
        at = _position(text, at, end, known, spans, wholes, INPUT, INPUT_PARTITION, row)
    return _past(text, at, end, known, _AT_END) == end and _possible(wholes, features, row)


@compiled
def _past(text: Any, at: Any, end: Any, known: Any, part: Any) -> Any:
    """Return the end of a part that must stand at ``at``; -1 where it does not, or nothing follows it."""
    words, masks, length = known[0], known[1], known[2][part]
    if at < 0 or at + length > end:
        return -1
    differs = np.uint64(0)
    for place in range((length + WORD_BYTES - 1) // WORD_BYTES):
        differs |= (word_at(text, at + place * WORD_BYTES) ^ words[part, place]) & masks[part, place]
    # Behind all but the last part a value follows.
    return -1 if differs or (at + length == end and part != _AT_END) else at + length


@compiled
def _text(text: Any, at: Any, end: Any, spans: Any, column: Any, row: Any) -> Any:
    """Keep a string of ASCII without escapes; where its closing quote stands."""
    if at < 0:
        return -1
    first = at
    while at < end:
        sign = text[at]
        if sign == _QUOTE:
            spans[column, row, 0], spans[column, row, 1] = first, at
            return at
        if sign < _SPACE or sign > 126 or sign == _BACKSLASH:
            return -1
        at += 1
    return -1


@compiled
def _whole(text: Any, at: Any, end: Any, wholes: Any, column: Any, row: Any) -> Any:
    """Keep a whole number that is not below zero; where it ends."""
    if at < 0:
        return -1
    first: Any = at
    value: Any = 0
    while at < end and _ZERO <= text[at] <= _NINE and at - first < _MOST_DIGITS:
        value = 10 * value + np.int64(text[at] - _ZERO)
        at += 1
    if at == first or (text[first] == _ZERO and at - first > 1):
        return -1
    wholes[column, row] = value
    return at


@compiled
def _position(
    text: Any, at: Any, end: Any, known: Any, spans: Any, wholes: Any, topic: Any, partition: Any, row: Any
) -> Any:
    """Keep a position of a single record, the offset in the column behind ``partition``; where it ends."""
    at = _text(text, _past(text, at, end, known, _AT_TOPIC), end, spans, topic, row)
    at = _whole(text, _past(text, at, end, known, _AT_PARTITION), end, wholes, partition, row)
    at = _whole(text, _past(text, at, end, known, _AT_OFFSET), end, wholes, partition + 1, row)
    return at + 1 if 0 <= at < end and text[at] == 125 else -1  # }


@compiled
def _features(text: Any, at: Any, end: Any, values: Any, packed: Any, row: Any) -> Any:
    """Decode base64 into the first bytes of a row; where its closing quote stands."""
    whole = _CARD_BYTES // 3
    length = 4 * ((_CARD_BYTES + 2) // 3)
    if at < 0 or at + length >= end:
        return -1
    wrong = np.uint8(0)
    for group in range(whole):
        place, byte = at + 4 * group, 3 * group
        a, b, c, d = values[text[place]], values[text[place + 1]], values[text[place + 2]], values[text[place + 3]]
        wrong |= a | b | c | d
        packed[row, byte] = a << 2 | b >> 4
        packed[row, byte + 1] = (b & 15) << 4 | c >> 2
        packed[row, byte + 2] = (c & 3) << 6 | d
    place, byte = at + 4 * whole, 3 * whole
    if _CARD_BYTES - byte > 0:
        a, b, c = values[text[place]], values[text[place + 1]], np.uint8(0)
        packed[row, byte] = a << 2 | b >> 4
        if _CARD_BYTES - byte == 2:
            c = values[text[place + 2]]
            packed[row, byte + 1] = (b & 15) << 4 | c >> 2
            wrong |= c | (c & 3) << 6
        else:
            wrong |= (b & 15) << 6 | np.uint8(255 * (text[place + 2] != _EQUALS))
        wrong |= a | b | np.uint8(255 * (text[place + 3] != _EQUALS))
    # Digits are below 64.
    return -1 if wrong > 63 else at + length


@compiled
def _utc(text: Any, at: Any, end: Any, wholes: Any, row: Any) -> Any:
    """Keep when the card agent read the record; where the closing quote stands."""
    if at < 0:
        return -1
    first = at
    while at < end and text[at] != _QUOTE:
        at += 1
    if at in (end, first) or text[at - 1] != _Z:
        return -1
    wholes[INGESTED_US, row], wholes[INGESTED_OFFSET, row] = read_time(text, first, at, True), 0
    # Far from where times end.
    return at if EARLIEST_US <= wholes[INGESTED_US, row] < LATEST_US else -1


@compiled
def _stated(
    text: Any, at: Any, end: Any, contract: Any, spans: Any, wholes: Any, row: Any, stated: Any, numbers: Any
) -> Any:
    """Keep what a producer's own record says; where it ends."""
    if at < 0:
        return -1
    default = len(text) - _WIDEST - len(DEFAULT_TYPE)
    stated[_STATED_TYPE, 0], stated[_STATED_TYPE, 1] = default, default + len(DEFAULT_TYPE)
    at = read_object(text, at, end, contract[0], contract[1], stated, numbers)
    if at < 0:
        return -1
    for column, kept in ((AMOUNT, _STATED_AMOUNT), (CURRENCY, _STATED_CURRENCY), (TYPE, _STATED_TYPE)):
        spans[column, row, 0], spans[column, row, 1] = stated[kept, 0], stated[kept, 1]
    wholes[STATED_US, row] = numbers[0]
    wholes[STATED_OFFSET, row] = _offset_min(text, stated[_STATED_TIME, 1])
    return at


@compiled
def _offset_min(text: Any, last: Any) -> Any:
    """Minutes of the offset with which a time ends that is known to be one."""
    if text[last - 1] == _Z:
        return 0
    minutes: Any = 0
    for place, weight in ((5, 600), (4, 60), (2, 10), (1, 1)):
        minutes += weight * np.int64(text[last - place] - _ZERO)
    return -minutes if text[last - 6] == _MINUS else minutes


@compiled
def _possible(wholes: Any, features: Any, row: Any) -> Any:
    """Return whether a card agent can have written the numbers."""
    if not EARLIEST_US <= wholes[EVENT_US, row] < LATEST_US or wholes[AMOUNT_BASE, row] > MAX_AMOUNT_BASE_MINOR:
        return False
    infinite = 0
    for column in range(_CARD_BYTES // 8):
        infinite += np.isinf(features[row, column])
    return infinite == 0


@inlined
def equal_texts(text: Any, one: Any, other: Any) -> Any:
    """Return whether two places, (begin, end) each, hold the same bytes."""
    length = one[1] - one[0]
    if length != other[1] - other[0]:
        return False
    differs = np.uint8(0)
    for place in range(length):
        differs |= text[one[0] + place] ^ text[other[0] + place]
    return differs == 0
