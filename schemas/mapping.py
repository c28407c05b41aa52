"""A mapping of a producer's own JSON to the wire contract: which member of it becomes which field of a transaction.

It is declared in a TOML file (``docs/mapping.md``), and travels as JSON. A record is mapped once, by the first agent
that reads it, and is then accepted or refused as if its producer had written it so.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from decimal import ROUND_FLOOR, Context, Decimal, Inexact, InvalidOperation, Overflow
from typing import Annotated, Any, Final, Literal, Self, TypeVar
from zoneinfo import ZoneInfo

import msgspec
from msgspec import Meta

from schemas.codec import EARLIEST_US, LATEST_US, MAX_VALUE_BYTES, checked
from schemas.errors import InvalidMessage
from schemas.fields import DECLARED_FIELDS, Kind
from schemas.messages import Transaction
from schemas.money import RateTable
from schemas.times import time_of
from schemas.toml_files import InvalidToml, shown, suggestion, toml_tables

MAX_ATTRIBUTES: Final = 100
_DIGEST_LENGTH: Final = 16
_PER_US: Final = {"s": 6, "ms": 3, "us": 0, "ns": -3}
"""Powers of ten: microseconds in a unit of time."""
_USUAL_DIGITS: Final = 2
"""Decimals of a currency that the rate table does not have; the acceptance refuses it."""
_EXACT: Final = Context(prec=60, traps=[Inexact, InvalidOperation, Overflow])
_LARGEST_EXPONENT: Final = 40
"""More digits than any time or amount has."""
_INT_DIGITS: Final = 18
"""Characters of a number up to which it is read as a whole one."""
_OBJECT, _ARRAY, _TEXT = b'{["'
_WORDS: Final = {b"null": None, b"true": True, b"false": False}
_INDEX: Final = re.compile("[0-9]{1,6}")
_BLANKS: Final = " '\N{NO-BREAK SPACE}\N{NARROW NO-BREAK SPACE}\N{RIGHT SINGLE QUOTATION MARK}"
_EXPONENT: Final = "([eE][+-]?[0-9]{1,3})?"
PLAIN_AMOUNT: Final = re.compile(rf"-?[0-9]{{1,40}}(\.[0-9]{{1,40}})?{_EXPONENT}")
_TIME: Final = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}[T ][0-9]{2}:[0-9]{2}(:[0-9]{2}([.,][0-9]{1,9})?)?(Z|[+-][0-9]{2}:?[0-9]{2})?"
    r"|[0-9]{8}T[0-9]{4}([0-9]{2}([.,][0-9]{1,9})?)?(Z|[+-][0-9]{4})?"
)


def _amount_text(mark: str, grouping: str) -> re.Pattern[str]:
    """Return what an amount is written as: plain, or with a mark between each three digits before the decimals."""
    groups = f"[0-9]{{1,3}}([{grouping}{_BLANKS}][0-9]{{3}}){{1,12}}"
    return re.compile(rf"-?({groups}|[0-9]{{1,40}})({re.escape(mark)}[0-9]{{1,40}})?{_EXPONENT}")


AMOUNT_TEXTS: Final = {".": _amount_text(".", ","), ",": _amount_text(",", ".")}
"""Amounts as texts, by the mark in front of their decimals."""
_GROUPING: Final = {
    ".": dict.fromkeys(map(ord, f",{_BLANKS}")),
    ",": {**dict.fromkeys(map(ord, f".{_BLANKS}")), ord(","): "."},
}
"""Changes that make a plain number of an amount, by the same mark."""

Name = Annotated[str, Meta(min_length=1, max_length=256)]
Path = Annotated[str, Meta(min_length=1, max_length=1024)] | Annotated[list[Name], Meta(min_length=1, max_length=32)]
"""Names from the outermost object inwards, joined with points, or as a list where a name has one; digits count in an
array."""
T = TypeVar("T")
_members: Final = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_elements: Final = msgspec.json.Decoder(list[msgspec.Raw]).decode
_text: Final = msgspec.json.Decoder(str).decode
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
    """The unit of an event time that is a number, and counts from 1970-01-01T00:00:00Z."""
    zone: str | None = None
    """The IANA time zone of an event time without an offset; a time that occurs twice is the first of the two."""
    minor: bool = False
    """True if the amount counts minor units of its currency, such as cents."""
    decimal: Literal[".", ","] | None = None
    """The mark in front of the decimals of an amount that is text; marks between thousands are left out."""
    filled: bool = False
    """True if a transaction is a fraud where anything stands at the path, such as the date of a chargeback."""


_ONLY: Final = {
    "unit": ("event_time",),
    "zone": ("event_time",),
    "minor": ("amount",),
    "decimal": ("amount",),
    "filled": ("fraud",),
}
_FIELDS: Final = {field.name: field for field in DECLARED_FIELDS if field.kind not in (Kind.ATTRIBUTES, Kind.WHOLE)}
_TYPES: Final[dict[str, Any]] = {field.name: field.type for field in msgspec.structs.fields(Transaction)}
_REQUIRED: Final = tuple(field.name for field in _FIELDS.values() if field.required)
TRUTH: Final = ("fraud", "fraud_type")
"""Fields of a file that holds what its transactions turned out to be; records do not have them."""
_NAMED: Final = (*_FIELDS, *TRUTH)


class FieldMapping(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A mapping; built by `read_mapping` from a file, or by `load_mapping`."""

    version: Annotated[str, Meta(min_length=1, max_length=64)]
    fields: dict[str, FieldSource]
    """Sources, keyed by the field of `schemas.messages.Transaction`, or of `TRUTH`."""
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
            if name not in _NAMED:
                raise InvalidMapping(f"[fields.{shown(name)}]: there is no such field; {suggestion(name, _NAMED)}")
            _check_source(name, source)
        if not self.version.isprintable() or not self.version.strip():
            raise InvalidMapping("the version is no word that people could read")
        paths = [names_of(path) for path in self.attributes.values()]
        for name, path in zip(self.attributes, paths, strict=True):
            if not name.isprintable() or not all(path):
                raise InvalidMapping(f"[attributes]: {shown(name)!r} is no name, or its path has an empty one")
            if paths.count(path) > 1:
                raise InvalidMapping(f"[attributes]: {shown('.'.join(path))} has two names")
        missing = [name for name in _REQUIRED if name not in self.fields]
        if missing:
            raise InvalidMapping(
                f"it lacks {', '.join(missing)}: every transaction needs {', '.join(_REQUIRED)}, each with a path or a "
                "constant"
            )
        return self


