"""Load and faults are drawn from the seed alone, and hold every kind that the run is for."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.arithmetic import partition_of
from tests.chaos.load import Load, ledger
from tests.chaos.records import load_entries, load_sent, save
from tests.chaos.run import Expected
from tests.chaos.schedule import (
    ALONE,
    CLUSTER_SHARES,
    KINDS,
    LAST,
    LONG_SHARES,
    cluster_schedule,
    schedule,
    short_schedule,
)
from tests.chaos.snapshots import SnapshotPlace

LOAD = Load(5, 4_000, 6.0, 2, horizon_days=1.5)


def test_a_seed_gives_one_load_and_another_seed_another() -> None:
    assert ledger(LOAD, Expected()) == ledger(LOAD, Expected())
    assert ledger(LOAD, Expected())[:50] != ledger(Load(6, 4_000, 6.0, 2), Expected())[:50]


def test_a_load_holds_everything_that_producers_and_analysts_may_do() -> None:
    sent = ledger(LOAD, Expected())
    kinds = Counter(sent_record.kind for sent_record in sent)
    expected = [
        "plain",
        "late",
        "very_late",
        "shuffled",
        "foreign",
        "keyless",
        "repeat",
        "changed repeat",
        "garbage",
        "oversize",
        "label",
        "correction",
        "unknown",
    ]
    expected += ["same instant", "a year ahead", "early label", "repeated label", "garbage label"]
    expected += ["again", "late label"]
    assert [kind for kind in expected if not kinds[kind]] == []
    assert [record.timestamp_ms for record in sent] == sorted(record.timestamp_ms for record in sent)
    for record in sent:
        home = partition_of(record.card, 2) if record.card else record.partition
        assert (record.partition != home) <= (
            record.kind in ("foreign", "keyless", "repeat", "correction") or record.topic == "labels"
        )
    first: dict[tuple[str, str], bytes | None] = {}
    for record in sent:
        if record.topic == "transactions" and record.dead is None and record.kind != "changed repeat":
            assert first.setdefault((record.card, record.transaction), record.value) == record.value
    early = {sent_record.transaction: sent_record.number for sent_record in sent if sent_record.kind == "early label"}
    shown = {
        sent_record.transaction: sent_record.number
        for sent_record in reversed(sent)
        if sent_record.topic == "transactions" and sent_record.dead is None
    }
    assert all(number < shown[name] for name, number in early.items())
    assert not any(
        sent_record.kind in ("foreign", "keyless") for sent_record in ledger(LOAD, Expected(rerouting=False))
    )


def test_what_is_labelled_is_labelled_at_a_time_that_its_record_allows() -> None:
    for record in ledger(LOAD, Expected()):
        if record.topic == "transactions" and record.dead is None:
            stated = json.loads(record.value or b"")
            assert stated["amount"] > 0 or stated["transaction_type"] == "verification"


@pytest.mark.parametrize("seed", range(5))
def test_a_long_schedule_has_the_kills_that_are_asked_for_and_every_other_kind(seed: int) -> None:
    faults = schedule(seed, 900.0, 32)
    kinds = Counter(fault.kind for fault in faults)
    assert kinds["kill"] == 32
    assert set(LONG_SHARES) <= kinds.keys()
    assert faults == schedule(seed, 900.0, 32)
    assert [fault.at_s for fault in faults] == sorted(fault.at_s for fault in faults)
    assert all(0 <= fault.at_s < 900.0 for fault in faults)
    scales = [fault.kind for fault in faults if "worker" in fault.kind]
    assert scales == ["three workers", "two workers", "one worker", "a worker for each agent"]
    assert {fault.target for fault in faults if fault.kind == "kill"} == {"any", *KINDS}


@pytest.mark.parametrize("seed", range(5))
def test_a_schedule_of_several_brokers_has_every_fault_of_theirs(seed: int) -> None:
    faults = cluster_schedule(seed, 900.0, 10)
    kinds = Counter(fault.kind for fault in faults)
    assert kinds["kill"] == 10
    assert set(CLUSTER_SHARES) | set(LONG_SHARES) - {ALONE} <= kinds.keys()
    assert LAST not in kinds
    assert [fault.kind for fault in faults if "worker" in fault.kind] == ["two workers"]
    assert all(fault.target == "any" for fault in faults)


def test_the_short_schedule_kills_the_broker_and_a_worker() -> None:
    assert {"garbage, kill", "pause", "broker kill", "terminate", "bomb"} == {
        fault.kind for fault in short_schedule(1, 30.0)
    } - {"two workers"}


def test_what_is_kept_of_a_run_can_be_read_again(tmp_path: Path) -> None:
    sent = ledger(Load(5, 100, 2.0, 2), Expected())
    save(tmp_path / "ledger", sent)
    assert load_sent(tmp_path / "ledger") == sent
    save(tmp_path / "none", [])
    assert load_entries(tmp_path / "none") == []


def snapshot(place: SnapshotPlace, partition: str, number: int) -> tuple[Path, Path]:
    """A snapshot of one object, as the agents lay them out: its own file and the object."""
    held = place.directory / partition / "objects" / f"{number:064x}"
    held.parent.mkdir(parents=True, exist_ok=True)
    held.write_bytes(bytes(1_000))
    own = place.directory / partition / f"{number:012d}-abcd.json"
    own.write_text(json.dumps({"objects": [held.name], "more": "x" * 500}))
    return own, held


@pytest.fixture
def place(tmp_path: Path) -> Iterator[SnapshotPlace]:
    found = SnapshotPlace(tmp_path / "snapshots")
    try:
        yield found
    finally:
        found.close()


def test_the_newest_snapshot_of_each_partition_is_damaged_and_no_other(place: SnapshotPlace) -> None:
    assert place.damage(["card"], cut=False, draw=0.0) == []
    older = snapshot(place, "card/0", 1)
    own, held = snapshot(place, "card/0", 2)
    other = snapshot(place, "score/0", 1)
    before = {path: path.read_bytes() for path in (*older, *other, own)}
    assert place.damage(["card", "learn"], cut=False, draw=0.0) == ["card/0/000000000002-abcd.json"]
    assert held.read_bytes().count(b"\xa5") == 16
    assert {path: path.read_bytes() for path in before} == before
    size = own.stat().st_size
    assert place.damage(["card"], cut=True, draw=0.9) == ["card/0/000000000002-abcd.json"]
    assert own.stat().st_size == int(0.6 * size)
    assert place.remove_all() == 6
    assert place.files() == []


@pytest.mark.parametrize("own_file_system", [True, False])
def test_nothing_can_be_written_to_a_full_directory(place: SnapshotPlace, *, own_file_system: bool) -> None:
    if own_file_system and not place.mounted:
        pytest.skip("this process may not mount a file system")
    if not own_file_system:
        place.close()
    own, _ = snapshot(place, "card/0", 1)
    assert place.fill()
    with pytest.raises(OSError, match=r"No space left|Not a directory"):
        (place.directory / "card" / "0" / "more").write_bytes(bytes(100_000))
    place.empty_again()
    (place.directory / "card" / "0" / "more").write_bytes(bytes(100_000))
    assert own.exists()
