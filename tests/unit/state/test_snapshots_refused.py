"""Snapshots that must not be used are not: damaged, missing parts, other formats, other clusters; an older one is."""

import errno
import hashlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import pytest

from pipeline.engine.partition_state.state import StoreError
from pipeline.state import snapshots
from pipeline.state.errors import SnapshotUnreadable
from pipeline.state.manifest import FORMAT, decode_manifest, encode_manifest
from pipeline.state.objects import LocalObjects, ObjectInfo
from pipeline.state.snapshots import Refused, Snapshot, SnapshotRepository, UnusableReason
from pipeline.state.store import MINIMUM_BYTES, RocksStore, StoreMemory
from tests.helpers.snapshots import (
    KEY,
    check_state,
    dump_at,
    positions_at,
    store_items,
    write_store,
)

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """An address with two snapshots with stores, the second built on the first."""
    found = tmp_path / "root"
    store = RocksStore(tmp_path / "store", memory=StoreMemory(MINIMUM_BYTES))
    writer = SnapshotRepository(str(found)).writer(KEY, None)
    for step in (1, 2):
        frozen = write_store(store, step)
        writer.write(positions_at(step), step, dump_at(step, full=step == 1, store=frozen))
        store.release(frozen)
    store.close()
    return found


def manifests(root: Path) -> list[Path]:
    return sorted((root / "card" / "3").glob("*.json"))


def read(root: Path, scratch: Path, **changed: Any) -> tuple[Snapshot | None, list[Refused]]:
    refused: list[Refused] = []
    repository = SnapshotRepository(str(root), on_refused=refused.append)
    committed = changed.pop("committed", {"transactions": 2**62, "labels": 2**62})
    return repository.newest(KEY._replace(**changed), committed, scratch), refused


def needed_by(path: Path) -> list[Path]:
    """The objects of a snapshot: packs first, then tables."""
    manifest = decode_manifest(path.read_bytes())
    tables = [file.digest for file in (manifest.store or {}).values() if file.digest is not None]
    return [path.parent / "objects" / name for name in [*manifest.objects, *tables]]


def flip(path: Path, random: Random) -> None:
    content = bytearray(path.read_bytes())
    content[random.randrange(len(content))] ^= 1 << random.randrange(8)
    path.write_bytes(content)


def truncate(path: Path, random: Random) -> None:
    path.write_bytes(path.read_bytes()[: random.randrange(path.stat().st_size)])


def remove(path: Path, random: Random) -> None:
    path.unlink()


@pytest.mark.parametrize("harm", [flip, truncate, remove])
@pytest.mark.parametrize("kind", ["manifest", "object"])
def test_harm_to_any_file_of_the_newest_falls_back_to_the_one_before(
    harm: Callable[[Path, Random], None], kind: str, root: Path, tmp_path: Path
) -> None:
    older, newer = manifests(root)
    own = [newer] if kind == "manifest" else sorted(set(needed_by(newer)) - set(needed_by(older)))
    assert own
    random = Random(7)
    for attempt in range(12):
        target = own[attempt % len(own)]
        whole = target.read_bytes()
        harm(target, random)
        snapshot, refused = read(root, tmp_path / "scratch")
        if harm is remove and kind == "manifest":
            assert refused == []
        else:
            expected = UnusableReason.MISSING if harm is remove else UnusableReason.DAMAGED
            assert [(entry.name, entry.reason) for entry in refused] == [(f"card/3/{newer.name}", expected)]
        assert snapshot is not None
        check_state(snapshot.state, 1)
        assert snapshot.store is not None
        restored = RocksStore(tmp_path / "restored", frozen=snapshot.store, memory=StoreMemory(MINIMUM_BYTES))
        assert list(restored.scan(b"", b"\xff")) == store_items(1)
        restored.close()
        snapshot.close()
        target.write_bytes(whole)


@pytest.mark.parametrize("harm", [flip, truncate, remove])
def test_harm_to_what_both_need_leaves_neither(
    harm: Callable[[Path, Random], None], root: Path, tmp_path: Path
) -> None:
    older, newer = manifests(root)
    shared = sorted(set(needed_by(newer)) & set(needed_by(older)))
    harm(shared[0], Random(1))
    snapshot, refused = read(root, tmp_path / "scratch")
    assert snapshot is None
    assert len(refused) == 2
    assert not (tmp_path / "scratch").exists()


