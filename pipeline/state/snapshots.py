"""Snapshots of partitions' state: written in the background after a commit, so that a worker folds less when it starts.

    <root>/<agent>/<partition>/objects/<sha-256>              what states are made of
    <root>/<agent>/<partition>/<number>-<random>.json         a snapshot: which objects, whose state, up to where

An object never changes, and a snapshot's own file is written last, so that what is there is always whole.
"""

import logging
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Final, NamedTuple

from pipeline.engine.state import LoadedState
from pipeline.state.manifest import (
    FORMAT,
    Manifest,
    ManifestDamaged,
    ManifestForeign,
    SnapshotKey,
    decode_manifest,
    directory_of,
    manifest_names,
    number_of,
)
from pipeline.state.objects import open_place
from pipeline.state.packs import FileIdentity, PackedColumn, digest_of, identity_of, unpack
from pipeline.state.writer import SnapshotWriter

log = logging.getLogger(__name__)

KEPT: Final = 2
GRACE_S: Final = 600.0
"""An object that no snapshot names stays as long: another writer may be about to name it."""


class Reason(StrEnum):
    """Why a snapshot was not used."""

    DAMAGED = "damaged"
    MISSING = "missing"
    UNREADABLE = "unreadable"
    NEWER_FORMAT = "newer-format"
    OLDER_FORMAT = "older-format"
    OTHER_PARTITION = "other-partition"
    OTHER_CLUSTER = "other-cluster"
    OTHER_TOPICS = "other-topics"
    OTHER_PARTITION_COUNT = "other-partition-count"
    OTHER_KERNEL = "other-kernel"
    AHEAD = "ahead"


class Refused(NamedTuple):
    """A snapshot that was not used, and why."""

    name: str
    reason: Reason
    text: str


def tell_refused(refused: Refused) -> None:
    """Log it."""
    log.warning("snapshot %s is not used (%s): %s", refused.name, refused.reason, refused.text)


@dataclass(frozen=True)
class Snapshot:
    """A snapshot, fetched and found whole; ``close`` it once the state is loaded."""

    name: str
    number: int
    positions: dict[str, int]
    """Next offset of each input topic."""
    progress: int
    """Next offset of the partition's progress records."""
    created_at: datetime
    state: LoadedState
    store: Path | None
    """A directory with the store's files, for ``RocksStore.restored``."""
    manifest: Manifest
    tables: dict[FileIdentity, str]
    """Digests of the store's larger files."""
    scratch: Path

    def close(self) -> None:
        """Remove the local copies."""
        _clear(self.scratch)


