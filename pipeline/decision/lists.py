"""Block, allow and watch lists, and suppressions: what they hold, and what they overrule. One content for all.

The order is: block lists, suppressions, allow lists, rules, score. An entry holds for a transaction whose own event
time lies before its expiry, whatever a clock shows.
"""

import hashlib
import ipaddress
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import repeat
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from pipeline.decision.rules import MOST_HITS, RuleSet
from pipeline.expressions.trees import Node
from pipeline.scoring.errors import ModelError
from pipeline.scoring.payload import VERSION_DIGITS, decode_payload, encode_payload, payload_digest
from schemas.messages import LIST_NAME, ListChange, ListDefinition, ListEntry

LISTS: Final = "lists"
"""Name of the lists on ``models`` and ``control``."""
BLOCK, SUPPRESS, ALLOW, WATCH = LIST_KINDS = ("block", "suppress", "allow", "watch")
TEXT, PREFIX, CIDR = MATCHES = ("text", "prefix", "cidr")
RULE: Final = "rule"
"""Field of suppressions of rules."""
MOST_ENTRIES: Final = 1_000_000
MOST_LISTS: Final = 100
_NEVER_US: Final = 2**63 - 1
_MAPPED: Final = ipaddress.IPv6Network("::ffff:0:0/96")
"""Addresses of IPv4, written as those of IPv6."""
_MOST_ADDRESSES: Final = 100_000
"""Texts whose networks and prefixes are remembered."""

Texts = Mapping[str, Sequence[str | None]]


class ListManifest(msgspec.Struct, frozen=True, kw_only=True):
    """The content of a version of the lists on ``models``: the change of ``lists`` behind which it stands."""

    kind: str = LISTS
    change: str
    before: str
    entries: int
    """Number of entries of all lists."""


_MANIFEST: Final = msgspec.json.Decoder(ListManifest)


def read_manifest(payload: bytes) -> ListManifest:
    """Read the content of a version; raises `ModelError` when it is damaged."""
    return decode_payload(payload, _MANIFEST, "a version of the lists")


class Listed(NamedTuple):
    """Lists that name a transaction, and what they overrule."""

    names: tuple[str, ...] = ()
    """Lists with an entry that holds."""
    overruled: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """What would have raised an alert, by what overruled it."""


UNLISTED: Final = Listed()


def unlisted(n: int) -> NDArray[np.object_]:
    """Return what lists say of n transactions where there are none."""
    found = np.empty(n, np.object_)
    found.fill(UNLISTED)
    return found


class ListOutcome(NamedTuple):
    """Changes that lists make in the decisions of n transactions."""

    blocked: NDArray[np.bool_] | None
    """Block lists select them, whatever else holds; None: no one."""
    quiet: NDArray[np.bool_] | None
    """Neither score nor rules select them; None: no one."""
    left: NDArray[np.object_]
    """Hits without those of active rules that a list overrules, or whose alert a block list raises already."""
    listed: NDArray[np.object_]
    """`Listed` of each."""


