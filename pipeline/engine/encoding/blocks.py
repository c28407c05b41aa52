"""Blocks: each record of ``profiled`` and of ``features`` holds many rows of one partition as columns.

``docs/wire-contract.md`` (blocks) describes the bytes. `parse_block` checks every length and both checksums before
anything else looks at the columns; `profiled` and `feature_blocks` of the scores check the values.
"""

import struct
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import accumulate, groupby, pairwise
from math import prod
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np
import xxhash
from numpy.typing import NDArray

from pipeline.engine.encoding.row_columns import ORIGINAL, TEXTS, WHOLES
from pipeline.learning.labels import KNOWN as LABEL_VALUES

TRANSACTION, LABEL = range(2)
"""Kinds of rows, as the merchants' windows number them."""
MOST_ROWS: Final = 512
MOST_BYTES: Final = 256 * 1024
"""A block is cut before it exceeds one of these; a single row may be larger."""
MOST_IDENTIFIER_BYTES: Final = 4 * 256
"""An identifier of a producer has 256 characters at most."""

CODES: Final = ("kind", "counts", "known", "rates", "input_topic")
"""Columns of bytes on ``profiled``: enumerations, and the last two the number of a name."""
KIND, FLAGS, KNOWN, RATES_NAME, INPUT_NAME = range(len(CODES))
COUNTED: Final = 1
OUTLIER: Final = 2
"""Bits of ``counts``: whether a transaction enters the windows, and whether its amount is an outlier for its card."""
KNOWN_NAMES: Final = ("legitimate", "fraud", "none")
"""Values of a label from ``known_at_us`` on, by code; the merchants' windows have the same codes."""
KNOWN_CODES: Final = np.array([KNOWN_NAMES.index(name) for name in LABEL_VALUES], np.uint8)
"""Code of each value of `pipeline.learning.labels.KNOWN`."""

_FORMAT: Final = 1
_JSON: Final = b'{"kind":"'
_JSON_HINT: Final = (
    ". It may be of a release that wrote JSON to this topic: delete the pipeline's topics and its data directory, or "
    "choose another FRAUD_PIPELINE_TOPIC_PREFIX"
)
_PREFIX: Final = struct.Struct("<4sHHIIQQ")
"""Magic, format, features of a transaction, rows, bytes of the head, checksum of the body, checksum of the head."""
_SUMMED_BYTES: Final = _PREFIX.size - 8
"""The part of the prefix that the head's checksum covers."""
_COUNTS: Final = struct.Struct("<IIHHI")
"""Transactions, bytes of text, bytes of the kernel's version, names, bytes of all names."""
ALIGNMENT: Final = 8
SOURCE_BYTES: Final = 8 + 4 + 1
FEATURE_BYTES: Final = 8
_CONTINUATION: Final = 0b1000_0000
_TOP_BITS: Final = 0b1100_0000
_MOST_SHOWN: Final = 20
"""Ranges of source offsets that an error names."""
_MOST_NAME: Final = 64
"""Bytes of a topic's name that an error repeats."""
_REMEMBERED_BYTES: Final = 16 * 1024
"""Bytes of names that are remembered at most."""
_checksum: Final = xxhash.xxh3_64_intdigest


class BlockSize(NamedTuple):
    """Numbers of what a block holds."""

    rows: int
    transactions: int
    """Rows with features."""
    features: int
    text_bytes: int


