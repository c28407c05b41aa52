"""Accepted transactions and labels as columns, and the hashes of their names."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Final, NamedTuple, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.engine.partition_state.layout import DIGEST_BYTES
from pipeline.features.catalogue import ACTIVE
from pipeline.features.xxh3 import hash_joined, hash_pairs, hash_spans, hash_texts
from schemas.fields import TEXT_COLUMNS


class Reject(NamedTuple):
    """A row that was not accepted, with what its dead letter would say."""

    kind: str
    """``transaction`` or ``label``."""
    row: int
    """Its number in the input, from 0."""
    code: str
    """Code as in ``docs/dead-letters.md``."""
    text: str
    known_at_us: int | None = None
    """Time from which a label counts that has waited in vain, in microseconds since 1970; None of other rows."""


class _Columns:
    """Columns of one length, of which rows can be taken."""

    __slots__ = ()
    card_id: pa.Array
    transaction_id: pa.Array

    def identities(self) -> NDArray[np.uint64]:
        """Return the `transaction_hash` of each row; shape (n,)."""
        return identities(self.card_id, self.transaction_id)

    def take(self, rows: slice | NDArray[np.intp] | NDArray[np.bool_]) -> Self:
        """The rows of a slice, of a mask of shape (n,), or of indices."""
        if isinstance(rows, slice):
            return self._each(lambda column: column[rows])
        mask = rows.dtype == np.bool_
        picked = pa.array(rows)
        return self._each(
            lambda column: (
                column[rows]
                if isinstance(column, np.ndarray)
                else (column.filter(picked) if mask else column.take(picked))
            )
        )

    def _each(self, function: Any) -> Self:
        return type(self)(**{name: _of_columns(function, getattr(self, name)) for name in self._names()})

    @classmethod
    def _names(cls) -> list[str]:
        return [field.name for field in fields(cls)]  # type: ignore[arg-type]

    @classmethod
    def concat(cls, parts: "list[Self]") -> Self:
        """The rows of one after the other; at least one. What one of them has not, all have not."""
        if len(parts) == 1:
            return parts[0]
        return cls(**{name: _of_columns(_concat, *(getattr(part, name) for part in parts)) for name in cls._names()})


def _of_columns(function: Any, *columns: Any) -> Any:
    """Call a function with a column of each part, by its name where there are many; what one has not, none has."""
    if any(column is None for column in columns):
        return None
    if isinstance(columns[0], Mapping):
        return {name: _of_columns(function, *(part[name] for part in columns)) for name in columns[0]}
    return function(*columns)


def _concat(*parts: Any) -> Any:
    return np.concatenate(parts) if isinstance(parts[0], np.ndarray) else pa.concat_arrays(parts)


@dataclass(frozen=True, slots=True)
class Transactions(_Columns):
    """Transactions that passed every check; every column has shape (n,), texts are Arrow strings."""

    row: NDArray[np.int64]
    """Number in the input, from 0."""
    key: NDArray[np.int64]
    """The sort key: the event time, or the recorded sequence."""
    transaction_id: pa.Array
    card_id: pa.Array
    merchant_id: pa.Array
    event_time_us: NDArray[np.int64]
    """Microseconds since 1970-01-01T00:00:00Z."""
    currency: pa.Array
    amount_minor: NDArray[np.int64]
    """Whole minor units of ``currency``."""
    amount_base_minor: NDArray[np.int64]
    """Whole minor units of the base currency."""
    transaction_type: pa.Array
    counts: NDArray[np.bool_]
    """True if it enters windows."""
    hour: NDArray[np.float64]
    weekday: NDArray[np.float64]
    truth: NDArray[np.int8] | None = None
    """Final label of each, an index of `pipeline.learning.labels.KNOWN`; no decision sees it. None
    where labels report it."""
    producer_amount: pa.Array | None = None
    """JSON of the amount as the producer wrote it; None, like ``producer_offset_min``, where nothing asks for it."""
    producer_offset_min: NDArray[np.int64] | None = None
    """Minutes of the UTC offset in which the producer wrote the event time."""
    attributes: NDArray[np.float64] | None = None
    """Shape (n, len(ATTRIBUTE_FEATURES)), NaN for no value; None where none is declared."""
    declared: Mapping[str, pa.Array] = field(default_factory=dict)
    """Texts that have no column here (`EXTRA_TEXTS`), by name; null for no value."""

    def __len__(self) -> int:
        return len(self.row)

    def text_lists(self, names: Iterable[str]) -> dict[str, list[str | None]]:
        """Return texts of the contract and of declared attributes by name, None for no value."""
        return {name: self.text(name).to_pylist() for name in names}

    def text(self, name: str) -> pa.Array:
        """Return a column of texts, of the contract or of declared attributes."""
        return self.declared[name] if name in self.declared else getattr(self, name)


@dataclass(frozen=True, slots=True)
class Labels(_Columns):
    """Labels that passed every check; every column has shape (n,), texts are Arrow strings."""

    row: NDArray[np.int64]
    key: NDArray[np.int64]
    """The sort key: ``known_at_us``, or the recorded sequence."""
    transaction_id: pa.Array
    card_id: pa.Array
    source: pa.Array
    rank: NDArray[np.int8]
    """`pipeline.learning.labels.source_rank` of its source."""
    known: NDArray[np.int8]
    """Value of the label: an index of `pipeline.learning.labels.KNOWN`."""
    labelled_at_us: NDArray[np.int64]
    known_at_us: NDArray[np.int64]
    word: pa.Array | None = None
    """The label as it was sent, and below it the type of the fraud; None where nobody keeps them."""
    fraud_type: pa.Array | None = None

    def __len__(self) -> int:
        return len(self.row)


EXTRA_TEXTS: Final = (*(field.name for field in TEXT_COLUMNS if not field.column), *ACTIVE.texts)
"""Names of the columns of `Transactions.declared`."""


def no_transactions() -> Transactions:
    """None of them."""
    none, texts, numbers = np.empty(0, np.int64), pa.array([], pa.string()), np.empty(0)
    declared = dict.fromkeys(EXTRA_TEXTS, texts)
    return Transactions(
        none, none, texts, texts, texts, none, texts, none, none, texts, np.empty(0, np.bool_), numbers, numbers,
        declared=declared,
    )  # fmt: skip


def no_labels() -> Labels:
    """None of them."""
    none, texts = np.empty(0, np.int64), pa.array([], pa.string())
    return Labels(none, none, texts, texts, texts, np.empty(0, np.int8), np.empty(0, np.int8), none, none)


def text_buffers(texts: pa.Array) -> tuple[NDArray[np.uint8], NDArray[np.signedinteger[Any]]]:
    """Return (data, offsets) of n Arrow strings, none null: text i lies from ``offsets[i]`` to ``offsets[i + 1]``.

    Neither can be written to, so that compiled functions are compiled for one kind of array.
    """
    if not len(texts):
        return _NO_BYTES, _ONE_OFFSET
    kind = _ENDS_OF_TYPE.get(texts.type)
    if kind is None:
        raise TypeError(f"texts of {texts.type} are not read: cast them to string or binary")
    _, offsets, data = texts.buffers()
    ends = np.frombuffer(offsets, kind, len(texts) + 1, kind.itemsize * texts.offset)
    ends.setflags(write=False)
    if data is None or not data.size:
        return _NO_BYTES, ends
    found = np.frombuffer(data, np.uint8)
    found.setflags(write=False)
    return found, ends


def name_keys(names: pa.Array) -> NDArray[np.int64]:
    """Return 128 bits of each of n names as two words, the same on every machine (XXH3); shape (n, 2)."""
    return _as_keys(hash_texts(*text_buffers(names)))


def span_keys(text: NDArray[np.uint8], spans: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return `name_keys` of n names that lie in ``text`` at ``spans``, shape (n, 2)."""
    return _as_keys(hash_spans(text, spans[:, 0], spans[:, 1]))


