"""The log of changes of lists: parts, what is missing or damaged, and versions that are loaded one behind the other."""

import msgspec
import numpy as np
import pytest
from msgspec.structs import replace

from pipeline.decision.lists import manifest_payload
from pipeline.models import list_log
from pipeline.models.list_log import ListHistory, part_record
from pipeline.scoring.errors import ModelError, ModelIncomplete
from schemas.messages import ListChange
from tests.helpers.lists import MemoryLog, definition, entry, history_of


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(list_log, "_MISSING_S", 0.0)
    monkeypatch.setattr(list_log, "_PART_BYTES", 300)


def added(before: str, *values: str) -> ListChange:
    entries = [entry("home", value) for value in values]
    return ListChange(change="", before=before, definitions=[definition("home")], entries=entries)


def test_a_large_change_has_parts_which_count_together_alone() -> None:
    log = MemoryLog()
    change = log.write(added("", *(f"v{number}" for number in range(50))))
    assert len(log.records) > 5
    payload = manifest_payload(change, "", 50)
    assert len(log.load(payload)) == 50
    lacking = MemoryLog()
    lacking.records = log.records[:-1]
    with pytest.raises(ModelError, match="lacks parts of change"):
        lacking.load(payload)
    damaged = MemoryLog()
    damaged.records = [log.records[0].replace(b'"v0"', b'"vX"'), *log.records[1:]]
    with pytest.raises(ModelError, match="does not have the digest"):
        damaged.load(payload)
    with pytest.raises(ModelError, match="have 50 entries, and should have 49"):
        log.load(manifest_payload(change, "", 49))


def test_a_version_whose_parts_come_late_is_loaded_once_they_are_there() -> None:
    log, late = MemoryLog(), MemoryLog()
    change = log.write(added("", *(f"v{number}" for number in range(50))))
    payload, late.records = manifest_payload(change, "", 50), log.records[:-1]
    for _ in range(3):
        with pytest.raises(ModelIncomplete, match="lacks parts of change"):
            late.load(payload)
    assert late.read_from == [0], "what was read without its parts is not read again"
    late.records = [*late.records, log.records[-1]]
    assert len(late.load(payload)) == 50


def test_a_version_is_loaded_from_the_one_before_it_or_anew() -> None:
    log = MemoryLog()
    first = log.write(added("", "a"))
    second = log.write(added(first, "b"))
    orphan = log.write(added(first, "x"))
    third = log.write(ListChange(change="", before=second, removed=[("home", "a")], entries=[entry("home", "c")]))
    payloads = [manifest_payload(change, "", count) for change, count in ((first, 1), (second, 2), (third, 2))]

    assert [len(log.load(payload)) for payload in payloads] == [1, 2, 2]
    held = [MemoryLog() for _ in payloads]
    for other, payload in zip(held, payloads, strict=True):
        other.records = log.records
        assert other.load(payload).version == log.load(payload).version, "whatever was loaded before"
    assert len(log.load(manifest_payload(orphan, first, 2))) == 2, "a change that was proposed follows the first one"
    log.load(payloads[2])
    fourth = log.write(added(third, "d"))
    log.read_from.clear()
    assert len(log.load(manifest_payload(fourth, third, 3))) == 3
    assert log.read_from == [4], "what came since is read, and nothing again"


def test_a_history_has_the_lists_of_each_time_in_any_order_and_reads_the_topic_once() -> None:
    log, changes = MemoryLog(), list[tuple[str, int]]()
    for size in range(1, 21):
        changes.append((log.write(added(changes[-1][0] if changes else "", f"v{size}")), size))
    history = history_of(log, changes)
    times_us = np.array([-5, 9, 10, 19, 20, 205, 1_000])
    assert history.numbers(times_us).tolist() == [0, 0, 1, 1, 2, 20, 20]
    for number in (0, 3, 20, 2, 1, *range(1, 21), 5, 0):
        assert len(history.numbered(number)) == number
    assert len(history.numbered(-1)) == 20
    assert log.read_from == [0]
    assert history.named("") is history.numbered(0)
    assert len(history.named(history.numbered(7).version)) == 7
    with pytest.raises(ModelError, match="0123 of the lists was never activated"):
        history.named("0123")
    lacking = MemoryLog()
    lacking.records = log.records[1:]
    with pytest.raises(ModelError, match="lacks parts of change"):
        history_of(lacking, changes).numbered(3)
    assert len(ListHistory(MemoryLog()).numbered(-1)) == 0


def test_versions_behind_one_with_a_forgotten_value_are_built_on_it() -> None:
    log = MemoryLog()
    first = log.write(added("", "a", "b"))
    second = log.write(added(first, "c"))
    log.records += [part_record(part).value or b"" for part in log.without("country", ["a"])]
    history = history_of(log, [(first, 2), (second, 3)])
    assert [len(history.numbered(number)) for number in (1, 2)] == [1, 2]


def test_an_address_is_forgotten_as_a_list_of_networks_holds_it() -> None:
    log = MemoryLog()
    networks = [entry("near", value) for value in ("10.0.0.1/32", "10.0.0.2/32")]
    log.write(ListChange(change="", definitions=[definition("near", field="ip", match="cidr")], entries=networks))
    (part,) = log.without("ip", ["10.0.0.1", "a token"])
    assert part.entries == networks[1:]


def test_a_value_that_is_forgotten_is_in_no_version_any_more() -> None:
    log = MemoryLog()
    first = log.write(added("", "a", "b"))
    gone = log.write(ListChange(change="", before=first, removed=[("home", "a")]))
    second = log.write(added(gone, "a"))
    one, two = manifest_payload(first, "", 2), manifest_payload(second, gone, 2)
    assert (len(log.load(one)), len(log.load(two))) == (2, 2)
    assert not list(log.without("ip", ["a"])), "another field"

    parts = list(log.without("country", ["a"]))

    assert [part.forgotten for part in parts] == [1] * 3
    log.records += [part_record(part).value or b"" for part in parts]
    assert log.forgotten() == 3
    third = log.write(ListChange(change="", before=second))
    assert len(log.load(manifest_payload(third, second, 1))) == 1
    assert len(log.load(one)) == 1
    newest = {(part["change"], part.get("part", 0)): part for part in map(msgspec.json.decode, log.records)}
    assert not [part for part in newest.values() if "'a'" in str(part)]
    assert [part for part in map(msgspec.json.decode, log.records) if "'a'" in str(part)]
    assert replace(parts[0], forgotten=0).change == first
