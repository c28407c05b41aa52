"""Small TOML files that people write: their tables, and names in errors about them."""

import difflib
import tomllib
from collections.abc import Iterable
from typing import Any, Final

MAX_BYTES: Final = 64 * 1024
"""Longest file that is read."""
_SHOWN: Final = 64
_LISTED: Final = 20


class InvalidToml(ValueError):
    """Bytes that are no TOML; the text says where."""


def toml_tables(content: bytes) -> dict[str, Any]:
    """Return the tables of a file; raises `InvalidToml`."""
    if len(content) > MAX_BYTES:
        raise InvalidToml(f"it has {len(content):,} bytes, and may have {MAX_BYTES:,}")
    try:
        return tomllib.loads(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise InvalidToml(f"byte {error.start} is not UTF-8") from error
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise InvalidToml(f"it is no TOML: {error}") from error


def shown(name: str) -> str:
    """Return a name as one line of text, cut where it is long."""
    cut = name if len(name) <= _SHOWN else f"{name[:_SHOWN]}..."
    return "".join(mark if mark.isprintable() else ascii(mark)[1:-1] for mark in cut)


def suggestion(name: str, names: Iterable[str]) -> str:
    """Return words for a name that is none of some.

    >>> suggestion("pth", ["path", "unit"]), suggestion("x", ["path", "unit"])
    ('did you mean path?', 'there are path, unit')
    """
    known = list(names)
    if close := difflib.get_close_matches(name[:_SHOWN], known, 1):
        return f"did you mean {close[0]}?"
    more = f" and {len(known) - _LISTED} more" if len(known) > _LISTED else ""
    return f"there are {', '.join(known[:_LISTED])}{more}"
