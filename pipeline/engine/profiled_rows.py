"""Profiled transactions as JSON, a batch at once from columns: the bytes that msgspec writes of the messages."""

from collections.abc import Sequence
from datetime import datetime
from functools import lru_cache
from itertools import accumulate
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np
import pyarrow as pa
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

from pipeline.engine.columns import Transactions, text_buffers
from pipeline.engine.rerouting import Batch
from pipeline.features.catalogue import KERNEL_VERSION
from pipeline.features.compiled import compiled, inlined
from pipeline.features.kernel import CardProfile
from schemas.messages import ProfiledTransaction
from schemas.topics import REROUTED, TRANSACTIONS

_encode = msgspec.json.Encoder(decimal_format="number").encode

_COLUMNS: Final = (
    "transaction_id", "card_id", "merchant_id", "event_time_us", "amount_base_minor", "counts", "card_features",
    "case_id", "case_sequence", "source", "ingested_at", "transaction", "read",
)  # fmt: skip
"""Fields that differ from row to row or from batch to batch, in the order in which they are written."""
_END, _OFFSET, _READ = range(len(_COLUMNS), len(_COLUMNS) + 3)
"""Pieces behind those before the columns: the end, what stands before an offset, and what before a record's place."""
_TEXTS: Final = frozenset({"transaction_id", "card_id", "merchant_id", "card_features", "case_id"})
_LONGEST_NUMBER: Final = 20
_NUMBERS: Final = 9
_LEAST_CHARACTER, _QUOTE, _BACKSLASH = b' "\\'
_ZERO, _MINUS = b"0-"
_US_PER_SECOND: Final = 1_000_000
_ALPHABET: Final = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
_NOWHERE: Final = -1


class Places(NamedTuple):
    """Where n records lay, and where those were read that had been passed on."""

    partition: NDArray[np.int64]
    offset: NDArray[np.int64]
    read_partition: NDArray[np.int64]
    """Shape (n,): -1 for a record that was read where it lay."""
    read_offset: NDArray[np.int64]


def places(batch: Batch, rows: Sequence[int]) -> Places:
    """Return where the records of numbers ``rows`` of ``batch`` lay."""
    lay = [batch.records[row] for row in rows]
    partition = np.array([record.partition for record in lay], np.int64)
    offset = np.array([record.offset for record in lay], np.int64)
    nowhere = np.full(len(lay), _NOWHERE)
    if batch.reads is batch.records:
        return Places(partition, offset, nowhere, nowhere)
    reads = [None if batch.reads[row] is batch.records[row] else batch.reads[row] for row in rows]
    read_partition = np.array([_NOWHERE if read is None else read.partition for read in reads], np.int64)
    read_offset = np.array([_NOWHERE if read is None else read.offset for read in reads], np.int64)
    return Places(partition, offset, read_partition, read_offset)


