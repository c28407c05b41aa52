"""The changes of lists on ``lists``, and what the lists held behind each.

An activation names a change by a content on ``models``; the change names the one before it. Parts of changes that
nobody activated are skipped. A change is applied to what was loaded before, so that a small one costs little.
"""

import hashlib
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import closing
from enum import Enum
from functools import cached_property
from typing import Final

import msgspec
import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from pipeline.decision.lists import NO_LISTS, ListSet, read_manifest, values_in
from pipeline.kafka.cluster.log_offsets import Waiting, readable_range
from pipeline.kafka.readers.replay_reader import RangeReader
from pipeline.kafka.records.internal import OnRefused, TrustedRecords, not_counted
from pipeline.scoring.errors import ModelError, ModelIncomplete
from pipeline.scoring.payload import VERSION_DIGITS
from pipeline.settings import Settings
from schemas.errors import UNREADABLE
from schemas.messages import ListChange, VersionReference
from schemas.records import Output, Record
from schemas.topics import LISTS

LEAKS: Final = "The lists are those of today: what was listed since then leaks into these figures."
_PART_BYTES: Final = 500_000
"""Bytes from which another part begins."""
_MISSING_S: Final = 10.0
"""Time for which parts are waited for: Kafka orders nothing between topics."""
_LOOK_S: Final = 0.1
_KEPT_VERSIONS: Final = 8
"""Versions of a history that are kept, besides the empty one: the next one to build follows one of them."""


class ListTime(Enum):
    """The lists by which a history is judged."""

    THEN = "then"
    """Those of each transaction's time."""
    TODAY = "today"
    """The newest."""


class _PartHead(msgspec.Struct):
    """Fields that say where a part belongs."""

    change: str
    before: str = ""
    part: int = 0
    parts: int = 1
    forgotten: int = 0


_Parts = dict[str, dict[int, tuple[_PartHead, bytes]]]
"""Parts by their change and number: the newest record of each."""
_decode_head: Final = msgspec.json.Decoder(_PartHead).decode
_decode: Final = msgspec.json.Decoder(ListChange).decode
_encode: Final = msgspec.json.Encoder().encode


class ListLog:
    """Reads ``lists``; used from one thread.

    Args:
        on_refused: Counts records that are no changes.
        waiting: Called while no broker answers; may raise.
    """

    def __init__(
        self, bootstrap: str, settings: Settings, on_refused: OnRefused = not_counted, waiting: Waiting = None
    ) -> None:
        self._bootstrap, self._settings, self._waiting = bootstrap, settings, waiting
        self._topic = settings.topic(LISTS.name)
        self._trusted = TrustedRecords(settings, on_refused)
        self._built, self._end = NO_LISTS, 0
        """What was loaded last, and the offset up to which it was read."""
        self._lacking = dict[str, int]()
        """Changes that lack parts, and the offset up to which there were none."""

    def load(self, payload: bytes) -> ListSet:
        """Return the lists that the content of a version names.

        Parts are waited for where no other change lacks any; asked again, it looks at what came since.

        Raises:
            ModelIncomplete: Parts are missing.
            ModelError: It cannot be used.
        """
        change = read_manifest(payload).change
        deadline_s = time.monotonic() + (0.0 if self._lacking else _MISSING_S)
        while True:
            base, end = self._built, self._readable_end()
            if self._lacking.get(change) == end:
                raise self.lacks(change)
            parts = self._read(self._end, end)
            forgotten = any(head.forgotten for of_change in parts.values() for head, _ in of_change.values())
            chain = None if self._end and forgotten else _chain(parts, change, base.change)
            if chain is None and self._end:
                base, parts = NO_LISTS, self._read(0, end)
                chain = _chain(parts, change, base.change)
            if chain is not None:
                break
            if time.monotonic() >= deadline_s:
                self._lacking[change] = end
                raise self.lacks(change)
            if self._waiting is not None:
                self._waiting()
            time.sleep(_LOOK_S)
        self._lacking.pop(change, None)
        self._built, self._end = base.followed_by(payload, _decoded(chain)), end
        return self._built

    def changes(self, change: str) -> Iterator[ListChange]:
        """Yield the parts of the changes up to one, in order; raises `ModelError` where some are missing."""
        chain = _chain(self.parts(), change, "")
        if chain is None:
            raise self.lacks(change)
        yield from _decoded(chain)

    def forgotten(self) -> int:
        """Return how often values were taken out of parts because somebody has forgotten them."""
        return sum(head.forgotten for of_change in self.parts().values() for head, _ in of_change.values())

    def without(self, field: str, values: Collection[str]) -> Iterator[ListChange]:
        """Yield the parts that hold one of some values of a field, without it: of all changes, activated or not."""
        parts = [_decode(value) for of_change in self.parts().values() for _, value in of_change.values()]
        definitions = {each for part in parts for each in part.definitions if each.field == field}
        gone = {(each.name, held) for each in definitions for held in values_in(each, values)}
        for part in parts:
            entries = [entry for entry in part.entries if (entry.list, entry.value) not in gone]
            removed = [pair for pair in part.removed if pair not in gone]
            if (count := len(part.entries) + len(part.removed) - len(entries) - len(removed)) > 0:
                yield replace(part, entries=entries, removed=removed, forgotten=part.forgotten + count)

    def parts(self) -> _Parts:
        """Return the parts of all changes, activated or not."""
        return self._read(0, self._readable_end())

    def lacks(self, change: str) -> ModelIncomplete:
        """Return the error of a change of which parts are missing."""
        return ModelIncomplete(f"topic {self._topic} lacks parts of change {change[:12]} or of one before it")

    def _readable_end(self) -> int:
        return readable_range(self._bootstrap, self._settings, self._topic, 0, self._waiting).stop

    def _read(self, start: int, end: int) -> _Parts:
        found: _Parts = {}
        records = self._records(start, end) if start < end else ()
        for record, head in self._trusted.readable(records, _decode_head):
            found.setdefault(head.change, {})[head.part] = head, record.value or b""
        return found

    def _records(self, start: int, end: int) -> Iterable[Record]:
        refused = self._trusted.on_refused
        reader = RangeReader(self._bootstrap, self._settings, self._topic, 0, start, self._waiting, on_refused=refused)
        with closing(reader):
            while records := reader.read_to(end):
                yield from records


