"""Errors of models and policies."""

from typing import Final

LONGEST_TEXT: Final = 1_000


class ModelError(ValueError):
    """A model, layer or policy that cannot be used here; the text says what to do about it.

    A text that quotes what it refuses is cut to `LONGEST_TEXT` characters.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text if len(text) <= LONGEST_TEXT else f"{text[:LONGEST_TEXT]} ...")


class ModelIncomplete(ModelError):
    """A version of which something cannot be read yet: it may be usable later as it is."""
