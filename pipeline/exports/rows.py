"""Records as rows of a table whose columns are the fields of the wire contract; what these do not say stays bytes."""

import math
import re
import types
import typing
from collections.abc import Callable, Sequence
from decimal import Decimal
from functools import partial
from operator import attrgetter
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.features.catalogue import FEATURES
from schemas.codec import EARLIEST_US, LATEST_US, MAX_VALUE_BYTES, may_have_too_many_names
from schemas.records import Record
from schemas.topics import Topic

TIMESTAMP: Final = "timestamp"
PARTITION: Final = "partition"
OFFSET: Final = "offset"
KEY: Final = "key"
HEADERS: Final = "headers"
VALUE: Final = "value"
"""The record's own bytes, where the columns of its fields do not say all of it."""
ERROR: Final = "error"
"""Why the columns of the fields are empty; null where they are not."""


def _list_of(fields: Sequence[pa.Field]) -> pa.DataType:
    # By the name that Parquet gives to what is in a list, so that what is read is what was written.
    return pa.list_(pa.field("element", pa.struct(fields)))


RECORD_FIELDS: Final = (
    pa.field(TIMESTAMP, pa.timestamp("ms", "UTC")),
    pa.field(PARTITION, pa.int32()),
    pa.field(OFFSET, pa.int64()),
    pa.field(KEY, pa.binary()),
    pa.field(HEADERS, _list_of([pa.field("name", pa.string()), pa.field("value", pa.binary())])),
)
_PLAIN_AMOUNT: Final = re.compile(rb'"?(-?(?:0|[1-9]\d{0,6})(?:\.\d{1,4})?)"?')
"""An amount whose float stands for the decimal that was written, and how many decimals of a currency it has."""
_FEATURES: Final = "features"
FEATURE_FIELDS: Final = [pa.field(f"feature_{name}", pa.float64()) for name in FEATURES]
_WIDEST: Final = 2**63
_NO_VALUE: Final = "The record has no value."

Struct = type[msgspec.Struct]


class _Built(NamedTuple):
    """Columns of n messages."""

    columns: list[pa.Array]
    unrepresentable: NDArray[np.bool_]
    """Shape (n,): where they do not say what the message does."""


class _FieldGroup(NamedTuple):
    """Columns that are made together, of a field or of what is within it."""

    fields: list[pa.Field]
    build: Callable[[Sequence[Any]], _Built]
    """Builds columns from messages, all of the topic's kinds."""


class RowFormat:
    """The rows of one topic. Columns are the same for every record, so that all files of a topic have one schema."""

    def __init__(self, form: Topic, *, keeps_bytes: bool = False) -> None:
        """Make the rows of one topic.

        Args:
            form: Says which messages its values are. Values of no single message type stay as they are.
            keeps_bytes: Whether every row keeps its record's bytes, and not only those that columns do not say.
        """
        self._keeps_bytes = keeps_bytes
        kinds = typing.get_args(form.value) or (form.value,)
        self._parts = _parts_of(kinds) if _distinguishes(kinds) else ()
        message_fields = [field for part in self._parts for field in part.fields]
        error_columns = [pa.field(ERROR, pa.string())] if message_fields else []
        self.schema = pa.schema([*RECORD_FIELDS, *message_fields, pa.field(VALUE, pa.binary()), *error_columns])
        if message_fields:
            self._decode_all = msgspec.json.Decoder(_union([_without_more(kind) for kind in kinds])).decode
            self._decode = msgspec.json.Decoder(_union(kinds)).decode
            self._amounts = [
                (field.name, field.name in FEATURES and _FEATURES in kind.__struct_fields__)
                for kind in kinds
                for field in msgspec.structs.fields(kind)
                if _bare(field.type) is Decimal
            ]

    def rows(self, records: Sequence[Record]) -> pa.RecordBatch:
        """A row a record, in their order; every record has one, whatever its bytes are."""
        n = len(records)
        kept = np.ones(n, np.bool_)
        message_columns: list[pa.Array] = []
        error_columns: list[pa.Array] = []
        if self._parts:
            messages, errors = [], []
            for row, record in enumerate(records):
                message, kept[row], error = self._read(record.value)
                messages.append(message)
                errors.append(error)
            decoded = np.array([message is not None for message in messages], np.bool_)
            # Rows of what was decoded, nulls for the others.
            where = pa.array(np.cumsum(decoded) - 1, mask=~decoded)
            found = [message for message in messages if message is not None]
            for part in self._parts:
                columns, unrepresentable = part.build(found)
                kept[decoded] |= unrepresentable
                message_columns += columns if len(found) == n else [column.take(where) for column in columns]
            error_columns = [pa.array(errors, pa.string())]
        values = [
            record.value if keep or self._keeps_bytes else None for record, keep in zip(records, kept, strict=True)
        ]
        columns = [*record_columns(records), *message_columns, pa.array(values, pa.binary()), *error_columns]
        return pa.RecordBatch.from_arrays(columns, schema=self.schema)

    def _read(self, value: bytes | None) -> tuple[Any, bool, str | None]:
        """(message or None, whether its bytes must be kept, why there is no message)."""
        if value is None:
            return None, False, _NO_VALUE
        try:
            message = self._decode_all(value)
            read_alike = len(value) <= MAX_VALUE_BYTES and not may_have_too_many_names(value)
            if read_alike and all(_is_plain(message, value, *amount) for amount in self._amounts):
                return message, False, None
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            # The message itself is written below, as far as it can be read.
            pass
        try:
            return self._decode(value), True, None
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            return None, True, str(error)


