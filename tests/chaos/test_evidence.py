"""What is read from workers' logs, and what a long run must have met."""

from pathlib import Path

import pytest

from tests.chaos.arithmetic import DAY_US
from tests.chaos.evidence import Evidence, gather, lacking, read_lines
from tests.chaos.run import Check, Expected, Rules
from tests.chaos.schedule import Happened

RULES = Rules(2, 2, 0.3, DAY_US, 10 * DAY_US, 10 * DAY_US, expected=Expected())
NAME = "chaos-card/0/000000000007-ab.json"
DAMAGED = f"[2024-05-01 10:00:05,250] [77] [WARNING] snapshot {NAME} is not used (damaged): its checksum is another "
RESTORED = "[77] [INFO] card: partition 0: state restored in 0.6 s from"
FROM_SNAPSHOT = f"[2024-05-01 10:00:05,500] {RESTORED} a snapshot and 47 records "
FROM_LOG = f"[2024-05-01 10:00:06,500] {RESTORED} the log alone and 9 records "
FROM_NOTHING = FROM_LOG.replace("9 records", "0 records")
FULL = "[2024-05-01 10:01:05,000] [77] [ERROR] card: partition 0: no snapshot: none of chaos-card/0 could be written "
UPON_DAMAGE = (
    "[2024-05-01 10:04:00,000] [77] [ERROR] card: partition 0: no snapshot: no snapshot of chaos-card/0 could "
    "be written to here (the object ab of the snapshot before was changed or damaged): see to the room"
)
GOOD = [DAMAGED, FROM_SNAPSHOT, FROM_LOG, FULL]
ALL = (
    "accepted_again",
    "too_late",
    "labels_too_late",
    "presumed",
    "corrections",
    "not_sampled",
    "labels_without_transaction",
)


def wall_s(text: str, directory: Path) -> float:
    """When a line was written."""
    return read(directory, [f"[2024-05-01 {text},000] [77] [INFO] now"])[0]


def read(directory: Path, lines: list[str]) -> list[float]:
    (directory / "w1.log").write_text("\n".join(["no date", *lines]) + "\n")
    return [line.wall_s for line in read_lines(directory)]


def happened(directory: Path) -> list[Happened]:
    return [
        Happened(1.0, "snapshot corrupt", "", snapshots=(NAME,), wall_s=wall_s("10:00:03", directory)),
        Happened(2.0, "snapshots gone", "", wall_s=wall_s("10:00:04", directory)),
        Happened(3.0, "snapshots full", "", wall_s=wall_s("10:01:00", directory)),
    ]


def gathered(directory: Path, lines: list[str]) -> Evidence:
    faults = happened(directory)
    read(directory, lines)
    return gather(read_lines(directory), faults)


def reported(directory: Path, lines: list[str], compared: dict[str, int], days: float = 20.0) -> str:
    faults = happened(directory)
    kinds = [fault.kind for fault in faults]
    checks = [Check("all", compared)]
    return "\n".join(lacking(gathered(directory, lines), faults, kinds, checks, RULES, days))


def test_the_evidence_of_a_good_run(tmp_path: Path) -> None:
    evidence = gathered(tmp_path, [*GOOD, FROM_NOTHING])
    assert (evidence.from_snapshot, evidence.from_log, evidence.failed_writes) == (1, 1, 1)
    assert (evidence.met, evidence.refused) == ({"snapshot corrupt": 1}, {"damaged": 1})
    assert evidence.failed_unasked == []
    assert reported(tmp_path, GOOD, dict.fromkeys(ALL, 3)) == ""


@pytest.mark.parametrize(
    ("lines", "saying"),
    [
        ([DAMAGED, FROM_LOG, FULL], "no partition was restored from a snapshot"),
        ([DAMAGED, FROM_SNAPSHOT, FROM_NOTHING, FULL], "from the log alone"),
        ([FROM_SNAPSHOT, FROM_LOG, FULL], "no worker met a damaged snapshot"),
        ([DAMAGED.replace("000007", "000006"), FROM_SNAPSHOT, FROM_LOG, FULL], "no worker met a damaged snapshot"),
        ([DAMAGED.replace("10:00:05", "10:00:01"), FROM_SNAPSHOT, FROM_LOG, FULL], "no worker met a damaged snapshot"),
        ([DAMAGED, FROM_SNAPSHOT, FROM_LOG], "while there was no room"),
    ],
)
def test_a_run_that_met_no_snapshot_fault_is_reported(tmp_path: Path, lines: list[str], saying: str) -> None:
    assert saying in reported(tmp_path, lines, dict.fromkeys(ALL, 3))


def test_a_snapshot_that_fails_although_nothing_was_done_is_reported(tmp_path: Path) -> None:
    (failed,) = gathered(tmp_path, [*GOOD, FULL.replace("10:01:05", "10:02:00")]).failed_unasked
    assert "no snapshot" in failed


def test_a_kind_of_fault_that_was_never_done_is_reported(tmp_path: Path) -> None:
    evidence, checks = gathered(tmp_path, GOOD), [Check("all", dict.fromkeys(ALL, 3))]
    assert lacking(evidence, happened(tmp_path), ["pause"], checks, RULES, 20.0) == [
        "no fault of the kind 'pause' could be done"
    ]


@pytest.mark.parametrize("what", ALL)
def test_a_load_that_never_comes_behind_a_horizon_is_reported(tmp_path: Path, what: str) -> None:
    assert what.replace("_", " ") in reported(tmp_path, GOOD, {**dict.fromkeys(ALL, 3), what: 0})


def test_a_long_run_must_have_forgotten_something(tmp_path: Path) -> None:
    assert "forgotten" in reported(tmp_path, GOOD, dict.fromkeys(ALL, 3), days=54.0)
    enough = dict.fromkeys((*ALL, "forgotten", "decisions_forgotten"), 3)
    assert reported(tmp_path, GOOD, enough, days=54.0) == ""


def test_a_snapshot_that_fails_upon_damage_that_was_done_is_no_failure(tmp_path: Path) -> None:
    evidence = gathered(tmp_path, [*GOOD, UPON_DAMAGE])
    assert (evidence.failed_upon_damage, evidence.failed_unasked) == (1, [])
    for other in (UPON_DAMAGE.replace("10:04:00", "10:00:01"), UPON_DAMAGE.replace("card/0", "card/1")):
        evidence = gathered(tmp_path, [*GOOD, other])
        assert (evidence.failed_upon_damage, len(evidence.failed_unasked)) == (0, 1)
