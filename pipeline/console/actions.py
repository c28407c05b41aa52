"""Actions on cases: the events and labels of each in one Kafka transaction, then read back."""

import logging
import threading
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any, Final, Literal, NamedTuple

from pipeline.console.action_records import (
    ActionRefused,
    derived_id,
    event_record,
    label_record,
    new_labels,
    undoing_label,
)
from pipeline.console.case_events import CLAIMED, CLOSED, LATEST_US, NOTED, REOPENED, SNOOZED, UNDOABLE, UNDONE
from pipeline.console.queries import CaseSummary, KnownTransaction
from pipeline.console.store import CaseStore
from pipeline.console.views import QueueFilter
from pipeline.kafka.cluster.clients import admin_client
from pipeline.kafka.cluster.errors import ClusterUnreachable, FailedRequest, TopicError
from pipeline.kafka.cluster.log_offsets import partition_numbers
from pipeline.kafka.readers.replay_reader import readable_ends
from pipeline.kafka.readers.simulated_clock import has_own_clock, if_simulated
from pipeline.kafka.writers.producer import DeliveryFailed, TopicRecord, TransactionalProducer
from pipeline.settings import Settings
from schemas.codec import timestamp_us
from schemas.messages import CaseEvent, Label
from schemas.times import US_PER_SECOND
from schemas.topics import CASE_EVENTS

log = logging.getLogger(__name__)

READ_BACK_S: Final = 20.0
"""Longest wait until this console's reader has read what was written."""
MOST_WAITING: Final = 16
"""Actions that wait for the brokers at a time: each takes a thread, of which reading needs some, too."""
_ATTEMPTS: Final = 3
_PASSED: Final = 1_000
"""Cases that a claim of the next one passes over at most."""


class ActionPending(ActionRefused):
    """An action that was written and not read back; a repetition finds it, and writes nothing twice."""


class ShownAlerts(NamedTuple):
    """The open alerts of a case, as a row of the queue shows them."""

    alerts: int
    """Number of them."""
    last_raised_us: int
    """Time at which the newest one was raised, in microseconds since 1970."""


NONE_SHOWN: Final[Mapping[str, ShownAlerts]] = MappingProxyType({})
"""Nothing is said of what was shown."""


