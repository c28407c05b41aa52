"""Writes snapshots: what changed since the one before, and then the new one's own file."""

import logging
import secrets
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, NamedTuple

from pipeline.engine.partition_state.state import StateDump
from pipeline.features.state_columns import PAGE_ITEMS
from pipeline.state.errors import SnapshotError
from pipeline.state.manifest import (
    MANIFEST_SUFFIX,
    Manifest,
    ManifestDamaged,
    ManifestForeign,
    ManifestUnsigned,
    ObjectRange,
    SavedPages,
    SnapshotKey,
    StoreFile,
    decode_manifest,
    directory_of,
    encode_manifest,
    manifest_names,
    number_of,
)
from pipeline.state.objects import ObjectInfo, ObjectStore
from pipeline.state.packs import FileIdentity, Packer, identity_of
from pipeline.state.sealed_segments import INDEX_SUFFIX, SEGMENT_SUFFIX

log = logging.getLogger(__name__)

FOREIGN_S: Final = 7 * 24 * 3_600.0
"""Snapshots of other formats stay as long, for the case that the version which wrote them comes back."""

_UNCHANGING: Final = frozenset({".sst", SEGMENT_SUFFIX, INDEX_SUFFIX})
"""Files that never change: tables of RocksDB, and sealed segments."""


class Written(NamedTuple):
    """The figures of a written snapshot."""

    name: str
    objects: int
    """Objects written, the snapshot's own file among them."""
    size_bytes: int
    """Bytes written."""


