"""The log of changes of lists: parts, what is missing or damaged, and versions that are loaded one behind the other."""

import msgspec
import pytest
from msgspec.structs import replace

from pipeline.decision.lists import manifest_payload
from pipeline.kafka.records.internal import TrustedRecords, not_counted
from pipeline.models import list_log
from pipeline.models.list_log import ListLog, change_parts, part_record
from pipeline.scoring.errors import ModelError
from pipeline.settings import Settings
from schemas.messages import ListChange
from schemas.records import Record
from tests.helpers.lists import definition, entry


class MemoryLog(ListLog):
    """A topic in memory, of which every read takes what a reader of Kafka's would."""

    def __init__(self) -> None:
        super().__init__("", Settings())
        self._trusted = TrustedRecords(Settings(), not_counted)
        self.records: list[bytes] = []
        self.read_from: list[int] = []

    def _readable_end(self) -> int:
        return len(self.records)

    def _records(self, start: int, end: int) -> list[Record]:
        self.read_from.append(start)
        return [Record("lists", 0, offset, 0, None, self.records[offset]) for offset in range(start, end)]

    def write(self, change: ListChange) -> str:
        parts = change_parts(change)
        self.records += [part_record(part).value or b"" for part in parts]
        return parts[0].change


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


def test_a_value_that_is_forgotten_is_in_no_version_any_more() -> None:
    log = MemoryLog()
    first = log.write(added("", "a", "b"))
    gone = log.write(ListChange(change="", before=first, removed=[("home", "a")]))
    second = log.write(added(gone, "a"))
    one, two = manifest_payload(first, "", 2), manifest_payload(second, gone, 2)
    assert (len(log.load(one)), len(log.load(two))) == (2, 2)
    assert not list(log.forgotten("ip", "a")), "another field"

    parts = list(log.forgotten("country", "a"))

    assert [part.forgotten for part in parts] == [1, 1, 1]
    log.records += [part_record(part).value or b"" for part in parts]
    third = log.write(ListChange(change="", before=second))
    assert len(log.load(manifest_payload(third, second, 1))) == 1
    assert len(log.load(one)) == 1
    newest = {(part["change"], part.get("part", 0)): part for part in map(msgspec.json.decode, log.records)}
    assert not [part for part in newest.values() if "'a'" in str(part)]
    assert [part for part in map(msgspec.json.decode, log.records) if "'a'" in str(part)]
    assert replace(parts[0], forgotten=0).change == first
