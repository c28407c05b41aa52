"""Snapshots of partitions' state: written in the background after a commit, so that a worker replays less at its start.

    <root>/<agent>/<partition>/objects/<sha-256>              what states are made of
    <root>/<agent>/<partition>/<number>-<random>.json         a snapshot: which objects, whose state, up to where

An object never changes, and a snapshot's own file is written last, so that what is there is always whole.
"""

import errno
import logging
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType
from typing import Final, NamedTuple, TypeVar

from pipeline.engine.partition_state.state import LoadedState
from pipeline.state.errors import SnapshotUnreadable
from pipeline.state.manifest import (
    FORMAT,
    Manifest,
    ManifestDamaged,
    ManifestForeign,
    ManifestUnsigned,
    SnapshotKey,
    decode_manifest,
    directory_of,
    manifest_names,
)
from pipeline.state.objects import open_object_store, shown_url
from pipeline.state.packs import FileIdentity, PackedColumn, PieceDamaged, digest_of, identity_of, lies_within, unpack
from pipeline.state.writer import SnapshotWriter
from schemas.topics import PROGRESS

log = logging.getLogger(__name__)

KEPT: Final = 2
GRACE_S: Final = 600.0
"""An object that no snapshot names stays as long: another writer may be about to name it."""
PAUSES_S: Final = (0.5, 2.0, 5.0)
"""Pauses before an address that could not be read is tried again; networks and object stores have short troubles."""
_PAUSE_STEP_S: Final = 0.1
_NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
_NO_LOGS: Final[Mapping[str, range]] = MappingProxyType({})

T = TypeVar("T")


class UnusableReason(StrEnum):
    """Why a snapshot was not used."""

    DAMAGED = "damaged"
    MISSING = "missing"
    UNREADABLE = "unreadable"
    NO_ROOM = "no-room"
    NEWER_FORMAT = "newer-format"
    OLDER_FORMAT = "older-format"
    OTHER_PARTITION = "other-partition"
    OTHER_CLUSTER = "other-cluster"
    OTHER_TOPICS = "other-topics"
    OTHER_PARTITION_COUNT = "other-partition-count"
    OTHER_KERNEL = "other-kernel"
    UNSIGNED = "unsigned"
    AHEAD = "ahead"
    BEHIND = "behind"


class Refused(NamedTuple):
    """A snapshot that was not used, and why."""

    name: str
    reason: UnusableReason
    text: str


def log_refused(refused: Refused) -> None:
    """Log it."""
    log.warning("snapshot %s is not used (%s): %s", refused.name, refused.reason, refused.text)


@dataclass(frozen=True)
class Snapshot:
    """A snapshot, fetched and found whole; ``close`` it once the state is loaded."""

    manifest: Manifest
    state: LoadedState
    store: Path | None
    """A directory with the store's files, for `pipeline.state.store.RocksStore`."""
    tables: dict[FileIdentity, str]
    """Digests of the store's larger files."""
    scratch: Path

    def close(self) -> None:
        """Remove the local copies."""
        _clear(self.scratch)