def encode_profiled(
    taken: Transactions,
    profile: CardProfile,
    places: Places,
    values: Sequence[bytes],
    rates_version: str,
    now: datetime,
) -> list[bytes]:
    """Return the JSON of a `ProfiledTransaction` for each of n transactions.

    Args:
        taken: The transactions.
        profile: What is known of them from their cards.
        places: Where their records lay.
        values: The records' values.
        rates_version: Version of the rate table that converted the amounts.
        now: When they were read.

    Returns:
        n values for ``profiled``.
    """
    n = len(taken)
    if not n:
        return []
    pieces, piece_ends = _pieces(rates_version)
    stamp = np.frombuffer(_encode(now), np.uint8)
    texts = [_escaped(column) for column in (taken.transaction_id, taken.card_id, taken.merchant_id)]
    features = profile.features.astype("<f8", copy=False).view(np.uint8)
    raw = np.frombuffer(b"".join(values), np.uint8)
    raw_ends = np.fromiter(accumulate(map(len, values)), np.int64, n)
    row_bytes = len(pieces) + len(stamp) + _NUMBERS * _LONGEST_NUMBER + 4 * (features.shape[1] // 3 + 1)
    # The card's name is written twice.
    text_bytes = sum(int(offsets[-1] - offsets[0]) for _, offsets in (*texts, texts[1]))
    out, ends = np.empty(n * row_bytes + text_bytes + len(raw), np.uint8), np.empty(n, np.int64)
    _write(
        pieces, piece_ends, stamp, *texts[0], *texts[1], *texts[2],
        taken.event_time_us, taken.amount_base_minor, taken.counts, features, _PAIRS,
        profile.case_start_us, profile.case_sequence, *places, raw, raw_ends, out, ends,
    )  # fmt: skip
    bounds = ends.tolist()
    whole = out[: bounds[-1]].tobytes()
    return [whole[first:end] for first, end in zip([0, *bounds], bounds, strict=False)]


@lru_cache(maxsize=8)
def _pieces(rates_version: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """What stands before each column, and behind the last one; and where each piece ends."""
    same: dict[str, Any] = {"rates_version": rates_version, "kernel": KERNEL_VERSION}
    same |= {field.name: field.default for field in msgspec.structs.fields(ProfiledTransaction) if not field.required}
    config = ProfiledTransaction.__struct_config__
    piece = b"{" + _encode(config.tag_field) + b":" + _encode(config.tag)
    pieces, columns = [], []
    for name in ProfiledTransaction.__struct_fields__:
        piece += b"," + _encode(name) + b":"
        if name not in _COLUMNS:
            piece += _encode(same[name])
            continue
        columns.append(name)
        if name in _TEXTS:
            piece += b'"'
        if name == "source":
            piece += b'{"topic":%b,"partition":' % _encode(TRANSACTIONS.name)
        pieces.append(piece)
        piece = b'"' if name in _TEXTS else b"}" if name == "source" else b""
    if tuple(columns) != _COLUMNS:
        raise TypeError(f"the columns of ProfiledTransaction are {columns}: write them in this order")
    pieces += [piece + b"}", b',"offset":', b'{"topic":%b,"partition":' % _encode(REROUTED.name)]
    ends = np.cumsum([0, *map(len, pieces)])
    return np.frombuffer(b"".join(pieces), np.uint8), ends


def _escaped(texts: pa.Array) -> tuple[NDArray[np.uint8], NDArray[np.signedinteger[Any]]]:
    """`text_buffers` of texts as they stand between quotes in JSON."""
    data, offsets = text_buffers(texts)
    if not _needs_escapes(data, offsets):
        return data, offsets
    return text_buffers(pa.array([_encode(text)[1:-1].decode() for text in texts.to_pylist()], pa.string()))


def _pairs() -> NDArray[np.uint8]:
    """The two characters of base64 for each 12 bits; shape (4096, 2)."""
    letters = np.frombuffer(_ALPHABET, np.uint8)
    numbers = np.arange(1 << 12)
    return np.stack([letters[numbers >> 6], letters[numbers & 63]], axis=1)


_PAIRS: Final = _pairs()


@compiled
def _needs_escapes(data: Any, offsets: Any) -> bool:
    found = 0
    for place in range(offsets[0], offsets[-1]):
        byte = data[place]
        found += (byte < _LEAST_CHARACTER) | (byte == _QUOTE) | (byte == _BACKSLASH)
    return found > 0


@compiled
def _write(
    pieces: Any, piece_ends: Any, stamp: Any, ids: Any, id_ends: Any, cards: Any, card_ends: Any, merchants: Any,
    merchant_ends: Any, event_us: Any, amount: Any, counts: Any, features: Any, pairs: Any, case_start_us: Any,
    case_sequence: Any, partition: Any, offset: Any, read_partition: Any, read_offset: Any, raw: Any, raw_ends: Any,
    out: Any, ends: Any,
) -> None:  # fmt: skip
    """Write all rows into ``out``; ``ends`` are the rows' ends."""
    at = np.int64(0)
    raw_first = np.int64(0)
    for row in range(len(ends)):
        at = _piece(pieces, piece_ends, 0, out, at)
        at = _copied(ids, id_ends[row], id_ends[row + 1], out, at)
        at = _piece(pieces, piece_ends, 1, out, at)
        at = _copied(cards, card_ends[row], card_ends[row + 1], out, at)
        at = _piece(pieces, piece_ends, 2, out, at)
        at = _copied(merchants, merchant_ends[row], merchant_ends[row + 1], out, at)
        at = _piece(pieces, piece_ends, 3, out, at)
        at = _number(event_us[row], out, at)
        at = _piece(pieces, piece_ends, 4, out, at)
        at = _number(amount[row], out, at)
        at = _piece(pieces, piece_ends, 5, out, at)
        at = _truth(counts[row], out, at)
        at = _piece(pieces, piece_ends, 6, out, at)
        at = _base64(features, row, pairs, out, at)
        at = _piece(pieces, piece_ends, 7, out, at)
        at = _copied(cards, card_ends[row], card_ends[row + 1], out, at)
        out[at] = _MINUS
        at = _number(case_start_us[row] // _US_PER_SECOND, out, at + 1)
        at = _piece(pieces, piece_ends, 8, out, at)
        at = _number(case_sequence[row], out, at)
        at = _piece(pieces, piece_ends, 9, out, at)
        at = _place(pieces, piece_ends, partition[row], offset[row], out, at)
        at = _piece(pieces, piece_ends, 10, out, at)
        at = _copied(stamp, 0, len(stamp), out, at)
        at = _piece(pieces, piece_ends, 11, out, at)
        at = _copied(raw, raw_first, raw_ends[row], out, at)
        raw_first = raw_ends[row]
        at = _piece(pieces, piece_ends, 12, out, at)
        if read_partition[row] == _NOWHERE:
            out[at], out[at + 1], out[at + 2], out[at + 3] = 110, 117, 108, 108  # null
            at += 4
        else:
            at = _piece(pieces, piece_ends, _READ, out, at)
            at = _place(pieces, piece_ends, read_partition[row], read_offset[row], out, at)
            out[at] = 125  # }
            at += 1
        at = _piece(pieces, piece_ends, _END, out, at)
        ends[row] = at


@intrinsic  # type: ignore[untyped-decorator]
def _copy(_typing: Any, data: Any, _first: Any, _size: Any, out: Any, _at: Any) -> Any:
    """Copy bytes that do not overlap, which a slice would allocate memory to make sure of."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        source = context.make_array(signature.args[0])(context, builder, arguments[0])
        target = context.make_array(signature.args[3])(context, builder, arguments[3])
        cgutils.raw_memcpy(
            builder, builder.gep(target.data, [arguments[4]]), builder.gep(source.data, [arguments[1]]), arguments[2], 1
        )
        return context.get_dummy_value()

    return types.void(data, types.int64, types.int64, out, types.int64), generate


@inlined
def _copied(data: Any, first: Any, end: Any, out: Any, at: Any) -> Any:
    size = np.int64(end) - np.int64(first)
    _copy(data, np.int64(first), size, out, at)
    return at + size


@inlined
def _piece(pieces: Any, piece_ends: Any, number: Any, out: Any, at: Any) -> Any:
    return _copied(pieces, piece_ends[number], piece_ends[number + 1], out, at)


@inlined
def _place(pieces: Any, piece_ends: Any, partition: Any, offset: Any, out: Any, at: Any) -> Any:
    """A partition and an offset."""
    at = _number(partition, out, at)
    at = _piece(pieces, piece_ends, _OFFSET, out, at)
    return _number(offset, out, at)


@compiled
def _number(number: Any, out: Any, at: Any) -> Any:
    """A whole number."""
    if number < 0:
        out[at] = _MINUS
        at += 1
        number = -number
    count, limit = 1, 10
    while number >= limit and count < 19:
        count += 1
        limit *= 10
    for place in range(at + count - 1, at - 1, -1):
        rest = number // 10
        out[place] = _ZERO + (number - 10 * rest)
        number = rest
    return at + count


@inlined
def _truth(value: Any, out: Any, at: Any) -> Any:
    if value:
        out[at], out[at + 1], out[at + 2], out[at + 3] = 116, 114, 117, 101  # true
        return at + 4
    out[at], out[at + 1], out[at + 2], out[at + 3], out[at + 4] = 102, 97, 108, 115, 101  # false
    return at + 5


@compiled
def _base64(rows: Any, row: Any, pairs: Any, out: Any, at: Any) -> Any:
    """The bytes of a row."""
    size = rows.shape[1]
    whole = size - size % 3
    for k in range(0, whole, 3):
        bits = (np.int64(rows[row, k]) << 16) | (np.int64(rows[row, k + 1]) << 8) | np.int64(rows[row, k + 2])
        out[at], out[at + 1] = pairs[bits >> 12, 0], pairs[bits >> 12, 1]
        out[at + 2], out[at + 3] = pairs[bits & 4095, 0], pairs[bits & 4095, 1]
        at += 4
    if whole < size:
        bits = np.int64(rows[row, whole]) << 16
        if whole + 1 < size:
            bits |= np.int64(rows[row, whole + 1]) << 8
        out[at], out[at + 1] = pairs[bits >> 12, 0], pairs[bits >> 12, 1]
        out[at + 2] = pairs[bits & 4095, 0] if whole + 1 < size else 61  # =
        out[at + 3] = 61
        at += 4
    return at
