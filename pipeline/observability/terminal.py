"""Text on its way to a terminal: foreign text, which may not be taken for a command, and lines that report progress."""

import time
from collections.abc import Callable
from typing import Final

PROGRESS_INTERVAL_S: Final = 5.0
"""Time between two lines that report progress."""


def printable(text: str) -> str:
    r"""Return ``text`` with every control character written out, so that an identifier cannot steer a terminal.

    Written out are C0, DEL and C1, characters that change the direction of text, and line ends.

    >>> printable("card\x1b[31m \x9b31m \u202e")
    'card\\x1b[31m \\x9b31m \\u202e'
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def printable_lines(text: str) -> str:
    r"""Return text of several lines, each as `printable` returns it.

    >>> printable_lines("one\ntwo\x7f")
    'one\ntwo\\x7f'
    """
    return "\n".join(map(printable, text.split("\n")))


def printable_json(text: str) -> str:
    r"""Return JSON of the same value without control characters, on as many lines.

    >>> printable_json('{"card_id":"\x9b31m"}')
    '{"card_id":"\\u009b31m"}'
    """
    return "\n".join("".join(c if c.isprintable() else _escaped(c) for c in line) for line in text.split("\n"))


def _escaped(character: str) -> str:
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at : at + 2].hex()}" for at in range(0, len(units), 2))


def throttled(report: Callable[[str], None], interval_s: float = PROGRESS_INTERVAL_S) -> Callable[[str], None]:
    """Return ``report`` in a form that leaves out what comes within ``interval_s`` of the line before."""
    next_s = time.monotonic() + interval_s

    def maybe(text: str) -> None:
        nonlocal next_s
        if time.monotonic() >= next_s:
            next_s = time.monotonic() + interval_s
            report(text)

    return maybe