class SnapshotRepository:
    """Snapshots of partitions' state below one address.

    Args:
        url: A directory, or any address that fsspec knows.
        kept: Number of snapshots of a partition that stay, 1 or more.
        grace_s: Seconds for which an object that no snapshot names stays: another writer may be about to name it.
        irreplaceable: Topics do not keep all that a state is made of, so that a snapshot which cannot be read must not
            be passed over.
        pauses_s: Seconds before each further try to read, as many as there are further tries.
        keys: Keys that sign snapshots: the first one signs new ones, and those that none of them signed are not used.
            Empty: snapshots are not signed.
        on_refused: Called with each snapshot that is found and not used.

    Raises:
        UnusableAddress: The address's file system is not known or not installed.
        ValueError: ``kept`` is less than 1.
    """

    def __init__(
        self,
        url: str,
        *,
        kept: int = KEPT,
        grace_s: float = GRACE_S,
        irreplaceable: bool = False,
        pauses_s: Sequence[float] = PAUSES_S,
        keys: Sequence[bytes] = (),
        on_refused: Callable[[Refused], None] = log_refused,
    ) -> None:
        if kept < 1:
            raise ValueError(f"at least one snapshot must be kept, not {kept}")
        self.url = shown_url(url)
        """The address, as logs may show it."""
        self._object_store = open_object_store(url)
        self._kept = kept
        self._grace_s = grace_s
        self._irreplaceable = irreplaceable
        self._pauses_s = pauses_s
        self._keys = keys
        self._on_refused = on_refused
        self._damaged: set[str] = set()

    def newest(
        self,
        key: SnapshotKey,
        committed: Mapping[str, int],
        scratch: Path,
        logs: Mapping[str, range] = _NO_LOGS,
        waiting: Callable[[], None] = lambda: None,
    ) -> Snapshot | None:
        """Newest whole snapshot from which a replay reaches the committed offsets, and not beyond.

        Each newer one that cannot be used is reported. An address that cannot be read is tried again a few times.

        Args:
            key: Whose state it is.
            committed: Next offset of each topic, by name without prefix.
            scratch: Directory that the snapshot is fetched into; it is emptied first.
            logs: Offsets that the topics hold now, by name without prefix; those of a topic that is absent are not
                checked.
            waiting: Called between tries; may raise.

        Returns:
            The snapshot; None where there is none that can be used.

        Raises:
            SnapshotUnreadable: Snapshots are irreplaceable, one cannot be read or is not signed, and the logs have lost
                their beginnings.
        """
        directory = directory_of(key)
        try:
            names = manifest_names(self._retried(directory, lambda: self._object_store.listing(directory), waiting))
        except OSError as error:
            refused = Refused(f"{self.url}/{directory}", UnusableReason.UNREADABLE, str(error))
            self._on_refused(refused)
            self._raise_if_irreplaceable([refused], committed, logs)
            return None
        passed_over: list[Refused] = []
        for name in names:
            found = self._fetch(f"{directory}/{name}", key, committed, logs, scratch, waiting)
            if isinstance(found, Snapshot):
                return found
            if found.reason in (UnusableReason.DAMAGED, UnusableReason.MISSING):
                self._damaged.add(found.name)
            self._on_refused(found)
            passed_over.append(found)
        _clear(scratch)
        self._raise_if_irreplaceable(passed_over, committed, logs)
        return None

    def writer(self, key: SnapshotKey, base: Snapshot | None) -> SnapshotWriter:
        """The writer of a partition's snapshots from its assignment to its end; ``base`` is what it began from."""
        return SnapshotWriter(
            self._object_store,
            self.url,
            key,
            None if base is None else base.manifest,
            {} if base is None else base.tables,
            kept=self._kept,
            grace_s=self._grace_s,
            damaged=self._damaged,
            keys=self._keys,
        )

    def _fetch(
        self,
        name: str,
        key: SnapshotKey,
        committed: Mapping[str, int],
        logs: Mapping[str, range],
        scratch: Path,
        waiting: Callable[[], None],
    ) -> Snapshot | Refused:
        def attempt() -> Snapshot | Refused:
            _clear(scratch)
            manifest = decode_manifest(self._object_store.read(name), self._keys)
            refusal = _unfit(manifest, key, committed, logs)
            if refusal is not None:
                return Refused(name, *refusal)
            return self._fetch_objects(name, key, manifest, scratch)

        try:
            return self._retried(name, attempt, waiting)
        except (ManifestDamaged, PieceDamaged) as error:
            return Refused(name, UnusableReason.DAMAGED, str(error))
        except ManifestUnsigned as error:
            return Refused(name, UnusableReason.UNSIGNED, str(error))
        except ManifestForeign as error:
            newer = error.format > FORMAT
            return Refused(name, UnusableReason.NEWER_FORMAT if newer else UnusableReason.OLDER_FORMAT, str(error))
        except FileNotFoundError as error:
            return Refused(name, UnusableReason.MISSING, str(error))
        except OSError as error:
            if error.errno in _NO_ROOM:
                return Refused(
                    name, UnusableReason.NO_ROOM, f"{error}; it was to be fetched to {scratch}: free space there"
                )
            return Refused(name, UnusableReason.UNREADABLE, str(error))

    def _retried(self, what: str, read: Callable[[], T], waiting: Callable[[], None]) -> T:
        """Try again after an OSError that may pass; the last one is raised."""
        for pause_s in self._pauses_s:
            try:
                return read()
            except FileNotFoundError:
                raise
            except OSError as error:
                if error.errno in _NO_ROOM:
                    raise
                log.warning("%s/%s cannot be read (%s); trying again in %g s", self.url, what, error, pause_s)
            until_s = time.monotonic() + pause_s
            while (left_s := until_s - time.monotonic()) > 0:
                waiting()
                time.sleep(min(left_s, _PAUSE_STEP_S))
        return read()

    def _raise_if_irreplaceable(
        self, passed_over: Sequence[Refused], committed: Mapping[str, int], logs: Mapping[str, range]
    ) -> None:
        unread = [
            refused
            for refused in passed_over
            if refused.reason in (UnusableReason.UNREADABLE, UnusableReason.NO_ROOM, UnusableReason.UNSIGNED)
        ]
        lost = [
            f"{topic} begins at offset {logs[topic].start}" for topic in committed if logs.get(topic, range(0)).start
        ]
        if self._irreplaceable and unread and lost:
            raise SnapshotUnreadable(
                f"snapshot {unread[0].name} cannot be read ({unread[0].text}), and the state cannot be made without "
                f"it: {', '.join(lost)}. See to the snapshots' address ({self.url}) and start again; or delete the "
                "partition's snapshots there, to begin with what the topics still hold: windows would be incomplete, "
                "and repeats decided again"
            )

    def _fetch_objects(self, name: str, key: SnapshotKey, manifest: Manifest, scratch: Path) -> Snapshot | Refused:
        directory = f"{directory_of(key)}/objects"
        packs, store = scratch / "objects", scratch / "store"
        packs.mkdir(parents=True)
        targets = {packs / digest: digest for digest in manifest.objects}
        for file_name, file in (manifest.store or {}).items():
            store.mkdir(exist_ok=True)
            if file.digest is not None:
                targets[store / file_name] = file.digest
        for target, digest in targets.items():
            self._object_store.fetch(f"{directory}/{digest}", target)
            if digest_of(target) != digest:
                return Refused(name, UnusableReason.DAMAGED, f"the object {digest} is not what was written")
        files = [packs / digest for digest in manifest.objects]
        if not all(lies_within(piece, files[piece.object]) for piece in manifest.pieces()):
            return Refused(name, UnusableReason.DAMAGED, "it names a piece that lies beyond the end of its object")
        for file_name, file in (manifest.store or {}).items():
            if file.piece is not None:
                (store / file_name).write_bytes(unpack(files, file.piece))
        columns = {
            column: PackedColumn(saved.dtype, saved.items, saved.pages, files)
            for column, saved in manifest.columns.items()
        }
        return Snapshot(
            manifest=manifest,
            state=LoadedState(unpack(files, manifest.values), columns),
            store=None if manifest.store is None else store,
            tables={identity_of(target): digest for target, digest in targets.items() if target.parent == store},
            scratch=scratch,
        )


