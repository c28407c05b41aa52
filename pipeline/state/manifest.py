"""A snapshot's table of contents: whose state it is, up to where, and which pieces of which objects it is made of."""

import hashlib
import re
from collections.abc import Iterable
from datetime import datetime
from typing import Final, NamedTuple

import msgspec

FORMAT: Final = 1
"""Raised when an older program could not read what a newer one writes."""
MANIFEST_SUFFIX: Final = ".json"

_NUMBER_DIGITS: Final = 12
_DIGEST: Final = re.compile(rb'"([0-9a-f]{64})"')


class SnapshotKey(NamedTuple):
    """Whose state it is: a snapshot under any other key is of no use to it."""

    agent: str
    partition: int
    cluster_id: str
    topic_ids: dict[str, str]
    """Kafka's own identifier of each input topic, by name: a topic made anew has another one."""
    partition_count: int
    kernel: str


class Piece(msgspec.Struct, frozen=True, array_like=True):
    """A stretch of an object: its number in the manifest's ``objects``, where it begins, its stored and plain size."""

    object: int
    offset_bytes: int
    stored_bytes: int
    size_bytes: int


class SavedPages(msgspec.Struct, frozen=True):
    """A column: page k is ``pages[k]``."""

    dtype: str
    items: int
    pages: list[Piece]


class StoreFile(msgspec.Struct, frozen=True):
    """A file of the store: a piece like a page, or an object of its own where ``digest`` is set."""

    size_bytes: int
    piece: Piece | None = None
    digest: str | None = None


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What is in a snapshot."""

    agent: str
    partition: int
    cluster_id: str
    topic_ids: dict[str, str]
    partition_count: int
    kernel: str
    positions: dict[str, int]
    progress: int
    created_at: datetime
    objects: list[str]
    """SHA-256 of each object that pieces lie in; it is also the object's name."""
    values: Piece
    columns: dict[str, SavedPages]
    store: dict[str, StoreFile] | None = None

    @property
    def key(self) -> SnapshotKey:
        """Whose state it is."""
        return SnapshotKey(
            self.agent, self.partition, self.cluster_id, self.topic_ids, self.partition_count, self.kernel
        )

    def names(self) -> set[str]:
        """Every object that the snapshot needs."""
        files = (self.store or {}).values()
        return {*self.objects, *(file.digest for file in files if file.digest is not None)}


class _Envelope(msgspec.Struct, frozen=True):
    format: int
    checksum: str
    body: msgspec.Raw


_decode_envelope = msgspec.json.Decoder(_Envelope).decode
_decode_manifest = msgspec.json.Decoder(Manifest).decode


class ManifestDamaged(ValueError):
    """The bytes are not those that were written."""


class ManifestForeign(ValueError):
    """The bytes are whole and of another format, whose number is ``format``; ``names`` are the objects it needs.

    Whatever the format, a manifest has the names of its objects, which are their digests, as strings of its JSON.
    """

    def __init__(self, format_number: int, names: set[str]) -> None:
        super().__init__(f"format {format_number}, this program reads {FORMAT}")
        self.format = format_number
        self.names = names


def encode_manifest(manifest: Manifest, *, format_number: int = FORMAT) -> bytes:
    """JSON, with a checksum over the format and the content."""
    body = msgspec.json.encode(manifest)
    return msgspec.json.encode(_Envelope(format_number, _checksum(format_number, body), msgspec.Raw(body)))


def decode_manifest(content: bytes) -> Manifest:
    """The manifest; raises ManifestDamaged or ManifestForeign."""
    try:
        envelope = _decode_envelope(content)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ManifestDamaged(f"the manifest is not one: {error}") from error
    body = bytes(envelope.body)
    if envelope.checksum != _checksum(envelope.format, body):
        raise ManifestDamaged("the manifest's checksum does not fit its content")
    if envelope.format != FORMAT:
        raise ManifestForeign(envelope.format, {digest.decode() for digest in _DIGEST.findall(body)})
    try:
        return _decode_manifest(body)
    except msgspec.MsgspecError as error:
        raise ManifestDamaged(f"the manifest's content is not one: {error}") from error


def directory_of(key: SnapshotKey) -> str:
    """Where the snapshots of a partition lie."""
    return f"{key.agent}/{key.partition}"


def manifest_names(listing: Iterable[str]) -> list[str]:
    """Those of a directory's names that are snapshots, the newest first."""
    return sorted((n for n in listing if n.endswith(MANIFEST_SUFFIX) and n[:_NUMBER_DIGITS].isdigit()), reverse=True)


def number_of(name: str) -> int:
    """A snapshot's number, which grows from one to the next."""
    return int(name.rsplit("/", 1)[-1][:_NUMBER_DIGITS])


def _checksum(format_number: int, body: bytes) -> str:
    return hashlib.sha256(b"%d:" % format_number + body).hexdigest()
