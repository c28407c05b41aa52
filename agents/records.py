"""Faust records of the messages that other programs write and read, for Faust agents of their own.

They are made from the schemas (`schemas.messages`), so that they have the same fields and defaults.
"""

import types
import typing
from decimal import Decimal
from functools import cache
from typing import Any, Final

import faust
import msgspec

from schemas import messages


@cache
def record(kind: type[msgspec.Struct]) -> type[faust.Record]:
    """Return the Faust record with the fields of a message, those of its parts included."""
    hints = typing.get_type_hints(kind)
    fields = msgspec.structs.fields(kind)
    required = [field for field in fields if field.required]
    optional = [field for field in fields if not field.required]
    content: dict[str, Any] = {
        "__doc__": kind.__doc__,
        "__module__": __name__,
        "__annotations__": {field.name: _annotation(hints[field.name]) for field in (*required, *optional)},
        **{field.name: field.default for field in optional},
    }
    options = {"serializer": "json", "coerce": True}
    return types.new_class(kind.__name__, (faust.Record,), options, lambda names: names.update(content))


def _annotation(hint: Any) -> Any:
    """Return a type hint as Faust knows it: messages as records, and the older forms of unions and containers.

    Decimals are floats: Faust makes a decimal of the float that it reads, with all its digits.
    """
    if hint is Decimal:
        return float
    if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
        return record(hint)
    arguments = tuple(map(_annotation, typing.get_args(hint)))
    if isinstance(hint, types.UnionType):
        return typing.Union[arguments]  # noqa: UP007
    older: Any = {list: typing.List, dict: typing.Dict}.get(typing.get_origin(hint))  # noqa: UP006
    return hint if older is None else older[arguments]


Transaction: Final = record(messages.Transaction)
Label: Final = record(messages.Label)
Decision: Final = record(messages.Decision)
Alert: Final = record(messages.Alert)