class Layout(NamedTuple):
    """Columns of one kind of block."""

    magic: bytes
    wide: tuple[str, ...]
    """Columns of 64-bit integers, of `WHOLES`."""
    narrow: tuple[str, ...]
    """Columns of 32-bit integers, of `WHOLES`; the lengths of the texts stand behind them."""
    texts: tuple[str, ...]
    """The first of `TEXTS`."""
    codes: tuple[str, ...]
    choices: tuple[int, ...] = ()
    """Number of values of each of the first columns of codes; the columns behind them hold numbers of names."""
    kinds: bool = False
    """True if the first code is the kind of the row, and rows of kind `TRANSACTION` alone have features."""

    @property
    def row_bytes(self) -> int:
        """Bytes of a row besides its texts and features."""
        return SOURCE_BYTES + 8 * len(self.wide) + 4 * (len(self.narrow) + len(self.texts)) + len(self.codes)

    def body_bytes(self, size: BlockSize) -> int:
        """Return the bytes of a block's body."""
        features = FEATURE_BYTES * size.features * size.transactions
        return (self.row_bytes - SOURCE_BYTES) * size.rows + features + size.text_bytes

    def integers(
        self, n: int, columns: Mapping[int, NDArray[np.signedinteger[Any]] | Sequence[int] | int]
    ) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        """Return the wide and the narrow columns of n rows; those that are not given are 0.

        Args:
            n: Number of rows.
            columns: Values by number in `WHOLES`, shape (n,) or one for all rows.
        """
        wide, narrow = np.zeros((len(self.wide), n), np.int64), np.zeros((len(self.narrow), n), np.int32)
        for number, values in columns.items():
            if (name := WHOLES[number]) in self.wide:
                wide[self.wide.index(name)] = values
            else:
                narrow[self.narrow.index(name)] = values
        return wide, narrow


PROFILED_LAYOUT: Final = Layout(
    b"FPBK",
    wide=("event_time_us", "amount_base_minor", "case_sequence", "ingested_at_us", "input_offset", "known_at_us"),
    narrow=("producer_offset_min", "input_partition"),
    texts=TEXTS[: ORIGINAL + 1],
    codes=CODES,
    choices=(LABEL + 1, COUNTED + OUTLIER + 1, len(KNOWN_NAMES)),
    kinds=True,
)
FEATURES_MAGIC: Final = b"FPFB"
_MAGICS: Final = (PROFILED_LAYOUT.magic, FEATURES_MAGIC)


Input: TypeAlias = tuple[str, int, int]
"""A record that the card agent read: topic without prefix, partition, offset."""


class BlockError(ValueError):
    """A record is no block that this release can read; the text says why, and which source records it holds."""


class KernelMismatch(RuntimeError):
    """A block on ``profiled`` holds features of another kernel version than this worker's."""


class KernelChanged(RuntimeError):
    """The card agent wrote such a block: a release of that kernel must decide it, and no record is to blame."""


class Sources(NamedTuple):
    """Positions of the records that n rows are of: those of producers on ``profiled``, rows of that on ``features``."""

    offset: NDArray[np.int64]
    partition: NDArray[np.int32]
    topic: NDArray[np.uint8]
    """Number of the topic's name."""

    def take(self, rows: slice | NDArray[np.intp]) -> "Sources":
        """Return some rows."""
        return Sources(self.offset[rows], self.partition[rows], self.topic[rows])

    def text(self, names: Sequence[bytes]) -> str:
        """Return the positions as ranges of offsets, for a person.

        >>> numbers = np.array([4, 5, 9]), np.zeros(3, np.int32), np.zeros(3, np.uint8)
        >>> Sources(*numbers).text([b"transactions"])
        'transactions partition 0 offsets 4-5, 9'
        """
        rows = sorted({*zip(*(column.tolist() for column in (self.topic, self.partition, self.offset)), strict=True)})
        parts: list[str] = []
        shown = 0
        for (topic, partition), group in groupby(rows, lambda row: row[:2]):
            if shown >= _MOST_SHOWN:
                parts.append("...")
                break
            offsets = [offset for *_, offset in group]
            starts = [0, *(i for i, (offset, next_one) in enumerate(pairwise(offsets), 1) if next_one > offset + 1)]
            ranges = [(offsets[a], offsets[b - 1]) for a, b in pairwise([*starts, len(offsets)])]
            listed = [f"{a}" if a == b else f"{a}-{b}" for a, b in ranges[: _MOST_SHOWN - shown]]
            listed += ["..."] if len(listed) < len(ranges) else []
            name = names[topic][:_MOST_NAME].decode(errors="replace")
            parts.append(f"{name} partition {partition} offsets {', '.join(listed)}")
            shown += len(ranges)
        return "; ".join(parts)


