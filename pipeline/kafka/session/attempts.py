"""Plan how the next holder of a partition reads after the last one died; pure, over offsets.

Every committed offset carries a `Mark`. One that its holder did not release says that the holder died, perhaps of a
record that it was working on. The next holder writes an `Attempt` beside the same offset before it goes on. If it dies
as well, its successor takes smaller steps from there: batches as usual, then `STEP_RECORDS` records, then one. Who dies
often enough on one record alone leaves it to be quarantined. ``docs/decisions/0032-deaths.md`` gives the reasons.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final, NamedTuple

import msgspec

from pipeline.kafka.records.batch import Partition

STEP_RECORDS: Final = 64
"""Offsets of a step after a second death; a step of one record each follows a third."""
_USUAL: Final = 0
_Count = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]


class Attempt(msgspec.Struct, frozen=True, omit_defaults=True):
    """Work that began at a committed offset."""

    end: _Count
    """Offset behind the last record that it may have come to."""
    size: _Count = _USUAL
    """Offsets of a step; 0: batches as usual."""
    deaths: _Count = 0
    """Processes that died of this very step before; counted for steps of one record only."""


class Mark(msgspec.Struct, frozen=True, omit_defaults=True, tag_field="v", tag=1):
    """Metadata of a committed offset, version 1."""

    commit: str = ""
    """The transaction that committed it: unique to it, made of the instance, the session and a number."""
    released: bool = False
    """The holder gave the partition up in order, behind its last commit."""
    attempt: Attempt | None = None
    state: Any = None
    """The part of a partition's state that no replay of its log gives again (`StateHandler.state_beside`)."""


class Committed(NamedTuple):
    """A committed offset, 0 where there is none, and its mark."""

    offset: int
    mark: Mark | None
    known: bool = True
    """True where an offset is committed."""


class CarefulStep(NamedTuple):
    """Offsets from ``start`` up to ``attempt.end`` of one partition of a topic, to be worked on alone."""

    partition: Partition
    start: int
    attempt: Attempt


write_mark = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Mark).decode


def read_mark(metadata: str | None) -> Mark | None:
    """Return the mark in the metadata of a committed offset, None where somebody else has written it."""
    if not metadata:
        return None
    try:
        return _decode(metadata)
    except (msgspec.DecodeError, RecursionError):
        return None


def holder(mark: Mark | None) -> str:
    """Return the instance that committed last and has not released the partition since; "" where no mark says so.

    >>> holder(Mark(commit="worker-2/9f3c/17"))
    'worker-2'
    """
    if mark is None or mark.released or mark.commit.count("/") < 2:
        return ""
    return mark.commit.rsplit("/", 2)[0]


def next_attempt(committed: Committed, log_end: int, most: int) -> Attempt | None:
    """Decide how the next holder begins, with usual batches of ``most`` records.

    Returns:
        None after an orderly release, or where there is nothing that a process can have died of.
    """
    offset, mark, known = committed
    if offset >= log_end or (mark is None and known) or (mark is not None and mark.released):
        return None
    died = mark.attempt if mark is not None else None
    if died is None:
        return Attempt(min(log_end, offset + most))
    end = min(log_end, died.end)
    if end <= offset:
        return None
    if died.size == 1:
        return Attempt(end, 1, died.deaths + 1)
    if died.size == _USUAL and end - offset > 1:
        return Attempt(end, min(STEP_RECORDS, end - offset))
    return Attempt(end, 1)


@dataclass(frozen=True, slots=True)
class _Zone:
    """Offsets that are worked through in steps; ``deaths`` are those of its first step."""

    start: int
    end: int
    size: int
    deaths: int


class Attempts:
    """The attempts of one session, by partition of a topic."""

    def __init__(self, most: int) -> None:
        """Begin without partitions; ``most`` records are in a usual batch."""
        self._most = most
        self._usual: dict[Partition, tuple[int, Attempt | None]] = {}
        """Attempts with usual batches that no mark names yet, with their offsets; None where nobody has died before."""
        self._zones: dict[Partition, _Zone] = {}
        self._standing: dict[Partition, tuple[int, Attempt | None]] = {}
        """Attempts that marks name, with the offsets that these are at."""

    @property
    def active(self) -> bool:
        """Return whether a mark or a step comes before usual reading."""
        return bool(self._usual or self._zones)

    def assigned(self, partition: Partition, committed: Committed, log_end: int) -> Attempt | None:
        """Take a partition in.

        The mark of a holder that released it must not stay: who dies before its first commit would seem to have
        released the partition too.

        Args:
            partition: Full topic name and number.
            committed: Its committed offset and mark.
            log_end: Offset behind the last record that can be read; not looked at where the mark is released, or
                absent.

        Returns:
            The attempt; None where the last holder released the partition, or where there is nothing that it can have
            died of.
        """
        if committed.known and (committed.mark is None or committed.mark.released):
            self._usual[partition] = (committed.offset, None)
            return None
        attempt = next_attempt(committed, log_end, self._most)
        if attempt is None:
            if committed.known:
                # There is nothing to read. Who takes over from this session must find its name, not the one before.
                self._usual[partition] = (committed.offset, None)
            return None
        if attempt.size == _USUAL:
            self._usual[partition] = (committed.offset, attempt)
        else:
            self._zones[partition] = _Zone(committed.offset, attempt.end, attempt.size, attempt.deaths)
        return attempt

    def forget(self, partition: Partition) -> None:
        """The partition is held no more."""
        for known in (self._usual, self._zones, self._standing):
            known.pop(partition, None)

    @property
    def unmarked(self) -> Mapping[Partition, tuple[int, Attempt | None]]:
        """Marks to be written before records are read as usual: attempts, or only the holder of the partition."""
        return self._usual

    def begin_usual(self) -> None:
        """All of `unmarked` are named by marks now."""
        self._standing |= self._usual
        self._usual.clear()

    def next_step(self, positions: Mapping[Partition, int]) -> CarefulStep | None:
        """Return the next step from where reading stands; None when none is left."""
        for partition in sorted(self._zones):
            zone, start = self._zones[partition], positions.get(partition, -1)
            if zone.start <= start < zone.end:
                deaths = zone.deaths if start == zone.start else 0
                return CarefulStep(partition, start, Attempt(min(start + zone.size, zone.end), zone.size, deaths))
            del self._zones[partition]
        return None

    def begin(self, step: CarefulStep) -> None:
        """A mark names the step now."""
        self._standing[step.partition] = (step.start, step.attempt)

    def give_up(self, partition: Partition) -> None:
        """Read on as usual where a step cannot be read."""
        self._zones.pop(partition, None)

    def attempt_at(self, partition: Partition, offset: int) -> Attempt | None:
        """Return what a mark beside ``offset`` goes on to say: a commit that moves nothing ends no attempt."""
        begun, attempt = self._standing.get(partition, (-1, None))
        return attempt if begun == offset else None
