"""The grammar of JSON numbers, compiled: a text that is copied into a message as it stands must match it."""

from typing import Any, Final

import numpy as np

from pipeline.features.compiled import compiled

_ZERO, _NINE, _POINT, _MINUS, _PLUS = b"09.-+"
_CASE: Final = np.uint8(0x20)
_E: Final = np.uint8(ord("e"))


@compiled
def is_number(text: Any, at: Any, end: Any) -> Any:
    """Return whether the text from ``at`` to ``end`` is a JSON number."""
    if at < end and text[at] == _MINUS:
        at += 1
    first = at
    at = _past_digits(text, at, end)
    if at == first or (text[first] == _ZERO and at > first + 1):
        return False
    if at < end and text[at] == _POINT:
        first = at + 1
        at = _past_digits(text, first, end)
        if at == first:
            return False
    if at < end and text[at] | _CASE == _E:
        at += 1
        if at < end and (text[at] == _MINUS or text[at] == _PLUS):
            at += 1
        first = at
        at = _past_digits(text, first, end)
        if at == first:
            return False
    return at == end


@compiled
def _past_digits(text: Any, at: Any, end: Any) -> Any:
    while at < end and _ZERO <= text[at] <= _NINE:
        at += 1
    return at
