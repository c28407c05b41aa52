"""The fields of a transaction, as `schemas.messages.Transaction` declares them. What reads one follows from here."""

import math
from enum import IntEnum
from typing import Any, Final, NamedTuple

import msgspec
from msgspec import inspect

from schemas.messages import Transaction


class Kind(IntEnum):
    """Kinds of values, which readers of records and of tables distinguish."""

    TEXT = 0
    NUMBER = 1
    TIME = 2
    CLOCK = 3
    """A time on a clock at the wall, with or without offset."""
    AMOUNT = 4
    WHOLE = 5
    ATTRIBUTES = 6
    """A flat object."""


class FieldDeclaration(NamedTuple):
    """A field of a transaction."""

    name: str
    kind: Kind
    required: bool
    default: str | None
    """Text of a field that is absent; None: it has no value."""
    least: float
    most: float
    """Limits of a number, or of a text's characters."""
    stands_for_text: bool
    """True if a number stands for its text."""
    column: bool
    """True if `pipeline.engine.records.columns.Transactions` has a column of its name."""
    kernels: bool
    """True if declared features and filters can read it by its name."""
    personal: bool
    """True if it may say who somebody is."""
    meaning: str


def fields_of(message: type[msgspec.Struct]) -> tuple[FieldDeclaration, ...]:
    """Return the fields that a message declares, in its order.

    Raises:
        TypeError: A field with a column is no text, or has a limit that readers do not check.
    """
    return tuple(map(_field, inspect.type_info(message).fields))  # type: ignore[attr-defined]


def _field(declared: inspect.Field) -> FieldDeclaration:
    info: Any = declared.type
    described, extra = dict[str, str](), dict[str, bool]()
    if isinstance(info, inspect.Metadata):
        info, described, extra = info.type, info.extra_json_schema or {}, info.extra or {}
    types = info.types if isinstance(info, inspect.UnionType) else (info,)
    given = [kind for kind in types if not isinstance(kind, inspect.NoneType)]
    value = next((kind for kind in given if isinstance(kind, inspect.StrType)), given[0])
    kind = _KINDS[type(value)]
    least, most = (_limit(value, name) for name in (("min_length", "ge"), ("max_length", "le")))
    column, kernels = extra.get("column", False), extra.get("kernels", False)
    not_checked = any(_limit(value, (name,)) is not None for name in ("gt", "lt", "multiple_of"))
    if (column or kernels) and (kind is not Kind.TEXT or not_checked):
        raise TypeError(f"{declared.name} can have no column: only a text can, with least and most characters")
    return FieldDeclaration(
        declared.name,
        kind,
        declared.required,
        declared.default if isinstance(declared.default, str) else None,
        -math.inf if least is None else least,
        math.inf if most is None else most,
        len(given) > 1,
        column,
        kernels,
        extra.get("personal", False),
        described.get("description", ""),
    )


def _limit(value: Any, names: tuple[str, ...]) -> float | None:
    return next((getattr(value, name) for name in names if hasattr(value, name)), None)


_KINDS: Final[dict[Any, Kind]] = {
    inspect.StrType: Kind.TEXT,
    inspect.FloatType: Kind.NUMBER,
    inspect.DateTimeType: Kind.TIME,
    inspect.Metadata: Kind.CLOCK,
    inspect.DecimalType: Kind.AMOUNT,
    inspect.IntType: Kind.WHOLE,
    inspect.DictType: Kind.ATTRIBUTES,
}
"""Kinds of values by their types; the type of a clock is the only one that is marked."""

DECLARED_FIELDS: Final = fields_of(Transaction)
PERSONAL: Final = tuple(field.name for field in DECLARED_FIELDS if field.personal)
"""Names of the fields that may say who somebody is."""
TEXT_COLUMNS: Final = tuple(field for field in DECLARED_FIELDS if field.column or field.kernels)
"""Fields of which readers make columns; of those for kernels alone, where a declared feature reads them."""
READ_FIELDS: Final = tuple(
    field for field in DECLARED_FIELDS if field in TEXT_COLUMNS or field.kind in (Kind.TIME, Kind.CLOCK, Kind.AMOUNT)
)
"""Fields that an acceptance reads, besides attributes; other fields decide nothing."""