class Block(NamedTuple):
    """Columns of n rows, t of them with features; what concerns the other kind alone is 0 or empty."""

    kernel: str
    """The kernel version that computed the features."""
    names: Sequence[bytes]
    """Topics, versions and the like, which the rows name by number."""
    sources: Sources
    wide: NDArray[np.int64]
    """Shape (len(layout.wide), n)."""
    features: NDArray[np.float64]
    """Shape (t, k), NaN for no value; on ``profiled`` `pipeline.features.catalogue.CARD_FEATURES` of that kernel."""
    narrow: NDArray[np.int32]
    """Shape (len(layout.narrow), n)."""
    lengths: NDArray[np.int32]
    """Shape (len(layout.texts), n): bytes of each text."""
    codes: NDArray[np.uint8]
    """Shape (len(layout.codes), n)."""
    text: bytes
    """UTF-8 of all texts, column by column."""
    layout: Layout = PROFILED_LAYOUT

    @property
    def rows(self) -> int:
        """Number of rows."""
        rows: int = self.wide.shape[1]
        return rows

    def whole(self, column: int) -> NDArray[np.signedinteger[Any]]:
        """Return a column of integers, shape (n,), by its number in `WHOLES`."""
        name, layout = WHOLES[column], self.layout
        found: NDArray[np.signedinteger[Any]] = (
            self.wide[layout.wide.index(name)] if name in layout.wide else self.narrow[layout.narrow.index(name)]
        )
        return found

    def ends(self) -> NDArray[np.int64]:
        """Return where each text ends in ``text``; shape (len(layout.texts), n)."""
        return np.cumsum(self.lengths, dtype=np.int64).reshape(self.lengths.shape)

    def texts(self, rows: slice | NDArray[np.intp] = slice(None)) -> list[list[bytes]]:
        """Return the texts of some rows, column by column."""
        ends = self.ends()
        spans = np.stack([ends - self.lengths, ends], axis=2)[:, rows]
        return [[self.text[first:end] for first, end in column] for column in spans.tolist()]


def pack_block(block: Block) -> bytes:
    """Return the bytes of a block."""
    body = b"".join(
        (
            block.wide.astype("<i8", copy=False).tobytes(),
            block.features.astype("<f8", copy=False).tobytes(),
            block.narrow.astype("<i4", copy=False).tobytes(),
            block.lengths.astype("<i4", copy=False).tobytes(),
            block.codes.tobytes(),
            block.text,
        )
    )
    size = BlockSize(block.rows, len(block.features), block.features.shape[1], len(block.text))
    return join_block(block.layout, block.kernel, block.names, size, block.sources, body)


def join_block(
    layout: Layout, version: str, names: Sequence[bytes], size: BlockSize, sources: Sources, body: bytes | memoryview
) -> bytes:
    """Return the bytes of a block whose body has been written.

    Args:
        layout: Its columns.
        version: Of the kernel that computed the features.
        names: As in `Block`.
        size: What it holds.
        sources: Positions of its rows.
        body: All columns behind the sources, and the texts.
    """
    kernel, packed = version.encode(), b"".join(names)
    parts = (
        _COUNTS.pack(size.transactions, size.text_bytes, len(kernel), len(names), len(packed)),
        sources.offset.astype("<i8", copy=False).tobytes(),
        sources.partition.astype("<i4", copy=False).tobytes(),
        sources.topic.tobytes(),
        np.array([*map(len, names)], "<u2").tobytes(),
        kernel,
        packed,
    )
    head = b"".join((*parts, bytes(-sum(map(len, parts)) % ALIGNMENT)))
    prefix = _PREFIX.pack(layout.magic, _FORMAT, size.features, size.rows, len(head), _checksum(body), 0)
    prefix = prefix[:_SUMMED_BYTES]
    return b"".join((prefix, _checksum(prefix + head).to_bytes(8, "little"), head, body))


