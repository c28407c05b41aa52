"""Bytes to messages and back. Whatever the bytes are, the end is a message or an `InvalidMessage`.

msgspec checks shapes; what it lets through is checked here: amounts (it reads ``"NaN"``, ``"1_000"`` and
``1e400`` as decimals), times that cannot be, and bytes that other consumers could not read (broken UTF-8 in an
unknown field, nesting that exhausts a stack).
"""

import math
import re
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, Final, Never, TypeVar

import msgspec

from schemas.errors import InvalidMessage
from schemas.messages import Label, Message, Transaction
from schemas.money import CurrencyRate, InexactAmount, RateTable
from schemas.times import EPOCH

MAX_VALUE_BYTES: Final = 1024 * 1024
"""Longest accepted value of a transaction or label; the topics carry more, so that longer ones become dead letters."""

MAX_LABEL_BYTES: Final = 64 * 1024
"""Longest accepted value of a label: labels wait for their transactions, and many may."""

MAX_NESTING: Final = 64
"""Deepest nesting of objects and arrays. A producer's bytes travel on inside other messages, and a decoder's own
limit depends on how deep its caller stands: what one agent reads, the next might not."""

MAX_NAMES: Final = 1_000
"""Most names in a message, of all its objects together, each as often as it is written; producers have tens."""

MAX_AMOUNT_BASE_MINOR: Final = 10**13
"""Largest amount in minor base units: exact as a double (below 2**53), and 900,000 of them sum within 64 bits."""

CODES: Final = frozenset(
    {
        "null_value", "too_large", "not_utf8", "not_json", "too_deep", "too_many_fields", "missing_field", "wrong_type",
        "invalid_value", "currency_unknown", "amount_negative", "amount_not_finite", "amount_too_large",
        "amount_too_many_decimals", "amount_zero", "event_time_impossible", "event_time_in_future",
        "labelled_at_impossible", "labelled_at_in_future",
    }
)  # fmt: skip
"""Every code that an `InvalidMessage` of this module carries."""

_MAX_AMOUNT: Final = Decimal(10**18)
_MAX_DECIMALS: Final = 20
_MICROSECOND: Final = timedelta(microseconds=1)
EARLIEST_US: Final = (datetime(1990, 1, 1, tzinfo=UTC) - EPOCH) // _MICROSECOND
LATEST_US: Final = (datetime(2100, 1, 1, tzinfo=UTC) - EPOCH) // _MICROSECOND
"""Times that are accepted lie from `EARLIEST_US` on and before it."""

T = TypeVar("T")

_TOO_DEEP: Final = f"Objects and arrays are nested more than {MAX_NESTING} deep; send a flat message."
_QUOTE: Final = ord('"')
_ZERO: Final = ord("0")
_MARKS: Final = b"\\[{"
_PLAIN_DIGITS: Final = 15
"""Digits before the point up to which an amount is read without a decimal type: far below every limit."""
_CENT: Final = Decimal("0.01")
_PLAIN_DECIMAL: Final = re.compile(rb'"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?"')
_WRONG_TYPE: Final = re.compile(r"Expected `[^`]*`, got `")
# Possessive, and content to end at the end of the text: linear time on any bytes.
_JSON_STRING: Final = re.compile(rb'"(?:[^"\\]|\\.)*+(?:"|\\?\Z)', re.DOTALL)
_BRACKET: Final = re.compile(rb"[\[\]{}]")


class AcceptedTransaction(msgspec.Struct, frozen=True, gc=False):
    """A transaction that passed every check."""

    message: Any
    """Its fields, by the names of `schemas.messages.Transaction`; its amount may be JSON still."""
    event_time_us: int
    """Microseconds since 1970-01-01T00:00:00Z."""
    clock_us: int
    """The time of ``local_time`` where that is given, else the event time in UTC; in microseconds since 1970."""
    amount_json: bytes
    """The amount as a JSON number, with the decimals that it was sent with."""
    amount_minor: int
    """Whole minor units of the currency that it was sent in."""
    amount_base_minor: int
    """Whole minor units of the rate table's base currency."""


class _AmountText(msgspec.Struct):
    amount: msgspec.Raw