def test_what_is_written_after_damage_does_not_lean_on_it(tmp_path: Path) -> None:
    root = tmp_path / "root"
    repository = SnapshotRepository(str(root), on_refused=lambda refused: None)
    repository.writer(KEY, None).write(positions_at(1), 1, dump_at(1))
    for path in (root / "card" / "3" / "objects").iterdir():
        flip(path, Random(3))
    committed = positions_at(1)
    assert repository.newest(KEY, committed, tmp_path / "scratch") is None
    # The very same content under the very same names: what is damaged must be written over.
    repository.writer(KEY, None).write(positions_at(1), 1, dump_at(1))
    snapshot = repository.newest(KEY, committed, tmp_path / "scratch")
    assert snapshot is not None
    check_state(snapshot.state, 1)


def test_a_damaged_snapshot_does_not_take_a_whole_ones_place(root: Path, tmp_path: Path) -> None:
    older, newer = manifests(root)
    own = sorted(set(needed_by(newer)) - set(needed_by(older)))
    flip(own[0], Random(5))
    repository = SnapshotRepository(str(root), kept=2, on_refused=lambda refused: None)
    snapshot = repository.newest(KEY, positions_at(2), tmp_path / "scratch")
    assert snapshot is not None
    writer = repository.writer(KEY, snapshot)
    writer.write(positions_at(2), 2, dump_at(2, full=False))
    assert manifests(root)[0] == older
    for step in (3, 4):
        writer.write(positions_at(step), step, dump_at(step, full=False))
    assert len(manifests(root)) == 2


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"cluster_id": "cluster-2"}, UnusableReason.OTHER_CLUSTER),
        ({"topic_ids": {"transactions": "topic-1", "labels": "topic-9"}}, UnusableReason.OTHER_TOPICS),
        ({"topic_ids": {"transactions": "topic-1"}}, UnusableReason.OTHER_TOPICS),
        ({"partition_count": 12}, UnusableReason.OTHER_PARTITION_COUNT),
        ({"kernel": "kernel-3"}, UnusableReason.OTHER_KERNEL),
        ({"committed": {"transactions": 99, "labels": 2**62}}, UnusableReason.AHEAD),
        ({"committed": {"transactions": 2**62}}, UnusableReason.AHEAD),
    ],
)
def test_another_states_snapshot_is_not_used(
    changed: dict[str, Any], reason: UnusableReason, root: Path, tmp_path: Path
) -> None:
    snapshot, refused = read(root, tmp_path / "scratch", **changed)
    assert snapshot is None
    assert [item.reason for item in refused] == [reason, reason]


def reseal(path: Path, changes: dict[str, bytes]) -> None:
    """Change a manifest's JSON at dotted paths, and mend its checksum."""
    content = msgspec.json.decode(path.read_bytes())["body"]
    markers: list[bytes] = []
    for number, dotted in enumerate(changes):
        *parents, last = [int(key) if key.isdigit() else key for key in dotted.split("/")]
        node = content
        for key in parents:
            node = node[key]
        node[last] = f"@@{number}@@"
        markers.append(b'"@@%d@@"' % number)
    body = msgspec.json.encode(content)
    for marker, value in zip(markers, changes.values(), strict=True):
        body = body.replace(marker, value)
    checksum = hashlib.sha256(b"%d:" % FORMAT + body).hexdigest()
    path.write_bytes(b'{"format":%d,"checksum":"%s","body":%s}' % (FORMAT, checksum.encode(), body))


COLUMN = "columns/amounts"