def record_columns(records: Sequence[Record]) -> list[pa.Array]:
    """Return the columns of `RECORD_FIELDS`."""
    return [
        pa.array([record.timestamp_ms for record in records], pa.int64()).cast(RECORD_FIELDS[0].type),
        pa.array([record.partition for record in records], pa.int32()),
        pa.array([record.offset for record in records], pa.int64()),
        pa.array([record.key for record in records], pa.binary()),
        pa.array([_headers(record) for record in records], RECORD_FIELDS[4].type),
    ]


def _headers(record: Record) -> list[dict[str, Any]] | None:
    return [{"name": name, "value": value} for name, value in record.headers] or None


def _is_plain(message: Any, value: bytes, name: str, is_feature: bool) -> bool:
    # Of a name that repeats the decoder must see every value; here it has left them undecoded.
    times = 1 + (is_feature and message.features is not None)
    written = f'"{name}"'.encode()
    return _PLAIN_AMOUNT.fullmatch(bytes(getattr(message, name))) is not None and value.count(written) == times


def _distinguishes(kinds: Sequence[Any]) -> bool:
    structs = all(isinstance(kind, type) and issubclass(kind, msgspec.Struct) for kind in kinds)
    return structs and (len(kinds) == 1 or all(kind.__struct_config__.tag is not None for kind in kinds))


def _union(kinds: Sequence[Any]) -> Any:
    return typing.Union[tuple(kinds)]  # noqa: UP007


def _without_more(kind: Struct) -> Struct:
    """The same message, refusing fields that it does not know, and leaving amounts undecoded."""
    config = kind.__struct_config__
    fields: list[Any] = []
    for field in msgspec.structs.fields(kind):
        field_kind = msgspec.Raw if _bare(field.type) is Decimal else _nested(field.type)
        if field.name == _FEATURES:
            field_kind = _Features if field.required else _Features | None
        made_anew = field.default_factory is not msgspec.NODEFAULT
        default = msgspec.field(default_factory=field.default_factory) if made_anew else field.default
        fields.append((field.name, field_kind) if field.required else (field.name, field_kind, default))
    made: Struct = msgspec.defstruct(
        kind.__name__,
        fields,
        tag_field=config.tag_field,
        tag=config.tag,
        forbid_unknown_fields=True,
        kw_only=True,
        gc=False,
    )
    return made


def _bare(kind: Any) -> Any:
    return kind.__origin__ if typing.get_origin(kind) is typing.Annotated else kind


