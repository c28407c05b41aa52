"""The state of a case as the replay of what people did with it, in the order of the log."""

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Final, NamedTuple

from schemas.codec import timestamp_us
from schemas.messages import CaseEvent
from schemas.times import US_PER_SECOND

CLAIM_LEASE_US: Final = 600 * US_PER_SECOND
"""Time for which a claim holds, by the broker's clock; a claim or a note of the holder begins it anew."""
CLAIMED, NOTED, CLOSED, SNOOZED, REOPENED, UNDONE = (
    "claimed", "noted", "closed", "snoozed", "reopened", "undone",
)  # fmt: skip
FORGOTTEN: Final = "forgotten"
"""Kind of an event of a card, and of no case: no console holds anything of the card, before it or behind it."""
EARLIEST_US: Final = 0
"""Start of 1970: a time that is earlier is none."""
LATEST_US: Final = timestamp_us(datetime(2200, 1, 1, tzinfo=UTC))
"""A time from here on is none."""
UNDOABLE: Final = frozenset((CLOSED, SNOOZED, REOPENED))
"""Kinds of events that can be undone."""


class RecordedEvent(NamedTuple):
    """An event with the time of its record."""

    event: CaseEvent
    broker_us: int
    """Microseconds since 1970, by the broker's clock."""


class ReplayedEvent(NamedTuple):
    """An event with what came of it."""

    event: CaseEvent
    broker_us: int
    counted: bool
    """False where it changed nothing: of a case that somebody else held or had closed, or of an unknown kind."""
    undone: bool
    renewed: bool = False
    """True for a claim of a case that its account held already."""


class Snooze(NamedTuple):
    """The sleep of a case."""

    until_us: int
    alerts: frozenset[str]
    """Alerts that sleep, so that another one wakes the case; none: all of them."""


class CaseState(NamedTuple):
    """State of a case after its events."""

    holder: str | None
    """Account that claimed it last, if nothing has ended that since; its lease may have ended."""
    holder_until_us: int
    snooze: Snooze | None
    closed_alerts: frozenset[str]
    history: tuple[ReplayedEvent, ...]
    """The oldest first, each event once."""

    def entry(self, event_id: str) -> ReplayedEvent | None:
        """Return what came of an event of this case."""
        return next((entry for entry in self.history if entry.event.event_id == event_id), None)


def replay(recorded: Iterable[RecordedEvent]) -> CaseState:
    """Return the state of one case after its events.

    The first record of an ``event_id`` counts. A case is not closed or snoozed by an account while the claim of another
    one holds, nor closed where all its alerts are closed already. What an event that is undone did to alerts is as if
    it had never been; the claim that it ended holds again where nobody has claimed the case since.

    Args:
        recorded: Events of the case, in the order of the log.
    """
    first: dict[str, RecordedEvent] = {}
    for each in recorded:
        first.setdefault(each.event.event_id, each)
    undone, undoing = _undone(first)
    holder: str | None = None
    until_us = 0
    snooze: Snooze | None = None
    ended: tuple[str, str | None, int] | None = None
    closed: frozenset[str] = frozenset()
    effective: dict[str, CaseEvent] = {}
    history: list[ReplayedEvent] = []
    for event, broker_us in first.values():
        counted, renewed = True, False
        held = holder if broker_us < until_us else None
        if event.kind == CLAIMED:
            counted, renewed = held in (None, event.by), held == event.by
            if counted:
                holder, until_us, ended = event.by, broker_us + CLAIM_LEASE_US, None
        elif event.kind == NOTED:
            if held == event.by:
                until_us = broker_us + CLAIM_LEASE_US
        elif event.kind == UNDONE:
            counted = event.event_id in undoing
            if counted and effective.pop(event.undoes or "", None) is not None:
                closed, snooze = _after(effective.values())
                if ended is not None and ended[0] == event.undoes:
                    _, holder, until_us = ended
        elif not _counts(event, held, closed):
            counted = False
        else:
            effective[event.event_id] = event
            closed, snooze = _after([event], closed)
            if event.kind != REOPENED:
                ended, holder, until_us = (event.event_id, holder, until_us), None, 0
        history.append(ReplayedEvent(event, broker_us, counted, event.event_id in undone, renewed))
    return CaseState(holder, until_us, snooze, closed, tuple(history))


def _counts(event: CaseEvent, held: str | None, closed: frozenset[str]) -> bool:
    """Return whether an event changes a case that an account holds, and of which some alerts are closed."""
    if event.kind == REOPENED:
        return True
    if held not in (None, event.by):
        return False
    if event.kind == CLOSED:
        return not event.alerts or not closed.issuperset(event.alerts)
    return event.kind == SNOOZED and event.until is not None


def _after(
    events: Iterable[CaseEvent], closed_before: frozenset[str] = frozenset()
) -> tuple[frozenset[str], Snooze | None]:
    """Return the alerts that are closed after events that count, and the case's sleep."""
    closed, snooze = set(closed_before), None
    for event in events:
        if event.kind == CLOSED:
            closed.update(event.alerts)
        elif event.kind == REOPENED:
            closed.difference_update(event.alerts or tuple(closed))
        snooze = None
        if event.kind == SNOOZED and event.until is not None:
            snooze = Snooze(timestamp_us(event.until), frozenset(event.alerts))
    return frozenset(closed), snooze


def _undone(first: dict[str, RecordedEvent]) -> tuple[set[str], set[str]]:
    """Return the ids of events that are undone, and of those that undo them."""
    undone: set[str] = set()
    undoing: set[str] = set()
    before: dict[str, str] = {}
    for event, _ in first.values():
        target = event.undoes
        if event.kind == UNDONE and target is not None and target not in undone and before.get(target) in UNDOABLE:
            undone.add(target)
            undoing.add(event.event_id)
        before[event.event_id] = event.kind
    return undone, undoing