class _Entries:
    """The entries of one list: until when each holds."""

    def __init__(self, definition: ListDefinition) -> None:
        self.definition = definition
        self.until_us: dict[str, int] = {}
        self.ids: dict[str | None, str] = {}
        """Of suppressions: ids of the entries, by value."""
        self._lengths: dict[Any, dict[Any, int]] | None = None
        """Entries of networks and prefixes by their length."""
        self._known: dict[str | None, int] = {}

    def copy(self) -> "_Entries":
        made = _Entries(self.definition)
        made.until_us, made.ids = dict(self.until_us), dict(self.ids)
        return made

    def name_of(self, value: str | None) -> str:
        """Return the name by which decisions name an entry: of a suppression with its id."""
        return f"{self.definition.name}/{self.ids[value]}" if value in self.ids else self.definition.name

    def holds(self, texts: Sequence[str | None], event_time_us: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return where an entry holds, shape (n,)."""
        find: Callable[..., Any] = self.until_us.get if self.definition.match == TEXT else self._until_us
        held: NDArray[np.bool_] = event_time_us < np.fromiter(map(find, texts, repeat(0)), np.int64, len(texts))
        return held

    def _until_us(self, text: str | None, none: int) -> int:
        if (found := self._known.get(text)) is None:
            if len(self._known) >= _MOST_ADDRESSES:
                self._known.clear()
            found = self._known[text] = (
                none if text is None else max(map(self._at_length, *self.parts(text)), default=none)
            )
        return found

    def _at_length(self, length: Any, part: Any) -> int:
        return self._by_length()[length].get(part, 0)

    def parts(self, text: str) -> tuple[list[Any], list[Any]]:
        """Return the lengths that entries have, and the part of a text of each."""
        lengths = self._by_length()
        if self.definition.match == PREFIX:
            return [*lengths], [text[:length] for length in lengths]
        try:
            address = ipaddress.ip_address(text)
        except ValueError:
            return [], []
        if address.version == 6 and address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        own = [length for length in lengths if length[0] == address.version]
        return own, [int(address) >> (address.max_prefixlen - bits) for _, bits in own]

    def check(self) -> None:
        """Raise `ModelError` where an entry is no network."""
        try:
            if self.definition.match == CIDR:
                self._by_length()
        except ValueError as error:
            raise ModelError(f"list {self.definition.name!r} has an entry that is none: {error}") from error

    def _by_length(self) -> dict[Any, dict[Any, int]]:
        if self._lengths is None:
            made: dict[Any, dict[Any, int]] = {}
            for value, until_us in self.until_us.items():
                length, part = _length(self.definition.match, value)
                made.setdefault(length, {})[part] = until_us
            self._lengths = made
        return self._lengths


class ListSet:
    """The lists of a cluster at one version. Immutable."""

    def __init__(self) -> None:
        self.version = self.change = ""
        self._lists: dict[str, _Entries] = {}
        self._forgotten = 0
        """Entries and removals that `forget` has taken out of the changes: so many may be missing."""

    @property
    def definitions(self) -> dict[str, ListDefinition]:
        """The lists, by name."""
        return {name: entries.definition for name, entries in self._lists.items()}

    def kind(self, name: str) -> str:
        """Return the kind of a list, by its name or the name by which decisions name its entry."""
        return self._lists[name if name in self._lists else name.rpartition("/")[0]].definition.kind

    def __len__(self) -> int:
        return sum(len(entries.until_us) for entries in self._lists.values())

    def followed_by(self, payload: bytes, changes: Iterable[ListChange]) -> "ListSet":
        """Return the lists behind further changes, whose last one the content of a version names."""
        made = ListSet()
        manifest = read_manifest(payload)
        made.version, made.change = payload_digest(payload)[:VERSION_DIGITS], manifest.change
        made._lists, made._forgotten = dict(self._lists), self._forgotten
        own: set[str] = set()

        def entries_of(name: str) -> _Entries:
            if name not in made._lists:
                raise ModelError(f"an entry is of a list {name!r}, which there is not")
            if name not in own:
                own.add(name)
                made._lists[name] = made._lists[name].copy()
            return made._lists[name]

        for change in changes:
            made._forgotten += change.forgotten
            for definition in change.definitions:
                check_definition(definition)
                made._lists.setdefault(definition.name, _Entries(definition))
            for name, value in change.removed:
                entries = entries_of(name)
                entries.until_us.pop(value, None)
                entries.ids.pop(value, None)
            for entry in change.entries:
                entries = entries_of(entry.list)
                entries.until_us[entry.value] = _NEVER_US if entry.expires_us is None else entry.expires_us
                if entries.definition.kind == SUPPRESS:
                    entries.ids[entry.value] = entry_id(entry)
        for entries in (made._lists[name] for name in own):
            entries.check()
        if len(made) != manifest.entries and not made._forgotten:
            raise ModelError(f"the lists have {len(made):,} entries, and should have {manifest.entries:,}")
        return made

    def texts(self, rules: RuleSet) -> tuple[str, ...]:
        """Return the names of the texts that lists and rules read."""
        own = {entries.definition.field for entries in self._lists.values()} - {RULE}
        return tuple(sorted({*rules.texts, *own}))

    def truth(
        self, test: Node, text: Callable[[str], Sequence[str | None]], event_time_us: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """Return the truth of a rule's test of a list: 1, 0, or NaN where the field is missing.

        A list that there is not is empty.

        Args:
            test: The test.
            text: Returns a column of texts by its name, shape (n,).
            event_time_us: Shape (n,).
        """
        _, (_, field), (_, name) = test
        column = text(field)
        missing = np.fromiter((text is None for text in column), np.bool_, len(column))
        found = self._lists[name].holds(column, event_time_us) if name in self._lists else np.zeros(len(column))
        return np.where(missing, np.nan, found)

    def apply(
        self,
        rules: RuleSet,
        hits: NDArray[np.object_],
        by_score: NDArray[np.bool_],
        texts: Texts,
        event_time_us: NDArray[np.int64],
    ) -> ListOutcome:
        """Return what the lists change in the decisions of n transactions.

        Args:
            rules: The rules that were evaluated.
            hits: Numbers of the rules that hit each, as `RuleSet.hits` returns them.
            by_score: Where the score reaches the threshold.
            texts: The texts of `texts`, shape (n,) each.
            event_time_us: Shape (n,).
        """
        n = len(hits)
        blocked, quiet, some = np.zeros((3, n), np.bool_)
        left, listed = hits.copy(), unlisted(n)
        held: list[tuple[_Entries, NDArray[np.bool_]]] = []
        of_rules = []
        for entries in self._ordered():
            if entries.definition.field == RULE:
                of_rules.append(entries)
                some |= rules.alerts(hits)
            elif (holds := entries.holds(texts[entries.definition.field], event_time_us)).any():
                held.append((entries, holds))
                some |= holds
        for row in np.flatnonzero(some).tolist():
            codes = {rules.evaluated[number].code: number for number in hits[row] if number < rules.alerting}
            found = [entries for entries, holds in held if holds[row]]
            named: dict[str, list[str]] = {kind: [] for kind in LIST_KINDS}
            for entries in found:
                named[entries.definition.kind].append(entries.name_of(texts[entries.definition.field][row]))
            overruled: dict[str, list[str]] = {}
            if named[BLOCK]:
                blocked[row], left[row] = True, ()
                overruled[named[BLOCK][0]] = [*named[SUPPRESS], *named[ALLOW]]
            else:
                for entries in of_rules if not named[SUPPRESS] else ():
                    for code in [code for code in codes if event_time_us[row] < entries.until_us.get(code, 0)]:
                        overruled.setdefault(entries.name_of(code), []).append(code)
                        del codes[code]
                if by := [*named[SUPPRESS], *named[ALLOW]]:
                    overruled[by[0]] = [*(["score"] if by_score[row] else []), *codes]
                quiet[row], left[row] = bool(by), () if by else tuple(codes.values())
            parts = tuple((by, tuple(what[:MOST_HITS])) for by, what in overruled.items() if what)
            if found or parts:
                listed[row] = Listed(tuple(entries.definition.name for entries in found[:MOST_HITS]), parts)
        return ListOutcome(blocked, quiet, left, listed)

    def _ordered(self) -> list[_Entries]:
        """Return the lists that have entries, in the order in which they count."""
        filled = [entries for entries in self._lists.values() if entries.until_us]
        return sorted(filled, key=lambda entries: (LIST_KINDS.index(entries.definition.kind), entries.definition.name))

    def blocking(self, names: Iterable[str]) -> ListDefinition | None:
        """Return the first block list among the names of lists."""
        found = (self._lists[name].definition for name in names if name in self._lists)
        return next((definition for definition in found if definition.kind == BLOCK), None)


NO_LISTS: Final = ListSet()
"""The lists until somebody writes one: decisions name none."""


def covered(definition: ListDefinition, values: Iterable[str], traffic: Mapping[str | None, int]) -> float:
    """Return the share of transactions that entries of a list would cover together.

    Args:
        definition: The list.
        values: Values of the entries.
        traffic: Number of transactions by the text of the list's field.
    """
    entries, texts = _Entries(definition), [*traffic]
    entries.until_us = dict.fromkeys(values, 1)
    counts = np.fromiter(traffic.values(), np.int64, len(texts))
    held = entries.holds(texts, np.zeros(len(texts), np.int64))
    return float(counts[held].sum() / max(counts.sum(), 1))


def entry_id(entry: ListEntry) -> str:
    """Return the id by which decisions name an entry: another one where it is written again."""
    return hashlib.sha256(f"{entry.list}\0{entry.value}\0{entry.added_us}".encode()).hexdigest()[:8]


def manifest_payload(change: str, before: str, entries: int) -> bytes:
    """Return the content of a version of the lists."""
    return encode_payload(ListManifest(change=change, before=before, entries=entries))


def refuse_unknown_lists(read: Collection[tuple[str, str]], lists: Callable[[], Mapping[str, ListDefinition]]) -> None:
    """Raise `ModelError` where rules read a list that there is not, or look for another field there.

    Args:
        read: Names of the lists that rules read, each with the field that they look for there.
        lists: Returns the lists that there are, by name; called where rules read any.
    """
    there = lists() if read else {}
    for name, field in sorted(read):
        if name not in there:
            raise ModelError(f"rules read the list {name!r}, which there is not: make it with `lists add` first")
        if there[name].field != field:
            raise ModelError(f"rules look for {field} in list {name!r}, which is of {there[name].field}")


def check_definition(definition: ListDefinition) -> None:
    """Raise `ModelError` for a list that cannot be."""
    if not re.fullmatch(LIST_NAME, definition.name):
        raise ModelError(
            f"the name of a list is a lower-case letter and up to 63 letters, digits, _ and -, not {definition.name!r}"
        )
    for name, value, choices in (("kind", definition.kind, LIST_KINDS), ("match", definition.match, MATCHES)):
        if value not in choices:
            raise ModelError(f"the {name} of list {definition.name!r} is one of {', '.join(choices)}, not {value!r}")
    if definition.field == RULE and (definition.kind, definition.match) != (SUPPRESS, TEXT):
        raise ModelError(f"list {definition.name!r} is of rules: it can only suppress them, by their codes")
    if definition.kind == SUPPRESS and definition.match != TEXT:
        raise ModelError(f"list {definition.name!r} suppresses, and counts what each entry hides: use the match text")


def normal_value(definition: ListDefinition, value: str) -> str:
    """Return the value of an entry as the list holds it; raises `ModelError` where it cannot hold it."""
    if definition.match != CIDR:
        if not value or len(value) > 256 or value != value.strip() or not value.isprintable():
            raise ModelError(f"an entry has 1 to 256 characters on one line, not {value!r}")
        return value
    try:
        network = ipaddress.ip_network(value, strict=False)
        if isinstance(network, ipaddress.IPv6Network) and network.subnet_of(_MAPPED):
            network = ipaddress.ip_network((network.network_address.packed[-4:], network.prefixlen - 96))
        return str(network)
    except ValueError as error:
        raise ModelError(f"{value!r} is no network such as 192.0.2.0/24: {error}") from None


def values_in(definition: ListDefinition, values: Iterable[str]) -> Iterator[str]:
    """Yield values as the list holds them, without those that it cannot hold."""
    for value in values:
        with suppress(ModelError):
            yield normal_value(definition, value)


def _length(match: str, value: str) -> tuple[Any, Any]:
    if match == PREFIX:
        return len(value), value
    network = ipaddress.ip_network(value)
    bits = network.max_prefixlen - network.prefixlen
    return (network.version, network.prefixlen), int(network.network_address) >> bits