_decode_mapping: Final = msgspec.json.Decoder(FieldMapping).decode


class _Node:
    """A member that paths lead to, or through."""

    def __init__(self) -> None:
        self.inner: dict[str, _Node] = {}
        self.path: int | None = None
        """Number of the path that ends here."""

    def add(self, path: Sequence[str], number: int) -> int:
        """Add a path unless it is there; return its number."""
        node = self
        for name in path:
            node = node.inner.setdefault(name, _Node())
        if node.path is None:
            node.path = number
        return node.path

    def read(self, members: dict[str, msgspec.Raw] | list[msgspec.Raw], found: dict[int, bytes]) -> None:
        """Note the JSON that stands where paths end, by their numbers."""
        for name, node in self.inner.items():
            if isinstance(members, dict):
                raw = members.get(name)
            else:
                raw = members[int(name)] if _INDEX.fullmatch(name) and int(name) < len(members) else None
            if raw is None:
                continue
            value = bytes(raw)
            if node.path is not None:
                found[node.path] = value
            if node.inner:
                if value[0] == _OBJECT:
                    node.read(_members(value), found)
                elif value[0] == _ARRAY:
                    node.read(_elements(value), found)


class Mapper:
    """Maps values of records.

    Args:
        mapping: The mapping.
        rates: Rate table, which has the decimals of currencies.
        truth: Whether the fields of `TRUTH` are read too, as of a file.
    """

    def __init__(self, mapping: FieldMapping, rates: RateTable, *, truth: bool = False) -> None:
        self.mapping = mapping
        self._digits = {code: rate.digits for code, rate in rates.currencies.items()}
        self._root, self._paths = _Node(), 0
        # In the contract's order.
        self._fields = [self._source(name) for name in _FIELDS if name in mapping.fields]
        self._truth = [self._source(name) for name in TRUTH if truth and name in mapping.fields]
        self._attributes = [(name, self._number(path)) for name, path in mapping.attributes.items()]
        self._time_source, self._amount_source = mapping.fields["event_time"], mapping.fields["amount"]
        self._zone = None if self._time_source.zone is None else ZoneInfo(self._time_source.zone)

    def _source(self, name: str) -> tuple[str, FieldSource, int | None, bool]:
        source = self.mapping.fields[name]
        return name, source, None if source.path is None else self._number(source.path), _is_text(name)

    def _number(self, path: str | Sequence[str]) -> int:
        self._paths += 1
        return self._root.add(names_of(path), self._paths)

    def mapped(self, value: bytes | None) -> bytes:
        """Return a value as one of the contract; raises `InvalidMessage` for one that this cannot be made of.

        Nothing that could not be read or converted goes on: the contract might take it for something else.
        """
        return self.row(value)[0]

    def row(self, value: bytes | None) -> tuple[bytes, dict[str, Any]]:
        """Return what `mapped` returns, and the fields in it, with those of `TRUTH` where they are read."""
        found = dict[int, bytes]()
        try:
            self._root.read(checked(value, _members), found)
            fields = self._transaction(found)
            mapped = _encode(fields)
            fields |= _values(self._truth, found)
        except (msgspec.MsgspecError, UnicodeError) as error:
            raise InvalidMessage("not_json", f"{error}; send one JSON object a record.") from error
        if len(mapped) > MAX_VALUE_BYTES:
            raise InvalidMessage("too_large", f"The value has {len(mapped)} bytes as one of the contract.")
        return mapped, fields

    def _transaction(self, found: Mapping[int, bytes]) -> dict[str, Any]:
        fields = _values(self._fields, found)
        if "event_time" in fields:
            fields["event_time"] = self._time(fields["event_time"])
        if "amount" in fields:
            fields["amount"] = self._amount(fields["amount"], fields.get("currency"))
        if self._attributes:
            members = ((name, _scalar(name, found.get(path))) for name, path in self._attributes)
            fields["attributes"] = {name: int(value) if isinstance(value, bool) else value for name, value in members}
        return fields

    def _time(self, value: Any) -> Any:
        """Return a moment; without unit and zone the text as it is."""
        unit = self._time_source.unit
        if unit is not None:
            return _since_1970(value, unit)
        if self._zone is None:
            return value
        if not isinstance(value, str) or _TIME.fullmatch(value) is None:
            raise InvalidMessage(
                "invalid_value", "event_time is no text with a date and a time of day, such as 2024-03-01 20:15:30."
            )
        try:
            moment = datetime.fromisoformat(value)
        except ValueError as error:
            raise InvalidMessage("invalid_value", f"event_time: {error}.") from error
        if moment.tzinfo is not None:
            return moment
        local = moment.replace(tzinfo=self._zone)
        if local.astimezone(UTC).astimezone(self._zone).replace(tzinfo=None) != moment:
            raise InvalidMessage(
                "invalid_value", f"event_time: no clock of {self._time_source.zone} shows {moment}; send an offset."
            )
        return local

    def _amount(self, value: Any, currency: Any) -> Any:
        """Return major units; without ``minor`` and ``decimal`` the value as it is."""
        source = self._amount_source
        if not source.minor and source.decimal is None:
            return value
        if isinstance(value, str):
            pattern = PLAIN_AMOUNT if source.decimal is None else AMOUNT_TEXTS[source.decimal]
            if pattern.fullmatch(value) is None:
                raise InvalidMessage(
                    "invalid_value", f"The amount is no number with decimals behind {source.decimal or '.'!r}."
                )
            value = Decimal(value if source.decimal is None else value.translate(_GROUPING[source.decimal]))
        if isinstance(value, bool) or not isinstance(value, int | Decimal):
            raise InvalidMessage("wrong_type", "The amount is neither a number nor a text.")
        if not source.minor:
            return value
        digits = self._digits.get(currency, _USUAL_DIGITS) if isinstance(currency, str) else _USUAL_DIGITS
        try:
            return Decimal(value).scaleb(-digits, _EXACT)
        except ArithmeticError as error:
            raise InvalidMessage("invalid_value", "The amount has more digits than an amount can have.") from error


