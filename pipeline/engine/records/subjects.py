"""Transactions as messages about them name them, as columns: texts as places in bytes, and whole numbers."""

from collections.abc import Collection, Mapping, Sequence
from itertools import chain
from operator import attrgetter
from typing import Any, AnyStr, Final, NamedTuple

import msgspec
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.engine.encoding.row_columns import CARD, CURRENCY, EVENT_US, ID, MERCHANT, ORIGINAL, TEXTS, TYPE, WHOLES
from pipeline.engine.records.accept import text_of
from pipeline.engine.records.columns import EXTRA_TEXTS, identities
from pipeline.features.catalogue import ACTIVE
from schemas.messages import Description

_OWN: Final = {"card_id": CARD, "merchant_id": MERCHANT, "currency": CURRENCY, "transaction_type": TYPE}
"""Texts that have a column of their own."""
_OTHERS: Final = [(name, Description | None, None) for name in EXTRA_TEXTS if name not in ACTIVE.texts]
_ATTRIBUTES: Final = ("attributes", dict[str, str | float | None] | None, None)
_Original: Final[Any] = msgspec.defstruct("Original", _OTHERS, gc=False)
_Declared: Final[Any] = msgspec.defstruct("Declared", [*_OTHERS, _ATTRIBUTES], gc=False)
_decode: Final = msgspec.json.Decoder(list[_Original]).decode
_decode_declared: Final = msgspec.json.Decoder(list[_Declared]).decode


class Subjects(NamedTuple):
    """Columns of n transactions."""

    text: bytes
    """UTF-8 into which spans point."""
    spans: NDArray[np.int64]
    """Shape (len(TEXTS), n, 2): where each text begins and ends."""
    wholes: NDArray[np.int64]
    """Shape (len(WHOLES), n)."""

    @classmethod
    def from_columns(cls, texts: Mapping[int, Sequence[bytes]], wholes: Mapping[int, NDArray[np.int64]]) -> "Subjects":
        """Put columns together; those that are not given are empty, or 0."""
        n = len(texts[ID])
        spans, numbers = np.zeros((len(TEXTS), n, 2), np.int64), np.zeros((len(WHOLES), n), np.int64)
        ends = np.cumsum([0, *map(len, chain.from_iterable(texts.values()))])
        spans[[*texts]] = np.stack([ends[:-1], ends[1:]], axis=1).reshape(len(texts), n, 2)
        for column, values in wholes.items():
            numbers[column] = values
        return cls(b"".join(chain.from_iterable(texts.values())), spans, numbers)

    @property
    def rows(self) -> int:
        """Number of rows."""
        rows: int = self.spans.shape[1]
        return rows

    @property
    def event_time_us(self) -> NDArray[np.int64]:
        """Event time of each; shape (n,)."""
        times: NDArray[np.int64] = self.wholes[EVENT_US]
        return times

    def texts(self, column: int) -> list[bytes]:
        """Return the texts of a column."""
        return _parts(self.text, self.spans[column])

    def strings(self, column: int) -> list[str]:
        """Return the texts of a column as strings."""
        if not self.text.isascii():
            return [text.decode() for text in self.texts(column)]
        return _parts(self.text.decode(), self.spans[column])

    def text_lists(self, names: Collection[str]) -> dict[str, list[str | None]]:
        """Return texts of the contract and of declared attributes by name, None for no value."""
        found: dict[str, list[str | None]] = {name: [*self.strings(_OWN[name])] for name in names if name in _OWN}
        originals: list[Any] = []
        if others := [name for name in names if name not in _OWN]:
            decode = _decode if {*ACTIVE.texts}.isdisjoint(others) else _decode_declared
            originals = decode(b"[%b]" % b",".join(self.texts(ORIGINAL)))
        for name in others:
            if name in ACTIVE.texts:
                values = ((original.attributes or {}).get(name) for original in originals)
                found[name] = [value if isinstance(value, str) else None for value in values]
            else:
                given = [*map(attrgetter(name), originals)]
                found[name] = [*map(text_of, given)] if float in {*map(type, given)} else given
        return found

    def take(self, rows: NDArray[np.intp]) -> "Subjects":
        """Return some rows."""
        return Subjects(self.text, self.spans[:, rows], self.wholes[:, rows])

    def identities(self) -> NDArray[np.uint64]:
        """Return the `transaction_hash` of each row; shape (n,)."""
        return identities(*(pa.array(self.texts(column), pa.binary()) for column in (CARD, ID)))


def _parts(text: AnyStr, spans: NDArray[np.int64]) -> list[AnyStr]:
    """Return the parts of a text between places, shape (n, 2)."""
    return [text[first:end] for first, end in zip(*spans.T.tolist(), strict=True)]
