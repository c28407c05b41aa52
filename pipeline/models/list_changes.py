"""Changes of the lists by a person: each is checked, and what it makes becomes active at once."""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Final, NamedTuple, Self

from msgspec.structs import replace

from pipeline.decision.lists import (
    ALLOW,
    LISTS,
    MOST_ENTRIES,
    MOST_LISTS,
    RULE,
    SUPPRESS,
    check_definition,
    covered,
    entry_id,
    manifest_payload,
    normal_value,
    read_manifest,
)
from pipeline.decision.rules import LONGEST_SENTENCE, TEXTS, Rule, lists_read
from pipeline.models.changes import ChangeAuthor, refuse_proposer
from pipeline.models.library import PublishedVersions
from pipeline.models.list_log import ListLog, change_parts, part_record
from pipeline.models.publish import ControlWriter, ModelChange, VersionToPublish
from pipeline.scoring.errors import ModelError
from pipeline.scoring.payload import VERSION_DIGITS, payload_digest
from pipeline.settings import Settings
from schemas.codec import timestamp_us
from schemas.messages import Assessment, ListChange, ListDefinition, ListEntry, VersionReference
from schemas.times import US_PER_DAY

PROPOSED: Final = "lists proposed"
"""Outcome of the assessment that records a change for a second person."""
LONGEST_DAYS: Final = 90
"""Longest validity of an entry that keeps alerts away."""
WIDE_SHARE: Final = 0.01
"""Share of a week's traffic above which a change of an allow list needs a second person."""
_FORGOTTEN: Final = "forgotten"
"""What approves an activation behind which a value is forgotten, and its figure of `ListLog.forgotten`."""
_LATEST_US: Final = timestamp_us(datetime(9999, 12, 31, tzinfo=UTC))
LATE_DAYS: Final = 37
"""Days behind its expiry for which an entry may still hold for late events that enter windows."""
Traffic = Callable[[str], Counter[str | None]]
"""Counts the texts of a field among transactions of the last week."""


class WrittenChange(NamedTuple):
    """A change that was written."""

    version: str
    entries: int
    """Number of entries of all lists behind it."""
    proposed: bool
    """True if somebody else has to approve it before it is active."""
    why: str = ""
    """Why somebody else has to."""


class ListContents:
    """The lists and their entries, as people see them."""

    def __init__(self, changes: Iterable[ListChange] = ()) -> None:
        self.definitions: dict[str, ListDefinition] = {}
        self.entries: dict[tuple[str, str], ListEntry] = {}
        for change in changes:
            self.add(change)

    def add(self, change: ListChange) -> None:
        """Take in what follows."""
        for definition in change.definitions:
            self.definitions.setdefault(definition.name, definition)
        for pair in change.removed:
            self.entries.pop(pair, None)
        for entry in change.entries:
            self.entries[entry.list, entry.value] = entry

    def entries_of(self, name: str) -> list[ListEntry]:
        """Return the entries of a list; raises `ModelError` where there is no such list."""
        self.definition(name)
        return [entry for entry in self.entries.values() if entry.list == name]

    def suppressions(self) -> dict[str, tuple[int, ListEntry]]:
        """Return the cap of each suppression and its entry, by the name that decisions give it."""
        return {
            f"{entry.list}/{entry_id(entry)}": (entry.cap_minor, entry)
            for entry in self.entries.values()
            if entry.cap_minor is not None
        }

    def definition(self, name: str) -> ListDefinition:
        """Return a list; raises `ModelError` where there is no such list."""
        if name not in self.definitions:
            listed = ", ".join(sorted(self.definitions)) or "none"
            raise ModelError(f"there is no list {name!r}; there are: {listed}. Give --kind and --field to make one")
        return self.definitions[name]