class ListHistory:
    """The versions of the lists in the order of their activation; used from one thread.

    Args:
        log: Reads ``lists``, once and where something was activated.
        activated: Versions, and when each was activated, in microseconds since 1970.
        payload: Returns the content of a version; raises `ModelError`.
    """

    def __init__(
        self,
        log: ListLog,
        activated: Sequence[tuple[int, VersionReference]] = (),
        payload: Callable[[VersionReference], bytes] = lambda _: b"",
    ) -> None:
        self._log, self._payload = log, payload
        self._references = [reference for _, reference in activated]
        # Clocks of several writers may differ a little; their order is that of the topic.
        self._since_us = np.maximum.accumulate(np.array([since_us for since_us, _ in activated], np.int64))
        self._built = {0: NO_LISTS}
        named = enumerate(("", *(reference.digest[:VERSION_DIGITS] for reference in self._references)))
        self._numbers = {version: number for number, version in named}

    def numbers(self, time_us: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the numbers of the versions that were active at some times; 0 stands for no lists."""
        return np.searchsorted(self._since_us, time_us, "right")

    def numbered(self, number: int) -> ListSet:
        """Return a version by its number; -1 is the newest. Raises `ModelError` where it cannot be read."""
        number %= len(self._references) + 1
        if number not in self._built:
            base = self._built[max(built for built in self._built if built < number)]
            payload = self._payload(self._references[number - 1])
            change = read_manifest(payload).change
            if (chain := _chain(self._parts, change, base.change)) is None:
                raise self._log.lacks(change)
            self._built[number] = base.followed_by(payload, _decoded(chain))
            if len(self._built) > _KEPT_VERSIONS + 1:
                del self._built[[*self._built][1]]
        return self._built[number]

    def named(self, version: str) -> ListSet:
        """Return a version by the name that decisions have; none of an empty name. Raises `ModelError`."""
        if version not in self._numbers:
            raise ModelError(f"version {version} of the lists was never activated on this cluster")
        return self.numbered(self._numbers[version])

    @cached_property
    def _parts(self) -> _Parts:
        return self._log.parts()


def change_parts(change: ListChange) -> list[ListChange]:
    """Return a change as the parts in which it is written, each with the digest of all."""
    parts, size, first = [], 0, 0
    for number, entry in enumerate(change.entries):
        size += len(_encode(entry))
        if size > _PART_BYTES:
            parts.append(change.entries[first : number + 1])
            size, first = 0, number + 1
    parts.append(change.entries[first:])
    made = [
        replace(change, change="", part=number, parts=len(parts), entries=entries)
        for number, entries in enumerate(parts)
    ]
    # What is removed and declared is so before anything is added.
    made[1:] = [replace(part, removed=[], definitions=[]) for part in made[1:]]
    digest = hashlib.sha256(b"".join(map(_encode, made))).hexdigest()
    return [replace(part, change=digest) for part in made]


def part_record(part: ListChange) -> Output:
    """Return the record of a part."""
    return Output(LISTS, f"{part.change}/{part.part}".encode(), _encode(part))


def _chain(parts: _Parts, change: str, known: str) -> list[list[bytes]] | None:
    """Return the parts of the changes behind one that is known, oldest first; None where any is missing."""
    found: list[list[bytes]] = []
    while change != known:
        of_change = parts.get(change, {})
        head = of_change[0][0] if 0 in of_change else None
        if head is None or not all(number in of_change for number in range(head.parts)) or len(found) > len(parts):
            return None
        found.append([of_change[number][1] for number in range(head.parts)])
        change = head.before
    return found[::-1]


def _decoded(chain: Iterable[Sequence[bytes]]) -> Iterator[ListChange]:
    """Yield the parts of changes; raises `ModelError` behind those that are not what their change names."""
    for values in chain:
        digest, forgotten, change = hashlib.sha256(), 0, ""
        for value in values:
            try:
                part = _decode(value)
            except UNREADABLE as error:
                raise ModelError(f"a part of the lists is damaged: {error}") from error
            digest.update(_encode(replace(part, change="")))
            forgotten, change = forgotten + part.forgotten, part.change
            yield part
        if not forgotten and digest.hexdigest() != change:
            raise ModelError(f"change {change[:12]} of the lists does not have the digest that it names")