def fixed_bytes(kernel: str, names: Sequence[bytes]) -> int:
    """Return the most bytes of a block that its rows do not account for."""
    return _PREFIX.size + _COUNTS.size + sum(map(len, names)) + 2 * len(names) + len(kernel.encode()) + ALIGNMENT


def original_of(value: bytes | None, row: int) -> bytes:
    """Return the producer's own bytes of a row of ``profiled``.

    Raises:
        BlockError: It is no block.
        IndexError: There is no such row.
    """
    block = parse_block(value)
    end = int(block.ends()[ORIGINAL, row])
    return block.text[end - int(block.lengths[ORIGINAL, row]) : end]


def row_count(value: bytes | None) -> int:
    """Return how many rows a record says it holds, as many as a block may hold at most; 1 for what is no block."""
    if value is None or len(value) < _PREFIX.size or not value.startswith(_MAGICS):
        return 1
    return min(max(int(_PREFIX.unpack_from(value)[3]), 1), MOST_ROWS)


def is_block(value: bytes | None, layout: Layout) -> bool:
    """Return whether a record says that it is a block of ``layout``."""
    return value is not None and value.startswith(layout.magic)


def parse_block(value: bytes | None, layout: Layout = PROFILED_LAYOUT) -> Block:
    """Return the columns of a record that is a block of ``layout``.

    Raises:
        BlockError: It is no such block, it is damaged, or its parts do not fit together.
    """
    if value is None or len(value) < _PREFIX.size or not value.startswith(layout.magic):
        hint = _JSON_HINT if value is not None and value.startswith(_JSON) else ""
        raise BlockError(f"it is no block of rows{hint}")
    _, form, *_ = _PREFIX.unpack_from(value)
    if form != _FORMAT:
        raise BlockError(f"it is a block of format {form}, and this release reads format {_FORMAT}")
    head = _parse_head(value)
    try:
        return _parse_body(value, head, layout)
    except BlockError as error:
        raise BlockError(f"{error} (rows of {head.sources.text(head.names)})") from error


class _BlockHead(NamedTuple):
    rows: int
    transactions: int
    features: int
    text_bytes: int
    kernel: str
    names: tuple[bytes, ...]
    sources: Sources
    body_start: int
    body_checksum: int


_SOURCE_TYPES: Final = (np.dtype("<i8"), np.dtype("<i4"), np.dtype("u1"))


class _Cursor:
    """Arrays of a block, one behind the other; who asks has made sure that they are there."""

    def __init__(self, value: bytes, at: int) -> None:
        self._value, self.at = value, at

    def array(self, dtype: Any, *shape: int) -> Any:
        count = prod(shape)
        found = np.frombuffer(self._value, dtype, count, self.at) if count else np.frombuffer(b"", dtype)
        self.at += count * found.itemsize
        return found.reshape(shape)

    def bytes(self, count: int) -> bytes:
        self.at += count
        return self._value[self.at - count : self.at]