_LOOSE: Final = {"amount": msgspec.Raw, "currency": str}
_LooseTransaction: Any = msgspec.defstruct(
    "_LooseTransaction",
    [(field.name, _LOOSE.get(field.name, field.type), field.default) for field in msgspec.structs.fields(Transaction)],
    frozen=True,
    kw_only=True,
    gc=False,
)
"""A transaction whose amount and currency are still to be checked: by themselves they take longer than all the rest."""

_decode_loose = msgspec.json.Decoder(_LooseTransaction).decode
_decode_transaction = msgspec.json.Decoder(Transaction).decode
_decode_amount_text = msgspec.json.Decoder(_AmountText).decode
_decode_label = msgspec.json.Decoder(Label).decode
_encode = msgspec.json.Encoder(decimal_format="number").encode


def decode_transaction(
    value: bytes | None, *, record_timestamp_us: int, future_tolerance_us: int, rates: RateTable
) -> AcceptedTransaction:
    """Decode and accept a producer's transaction.

    Args:
        value: Value of the record; None is refused.
        record_timestamp_us: When the record arrived, in microseconds since 1970.
        future_tolerance_us: Microseconds by which the event time may be later than that.
        rates: Rates into the base currency; a currency without one is refused.

    Raises:
        InvalidMessage: The transaction is refused; nothing else is raised. ``docs/dead-letters.md`` lists the codes.
    """
    transaction, rate, amount_json, amount_minor = _read_plain(value, rates) or _read_any(value, rates)
    if amount_minor == 0 and transaction.transaction_type != "verification":
        raise InvalidMessage("amount_zero", "The amount is zero; only transactions of type verification may be.")
    amount_base_minor = rate.to_base_minor(amount_minor)
    if amount_base_minor > MAX_AMOUNT_BASE_MINOR:
        _refuse_large_amount(rates)
    event_time_us = timestamp_us(transaction.event_time)
    _check_time(event_time_us, "event_time", "producer", record_timestamp_us, future_tolerance_us)
    clock_us = event_time_us if transaction.local_time is None else wall_clock_us(transaction.local_time)
    return AcceptedTransaction(transaction, event_time_us, clock_us, amount_json, amount_minor, amount_base_minor)


def decode_label(
    value: bytes | None, *, record_timestamp_us: int, future_tolerance_us: int, most_bytes: int = MAX_LABEL_BYTES
) -> Label:
    """Decode a label; unknown labels and sources pass, as both are open enumerations.

    Args:
        value: Value of the record; None is refused.
        record_timestamp_us: When the record arrived, in microseconds since 1970.
        future_tolerance_us: Microseconds by which ``labelled_at`` may be later than that; a label beyond them is
            refused, because the later of two labels wins.
        most_bytes: Length of the longest value that is accepted, in bytes.

    Raises:
        InvalidMessage: The label is refused; nothing else is raised.
    """
    label = checked(value, _decode_label, most_bytes)
    labelled_at_us = timestamp_us(label.labelled_at)
    _check_time(labelled_at_us, "labelled_at", "sender", record_timestamp_us, future_tolerance_us)
    return label


def encode(message: Message) -> bytes:
    """JSON of a message, decimals as numbers.

    Raises ValueError when a number is NaN or infinite: msgspec alone would write a float as ``null`` and a decimal
    as ``NaN``, which is not JSON. A number that does not exist is None.
    """
    for name in message.__struct_fields__:
        _check_finite(getattr(message, name), name)
    return _encode(message)


def timestamp_us(time: datetime) -> int:
    """Whole microseconds since 1970-01-01T00:00:00Z of a time with an offset.

    >>> timestamp_us(datetime(1970, 1, 1, 0, 0, 1, 5, tzinfo=UTC))
    1000005
    """
    return (time - EPOCH) // _MICROSECOND


