"""A mapping of a producer's own JSON to the wire contract: which member of it becomes which field of a transaction.

It is declared in a TOML file (``docs/mapping.md``), and travels as JSON. A record is mapped once, by the first agent
that reads it, and is then accepted or refused as if its producer had written it so.
"""

import hashlib
import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from decimal import ROUND_FLOOR, Context, Decimal, Inexact, InvalidOperation, Overflow
from typing import Annotated, Any, Final, Literal, Self, TypeVar
from zoneinfo import ZoneInfo

import msgspec
from msgspec import Meta

from schemas.codec import MAX_VALUE_BYTES, is_too_deep
from schemas.fields import DECLARED_FIELDS, Kind
from schemas.money import RateTable
from schemas.toml_files import InvalidToml, shown, suggestion, toml_tables

MAX_ATTRIBUTES: Final = 200
_DATE_CHARACTERS: Final = 10
"""A text that is no longer is a date without a time of day, which no transaction happened at."""
_MOST_DIGITS: Final = 40
"""More digits than the number of any time has."""
_DIGEST_LENGTH: Final = 16
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_PER_US: Final = {"s": 6, "ms": 3, "us": 0, "ns": -3}
"""Powers of ten: microseconds in a unit of time."""
_USUAL_DIGITS: Final = 2
"""Decimals of a currency that the rate table does not have; the acceptance refuses it."""
_WIDE: Final = Context(prec=60, traps=[InvalidOperation, Overflow])
_EXACT: Final = Context(prec=60, traps=[Inexact, InvalidOperation, Overflow])
_PLAIN: Final = re.compile(r"-?[0-9]{1,60}(\.[0-9]{1,60})?")
_INDEX: Final = re.compile("[0-9]{1,6}")
_GROUPING: Final = {".": ",", ",": "."}
"""What may stand between thousands, by the mark in front of the decimals; blanks and apostrophes may too."""
_BLANKS: Final = dict.fromkeys(map(ord, " '\N{NO-BREAK SPACE}\N{NARROW NO-BREAK SPACE}\N{RIGHT SINGLE QUOTATION MARK}"))

Name = Annotated[str, Meta(min_length=1, max_length=256)]
Path = Annotated[str, Meta(min_length=1, max_length=1024)] | Annotated[list[Name], Meta(min_length=1, max_length=32)]
"""Names from the outermost object inwards, joined with points, or as a list where a name has one; digits count in an
array."""
T = TypeVar("T")
_decode: Final = msgspec.json.Decoder(float_hook=Decimal).decode
_encode: Final = msgspec.json.Encoder(decimal_format="number").encode


class InvalidMapping(ValueError):
    """A mapping that cannot be used; the text says which entry is wrong and what it should be."""


