"""Errors that a message on the wire can cause."""

from typing import Final

import msgspec


class InvalidMessage(ValueError):
    """A record that cannot be decoded or accepted; it belongs in the dead-letter topic.

    ``code`` is a stable, machine-readable class of error (see ``docs/dead-letters.md``); the text says
    what is wrong and what the producer should send instead.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


UNREADABLE: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""Everything that msgspec raises for bytes that are not the message asked for."""