def _nested(kind: Any) -> Any:
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return _without_more(kind)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return _union([_nested(argument) for argument in arguments])
    return list[_nested(arguments[0])] if origin is list else kind  # type: ignore[misc]


def _parts_of(kinds: Sequence[Struct]) -> tuple[_FieldGroup, ...]:
    """Columns of messages that may be any of ``kinds``; a field that several have is one column."""
    found: dict[str, _FieldGroup] = {}
    tag_field = kinds[0].__struct_config__.tag_field
    if len(kinds) > 1 and tag_field is not None:
        found[tag_field] = _part(tag_field, pa.string(), lambda messages: _built(map(_tag, messages), pa.string()))
    for kind in kinds:
        for part in _fields_of(kind, (), missing=len(kinds) > 1):
            found.setdefault(part.fields[0].name, part)
    return tuple(found.values())


def _fields_of(kind: Struct, path: tuple[str, ...], *, missing: bool) -> list[_FieldGroup]:
    """``path`` leads to a message within a message; ``missing``: it may not be there."""
    parts: list[_FieldGroup] = []
    for field in msgspec.inspect.type_info(kind).fields:  # type: ignore[attr-defined]
        field_kind, optional = _present(field.type)
        within = (*path, field.name)
        get = _getter(within, missing=missing or optional)
        if isinstance(field_kind, msgspec.inspect.StructType):
            parts += _fields_of(field_kind.cls, within, missing=missing or optional)
        elif field.name == _FEATURES:
            parts.append(_FieldGroup(FEATURE_FIELDS, partial(_features, get)))
        else:
            parts.append(_part("_".join(within), *_column(field_kind, get)))
    return parts


def _part(name: str, kind: pa.DataType, build: Callable[[Sequence[Any]], _Built]) -> _FieldGroup:
    return _FieldGroup([pa.field(name, kind)], build)


def _present(info: Any) -> tuple[Any, bool]:
    """(type without null, whether it may be null)."""
    if isinstance(info, msgspec.inspect.Metadata):
        return _present(info.type)
    if not isinstance(info, msgspec.inspect.UnionType):
        return info, False
    others = [_present(kind)[0] for kind in info.types if not isinstance(kind, msgspec.inspect.NoneType)]
    return (others[0] if len(others) == 1 else msgspec.inspect.UnionType(tuple(others))), len(others) < len(info.types)


def _getter(path: Sequence[str], *, missing: bool) -> Callable[[Any], Any]:
    if not missing or len(path) == 1:
        plain = attrgetter(".".join(path))
        return (lambda message: getattr(message, path[0], None)) if missing else plain

    def get(message: Any) -> Any:
        for name in path:
            message = getattr(message, name, None)
        return message

    return get


def _column(info: Any, get: Callable[[Any], Any]) -> tuple[pa.DataType, Callable[[Sequence[Any]], _Built]]:
    inspect = msgspec.inspect
    simple: dict[Any, Any] = {
        inspect.StrType: pa.string(),
        inspect.FloatType: pa.float64(),
        inspect.BoolType: pa.bool_(),
        inspect.BytesType: pa.binary(),
    }
    if (kind := simple.get(type(info))) is not None:
        return kind, lambda messages: _built(map(get, messages), kind)
    if isinstance(info, inspect.IntType):
        return pa.int64(), partial(_whole, get)
    if isinstance(info, inspect.DateTimeType):
        return pa.timestamp("us", "UTC"), partial(_times, get)
    if isinstance(info, inspect.DecimalType):
        return pa.float64(), lambda messages: _built((_amount(get(message)) for message in messages), pa.float64())
    if isinstance(info, inspect.RawType):
        return pa.string(), partial(_texts, get)
    if isinstance(info, inspect.ListType) and isinstance(info.item_type, inspect.StructType):
        items = _fields_of(info.item_type.cls, (), missing=False)
        kind = _list_of([field for item in items for field in item.fields])
        return kind, lambda messages: _built(map(msgspec.to_builtins, map(get, messages)), kind)
    if isinstance(info, inspect.UnionType) and {type(kind) for kind in info.types} == {
        inspect.StrType,
        inspect.FloatType,
    }:
        return pa.string(), partial(_descriptions, get)
    # A mapping, or one of several kinds of rules: as JSON.
    return pa.string(), lambda messages: _built(map(_json, map(get, messages)), pa.string())