@pytest.mark.parametrize(
    "changes",
    [
        {f"{COLUMN}/items": b"1099511627776"},
        {f"{COLUMN}/items": b"-1"},
        {f"{COLUMN}/items": b"1" * 400},
        {f"{COLUMN}/items": b"8192"},
        {f"{COLUMN}/dtype": b'"O"'},
        {f"{COLUMN}/dtype": b'"object"'},
        {f"{COLUMN}/dtype": b'"V8"'},
        {f"{COLUMN}/dtype": b'"U2000"'},
        {f"{COLUMN}/dtype": b'"nonsense"'},
        {f"{COLUMN}/dtype": b'"f4"'},
        {f"{COLUMN}/dtype": b'"i4,(1000000,1000000)i8"'},
        {f"{COLUMN}/pages/0/0": b"99"},
        {f"{COLUMN}/pages/0/0": b"-1"},
        {f"{COLUMN}/pages/0/1": b"-1"},
        {f"{COLUMN}/pages/0/1": b"1099511627776"},
        {f"{COLUMN}/pages/0/2": b"1099511627776"},
        {f"{COLUMN}/pages/0/2": b"9223372036854775807"},
        {f"{COLUMN}/pages/0/3": b"1099511627776"},
        {f"{COLUMN}/pages/0/3": b"-1"},
        {f"{COLUMN}/pages": b"[]"},
        {f"{COLUMN}/pages": b"[" * 5_000 + b"]" * 5_000},
        {"values/0": b"99"},
        {"values/1": b"3"},
        {"values/3": b"1099511627776"},
        {"values/3": b"1000000000"},
        {"values/3": b"-1"},
        {"values/3": b"1"},
        {"objects/0": b'"../../secret"'},
        {"objects/0": b'"\\u0000"'},
        {"store/CURRENT/digest": b'"' + b"a" * 64 + b'"'},
        {"store/CURRENT/piece": b"null"},
        {"store/CURRENT/piece/0": b"99"},
        {"store/CURRENT/piece/3": b"1099511627776", "store/CURRENT/size_bytes": b"1099511627776"},
        {"store/..": b'{"size_bytes":1,"piece":[0,0,1,1]}'},
        {"store/a\x00b": b'{"size_bytes":1,"piece":[0,0,1,1]}'},
        {"positions/transactions": b"-1"},
        {"progress": b"-1"},
        {"created_at": b'"0001-01-01T00:00:00"'},
        {"topic_ids": b'{"a":"\xff"}'},
    ],
    ids=lambda changes: " ".join(f"{key}={value[:12].decode(errors='replace')}" for key, value in changes.items()),
)
def test_a_manifest_that_is_consistent_and_absurd_is_damaged(
    changes: dict[str, bytes], root: Path, tmp_path: Path
) -> None:
    reseal(manifests(root)[1], changes)
    snapshot, refused = read(root, tmp_path / "scratch")
    assert [item.reason for item in refused] == [UnusableReason.DAMAGED]
    assert snapshot is not None
    check_state(snapshot.state, 1)


def test_a_manifest_whose_numbers_are_changed_to_themselves_is_used(root: Path, tmp_path: Path) -> None:
    reseal(manifests(root)[1], {"columns/amounts/dtype": b'"int64"'})
    snapshot, refused = read(root, tmp_path / "scratch")
    assert refused == []
    assert snapshot is not None
    check_state(snapshot.state, 2)


def test_a_page_that_is_elsewhere_in_its_object_fails_the_load_with_a_sentence(root: Path, tmp_path: Path) -> None:
    reseal(manifests(root)[1], {f"{COLUMN}/pages/0/1": b"1"})
    snapshot, _ = read(root, tmp_path / "scratch")
    assert snapshot is not None
    with pytest.raises(StoreError, match="delete the snapshot"):
        check_state(snapshot.state, 2)


def test_a_snapshot_copied_from_another_partition_is_not_used(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root / "card" / "3", root / "card" / "4")
    snapshot, refused = read(root, tmp_path / "scratch", partition=4)
    assert snapshot is None
    assert [item.reason for item in refused] == [UnusableReason.OTHER_PARTITION] * 2


def test_the_newest_that_is_not_ahead_is_used(root: Path, tmp_path: Path) -> None:
    snapshot, refused = read(root, tmp_path / "scratch", committed=positions_at(1))
    assert snapshot is not None
    check_state(snapshot.state, 1)
    assert [item.reason for item in refused] == [UnusableReason.AHEAD]


@pytest.mark.parametrize(
    ("format_number", "reason"), [(FORMAT + 1, UnusableReason.NEWER_FORMAT), (FORMAT - 1, UnusableReason.OLDER_FORMAT)]
)
def test_another_format_is_reported_and_its_objects_are_let_be(
    format_number: int, reason: UnusableReason, root: Path, tmp_path: Path
) -> None:
    older, newer = manifests(root)
    own = sorted(set(needed_by(newer)) - set(needed_by(older)))
    newer.write_bytes(encode_manifest(decode_manifest(newer.read_bytes()), format_number=format_number))
    snapshot, refused = read(root, tmp_path / "scratch")
    assert snapshot is not None
    check_state(snapshot.state, 1)
    assert [item.reason for item in refused] == [reason]
    hasty = SnapshotRepository(str(root), grace_s=0).writer(KEY, snapshot)
    hasty.write(positions_at(2), 2, dump_at(2, full=False))
    assert newer.exists()
    assert all(path.exists() for path in own)