def _parse_head(value: bytes) -> _BlockHead:
    _, _, features, rows, head_bytes, body_checksum, head_checksum = _PREFIX.unpack_from(value)
    body_start = _PREFIX.size + head_bytes
    head = value[_PREFIX.size : body_start]
    if len(head) < head_bytes or _checksum(value[:_SUMMED_BYTES] + head) != head_checksum:
        raise BlockError("the checksum of its head is wrong")
    if head_bytes < _COUNTS.size:
        raise BlockError("its head is too short")
    transactions, text_bytes, kernel_bytes, name_count, name_bytes = _COUNTS.unpack_from(head)
    used = _COUNTS.size + rows * SOURCE_BYTES + 2 * name_count + kernel_bytes + name_bytes
    if not 0 < rows <= MOST_ROWS:
        raise BlockError(f"it says that it has {rows} rows, and a block has 1 to {MOST_ROWS}")
    if transactions > rows or used + -used % ALIGNMENT != head_bytes:
        raise BlockError("the parts of its head do not fit together")
    cursor = _Cursor(value, _PREFIX.size + _COUNTS.size)
    sources = Sources(*(cursor.array(dtype, rows) for dtype in _SOURCE_TYPES))
    name_lengths, kernel, packed = cursor.bytes(2 * name_count), cursor.bytes(kernel_bytes), cursor.bytes(name_bytes)
    if int(sources.topic.max()) >= name_count:
        raise BlockError("its names do not fit together")
    split = _split_names if name_bytes <= _REMEMBERED_BYTES else _split_names.__wrapped__
    names = split(name_lengths, packed)
    try:
        version = kernel.decode()
    except UnicodeDecodeError as error:
        raise BlockError(f"a name is no UTF-8: {error}") from error
    return _BlockHead(rows, transactions, features, text_bytes, version, names, sources, body_start, body_checksum)


@lru_cache(maxsize=16)
def _split_names(lengths: bytes, packed: bytes) -> tuple[bytes, ...]:
    """Return the names of a block; remembered, because nearly all blocks have those of the one before."""
    ends = [0, *accumulate(struct.unpack(f"<{len(lengths) // 2}H", lengths))]
    if ends[-1] != len(packed):
        raise BlockError("its names do not fit together")
    names = tuple(packed[first:end] for first, end in pairwise(ends))
    try:
        for name in names:
            name.decode()
    except UnicodeDecodeError as error:
        raise BlockError(f"a name is no UTF-8: {error}") from error
    return names


def _parse_body(value: bytes, head: _BlockHead, layout: Layout) -> Block:
    n = head.rows
    size = BlockSize(n, head.transactions, head.features, head.text_bytes)
    if len(value) - head.body_start != layout.body_bytes(size):
        raise BlockError("it is shorter or longer than its head says")
    if _checksum(memoryview(value)[head.body_start :]) != head.body_checksum:
        raise BlockError("the checksum of its body is wrong")
    cursor = _Cursor(value, head.body_start)
    wide = cursor.array("<i8", len(layout.wide), n)
    features = cursor.array("<f8", head.transactions, head.features)
    narrow = cursor.array("<i4", len(layout.narrow), n)
    lengths = cursor.array("<i4", len(layout.texts), n)
    codes = cursor.array(np.uint8, len(layout.codes), n)
    text = cursor.bytes(head.text_bytes)
    if int(lengths.min()) < 0 or int(lengths.sum(dtype=np.int64)) != head.text_bytes:
        raise BlockError("the lengths of its texts do not fit together")
    with_features = n - np.count_nonzero(codes[KIND]) if layout.kinds else n
    highest = codes.max(axis=1).tolist()
    if head.transactions != with_features or (layout.kinds and highest[KIND] > LABEL):
        raise BlockError("its rows are of other kinds than its head says")
    if any(code >= values for code, values in zip(highest, layout.choices, strict=False)):
        raise BlockError("a row has a code that means nothing")
    if max(highest[len(layout.choices) :]) >= len(head.names):
        raise BlockError("a row has the number of a name that is not there")
    block = Block(head.kernel, head.names, head.sources, wide, features, narrow, lengths, codes, text, layout)
    _check_text(block)
    return block


def _check_text(block: Block) -> None:
    if block.text.isascii():
        return
    try:
        block.text.decode()
    except UnicodeDecodeError as error:
        raise BlockError(f"its texts are no UTF-8: {error}") from error
    starts = (block.ends() - block.lengths)[block.lengths > 0]
    if (np.frombuffer(block.text, np.uint8)[starts] & _TOP_BITS == _CONTINUATION).any():
        raise BlockError("a text ends within a character")
