"""A snapshot's table of contents: whose state it is, up to where, and which pieces of which objects it is made of."""

import hashlib
import hmac
import re
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from typing import Annotated, Final, NamedTuple

import msgspec
import numpy as np

from pipeline.features.state_columns import PAGE_ITEMS
from schemas.errors import UNREADABLE

FORMAT: Final = 1
"""Raised when an older program could not read what a newer one writes."""
LARGEST_PIECE_BYTES: Final = 1 << 30
"""Most bytes of a piece that is no page of a column: a kernel's values, or a small file of the store."""
MANIFEST_SUFFIX: Final = ".json"

_NUMBER_DIGITS: Final = 12
_NUMBER: Final = re.compile(f"[0-9]{{{_NUMBER_DIGITS}}}")
_DIGEST: Final = re.compile(rb'"([0-9a-f]{64})"')


Number = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
Digest = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]
FileName = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_-][A-Za-z0-9._-]{0,200}\Z")]
Dtype = Annotated[str, msgspec.Meta(pattern=r"^[<>=|]?[a-z]{1,8}[0-9]{0,3}\Z")]


class SnapshotKey(NamedTuple):
    """Whose state it is: a snapshot under any other key is of no use to it."""

    agent: str
    partition: int
    cluster_id: str
    topic_ids: dict[str, str]
    """Kafka's own identifier of each input topic, by name: a topic made anew has another one."""
    partition_count: int
    kernel: str


class ObjectRange(msgspec.Struct, frozen=True, array_like=True):
    """A stretch of an object: its number in the manifest's ``objects``, where it begins, its stored and plain size."""

    object: Number
    offset_bytes: Number
    stored_bytes: Number
    size_bytes: Number


class SavedPages(msgspec.Struct, frozen=True):
    """A column: page k is ``pages[k]``."""

    dtype: Dtype
    items: Number
    pages: list[ObjectRange]


class StoreFile(msgspec.Struct, frozen=True):
    """A file of the store: a piece like a page, or an object of its own where ``digest`` is set."""

    size_bytes: Number
    piece: ObjectRange | None = None
    digest: Digest | None = None


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """The contents of a snapshot."""

    agent: str
    partition: int
    cluster_id: str
    topic_ids: dict[str, str]
    partition_count: int
    kernel: str
    positions: dict[str, Number]
    """Next offset of each input topic."""
    progress: Number
    """Next offset of the partition's progress records."""
    created_at: Annotated[datetime, msgspec.Meta(tz=True)]
    objects: list[Digest]
    """SHA-256 of each object that pieces lie in; it is also the object's name."""
    values: ObjectRange
    columns: dict[str, SavedPages]
    store: dict[FileName, StoreFile] | None = None

    @property
    def key(self) -> SnapshotKey:
        """Whose state it is."""
        return SnapshotKey(*(getattr(self, name) for name in SnapshotKey._fields))

    def pieces(self) -> Iterator[ObjectRange]:
        """Every piece that the snapshot needs."""
        yield self.values
        yield from (file.piece for file in (self.store or {}).values() if file.piece is not None)
        for column in self.columns.values():
            yield from column.pages

    def names(self) -> set[str]:
        """Every object that the snapshot needs."""
        files = (self.store or {}).values()
        return {*self.objects, *(file.digest for file in files if file.digest is not None)}


_SIGNED: Final = re.compile(r"([0-9a-f]{16}):[0-9a-f]{64}")
"""A checksum that is made with a key: the key's id stands before it."""


class _Envelope(msgspec.Struct, frozen=True):
    format: int
    checksum: str
    body: msgspec.Raw


_decode_envelope = msgspec.json.Decoder(_Envelope).decode
_decode_manifest = msgspec.json.Decoder(Manifest).decode


class ManifestDamaged(ValueError):
    """The bytes are not those that were written, or describe no snapshot that could have been written."""


class ManifestUnsigned(ValueError):
    """None of the keys that are trusted has signed the bytes, which somebody else may well read."""


class ManifestForeign(ValueError):
    """The bytes are whole and of another format, whose number is ``format``; ``names`` are the objects it needs.

    Whatever the format, a manifest has the names of its objects, which are their digests, as strings of its JSON.
    """

    def __init__(self, format_number: int, names: set[str]) -> None:
        super().__init__(f"format {format_number}, this program reads {FORMAT}")
        self.format = format_number
        self.names = names


def encode_manifest(manifest: Manifest, *, format_number: int = FORMAT, key: bytes = b"") -> bytes:
    """JSON, with a checksum over the format and the content, which is made with ``key`` where there is one."""
    body = msgspec.json.encode(manifest)
    return msgspec.json.encode(_Envelope(format_number, _checksum(format_number, body, key), msgspec.Raw(body)))


