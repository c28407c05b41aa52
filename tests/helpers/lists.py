"""Lists that are made in memory."""

from collections.abc import Iterable, Sequence
from typing import Any

from pipeline.decision.lists import NO_LISTS, ListSet, manifest_payload
from pipeline.models.list_log import change_parts
from schemas.messages import ListChange, ListDefinition, ListEntry

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