class CaseActions:
    """Actions of accounts; for any threads, one transaction at a time.

    A repeated ``event_id`` writes nothing and returns what it did. Who may do what is for the caller to check. Every
    method raises `ActionRefused` where an action cannot be done, and `DeliveryFailed` where it could not be written.

    Args:
        bootstrap: Addresses of brokers.
        settings: Settings of the console.
        store: The database, which a reader keeps up to date.
        instance: Name of this console, in its transactional id: another console of the same name ends this one's.
    """

    def __init__(self, bootstrap: str, settings: Settings, store: CaseStore, instance: str) -> None:
        self._bootstrap, self._settings, self._store = bootstrap, settings, store
        self._transactional_id = settings.topic(f"console-{instance}")
        self._writing, self._waiting = threading.Lock(), threading.BoundedSemaphore(MOST_WAITING)
        self._producer: TransactionalProducer | None = None
        self._own_clock: bool | None = None

    def claim(self, case_id: str, by: str, event_id: str) -> None:
        """Claim a case, or renew the claim; it holds once it is read back as the first."""
        if not self._done([event_id], [case_id]):
            self._write([_event(self._free(case_id, by), by, event_id, CLAIMED)])
        self._free(case_id, by)
        if self._case(case_id).row.holder != by:
            raise ActionRefused("The claim has ended already: load the case again.")

    def claim_next(self, wanted: QueueFilter, by: str, event_id: str) -> str | None:
        """Claim the first case of a queue that nobody holds; try the next one where somebody else was first.

        Returns:
            The case, which no other call gets while the lease lasts; None where the queue has none left.
        """
        passed: set[str] = set()
        attempt = 0
        while len(passed) < _PASSED:
            own_id = derived_id(event_id, str(attempt))
            entry = self._store.event(own_id)
            case_id = self._store.next_case(wanted, _now_us(), passed) if entry is None else entry.event.case_id
            if case_id is None:
                break
            if entry is None:
                try:
                    self._write([_event(self._case(case_id), by, own_id, CLAIMED)])
                except ActionPending:
                    raise
                except ActionRefused as error:
                    log.warning("a case that cannot be claimed is passed over: %s", error)
                    passed.add(case_id)
                    continue
            attempt += 1
            entry = self._store.event(own_id)
            if entry is not None and entry.counted and not entry.renewed:
                return case_id
            passed.add(case_id)
        return None

    def label(
        self,
        case_id: str,
        by: str,
        event_id: str,
        outcome: Literal["fraud", "legitimate"],
        transactions: Sequence[str],
        note: str = "",
        alerts: Sequence[str] = (),
    ) -> CaseEvent:
        """Label transactions of a case's card, and close those of its alerts that were shown.

        Args:
            case_id: The case.
            by: Account that answers.
            event_id: Identifier of the action.
            outcome: What the transactions are.
            transactions: Their identifiers; none: those of the open alerts.
            note: Text for the next person, on the labels too.
            alerts: Alerts that were shown to who answers; others stay open. None: all open ones.
        """
        if done := self._done([event_id], [case_id]):
            return self._counted(done, by)[0]
        case = self._free(case_id, by)
        if not case.open_alerts:
            raise ActionRefused("The case is closed: reopen it, or undo what closed it.")
        answered = {name: about for name, about in case.open_alerts.items() if not alerts or name in set(alerts)}
        if not answered:
            raise ActionRefused("The alerts that were shown are closed, and others have come: load the case again.")
        known: dict[str, KnownTransaction] = {}
        for name in transactions or answered.values():
            transaction = self._store.transaction(name, case.row.card_id)
            if transaction is None:
                raise ActionRefused(f"The card of this case has no transaction {name}: load the case again.")
            known[name] = transaction
        if case.row.blind and not known.keys() >= {*answered.values()}:
            raise ActionRefused("Label every alert of this case: it is part of an audit.")
        label_ids = [derived_id(event_id, name) for name in known]
        event = _event(case, by, event_id, CLOSED, note=note or None, alerts=sorted(answered), labels=label_ids)
        now = self._now()
        return self._counted(self._write([event], new_labels(known, outcome, event, now), now), by)[0]

    def close(
        self,
        case_ids: Sequence[str],
        by: str,
        event_id: str,
        reason: str,
        shown: Mapping[str, ShownAlerts] = NONE_SHOWN,
    ) -> list[CaseEvent]:
        """Close cases without labels; return what closed them.

        Those that are closed, held by somebody else, or blind stay as they are.

        Args:
            case_ids: The cases.
            by: Account that closes them.
            event_id: Identifier of the action.
            reason: Why, for the next person.
            shown: What was shown by case; one that has got another alert since then stays open. Without an entry a
                case is closed as it is.
        """
        ids = {case_id: derived_id(event_id, case_id) for case_id in dict.fromkeys(case_ids)}
        if done := self._done(ids.values(), case_ids):
            return self._counted(done, by)
        if not reason.strip():
            raise ActionRefused("Say why the cases are closed.")
        cases = [
            case
            for case in map(self._case, ids)
            if case.open_alerts
            and case.row.holder in (None, by)
            and not case.row.blind
            and not _has_more(case, shown.get(case.row.case_id))
        ]
        if not cases:
            raise ActionRefused(
                "None of these cases can be closed: they are closed, held by somebody else, blind, or have new alerts."
            )
        events = [
            _event(case, by, ids[case.row.case_id], CLOSED, note=reason, alerts=sorted(case.open_alerts))
            for case in cases
        ]
        return self._counted(self._write(events), by)

    def snooze(self, case_id: str, by: str, event_id: str, until: datetime, note: str = "") -> CaseEvent:
        """Take a case out of the queue until a time, or until it gets another alert."""
        if done := self._done([event_id], [case_id]):
            return self._counted(done, by)[0]
        case = self._free(case_id, by)
        if until <= datetime.now(UTC):
            raise ActionRefused("The time until which the case sleeps has passed: name a later one.")
        if timestamp_us(until) >= LATEST_US:
            raise ActionRefused("The case would sleep beyond the year 2199: name an earlier time.")
        if not case.open_alerts:
            raise ActionRefused("The case is closed, and need not sleep.")
        event = _event(case, by, event_id, SNOOZED, until=until, note=note or None, alerts=sorted(case.open_alerts))
        return self._counted(self._write([event]), by)[0]

    def note(self, case_id: str, by: str, event_id: str, text: str) -> CaseEvent:
        """Add a note to a case, whoever holds it; a note of its holder renews the lease."""
        if done := self._done([event_id], [case_id]):
            return done[0]
        if not text.strip():
            raise ActionRefused("The note is empty: write something.")
        return self._write([_event(self._case(case_id), by, event_id, NOTED, note=text)])[0]

    def reopen(self, case_id: str, by: str, event_id: str) -> CaseEvent:
        """Open all alerts of a case again, or wake it; its labels stay."""
        if done := self._done([event_id], [case_id]):
            return done[0]
        case = self._case(case_id)
        if not case.closed_alerts and case.row.status != "snoozed":
            raise ActionRefused("The case is open already.")
        return self._write([_event(case, by, event_id, REOPENED, alerts=sorted(case.closed_alerts))])[0]

    def withdraw(self, case_id: str, by: str, event_id: str, undoes: str) -> CaseEvent:
        """Undo an action on a case: its alerts are open again, and newer labels say what their source said before.

        Args:
            case_id: The case.
            by: Account that undoes it.
            event_id: Identifier of this action.
            undoes: Identifier of the action that is undone. It is refused where a newer label has changed its labels.
        """
        if done := self._done([event_id], [case_id]):
            return done[0]
        case = self._free(case_id, by)
        target = next((entry for entry in case.history if entry.event.event_id == undoes), None)
        if target is None or target.undone or not target.counted or target.event.kind not in UNDOABLE:
            raise ActionRefused("There is nothing to undo: it is undone already, or cannot be.")
        own = set(target.event.labels)
        undone = self._store.labels_by_id(case.row.card_id, own)
        if len(undone) < len(own):
            raise ActionPending("The labels of that action have not been read yet: try again in a moment.")
        label_ids = [derived_id(event_id, label.transaction_id) for label in undone.values()]
        event = _event(case, by, event_id, UNDONE, undoes=undoes, alerts=target.event.alerts, labels=label_ids)
        now = self._now()
        labels = [
            undoing_label(label, self._store.labels_of(label.transaction_id, label.card_id), own, event, now)
            for label in undone.values()
        ]
        return self._write([event], labels, now)[0]

    # --- What is known -----------------------------------------------------------------------------------------

    def _done(self, event_ids: Iterable[str], case_ids: Collection[str]) -> list[CaseEvent]:
        """Return what an action has written before; raises ActionRefused where that was on another case."""
        found = [entry.event for event_id in event_ids if (entry := self._store.event(event_id)) is not None]
        if any(event.case_id not in case_ids for event in found):
            raise ActionRefused("This form was sent for another case: load the page again.")
        return found

    def _counted(self, events: Sequence[CaseEvent], by: str) -> list[CaseEvent]:
        """Return the events whose cases are as the account left them.

        Raises:
            ActionRefused: There is none: on the log, somebody else was first.
        """
        others = [self._first(event, by) for event in events]
        counted = [event for event, other in zip(events, others, strict=True) if other is None]
        if not counted:
            stands = "The label stands, but the case" if events[0].labels else "The case"
            raise ActionRefused(f"{others[0]} was a moment earlier. {stands} is as {others[0]} has it: load it again.")
        return counted

    def _first(self, event: CaseEvent, by: str) -> str | None:
        """Return who was earlier, where an event did not count; None where it did."""
        other = "Somebody else"
        for entry in self._case(event.case_id).history:
            if entry.event.event_id == event.event_id:
                return None if entry.counted else other
            if entry.counted and entry.event.by != by and entry.event.kind in (CLAIMED, CLOSED):
                other = entry.event.by
        return None

    def _case(self, case_id: str) -> CaseSummary:
        try:
            return self._store.summary(case_id, _now_us())
        except KeyError:
            raise ActionRefused("There is no such case, or it is older than what is kept.") from None

    def _free(self, case_id: str, by: str) -> CaseSummary:
        """Return a case that nobody else holds."""
        case = self._case(case_id)
        if case.row.holder not in (None, by):
            until = datetime.fromtimestamp((case.row.holder_until_us or 0) / US_PER_SECOND, UTC)
            raise ActionRefused(f"{case.row.holder} holds this case until {until:%H:%M} UTC: ask, or take another one.")
        return case

    def _now(self) -> datetime:
        """Return the time of an action: the topics' own where their clock is a simulated one."""
        now, stream_us = datetime.now(UTC), self._store.stream_us
        if self._own_clock is None:
            self._own_clock = has_own_clock(self._bootstrap, self._settings)
        newest = datetime.fromtimestamp(stream_us / US_PER_SECOND, UTC)
        return (if_simulated(newest, now) if self._own_clock and stream_us else None) or now

    # --- Writing -----------------------------------------------------------------------------------------------

    def _write(
        self, events: Sequence[CaseEvent], labels: Sequence[Label] = (), now: datetime | None = None
    ) -> Sequence[CaseEvent]:
        """Write events and labels in one transaction, and return the events once all is read back."""
        records = [event_record(self._settings, event) for event in events]
        if now is not None:
            records += [label_record(self._settings, label, now) for label in labels]
        label_ids = [label.label_id or "" for label in labels]

        def is_read() -> bool:
            found = self._store.labels_by_id(events[0].card_id, label_ids)
            return len(found) == len(label_ids) and self._store.has_events([event.event_id for event in events])

        if not self._waiting.acquire(blocking=False):
            raise ActionRefused("Many actions wait for the brokers: try again in a moment.")
        try:
            with self._writing:
                self._transact(records, events[0].event_id)
            if not self._store.wait_until(is_read, READ_BACK_S):
                raise ActionPending(
                    f"It is written, but this console has not read it back within {READ_BACK_S:.0f} s: look at the "
                    "line at the top, and load the case again."
                )
        finally:
            self._waiting.release()
        return events

    def _transact(self, records: Sequence[TopicRecord], event_id: str) -> None:
        """Write records once, whatever becomes of the connection meanwhile; raises DeliveryFailed."""
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                if self._producer is None:
                    # It ends what an earlier one left open, so that the log says what became of that.
                    self._producer = TransactionalProducer(self._bootstrap, self._settings, self._transactional_id)
                    if attempt > 1 and self._is_written(event_id):
                        return
                self._producer.write(records, [])
                return
            except DeliveryFailed as error:
                self._producer = None
                if attempt == _ATTEMPTS:
                    raise
                log.warning("an action is tried again: %s", error)

    def _is_written(self, event_id: str) -> bool:
        """Return whether an event is on the log, once everything that was committed has been read."""
        topic = self._settings.topic(CASE_EVENTS.name)
        try:
            numbers = partition_numbers(admin_client(self._bootstrap, settings=self._settings), topic)
            ends = readable_ends(self._bootstrap, self._settings, [(topic, number) for number in numbers])
        except (ClusterUnreachable, FailedRequest, TopicError) as error:
            raise DeliveryFailed(f"whether it is written is not known: {error}") from error

        def has_read() -> bool:
            positions = self._store.positions()
            return all(positions.get((CASE_EVENTS.name, number), 0) >= end for (_, number), end in ends.items())

        if not self._store.wait_until(has_read, READ_BACK_S):
            raise ActionPending(
                f"Whether it is written is not known: this console has not read the topics for {READ_BACK_S:.0f} s. "
                "Repeat it in a moment; nothing is written twice."
            )
        return self._store.event(event_id) is not None


def _event(case: CaseSummary, by: str, event_id: str, kind: str, **more: Any) -> CaseEvent:
    row = case.row
    return CaseEvent(
        event_id=event_id, case_id=row.case_id, card_id=row.card_id, kind=kind, by=by, at=datetime.now(UTC), **more
    )


def _has_more(case: CaseSummary, shown: ShownAlerts | None) -> bool:
    """Return whether a case has got alerts since it was shown."""
    return shown is not None and (
        len(case.open_alerts) > shown.alerts or case.row.last_raised_us > shown.last_raised_us
    )


def _now_us() -> int:
    return time.time_ns() // 1_000