@pytest.mark.parametrize("format_number", [FORMAT + 1, FORMAT - 1])
def test_snapshots_of_another_format_stay_for_a_week_as_many_as_own_ones(format_number: int, tmp_path: Path) -> None:
    root = tmp_path / "root"
    repository = SnapshotRepository(str(root), kept=2, grace_s=0, on_refused=lambda refused: None)
    writer = repository.writer(KEY, None)
    for step in (1, 2):
        writer.write(positions_at(step), step, dump_at(step))
    foreign = manifests(root)
    other = {path: needed_by(path) for path in foreign}
    for path in foreign:
        path.write_bytes(encode_manifest(decode_manifest(path.read_bytes()), format_number=format_number))
    # The version of this format comes, and stays for many snapshots: those of the other are whole all the while.
    again = repository.writer(KEY, None)
    for step in range(3, 8):
        again.write(positions_at(step), step, dump_at(step, full=step == 3))
    assert manifests(root)[:2] == foreign
    assert len(manifests(root)) == 4
    assert all(need.exists() for needs in other.values() for need in needs)
    # What neither needs goes all the same.
    needed = {need for needs in other.values() for need in needs}
    needed |= {need for path in manifests(root)[2:] for need in needed_by(path)}
    assert set((root / "card" / "3" / "objects").iterdir()) == needed
    # A third one is too many.
    third = foreign[1].with_name(f"000000000003-00000000{foreign[1].suffix}")
    third.write_bytes(foreign[1].read_bytes())
    again.write(positions_at(8), 8, dump_at(8, full=False))
    assert not foreign[0].exists()
    assert foreign[1].exists()
    assert third.exists()
    for path in (foreign[1], third):
        os.utime(path, (0, 0))
    again.write(positions_at(9), 9, dump_at(9, full=False))
    assert len(manifests(root)) == 2
    left = {need for path in manifests(root) for need in needed_by(path)}
    assert set((root / "card" / "3" / "objects").iterdir()) == left


@pytest.mark.parametrize(
    ("logs", "progress_of_older", "reasons"),
    [
        ({"transactions": range(0, 500), "labels": range(0, 50), "progress": range(0, 2)}, 1, []),
        ({"transactions": range(200, 500), "labels": range(20, 50), "progress": range(2, 2)}, 1, []),
        (
            {"transactions": range(201, 500), "labels": range(0, 50)},
            None,
            [UnusableReason.BEHIND, UnusableReason.BEHIND],
        ),
        (
            {"transactions": range(0, 500), "labels": range(21, 50)},
            None,
            [UnusableReason.BEHIND, UnusableReason.BEHIND],
        ),
        ({"progress": range(3, 9)}, None, [UnusableReason.BEHIND, UnusableReason.BEHIND]),
        ({"progress": range(0, 1)}, 1, [UnusableReason.AHEAD]),
        ({"progress": range(0, 0)}, None, [UnusableReason.AHEAD, UnusableReason.AHEAD]),
    ],
)
def test_a_snapshot_from_which_no_replay_leads_to_now_is_not_used(
    logs: dict[str, range], progress_of_older: int | None, reasons: list[UnusableReason], root: Path, tmp_path: Path
) -> None:
    refused: list[Refused] = []
    repository = SnapshotRepository(str(root), on_refused=refused.append)
    committed = {"transactions": 400, "labels": 40}
    snapshot = repository.newest(KEY, committed, tmp_path / "scratch", logs)
    assert [item.reason for item in refused] == reasons
    if reasons:
        assert (None if snapshot is None else snapshot.manifest.progress) == progress_of_older
    else:
        assert snapshot is not None
        assert snapshot.manifest.progress == 2


def test_a_snapshot_behind_which_nothing_is_to_be_replayed_is_used(root: Path, tmp_path: Path) -> None:
    logs = {"transactions": range(300, 300), "labels": range(30, 30), "progress": range(7, 7)}
    snapshot = SnapshotRepository(str(root)).newest(KEY, positions_at(2), tmp_path / "scratch", logs)
    assert snapshot is not None
    assert snapshot.manifest.progress == 2


class TroubledPlace(LocalObjects):
    """A place that fails ``troubles`` times, in listings or in what is fetched from it."""

    def __init__(self, root: Path, call: str, error: OSError, troubles: int) -> None:
        super().__init__(root)
        self.call, self.error, self.troubles = call, error, troubles

    def fail(self, call: str) -> None:
        if call == self.call and self.troubles > 0:
            self.troubles -= 1
            raise self.error

    def listing(self, directory: str) -> dict[str, ObjectInfo]:
        self.fail("listing")
        return super().listing(directory)

    def read(self, name: str) -> bytes:
        self.fail("read")
        return super().read(name)

    def fetch(self, name: str, target: Path) -> None:
        self.fail("fetch")
        super().fetch(name, target)