def decode_manifest(content: bytes, keys: Sequence[bytes] = ()) -> Manifest:
    """Decode a manifest, and check that its numbers make sense before anything is allocated by them.

    Args:
        content: What was read.
        keys: Keys, one of which must have signed it; without any, it must not be signed.

    Raises:
        ManifestDamaged: It is not one, or not one that this program could have written.
        ManifestUnsigned: It is signed by none of the keys.
        ManifestForeign: It is of another format.
    """
    try:
        envelope = _decode_envelope(content)
    except UNREADABLE as error:
        raise ManifestDamaged(f"the manifest is not one: {error}") from error
    body = bytes(envelope.body)
    if not any(_equal(envelope.checksum, _checksum(envelope.format, body, key)) for key in keys or [b""]):
        signed = _SIGNED.fullmatch(envelope.checksum)
        if (signed and signed[1] not in map(_key_id, keys)) or envelope.checksum == _checksum(envelope.format, body):
            raise ManifestUnsigned("it is not signed by a key of FRAUD_PIPELINE_SNAPSHOT_KEYS")
        raise ManifestDamaged("the manifest's checksum does not fit its content")
    if envelope.format != FORMAT:
        raise ManifestForeign(envelope.format, {digest.decode() for digest in _DIGEST.findall(body)})
    try:
        manifest = _decode_manifest(body)
    except UNREADABLE as error:
        raise ManifestDamaged(f"the manifest's content is not one: {error}") from error
    _check(manifest)
    return manifest


def _check(manifest: Manifest) -> None:
    objects = len(manifest.objects)
    for name, file in (manifest.store or {}).items():
        if (file.piece is None) == (file.digest is None):
            raise ManifestDamaged(f"the store's file {name} is not in exactly one object")
        if file.piece is not None and file.piece.size_bytes != file.size_bytes:
            raise ManifestDamaged(f"the store's file {name} has two sizes")
    small = [manifest.values, *(file.piece for file in (manifest.store or {}).values() if file.piece is not None)]
    for piece in small:
        if piece.object >= objects or piece.size_bytes > LARGEST_PIECE_BYTES:
            raise ManifestDamaged(f"a piece has {piece.size_bytes} bytes of object {piece.object} of {objects}")
    for name, column in manifest.columns.items():
        item_bytes = _item_bytes(name, column.dtype)
        if len(column.pages) != -(-column.items // PAGE_ITEMS):
            raise ManifestDamaged(f"column {name} has {column.items} items on {len(column.pages)} pages")
        for number, piece in enumerate(column.pages):
            items = min(PAGE_ITEMS, column.items - number * PAGE_ITEMS)
            if piece.object >= objects or piece.size_bytes != items * item_bytes:
                raise ManifestDamaged(
                    f"page {number} of column {name} has {piece.size_bytes} bytes of object {piece.object} of "
                    f"{objects}, not {items * item_bytes}"
                )


def _item_bytes(column: str, name: str) -> int:
    try:
        dtype = np.dtype(name)
    except (TypeError, ValueError) as error:
        raise ManifestDamaged(f"column {column} is of no type that there is: {name}") from error
    if dtype.kind not in "biuf":
        raise ManifestDamaged(f"column {column} is of type {name}, which is no number")
    return dtype.itemsize


def directory_of(key: SnapshotKey) -> str:
    """Return the directory of a partition's snapshots."""
    return f"{key.agent}/{key.partition}"


def manifest_names(listing: Iterable[str]) -> list[str]:
    """Those of a directory's names that are snapshots, the newest first."""
    return sorted((n for n in listing if n.endswith(MANIFEST_SUFFIX) and _NUMBER.match(n)), reverse=True)


def number_of(name: str) -> int:
    """A snapshot's number, which grows from one to the next."""
    return int(name.rsplit("/", 1)[-1][:_NUMBER_DIGITS])


def _checksum(format_number: int, body: bytes, key: bytes = b"") -> str:
    content = b"%d:" % format_number + body
    if not key:
        return hashlib.sha256(content).hexdigest()
    return f"{_key_id(key)}:{hmac.new(key, content, hashlib.sha256).hexdigest()}"


def _key_id(key: bytes) -> str:
    """Return by what a manifest names its key: one of another key is not taken for a damaged one."""
    return hmac.new(key, b"id", hashlib.sha256).hexdigest()[:16]


def _equal(first: str, second: str) -> bool:
    return hmac.compare_digest(first.encode(), second.encode())
