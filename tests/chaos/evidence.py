"""What the workers' own logs say about snapshots, and whether a run has met everything that it is for."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from tests.chaos.arithmetic import DAY_US
from tests.chaos.run import Check, Rules
from tests.chaos.schedule import Happened

LINE = re.compile(r"\[(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d),(\d{3})\](?: \[\d+\])? \[\w+\] (.*)")
RESTORED = re.compile(r"state restored in [\d.]+ s from (a snapshot|the log alone) and (\d+) records")
REFUSED = re.compile(r"snapshot (\S+) is not used \(([a-z-]+)\)")
NOT_WRITTEN = "no snapshot: "
UPON_DAMAGE = re.compile(r"of (\S+) could be written .*of the snapshot before was changed or damaged")
AFTERWARDS_S = 30.0
"""A write that a fault has made fail is told at most as long after it (a worker may have stood still meanwhile)."""
FOUND_GONE_S = 300.0
"""A worker finds so much later that the snapshot before is gone: when there is something new to write."""
LONG_DAYS = 16.0
"""So far behind the horizon at least, something has been forgotten."""


class Line(NamedTuple):
    """A line of a worker's log."""

    wall_s: float
    worker: str
    text: str


@dataclass
class Evidence:
    """What became of snapshots."""

    from_snapshot: int = 0
    """Restores of a partition from a snapshot and the log behind it."""
    from_log: int = 0
    """Restores from records of the log alone; those of a partition without any do not count."""
    refused: Counter[str] = field(default_factory=Counter)
    met: dict[str, int] = field(default_factory=dict)
    """By kind of damage: faults of which a worker has met, and told, a damaged snapshot."""
    failed_writes: int = 0
    """Snapshots that could not be written while there was no room."""
    failed_upon_damage: int = 0
    """Snapshots that could not be written because the one before, on which they build, had been damaged."""
    failed_unasked: list[str] = field(default_factory=list)
    """Snapshots that could not be written although nothing had been done to their place."""


def read_lines(log_dir: Path) -> list[Line]:
    """Dated lines of all logs."""
    found = []
    for path in sorted(log_dir.glob("*.log")):
        for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
            if (line := LINE.match(text)) is not None:
                at = datetime.strptime(line[1], "%Y-%m-%d %H:%M:%S")  # noqa: DTZ007 - logs tell the local time
                found.append(Line(at.timestamp() + int(line[2]) / 1e3, path.stem, line[3]))
    return found


def gather(lines: Iterable[Line], happened: Sequence[Happened]) -> Evidence:
    """Read the evidence from logs."""
    evidence = Evidence(met={sent_record.kind: 0 for sent_record in happened if sent_record.snapshots})
    row: dict[str, list[float]] = {}
    for line in lines:
        if (restored := RESTORED.search(line.text)) is not None:
            evidence.from_snapshot += restored[1] == "a snapshot"
            evidence.from_log += restored[1] != "a snapshot" and int(restored[2]) > 0
        elif (refused := REFUSED.search(line.text)) is not None:
            evidence.refused[refused[2]] += 1
            if refused[2] == "damaged":
                row.setdefault(refused[1], []).append(line.wall_s)
        elif NOT_WRITTEN in line.text:
            if _within("snapshots full", line.wall_s, happened):
                evidence.failed_writes += 1
            elif (place := UPON_DAMAGE.search(line.text)) is not None and _damaged(place[1], line.wall_s, happened):
                evidence.failed_upon_damage += 1
            elif not _within("snapshots gone", line.wall_s, happened, FOUND_GONE_S):
                evidence.failed_unasked.append(f"{line.worker}: {line.text}")
    for sent_record in happened:
        if any(at_s > sent_record.wall_s - 1.0 for name in sent_record.snapshots for at_s in row.get(name, ())):
            evidence.met[sent_record.kind] += 1
    return evidence


def _within(kind: str, wall_s: float, happened: Iterable[Happened], after_s: float = AFTERWARDS_S) -> bool:
    return any(
        sent_record.kind == kind and 0.0 <= wall_s - sent_record.wall_s + 1.0 <= after_s for sent_record in happened
    )


def _damaged(place: str, wall_s: float, happened: Iterable[Happened]) -> bool:
    return any(
        item.wall_s - 1.0 <= wall_s and any(n.startswith(f"{place}/") for n in item.snapshots) for item in happened
    )


def lacking(
    evidence: Evidence, happened: Sequence[Happened], kinds: Iterable[str], checks: Sequence[Check], rules: Rules,
    days: float,
) -> list[str]:  # fmt: skip
    """What a long run of ``days`` of event time should have met and has not; ``kinds`` of faults were to happen."""
    done = Counter(sent_record.kind for sent_record in happened)
    lacks = [f"no fault of the kind {kind!r} could be done" for kind in sorted(set(kinds)) if not done[kind]]
    shown = {sent_record.kind: False for sent_record in happened if sent_record.met is not None}
    shown |= {sent_record.kind: True for sent_record in happened if sent_record.met}
    lacks += [
        f"no {kind} was seen to make a partition's age grow and fall again" for kind, met in shown.items() if not met
    ]
    if not evidence.from_snapshot:
        lacks.append("no partition was restored from a snapshot")
    if done["snapshots gone"] and not evidence.from_log:
        lacks.append("no partition was restored from the log alone, though all snapshots were removed")
    lacks += [f"{kind}: no worker met a damaged snapshot and told it" for kind, met in evidence.met.items() if not met]
    if done["snapshots full"] and not evidence.failed_writes:
        lacks.append("no snapshot failed while there was no room for any")
    compared: Counter[str] = Counter()
    for check in checks:
        compared.update(check.compared)
    wanted = ["accepted_again", "too_late", "labels_too_late", "presumed", "corrections", "not_sampled"]
    if days * DAY_US > 2 * rules.label_grace_us:
        wanted.append("labels_without_transaction")
    if days * DAY_US > max(rules.label_horizon_us, rules.dedup_horizon_us) + LONG_DAYS * DAY_US:
        wanted += ["forgotten", "decisions_forgotten"]
    return lacks + [f"the load has met no case of: {what.replace('_', ' ')}" for what in wanted if not compared[what]]