@pytest.fixture
def troubled(root: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., SnapshotRepository]:
    """A repository at an address with troubles, and two snapshots there."""

    def make(call: str, error: OSError, troubles: int, **options: Any) -> SnapshotRepository:
        monkeypatch.setattr(snapshots, "open_object_store", lambda url: TroubledPlace(Path(url), call, error, troubles))
        return SnapshotRepository(str(root), pauses_s=(0.01, 0.01), **options)

    return make


@pytest.mark.parametrize("call", ["listing", "read", "fetch"])
def test_an_address_in_short_trouble_is_asked_again(
    call: str, troubled: Callable[..., SnapshotRepository], tmp_path: Path
) -> None:
    refused: list[Refused] = []
    waited: list[None] = []
    repository = troubled(call, OSError("503 Slow Down"), 2, on_refused=refused.append)
    committed = positions_at(2)
    snapshot = repository.newest(KEY, committed, tmp_path / "scratch", waiting=lambda: waited.append(None))
    assert snapshot is not None
    check_state(snapshot.state, 2)
    assert refused == []
    assert len(waited) >= 2


@pytest.mark.parametrize(
    ("call", "error", "reason"),
    [
        ("listing", OSError("503 Slow Down"), UnusableReason.UNREADABLE),
        ("read", PermissionError("403 Forbidden"), UnusableReason.UNREADABLE),
        ("fetch", OSError(errno.ENOSPC, "No space left on device"), UnusableReason.NO_ROOM),
    ],
)
def test_what_cannot_be_read_is_passed_over_only_where_the_topics_hold_it_all(
    call: str, error: OSError, reason: UnusableReason, troubled: Callable[..., SnapshotRepository], tmp_path: Path
) -> None:
    committed = positions_at(2)
    whole = {"transactions": range(0, 200), "labels": range(0, 20)}
    short = {"transactions": range(0, 200), "labels": range(3, 20)}
    for irreplaceable, logs in ((False, short), (True, whole)):
        refused: list[Refused] = []
        repository = troubled(call, error, 99, irreplaceable=irreplaceable, on_refused=refused.append)
        assert repository.newest(KEY, committed, tmp_path / "scratch", logs) is None
        assert {item.reason for item in refused} == {reason}
    repository = troubled(call, error, 99, irreplaceable=True)
    with pytest.raises(SnapshotUnreadable, match="labels begins at offset 3"):
        repository.newest(KEY, committed, tmp_path / "scratch", short)


def test_a_wait_for_an_address_ends_with_the_worker(
    troubled: Callable[..., SnapshotRepository], tmp_path: Path
) -> None:
    def ends() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        troubled("listing", OSError("503"), 99).newest(KEY, {}, tmp_path / "scratch", waiting=ends)


def test_a_writer_killed_at_any_moment_leaves_whole_snapshots(tmp_path: Path) -> None:
    random = Random(11)
    reached = 0
    for _ in range(8):
        with subprocess.Popen(
            [sys.executable, "-m", "tests.helpers.snapshots", str(tmp_path), str(reached)],
            stdout=subprocess.PIPE,
            cwd=ROOT,
            text=True,
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline()
            reported = reached
            for _ in range(random.randrange(3)):
                reported = int(process.stdout.readline())
            # Somewhere in the next snapshot, which takes some hundredths of a second.
            try:
                process.wait(random.random() * 0.08)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
            reported = max([reported, *map(int, process.stdout.read().split())])
            assert process.wait() == -signal.SIGKILL
        snapshot, refused = read(tmp_path / "snapshots", tmp_path / "look")
        assert refused == []
        if snapshot is None:
            assert reported == 0
            continue
        # Killed between the snapshot and its word, it has one more.
        assert snapshot.manifest.progress in (reported, reported + 1)
        reached = snapshot.manifest.progress
        check_state(snapshot.state, reached)
        assert snapshot.store is not None
        restored = RocksStore(tmp_path / "restored", frozen=snapshot.store, memory=StoreMemory(MINIMUM_BYTES))
        assert list(restored.scan(b"", b"\xff")) == store_items(reached)
        restored.close()
        snapshot.close()
    assert reached > 2
