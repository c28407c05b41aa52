"""Messages as columns, for the encoder alone: a batch of one kind, faster than message by message."""

from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from itertools import repeat
from typing import Any

import msgspec

_encode_into = msgspec.json.Encoder(decimal_format="number").encode_into


def encoded(messages: Iterable[Any]) -> Iterator[bytes]:
    """JSON of each message, decimals as numbers.

    By way of one buffer: bytes that grow as they are written are moved several times.
    """
    buffer = bytearray()
    for message in messages:
        _encode_into(message, buffer)
        yield bytes(buffer)


def written(kind: type[msgspec.Struct], columns: Mapping[str, Iterable[Any]]) -> Iterator[Any]:
    """What the encoder writes like messages of ``kind``, one for each row of ``columns``, whose names are its fields.

    Values are not checked, and may be encoded already (`msgspec.Raw`). A field without a column has its default;
    KeyError where it has none. Ends with the shortest column, so that one that is the same throughout may be endless.
    """
    defaults = _defaults(kind)
    in_order = [columns[name] if name in columns else repeat(defaults[name]) for name in kind.__struct_fields__]
    return map(positional(kind), *in_order)


@cache
def positional(kind: type[msgspec.Struct]) -> Any:
    """Makes what is written like a ``kind``, of values in the order of its fields: faster than by their names.

    Where ``kind`` leaves out defaults, the fields that have one may be left out too.
    """
    config = kind.__struct_config__
    defaults = _defaults(kind) if config.omit_defaults else {}
    fields: list[Any] = [
        (name, Any, defaults[name]) if name in defaults else (name, Any) for name in kind.__struct_fields__
    ]
    return msgspec.defstruct(
        kind.__name__, fields, tag_field=config.tag_field, tag=config.tag, gc=False, omit_defaults=config.omit_defaults
    )


@cache
def _defaults(kind: type[msgspec.Struct]) -> dict[str, Any]:
    return {
        field.name: field.default for field in msgspec.structs.fields(kind) if field.default is not msgspec.NODEFAULT
    }