class SnapshotRepository:
    """Snapshots below ``url``: a directory, or any address that fsspec knows.

    ``kept`` snapshots of a partition stay. ``on_refused`` is called with each that is found and not used. Raises
    ValueError or ImportError where the address's file system is not known or not installed.
    """

    def __init__(
        self,
        url: str,
        *,
        kept: int = KEPT,
        grace_s: float = GRACE_S,
        on_refused: Callable[[Refused], None] = tell_refused,
    ) -> None:
        if kept < 1:
            raise ValueError(f"at least one snapshot must be kept, not {kept}")
        self.url = url
        self._place = open_place(url)
        self._kept = kept
        self._grace_s = grace_s
        self._on_refused = on_refused
        self._damaged: set[str] = set()

    def newest(self, key: SnapshotKey, committed: Mapping[str, int], scratch: Path) -> Snapshot | None:
        """The newest whole snapshot of ``key`` whose positions are all at or before ``committed`` (next offsets).

        It is fetched into ``scratch``, which is emptied first. Each newer one that cannot be used is told of; None
        where there is none that can. Does not fail for what it finds or does not find at the address.
        """
        directory = directory_of(key)
        try:
            names = manifest_names(self._place.listing(directory))
        except OSError as error:
            self._on_refused(Refused(f"{self.url}/{directory}", Reason.UNREADABLE, str(error)))
            return None
        for name in names:
            _clear(scratch)
            found = self._fetch(f"{directory}/{name}", key, committed, scratch)
            if isinstance(found, Snapshot):
                return found
            if found.reason in (Reason.DAMAGED, Reason.MISSING):
                self._damaged.add(found.name)
            self._on_refused(found)
        _clear(scratch)
        return None

    def writer(self, key: SnapshotKey, base: Snapshot | None) -> SnapshotWriter:
        """The writer of a partition's snapshots from its assignment to its end; ``base`` is what it began from."""
        return SnapshotWriter(
            self._place,
            self.url,
            key,
            None if base is None else base.manifest,
            {} if base is None else base.tables,
            kept=self._kept,
            grace_s=self._grace_s,
            damaged=self._damaged,
        )

    def _fetch(self, name: str, key: SnapshotKey, committed: Mapping[str, int], scratch: Path) -> Snapshot | Refused:
        try:
            manifest = decode_manifest(self._place.read(name))
            refusal = _unfit(manifest, key, committed)
            if refusal is not None:
                return Refused(name, *refusal)
            return self._fetch_objects(name, key, manifest, scratch)
        except ManifestDamaged as error:
            return Refused(name, Reason.DAMAGED, str(error))
        except ManifestForeign as error:
            newer = error.format > FORMAT
            return Refused(name, Reason.NEWER_FORMAT if newer else Reason.OLDER_FORMAT, str(error))
        except FileNotFoundError as error:
            return Refused(name, Reason.MISSING, str(error))
        except OSError as error:
            return Refused(name, Reason.UNREADABLE, str(error))

    def _fetch_objects(self, name: str, key: SnapshotKey, manifest: Manifest, scratch: Path) -> Snapshot | Refused:
        directory = f"{directory_of(key)}/objects"
        packs, store = scratch / "objects", scratch / "store"
        if any(Path(part).name != part for part in [*manifest.names(), *(manifest.store or {})]):
            return Refused(name, Reason.DAMAGED, "it names files outside of its directory")
        packs.mkdir(parents=True)
        targets = {packs / digest: digest for digest in manifest.objects}
        for file_name, file in (manifest.store or {}).items():
            store.mkdir(exist_ok=True)
            if file.digest is not None:
                targets[store / file_name] = file.digest
        for target, digest in targets.items():
            self._place.fetch(f"{directory}/{digest}", target)
            if digest_of(target) != digest:
                return Refused(name, Reason.DAMAGED, f"the object {digest} is not what was written")
        files = [packs / digest for digest in manifest.objects]
        for file_name, file in (manifest.store or {}).items():
            if file.piece is not None:
                (store / file_name).write_bytes(unpack(files, file.piece))
        columns = {
            column: PackedColumn(saved.dtype, saved.items, saved.pages, files)
            for column, saved in manifest.columns.items()
        }
        return Snapshot(
            name=name,
            number=number_of(name),
            positions=manifest.positions,
            progress=manifest.progress,
            created_at=manifest.created_at,
            state=LoadedState(unpack(files, manifest.values), columns),
            store=None if manifest.store is None else store,
            manifest=manifest,
            tables={identity_of(target): digest for target, digest in targets.items() if target.parent == store},
            scratch=scratch,
        )


def _clear(scratch: Path) -> None:
    if scratch.exists():
        shutil.rmtree(scratch)


def _unfit(manifest: Manifest, key: SnapshotKey, committed: Mapping[str, int]) -> tuple[Reason, str] | None:
    theirs = manifest.key
    for reason, name in (
        (Reason.OTHER_PARTITION, "agent"),
        (Reason.OTHER_PARTITION, "partition"),
        (Reason.OTHER_CLUSTER, "cluster_id"),
        (Reason.OTHER_TOPICS, "topic_ids"),
        (Reason.OTHER_PARTITION_COUNT, "partition_count"),
        (Reason.OTHER_KERNEL, "kernel"),
    ):
        if getattr(theirs, name) != getattr(key, name):
            return reason, f"its {name} is {getattr(theirs, name)}, not {getattr(key, name)}"
    for topic, position in manifest.positions.items():
        if position > committed.get(topic, -1):
            return Reason.AHEAD, f"it stands at {position} of {topic}, which is committed up to {committed.get(topic)}"
    return None