def read_mapping(content: bytes) -> FieldMapping:
    """Read a mapping from the bytes of a TOML file; raises `InvalidMapping`."""
    try:
        tables = toml_tables(content)
    except InvalidToml as error:
        raise InvalidMapping(str(error)) from error
    for key in tables:
        if key not in FieldMapping.__struct_fields__:
            raise InvalidMapping(f"there is no {shown(key)}; {suggestion(key, FieldMapping.__struct_fields__)}")
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
    if source.constant is not None and (source.values is not None or not _is_text(name)):
        raise InvalidMapping(f"{where}a constant stands alone, and only a text can be one")
    if source.path is not None and not all(names_of(source.path)):
        raise InvalidMapping(f"{where}the path has an empty name")
    if source.constant is not None:
        _converted(source.constant, _TYPES.get(name, str), where)
    if source.values is not None and not _is_text(name):
        raise InvalidMapping(f"{where}values belong to a text")
    if source.filled and (source.constant is not None or source.values is not None):
        raise InvalidMapping(f"{where}filled stands alone with a path")
    if source.zone is not None:
        if source.unit is not None:
            raise InvalidMapping(f"{where}a number counts from 1970 in UTC: leave either unit or zone out")
        try:
            ZoneInfo(source.zone)
        except (ValueError, OSError, KeyError) as error:
            raise InvalidMapping(f"{where}there is no time zone {source.zone!r}; write one like Asia/Tokyo") from error