@dataclass
class SnapshotWriter:
    """Writes one partition's snapshots, one at a time, each on top of the one before; from any one thread."""

    object_store: ObjectStore
    url: str
    """The address, as errors may show it."""
    key: SnapshotKey
    base: Manifest | None
    tables: Mapping[FileIdentity, str]
    """Digests of the store's larger files."""
    kept: int
    grace_s: float
    damaged: Collection[str]
    keys: Sequence[bytes] = ()

    @property
    def directory(self) -> str:
        """Directory of the partition's snapshots."""
        return directory_of(self.key)

    @property
    def needs_full(self) -> bool:
        """True if the next dump must be a full one, since there is nothing that it could be built on."""
        return self.base is None

    def write(self, positions: Mapping[str, int], progress: int, dump: StateDump) -> Written:
        """Write a snapshot; then remove old ones.

        Args:
            positions: Next offset of each topic, by name without prefix.
            progress: Next offset of ``progress`` in the partition; 0 where the agent reads one topic.
            dump: The state at these positions; a full one if ``needs_full``.

        Raises:
            SnapshotError: It could not be written. Nothing of it is to be seen then, the snapshots before stay, and the
                next dump must be a full one.
        """
        base, self.base = self.base, None
        try:
            objects = self.object_store.listing(f"{self.directory}/objects")
            packer = Packer(self.object_store, f"{self.directory}/objects", objects)
            try:
                manifest = self._manifest(packer, base, objects, positions, progress, dump)
                name, size_bytes = self._publish(manifest)
            except BaseException:
                self._withdraw(packer, objects)
                raise
        except OSError as error:
            raise SnapshotError(
                f"no snapshot of {self.directory} could be written to {self.url} ({error}): see to the "
                "room and the rights there; the snapshots before are as they were, and the next one is a full one"
            ) from error
        self.base = manifest
        try:
            self._prune()
        except OSError as error:
            log.warning("old snapshots of %s could not be removed: %s", self.directory, error)
        return Written(name, len(packer.written) + 1, packer.written_bytes + size_bytes)

    def _manifest(
        self,
        packer: Packer,
        base: Manifest | None,
        objects: Mapping[str, ObjectInfo],
        positions: Mapping[str, int],
        progress: int,
        dump: StateDump,
    ) -> Manifest:
        kept: dict[tuple[str, int], ObjectRange] = {}
        for column, pages in dump.columns.items():
            saved = None if base is None else base.columns.get(column)
            for number in range(_page_count(pages.items)):
                if number in pages.changed:
                    continue
                if saved is None or saved.dtype != pages.dtype or number >= len(saved.pages):
                    raise SnapshotError(
                        f"page {number} of column {column} of {self.directory} is neither in the dump nor in the "
                        "snapshot before: the next dump must be a full one"
                    )
                kept[column, number] = saved.pages[number]
        pieces = packer.carry(kept, [] if base is None else base.objects)
        for column, pages in dump.columns.items():
            for number in range(_page_count(pages.items)):
                if number in pages.changed:
                    pieces[column, number] = packer.add(pages.changed[number])
        values = packer.add(dump.values)
        store = None if dump.store is None else self._store_files(packer, objects, Path(dump.store))
        packer.close()
        return Manifest(
            **self.key._asdict(),
            positions=dict(positions),
            progress=progress,
            created_at=datetime.now(UTC),
            objects=packer.objects,
            values=values,
            columns={
                column: SavedPages(
                    pages.dtype,
                    pages.items,
                    [pieces[column, number] for number in range(_page_count(pages.items))],
                )
                for column, pages in dump.columns.items()
            },
            store=store,
        )

    def _store_files(self, packer: Packer, objects: Mapping[str, ObjectInfo], directory: Path) -> dict[str, StoreFile]:
        files: dict[str, StoreFile] = {}
        tables: dict[FileIdentity, str] = {}
        for path in sorted(directory.iterdir()):
            identity = identity_of(path)
            if path.suffix not in _UNCHANGING:
                files[path.name] = StoreFile(identity.size_bytes, piece=packer.add(path.read_bytes()))
                continue
            # One that was saved before needs no reading.
            digest = self.tables.get(identity)
            if digest is None or digest not in objects:
                digest = packer.upload(path)
            tables[identity] = digest
            files[path.name] = StoreFile(identity.size_bytes, digest=digest)
        self.tables = tables
        return files

    def _publish(self, manifest: Manifest) -> tuple[str, int]:
        present = self.object_store.listing(f"{self.directory}/objects")
        gone = manifest.names() - present.keys()
        if gone:
            raise FileNotFoundError(f"another program removed {len(gone)} objects meanwhile, {min(gone)} among them")
        numbers = [number_of(name) for name in manifest_names(self.object_store.listing(self.directory))]
        # The random part keeps two writers of one partition from overwriting each other's.
        name = f"{self.directory}/{max(numbers, default=0) + 1:012d}-{secrets.token_hex(4)}{MANIFEST_SUFFIX}"
        content = encode_manifest(manifest, key=self.keys[0] if self.keys else b"")
        self.object_store.write(name, content)
        return name, len(content)

    def _withdraw(self, packer: Packer, before: Mapping[str, ObjectInfo]) -> None:
        for digest in packer.written:
            if digest not in before:
                try:
                    self.object_store.delete(f"{self.directory}/objects/{digest}")
                except OSError as error:
                    log.warning("what a failed snapshot of %s left could not be removed: %s", self.directory, error)
                    return

    def _prune(self) -> None:
        """Delete old snapshots; the newest ``kept`` stay, other formats' for ``FOREIGN_S``, with what they need."""
        # Listed before the snapshots are read: what is named later than this is too young to go.
        objects = self.object_store.listing(f"{self.directory}/objects")
        whole = foreign = 0
        needed: set[str] = set()
        listing = self.object_store.listing(self.directory)
        for last in manifest_names(listing):
            name = f"{self.directory}/{last}"
            try:
                manifest = decode_manifest(self.object_store.read(name), self.keys)
            except FileNotFoundError:
                continue
            except (ManifestDamaged, ManifestUnsigned):
                if whole == self.kept:
                    self.object_store.delete(name)
                continue
            except ManifestForeign as error:
                if foreign == self.kept or listing[last].age_s > FOREIGN_S:
                    self.object_store.delete(name)
                    continue
                needed |= error.names
                foreign += 1
                continue
            if whole == self.kept:
                self.object_store.delete(name)
                continue
            needed |= manifest.names()
            whole += manifest.key == self.key and name not in self.damaged
        for digest, found in objects.items():
            if digest not in needed and found.age_s > self.grace_s:
                self.object_store.delete(f"{self.directory}/objects/{digest}")


def _page_count(items: int) -> int:
    return -(-items // PAGE_ITEMS)
