"""Lists that are made in memory."""

from collections.abc import Iterable, Sequence
from typing import Any

from pipeline.decision.lists import NO_LISTS, ListSet, manifest_payload
from pipeline.kafka.records.internal import TrustedRecords, not_counted
from pipeline.models.list_log import ListHistory, ListLog, change_parts, part_record
from pipeline.scoring.payload import payload_digest
from pipeline.settings import Settings
from schemas.messages import ListChange, ListDefinition, ListEntry, VersionReference
from schemas.records import Record

ADDED_US = 1_000


def definition(name: str, kind: str = "watch", field: str = "country", match: str = "text") -> ListDefinition:
    """A list."""
    return ListDefinition(name=name, kind=kind, field=field, match=match)


def entry(name: str, value: str, expires_us: int | None = None, **changes: Any) -> ListEntry:
    """An entry."""
    given = {"owner": "tests", "reason": "A test.", "added_us": ADDED_US, "expires_us": expires_us}
    return ListEntry(list=name, value=value, **{**given, **changes})


def lists_of(
    definitions: Sequence[ListDefinition], entries: Iterable[ListEntry], before: ListSet = NO_LISTS
) -> ListSet:
    """Lists behind one change."""
    entries = [*entries]
    parts = change_parts(ListChange(change="", before=before.change, definitions=[*definitions], entries=entries))
    added = lists_total(before, entries)
    return before.followed_by(manifest_payload(parts[0].change, before.change, added), parts)


def lists_total(before: ListSet, entries: Iterable[ListEntry]) -> int:
    """Return how many entries there are once some are added, none of which was there."""
    return len(before) + len({(each.list, each.value) for each in entries})


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


def history_of(
    log: MemoryLog, changes: Sequence[tuple[str, int]], *, start_us: int = 0, step_us: int = 10
) -> ListHistory:
    """Versions that became active one step after the other, of changes and how many entries there are behind each."""
    payloads = {payload_digest(made): made for made in (manifest_payload(change, "", size) for change, size in changes)}
    references = [VersionReference(name="lists", version="", digest=digest, offset=0) for digest in payloads]
    activated = [(start_us + step_us * number, reference) for number, reference in enumerate(references, 1)]
    return ListHistory(log, activated, lambda reference: payloads[reference.digest])