class FieldSource(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """The source of one field."""

    path: Path | None = None
    constant: str | None = None
    """The value of every record, in place of a path."""
    values: dict[str, str] | None = None
    """The contract's word for each of the producer's; any other word stays as it is."""
    unit: Literal["s", "ms", "us", "ns"] | None = None
    """Of an event time: the unit of a number that counts from 1970-01-01T00:00:00Z."""
    zone: str | None = None
    """Of an event time: the IANA time zone of a text without an offset; of a time that occurs twice the first."""
    minor: bool = False
    """Of an amount: whether it counts minor units of its currency, such as cents."""
    decimal: Literal[".", ","] | None = None
    """Of an amount: the mark in front of the decimals of a text; what may stand between thousands is left out."""


_ONLY: Final = {"unit": ("event_time",), "zone": ("event_time",), "minor": ("amount",), "decimal": ("amount",)}
_FIELDS: Final = {field.name: field for field in DECLARED_FIELDS if field.kind not in (Kind.ATTRIBUTES, Kind.WHOLE)}
_REQUIRED: Final = tuple(field.name for field in _FIELDS.values() if field.required)


class FieldMapping(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A mapping; built by `read_mapping` from a file, or by `load_mapping`."""

    version: Annotated[str, Meta(min_length=1, max_length=64)]
    fields: dict[str, FieldSource]
    """By field of `schemas.messages.Transaction`."""
    attributes: Annotated[dict[Name, Path], Meta(max_length=MAX_ATTRIBUTES)] = {}
    """Path of each member of the contract's ``attributes``."""

    @property
    def name(self) -> str:
        """Return its name in texts for people."""
        return f"Mapping {self.version}"

    @property
    def content(self) -> bytes:
        """Return the mapping as JSON, equal for equal mappings."""
        return msgspec.json.encode(self, order="sorted")

    @property
    def digest(self) -> str:
        """Return 16 hexadecimal digits that stand for all that it says."""
        return hashlib.sha256(self.content).hexdigest()[:_DIGEST_LENGTH]

    def checked(self) -> Self:
        """Return the mapping; raises `InvalidMapping` for one that says what no record could follow."""
        for name, source in self.fields.items():
            if name not in _FIELDS:
                raise InvalidMapping(f"[fields.{shown(name)}]: there is no such field; {suggestion(name, _FIELDS)}")
            _check_source(name, source)
        missing = [name for name in _REQUIRED if name not in self.fields]
        if missing:
            raise InvalidMapping(
                f"it lacks {', '.join(missing)}: every transaction needs {', '.join(_REQUIRED)}, each with a path or a "
                "constant"
            )
        return self


_decode_mapping: Final = msgspec.json.Decoder(FieldMapping).decode


class Mapper:
    """Maps values of records.

    Args:
        mapping: The mapping.
        rates: Rate table, which has the decimals of currencies.
    """

    def __init__(self, mapping: FieldMapping, rates: RateTable) -> None:
        self.mapping = mapping
        self._digits = {code: rate.digits for code, rate in rates.currencies.items()}
        # In the contract's order, of which the currency stands behind the amount.
        self._fields = [
            (name, source, None if source.path is None else _names(source.path), field.kind)
            for name, field in _FIELDS.items()
            if (source := mapping.fields.get(name)) is not None
        ]
        self._time_unit, self._amount_source = mapping.fields["event_time"].unit, mapping.fields["amount"]
        self._attributes = [(name, _names(path)) for name, path in mapping.attributes.items()]
        self._zone = None if (zone := mapping.fields["event_time"].zone) is None else ZoneInfo(zone)

    def mapped(self, value: bytes | None) -> bytes | None:
        """Return a value as one of the contract; one that is no JSON object stays, for the acceptance to refuse."""
        if value is None or len(value) > MAX_VALUE_BYTES or is_too_deep(value):
            return value
        try:
            given = _decode(value)
            return value if not isinstance(given, dict) else _encode(self._transaction(given))
        except (msgspec.MsgspecError, UnicodeError, RecursionError, ArithmeticError):
            return value

    def _transaction(self, given: dict[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, source, path, kind in self._fields:
            value = source.constant if path is None else _at(given, path)
            if value is None:
                continue
            if kind is Kind.TEXT and type(value) is int:
                value = str(value)
            if source.values is not None and isinstance(value, str):
                value = source.values.get(value, value)
            found[name] = value
        if "event_time" in found:
            found["event_time"] = self._time(found["event_time"], self._time_unit)
        if "amount" in found:
            found["amount"] = self._amount(found["amount"], self._amount_source, found.get("currency"))
        if self._attributes:
            members = ((name, _at(given, path)) for name, path in self._attributes)
            found["attributes"] = {name: int(value) if isinstance(value, bool) else value for name, value in members}
        return found

    def _time(self, value: Any, unit: str | None) -> Any:
        """Return a moment for what states one; anything else stays."""
        if unit is not None:
            return _since_1970(value, _PER_US[unit])
        if self._zone is None or not isinstance(value, str) or len(value) <= _DATE_CHARACTERS:
            return value
        try:
            moment = datetime.fromisoformat(value)
        except ValueError:
            return value
        return moment.replace(tzinfo=self._zone) if moment.tzinfo is None else moment

    def _amount(self, value: Any, source: FieldSource, currency: Any) -> Any:
        """Return major units; anything that is no plain decimal stays."""
        if isinstance(value, str):
            text = value
            if source.decimal is not None:
                text = value.translate(_BLANKS).replace(_GROUPING[source.decimal], "").replace(source.decimal, ".")
            if _PLAIN.fullmatch(text) is None:
                return value
            value = Decimal(text)
        if not source.minor or isinstance(value, bool) or not isinstance(value, int | Decimal):
            return value
        digits = self._digits.get(currency, _USUAL_DIGITS) if isinstance(currency, str) else _USUAL_DIGITS
        try:
            return Decimal(value).scaleb(-digits, _EXACT)
        except ArithmeticError:
            # Longer or larger than any amount may be; the acceptance refuses it.
            return value


def read_mapping(content: bytes) -> FieldMapping:
    """Read a mapping from the bytes of a TOML file; raises `InvalidMapping`."""
    try:
        tables = toml_tables(content)
    except InvalidToml as error:
        raise InvalidMapping(str(error)) from error
    fields = tables.get("fields")
    for name, table in fields.items() if isinstance(fields, dict) else ():
        for key in table if isinstance(table, dict) else ():
            if key not in FieldSource.__struct_fields__:
                raise InvalidMapping(
                    f"[fields.{shown(name)}]: there is no {shown(key)}; "
                    f"{suggestion(key, FieldSource.__struct_fields__)}"
                )
        _converted(table, FieldSource, f"[fields.{shown(name)}]: ")
    return _converted(tables, FieldMapping, "").checked()


def load_mapping(content: bytes) -> FieldMapping:
    """Return a mapping from its `FieldMapping.content`; raises `InvalidMapping`."""
    try:
        return _decode_mapping(content).checked()
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidMapping(str(error)) from error


def _converted(value: Any, kind: type[T], where: str) -> T:
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise InvalidMapping(f"{where}{error}") from error


def _check_source(name: str, source: FieldSource) -> None:
    where = f"[fields.{name}]: "
    if (source.path is None) == (source.constant is None):
        raise InvalidMapping(f"{where}give either a path or a constant")
    for setting, fields in _ONLY.items():
        if getattr(source, setting) and name not in fields:
            raise InvalidMapping(f"{where}{setting} belongs to {', '.join(fields)}")
    if source.constant is not None and (source.values is not None or _FIELDS[name].kind is not Kind.TEXT):
        raise InvalidMapping(f"{where}a constant stands alone, and only a text can be one")
    if source.values is not None and _FIELDS[name].kind is not Kind.TEXT:
        raise InvalidMapping(f"{where}values belong to a text")
    if source.zone is not None:
        if source.unit is not None:
            raise InvalidMapping(f"{where}a number counts from 1970 in UTC: leave either unit or zone out")
        try:
            ZoneInfo(source.zone)
        except (ValueError, OSError, KeyError) as error:
            raise InvalidMapping(f"{where}there is no time zone {source.zone!r}; write one like Asia/Tokyo") from error


def _names(path: str | Sequence[str]) -> tuple[str, ...]:
    return tuple(path.split(".")) if isinstance(path, str) else tuple(path)


def _at(given: Any, path: Sequence[str]) -> Any:
    """Return what stands at a path, None where nothing does."""
    for name in path:
        if isinstance(given, dict):
            given = given.get(name)
        elif isinstance(given, list) and _INDEX.fullmatch(name) and int(name) < len(given):
            given = given[int(name)]
        else:
            return None
    return given


def _since_1970(value: Any, power: int) -> Any:
    """Return the moment of a number of units of 10 ** ``power`` microseconds; anything else stays."""
    if isinstance(value, str) and _PLAIN.fullmatch(value):
        value = Decimal(value)
    if isinstance(value, bool) or not isinstance(value, int | Decimal):
        return value
    if Decimal(value).adjusted() > _MOST_DIGITS:
        return str(value)
    try:
        moment_us = int(Decimal(value).scaleb(power, _WIDE).to_integral_value(ROUND_FLOOR))
        return _EPOCH + timedelta(microseconds=moment_us)
    except (ArithmeticError, OverflowError):
        # As text, which the acceptance refuses as no time.
        return str(value)
