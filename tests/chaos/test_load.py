"""Load and faults are drawn from the seed alone and hold every kind; what a long run must have met is asked for."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos import __main__ as program
from tests.chaos.arithmetic import DAY_US
from tests.chaos.checker import WITH_TIME, check_all
from tests.chaos.evidence import gather, lacking, read_lines
from tests.chaos.load import Load, ledger
from tests.chaos.records import Logs
from tests.chaos.run import Check, Rules
from tests.chaos.schedule import (
    ALONE,
    CLUSTER_SHARES,
    KINDS,
    LAST,
    LONG_SHARES,
    Happened,
    cluster_schedule,
    declared_schedule,
    schedule,
)
from tests.chaos.snapshots import SnapshotPlace
from tests.helpers.declarations import OWN_NUMBERS, OWN_TEXTS, random_declaration

LOAD = Load(5, 4_000, 6.0, 2, horizon_days=1.5)
LOADED = {
    "plain", "late", "very_late", "shuffled", "foreign", "keyless", "repeat", "changed repeat", "same instant", "again",
    "garbage", "oversize", "a year ahead", "label", "correction", "early label", "repeated label", "late label",
    "garbage label", "unknown",
}  # fmt: skip
RULES = Rules(2, 2, 0.3, DAY_US, 10 * DAY_US, 10 * DAY_US)
NAME = "chaos-card/0/000000000007-ab.json"
LOG = f"""no date
[2024-05-01 10:00:05,250] [77] [WARNING] snapshot {NAME} is not used (damaged): its checksum is another
[2024-05-01 10:00:05,500] [77] [INFO] card: partition 0: state restored in 0.6 s from a snapshot and 47 records
[2024-05-01 10:00:06,500] [77] [INFO] card: partition 0: state restored in 0.6 s from the log alone and 9 records
[2024-05-01 10:01:05,000] [77] [ERROR] card: partition 0: no snapshot: none of chaos-card/0 could be written
"""


def test_a_seed_gives_one_load_with_everything_that_producers_and_analysts_may_do() -> None:
    sent = ledger(LOAD)
    assert sent == ledger(LOAD)
    assert sent[:50] != ledger(Load(6, 4_000, 6.0, 2))[:50]
    assert {item.kind for item in sent} >= LOADED
    assert [item.timestamp_ms for item in sent] == sorted(item.timestamp_ms for item in sent)


def test_a_history_of_a_declaration_has_own_fields_and_what_may_go_wrong() -> None:
    load = Load(5, 1_000, 150.0, 2, horizon_days=30.0, declaration=random_declaration(5, 6))
    sent = ledger(load)
    assert sent == ledger(load)
    assert {item.kind for item in sent} >= LOADED - {
        "late",
        "very_late",
        "shuffled",
        "oversize",
        "a year ahead",
        "garbage label",
    }
    attributes = [json.loads(item.value or b"").get("attributes") or {} for item in sent if item.kind == "plain"]
    assert {name for item in attributes for name in item} == {*OWN_NUMBERS, *OWN_TEXTS, "more"}


def test_a_worker_is_killed_behind_each_change_of_a_declaration() -> None:
    faults = declared_schedule(3, 40.0, 2, (0.25, 0.5))
    kinds = Counter(fault.kind for fault in faults)
    assert kinds == {"two workers": 1, "kill": 4, "snapshots gone": 1, "garbage, kill": 1}
    for change_s in (10.0, 20.0):
        assert any(change_s < fault.at_s < change_s + 7 and fault.length_s == 0 for fault in faults)


@pytest.mark.parametrize("seed", range(5))
def test_long_schedules_have_the_kills_that_are_asked_for_and_every_other_kind(seed: int) -> None:
    faults, of_cluster = schedule(seed, 900.0, 32), cluster_schedule(seed, 900.0, 10)
    assert faults == schedule(seed, 900.0, 32)
    kinds, cluster_kinds = ([fault.kind for fault in items] for items in (faults, of_cluster))
    assert (kinds.count("kill"), cluster_kinds.count("kill")) == (32, 10)
    assert set(LONG_SHARES) <= {*kinds}
    assert set(CLUSTER_SHARES) | set(LONG_SHARES) - {ALONE} <= {*cluster_kinds}
    assert [kind for kind in kinds if "worker" in kind] == [
        "three workers", "two workers", "one worker", "a worker for each agent",
    ]  # fmt: skip
    assert {fault.target for fault in faults if fault.kind == "kill"} == {"any", *KINDS}
    # Behind a damaged batch no broker is killed, which reads its log when it starts.
    assert "broker kill" not in kinds[kinds.index(LAST) :]
    assert LAST not in cluster_kinds


@pytest.fixture
def place(tmp_path: Path) -> Iterator[SnapshotPlace]:
    found = SnapshotPlace(tmp_path / "snapshots")
    yield found
    found.close()


def snapshot(place: SnapshotPlace, partition: str, number: int) -> tuple[Path, Path]:
    """A snapshot of one object, as the agents lay them out: its own file and the object."""
    held = place.directory / partition / "objects" / f"{number:064x}"
    held.parent.mkdir(parents=True, exist_ok=True)
    held.write_bytes(bytes(1_000))
    own = place.directory / partition / f"{number:012d}-abcd.json"
    own.write_text(f'{{"objects": ["{held.name}"], "more": "{"x" * 500}"}}')
    return own, held


def test_the_newest_snapshot_of_each_partition_is_damaged_and_no_other(place: SnapshotPlace) -> None:
    assert place.damage(["card"], cut=False, draw=0.0) == []
    others = [path for name, number in (("card/0", 1), ("score/0", 1)) for path in snapshot(place, name, number)]
    own, held = snapshot(place, "card/0", 2)
    before = {path: path.read_bytes() for path in (*others, own)}
    assert place.damage(["card", "learn"], cut=False, draw=0.0) == ["card/0/000000000002-abcd.json"]
    assert held.read_bytes().count(b"\xa5") == 16
    assert {path: path.read_bytes() for path in before} == before
    size = own.stat().st_size
    assert place.damage(["card"], cut=True, draw=0.9) == ["card/0/000000000002-abcd.json"]
    assert own.stat().st_size == int(0.6 * size)
    assert (place.remove_all(), place.files()) == (6, [])


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


@pytest.mark.parametrize(
    ("left_out", "saying"),
    [
        ("nothing", ""),
        ("from a snapshot", "no partition was restored from a snapshot"),
        ("from the log alone", "from the log alone"),
        ("(damaged)", "no worker met a damaged snapshot"),
        ("no snapshot: ", "while there was no room"),
        ("accepted_again", "accepted again"),
        ("labels_without_transaction", "labels without transaction"),
    ],
)
def test_a_long_run_that_has_not_met_something_is_reported(tmp_path: Path, left_out: str, saying: str) -> None:
    log = "".join(line for line in LOG.splitlines(keepends=True) if left_out not in line)
    (tmp_path / "w1.log").write_text(LOG)
    first_s = read_lines(tmp_path)[0].wall_s
    happened = [
        Happened(1.0, "snapshot corrupt", "", snapshots=(NAME,), wall_s=first_s - 2),
        Happened(2.0, "snapshots gone", "", wall_s=first_s - 1),
        Happened(3.0, "snapshots full", "", wall_s=first_s + 55),
    ]
    (tmp_path / "w1.log").write_text(log)
    evidence = gather(read_lines(tmp_path), happened)
    assert evidence.failed_unasked == []
    checks = [Check("all", Counter(what for what in WITH_TIME if what != left_out))]
    lacks = lacking(evidence, happened, [item.kind for item in happened], checks, RULES, 54.0)
    assert saying in "\n".join(lacks)
    assert bool(lacks) == bool(saying)
    assert (
        lacking(evidence, happened, ["pause"], checks, RULES, 54.0)[0] == "no fault of the kind 'pause' could be done"
    )


def test_a_check_that_compared_nothing_is_a_difference() -> None:
    passed = [check.name for check in check_all(Logs({}), [], RULES) if not check.differences]
    assert passed == ["hostile records change nothing", "none but hostile records were quarantined"]


def test_a_run_that_fails_is_kept_until_the_next_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program, "FAILED", tmp_path / "build" / "chaos-failed")

    def run(name: str, *, well: bool = False) -> None:
        with program._kept(None) as (directory, good):
            (directory / name).touch()
            assert well, "no proof"
            good.append(True)

    for name in ("first", "second"):
        with pytest.raises(AssertionError, match="no proof"):
            run(name)
        assert [path.name for path in program.FAILED.iterdir()] == [name]
    run("third", well=True)
    assert [path.name for path in program.FAILED.iterdir()] == ["second"]
