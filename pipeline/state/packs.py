"""Pieces of state, compressed and put together into objects of a few megabytes, so that a snapshot writes few."""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.engine.partition_state.state import StoreError
from pipeline.features.state_columns import PAGE_ITEMS
from pipeline.state.manifest import ObjectRange
from pipeline.state.objects import ObjectInfo, ObjectStore

PACK_BYTES: Final = 8 << 20
"""An object is closed once it has as much."""

_CODEC: Final = pa.Codec("zstd", compression_level=1)


class Packer:
    """Puts pieces into new objects of a store below ``directory``, and carries over those of an earlier snapshot.

    ``held`` are the objects that are there already. Failures of the store are OSError.
    """

    def __init__(self, object_store: ObjectStore, directory: str, held: Mapping[str, ObjectInfo]) -> None:
        self.objects: list[str] = []
        self.written: list[str] = []
        self.written_bytes = 0
        self._object_store = object_store
        self._directory = directory
        self._held = held
        self._carried: dict[str, int] = {}
        self._pack = bytearray()
        self._pack_number = -1

    def add(self, content: bytes) -> ObjectRange:
        """Compress and put."""
        compressed: bytes = _CODEC.compress(content, asbytes=True)
        return self._append(compressed, len(content))

    def carry(self, pieces: Mapping[Any, ObjectRange], objects: list[str]) -> dict[Any, ObjectRange]:
        """Pieces of an earlier snapshot, whose ``objects`` are given, as pieces of this one.

        Objects of which less than half is still used are written anew, so that what is stored stays below twice what
        is needed. Raises FileNotFoundError where an object is gone, OSError where it was changed.
        """
        used: dict[int, int] = {}
        for piece in pieces.values():
            used[piece.object] = used.get(piece.object, 0) + piece.stored_bytes
        opened: dict[int, bytes] = {}
        for number, used_bytes in used.items():
            found = self._held.get(objects[number])
            if found is None:
                raise FileNotFoundError(f"the object {objects[number]} of the snapshot before is gone")
            if used_bytes * 2 < found.size_bytes:
                opened[number] = self._read(objects[number])
        carried: dict[Any, ObjectRange] = {}
        for name, piece in pieces.items():
            content = opened.get(piece.object)
            if content is None:
                carried[name] = msgspec.structs.replace(piece, object=self._number_of(objects[piece.object]))
            else:
                stored = content[piece.offset_bytes : piece.offset_bytes + piece.stored_bytes]
                carried[name] = self._append(stored, piece.size_bytes)
        return carried

    def upload(self, source: Path) -> str:
        """Put a file as an object of its own, and return its digest."""
        digest = digest_of(source)
        self._object_store.upload(f"{self._directory}/{digest}", source)
        self._count(digest, source.stat().st_size)
        return digest

    def close(self) -> None:
        """Write what is still open."""
        if not self._pack:
            return
        content = bytes(self._pack)
        digest = hashlib.sha256(content).hexdigest()
        self._object_store.write(f"{self._directory}/{digest}", content)
        self.objects[self._pack_number] = digest
        self._count(digest, len(content))
        self._pack.clear()

    def _append(self, stored: bytes, size_bytes: int) -> ObjectRange:
        if not self._pack:
            self._pack_number = len(self.objects)
            self.objects.append("")
        piece = ObjectRange(self._pack_number, len(self._pack), len(stored), size_bytes)
        self._pack += stored
        if len(self._pack) >= PACK_BYTES:
            self.close()
        return piece

    def _number_of(self, digest: str) -> int:
        number = self._carried.get(digest)
        if number is None:
            number = self._carried[digest] = len(self.objects)
            self.objects.append(digest)
        return number

    def _read(self, digest: str) -> bytes:
        content = self._object_store.read(f"{self._directory}/{digest}")
        if hashlib.sha256(content).hexdigest() != digest:
            raise OSError(f"the object {digest} of the snapshot before was changed or damaged")
        return content

    def _count(self, digest: str, size_bytes: int) -> None:
        self.written.append(digest)
        self.written_bytes += size_bytes


class PieceDamaged(StoreError):
    """A piece is not where its manifest says; its snapshot cannot have been written by this program."""


def lies_within(piece: ObjectRange, file: Path) -> bool:
    """Return whether a piece's stored bytes are all in a local copy of its object."""
    return piece.offset_bytes + piece.stored_bytes <= file.stat().st_size


def unpack(files: list[Path], piece: ObjectRange) -> bytes:
    """A piece, from local copies of its snapshot's objects."""
    with files[piece.object].open("rb") as file:
        return _unpacked(file.fileno(), piece)


def digest_of(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class FileIdentity(NamedTuple):
    """The identity of a file, which stays when it is moved or linked, and which no file of other content has."""

    name: str
    size_bytes: int
    device: int
    inode: int
    modified_ns: int


def identity_of(path: Path) -> FileIdentity:
    """Return the identity of the file at ``path``."""
    status = path.stat()
    return FileIdentity(path.name, status.st_size, status.st_dev, status.st_ino, status.st_mtime_ns)


@dataclass
class PackedColumn:
    """A column in local copies of a snapshot's objects."""

    dtype: str
    items: int
    pages: list[ObjectRange]
    files: list[Path]

    def read_into(self, array: NDArray[Any]) -> None:
        """Fill the first ``items`` items of ``array``; one page at a time is in memory."""
        handles: dict[int, int] = {}
        try:
            for number, piece in enumerate(self.pages):
                if piece.object not in handles:
                    handles[piece.object] = os.open(self.files[piece.object], os.O_RDONLY)
                values = np.frombuffer(_unpacked(handles[piece.object], piece), np.dtype(self.dtype))
                start = number * PAGE_ITEMS
                stop = min(start + len(values), self.items)
                array[start:stop] = values[: stop - start]
        finally:
            for handle in handles.values():
                os.close(handle)


def _unpacked(handle: int, piece: ObjectRange) -> bytes:
    stored = os.pread(handle, piece.stored_bytes, piece.offset_bytes)
    try:
        content: bytes = _CODEC.decompress(stored, piece.size_bytes, asbytes=True)
    except OSError as error:
        raise PieceDamaged(
            f"a piece of a snapshot cannot be decompressed ({error}): delete the snapshot, or copy it again"
        ) from error
    if len(content) != piece.size_bytes:
        raise PieceDamaged(
            f"a piece of a snapshot has {len(content)} bytes, not {piece.size_bytes}: delete the snapshot, or copy it "
            "again"
        )
    return content
