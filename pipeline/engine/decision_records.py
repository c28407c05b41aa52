"""Decision records: the part of a decision that a training example takes over, a third of its bytes.

Compiled code reads decisions as the score agent writes them: the fields of `Decision` in their order without spaces,
the kernel's features, strings of ASCII without escapes. Any other decision is read by msgspec. Tests hold the two to
each other.
"""

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np

from pipeline.engine.scanned import NO_TIME, PLAIN_TIMES_US, read_time
from pipeline.features.catalogue import FEATURES
from pipeline.features.compiled import compiled, inlined
from pipeline.features.words import WORD_BYTES, masked_words, word_at
from schemas.codec import EARLIEST_US, LATEST_US, timestamp_us
from schemas.messages import Decision, LogPosition, Timestamp, Versions


class Kept(msgspec.Struct, frozen=True, array_like=True):
    """Fields that an example takes over from a decision, in the order in which decisions have them."""

    transaction_id: str
    card_id: str
    merchant_id: str
    event_time: Timestamp
    amount_base: float
    score: float
    logit: float
    features: dict[str, float | None] | list[float | None]
    """By name; or without, where the names are `FEATURES` in their order."""
    versions: Versions
    log: LogPosition

    def named_features(self) -> dict[str, float | None]:
        """Return the features by name."""
        features = self.features
        return features if isinstance(features, dict) else dict(zip(FEATURES, features, strict=True))


_Raw: Any = msgspec.defstruct(
    "_Raw",
    [
        (field.name, field.type if field.type in (str, Timestamp) else msgspec.Raw)
        for field in msgspec.structs.fields(Kept)
    ],
    frozen=True,
    gc=False,
)
"""`Kept` as it is read from any decision: what nobody asks for before there is an example stays as it was written."""
_encode = msgspec.json.Encoder().encode
_decode_raw = msgspec.json.Decoder(_Raw).decode
unpack_decision: Final = msgspec.json.Decoder(Kept).decode
"""Raises msgspec.MsgspecError for what is not in a `DecisionRecord` of the score agent's."""


class DecisionRecord(NamedTuple):
    """A decision as it is kept."""

    card_id: str
    transaction_id: str
    event_time_us: int
    packed: bytes
    """JSON array of the fields of `Kept`."""


def read_decision(value: bytes) -> DecisionRecord:
    """Read any decision. Raises msgspec.MsgspecError, or ValueError for a time that is not accepted."""
    decision = _decode_raw(value)
    event_time_us = timestamp_us(decision.event_time)
    if not EARLIEST_US <= event_time_us < LATEST_US:
        raise ValueError(f"event_time is {decision.event_time}, which is not between 1990 and 2100")
    return DecisionRecord(
        decision.card_id, decision.transaction_id, event_time_us, _encode(msgspec.structs.astuple(decision))
    )


_CHUNK_ROWS: Final = 128
"""Rows that are read at once, so that what is written stays in the processor's cache until it is copied."""
_SPANS: Final = ("transaction_id", "card_id", "event_time")
"""Fields whose places are noted."""
_TEXTS: Final = (*_SPANS, "merchant_id")
"""Fields that must be strings."""
_ANY: Final = len(_TEXTS)


class _Value(NamedTuple):
    """A value of a decision, which is no array and no object."""

    before: bytes
    """JSON between the value before and this one."""
    packed: bytes | None
    """The same in the record; None for a value that is not kept."""
    kind: int = _ANY
    """Index in `_TEXTS`, or `_ANY`."""
    optional: bool = False


def _layout() -> tuple[list[_Value], bytes]:
    """Return the values of a decision in the order in which the score agent writes them, and the end of a record."""
    values: list[_Value] = []
    before, packed = b"{", b"["
    for field in msgspec.structs.fields(Decision):
        before += _key(field.name)
        kept = field.name in Kept.__struct_fields__
        if field.name == "features":
            inner = [(name, b"", False) for name in FEATURES]
        elif isinstance(field.type, type) and issubclass(field.type, msgspec.Struct):
            omits = field.type.__struct_config__.omit_defaults
            inner = [
                (one.name, _key(one.name), omits and not one.required) for one in msgspec.structs.fields(field.type)
            ]
        else:
            kind = _TEXTS.index(field.name) if field.name in _TEXTS else _ANY
            values.append(_Value(before, packed if kept else None, kind))
            before, packed = b",", b"," if kept else packed
            continue
        brackets = (b"[", b"],") if field.name == "features" else (b"{", b"},")
        before, next_packed = before + b"{", packed + brackets[0]
        for name, key, optional in inner:
            values.append(_Value(before + _key(name), next_packed + key if kept else None, optional=optional))
            before, next_packed = b",", b","
        before, packed = b"},", brackets[1] if kept else packed
    return values, packed[:-1] + b"]"


def _key(name: str) -> bytes:
    return msgspec.json.encode(name) + b":"