class ListChanges:
    """Makes changes on one cluster, from what was there when this object was made: if somebody else came since, none.

    Args:
        published: The cluster's versions.
        writer: Writes to the cluster.
        log: Reads ``lists``.
        settings: Settings of the cluster.
        traffic: Counts what an entry of an allow list would cover.

    Raises:
        ModelError: By every method: there is no such list or entry, or it may not be.
        DeliveryFailed: By every method that makes a change: nothing became active.
    """

    def __init__(
        self,
        published: PublishedVersions,
        writer: ControlWriter,
        log: ListLog,
        settings: Settings,
        traffic: Traffic,
    ) -> None:
        self._published, self._writer, self._log, self._settings = published, writer, log, settings
        self._traffic = traffic
        self.version, self._change = _active_change(published)
        self.contents = ListContents(log.changes(self._change))

    @classmethod
    def on(
        cls,
        bootstrap: str,
        settings: Settings,
        writer: ControlWriter | None = None,
        traffic: Traffic = lambda _: Counter(),
    ) -> Self:
        """Read a cluster; ``writer`` has the right to write on ``control``, None where nothing is changed."""
        writer, log = writer or ControlWriter(bootstrap, settings), ListLog(bootstrap, settings)
        return cls(PublishedVersions.on(bootstrap, settings), writer, log, settings, traffic)

    def add(
        self, definition: ListDefinition, entries: Sequence[ListEntry], author: ChangeAuthor, *, replacing: bool = False
    ) -> WrittenChange:
        """Add entries to a list, which is made where there is none.

        Args:
            definition: The list.
            entries: Entries; one whose value the list has takes its place. One that changes nothing is left as it is,
                and so is the count of what it has suppressed.
            author: Who, and why.
            replacing: Remove what the list has besides.
        """
        known = self.contents.definitions.get(definition.name)
        if known is None:
            self._check_new(definition)
        elif known != definition:
            raise ModelError(
                f"list {known.name!r} is a {known.kind} list of {known.field} ({known.match}): "
                "leave --kind, --field and --match out to add to it, or give another name"
            )
        entries = [self._checked(definition, entry) for entry in entries]
        given = {entry.value for entry in entries}
        if len(given) < len(entries):
            twice = Counter(entry.value for entry in entries).most_common(1)[0][0]
            raise ModelError(f"entry {twice!r} is given twice")
        replaced = self.contents.entries_of(known.name) if known is not None and replacing else []
        removed = [(each.list, each.value) for each in replaced if each.value not in given]
        new = [] if known is not None else [definition]
        entries = [entry for entry in entries if self.contents.entries.get((entry.list, entry.value)) != entry]
        if not (new or removed or entries):
            return WrittenChange(self.version, len(self.contents.entries), proposed=False)
        return self._write(ListChange(change="", definitions=new, removed=removed, entries=entries), author)

    def remove(
        self, name: str, values: Iterable[str], author: ChangeAuthor, *, expired_us: int | None = None
    ) -> WrittenChange:
        """Remove entries of a list: some values, and those that expired before a time."""
        definition, entries = self.contents.definition(name), self.contents.entries_of(name)
        wanted = {normal_value(definition, value) for value in values}
        if unknown := sorted(wanted - {entry.value for entry in entries}):
            raise ModelError(f"list {name!r} has no entry {unknown[0]!r}")
        if expired_us is not None:
            wanted |= {
                entry.value for entry in entries if entry.expires_us is not None and entry.expires_us < expired_us
            }
        if not wanted:
            raise ModelError(f"list {name!r} has nothing to remove")
        return self._write(ListChange(change="", removed=[(name, value) for value in sorted(wanted)]), author)

    def end(self, names: Iterable[str], author: ChangeAuthor) -> list[str]:
        """Remove suppressions, which nobody has to approve; return those that were there."""
        there = self.contents.suppressions()
        ended = {name: there[name][1] for name in names if name in there}
        if ended:
            removed = [(entry.list, entry.value) for entry in ended.values()]
            self._write(ListChange(change="", removed=removed), author, approves="cap")
        return [*ended]

    def approve(self, version: str, author: ChangeAuthor) -> WrittenChange:
        """Make a proposed change, on what the lists hold by now."""
        found = [(assessed, assessed.versions[0]) for assessed in self._proposals() if assessed.versions]
        matching = [pair for pair in found if len(version) >= 4 and pair[1].version.startswith(version)]
        if not matching:
            listed = ", ".join(reference.version for _, reference in found[-5:]) or "none"
            raise ModelError(f"no change {version!r} was proposed; there are: {listed}")
        assessed, reference = matching[-1]
        if any(event.figures.get("approves") == reference.version for event in self._published.history.activations):
            raise ModelError(f"change {reference.version} was approved already: propose it again")
        what = f"change {reference.version} of the lists"
        refuse_proposer(self._published.history, assessed, author.by, self._writer.key_id, what)
        change = read_manifest(list_payload(self._published, reference)).change
        parts = [part for part in self._log.changes(change) if part.change == change]
        definitions = {**{each.name: each for each in parts[0].definitions}, **self.contents.definitions}
        for proposed in parts[0].definitions:
            if (known := self.contents.definitions.get(proposed.name)) is None:
                self._check_new(proposed)
            elif known != proposed:
                raise ModelError(
                    f"list {known.name!r} has become a {known.kind} list of {known.field} ({known.match}) since change "
                    f"{reference.version} was proposed: propose it again with another name"
                )
        entries = [self._checked(definitions[entry.list], entry) for part in parts for entry in part.entries]
        new = [each for each in parts[0].definitions if each.name not in self.contents.definitions]
        merged = replace(parts[0], definitions=new, entries=entries, forgotten=0)
        return self._write(merged, author, approves=reference.version)

    def forget(self, field: str, values: Collection[str], author: ChangeAuthor) -> int:
        """Take values of a field out of all changes there ever were, and let workers read them again.

        Returns:
            How often a value was there, one of these, or another one whose workers nobody has let read again.
        """
        self._writer.records(map(part_record, self._log.without(field, values)))
        known = [event.figures.get(_FORGOTTEN) for event in self._published.history.activations]
        before = max((number for number in known if isinstance(number, int)), default=0)
        if count := (forgotten := self._log.forgotten()) - before:
            self.contents = ListContents(self._log.changes(self._change))
            self._write(ListChange(change=""), author, approves=_FORGOTTEN, **{_FORGOTTEN: forgotten})
        return count

    def used_in(self, name: str) -> list[Rule]:
        """Return the rules that read a list."""
        self.contents.definition(name)
        return [
            rule for rule in self._published.model_set.rules.rules if name in {read for read, _ in lists_read([rule])}
        ]

    def _proposals(self) -> Iterator[Assessment]:
        for event in self._published.history.events:
            if isinstance(event, Assessment) and event.outcome == PROPOSED:
                yield event

    def _check_new(self, definition: ListDefinition) -> None:
        check_definition(definition)
        if len(self.contents.definitions) >= MOST_LISTS:
            raise ModelError(f"there are {MOST_LISTS} lists already, and may not be more")
        if definition.field != RULE and definition.field not in TEXTS:
            raise ModelError(
                f"there is no text {definition.field!r}; declare it, or choose of {', '.join(sorted(TEXTS))}"
            )
        if definition.field in self._settings.dropped_names:
            raise ModelError(f"FRAUD_PIPELINE_DROPPED_FIELDS keeps {definition.field} out of profiled: let it in")

    def _checked(self, definition: ListDefinition, entry: ListEntry) -> ListEntry:
        value = normal_value(definition, entry.value)
        own = self.contents.entries.get((definition.name, value))
        if own is not None and replace(entry, list=own.list, value=value, added_us=own.added_us) == own:
            return own
        for name, text in (("owner", entry.owner), ("reason", entry.reason)):
            if not text.strip() or len(text) > LONGEST_SENTENCE or not text.isprintable():
                raise ModelError(
                    f"entry {value!r} needs its {name}, on one line of {LONGEST_SENTENCE:,} characters at most"
                )
        if entry.expires_us is not None and not 0 <= entry.expires_us < _LATEST_US:
            raise ModelError(f"entry {value!r} expires outside of the years 1970 to 9999")
        if definition.kind in (ALLOW, SUPPRESS):
            if entry.expires_us is None:
                raise ModelError(f"entry {value!r} of list {definition.name!r} needs its expiry")
            if entry.expires_us > entry.added_us + LONGEST_DAYS * US_PER_DAY:
                raise ModelError(f"entry {value!r} expires later than {LONGEST_DAYS} days from now: give it less time")
        if definition.field == RULE and value not in {rule.code for rule in self._published.model_set.rules.rules}:
            raise ModelError(f"the active set has no rule {value!r} to suppress")
        if (definition.kind == SUPPRESS) is not (entry.cap_minor is not None):
            raise ModelError(f"entry {value!r}: a suppression needs a cap, and nothing else has one")
        return replace(entry, list=definition.name, value=value)

    def _needs_approval(self, change: ListChange, after: ListContents) -> str:
        """Return why somebody else has to approve a change; empty where nobody has to."""
        for definition in (after.definition(name) for name in dict.fromkeys(entry.list for entry in change.entries)):
            if definition.kind == ALLOW:
                values = (entry.value for entry in change.entries if entry.list == definition.name)
                if (share := covered(definition, values, self._traffic(definition.field))) > WIDE_SHARE:
                    return f"its entries would cover {share:.1%} of the last week's transactions"
        return "FRAUD_PIPELINE_SECOND_APPROVAL is set" if self._settings.second_approval else ""

    def _write(self, change: ListChange, author: ChangeAuthor, *, approves: str = "", **beside: int) -> WrittenChange:
        """Write a change of the active lists, and its activation or its proposal; ``beside`` are further figures."""
        after = ListContents()
        after.definitions, after.entries = dict(self.contents.definitions), dict(self.contents.entries)
        after.add(change)
        if len(after.entries) > MOST_ENTRIES:
            raise ModelError(f"the lists would have {len(after.entries):,} entries, and may have {MOST_ENTRIES:,}")
        why = "" if approves else self._needs_approval(change, after)
        parts = change_parts(replace(change, before=self._change))
        self._writer.records([part_record(part) for part in parts])
        payload = manifest_payload(parts[0].change, self._change, len(after.entries))
        version = payload_digest(payload)[:VERSION_DIGITS]
        references = self._writer.contents([VersionToPublish(LISTS, version, payload)])
        figures = {
            "before": {LISTS: self.version},
            "lists": sorted({*(entry.list for entry in change.entries), *(name for name, _ in change.removed)}),
            "added": len(change.entries),
            "removed": len(change.removed),
            **({"approves": approves} if approves else {}),
            **beside,
        }
        step = ModelChange(LISTS, author.by, author.reason, figures)
        if why:
            self._writer.assess(PROPOSED, references, [], step)
        else:
            self._writer.activate(references, step)
            self.contents, self.version, self._change = after, version, parts[0].change
        return WrittenChange(version, len(after.entries), bool(why), why)


def activated_lists(published: PublishedVersions) -> list[tuple[int, VersionReference]]:
    """Return the versions of the lists that were activated, oldest first, each with the time in microseconds."""
    events = published.history.activations
    pairs = ((timestamp_us(event.activated_at), named) for event in events for named in event.versions)
    return [(activated_us, named) for activated_us, named in pairs if named.name == LISTS]


def list_payload(published: PublishedVersions, reference: VersionReference) -> bytes:
    """Return the content of a version of the lists; raises `ModelError` where it cannot be read."""
    content = published.content(reference)
    if content is None:
        raise ModelError(f"the content of {reference.name} {reference.version} cannot be read on topic models")
    return bytes(content.payload)


def active_lists(bootstrap: str, settings: Settings, published: PublishedVersions) -> Mapping[str, ListDefinition]:
    """Return the lists of a cluster, by name."""
    return ListContents(ListLog(bootstrap, settings).changes(_active_change(published)[1])).definitions


def _active_change(published: PublishedVersions) -> tuple[str, str]:
    """Return the newest version of the lists that was activated, and its change; empty where none was."""
    for _, reference in activated_lists(published)[-1:]:
        return reference.digest[:VERSION_DIGITS], read_manifest(list_payload(published, reference)).change
    return "", ""