def _built(values: Any, kind: pa.DataType) -> _Built:
    found = list(values)
    return _Built([pa.array(found, kind)], np.zeros(len(found), np.bool_))


def _whole(get: Callable[[Any], Any], messages: Sequence[Any]) -> _Built:
    values = [get(message) for message in messages]
    unrepresentable = np.array([value is not None and not -_WIDEST <= value < _WIDEST for value in values], np.bool_)
    fitting = [None if wide else value for value, wide in zip(values, unrepresentable, strict=True)]
    return _Built([pa.array(fitting, pa.int64())], unrepresentable)


def _descriptions(get: Callable[[Any], Any], messages: Sequence[Any]) -> _Built:
    """Texts, and numbers as text, which does not say that it was one."""
    values = [get(message) for message in messages]
    texts = [value if value is None or isinstance(value, str) else _json(value) for value in values]
    return _Built([pa.array(texts, pa.string())], np.array([isinstance(value, float) for value in values], np.bool_))


def _times(get: Callable[[Any], Any], messages: Sequence[Any]) -> _Built:
    """Those that no codec accepts are left out: most readers cannot even show the year 9999 of another zone."""
    values = pa.array([get(message) for message in messages], pa.timestamp("us", "UTC"))
    moments_us = values.cast(pa.int64()).fill_null(EARLIEST_US).to_numpy()
    unrepresentable = (moments_us < EARLIEST_US) | (moments_us >= LATEST_US)
    if unrepresentable.any():
        values = pa.array(moments_us, mask=unrepresentable | values.is_null().to_numpy(zero_copy_only=False)).cast(
            values.type
        )
    return _Built([values], unrepresentable)


def _texts(get: Callable[[Any], Any], messages: Sequence[Any]) -> _Built:
    """JSON that is passed on as it came, of which nobody has said that it is text."""
    texts: list[str | None] = []
    unrepresentable = np.zeros(len(messages), np.bool_)
    for row, message in enumerate(messages):
        raw = get(message)
        try:
            texts.append(None if raw is None else bytes(raw).decode())
        except UnicodeDecodeError:
            texts.append(None)
            unrepresentable[row] = True
    return _Built([pa.array(texts, pa.string())], unrepresentable)


_Features: Any = msgspec.defstruct(
    "_Features", [(name, float | None, None) for name in FEATURES], forbid_unknown_fields=True, gc=False
)
"""Features by this release's names; a message that has others is read as it is, and its bytes are kept."""


def _features(get: Callable[[Any], Any], messages: Sequence[Any]) -> _Built:
    """Build a column for each feature of this release: null for no value, and where a message has no features."""
    found = [get(message) for message in messages]
    values = np.array([_in_order(features) for features in found], np.float64).reshape(len(found), len(FEATURES))
    # Features of which none has a value would read like none at all.
    has_features = np.array([features is not None for features in found], np.bool_)
    return _Built(feature_columns(values), has_features & np.isnan(values).all(axis=1))


def feature_columns(values: NDArray[np.float64]) -> list[pa.Array]:
    """Return a column for each feature.

    Args:
        values: Shape (n, len(FEATURES)), NaN for no value.
    """
    return [pa.array(column, from_pandas=True) for column in values.T.copy()]


_NO_FEATURES: Final = (None,) * len(FEATURES)


def _in_order(features: Any) -> Sequence[Any]:
    if features is None:
        return _NO_FEATURES
    return list(map(features.get, FEATURES)) if isinstance(features, dict) else msgspec.structs.astuple(features)


def _tag(message: Any) -> str:
    return str(message.__struct_config__.tag)


def _amount(value: Any) -> float | None:
    number = math.nan if value is None else float(value if isinstance(value, Decimal) else bytes(value).strip(b'"'))
    return number if math.isfinite(number) else None


def _json(value: Any) -> str | None:
    return None if value is None else msgspec.json.encode(value).decode()