def _as_keys(hashes: NDArray[np.uint64]) -> NDArray[np.int64]:
    # The digest's bytes are those of big-endian words; keys are little-endian ones.
    return hashes.byteswap(inplace=True).view(np.int64)


def content_keys(taken: Transactions) -> NDArray[np.int64]:
    """Return 64 bits of what each of n transactions says besides its identity; shape (n,).

    Merchant, event time, amount, currency and type count. Two that differ in any of them have different bits, but for
    a chance of one in 2^64.
    """
    keys = np.zeros(len(taken), np.uint64)
    for column in (taken.merchant_id, taken.currency, taken.transaction_type):
        keys = (keys ^ name_keys(column)[:, 0].view(np.uint64)) * _ODD
    for numbers in (taken.event_time_us, taken.amount_minor):
        keys = (keys ^ numbers.view(np.uint64)) * _ODD
        keys ^= keys >> _HALF
    return keys.view(np.int64)


def digest_keys(card_id: pa.Array, transaction_id: pa.Array) -> NDArray[np.int64]:
    """Return the digests of n rows as two big-endian words, which sort as their bytes do; shape (n, 2)."""
    return hash_pairs(text_buffers(card_id), text_buffers(transaction_id)).view(np.int64)


def digests(card_id: pa.Array, transaction_id: pa.Array) -> list[bytes]:
    """Return what stands for each of n transactions in the store's keys: 16 bytes, since 128 bits do not collide.

    XXH3 of the number of characters of the card's name, a space, and both names: so the place where the second begins
    shows, whatever characters they hold. Names are texts or their UTF-8.
    """
    return digest_bytes(digest_keys(card_id, transaction_id))


def digest_bytes(keys: NDArray[np.int64]) -> list[bytes]:
    """Return `digest_keys` of n rows as `digests`."""
    packed = keys.astype(">i8").tobytes()
    return [packed[at : at + DIGEST_BYTES] for at in range(0, len(packed), DIGEST_BYTES)]


def identities(card_id: pa.Array, transaction_id: pa.Array) -> NDArray[np.uint64]:
    """Return `transaction_hash` of n rows, whose identifiers are texts or their UTF-8; shape (n,)."""
    return hash_joined(text_buffers(card_id), text_buffers(transaction_id))


_ODD: Final = np.uint64(0x9E3779B97F4A7C15)
"""2^64 divided by the golden ratio: a multiplication by it spreads differences over the upper bits."""
_HALF: Final = np.uint64(32)
_ENDS_OF_TYPE: Final[dict[pa.DataType, np.dtype[Any]]] = {
    pa.string(): np.dtype(np.int32),
    pa.binary(): np.dtype(np.int32),
    pa.large_string(): np.dtype(np.int64),
    pa.large_binary(): np.dtype(np.int64),
}
"""Type of the offsets of each type of texts."""
_NO_BYTES: Final = np.empty(0, np.uint8)
_ONE_OFFSET: Final = np.zeros(1, np.int32)
_NO_BYTES.flags.writeable = _ONE_OFFSET.flags.writeable = False