def _read_plain(value: bytes | None, rates: RateTable) -> tuple[Any, CurrencyRate, bytes, int] | None:
    """Read a transaction as most are: (message, rate, amount as JSON, in minor units); None for any other.

    Takes nothing that `_read_any` would not take, and reads that alike.
    """
    if value is None or len(value) > MAX_VALUE_BYTES or may_have_too_many_names(value):
        return None
    # Most are flat and without escapes, which is seen faster together.
    marks = len(value) - len(value.translate(None, _MARKS))
    if marks > 1 and (b"\\" in value or is_too_deep(value)):
        return None
    # Of a name that repeats each value must be sound; and without escapes it is written in one way alone.
    if value.count(b'"amount"') != 1 or value.count(b'"currency"') != 1:
        return None
    try:
        if not value.isascii():
            value.decode()
        transaction = _decode_loose(value)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    rate = rates.currencies.get(transaction.currency)
    if rate is None:
        return None
    text = bytes(transaction.amount)
    text = text[1:-1] if text[0] == _QUOTE else text
    whole, point, decimals = text.partition(b".")
    missing = rate.digits - len(decimals)
    if (
        missing < 0
        or not 0 < len(whole) <= _PLAIN_DIGITS
        or (whole[0] == _ZERO and len(whole) > 1)
        or (point and not decimals)
    ):
        return None
    digits = whole + decimals + b"0" * missing
    return (transaction, rate, text, int(digits)) if digits.isdigit() else None


def _read_any(value: bytes | None, rates: RateTable) -> tuple[Transaction, CurrencyRate, bytes, int]:
    transaction = checked(value, _decode_transaction)
    rate = rates.currencies.get(transaction.currency)
    if rate is None:
        raise InvalidMessage(
            "currency_unknown",
            f"No rate for currency {transaction.currency!r} in rate table {rates.version!r}; "
            "send an ISO 4217 code that it has, or add the currency to the table.",
        )
    amount = transaction.amount
    if amount.is_finite() and amount < 0:
        raise InvalidMessage(
            "amount_negative", "The amount is below zero; send it positive, and the direction as transaction_type."
        )
    _check_amount_text(amount, value)
    if amount > _MAX_AMOUNT:
        _refuse_large_amount(rates)
    try:
        amount_minor = rate.to_minor(amount)
    except InexactAmount as error:
        raise InvalidMessage(
            "amount_too_many_decimals",
            f"{transaction.currency} has {rate.digits} decimals and the amount has more; round it at the source.",
        ) from error
    return transaction, rate, _encode(amount), amount_minor


def checked(value: bytes | None, decode: Callable[[bytes], T], most_bytes: int = MAX_VALUE_BYTES) -> T:
    """Decode within the bounds that every message keeps; raises `InvalidMessage`."""
    if value is None:
        raise InvalidMessage("null_value", "The record has no value; a transaction or label cannot be deleted.")
    if len(value) > most_bytes:
        raise InvalidMessage("too_large", f"The value has {len(value)} bytes; at most {most_bytes} are accepted.")
    try:
        if not value.isascii():
            # The decoder skips unknown fields without reading them, and they travel on.
            value.decode()
        message = decode(value)
    except msgspec.ValidationError as error:
        raise InvalidMessage(_validation_code(str(error)), f"{error}; see the JSON Schema of the message.") from error
    except msgspec.DecodeError as error:
        raise InvalidMessage("not_json", f"{error}; send one JSON object a record.") from error
    except UnicodeDecodeError as error:
        raise InvalidMessage("not_utf8", f"Byte {error.start} is not UTF-8; encode the JSON as UTF-8.") from error
    except RecursionError as error:
        raise InvalidMessage("too_deep", _TOO_DEEP) from error
    if is_too_deep(value):
        raise InvalidMessage("too_deep", _TOO_DEEP)
    if may_have_too_many_names(value) and (names := _JSON_STRING.sub(b"", value).count(b":")) > MAX_NAMES:
        raise InvalidMessage(
            "too_many_fields", f"The message has {names} names in all; at most {MAX_NAMES} are accepted: send fewer."
        )
    return message


def _validation_code(text: str) -> str:
    if "missing required field" in text:
        return "missing_field"
    return "wrong_type" if _WRONG_TYPE.match(text) else "invalid_value"


def may_have_too_many_names(value: bytes) -> bool:
    """Return whether JSON could have more than `MAX_NAMES` names; colons within strings count as well."""
    return len(value) > MAX_NAMES and value.count(b":") > MAX_NAMES


def is_too_deep(value: bytes) -> bool:
    """Return whether JSON nests objects and arrays deeper than `MAX_NESTING`; linear time on any bytes."""
    return value.count(b"[") + value.count(b"{") > MAX_NESTING and _depth_exceeds(value, MAX_NESTING)