def _clear(scratch: Path) -> None:
    if scratch.exists():
        shutil.rmtree(scratch)


def _unfit(
    manifest: Manifest, key: SnapshotKey, committed: Mapping[str, int], logs: Mapping[str, range]
) -> tuple[UnusableReason, str] | None:
    theirs = manifest.key
    for reason, name in (
        (UnusableReason.OTHER_PARTITION, "agent"),
        (UnusableReason.OTHER_PARTITION, "partition"),
        (UnusableReason.OTHER_CLUSTER, "cluster_id"),
        (UnusableReason.OTHER_TOPICS, "topic_ids"),
        (UnusableReason.OTHER_PARTITION_COUNT, "partition_count"),
        (UnusableReason.OTHER_KERNEL, "kernel"),
    ):
        if getattr(theirs, name) != getattr(key, name):
            return reason, f"its {name} is {getattr(theirs, name)}, not {getattr(key, name)}"
    positions = manifest.positions
    for topic, position in positions.items():
        if position > committed.get(topic, -1):
            return (
                UnusableReason.AHEAD,
                f"it stands at {position} of {topic}, which is committed up to {committed.get(topic)}",
            )
        if topic in logs and position < min(logs[topic].start, committed[topic]):
            return UnusableReason.BEHIND, f"it stands at {position} of {topic}, which begins at {logs[topic].start} now"
    progress_log = logs.get(PROGRESS.name)
    if progress_log is not None and manifest.progress > progress_log.stop:
        return (
            UnusableReason.AHEAD,
            f"it stands at {manifest.progress} of {PROGRESS.name}, which ends at {progress_log.stop}",
        )
    # Without a record to replay, the order of records does not matter.
    replays = any(offset > positions.get(topic, 0) for topic, offset in committed.items())
    if progress_log is not None and replays and manifest.progress < progress_log.start:
        return (
            UnusableReason.BEHIND,
            f"it stands at {manifest.progress} of {PROGRESS.name}, which begins at {progress_log.start} now",
        )
    return None