def _is_text(name: str) -> bool:
    return name in TRUTH or _FIELDS[name].kind is Kind.TEXT


def names_of(path: str | Sequence[str]) -> tuple[str, ...]:
    """Return the names of a path, from the outermost object inwards."""
    return tuple(path.split(".")) if isinstance(path, str) else tuple(path)


def _values(sources: Sequence[tuple[str, FieldSource, int | None, bool]], found: Mapping[int, bytes]) -> dict[str, Any]:
    """Return what fields are of the JSON at their paths."""
    fields: dict[str, Any] = {}
    for name, source, path, is_text in sources:
        value = source.constant if path is None else _scalar(name, found.get(path))
        if source.filled:
            value = "0" if value is None or value == "" else "1"
        if value is None:
            continue
        if is_text and type(value) is int:
            value = str(value)
        if source.values is not None and isinstance(value, str):
            value = source.values.get(value, value)
        fields[name] = value
    return fields


def _scalar(name: str, value: bytes | None) -> Any:
    """Return the text, number, truth or null that JSON of a field is; None for no JSON."""
    if value is None:
        return None
    first = value[0]
    if first == _TEXT:
        return _text(value)
    if first in (_OBJECT, _ARRAY):
        raise InvalidMessage("wrong_type", f"{name}: an object or array stands there, and no text or number.")
    if (word := _WORDS.get(value, value)) is not value:
        return word
    text = value.decode()
    if len(text) <= _INT_DIGITS and text.lstrip("-").isdigit():
        return int(text)
    try:
        return Decimal(text)
    except ArithmeticError as error:
        raise InvalidMessage("invalid_value", f"{name}: the number is out of range.") from error


def _since_1970(value: Any, unit: str) -> datetime:
    """Return the moment of a number of units; raises `InvalidMessage` for anything else."""
    if isinstance(value, str) and PLAIN_AMOUNT.fullmatch(value):
        value = Decimal(value)
    if isinstance(value, bool) or not isinstance(value, int | Decimal):
        raise InvalidMessage("invalid_value", f"event_time is no number of {unit} since 1970.")
    power = _PER_US[unit]
    if isinstance(value, int):
        time_us = value * 10**power if power >= 0 else value // 10**-power
    elif value.adjusted() + power < _LARGEST_EXPONENT:
        time_us = int(value.scaleb(power).to_integral_value(ROUND_FLOOR))
    else:
        time_us = LATEST_US
    if EARLIEST_US <= time_us < LATEST_US:
        return time_of(time_us)
    raise InvalidMessage(
        "event_time_impossible", f"event_time is not between 1990 and 2100; check that it counts in {unit}."
    )