class DecisionReader:
    """Reads the decisions of a batch as records."""

    def __init__(self) -> None:
        values, end = _layout()
        self._before, self._masks = masked_words([value.before for value in values])
        self._numbers = np.array(
            [(len(one.before), one.kind, one.optional, one.packed is not None) for one in values], np.uint64
        )
        literals = [*(value.packed or b"" for value in values), end]
        self._literals = np.frombuffer(b"".join(literals), np.uint8)
        self._literal_ends = np.cumsum([len(literal) for literal in literals]).astype(np.uint64)
        self._padding = bytes(WORD_BYTES * self._before.shape[1])
        # Compiled here, not while the first batch waits.
        self.read([b""])

    def read(self, values: Sequence[bytes | None]) -> list[DecisionRecord | None]:
        """Return a record of each decision, None for one that only `read_decision` may tell to be one."""
        records: list[DecisionRecord | None] = []
        for first in range(0, len(values), _CHUNK_ROWS):
            part = [value or b"" for value in values[first : first + _CHUNK_ROWS]]
            whole = b"".join((*part, self._padding))
            text, ends = np.frombuffer(whole, np.uint8), np.cumsum(np.fromiter(map(len, part), np.uint64, len(part)))
            out, rows = np.empty(len(text), np.uint8), np.empty((len(part), 2 + 2 * len(_SPANS)), np.int64)
            _read_rows(
                text, ends, self._before, self._masks, self._numbers, self._literals, self._literal_ends, out, rows
            )
            packed, start = out[: int(rows[-1, 0])].tobytes(), 0
            for end, time_us, id_first, id_end, card_first, card_end, _, _ in rows.tolist():
                if time_us == NO_TIME:
                    records.append(None)
                else:
                    card, name = whole[card_first:card_end].decode(), whole[id_first:id_end].decode()
                    records.append(DecisionRecord(card, name, time_us, packed[start:end]))
                start = end
        return records


_QUOTE, _BACKSLASH, _MINUS, _PLUS, _POINT, _ZERO, _NINE, _END = (np.uint8(ord(sign)) for sign in '"\\-+.09}')
_SPACE, _LAST_PRINTED, _CASE = np.uint8(ord(" ")), np.uint8(ord("~")), np.uint8(0x20)
_E, _N = np.uint8(ord("e")), np.uint8(ord("n"))
_NULL: Final = np.frombuffer(b"null", np.uint32)[0]
_0, _1, _4 = np.uint64(0), np.uint64(1), np.uint64(4)


@compiled
def _read_rows(
    text: Any, ends: Any, before: Any, masks: Any, numbers: Any, literals: Any, literal_ends: Any, out: Any, rows: Any
) -> None:
    """Fill ``out`` with records, and ``rows``: end of the record, time or `NO_TIME`, places of `_SPANS`.

    Places are unsigned: for a signed one Numba would ask each time whether it counts from the end.
    """
    first = at = _0
    for row in range(ends.shape[0]):
        end = _read_row(text, first, ends[row], before, masks, numbers, literals, literal_ends, out, at, rows[row, 2:])
        rows[row, 0], rows[row, 1] = at, NO_TIME
        if end > _0:
            time_us = read_time(text, rows[row, 6], rows[row, 7], True)
            if PLAIN_TIMES_US[0] <= time_us < PLAIN_TIMES_US[1]:
                rows[row, 0], rows[row, 1] = end, time_us
                at = end
        first = ends[row]


@inlined
def _read_row(
    text: Any, place: Any, end: Any, before: Any, masks: Any, numbers: Any, literals: Any, literal_ends: Any, out: Any,
    at: Any, spans: Any,
) -> Any:  # fmt: skip
    """Return where the record ends in ``out``, 0 for a decision that is written otherwise."""
    literal = _0
    for value in range(numbers.shape[0]):
        differs = _0
        # All of the widest, word by word: faster than exactly as much as is needed.
        for part in range(before.shape[1]):
            word = word_at(text, place + np.uint64(part * WORD_BYTES))
            differs |= (word ^ before[value, part]) & masks[value, part]
        if differs == _0:
            place += numbers[value, 0]
            last = _value_end(text, place, end)
            kind = numbers[value, 1]
            if last == _0 or (kind < _ANY and text[place] != _QUOTE):
                return _0
            if numbers[value, 3]:
                while literal < literal_ends[value]:
                    out[at] = literals[literal]
                    at += _1
                    literal += _1
                for one in range(place, last):
                    out[at] = text[one]
                    at += _1
            if kind < len(_SPANS):
                spans[2 * kind], spans[2 * kind + 1] = place + _1, last - _1
            place = last
        elif numbers[value, 2] == _0:
            return _0
        literal = literal_ends[value]
    if place + _1 != end or text[place] != _END:
        return _0
    while literal < np.uint64(literals.shape[0]):
        out[at] = literals[literal]
        at += _1
        literal += _1
    return at


@inlined
def _value_end(text: Any, place: Any, end: Any) -> Any:
    """Return where a string of ASCII without escapes, a number or null ends; 0 where there is none of these."""
    sign = text[place]
    if sign == _QUOTE:
        place += _1
        while place < end and text[place] != _QUOTE:
            if text[place] < _SPACE or text[place] > _LAST_PRINTED or text[place] == _BACKSLASH:
                return _0
            place += _1
        return place + _1 if place < end else _0
    if sign == _N:
        return place + _4 if np.uint32(word_at(text, place)) == _NULL else _0
    if sign == _MINUS:
        place += _1
    whole = _digits_end(text, place)
    if whole == place or (text[place] == _ZERO and whole > place + _1):
        return _0
    place = whole
    if text[place] == _POINT:
        place += _1
        decimals = _digits_end(text, place)
        if decimals == place:
            return _0
        place = decimals
    if text[place] | _CASE == _E:
        place += _1
        if text[place] == _MINUS or text[place] == _PLUS:
            place += _1
        exponent = _digits_end(text, place)
        if exponent == place:
            return _0
        place = exponent
    return place if place < end else _0


@inlined
def _digits_end(text: Any, place: Any) -> Any:
    while _ZERO <= text[place] <= _NINE:
        place += _1
    return place
