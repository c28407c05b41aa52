"""Limits of values, as `msgspec.Meta` declares them beside a field's type and its description."""

import math
from collections.abc import Sequence
from functools import cache
from typing import Any, Final, get_type_hints

import msgspec

from schemas.times import US_PER_DAY, US_PER_SECOND

LONGEST_US: Final = 2**61
"""Longest time that sums of times have room for."""
_LONGEST: Final = {"s": LONGEST_US / US_PER_SECOND, "days": LONGEST_US / US_PER_DAY}


def check_limits(declared: Any) -> None:
    """Refuse a value outside the limits of its field, and one that is not finite.

    A field whose name ends in ``_s`` or ``_days`` is a time, which is shorter than `LONGEST_US`. Of a sequence each
    value has the limits.

    Args:
        declared: An instance of a dataclass or Struct whose fields bear `msgspec.Meta`.

    Raises:
        ValueError: Names the field, its limits and the value.
    """
    kind: Any = type(declared)
    for name, limits in _declared(kind):
        value = getattr(declared, name)
        longest = _LONGEST.get(name.rpartition("_")[2], math.inf)
        for item in value if isinstance(value, Sequence) else (value,):
            if item is not None and not (_within(item, limits) and item < longest):
                raise ValueError(f"{name} must be {limits_text(limits)}, not {item}")


class Limited:
    """Base of dataclasses whose fields have limits: a value outside them is refused when one is made."""

    __slots__ = ()

    def __post_init__(self) -> None:
        check_limits(self)


def limits_of(hint: Any) -> msgspec.Meta | None:
    """Return the declaration in the ``Annotated`` of a type, None if it bears none."""
    return next((item for item in getattr(hint, "__metadata__", ()) if isinstance(item, msgspec.Meta)), None)


def limits_text(limits: msgspec.Meta) -> str:
    """Write limits in words.

    >>> limits_text(msgspec.Meta(ge=0, le=1)), limits_text(msgspec.Meta(gt=0, le=720)), limits_text(msgspec.Meta(ge=1))
    ('from 0 to 1', 'more than 0 and at most 720', 'at least 1')
    """
    if limits.ge is not None and limits.le is not None:
        return f"from {limits.ge:g} to {limits.le:g}"
    words = {"at least": limits.ge, "more than": limits.gt, "at most": limits.le, "less than": limits.lt}
    return " and ".join(f"{word} {bound:g}" for word, bound in words.items() if bound is not None)


@cache
def _declared(kind: Any) -> tuple[tuple[str, msgspec.Meta], ...]:
    """Return the fields that have limits."""
    found = ((name, limits_of(hint)) for name, hint in get_type_hints(kind, include_extras=True).items())
    return tuple((name, limits) for name, limits in found if limits is not None and limits_text(limits))


def _within(value: float, limits: msgspec.Meta) -> bool:
    return (
        (limits.ge is None or value >= limits.ge)
        and (limits.gt is None or value > limits.gt)
        and (limits.le is None or value <= limits.le)
        and (limits.lt is None or value < limits.lt)
    )
