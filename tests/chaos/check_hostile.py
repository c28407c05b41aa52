"""What was written in the agents' place, and batches that nobody can read: each has its end, and changes nothing."""

import hashlib
import json
from collections import Counter
from typing import Any

from tests.chaos.check_records import dead_letter
from tests.chaos.records import HOSTILE_HEADER, Entry, Place, Sent
from tests.chaos.run import Check, Run

WITH_MARKERS = ("card", "feedback")
"""Agents of several inputs, whose batches name on ``progress`` what was quarantined of them."""
NAMES = {"policy", "lightgbm", "river"}

Quarantined = tuple[str, Place, int]
"""Agent, first place, and offset behind a range; -1 for a single record."""


def hostile_records_change_nothing(run: Run) -> Check:
    """Each stands in its topic once, has the dead letters that it must have and no other, and nothing names it."""
    check = Check("hostile records change nothing")
    hostile = [sent for sent in run.ledger if sent.hostile]
    if not hostile:
        return check
    readable = [sent for sent in hostile if sent.end < 0]
    check.compared = {
        "records": len(readable),
        "topics": len({sent.topic for sent in readable}),
        "batches": len(hostile) - len(readable),
        "dead_letters": sum(len(sent.agents) for sent in hostile),
    }
    if len(hostile) == len(readable):
        del check.compared["batches"]
    _stand_as_written(check, run, readable)
    by_place = {(sent.topic, sent.partition, sent.offset): sent for sent in hostile}
    wanted = Counter((place, agent) for place, sent in by_place.items() for agent in sent.agents)
    found: Counter[tuple[Place, str]] = Counter()
    for entry in run.logs.entries("dead-letters"):
        letter = dead_letter(entry, run.rules.prefix)
        if (meant := by_place.get(letter.place)) is None:
            continue  # the check of dead letters tells
        found[letter.place, letter.agent] += 1
        check.same(f"{letter.place} ({meant.kind}): code of the dead letter", letter.error, meant.dead)
        check.same(f"{letter.place} ({meant.kind}): value of the dead letter", entry.value, meant.value)
        check.same(f"{letter.place} ({meant.kind}): end of the dead letter", letter.end, meant.end)
    for place, agent in wanted.keys() | found.keys():
        times, source = found[place, agent], f"{place} ({by_place[place].kind})"
        if (times != wanted[place, agent]) if run.rules.exactly_once else (times == 0):
            check.differs(f"{source} has {times} dead letters of {agent} instead of {wanted[place, agent]}")
    _nothing_names(check, run, set(by_place))
    return check


def _stand_as_written(check: Check, run: Run, readable: list[Sent]) -> None:
    """The ledger's own guarantee: what the workers read is what this run meant to write."""
    found: dict[int, Entry] = {}
    for topic in run.logs.topics:
        for entry in run.logs.entries(topic):
            if topic != "dead-letters" and entry.hostile:
                found[int(entry.header(HOSTILE_HEADER) or -1)] = entry
    for sent in readable:
        entry = found.pop(sent.number, None)
        if entry is None:
            check.differs(f"{sent.kind} was written to {sent.topic} and is not there")
        else:
            place = sent.topic, sent.partition, sent.offset
            check.same(f"{place} ({sent.kind})", (*entry.place, entry.key, entry.value), (*place, sent.key, sent.value))
    for number, entry in found.items():
        check.differs(f"{entry.place} has the number {number} of nothing that was written, or stands there again")


def _nothing_names(check: Check, run: Run, places: set[Place]) -> None:
    """No decision, profiled record or example is made of it, and no decision of a version that it alone holds."""
    for topic in ("profiled", "decisions", "features", "examples"):
        for entry, row in run.logs.decoded(topic):
            source, read, log = row.get("source"), row.get("read"), row.get("log")
            group = [(at["topic"], at["partition"], at["offset"]) for at in (source, read) if at]
            group += [("profiled", log["partition"], log["offset"])] if log else []
            if made_of := places.intersection(group):
                check.differs(f"{entry.place} was made of {sorted(made_of)}, which is hostile")
    published = {(log["name"], log["version"]) for _, log in run.logs.decoded("models")}
    for entry in run.logs.entries("models"):
        if not entry.hostile:
            continue
        version = _version(entry)
        if version is None or version in published:
            continue
        for decided, row in run.logs.decoded("decisions"):
            if row["versions"].get(version[0]) == version[1]:
                check.differs(f"{decided.place} was decided by {version}, which is hostile")


def _version(entry: Entry) -> tuple[str, str] | None:
    """Name and version of a hostile record of ``models``, where it says any."""
    try:
        row = json.loads(entry.value or b"")
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict) or row.get("name") not in NAMES:
        return None
    return str(row["name"]), str(row.get("version"))


def quarantines_are_of_hostile_records(run: Run) -> Check:
    """Each record that was made to fail, and each batch that nobody can read, has one quarantine; nothing else has.

    Its marker lists it where the agent has several inputs, and it has one dead letter (the check before).
    """
    check = Check("none but hostile records were quarantined")
    wanted: dict[Quarantined, Sent] = {}
    for sent in run.ledger:
        if sent.hostile and (sent.dead == "set_aside" or sent.end >= 0):
            for agent in sent.agents:
                wanted[agent, (sent.topic, sent.partition, sent.offset), sent.end] = sent
    if wanted:
        check.compared = {"quarantines": len(wanted)}
    found: Counter[Quarantined] = Counter()
    for entry, item in run.logs.decoded("control"):
        if item["kind"] != "quarantine":
            continue
        key = item["agent"], _place(item["position"]), item["position"].get("end", -1)
        found[key] += 1
        if (meant := wanted.get(key)) is None:
            check.differs(f"{entry.place} quarantines {key}, which was not made to fail: {item['message'][:200]}")
            continue
        digest = None if meant.value is None else hashlib.sha256(meant.value).hexdigest()
        check.same(f"{key}: digest of the quarantine", item.get("digest"), digest)
    listed = Counter(
        (log["agent"], _place(position), position.get("end", -1))
        for _, log in run.logs.decoded("progress")
        for position in log.get("quarantined", ())
    )
    for key, sent in wanted.items():
        _once(check, run, f"{key} ({sent.kind}): quarantines", found[key])
        if key[0] in WITH_MARKERS:
            _once(check, run, f"{key} ({sent.kind}): markers that list it", listed[key])
    for key in listed.keys() - wanted.keys():
        check.differs(f"progress lists {key}, which was not made to fail")
    return check


def _place(position: dict[str, Any]) -> Place:
    return position["topic"], position["partition"], position["offset"]


def _once(check: Check, run: Run, what: str, times: int) -> None:
    if times != 1 if run.rules.exactly_once else times < 1:
        check.differs(f"{what}: {times} instead of 1")