def _depth_exceeds(value: bytes, limit: int) -> bool:
    depth = 0
    for bracket in _BRACKET.finditer(_JSON_STRING.sub(b"", value)):
        depth += 1 if bracket[0] in b"[{" else -1
        if depth > limit:
            return True
    return False


def _check_amount_text(amount: Decimal, value: bytes | None) -> None:
    """Refuse what is not a number as JSON writes one, bare or as a string."""
    if not amount.is_finite():
        raise InvalidMessage("amount_not_finite", "The amount is not a finite number; send a decimal such as 12.34.")
    if not amount.same_quantum(_CENT):
        exponent = amount.as_tuple().exponent
        # An exponent such as 0E+999999 or a thousand trailing zeros would be written out again by each agent.
        if not isinstance(exponent, int) or not -_MAX_DECIMALS <= exponent <= _MAX_DECIMALS:
            code = "amount_too_large" if amount > _MAX_AMOUNT else "amount_too_many_decimals"
            raise InvalidMessage(code, "The amount's exponent is out of range; send a plain decimal such as 12.34.")
    text = bytes(_decode_amount_text(value or b"").amount)
    if text[0] == _QUOTE and _PLAIN_DECIMAL.fullmatch(text) is None:
        raise InvalidMessage("invalid_value", "The amount is not a plain decimal; send a JSON number such as 12.34.")


def _refuse_large_amount(rates: RateTable) -> Never:
    raise InvalidMessage(
        "amount_too_large",
        f"The amount is above {MAX_AMOUNT_BASE_MINOR} minor units of {rates.base}; check the unit it is sent in.",
    )


def _check_time(time_us: int, field: str, sender: str, record_timestamp_us: int, future_tolerance_us: int) -> None:
    if not EARLIEST_US <= time_us < LATEST_US:
        raise InvalidMessage(
            f"{field}_impossible", f"{field} is not between 1990 and 2100; send RFC 3339 with an offset."
        )
    if time_us > record_timestamp_us + future_tolerance_us:
        raise InvalidMessage(
            f"{field}_in_future",
            f"{field} is {(time_us - record_timestamp_us) / 1e6:.0f} s later than the record's timestamp, more than "
            f"the tolerated {future_tolerance_us / 1e6:.0f} s; check the {sender}'s clock and offset.",
        )


def wall_clock_us(local_time: str) -> int:
    """Return what a ``local_time`` shows, in microseconds since 1970 on that clock.

    >>> wall_clock_us("1970-01-02T12:00:00+09:00")
    129600000000

    Raises:
        InvalidMessage: It is no ISO 8601 date with a time of day.
    """
    try:
        if len(local_time) < len("2024-01-31T12:00") or local_time[10] not in "Tt ":
            raise ValueError("no time of day")
        time = datetime.fromisoformat(local_time.upper())
    except ValueError as error:
        raise InvalidMessage(
            "invalid_value",
            f"local_time cannot be read ({str(error)[:100]}); send ISO 8601, such as 2024-01-31T12:00:00.",
        ) from error
    return timestamp_us(time.replace(tzinfo=UTC))


def _check_finite(value: object, path: str) -> None:
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{path} is {value}, which JSON cannot hold; a number that does not exist is None.")
    elif isinstance(value, Decimal):
        if not value.is_finite():
            raise ValueError(f"{path} is {value}, which JSON cannot hold.")
    elif isinstance(value, dict):
        _check_finite_items(value.items(), value.values(), path)
    elif isinstance(value, list | tuple):
        _check_finite_items(enumerate(value), value, path)
    elif isinstance(value, msgspec.Struct):
        for name in value.__struct_fields__:
            _check_finite(getattr(value, name), f"{path}.{name}")


def _check_finite_items(items: Iterable[tuple[object, object]], values: Iterable[Any], path: str) -> None:
    # Most are numbers, or None for one that does not exist: a finite sum means that all are finite.
    try:
        if math.isfinite(sum(filter(None, values))):
            return
    except (TypeError, OverflowError):
        pass
    for name, value in items:
        _check_finite(value, f"{path}.{name}")
